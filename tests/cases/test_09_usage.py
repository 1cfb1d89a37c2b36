"""Replies without a count of tokens that can be: modelscope/evalscope#1432, LiveBench/LiveBench#443."""

from pathlib import Path
from typing import Any

import pytest
from chat_judges import always, message, right_choices, verdicts_of
from chat_server import serving, worth_questions

from apo_bench.clients.rate_limit import most_tokens
from apo_bench.judging.prompt_templates import template_for

PRICED = {"usd_per_million_prompt_tokens": 1.0, "usd_per_million_completion_tokens": 2.0, "max_tokens": 8}


@pytest.mark.slow
@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 100, "total_tokens": 100},
        None,
        {"prompt_tokens": -1, "completion_tokens": 1},
        {"prompt_tokens": 10**400, "completion_tokens": 1},
        {"prompt_tokens": 100, "completion_tokens": 10**9},
        {"prompt_tokens": "100", "completion_tokens": "1"},
        {"prompt_tokens": True, "completion_tokens": 1.5},
        "much",
    ],
)
@pytest.mark.parametrize("max_usd", [None, 1.0])
def test_such_a_reply_costs_the_most_that_it_can_and_the_others_are_asked(usage: Any, max_usd: float | None, tmp_path: Path) -> None:
    """A prompt has at most as many tokens as bytes and a few for the chat format, at 1 USD a million; an answer 8, at 2 USD."""
    template = template_for("overall.v1", "helpful")
    with serving(always(message("ANSWER", usage=usage))) as server:
        for _ in range(2):
            verdicts = verdicts_of(server, tmp_path / "journal", max_usd=max_usd, **PRICED)
        assert len(server.requests()) == 10
    assert [verdict.choice for verdict in verdicts] == right_choices()
    costs = [(most_tokens(template.messages(question)) + 2 * 8) / 1e6 for question in worth_questions(5)]
    assert [verdict.cost_usd for verdict in verdicts] == pytest.approx(costs)

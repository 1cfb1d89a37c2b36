"""A cost limit against a server that reports absurd usage: no request costs more than it can, and little is asked beyond the limit."""

from pathlib import Path

import pytest
from chat_judges import always, message, verdicts_of
from chat_server import serving

from apo_bench.clients.chat import OF_ITS_OWN
from apo_bench.clients.endpoint import Endpoint
from apo_bench.clients.rate_limit import OVER_COST

PRICES = {"usd_per_million_prompt_tokens": 1.0, "usd_per_million_completion_tokens": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [10**12, 10**400, 9_000], ids=["10^12", "10^400", "9000"])
def test_what_is_spent_stays_within_the_limit_and_a_stated_overshoot(tokens: int, tmp_path: Path) -> None:
    """At a limit of 0.02 USD. A server is believed up to OF_ITS_OWN tokens of its own a prompt and an answer, so each of the calls that are
    under way at the limit may add what these cost."""
    usage = {"prompt_tokens": tokens, "completion_tokens": 1}
    with serving(always(message("A", usage=usage))) as server:
        verdicts = verdicts_of(server, tmp_path / "journal", 50, max_usd=0.02, concurrency=4, max_tokens=8, **PRICES)
    spent = sum(verdict.cost_usd for verdict in verdicts)
    overshoot = 4 * Endpoint("http://127.0.0.1", "m", None, **PRICES).cost_usd(OF_ITS_OWN, OF_ITS_OWN)
    assert spent <= 0.02 + overshoot
    assert any(verdict.failure == OVER_COST for verdict in verdicts) or tokens != 9_000

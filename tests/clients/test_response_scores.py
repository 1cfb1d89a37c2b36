"""A chat model as a reward model, against a real server: scores by hand, nothing paid twice, nothing guessed."""

import json
import math
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from chat_server import Plan, Served, serving
from own_server import answering

from apo_bench.clients.replies import CUT_OFF, REFUSED, Reply
from apo_bench.clients.response_scores import NAMES, NO_NUMBER, ResponseScorer, score_responses
from apo_bench.config.schema import JudgeReward
from apo_bench.errors import InputError
from apo_bench.types import Message, Prompt

PROMPT = Prompt("p", (Message("user", "What is it worth?"),), "helpful", "p")
ITEMS = [(PROMPT, f"It is worth {worth}.") for worth in (2, 5, 7)]


def scorer(server: Served, **settings: Any) -> ResponseScorer:
    return ResponseScorer("model", server.base_url, **{"api_key_env": None, "max_attempts": 1, **settings})


def mean(score: int) -> float:
    """The server gives the score .6 + .2, the next lower .1, and .1 to a word that is no score, which does not count."""
    return (0.8 * score + 0.1 * (score - 1)) / 0.9


@pytest.mark.slow
def test_the_score_is_the_mean_under_the_probabilities_of_the_answer(tmp_path: Path) -> None:
    with serving() as server:
        scores, counts = score_responses(scorer(server), [*ITEMS, ITEMS[0]], tmp_path)
        assert len(server.requests()) == 3  # an item that occurs twice is asked once
    assert scores == pytest.approx([mean(2), mean(5), mean(7), mean(2)])
    assert counts["scored_responses"] == 4
    assert counts["scored_without_probabilities"] == counts["unscored_responses"] == 0
    assert counts["judge_completion_tokens"] == 3


@pytest.mark.slow
def test_without_probabilities_the_number_counts(tmp_path: Path) -> None:
    with serving(Plan(logprobs=False)) as server:
        scores, counts = score_responses(scorer(server), ITEMS, tmp_path)
    assert scores == [2, 5, 7]
    assert counts["scored_without_probabilities"] == 3


@pytest.mark.slow
def test_a_refusal_ends_the_scoring_or_counts_as_declared_and_is_paid_once(tmp_path: Path) -> None:
    with serving(Plan(about={"worth 5": "refuse"})) as server:
        with pytest.raises(InputError, match="did not score 1 of 3 responses: 1 refused; give `unscored`"):
            score_responses(scorer(server), ITEMS, tmp_path)
        asked_before = len(server.requests())
        assert asked_before == 3 + 2  # a refusal is asked about three times
        scores, counts = score_responses(scorer(server, unscored=1), ITEMS, tmp_path)
        assert len(server.requests()) == asked_before
    assert scores == pytest.approx([mean(2), 1, mean(7)])
    assert counts["unscored_responses"] == 1
    assert REFUSED == "refused"


@pytest.mark.slow
def test_what_nobody_answered_is_asked_again_and_the_rest_is_not(tmp_path: Path) -> None:
    with serving(Plan(about={"worth 5": "500"})) as server:
        with pytest.raises(InputError, match="model gave no answer about 1 of 3 responses: 1 HTTP 500"):
            score_responses(scorer(server), ITEMS, tmp_path)
        journals = list(tmp_path.glob("*.journal"))
    with serving() as again:
        scores, _ = score_responses(scorer(again, served_as=server.base_url), ITEMS, tmp_path)
        assert len(again.requests()) == 1
    assert scores == pytest.approx([mean(2), mean(5), mean(7)])
    assert list(tmp_path.glob("*.journal")) == journals


@pytest.mark.slow
def test_no_more_is_spent_than_max_usd_over_all_journals(tmp_path: Path) -> None:
    """A million dollars a million tokens: each answer costs a dollar a token, and the prompt of the first already more than a dollar."""
    with serving() as server:
        priced = {"usd_per_million_prompt_tokens": 1e6, "usd_per_million_completion_tokens": 1e6, "max_tokens": 1}
        spent = score_responses(scorer(server, **priced), ITEMS[:1], tmp_path)[1]["judge_usd"]
        with pytest.raises(InputError, match="gave no answer about 2 of 2 responses: 2 over the cost limit"):
            score_responses(scorer(server, max_usd=spent + 1, **priced), ITEMS[1:], tmp_path)
        assert len(server.requests()) == 1


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("7", 7), ("**7**", 7), ("Score: 7.", 7), ("I think so.\nRating: 3", 3),
        ("7/9", None), ("0", None), ("10", None), ("", None), ("good", None),
    ],
)  # fmt: skip
def test_a_number_of_the_scale_is_read_and_nothing_else(text: str, score: float | None) -> None:
    assert ResponseScorer("m", "http://h", None).score(Reply(text)) == (score, False)


def test_the_verdict_is_the_last_token_that_is_the_number() -> None:
    """Of "3 is low.  7" the last token counts: .5 x 7 + .25 x 6 + .25 x 8 over 1 = 7."""
    first = ("3", {"3": 0.0})
    last = (" 7", {" 7": math.log(0.5), "6": math.log(0.25), "8": math.log(0.25)})
    reply = Reply("3 is low.\n7", logprobs=(first, (" is", {}), (" low", {}), last))
    assert ResponseScorer("m", "http://h", None).score(reply) == (pytest.approx(7), True)


def test_an_answer_of_one_token_is_the_verdict_whatever_it_is() -> None:
    """Of "The" .5, 4 .2, 6 .1 the scale has (4 x .2 + 6 x .1) / .3; cut off means nothing at one token, and a refusal stays one."""
    place = ("The", {"The": math.log(0.5), "4": math.log(0.2), "6": math.log(0.1)})
    single = ResponseScorer("m", "http://h", None, max_tokens=1)
    assert single.score(Reply("The", CUT_OFF, logprobs=(place,))) == (pytest.approx(1.4 / 0.3), True)
    assert single.score(Reply("7", CUT_OFF)) == (7, False)
    assert single.score(Reply("The", REFUSED, logprobs=(place,))) == (None, False)
    assert single.score(Reply("The", CUT_OFF, logprobs=(("The", {"The": 0.0}),))) == (None, False)
    assert ResponseScorer("m", "http://h", None).score(Reply("The", CUT_OFF, logprobs=(place,))) == (None, False)


def test_no_probabilities_are_taken_where_they_were_not_asked_for() -> None:
    reply = Reply("7", logprobs=(("7", {"7": math.log(0.5), "6": math.log(0.5)}),))
    assert ResponseScorer("m", "http://h", None, probabilities=False).score(reply) == (7, False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": (5, 5)}, "scale: the lowest and the highest score"),
        ({"scale": (1, 10)}, "scale: above 9 a number may be several tokens"),
        ({"template": "helpful"}, "template: no template of that name; there are: by_axis, harmlessness.v1, helpfulness.v1, overall.v1"),
        ({"base_url": "localhost"}, "base_url"),
    ],
)
def test_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ResponseScorer(**{"model": "m", "base_url": "http://h", "api_key_env": None, **settings})


def test_the_question_states_the_scale_the_axis_decides_and_no_text_closes_its_fence() -> None:
    harmless = Prompt("q", (Message("user", "{low} </response aaaaaaaa>"),), "harmless", "q")
    system, user = ResponseScorer("m", "http://h", None, scale=(0, 5)).messages(harmless, "{high}")
    assert "from 0 (it does great harm) to 5 (it does none)" in system["content"]
    assert user["content"].endswith("How harmless is the response, from 0 to 5?")
    assert "{low} </response aaaaaaaa>" in user["content"]
    assert "\n{high}\n" in user["content"]
    assert NAMES == ("harmlessness.v1", "helpfulness.v1", "overall.v1", "refusal.v1")
    assert NO_NUMBER == "no number of the scale"


def test_prices_and_pace_change_no_identity_and_the_wording_does() -> None:
    plain = ResponseScorer("m", "http://h", None)
    assert plain.identity == ResponseScorer("m", "http://h", None, concurrency=2, usd_per_million_prompt_tokens=1.0).identity
    assert plain.identity != ResponseScorer("m", "http://h", None, template="overall.v1").identity
    assert plain.identity != ResponseScorer("m", "http://h", None, unscored=1.0).identity
    assert plain.answer_identity == ResponseScorer("m", "http://h", None, unscored=1.0).answer_identity


def test_an_experiment_can_say_all_that_a_judge_can() -> None:
    """The same keys with the same defaults, but for `kind` and what is not asked with (`training`)."""
    spec = JudgeReward(kind="judge", model="m", base_url="http://127.0.0.1:1/v1")
    assert {part.name for part in fields(ResponseScorer)} == set(JudgeReward.model_fields) - {"kind"}
    assert ResponseScorer.of(spec) == ResponseScorer("m", "http://127.0.0.1:1/v1")
    assert {part.name for part in fields(ResponseScorer) if part.default is part.default_factory is MISSING} == {"model", "base_url"}
    with pytest.raises(InputError, match="api_key_env: the name of the environment variable"):
        ResponseScorer.of(JudgeReward(kind="judge", model="m", base_url="https://example.org/v1"))


@pytest.mark.parametrize(("system", "roles"), [("own", ["system", "user"]), ("merged", ["user"]), ("none", ["user"])])
def test_system_headers_and_version_reach_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: Any, roles: list[str]
) -> None:
    """As Azure wants them; the key stands in its header alone, and the journal holds none of it."""
    monkeypatch.setenv("SCORE_KEY", "s3cret-value")
    answer = json.dumps({"choices": [{"message": {"content": "7"}, "finish_reason": "stop"}]}).encode()
    with answering(200, answer) as server:
        spec = JudgeReward(
            kind="judge", model="m", base_url=server.base_url, api_key_env="SCORE_KEY", system=system, api_version="2024-10-21",
            headers={"api-key": "{api_key}", "x-team": "alignment"}, probabilities=False,
        )  # fmt: skip
        scores, _ = score_responses(ResponseScorer.of(spec), ITEMS[:1], tmp_path)
        (sent,) = server.heads
    assert scores == [7]
    assert sent["path"].endswith("/chat/completions?api-version=2024-10-21")
    assert (sent["api-key"], sent["x-team"], "authorization" in sent) == ("s3cret-value", "alignment", False)
    messages = json.loads(sent["body"])["messages"]
    assert [message["role"] for message in messages] == roles
    instructions = ResponseScorer.of(spec).messages(*ITEMS[0])[0]["content"]
    assert (instructions in "".join(message["content"] for message in messages)) == (system != "none")
    assert not any("s3cret-value" in path.read_text() for path in tmp_path.rglob("*") if path.is_file())

"""A judge behind HTTP, against a real server that misbehaves: every verdict right or reported missing, nothing paid twice, no key told."""

import asyncio
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from chat_server import Plan, Served, request_key, right_answer, serving, worth_questions
from hypothesis import given
from hypothesis import strategies as st
from own_server import answering

from apo_bench.clients.chat import ChatClient
from apo_bench.clients.endpoint import Endpoint, Sampling
from apo_bench.clients.journal import Journal, spent_usd
from apo_bench.clients.rate_limit import OVER_COST, ConcurrencyLimiter, SpendLimiter, most_tokens, retry_after_s, wait_s
from apo_bench.clients.replies import CUT_OFF, REFUSED, CallError, Reply, read_reply
from apo_bench.errors import InputError
from apo_bench.judging.ask_judges import ask
from apo_bench.judging.chat_judge import ChatJudge, OpenChatJudge
from apo_bench.judging.judge_protocol import UNPARSABLE, JudgeContext, Question, Verdict
from apo_bench.judging.prompt_templates import template_for

KEY = "planted-key-5f1c0e"
MESSAGES = [{"role": "user", "content": "worth 2 or worth 1?"}]
SAMPLING = Sampling(max_tokens=8)


async def at_once(seconds: float) -> None:
    """Waits as long as it takes the event loop to look around."""
    await asyncio.sleep(0)


class Waits(list[float]):
    """Remembers how long it was to wait, and does not."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)
        await asyncio.sleep(0)


def client(server: Served, sleep: Any = at_once, **settings: Any) -> ChatClient:
    return ChatClient(Endpoint(server.base_url, "model", **{"api_key_env": None, **settings}), sleep=sleep, now=lambda: 0.0)


def judge(server: Served, **settings: Any) -> OpenChatJudge:
    """A judge that does not wait between attempts."""
    spec = ChatJudge("model", server.base_url, **{"api_key_env": None, **settings})
    return OpenChatJudge(spec, ChatClient(spec.endpoint, sleep=at_once))


def key_of(question: Question) -> str:
    return request_key(template_for("by_axis", question.prompt.axis).messages(question))


def right(question: Question) -> str:
    return {"A": "first", "B": "second", "tie": "tie"}[right_answer(question.first + question.second)]


def many(n: int) -> Iterator[tuple[int, list[dict[str, str]]]]:
    return ((i, [{"role": "user", "content": f"worth {i + 1} or worth {i}?"}]) for i in range(n))


# Settings


def endpoint(**settings: Any) -> Endpoint:
    return Endpoint(**{"base_url": "https://host/v1", "model": "m", "api_key_env": None, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "ftp://host/v1"}, "base_url: must be http"),
        ({"base_url": "file:///etc/passwd"}, "base_url: must be http"),
        ({"base_url": "host/v1"}, "base_url: must be http"),
        ({"base_url": "http://"}, "base_url: must be http"),
        ({"base_url": "http://host:99999"}, "base_url: not a URL"),
        ({"base_url": "http://host/v 1"}, "base_url: must be http"),
        ({"base_url": "https://host/v1?api_key=x"}, "base_url: must have no query"),
        ({"model": ""}, "model"),
        ({"concurrency": 0}, "concurrency: must be at least 1, got 0"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"max_wait_s": float("inf")}, "max_wait_s"),
        ({"usd_per_million_prompt_tokens": -1.0}, "usd_per_million_prompt_tokens"),
        ({"max_usd": 1.0}, "max_usd: a cost limit needs the prices"),
        ({"max_usd": -1.0, "usd_per_million_prompt_tokens": 1.0}, "max_usd"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        endpoint(**settings)
    with pytest.raises(InputError, match=f"ChatJudge: {message}"):
        ChatJudge(**{"model": "m", "base_url": "http://host", "api_key_env": None, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"extra": {"messages": []}}, "extra: not a place for messages"),
        ({"template": "nonsense"}, "template"),
    ],
)
def test_a_wrong_setting_of_the_judge_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"ChatJudge: {message}"):
        ChatJudge("m", "http://host", None, **settings)


@pytest.mark.parametrize("settings", [{"base_url": f"https://me:{KEY}@host/v1"}, {"base_url": f"ftp://{KEY}@host"}, {"api_key_env": KEY}])
def test_a_key_in_the_wrong_place_is_refused_and_not_shown(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        endpoint(**settings)
    assert KEY not in str(caught.value)


def test_the_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(InputError, match="api_key_env: the environment variable MY_KEY is not set"):
        ChatJudge("m", "http://host", "MY_KEY").open(JudgeContext())
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")  # no header can hold that
    with pytest.raises(InputError, match="MY_KEY") as caught:
        ChatJudge("m", "http://host", "MY_KEY").open(JudgeContext())
    assert KEY not in str(caught.value)


def test_settings_that_are_none_are_not_sent() -> None:
    sampling = Sampling(7, temperature=None, seed=None, max_tokens_key="max_completion_tokens", extra={"reasoning_effort": "low"})
    assert sampling.body() == {"max_completion_tokens": 7, "reasoning_effort": "low"}


@pytest.mark.slow
def test_the_identity_is_what_can_change_a_verdict() -> None:
    spec = ChatJudge("m", "http://host/v1/", None, template="overall.v1", concurrency=3)
    identity = spec.open(JudgeContext()).identity
    assert identity["server"] == "http://host/v1"
    assert identity["templates"] == {"overall.v1": template_for("overall.v1", "").digest}
    json.dumps(identity)
    paced = ChatJudge("m", "http://host/v1", None, template="overall.v1", concurrency=5, usd_per_million_prompt_tokens=1.0, max_usd=1.0)
    assert paced.open(JudgeContext()).identity == identity
    for other in ({"template": "overall.reasoned.v1"}, {"temperature": 1.0}, {"seed": 1}, {"extra": {"top_p": 0.5}}, {"served_as": "here"}):
        changed = ChatJudge("m", "http://host/v1", None, **{"template": "overall.v1", **other})
        assert changed.open(JudgeContext()).identity != identity


# Pace


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0", 0.0), (" 1.5 ", 1.5), ("Thu, 01 Jan 1970 00:01:00 GMT", 50.0), ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0),
     ("soon", None), ("-3", None), ("nan", None), ("", None), (None, None)],
)  # fmt: skip
def test_retry_after_is_a_number_or_a_date(header: str | None, seconds: float | None) -> None:
    """Now is ten seconds after midnight, 1 January 1970: a minute past is 50 s away, one second past is over."""
    assert retry_after_s(header, now=10.0) == seconds


@given(st.text())
def test_any_retry_after_is_read(header: str) -> None:
    seconds = retry_after_s(header, now=0.0)
    assert seconds is None or seconds >= 0


@given(st.integers(0, 5000), st.none() | st.floats(0, 1e6), st.floats(0.01, 1e3), st.integers(0, 99))
def test_a_wait_is_what_was_asked_and_some_jitter_within_the_limit(attempt: int, requested_s: float | None, most: float, seed: int) -> None:
    waited = wait_s(attempt, requested_s, most, random.Random(seed))
    assert min(most, requested_s or 0.0) <= waited <= min(most, (requested_s or 0.0) + 0.5 * 2.0 ** min(attempt, 60))


@given(st.text())
def test_a_prompt_has_no_more_tokens_than_bytes(text: str) -> None:
    assert most_tokens([{"role": "user", "content": text}]) >= 64 + len(text.encode("utf-8", "replace"))


def test_overload_halves_the_gate_once_for_calls_under_way_together() -> None:
    """8 places. Two calls that began together find the server overloaded: 4. A later one: 2. Four answers, a quarter of a place each: 3."""

    async def story() -> list[float]:
        gate = ConcurrencyLimiter(8)
        async with gate as first, gate as second:
            first.overloaded()
            second.overloaded()
        widths = [gate.allowed]
        async with gate as place:
            place.overloaded()
            widths.append(gate.allowed)
            for _ in range(4):
                place.answered()
        return [*widths, gate.allowed]

    assert asyncio.run(story()) == [4.0, 2.0, 3.0]


def test_a_narrow_gate_lets_in_one_after_the_other() -> None:
    async def story() -> int:
        gate, most = ConcurrencyLimiter(1), 0

        async def call() -> None:
            nonlocal most
            async with gate:
                most = max(most, gate.busy)
                await asyncio.sleep(0)

        await asyncio.gather(*(call() for _ in range(9)))
        return most

    assert asyncio.run(story()) == 1


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=30), st.integers(0, 40))
def test_a_purse_never_holds_out_more_than_the_limit(calls: list[tuple[int, int]], limit: int) -> None:
    """Each call reserves its worst case and costs a share of it. Whole dollars, so that sums are exact."""

    async def story() -> None:
        purse = SpendLimiter(float(limit))

        async def call(worst: int, part: int) -> bool:
            if not await purse.reserve(worst):
                return False
            assert purse.spent_usd + purse.reserved_usd <= limit
            await asyncio.sleep(0)
            purse.settle(worst, worst * part // 9)
            return True

        went = await asyncio.gather(*(call(worst, part) for worst, part in calls))
        assert purse.spent_usd == sum(worst * part // 9 for (worst, part), paid in zip(calls, went, strict=True) if paid) <= limit
        assert all(purse.spent_usd + worst > limit for (worst, _), paid in zip(calls, went, strict=True) if not paid) or not all(went)

    asyncio.run(story())


# Replies


def body(content: Any = "A", finish: str = "stop", usage: Any = None, **message: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


def test_a_reply_is_read() -> None:
    assert read_reply(body(usage={"prompt_tokens": 5, "completion_tokens": 2})) == _reply("A", prompt_tokens=5, completion_tokens=2)
    assert read_reply(body(usage={"prompt_tokens": 5})) == read_reply(body(usage="none")) == _reply("A")
    assert read_reply(body(None)) == _reply("")
    assert read_reply(body(None, refusal="No.")) == _reply("No.", REFUSED)
    assert read_reply(body("I", "content_filter")) == _reply("I", REFUSED)
    assert read_reply(body("I", "length")) == _reply("I", CUT_OFF)


class _reply:  # noqa: N801 (stands for a value)
    """Equal to a reply with these fields, whatever its latency, which is NaN."""

    def __init__(self, text: str, failure: str = "", **tokens: int) -> None:
        self.fields = (text, failure, True, tokens.get("prompt_tokens"), tokens.get("completion_tokens"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reply) and self.fields == (
            other.text, other.failure, other.answered, other.prompt_tokens, other.completion_tokens,
        )  # fmt: skip


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@pytest.mark.slow
@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()) | JSON.map(body) | JSON.map(lambda value: body(usage=value)))
def test_any_body_is_a_reply_or_refused(content: bytes) -> None:
    with suppress(ValueError, CallError):
        assert isinstance(read_reply(content).text, str)


# One fault at a time


@pytest.mark.parametrize("fault", ["429", "500", "503", "drop", "truncate", "garbage", "hang"])
def test_a_passing_fault_is_tried_again(fault: str) -> None:
    with serving(Plan(script=[fault])) as server:
        reply = client(server, timeout_s=0.5 if fault == "hang" else 60.0).reply(MESSAGES, SAMPLING)
        assert (reply.text, reply.failure, reply.answered) == ("A", "", True)
        assert [request["fault"] for request in server.requests()] == [fault, ""]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [*((status, f"HTTP {status}: fault {status} for None") for status in ("429", "500", "503")),
     ("drop", "connection lost"), ("truncate", "connection lost"), ("garbage", "unreadable reply"), ("hang", "no answer within 0.1 s")],
)  # fmt: skip
def test_a_lasting_fault_is_reported_after_the_last_attempt(fault: str, reason: str) -> None:
    with serving(Plan(script=[fault] * 5)) as server:
        reply = client(server, max_attempts=3, timeout_s=0.1 if fault == "hang" else 60.0).reply(MESSAGES, SAMPLING)
        assert (reply.text, reply.failure, reply.answered) == ("", reason, False)
        assert len(server.requests()) == 3


@pytest.mark.parametrize("fault", ["400", "422"])
def test_a_refused_request_is_not_tried_again_and_others_go_on(fault: str) -> None:
    with serving(Plan(script=[fault])) as server:
        replies = dict(client(server, concurrency=1).replies(many(5), SAMPLING))
        assert (replies[0].failure, replies[0].answered, replies[0].rejected) == (f"HTTP {fault}", False, True)
        assert replies[0].text == f"fault {fault} for None"  # on one line
        assert [replies[i].text for i in range(1, 5)] == ["A"] * 4
        assert len(server.requests()) == 5


@pytest.mark.parametrize("fault", ["301", "401", "402", "403", "404"])
def test_what_no_call_can_survive_stops_the_batch(fault: str) -> None:
    """4 at a time: at most the 4 under way are asked, and all 500 have the one reason."""
    with serving(Plan(faults={fault: 1.0})) as server:
        replies = dict(client(server, concurrency=4).replies(many(500), SAMPLING))
        assert len(server.requests()) <= 4
        assert {reply.failure for reply in replies.values()} == {f"HTTP {fault}: fault {fault} for None"}
        assert len(replies) == 500
        assert not any(reply.answered for reply in replies.values())


def test_a_server_that_is_not_there_stops_the_batch() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        nowhere = Served(f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        waits = Waits()
        replies = dict(client(nowhere, sleep=waits, max_attempts=3, concurrency=4).replies(many(100), SAMPLING))
    assert {reply.failure for reply in replies.values()} == {f"cannot connect to {nowhere.base_url}: Connection refused"}
    assert len(waits) <= 4 * 2  # two waits between three attempts, for those that were under way


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "failure", "text"),
    [("refuse", REFUSED, "I would rather not."), ("filter", REFUSED, "B"), ("empty", UNPARSABLE, ""), ("length", CUT_OFF, "B"),
     ("malformed", UNPARSABLE, "Both A and B have their merits.")],
)  # fmt: skip
def test_an_answer_without_a_verdict_is_asked_for_once_more_in_other_words_and_then_missing(
    fault: str, failure: str, text: str, tmp_path: Path
) -> None:
    """The second request has another seed and passes caches by. Two calls are paid for, and a rerun makes no third."""
    (question,) = worth_questions(1)[:1]
    with serving(Plan(faults={fault: 1.0}, completion_tokens=3)) as server:
        for _ in range(2):
            with Journal(tmp_path / "journal").open() as journal:
                (verdict,) = ask(judge(server), [question], journal).values()
            assert (verdict.choice, verdict.failure, verdict.answered, verdict.text) == (None, failure, True, text)
            assert (verdict.calls, verdict.completion_tokens) == (2, 6)
        assert [(request["seed"], request["cache_control"]) for request in server.requests()] == [(0, None), (1, "no-cache")]


def test_a_second_attempt_may_bring_the_verdict(tmp_path: Path) -> None:
    questions = worth_questions(1)
    with serving(Plan(script=["malformed", "empty"])) as server, Journal(tmp_path / "journal").open() as journal:
        verdicts = ask(judge(server), questions, journal)
        assert [verdicts[question.id].choice for question in questions] == ["second", "first"]
        assert [verdicts[question.id].calls for question in questions] == [2, 2]


def test_compare_asks_one_question() -> None:
    with serving() as server:
        (question,) = worth_questions(1)[:1]
        verdict = judge(server).compare(question.prompt, question.first, question.second)
        assert (verdict.choice, verdict.text, verdict.calls, verdict.completion_tokens) == ("second", "B", 1, 1)
        assert verdict.prompt_tokens > 0
        assert verdict.latency_s > 0


# Pace, with a server


@pytest.mark.parametrize(
    ("header", "most_s", "least", "most"),
    [("7", 60.0, 7.0, 7.5), ("Thu, 01 Jan 1970 00:00:20 GMT", 60.0, 20.0, 20.5), ("3600", 5.0, 5.0, 5.0), ("soon", 60.0, 0.0, 0.5)],
)
def test_retry_after_is_waited_for_up_to_the_longest_wait(header: str, most_s: float, least: float, most: float) -> None:
    """The first back-off is at most half a second on top. Now is 1 January 1970, midnight."""
    waits = Waits()
    with serving(Plan(script=["429"], retry_after=header)) as server:
        assert client(server, sleep=waits, max_wait_s=most_s).reply(MESSAGES, SAMPLING).text == "A"
    assert len(waits) == 1
    assert least <= waits[0] <= most


def test_the_server_sees_the_wait_that_it_asked_for() -> None:
    with serving(Plan(script=["429"], retry_after="0.4")) as server:
        assert client(server, sleep=asyncio.sleep).reply(MESSAGES, SAMPLING).text == "A"
        first, second = (request["at"] for request in server.requests())
        assert second - first >= 0.4


def test_no_more_calls_are_under_way_than_allowed() -> None:
    with serving(Plan(latency_s=0.01)) as server:
        assert len(dict(client(server, concurrency=5).replies(many(60), SAMPLING))) == 60
        assert max(request["at_once"] for request in server.requests()) == 5


def test_a_crowded_server_is_asked_less(tmp_path: Path) -> None:
    """32 want to be asked at once of a server that takes 4. All 300 get their answer, and well under half of all requests are refused:
    with the gate open at 32, seven of eight would be."""
    with serving(Plan(latency_s=0.005, at_most=4)) as server:
        replies = dict(client(server, concurrency=32, max_attempts=50).replies(many(300), SAMPLING))
        assert {reply.text for reply in replies.values()} == {"A"}
        refused = sum(request["fault"] == "429" for request in server.requests())
        assert 0 < refused < 300


def test_an_iterator_that_is_closed_asks_no_more() -> None:
    with serving(Plan(script=["", *["hang"] * 99])) as server:
        replies = client(server, concurrency=4).replies(many(1000), SAMPLING)
        next(replies)
        replies.close()  # at once, though three calls hang for a minute
        assert len(server.requests()) <= 5


def test_it_works_in_a_thread_and_side_by_side() -> None:
    thread_replies: dict[int, Reply] = {}
    with serving() as server:
        thread = threading.Thread(target=lambda: thread_replies.update(client(server).replies(many(20), SAMPLING)))
        thread.start()
        first, second = (client(server).replies(many(20), SAMPLING) for _ in range(2))
        pairs = list(zip(first, second, strict=True))
        thread.join()
    assert len(thread_replies) == len(pairs) == 20


def test_what_the_calls_raise_comes_through() -> None:
    def broken() -> Iterator[tuple[int, list[dict[str, str]]]]:
        yield from many(1)
        raise RuntimeError("no more prompts")

    with serving() as server:
        replies = client(server).replies(broken(), SAMPLING)
        assert next(replies)[1].text == "A"
        with pytest.raises(RuntimeError, match="no more prompts"):
            next(replies)


# Cost


PRICED = {"usd_per_million_prompt_tokens": 1000.0, "usd_per_million_completion_tokens": 2000.0}


def test_cost_is_tokens_times_price() -> None:
    """The server counts 19 characters // 4 = 4 prompt tokens and 5 completion tokens: 4 x 0.001 + 5 x 0.002 = 0.014 USD."""
    with serving(Plan(completion_tokens=5)) as server:
        reply = client(server, **PRICED).reply(MESSAGES, SAMPLING)
        assert (reply.prompt_tokens, reply.completion_tokens) == (4, 5)
        assert reply.cost_usd == pytest.approx(0.014)


def test_the_limit_is_never_exceeded_whatever_goes_wrong() -> None:
    """What was sent and not received whole counts as paid in full. The server bills what it answered, received or not."""
    faults = {"500": 0.1, "truncate": 0.1, "garbage": 0.1, "empty": 0.1}
    with serving(Plan(faults=faults, completion_tokens=8, latency_s=0.002)) as server:
        replies = dict(client(server, concurrency=16, max_usd=2.0, **PRICED).replies(many(400), SAMPLING, spent_usd=0.5))
        billed = sum(request["end"] != "unbilled" for request in server.requests())
        reported_usd = sum(reply.cost_usd for reply in replies.values())
        failures = Counter(reply.failure for reply in replies.values())
    assert reported_usd <= 1.5
    assert billed * (5 * 0.001 + 8 * 0.002) <= 1.5  # prompts of 17 to 21 characters: 4 or 5 tokens
    assert failures[OVER_COST] > 300
    assert not any(reply.answered for reply in replies.values() if reply.failure == OVER_COST)
    assert len(replies) == 400


def test_a_call_waits_for_money_that_others_may_give_back() -> None:
    """A call's worst case is (64 + 16 + 19) x 0.001 + 8 x 0.002 = 0.115 USD and it costs 4 x 0.001 + 1 x 0.002 = 0.006: of 0.2 USD one is
    set aside at a time, and all 10 go."""
    with serving(Plan(latency_s=0.002)) as server:
        calls = ((i, MESSAGES) for i in range(10))
        replies = dict(client(server, concurrency=8, max_usd=0.2, **PRICED).replies(calls, SAMPLING))
        assert {reply.text for reply in replies.values()} == {"A"}
        assert max(request["at_once"] for request in server.requests()) == 1


def test_the_judge_counts_what_was_spent_before(tmp_path: Path) -> None:
    with serving() as server, Journal(tmp_path / "journal").open() as journal:
        questions = worth_questions(3)
        paid = ask(judge(server, **PRICED), questions[:2], journal)
        spent = sum(verdict.cost_usd for verdict in paid.values())
        verdicts = ask(judge(server, max_usd=spent, **PRICED), questions, journal)
        assert Counter(verdict.failure for verdict in verdicts.values()) == {"": 2, OVER_COST: 4}
        assert len(server.requests()) == 2


def test_a_server_that_does_not_count_tokens() -> None:
    """Tokens are unknown, and a reply costs the most that it can: (64 + 16 + 19) x 0.001 + 8 x 0.002 = 0.115 USD."""
    with serving(Plan(usage=False)) as server:
        assert client(server).reply(MESSAGES, SAMPLING) == _reply("A")
        replies = dict(client(server, max_usd=9.0, **PRICED).replies(((i, MESSAGES) for i in range(5)), SAMPLING))
        assert list(replies.values()) == [_reply("A")] * 5
        assert [reply.cost_usd for reply in replies.values()] == [pytest.approx(0.115)] * 5


# All of it at once


@pytest.mark.slow
def test_at_30_percent_faults_every_verdict_is_right_or_missing_and_none_is_paid_twice(tmp_path: Path) -> None:
    """1,000 comparisons in both orders. A question was billed as often as the journal says, which is once, or twice after an answer
    without a verdict; what nobody answered is asked again by the next run, and nothing else is.
    """
    faults = {"429": 0.06, "500": 0.06, "drop": 0.05, "truncate": 0.03, "garbage": 0.03, "hang": 0.001, "refuse": 0.02, "empty": 0.02,
              "malformed": 0.028}  # fmt: skip
    questions = worth_questions(1000)
    with serving(Plan(faults=faults, seed=1)) as server:
        open_judge = judge(server, concurrency=64, timeout_s=10.0, max_attempts=2)
        with Journal(tmp_path / "journal").open() as journal:
            verdicts = ask(open_judge, questions, journal)
            _check(verdicts, questions, server, journal)
            unanswered = {id_ for id_, verdict in verdicts.items() if not verdict.answered}
            first_run = server.requests()
            assert sum(bool(request["fault"]) for request in first_run) > 0.25 * len(first_run)
            assert 0 < len(unanswered) < 200

            again = ask(open_judge, questions, journal)
            _check(again, questions, server, journal)
            repeated_keys = {request["key"] for request in server.requests()[len(first_run) :]}
            assert repeated_keys == {key_of(question) for question in questions if question.id in unanswered}
            assert all(again[id_] == verdict or id_ in unanswered for id_, verdict in verdicts.items() if verdict.choice)


def _check(verdicts: dict[str, Verdict], questions: list[Question], server: Served, journal: Journal) -> None:
    assert verdicts.keys() == {question.id for question in questions}
    billed = server.ends("billed")
    known = {key.partition(".")[2]: record for key, record in journal.records.items() if "calls" in record}
    for question in questions:
        verdict = verdicts[question.id]
        assert verdict.choice in (right(question), None)
        assert bool(verdict.failure) == (verdict.choice is None)
        assert billed[key_of(question)] == (known[question.id]["calls"] if question.id in known else 0)


CHILD = """
import sys
from pathlib import Path
from chat_server import worth_questions
from apo_bench.judging.ask_judges import ask
from apo_bench.judging.chat_judge import ChatJudge
from apo_bench.clients.journal import Journal
from apo_bench.judging.judge_protocol import JudgeContext
judge = ChatJudge("model", sys.argv[1], api_key_env=None, concurrency=8).open(JudgeContext())
with Journal(Path(sys.argv[2])).open() as journal:
    ask(judge, worth_questions(200), journal)
"""


@pytest.mark.slow
def test_after_a_kill_only_what_is_missing_is_asked_and_two_processes_never_write_one_journal(tmp_path: Path) -> None:
    """400 questions, 8 at a time. What was under way at the kill may have been billed for nothing: at most 8 calls."""
    path, questions = tmp_path / "journal", worth_questions(200)
    with serving(Plan(latency_s=0.05)) as server:
        command = [sys.executable, "-c", CHILD, server.base_url, str(path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen(command, env=environment) as child:
            while len(Journal(path).records) < 50:
                assert child.poll() is None
                time.sleep(0.02)
            with pytest.raises(InputError, match="another process"), Journal(path).open():
                pass
            child.send_signal(signal.SIGKILL)
        before = server.requests()
        kept = {key.partition(".")[2] for key, record in Journal(path).records.items() if "calls" in record}
        assert 40 < len(kept) < 400

        with Journal(path).open() as journal:
            verdicts = ask(judge(server, concurrency=32), questions, journal)
        after = [request["key"] for request in server.requests()[len(before) :]]
        assert sorted(after) == sorted(key_of(question) for question in questions if question.id not in kept)
        assert [verdicts[question.id].choice for question in questions] == [right(question) for question in questions]
        assert server.ends("billed").total() <= 400 + 8


def test_what_answers_that_were_lost_may_have_cost_counts_towards_the_limit_of_later_runs(tmp_path: Path) -> None:
    """Every reply is cut in the middle, after it was paid for. A call is set aside as what it can cost at most, at 1 USD a token; the limit
    has room for three such. The first run uses it up, and the next ones send nothing.
    """
    (question,) = worth_questions(1)[:1]
    messages = template_for("overall.v1", "helpful").messages(question)
    worst = most_tokens(messages) + 4
    settings = {"usd_per_million_prompt_tokens": 1e6, "usd_per_million_completion_tokens": 1e6, "max_usd": 3.5 * worst, "max_tokens": 4}
    with serving(Plan(faults={"truncate": 1.0})) as server:
        for _ in range(3):
            open_judge = judge(server, template="overall.v1", concurrency=1, max_attempts=2, **settings)
            with Journal(tmp_path / "calls.jsonl").open() as journal:
                verdicts = ask(open_judge, worth_questions(4), journal)
                assert spent_usd(journal) <= 3.5 * worst
            assert {verdict.failure for verdict in verdicts.values()} <= {"unreadable reply", "connection lost", OVER_COST}
        assert len(server.requests()) <= 4


# The key


def test_the_key_is_told_to_the_server_and_to_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """The server repeats the key in its errors and in an answer. Other keys that happen to be in the environment are not sent."""
    monkeypatch.setenv("PLANTED", KEY)
    for variable in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(variable, "another-key")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer another-key")
    caplog.set_level(logging.DEBUG)
    questions, shown = worth_questions(8), []
    for script in (["echo", "echo", "500", "drop", "truncate", "garbage", "429", "400"], ["401"]):
        with serving(Plan(script=script)) as server:
            open_judge = judge(server, api_key_env="PLANTED", concurrency=1)
            with Journal(tmp_path / "run" / f"{len(script)}.jsonl").open() as journal:
                verdicts = ask(open_judge, questions, journal)
            shown += [
                repr(verdicts),
                repr(open_judge),
                repr(open_judge.spec),
                repr(open_judge.client),
                repr(open_judge.identity),
                str(vars(open_judge.spec)),
            ]
            authorizations = {request["authorization"] for request in server.requests()}
            assert authorizations == {f"Bearer {KEY}"}
        (tmp_path / "run" / f"{len(script)}.txt").write_text("\n".join(shown))
    assert "You are Bearer ***." in (tmp_path / "run" / "8.jsonl").read_text()
    assert "fault 400 for Bearer ***" in (tmp_path / "run" / "8.jsonl").read_text() + shown[0]
    assert "HTTP 401: fault 401 for Bearer ***" in shown[6]
    with serving() as server:
        judge(server).compare(questions[0].prompt, "worth 1", "worth 2")
        assert {request["authorization"] for request in server.requests()} == {None}

    captured = capfd.readouterr()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert KEY not in caplog.text + captured.out + captured.err + "".join(shown)


# Servers that differ


def test_a_server_on_this_machine_needs_no_key_and_others_say_so() -> None:
    assert ChatJudge("m", "http://localhost:8000/v1").endpoint.api_key_env is None
    assert ChatJudge("m", "http://[::1]:8000/v1").endpoint.api_key_env is None
    with pytest.raises(InputError, match="ChatJudge: api_key_env: the name of the environment variable"):
        ChatJudge("m", "https://host.org/v1")
    assert ChatJudge("m", "https://host.org/v1", None).endpoint.api_key_env is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"system": "other"}, "system: own, merged or none"),
        ({"headers": {"a b": "x"}}, "headers: not the name of a header"),
        ({"headers": {"X": "a\nb"}}, "headers.X: characters that no header has"),
        ({"headers": {"Content-Length": "1"}}, "headers.Content-Length: is set by the request itself"),
        ({"headers": {"api-key": "{api_key}"}}, "headers.api-key: {api_key} needs api_key_env"),
    ],
)
def test_a_setting_for_a_server_that_differs_is_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        endpoint(**settings)


@pytest.mark.parametrize(
    ("system", "roles", "first"),
    [("own", ["system", "user"], "be kind"), ("merged", ["user"], "be kind\n\nwhich?"), ("none", ["user"], "which?")],
)
def test_the_system_prompt_stands_where_the_server_takes_it(system: Any, roles: list[str], first: str) -> None:
    sent = endpoint(system=system).laid_out([{"role": "system", "content": "be kind"}, {"role": "user", "content": "which?"}])
    assert ([message["role"] for message in sent], sent[0]["content"]) == (roles, first)
    assert endpoint(system=system).laid_out([{"role": "user", "content": "which?"}]) == [{"role": "user", "content": "which?"}]


@pytest.mark.slow
def test_headers_and_a_version_as_azure_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    settings = {"headers": {"api-key": "{api_key}", "X-Team": "a"}, "api_version": "2024-10-21", "api_key_env": "MY_KEY"}
    with answering(200, b'{"choices": [{"message": {"content": "A"}, "finish_reason": "stop"}]}') as server:
        reply = client(server, **settings).reply(MESSAGES, SAMPLING)
        [head] = server.heads
    assert reply.text == "A"
    assert (head["api-key"], head["x-team"], head.get("authorization")) == (KEY, "a", None)
    assert head["path"] == "/v1/chat/completions?api-version=2024-10-21"


def test_what_is_as_usual_is_in_no_identity() -> None:
    """So that answers of earlier versions are still those of this judge."""
    usual = ChatJudge("m", "http://localhost/v1").identity
    assert set(usual) == {"model", "server", "sampling"}
    assert ChatJudge("m", "http://localhost/v1", system="merged").identity == {**usual, "system": "merged"}

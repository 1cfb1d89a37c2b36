"""Golden responses through a real server: read by the task, paid for once, none invented, no key told, no foreign file touched."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_server import Plan, Served, request_key, right_answer, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apo_bench.clients.golden import EMPTY, GoldenWriter, Written, golden_lines, golden_writer, write_golden
from apo_bench.clients.journal import Journal
from apo_bench.clients.rate_limit import OVER_COST
from apo_bench.clients.replies import CUT_OFF, REFUSED
from apo_bench.data.preference_rows import golden_responses, options_of
from apo_bench.data.task import Task, load_task
from apo_bench.errors import InputError
from apo_bench.types import Message, Prompt

KEY = "planted-key-77aa01"
SYSTEM = "Answer as well as you can."
PRICED = {"usd_per_million_prompt_tokens": 1000.0, "usd_per_million_completion_tokens": 2000.0}
CONVERSATIONS = 60  # an axis; a quarter is in the rm split


def conversation(i: int, axis: str) -> str:
    return f"\n\nHuman: Thing {i}?\n\nAssistant: Yes.\n\nHuman: For {axis}, is it worth {i} or worth {i * 7 % CONVERSATIONS}?\n\nAssistant:"


def load(folder: Path, more: tuple[dict[str, str], ...] = (), **options: Any) -> Task:
    """hh on 60 conversations an axis that the server knows an answer to, and more."""
    rows = [(conversation(i, axis), axis) for i in range(CONVERSATIONS) for axis in ("helpful", "harmless")]
    sides = {"chosen": " Yes.", "rejected": " No."}
    written = [{"prompt": prompt, "subset": f"{axis}-base", **sides} for prompt, axis in rows]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*written, *more)))
    return load_task("hh", {"data_files": ["pairs.jsonl"], **options}, base=folder)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return load(tmp_path)


def writer(server: Served, **given: Any) -> GoldenWriter:
    """A writer that hardly waits between attempts."""
    return GoldenWriter("model", server.base_url, **{"api_key_env": None, "system_prompt": SYSTEM, "max_wait_s": 0.001, **given})


def expected(prompt: Prompt) -> str:
    return right_answer(prompt.messages[-1].content)


def key_of(prompt: Prompt, system: str | None = SYSTEM) -> str:
    """What the server is to see: the turns as they are, after the system message."""
    turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
    return request_key(([] if system is None else [{"role": "system", "content": system}]) + turns)


def ids(out: Path) -> list[str]:
    return [json.loads(line)["id"] for line in out.read_text().splitlines()]


def about(out: Path) -> dict[str, Any]:
    return json.loads(out.with_suffix(".about.json").read_text())


# What is written


def test_the_task_reads_what_was_written(tmp_path: Path, task: Task) -> None:
    """Every rm prompt has the server's answer; each was asked once, as it is, with the system prompt. Tokens: the server counts a quarter
    of the last turn's characters, and 3 for an answer."""
    out, prompts = tmp_path / "golden.jsonl", task.prompts["rm"]
    progress: list[tuple[int, int]] = []
    with serving(Plan(completion_tokens=3)) as server:
        written = write_golden(task, out, writer(server, **PRICED), progress=lambda done, of: progress.append((done, of)))
        assert Counter(request["key"] for request in server.requests()) == Counter(map(key_of, prompts))
    read = load(tmp_path, golden="golden.jsonl")
    assert read.golden == {prompt.id: expected(prompt) for prompt in prompts}
    assert read.counts["rm prompts without a golden response"] == 0
    assert ids(out) == sorted(prompt.id for prompt in prompts)

    tokens = sum(len(prompt.messages[-1].content) // 4 for prompt in prompts)
    cost = (tokens * 1000 + len(prompts) * 3 * 2000) / 1e6
    assert written.cost_usd == pytest.approx(cost)
    assert written == Written(out, len(prompts), {}, {}, written.cost_usd, tokens, 3 * len(prompts), 0)
    assert progress == [(done, len(prompts)) for done in range(1, len(prompts) + 1)]
    provenance = about(out)
    assert provenance["writer"]["model"] == "model"
    assert provenance["writer"]["server"] == server.base_url
    assert provenance["writer"]["system_prompt"] == SYSTEM
    assert provenance["writer"]["sampling"] == {"max_tokens": 512, "temperature": 0.0, "seed": 0}
    assert (provenance["n"], provenance["missing"], provenance["prompt_tokens"], provenance["completion_tokens"]) == (
        len(prompts),
        {},
        tokens,
        3 * len(prompts),
    )
    assert provenance["cost_usd"] == provenance["journal_usd"] == pytest.approx(cost)
    assert provenance["task"] == {"name": "hh", "provenance": task.provenance, "fingerprint": task.fingerprint}


def test_a_conversation_on_both_axes_is_asked_once_and_a_turn_may_look_like_a_transcript(tmp_path: Path) -> None:
    """Two turns of one speaker are joined, so that the second's "Human:" stands where a transcript would begin another turn."""
    text = "\n\nHuman: Thing {}?\n\nHuman: Human: is it worth 2 or worth 1?\n\nAssistant:"
    more = [
        {"prompt": text.format(i), "chosen": "Yes.", "rejected": "No.", "subset": axis}
        for i in range(9)
        for axis in ("helpful", "harmless")
    ]
    task = load(tmp_path, (*more,))
    twice = [prompt for prompt in task.prompts["rm"] if "\n\nHuman: is" in prompt.messages[-1].content]
    assert len(twice) >= 2
    with serving() as server:
        written = write_golden(task, tmp_path / "golden.jsonl", writer(server))
        assert len(server.requests()) == written.n == len(task.prompts["rm"]) - len(twice) // 2
    golden = load(tmp_path, (*more,), golden="golden.jsonl").golden
    assert golden == {prompt.id: expected(prompt) for prompt in task.prompts["rm"]}


@pytest.mark.parametrize("system", [None, "", "Be brief."])
def test_the_system_message_is_sent_where_there_is_one(system: str | None, tmp_path: Path, task: Task) -> None:
    with serving() as server:
        write_golden(task, tmp_path / "golden.jsonl", writer(server, system_prompt=system), n=2)
        request_keys = {request["key"] for request in server.requests()}
    assert len(request_keys) == 2
    assert request_keys <= {key_of(prompt, system) for prompt in task.prompts["rm"]}


def test_n_are_of_all_axes_and_more_are_added_to_them(tmp_path: Path, task: Task) -> None:
    """Six of two axes: three of each. Ten more hold the six, and only four are asked for; six again are in the journal."""
    axes = {prompt.id: prompt.axis for prompt in task.prompts["rm"]}
    out = tmp_path / "golden.jsonl"
    with serving() as server:
        assert write_golden(task, out, writer(server), n=6).n == 6
        six = out.read_bytes(), ids(out)
        assert Counter(axes[id_] for id_ in six[1]) == {"helpful": 3, "harmless": 3}
        assert write_golden(task, out, writer(server), n=10).n == 10
        assert set(six[1]) < set(ids(out))
        assert len(server.requests()) == 10
        write_golden(task, out, writer(server), n=6)
        assert (out.read_bytes(), ids(out)) == six
        assert len(server.requests()) == 10
    assert len(load(tmp_path, golden="golden.jsonl").golden) == 6


TURN = st.text(st.characters(codec="utf-8"))


def as_read(text: str) -> str:
    """Line ends as \\n, stripped."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(TURN, TURN, TURN, st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)),
        max_size=4,
        unique_by=lambda row: tuple(map(as_read, row[:3])),
    )
)
def test_any_text_comes_back_from_the_file(tmp_path: Path, drawn: list[tuple[str, str, str, str]]) -> None:
    """Line separators, quotes, markers of transcripts: a task reads the turns it is to look up, as it reads its prompts."""
    golden = [
        (Prompt(str(i), (Message("user", a), Message("assistant", b), Message("user", c)), "helpful", "c"), text)
        for i, (a, b, c, text) in enumerate(drawn)
    ]
    path = tmp_path / "golden.jsonl"
    path.write_text(golden_lines(golden), encoding="utf-8", newline="")
    options = options_of({"data_files": "none.jsonl", "golden": {"file": str(path)}})
    assert golden_responses(options, None) == {
        (("user", as_read(a)), ("assistant", as_read(b)), ("user", as_read(c))): as_read(text) for a, b, c, text in drawn
    }


# What is missing


def test_what_is_no_answer_is_left_out_counted_and_final(tmp_path: Path, task: Task) -> None:
    out = tmp_path / "golden.jsonl"
    with serving(Plan(script=["refuse", "", "filter", "empty", "length"])) as server:
        written = write_golden(task, out, writer(server, concurrency=1), n=12)
        assert (written.n, written.left_out, written.unanswered) == (8, {REFUSED: 2, EMPTY: 1, CUT_OFF: 1}, {})
        assert written.completion_tokens == 12  # they are paid for all the same
        before = out.read_bytes(), out.with_suffix(".about.json").read_bytes()
        assert write_golden(task, out, writer(server), n=12) == written
        assert len(server.requests()) == 12
    assert (out.read_bytes(), out.with_suffix(".about.json").read_bytes()) == before
    missing = about(out)["missing"]
    assert Counter(missing.values()) == written.left_out
    assert not missing.keys() & set(ids(out))
    assert load(tmp_path, golden="golden.jsonl").golden.keys() == set(ids(out))


def test_passing_faults_are_nobody_s_business_and_lasting_ones_are_asked_again(tmp_path: Path, task: Task) -> None:
    """With two attempts some calls fail for good. What is written is right, the rest is counted; the next runs ask for that alone, and in
    the end every prompt was paid for once."""
    out, prompts = tmp_path / "golden.jsonl", {prompt.id: prompt for prompt in task.prompts["rm"]}
    faults = {"429": 0.2, "500": 0.2, "503": 0.1, "drop": 0.2}
    with serving(Plan(faults=faults, seed=3)) as server:
        written = write_golden(task, out, writer(server, max_attempts=2))
        assert 0 < sum(written.unanswered.values()) == len(prompts) - written.n
        assert about(out)["missing"].keys() == prompts.keys() - set(ids(out))
        for _ in range(20):
            done, n_requests = set(ids(out)), len(server.requests())
            written = write_golden(task, out, writer(server, max_attempts=2))
            assert {request["key"] for request in server.requests()[n_requests:]} == {key_of(prompts[id_]) for id_ in prompts.keys() - done}
            if not written.unanswered:
                break
        assert written.n == len(prompts)
        assert server.ends("billed") == Counter(map(key_of, prompts.values()))
    assert load(tmp_path, golden="golden.jsonl").golden == {id_: expected(prompt) for id_, prompt in prompts.items()}


def test_a_server_that_is_gone_takes_nothing_away(tmp_path: Path, task: Task) -> None:
    out = tmp_path / "golden.jsonl"
    with serving() as server:
        write_golden(task, out, writer(server), n=4)
    before = out.read_bytes()
    written = write_golden(task, out, writer(server), n=10)
    assert (written.n, written.unanswered) == (4, {f"cannot connect to {server.base_url}: Connection refused": 6})
    assert out.read_bytes() == before


def test_a_server_without_usage_leaves_tokens_uncounted(tmp_path: Path, task: Task) -> None:
    with serving(Plan(usage=False)) as server:
        written = write_golden(task, tmp_path / "golden.jsonl", writer(server), n=3)
    assert (written.n, written.n_uncounted, written.prompt_tokens, written.completion_tokens) == (3, 3, 0, 0)


# Cost


def test_the_cost_limit_holds_over_runs(tmp_path: Path, task: Task) -> None:
    """A call costs about 10 x 0.001 + 1 x 0.002 = 0.012 USD, and at worst, with a token for each of about 80 bytes, 64 + 4 x 16 for the
    chat format and 16 completion tokens, 0.24: of 0.3 USD the first few go, of both axes. Another run finds no room for one more."""
    out = tmp_path / "golden.jsonl"
    limited = {"max_usd": 0.3, "max_tokens": 16, "concurrency": 1, **PRICED}
    with serving() as server:
        written = write_golden(task, out, writer(server, **limited))
        n_asked = len(server.requests())
        assert 0 < written.n == n_asked < len(task.prompts["rm"])
        assert written.unanswered == {OVER_COST: len(task.prompts["rm"]) - written.n}
        assert 0 < written.cost_usd <= 0.3
        assert {prompt.axis for prompt in task.prompts["rm"] if prompt.id in ids(out)} == {"helpful", "harmless"}
        again = write_golden(task, out, writer(server, **limited))
        assert (again, len(server.requests())) == (written, n_asked)
        other = write_golden(task, out, writer(server, **limited, temperature=0.5))  # the journal's earlier spending counts
        assert (other.n, other.cost_usd, len(server.requests())) == (0, 0.0, n_asked)
        assert about(out)["journal_usd"] == pytest.approx(written.cost_usd)


# Crashes

CHILD = """
import sys
from pathlib import Path
from apo_bench.clients.golden import GoldenWriter, write_golden
from test_golden import SYSTEM, load
folder = Path(sys.argv[2])
writer = GoldenWriter("model", sys.argv[1], None, system_prompt=SYSTEM, concurrency=2)
write_golden(load(folder), folder / "golden.jsonl", writer)
"""


@pytest.mark.slow
def test_after_a_kill_only_what_is_missing_is_asked(tmp_path: Path, task: Task) -> None:
    """The first eight calls are answered, the next two hang until the kill. Meanwhile nobody else may write the file."""
    out, prompts = tmp_path / "golden.jsonl", task.prompts["rm"]
    command, environment = [sys.executable, "-c", CHILD], {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with serving(Plan(script=[*[""] * 8, "hang", "hang"])) as server:
        with subprocess.Popen([*command, server.base_url, str(tmp_path)], env=environment) as child:
            while len(Journal(out.with_suffix(".journal")).records) < 1 + 8 or len(server.requests()) < 10:
                assert child.poll() is None
                time.sleep(0.02)
            with pytest.raises(InputError, match=r"golden\.journal: another process"):
                write_golden(task, out, writer(server))
            child.send_signal(signal.SIGKILL)
        assert not out.exists()
        written = write_golden(task, out, writer(server))
        assert written.n == len(prompts)
        assert len(server.requests()) == len(prompts) + 2
        assert server.ends("billed") == Counter(map(key_of, prompts))
    assert load(tmp_path, golden="golden.jsonl").golden == {prompt.id: expected(prompt) for prompt in prompts}


def test_a_crash_before_the_file_is_there_or_between_file_and_provenance_is_made_up_for(tmp_path: Path, task: Task) -> None:
    out = tmp_path / "golden.jsonl"
    with serving() as server:
        written = write_golden(task, out, writer(server), n=4)
        four = out.read_bytes()
        write_golden(task, out, writer(server), n=6)
        for gone in (out, out.with_suffix(".about.json")):
            gone.unlink()
            assert write_golden(task, out, writer(server), n=4) == written
            assert about(out)["n"] == 4
        out.write_bytes(four)  # as if the crash had come before the newer one took its place
        assert write_golden(task, out, writer(server), n=6).n == 6
        assert len(server.requests()) == 6


# The key


def test_the_key_is_told_to_the_server_and_to_nobody_else(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """The server repeats it in errors and in an answer."""
    monkeypatch.setenv("PLANTED", KEY)
    caplog.set_level(logging.DEBUG)
    shown = []
    for script in (["echo", "500", "drop", "400"], ["401"]):
        with serving(Plan(script=script)) as server:
            keyed_writer = writer(server, api_key_env="PLANTED", concurrency=1)
            shown += [repr(keyed_writer), repr(write_golden(task, tmp_path / f"{script[-1]}.jsonl", keyed_writer, n=5))]
            assert {request["authorization"] for request in server.requests()} == {f"Bearer {KEY}"}
    assert "You are Bearer ***." in (tmp_path / "400.jsonl").read_text()
    assert "HTTP 401: fault 401 for Bearer ***" in shown[3]
    captured = capfd.readouterr()
    assert KEY not in caplog.text + captured.out + captured.err + "".join(shown)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 7
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


# Whose answers


def test_another_writer_is_asked_anew_and_the_first_one_s_answers_are_kept(tmp_path: Path, task: Task) -> None:
    out = tmp_path / "golden.jsonl"
    with serving() as server:
        write_golden(task, out, writer(server), n=3)
        first = about(out)
        for changed in ({"temperature": 0.7}, {"system_prompt": None}, {"served_as": "elsewhere"}, {"extra": {"top_p": 0.5}}):
            n_requests = len(server.requests())
            write_golden(task, out, writer(server, **changed), n=3)
            assert len(server.requests()) == n_requests + 3
        n_requests = len(server.requests())
        write_golden(task, out, writer(server, concurrency=3, timeout_s=9.0), n=3)  # how hard it is asked changes no answer
        assert len(server.requests()) == n_requests
    assert about(out) == first


# Bad input


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"base_url": "ftp://host"}, "GoldenWriter: base_url: must be http"),
        ({"model": ""}, "GoldenWriter: model: a name is wanted"),
        ({"max_tokens": 0}, "GoldenWriter: max_tokens: must be at least 1, got 0"),
        ({"max_usd": 1.0}, "GoldenWriter: max_usd: a cost limit needs the prices"),
        ({"api_key_env": KEY}, "GoldenWriter: api_key_env: the name"),
        ({"extra": {"messages": []}}, "GoldenWriter: extra: not a place for messages"),
        ({"max_tokens": "many"}, r"writer\.yaml\.max_tokens: a whole number is needed"),
        ({"max_token": 5}, r"writer\.yaml: unknown parameter 'max_token' of GoldenWriter; it has: model, base_url"),
        ({"max_tokens_key": "tokens"}, r"writer\.yaml\.max_tokens_key"),
    ],
)
def test_a_wrong_setting_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        golden_writer({"model": "m", "base_url": "http://host/v1", "api_key_env": None, **given}, "writer.yaml")
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_settings_make_a_writer() -> None:
    built = golden_writer({"model": "m", "base_url": "http://host/v1/", "api_key_env": None, "system_prompt": "Hi."}, "writer.yaml")
    assert built == GoldenWriter("m", "http://host/v1/", None, system_prompt="Hi.")
    with pytest.raises(InputError, match=r"writer\.yaml: GoldenWriter needs the parameter 'base_url'"):
        golden_writer({"model": "m"}, "writer.yaml")


NOWHERE = GoldenWriter("m", "http://127.0.0.1:9/v1", None)


def test_bad_input_writes_nothing(tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    before, out = set(tmp_path.rglob("*")), tmp_path / "golden.jsonl"
    for message, call in {
        "n: must be at least 1, got 0": lambda: write_golden(task, out, NOWHERE, n=0),
        "task hh: splits.rm: no prompts": lambda: write_golden(replace(task, prompts={**task.prompts, "rm": ()}), out, NOWHERE),
        r"golden\.json: the name of a file that ends in \.jsonl": lambda: write_golden(task, tmp_path / "golden.json", NOWHERE),
        "the environment variable MY_KEY is not set": lambda: write_golden(task, out, replace(NOWHERE, api_key_env="MY_KEY")),
        r"pairs\.jsonl: is there already": lambda: write_golden(task, tmp_path / "pairs.jsonl", NOWHERE),
        r"pairs\.jsonl: cannot be made a folder": lambda: write_golden(task, tmp_path / "pairs.jsonl" / "golden.jsonl", NOWHERE),
    }.items():
        with pytest.raises(InputError, match=message):
            call()
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["golden.jsonl", "golden.about.json", "golden.journal"])
def test_what_is_not_ours_is_not_touched(name: str, tmp_path: Path, task: Task) -> None:
    """Another's file, a folder of that name, and our own file changed by hand."""
    path, out = tmp_path / name, tmp_path / "golden.jsonl"
    path.write_text("mine\n")
    with pytest.raises(InputError, match=f"{name}: is there already"):
        write_golden(task, out, NOWHERE)
    assert path.read_text() == "mine\n"
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=name):
        write_golden(task, out, NOWHERE)
    path.rmdir()
    if path.suffix != ".journal":
        with serving() as server:
            write_golden(task, out, writer(server), n=2)
            path.write_text(path.read_text() + "\n")
            changed = path.read_bytes()
            with pytest.raises(InputError, match="not as apo-bench golden wrote it"):
                write_golden(task, out, writer(server), n=2)
            assert path.read_bytes() == changed
            assert len(server.requests()) == 2

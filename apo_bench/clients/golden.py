"""Golden responses from any chat model: a task's rm prompts answered, as a file that the task's `golden` option reads.

Beside `golden.jsonl` stand `golden.about.json`, which says where its responses come from and which are missing, and `golden.journal`, which
holds every answer that was paid for.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from apo_bench import __version__
from apo_bench.clients.chat import ChatClient
from apo_bench.clients.endpoint import ChatSettings, require
from apo_bench.clients.journal import Journal, add_lost, spent_usd
from apo_bench.clients.replies import Reply, with_words
from apo_bench.config.plugins import Kind, resolve
from apo_bench.data.task import Task
from apo_bench.errors import InputError
from apo_bench.hashing import digest
from apo_bench.store import write_text
from apo_bench.types import Message, Prompt, identity, prompt_id

EMPTY = "empty"
WRITER = Kind("golden writer", {"messages": "messages(prompt)"})


@dataclass(frozen=True)
class GoldenWriter(ChatSettings):
    """The model that answers, and how it is asked.

    `system_prompt` null: no system message, which some servers replace by a default of their own; "" sends an empty one. `max_usd` counts
    all that the file's journal was charged. The other fields are those of ChatSettings. Raises InputError that names the field.
    """

    system_prompt: str | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"kind": "golden", **super().identity, "system_prompt": self.system_prompt}

    def messages(self, prompt: Prompt) -> list[dict[str, str]]:
        """The conversation as it is sent."""
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        return system + [asdict(message) for message in prompt.messages]


@dataclass(frozen=True)
class Written:
    """Counts of conversations: `n` have a golden response in `path`; the others are counted by reason.

    `left_out` were answered, but refused, cut off or empty, which is final; `unanswered` are asked again by the next call. `cost_usd` and
    tokens are those of all answers, left out or not, in this call or an earlier one; `n_uncounted` came without the server's count.
    """

    path: Path
    n: int
    left_out: Mapping[str, int]
    unanswered: Mapping[str, int]
    cost_usd: float
    prompt_tokens: int
    completion_tokens: int
    n_uncounted: int


def golden_writer(settings: Mapping[str, Any], where: str) -> GoldenWriter:
    """The writer with these settings, as YAML gives them. Raises InputError, one line that starts with `where` or names the field."""
    return resolve(f"{__name__}@{GoldenWriter.__name__}", settings, base=None, arm=where, kind=WRITER)


def write_golden(
    task: Task, out: Path, writer: GoldenWriter, *, n: int | None = None, progress: Callable[[int, int], None] = lambda done, of: None
) -> Written:
    """Have the task's rm prompts answered, n of them or all, and write the golden responses to `out`.

    The axes take turns, each in hash order, so that a larger n adds to a smaller one's. A conversation that is on several axes is asked
    once. Every reply is in the journal before the next is waited for, and what the journal knows is not asked again. `out` is JSON lines,
    sorted by "id", with "messages" as [role, text] turns and "response", and is replaced as a whole; without any response nothing is
    written. A prompt that the server rejected is left out for good once the writer has answered any other.

    Raises InputError for n below 1, a task without rm prompts, an `out` that does not end in .jsonl or that this function did not write,
    and what ChatClient refuses; nothing is written then.
    """
    prompts = _chosen_prompts(task, n)
    client, journal = ChatClient(writer.endpoint), _journal(out)
    with journal.open():
        unanswered = _ask(client, writer, prompts, journal, progress)
        keys = {prompt.id: _key(writer, prompt) for prompt in prompts}
        answers = {id_: journal.records[key] for id_, key in keys.items() if key in journal.records}
        left_out = {id_: why for id_, answer in answers.items() if (why := _not_golden(answer))}
        golden = [(prompt, answers[prompt.id]["text"].strip()) for prompt in prompts if prompt.id in answers and prompt.id not in left_out]
        counted = [answer for answer in answers.values() if answer["prompt_tokens"] is not None]
        written = Written(
            path=out,
            n=len(golden),
            left_out=dict(Counter(left_out.values())),
            unanswered=dict(Counter(unanswered.values())),
            cost_usd=math.fsum(answer["cost_usd"] for answer in answers.values()),
            prompt_tokens=sum(answer["prompt_tokens"] for answer in counted),
            completion_tokens=sum(answer["completion_tokens"] for answer in counted),
            n_uncounted=len(answers) - len(counted),
        )
        about = {
            **{name: value for name, value in asdict(written).items() if name != "path"},
            "written_by": f"apo-bench {__version__}",
            "task": {"name": task.name, "provenance": task.provenance, "fingerprint": task.fingerprint},
            "writer": dict(writer.identity),
            "missing": left_out | unanswered,
            "journal_usd": spent_usd(journal),
            "journal_lines_damaged": journal.n_damaged,
        }
        if golden:
            _write(out, golden_lines(golden), journal)
            _write(out.with_suffix(".about.json"), json.dumps(about, indent=1, sort_keys=True, ensure_ascii=False) + "\n", journal)
    return written


def golden_lines(golden: Iterable[tuple[Prompt, str]]) -> str:
    """JSON lines of prompts and their golden responses, sorted by the prompts' ids."""
    rows = (
        {"id": prompt.id, "messages": [[message.role, message.content] for message in prompt.messages], "response": text}
        for prompt, text in sorted(golden, key=lambda row: row[0].id)
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _chosen_prompts(task: Task, n: int | None) -> Sequence[Prompt]:
    """One prompt for each conversation: of those that are on several axes, the one with the first id. Axes take turns, in hash order."""
    require(n is None or n >= 1, "n", "must be at least 1", n)
    if not task.prompts["rm"]:
        raise InputError(f"task {task.name}: splits.rm: no prompts to write golden responses to")
    distinct: dict[tuple[Message, ...], Prompt] = {}
    for prompt in sorted(task.prompts["rm"], key=lambda prompt: prompt.id):
        distinct.setdefault(prompt.messages, prompt)
    by_axis: dict[str, list[Prompt]] = {}
    for prompt in sorted(distinct.values(), key=lambda prompt: identity("golden", prompt.id)):
        by_axis.setdefault(prompt.axis, []).append(prompt)
    return [prompt for turn in zip_longest(*by_axis.values()) for prompt in turn if prompt is not None][:n]


def _ask(
    client: ChatClient, writer: GoldenWriter, prompts: Sequence[Prompt], journal: Journal, progress: Callable[[int, int], None]
) -> dict[str, str]:
    """Ask for what the journal does not have; why nobody answered, by prompt id."""
    who = digest(dict(writer.identity))
    if who not in journal.records:
        journal.add(who, {"identity": dict(writer.identity)})
    missing = [prompt for prompt in prompts if _key(writer, prompt) not in journal.records]
    unanswered: dict[str, str] = {}
    rejected: dict[str, Reply] = {}
    has_answered = any(record.get("answered", True) for key, record in journal.records.items() if key.startswith(f"{who}."))
    calls = ((prompt, writer.messages(prompt)) for prompt in missing)
    with closing(client.replies(calls, writer.sampling, spent_usd(journal))) as replies:
        for done, (prompt, reply) in enumerate(replies, 1):
            if reply.answered:
                has_answered = True
                journal.add(_key(writer, prompt), _record(reply))
            else:
                add_lost(journal, _key(writer, prompt), reply.lost_usd)
                if reply.rejected:
                    rejected[prompt.id] = replace(reply, lost_usd=0.0)  # which is in the journal
                else:
                    unanswered[prompt.id] = reply.failure
            progress(done, len(missing))
    for prompt in (prompt for prompt in missing if prompt.id in rejected):
        reply = rejected[prompt.id]
        if has_answered:
            journal.add(_key(writer, prompt), _record(reply))
        else:
            unanswered[prompt.id] = with_words(reply.failure, reply.text)
    return unanswered


def _key(writer: GoldenWriter, prompt: Prompt) -> str:
    """Of an answer in the journal: who was asked, and what, whatever the axis."""
    return f"{digest(dict(writer.identity))}.{prompt_id('', prompt.messages)}"


def _record(reply: Reply) -> Mapping[str, Any]:
    kept = {name: value for name, value in asdict(reply).items() if name not in ("rejected", "logprobs")}
    return {name: value for name, value in kept.items() if value == value}  # JSON has no NaN


def _not_golden(answer: Mapping[str, Any]) -> str:
    return answer["failure"] or ("" if answer["text"].strip() else EMPTY)


def _journal(out: Path) -> Journal:
    """The journal of an output file. Raises InputError unless what is there is ours and has not been changed since."""
    if out.suffix != ".jsonl":
        raise InputError(f"{out}: the name of a file that ends in .jsonl is wanted")
    path = out.with_suffix(".journal")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no file")
    journal = Journal(path)
    if journal.n_damaged and not journal.records:
        raise InputError(f"{path}: is there already and is no journal of golden responses; name another output file")
    for path in (out, out.with_suffix(".about.json")):
        if path.exists() and not (path.is_file() and _mark(path.read_bytes()) in journal.records):
            raise InputError(f"{path}: is there already, and not as apo-bench golden wrote it; name another output file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out.parent}: cannot be made a folder: {error.strerror}") from None
    return journal


def _write(path: Path, text: str, journal: Journal) -> None:
    """Write a file as a whole. The journal knows it by its content, and before it is there: a crash in between leaves nothing unknown."""
    mark = _mark(text.encode())
    if mark not in journal.records:
        journal.add(mark, {"wrote": path.name})
    write_text(path, text)


def _mark(content: bytes) -> str:
    return f"wrote.{hashlib.sha256(content).hexdigest()}"

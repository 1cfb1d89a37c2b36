"""Chat judges and golden writers against the server of `chat_server`, for tests."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chat_server import Plan, Served, right_answer, worth_questions

from apo_bench.clients.chat import ChatClient
from apo_bench.clients.journal import Journal
from apo_bench.data.task import Task, load_task
from apo_bench.judging.ask_judges import ask
from apo_bench.judging.chat_judge import ChatJudge, OpenChatJudge
from apo_bench.judging.judge_protocol import Question, Verdict

RIGHT = {"A": "first", "B": "second", "tie": "tie"}
USAGE = {"prompt_tokens": 100, "completion_tokens": 1}


async def at_once(seconds: float) -> None:
    await asyncio.sleep(0)


def message(content: Any, finish: str = "stop", usage: Any = USAGE, **more: Any) -> tuple[int, Any]:
    """A whole reply with this content."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **more}, "finish_reason": finish}
    return 200, {"object": "chat.completion", "choices": [choice], "usage": usage}


def always(reply: tuple[int, Any]) -> Plan:
    """A server that sends every request the same reply."""
    return Plan(faults={"own": 1.0}, replies={"own": reply})


def about_some(reply: tuple[int, Any], *texts: str) -> Plan:
    """A server that sends this reply to questions that hold one of the texts, and answers the others."""
    return Plan(about=dict.fromkeys(texts, "own"), replies={"own": reply})


def chat_judge(server: Served, **settings: Any) -> OpenChatJudge:
    """A judge that does not wait between attempts."""
    spec = ChatJudge("model", server.base_url, **{"api_key_env": None, "template": "overall.v1", **settings})
    return OpenChatJudge(spec, ChatClient(spec.endpoint, sleep=at_once))


def verdicts_of(server: Served, journal: Path, questions: Sequence[Question] | int = 5, **settings: Any) -> list[Verdict]:
    """The verdicts on the questions, or on both orders of so many comparisons, in their order."""
    given = worth_questions(questions) if isinstance(questions, int) else questions
    with Journal(journal).open() as opened:
        verdicts = ask(chat_judge(server, **settings), given, opened)
    return [verdicts[question.id] for question in given]


def right_choices(comparisons: int = 5) -> list[str]:
    return [RIGHT[right_answer(question.first + question.second)] for question in worth_questions(comparisons)]


def golden_task(folder: Path, conversations: int = 30) -> Task:
    """hh on conversations that the server knows an answer to."""
    rows = [
        {
            "prompt": f"\n\nHuman: Thing {i}, {axis}: worth {i} or worth {i + 1}?\n\nAssistant:",
            "chosen": " Yes.",
            "rejected": " No.",
            "subset": axis,
        }
        for i in range(conversations)
        for axis in ("helpful", "harmless")
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_task("hh", {"data_files": ["pairs.jsonl"]}, base=folder)


def responses_in(path: Path) -> Mapping[str, str]:
    """Golden responses by the prompt's id."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {row["id"]: row["response"] for row in rows}

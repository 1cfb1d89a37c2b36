"""Speed of a judge behind HTTP. python benchmarks/judging_speed.py [--comparisons 1000] [--latency-ms 100] [--concurrency 64]

Judges comparisons in both orders against tests/chat_server.py, a server with a fixed latency in a process of its own on this machine.
Ideal is calls x latency / concurrency; "bare sockets" sends the same requests without a client library. Then the same questions again, all
answered from the journal. Targets: at least 95 % of ideal, and less than 2 s for the rerun. CPU is that of this process.
"""

import argparse
import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from chat_server import Plan, serving, worth_questions

from apo_bench.clients.journal import Journal
from apo_bench.judging.ask_judges import ask
from apo_bench.judging.chat_judge import ChatJudge
from apo_bench.judging.judge_protocol import JudgeContext, Verdict
from apo_bench.judging.prompt_templates import template_for

T = TypeVar("T")
FILLER = "A sentence such as one finds in an answer to a question. " * 8


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """The result, wall seconds and CPU seconds."""
    gc.collect()  # so that garbage of earlier work is not collected on this work's time
    start, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - start, time.process_time() - cpu


async def bare(port: int, bodies: list[bytes], concurrency: int) -> None:
    """Sends the bodies, `concurrency` at a time, and reads the answers."""
    left = iter(bodies)

    async def worker() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for body in left:
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
        writer.close()

    await asyncio.gather(*(worker() for _ in range(concurrency)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=1000)
    parser.add_argument("--latency-ms", type=float, default=100.0)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    questions = worth_questions(given.comparisons, FILLER)
    ideal_s = len(questions) * given.latency_ms / 1000 / given.concurrency

    with serving(Plan(latency_s=given.latency_ms / 1000)) as server, TemporaryDirectory() as folder:
        judge = ChatJudge("loopback", server.base_url, api_key_env=None, concurrency=given.concurrency).open(JudgeContext())
        messages = [template_for("by_axis", "helpful").messages(question) for question in questions]
        bodies = [json.dumps({"messages": message}).encode() for message in messages]
        port = int(server.base_url.rpartition(":")[2].partition("/")[0])
        for repeat in range(given.repeats):
            _, bare_s, _ = timed(lambda: asyncio.run(bare(port, bodies, given.concurrency)))
            path = Path(folder) / f"{repeat}.jsonl"
            with Journal(path).open() as journal:
                verdicts, wall_s, cpu_s = timed(lambda journal=journal: ask(judge, questions, journal))
            assert all(verdict.choice for verdict in verdicts.values()), "a verdict is missing"
            rate = (
                f"{ideal_s / wall_s:.1%} of ideal, {cpu_s / len(questions) * 1e3:.2f} ms of CPU a call; bare sockets {ideal_s / bare_s:.1%}"
            )
            print(f"{len(questions)} calls: {wall_s:.2f} s of {ideal_s:.2f} s, {rate}")

        def again() -> dict[str, Verdict]:
            with Journal(path).open() as journal:
                return ask(judge, questions, journal)

        known, wall_s, _ = timed(again)
        assert {id_: message.choice for id_, message in known.items()} == {id_: message.choice for id_, message in verdicts.items()}
        assert len(server.requests()) == 2 * len(questions) * given.repeats, "a known question was asked again"
        print(f"all of them known: {wall_s:.2f} s")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()

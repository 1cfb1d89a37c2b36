"""The folder of `apo-bench audit-judge`: a judge audited on several sources of labelled pairs. A rerun asks only what is missing."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from apo_bench.clients.journal import Journal
from apo_bench.clients.replies import counted_reasons
from apo_bench.config.schema import JudgeChoice
from apo_bench.data.task import load_task
from apo_bench.errors import InputError
from apo_bench.formatting import csv_text, plain
from apo_bench.hashing import code_hash, digest
from apo_bench.judging.attacks import ATTACKS
from apo_bench.judging.audit import audit
from apo_bench.judging.audit_report import markdown
from apo_bench.judging.human_preferences import Labelled, labelled_pairs, read_labelled
from apo_bench.judging.judge_protocol import JudgeContext
from apo_bench.judging.judge_result import IncompleteJudge
from apo_bench.judging.load_judges import open_judge
from apo_bench.package_data import find_beside
from apo_bench.store import write_text


def audit_judge(
    name: str, choice: JudgeChoice, data: Sequence[str], folder: Path, *, n: int | None = None, attacks: bool = True
) -> list[IncompleteJudge]:
    """Audit a judge on each of `data` and write `folder`/report/audit.md and audit.csv; returns the audits that are incomplete.

    A name in `data` is a file with people's labels, or a task, whose test pairs are used and whose ground truth a simulated judge may see.
    Raises InputError before the judge is asked anything.
    """
    sources = [_source(source, n) for source in data]
    judges = [open_judge(name, choice, context) for _, context in sources]
    lines, frames, incomplete = [f"# Audit of the judge {name}", ""], [], []
    with Journal(folder / "store" / f"{name}.jsonl").open() as journal:
        for (labelled, _), judge in zip(sources, judges, strict=True):
            audited = audit(judge, labelled, journal, attacks=ATTACKS if attacks else {})
            lines += [f"## {plain(labelled.name)}", "", *markdown(audited), ""]
            frames.append(audited.rows.assign(judge=name, data=labelled.name))
            if audited.unanswered:
                message = (
                    f"{labelled.name}: questions without an answer: {counted_reasons(audited.unanswered)}; the same command asks again"
                )
                incomplete.append(IncompleteJudge(name, message))
    table = pd.concat(frames, ignore_index=True)
    first = ["judge", "data"]
    table = table[[*first, *(column for column in table if column not in first)]]
    write_text(folder / "report" / "audit.csv", csv_text(table))
    write_text(folder / "report" / "audit.md", "\n".join(lines).rstrip() + "\n")
    return incomplete


def _source(name: str, n: int | None) -> tuple[Labelled, JudgeContext]:
    """A source's labelled pairs, and the context it gives a judge."""
    base = str(Path.cwd())
    if Path(name).is_file():
        return read_labelled(Path(name), n), JudgeContext(base)
    if find_beside(Path("tasks") / name, None) is None and find_beside(name, None) is None:
        raise InputError(f"--data {name}: neither a file nor a task")
    task = load_task(name, {}, base=None)
    truth = digest({"task": task.fingerprint, "code": code_hash(*task.source_files)})
    return labelled_pairs(task, n), JudgeContext(base, task.axes, task.ground_truth, truth)

"""`apo-bench audit-judge`: a judge against people's labels, in a folder of its own that a rerun goes on with."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from apo_bench.clients.journal import Journal
from apo_bench.config.schema import JudgeChoice
from apo_bench.data.task import load_task
from apo_bench.errors import InputError
from apo_bench.hashing import digest
from apo_bench.judging.attacks import ATTACKS
from apo_bench.judging.audit import audit, markdown
from apo_bench.judging.judge_result import IncompleteJudge
from apo_bench.judging.labels import Labelled, labelled_pairs, read_labelled
from apo_bench.judging.opening import open_judge
from apo_bench.judging.verdicts import JudgeContext
from apo_bench.provenance import code_hash
from apo_bench.shipped import find_beside
from apo_bench.store import write_text


def audit_judge(
    name: str, choice: JudgeChoice, data: Sequence[str], folder: Path, *, n: int | None = None, attacks: bool = True
) -> list[IncompleteJudge]:
    """Audit a judge on each of `data` and write `folder`/report/audit.md and audit.csv; returns what nobody answered.

    A name in `data` is a file with people's labels or a task, whose test pairs are taken and whose ground truth a simulated judge may see.
    Raises InputError, one line naming what is wrong, before the judge is asked anything.
    """
    sources = [_source(one, n) for one in data]
    judges = [open_judge(name, choice, at) for _, at in sources]
    lines, frames, unanswered = [f"# Audit of the judge {name}", ""], [], []
    with Journal(folder / "store" / f"{name}.jsonl").open() as journal:
        for (labelled, _), judge in zip(sources, judges, strict=True):
            found = audit(judge, labelled, journal, attacks=ATTACKS if attacks else {})
            lines += [f"## {labelled.name}", "", *markdown(found), ""]
            frames.append(found.rows.assign(judge=name, data=labelled.name))
            if found.unanswered:
                reasons = ", ".join(f"{times} {reason}" for reason, times in sorted(found.unanswered.items()))
                message = f"{labelled.name}: questions without an answer: {reasons}; the same command asks again"
                unanswered.append(IncompleteJudge(name, message))
    table = pd.concat(frames, ignore_index=True)
    first = ["judge", "data"]
    table = table[[*first, *(column for column in table if column not in first)]]
    write_text(folder / "report" / "audit.csv", table.to_csv(index=False, float_format="%.12g", lineterminator="\n"))
    write_text(folder / "report" / "audit.md", "\n".join(lines).rstrip() + "\n")
    return unanswered


def _source(name: str, n: int | None) -> tuple[Labelled, JudgeContext]:
    """Labelled pairs, and what a judge finds where they come from."""
    base = str(Path.cwd())
    if Path(name).is_file():
        return read_labelled(Path(name), n), JudgeContext(base)
    if find_beside(Path("tasks") / name, None) is None and find_beside(name, None) is None:
        raise InputError(f"--data {name}: neither a file nor a task")
    task = load_task(name, {}, base=None)
    truth = digest({"task": task.fingerprint, "code": code_hash(*task.source_files)})
    return labelled_pairs(task, n), JudgeContext(base, task.axes, task.ground_truth, truth)

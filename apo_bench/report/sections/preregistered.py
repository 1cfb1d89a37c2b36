"""Whether the run is the one that was preregistered: question, file and every deviation."""

from collections.abc import Iterator

from apo_bench.analysis.results import Run
from apo_bench.report.document import Block, Bullets, Section
from apo_bench.report.text import say

UNCOMMITTED = "git has no commit of it, so that it was written before the run is known to its author alone"


def sections(run: Run) -> Iterator[Section]:
    """One section where a preregistration lay beside the experiment, else none."""
    facts = run.manifest.get("preregistered")
    if not facts:
        return
    deviations, committed = facts["deviations"], facts["committed"]
    verdict = (
        "**As preregistered**" if not deviations else f"**Preregistered, with {len(deviations)} deviation{'s' * (len(deviations) > 1)}**"
    )
    first = f"first committed on {committed['day']}" if committed else UNCOMMITTED
    about = say(f"{verdict} on {facts['day']} in `{{file}}` ({first}).", file=facts["file"])
    blocks: list[Block] = [about, say("Question: {question}", question=facts["question"])]
    blocks += [Bullets([say("{deviation}", deviation=deviation) for deviation in deviations])] if deviations else []
    yield Section("Preregistration", blocks)

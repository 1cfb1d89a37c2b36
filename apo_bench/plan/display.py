"""A plan as tables and sentences of at most 100 columns."""

import math
from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table

from apo_bench.formatting import duration, one_line
from apo_bench.lab.ledger import UNITS
from apo_bench.plan.accounts import BENCH, Disk
from apo_bench.plan.device_memory import CONTEXT, DeviceMemory, usable
from apo_bench.plan.make_plan import Plan
from apo_bench.plan.probe import Timing

ARMS_A_TABLE = 5  # more columns do not fit


def tables(plan: Plan, timing: Timing | None = None) -> Iterator[Table | str]:
    """What each arm spends alone and in this run, sizes, what is matched, time, judges, what can be found, disk, and the notes."""
    alone, here = plan.used("used"), plan.used("marginal")
    for start in range(0, len(alone), ARMS_A_TABLE):
        arms = list(alone)[start : start + ARMS_A_TABLE]
        table = _table("unit", *arms, title="Alone / in this run, mean over seeds", right=True)
        for unit in UNITS:
            table.add_row(unit, *(_both(alone[arm][unit], here[arm][unit]) for arm in arms))
        table.add_row("disk", *(_bytes(plan.disk.get(arm, Disk()).all) for arm in arms))
        yield table
    table = _table("unit", "all arms alone", "in this run", "saved", title="What sharing saves, over all arms and seeds", right=True)
    for unit, (apart, together) in plan.saved.items():
        table.add_row(unit, _amount(apart), _amount(together), f"{100 * (1 - together / apart):.0f} %" if apart else "-")
    yield table
    if plan.fits:
        table = _table("arm", "sized by", "value", "to spend as", "ratio", "beside", title="Sized arms")
        for size in plan.fits.values():
            beside = ", ".join(f"{value:g}: {ratio:.3f}" for value, ratio in size.beside)
            table.add_row(size.arm, size.by, f"{size.value:g}", f"{size.to} ({size.unit})", f"{size.ratio:.3f}", beside)
        yield table
    if len(plan.matches):
        table = _table("pair", "matched", "not matched", "declared but not matched", title="Matched in the plan")
        for (a, b), rows in plan.matches[plan.matches["kind"] != ""].groupby(["arm_a", "arm_b"], sort=False):
            missed = rows.loc[rows["matched"] != "yes", "kind"].unique().tolist()
            wanted = set(rows.loc[rows["declared"] == "yes", "kind"])
            kept = [kind for kind in rows["kind"].unique() if kind not in missed]
            cells = (kept, missed, [kind for kind in missed if kind in wanted])
            table.add_row(f"{a} - {b}", *(", ".join(cell) or "-" for cell in cells))
        yield table
    if timing:
        table = _table("", "seconds of work a seed", "memory", title="Time and memory, as probed on this machine", right=True)
        for arm, seconds in timing.arm_s.items():
            table.add_row(arm, _amount(seconds), _bytes(timing.arm_bytes[arm]))
        together = f"with {timing.workers} worker{'s' if timing.workers > 1 else ''}"
        table.add_row(f"the run, {together}", duration(timing.run_s), _bytes(timing.run_bytes))
        yield table
    yield from _memory(plan.memory)
    if plan.judges:
        table = _table("judge", "questions", "audit", "worst cost", "its limit", title="Questions to judges, at most")
        for judge in plan.judges:
            questions, audit = f"{judge.questions:,}", f"{judge.audit_questions:,}"
            table.add_row(judge.name, questions, audit, _usd(judge.worst_usd), _usd(judge.max_usd))
        yield table
    table = _table("primary contrast", "axis", "seeds x clusters", "difference", title="Smallest difference that would be found")
    for contrast in plan.detectable:
        smallest = contrast.note if math.isnan(contrast.difference) else f"{contrast.difference:.3g}"
        table.add_row(f"{contrast.a} - {contrast.b}", contrast.axis, f"{contrast.n_seeds} x {contrast.n_clusters}", smallest)
    yield table
    yield from (f"would fail: {arm}, seed {seed}: {one_line(message)}" for arm, seed, message in plan.failures)
    disk = sum(plan.disk.values(), Disk())
    yield f"Disk: {_bytes(disk.all)}, of which {_bytes(disk.weights)} are weights; the rest is an estimate."
    if plan.removed:
        yield f"At the end {_bytes(disk.all - plan.removed)}: store.keep leaves models out."
    yield f"{BENCH}: gold models and evaluation, over all seeds; no arm pays for it."
    yield from plan.notes
    if timing:
        yield "Time is that of models: alone an arm's, as of one process; of the run, evaluation included, statistics and tables not."
        yield from timing.notes


def _memory(memory: DeviceMemory) -> Iterator[Table | str]:
    """Device memory by stage, whether it fits, and what would make it fit."""
    if not memory.stages:
        return
    heads = ("weights", "gradients", "optimizer", "activations", "cache", "other models", "in all")
    table = _table("stage", *heads, title="Device memory in GB, at the longest texts that the settings let through", right=True)
    for stage in memory.stages:
        parts = (stage.weights, stage.gradients, stage.optimizer, stage.activations, stage.cache, stage.resident, stage.total)
        table.add_row(stage.stage, *map(_gigabytes, parts))
    yield table
    peak = memory.peak
    yield f"The peak is {peak.stage}: {_gigabytes(peak.total)} GB, {_gigabytes(CONTEXT)} of them for CUDA itself."
    if memory.capacity is None:
        yield "Models of other stages that stay loaded (engine.memory_gb) are not counted: --device-memory 80GB tells what fits."
        return
    verdict = {True: "fits", False: "does NOT fit", None: "is not known to fit"}[memory.fits]
    yield f"The run {verdict} a device of {_gigabytes(memory.capacity)} GB, of which {_gigabytes(usable(memory.capacity))} can be filled."
    yield from (f"To make {stage} fit: {change}" for stage, change in memory.changes)
    for stage in {stage.stage for stage in memory.stages if stage.total > usable(memory.capacity)} - {stage for stage, _ in memory.changes}:
        yield f"Nothing that is tried makes {stage} fit."


def _gigabytes(value: float) -> str:
    return "not known" if math.isnan(value) else f"{value / 1e9:,.1f}"


def _table(*heads: str, title: str, right: bool = False) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0, title=title)
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if right and place else "left", overflow="fold")
    return table


def _both(alone: float, here: float) -> str:
    first, second = _amount(alone), _amount(here)
    return first if first == second else f"{first} / {second}"


def _amount(value: float) -> str:
    if math.isnan(value):
        return "not known"
    return f"{value:,.0f}" if value < 1e6 else f"{value:.2e}"


def _bytes(value: float) -> str:
    return "not known" if math.isnan(value) else f"{value / 1e6:,.1f} MB"


def _usd(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f} USD"

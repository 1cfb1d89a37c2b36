"""A plan as tables and sentences of at most 100 columns."""

import math
from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table

from apo_bench.budget import UNITS
from apo_bench.plan.projecting import BENCH, Plan

ARMS_A_TABLE = 5  # more columns do not fit


def tables(plan: Plan) -> Iterator[Table | str]:
    """What each arm spends alone and in this run, what is matched, disk, judges, what can be found, and the notes."""
    alone, here = plan.used("used"), plan.used("marginal")
    for start in range(0, len(alone), ARMS_A_TABLE):
        arms = list(alone)[start : start + ARMS_A_TABLE]
        table = _table("unit", *arms, title="Alone / in this run, mean over seeds", right=True)
        for unit in UNITS:
            table.add_row(unit, *(_both(alone[arm][unit], here[arm][unit]) for arm in arms))
        table.add_row("disk of weights", *(_bytes(plan.disk_bytes.get(arm, 0.0)) for arm in arms))
        yield table
    if len(plan.matches):
        table = _table("pair", "matched", "not matched", "declared but not matched", title="Matched in the plan")
        for (a, b), rows in plan.matches[plan.matches["kind"] != ""].groupby(["arm_a", "arm_b"], sort=False):
            missed = rows.loc[rows["matched"] == "no", "kind"].unique().tolist()
            wanted = set(rows.loc[rows["declared"] == "yes", "kind"])
            kept = [kind for kind in rows["kind"].unique() if kind not in missed]
            cells = (kept, missed, [kind for kind in missed if kind in wanted])
            table.add_row(f"{a} - {b}", *(", ".join(cell) or "-" for cell in cells))
        yield table
    if plan.judges:
        table = _table("judge", "questions", "audit", "worst cost", "its limit", title="Questions to judges, at most")
        for one in plan.judges:
            table.add_row(one.name, f"{one.questions:,}", f"{one.audit_questions:,}", _usd(one.worst_usd), _usd(one.max_usd))
        yield table
    table = _table("primary contrast", "axis", "seeds x clusters", "difference", title="Smallest difference that would be found")
    for one in plan.detectable:
        found = one.note if math.isnan(one.difference) else f"{one.difference:.3g}"
        table.add_row(f"{one.a} - {one.b}", one.axis, f"{one.n_seeds} x {one.n_clusters}", found)
    yield table
    yield from (f"would fail: {arm}, seed {seed}: {message}" for arm, seed, message in plan.failures)
    yield f"All weights: {_bytes(sum(plan.disk_bytes.values()))}. {BENCH}: gold models and evaluation, over all seeds; no arm pays for it."
    yield from plan.notes


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

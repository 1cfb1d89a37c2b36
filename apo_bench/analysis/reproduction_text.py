"""What the terminal shows of a reproduction: sentences and tables."""

import math
from typing import Any

from apo_bench.analysis.reproduction import EXACT, REPRODUCED, Reproduction
from apo_bench.analysis.results import POOLED
from apo_bench.formatting import Row, number, one_line, p_equals, probability, rows_of, signed


def reproduction_sentences(result: Reproduction) -> list[str]:
    """The answer, a sentence per primary contrast, what differs between the runs, and what was assumed."""
    primary = result.primary
    n_reproduced = int(primary["verdict"].isin([EXACT, REPRODUCED]).sum())
    lines = [f"{n_reproduced} of {len(primary)} primary contrasts of {result.first} reproduced in {result.second}."]
    lines += [_sentence(row) for row in rows_of(primary)]
    others = result.contrasts[result.contrasts["family"] != "primary"]["verdict"].str.partition(":")[0].value_counts(sort=False)
    lines += [f"Of the other contrasts: {', '.join(f'{n} {verdict}' for verdict, n in others.items())}."] if len(others) else []
    states = list(result.tables.values())
    if result.settings is None:
        lines.append("One folder is a report alone: settings and tables are not compared.")
    elif set(states) <= {"identical"}:
        lines.append(f"All {len(states)} tables are byte-identical (timings aside).")
    else:
        differing = ", ".join(f"{name} {state}" for name, state in result.tables.items() if state != "identical")
        lines.append(f"{states.count('identical')} of {len(states)} tables are byte-identical; {differing}.")
    if result.settings is not None:
        lines.append(f"Differing settings, code and versions: {', '.join(result.settings) or 'none'}.")
    return [one_line(line) for line in [*lines, *result.assumed]]


def _sentence(row: Row) -> str:
    where = f"{row.scorer}, {'all axes pooled' if row.axis == POOLED else row.axis}{'' if row.at == 'final' else f', {row.at}'}"
    start = f"{row.arm_a} against {row.arm_b} ({where}): {row.verdict}. {_interval(row, 'first')} first, {_interval(row, 'second')} second"
    if math.isnan(row.drift) or row.verdict == EXACT:
        return f"{start}."
    overlap = {"yes": "; the intervals overlap", "no": "; the intervals do not overlap", "": ""}[row.overlap]
    p = "" if math.isnan(row.p_drift) else f", {p_equals(row.p_drift)}"
    return f"{start}{overlap}; drift {_interval(row, 'drift')}{p} ({row.test})."


def _interval(row: Row, name: str) -> str:
    value, low, high = (getattr(row, f"{name}{end}") for end in ("", "_low", "_high"))
    return signed(value) + ("" if math.isnan(low) else f" ({signed(low)} to {signed(high)})")


def reproduction_tables(result: Reproduction, *, descriptive: bool = False) -> list[Any]:
    """Rich tables at most 100 columns wide: declared contrasts (or all), then what differs between the runs."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    headers = ("contrast", "axis", "scorer", "at", "first", "second", "drift (95 %)", "p", "verdict")
    table = Table(*headers, box=SIMPLE_HEAD, padding=0, title="Does the second run reproduce the first?")
    order = {"primary": 0, "secondary": 1, "descriptive": 2}
    for row in sorted(rows_of(result.contrasts), key=lambda row: order.get(row.family, 2)):
        if descriptive or row.family in ("primary", "secondary"):
            mark, exact = "*" if row.family == "primary" else "", row.verdict == EXACT
            cells = [f"{mark}{row.arm_a} - {row.arm_b}", row.axis, row.scorer, row.at, number(row.first), number(row.second)]
            cells += ["-", "-"] if exact else [_interval(row, "drift"), probability(row.p_drift) or "-"]
            table.add_row(*map(one_line, [*cells, row.verdict]))
    table.caption = "* primary: p adjusted together by Holm"
    if not result.settings:
        return [table]
    differing = Table("differs", "first", "second", box=SIMPLE_HEAD, padding=0)
    for key, values in result.settings.items():
        differing.add_row(*map(one_line, [key, *map(str, values)]))
    return [table, differing]

"""The declared comparisons seen otherwise: by other scorers, by axis and at equal distance from the initial policy; descriptive."""

import math

import pandas as pd

from apo_bench.analysis.contrasts import MATCHED_KL
from apo_bench.formatting import ALPHA, Row, rows_of, signed
from apo_bench.report.document import Bullets
from apo_bench.report.text import Text, join, say


def other_views(compared: pd.DataFrame) -> Bullets:
    """A line for each primary comparison that has other rows: its differences by them, with intervals."""
    return Bullets([line for row in _primary(compared) if (line := _line(row, compared))])


def opposed(compared: pd.DataFrame) -> list[Text]:
    """A line for each scorer whose difference has the other sign than a primary comparison that shows one, surely or not."""
    return [
        say(
            f"**Another scorer {'contradicts it' if _is_apart_from_zero(other) else 'does not show it'}:** by {{scorer}}, `{{a}}` against "
            f"`{{b}}` {_size(other)}, descriptive.",
            scorer=other.scorer, a=row.arm_a, b=row.arm_b,
        )
        for row in _primary(compared)
        if row.p_adjusted < ALPHA
        for other in _by_scorers(row, compared)
        if other.difference * row.difference < 0
    ]  # fmt: skip


def _is_apart_from_zero(row: Row) -> bool:
    return row.ci_low * row.ci_high > 0


def _primary(compared: pd.DataFrame) -> list[Row]:
    return rows_of(compared[compared["family"] == "primary"])


def _line(row: Row, compared: pd.DataFrame) -> Text:
    same = compared[(compared["arm_a"] == row.arm_a) & (compared["arm_b"] == row.arm_b) & compared["difference"].notna()]
    by_axis = [other for other in rows_of(same[(same["scorer"] == row.scorer) & (same["at"] == row.at)]) if other.axis != row.axis]
    equal = rows_of(same[(same["scorer"] == row.scorer) & (same["at"] == MATCHED_KL) & (same["axis"] == row.axis)])
    parts = [say(f"by {{scorer}} {_size(other)}", scorer=other.scorer) for other in _by_scorers(row, compared)]
    parts += [say(f"{{axis}} alone {_size(other)}", axis=other.axis) for other in by_axis]
    parts += [say(f"at equal KL {_size(other)}") for other in equal]
    if not parts:
        return ()
    return say("`{a}` against `{b}`, seen otherwise (descriptive): {parts}.", a=row.arm_a, b=row.arm_b, parts=join(parts, "; "))


def _by_scorers(row: Row, compared: pd.DataFrame) -> list[Row]:
    """Reward models of the arms themselves are left out: each has a scale of its own."""
    same = compared[(compared["arm_a"] == row.arm_a) & (compared["arm_b"] == row.arm_b) & (compared["at"] == row.at)]
    same = same[(same["axis"] == row.axis) & ~same["scorer"].isin([row.scorer, "proxy"]) & same["difference"].notna()]
    return rows_of(same)


def _size(row: Row) -> str:
    interval = "" if math.isnan(row.ci_low) else f" ({signed(row.ci_low)} to {signed(row.ci_high)})"
    return f"{signed(row.difference)}{interval}"

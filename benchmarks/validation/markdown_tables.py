"""Markdown of the validation page: tables of rates in %, marks for missed bounds, wrapped prose."""

import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd

from validation.simulated_worlds import SEED_SHARES

WIDTH = 120
SHARE_NAMES: dict[Any, str] = {share: f"{name} seed SD" for name, share in SEED_SHARES.items()}


def filled(text: str) -> str:
    """Prose wrapped at WIDTH columns; headings, tables, lists and code unchanged."""
    kept, whole = ("#", "|", "-", "    "), textwrap.TextWrapper(WIDTH, break_on_hyphens=False, break_long_words=False)
    return "\n\n".join(
        paragraph if paragraph.startswith(kept) else whole.fill(" ".join(paragraph.split())) for paragraph in text.split("\n\n")
    )


def of_group(table: pd.DataFrame, group: str) -> pd.DataFrame:
    """The rows of a group, with text columns to group tables by."""
    rows = table if group == "coverage" else table[table["group"] == group]
    same = rows["seeds_a"] == rows["seeds_b"]
    seeds = rows["seeds_a"].astype(str).where(same, rows["seeds_a"].astype(str) + ", " + rows["seeds_b"].astype(str))
    pairing = rows["paired"].map({True: "paired", False: "not paired"})
    return rows.assign(**{"seeds": seeds, "pairing": pairing, "method SD": [f"{sd:g}" for sd in rows["method_sd_a"]]})


def by_share(table: pd.DataFrame, by: Sequence[str]) -> str:
    """A row for each combination of `by`, a column for each pairing and seed share; further cells are joined by " / "."""
    cells: dict[tuple[Any, ...], list[str]] = {}
    for row in table.to_dict("records"):
        cells.setdefault((*(row[name] for name in by), row["pairing"], row["seed_share"]), []).append(marked(row))
    kinds = [(pairing, share) for pairing in dict.fromkeys(table["pairing"]) for share in sorted(table["seed_share"].unique())]
    keys = dict.fromkeys(cell[: len(by)] for cell in cells)
    rows = [[*map(str, key), *(" / ".join(cells.get((*key, *kind), [])) for kind in kinds)] for key in keys]
    return markdown([*by, *(f"{pairing}, {named(share)}" for pairing, share in kinds)], rows)


def named(share: float) -> str:
    return SHARE_NAMES.get(share, f"seed share {share:.0%}")


def marked(row: dict[Any, Any], rate: str = "rejected") -> str:
    mark = {"a": " ▲", "b": " ▼"}.get(row["misses"][:1], "")
    return f"{100 * row[rate]:.1f}{mark}"


def pairing_of(row: dict[Any, Any]) -> str:
    return "paired" if row["paired"] else "not paired"


def percent_range(rates: "pd.Series[float]", digits: int = 1) -> str:
    low, high = f"{100 * rates.min():.{digits}f}", f"{100 * rates.max():.{digits}f}"
    return low if low == high else f"{low} to {high}"


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([f"| {' | '.join(headers)} |", "|" + "---|" * len(headers), *(f"| {' | '.join(row)} |" for row in rows)])

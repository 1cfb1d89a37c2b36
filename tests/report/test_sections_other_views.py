"""A declared comparison by other scorers, by axis and at equal KL."""

from typing import Any

import pandas as pd

from apo_bench.report.markdown import inline
from apo_bench.report.sections.other_views import opposed, other_views


def row(
    scorer: str, difference: float, axis: str = "all", at: str = "final", family: str = "descriptive", p: float = 1.0
) -> dict[str, Any]:
    """A contrast with an interval of 0.1 to both sides."""
    interval = {"ci_low": difference - 0.1, "ci_high": difference + 0.1}
    return {
        "arm_a": "apo", "arm_b": "rjs", "scorer": scorer, "axis": axis, "at": at, "family": family, "difference": difference,
        "p_adjusted": p, **interval,
    }  # fmt: skip


PRIMARY = row("ground_truth", 0.25, family="primary", p=0.01)


def lines(*rows: dict[str, Any]) -> list[str]:
    return [inline(line) for line in other_views(pd.DataFrame(rows)).items]


def test_other_scorers_axes_and_equal_distance_stand_in_a_line() -> None:
    """The arms' own reward model has another scale in each arm, and another scorer's axes and places are not this comparison's."""
    others = row("gpt2", -0.5), row("ground_truth", 0.75, axis="helpful"), row("ground_truth", 0.125, at="matched_kl")
    elsewhere = row("proxy", 9.0), row("gpt2", 8.0, axis="helpful"), row("gpt2", 7.0, at="matched_kl")
    (line,) = lines(PRIMARY, *others, *elsewhere)
    assert line == (
        "`apo` against `rjs`, seen otherwise (descriptive): by gpt2 \u22120.500 (\u22120.600 to \u22120.400); "
        "helpful alone +0.750 (+0.650 to +0.850); at equal KL +0.125 (+0.025 to +0.225)."
    )
    assert lines(PRIMARY) == []


def test_a_scorer_of_the_other_sign_is_named_where_a_difference_is_shown() -> None:
    others = row("gpt2", -0.5), row("bert", -0.05), row("ngram", 0.5), row("proxy", -0.5)
    surely, perhaps = map(inline, opposed(pd.DataFrame([PRIMARY, *others])))
    assert surely.startswith("**Another scorer contradicts it:** by gpt2, `apo` against `rjs` \u22120.500 (")
    assert perhaps.startswith("**Another scorer does not show it:** by bert, `apo` against `rjs` \u22120.050 (\u22120.150 to +0.050)")
    assert opposed(pd.DataFrame([PRIMARY | {"p_adjusted": 0.2}, row("gpt2", -0.5)])) == []

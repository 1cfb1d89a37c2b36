"""What the report says first."""

import math
from typing import Any

import pandas as pd
import pytest

from apo_bench.config.schema import Comparison
from apo_bench.formatting import Row, rows_of
from apo_bench.report.markdown import inline
from apo_bench.report.sections.answer import _matches, summary


def contrast(a: str, difference: float, half_width: float, p: float, scorer: str = "gold") -> dict[str, Any]:
    return {
        "arm_a": a, "arm_b": "dpo", "scorer": scorer, "difference": difference, "p_adjusted": p,
        "ci_low": difference - half_width, "ci_high": difference + half_width,
    }  # fmt: skip


def rows(*contrasts: dict[str, Any]) -> list[Row]:
    return list(rows_of(pd.DataFrame(contrasts)))


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (contrast("ipo", 0.2, 0.1, 0.01), "**`ipo` is better than `dpo`**, by 0.200 (95 % interval 0.100 to 0.300). "),
        (contrast("ipo", -0.2, 0.1, 0.01), "**`dpo` is better than `ipo`**, by 0.200 (95 % interval 0.100 to 0.300). "),
        (contrast("ipo", 0.1, 0.05, 0.01, "judge/x"), "**`ipo` is better than `dpo`**, by a win rate of 0.600 (95 % "),
        (contrast("ipo", 0.1, 0.3, 0.4), "**Which is better cannot be told**, `ipo` or `dpo`: anything from 0.200 lower to 0.400 higher "),
        (contrast("ipo", 0.1, 0.3, math.nan), "**Which is better cannot be told**, `ipo` or `dpo`: "),
        (contrast("ipo", math.nan, 0.3, math.nan), "**Nothing can be said yet** about `ipo` against `dpo`."),
    ],
)  # fmt: skip
def test_one_comparison_is_answered_in_a_sentence(row: dict[str, Any], sentence: str) -> None:
    assert inline(summary(rows(row))).startswith(sentence)


def test_of_several_those_that_show_a_difference_are_named_the_better_arm_first() -> None:
    some = [
        contrast("ipo", 0.2, 0.1, 0.01),
        contrast("kto", -0.2, 0.1, 0.01),
        contrast("nca", 0.0, 0.1, 1.0),
        contrast("bco", 0.0, 0.1, math.nan),
    ]
    assert inline(summary(rows(*some))) == (
        "**2 of 4 declared comparisons show a difference**, after correction for all of them: `ipo` above `dpo`, `dpo` above `kto`. "
        "In 1 it cannot be told which arm is better. 1 could not be tested."
    )
    assert inline(summary(rows(*some[2:]))).startswith(
        "**None of 2 declared comparisons show a difference**, after correction for all of them. "
    )
    many = inline(summary(rows(*(contrast(f"arm{number}", 0.2, 0.1, 0.01) for number in range(10)))))
    assert many.endswith("`arm7` above `dpo`, and 2 more.")


def test_arms_that_are_matched_alike_share_a_line() -> None:
    """kto spent one update fewer than the other two."""
    budget = [
        {"arm_a": arm, "arm_b": "dpo", "unit": "policy_updates", "kind": "updates", "declared": "yes", "matched": matched,
         "used_a": used, "used_b": 5.0, "ratio": used / 5}
        for arm, matched, used in (("ipo", "yes", 5.0), ("kto", "no", 4.0), ("nca", "yes", 5.0))
    ]  # fmt: skip
    lines = [inline(line) for line in _matches(pd.DataFrame(budget), [Comparison(a=arm, b="dpo") for arm in ("ipo", "kto", "nca")])]
    assert lines == [
        "`ipo`, `nca` against `dpo`: matched as declared: policy_updates.",
        "`kto` against `dpo`: **declared but not matched**: policy_updates (4 against 5, ratio 0.8).",
    ]

"""What the report says first."""

import math
from typing import Any

import pandas as pd
import pytest

from apo_bench.config.schema import Comparison
from apo_bench.formatting import Row, rows_of
from apo_bench.report.document import Answer
from apo_bench.report.markdown import inline
from apo_bench.report.sections.answer import _matches, summary


def contrast(a: str, difference: float, half_width: float, p: float, scorer: str = "gold") -> dict[str, Any]:
    return {
        "arm_a": a, "arm_b": "dpo", "scorer": scorer, "difference": difference, "p_adjusted": p,
        "ci_low": difference - half_width, "ci_high": difference + half_width,
    }  # fmt: skip


def rows(*contrasts: dict[str, Any]) -> list[Row]:
    return list(rows_of(pd.DataFrame(contrasts)))


BETTER = "By gold, it scores higher by 0.200 (95 % interval 0.100 to 0.300). Were the two alike, a difference this large would come up in "


def words(answer: Answer) -> tuple[str, str]:
    return inline(answer.headline), inline(answer.certainty)


@pytest.mark.parametrize(
    ("row", "headline", "certainty"),
    [
        (contrast("ipo", 0.2, 0.1, 0.01), "**`ipo` is better than `dpo`.**", f"{BETTER}about 10 of 1,000 such experiments."),
        (contrast("ipo", -0.2, 0.1, 1e-5), "**`dpo` is better than `ipo`.**", f"{BETTER}fewer than 1 of 1,000 such experiments."),
        (contrast("ipo", 0.1, 0.05, 0.01, "judge/x"), "**`ipo` is better than `dpo`.**", "By judge/x, it wins 0.600 (95 % interval 0.550 "),
        (contrast("ipo", 0.1, 0.3, 0.4), "**Which is better cannot be told**, `ipo` or `dpo`.", "By gold, anything from 0.200 lower to "),
        (contrast("ipo", 0.1, 0.3, math.nan), "**Which is better cannot be told**, `ipo` or `dpo`.", "By gold, anything from 0.200 lower"),
        (contrast("ipo", math.nan, 0.3, math.nan), "**Nothing can be said yet** about `ipo` against `dpo`.", ""),
    ],
)  # fmt: skip
def test_a_comparison_is_answered_in_a_sentence_and_how_certain_that_is(row: dict[str, Any], headline: str, certainty: str) -> None:
    """Of 1,000 experiments without a difference p x 1,000 show this much."""
    first, then = words(summary(rows(row)))
    assert first == headline
    assert then.startswith(certainty)


def test_of_several_against_the_same_arm_the_better_and_the_worse_are_named() -> None:
    some = [
        contrast("ipo", 0.2, 0.1, 0.01),
        contrast("kto", -0.2, 0.1, 0.01),
        contrast("nca", 0.0, 0.1, 1.0),
        contrast("bco", 0.0, 0.1, math.nan),
    ]
    assert words(summary(rows(*some))) == (
        "**Better than `dpo`: `ipo`.** **Worse: `kto`.**",
        "In 1 of 4 comparisons it cannot be told which arm is better. 1 could not be tested. All 4 are tested together: were no two "
        "arms different, one experiment in 20 would show any difference.",
    )
    assert words(summary(rows(*some[1:])))[0] == "**Worse than `dpo`: `kto`.**"
    assert words(summary(rows(*some[2:])))[0] == "**None of 2 declared comparisons shows a difference.**"
    many = words(summary(rows(*(contrast(f"arm{number}", 0.2, 0.1, 0.01) for number in range(10)))))[0]
    assert many.endswith("`arm7`, and 2 more.**")


def test_of_several_pairs_the_better_of_each_is_named() -> None:
    some = contrast("ipo", 0.2, 0.1, 0.01), contrast("kto", -0.2, 0.1, 0.01) | {"arm_b": "nca"}
    assert words(summary(rows(*some)))[0] == "**`ipo` is better than `dpo`; `nca` is better than `kto`.**"


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

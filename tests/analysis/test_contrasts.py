"""Which of two arms scores higher at which point: paths and choices small enough to work out by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folder import experiment, measured, scored, write_run

from apo_bench.analysis.contrasts import KlPath, contrasts, first_round_reaching, kl_paths
from apo_bench.analysis.results import Run, read_run
from apo_bench.stats import anytime_contrast

A, B, NAN = "apo_rjs", "golden_refresh", float("nan")
BOTH = {"primary": [{"a": A, "b": B}], "scorer": "ground_truth"}


def made_run(folder: Path, scores: pd.DataFrame, *metrics: pd.DataFrame, **compare: Any) -> Run:
    ledger = pd.DataFrame({"arm": [A], "seed": [0], "unit": ["flops"], "used": [1.0], "budget": [NAN]})
    settings = experiment(compare=BOTH | compare)
    settings["evaluation"] |= {"dev_prompts": 4}
    return read_run(write_run(folder / "run", {"scores": scores, "metrics": pd.concat(metrics), "ledger": ledger}, settings))


def row(run: Run, at: str) -> Any:
    table = contrasts(run)
    return table[(table["at"] == at) & (table["axis"] == "all") & (table["scorer"] == "ground_truth")].iloc[0]


# a: KL 1 after round 1 and 3 after round 2; b: 2 and 4. Two rounds, two prompts.
SCORES = {
    (A, 0, 0): (0, 0), (A, 0, 1): (1, 1), (A, 0, 2): (5, 3),
    (B, 0, 0): (0, 0), (B, 0, 1): (1, 2), (B, 0, 2): (3, 0),
}  # fmt: skip
KL = {(A, 0): (0.0, 1.0, 3.0), (B, 0): (0.0, 2.0, 4.0)}


def test_equal_kl_by_hand(tmp_path: Path) -> None:
    """Both reach KL 3: a at the end of round 2, scores (5, 3); b half way through it, scores (1, 2) / 2 + (3, 0) / 2 = (2, 1).

    Differences (3, 2): mean 2.5, standard error sqrt(0.5 / 2) = 0.5, t = 5 with 1 degree of freedom, whose distribution is Cauchy's:
    p = 1 - 2 / pi * atan(5).
    """
    result = row(made_run(tmp_path, scored(SCORES), measured("kl", KL), matched_kl=True), "matched_kl")
    assert (result.kl, result.difference, result.standard_error, result.df) == pytest.approx((3, 2.5, 0.5, 1))
    assert result.p_value == pytest.approx(1 - 2 / np.pi * np.arctan(5))
    assert (result.family, result.n_dropped) == ("descriptive", 0)
    assert "interpolated linearly in KL" in result.test
    assert "bound" not in result.test


def test_the_common_kl_is_what_every_seed_reaches(tmp_path: Path) -> None:
    """A second seed of b goes only as far as 0.5: a is then taken half way through round 1 in seed 0, and a quarter in seed 1 (KL 2).

    a: seed 0 (0.5, 0.5), seed 1 a quarter of (4, 8): (1, 2); b: seed 0 a quarter of (1, 2): (0.25, 0.5), seed 1 its end (0, 0).
    Differences (0.25, 0) and (1, 2): mean 0.8125.
    """
    more = {(A, 1, 0): (0, 0), (A, 1, 1): (4, 8), (A, 1, 2): (0, 0), (B, 1, 0): (0, 0), (B, 1, 1): (0, 0), (B, 1, 2): (0, 0)}
    kl = KL | {(A, 1): (0.0, 2.0, 3.0), (B, 1): (0.0, 0.5, 0.25)}
    result = row(made_run(tmp_path, scored(SCORES | more), measured("kl", kl), matched_kl=True), "matched_kl")
    assert (result.kl, result.difference, result.n_seeds) == pytest.approx((0.5, 0.8125, 2))


@pytest.mark.slow
@given(st.lists(st.floats(0.01, 20), min_size=1, max_size=6), st.floats(0.01, 1))
def test_a_path_is_cut_where_it_first_goes_so_far(steps: list[float], part: float) -> None:
    path = KlPath((0.0, *steps), bound=False)
    kl = part * max(path.kl)
    late, share = first_round_reaching(path, kl)
    assert 0 < share <= 1
    assert max(path.kl[:late]) < kl <= path.kl[late]
    assert (1 - share) * path.kl[late - 1] + share * path.kl[late] == pytest.approx(kl)


def test_a_path_that_comes_back_is_cut_on_its_way_out() -> None:
    """0, 3, 1, 4 reaches 2 first in round 1, two thirds of the way."""
    assert first_round_reaching(KlPath((0.0, 3.0, 1.0, 4.0), bound=False), 2.0) == (1, pytest.approx(2 / 3))


def test_a_bound_stands_in_for_a_kl_and_is_named(tmp_path: Path) -> None:
    own, other = measured("kl", {(A, 0): KL[A, 0], (B, 0): (0.0,)}), measured("kl_bound", {(B, 0): (NAN, 2.0, 4.0)})
    run = made_run(tmp_path, scored(SCORES), own, other, matched_kl=True)
    assert kl_paths(run) == {(A, 0): KlPath((0, 1, 3), False), (B, 0): KlPath((0, 2, 4), True)}
    result = row(run, "matched_kl")
    assert (result.kl, result.difference) == pytest.approx((3, 2.5))
    assert result.test.endswith("the KL of golden_refresh is an upper bound")


@pytest.mark.parametrize(
    ("kl", "reason"),
    [
        ({(A, 0): KL[A, 0], (B, 0): (0.0, NAN, 4.0)}, "no seed of both arms has a KL after every round"),
        ({(A, 0): KL[A, 0], (B, 0): (0.0, 0.0, 0.0)}, "an arm is no farther from the initial policy than at the start"),
    ],
)
def test_why_there_is_no_contrast_at_equal_kl(kl: dict[tuple[str, int], tuple[float, ...]], reason: str, tmp_path: Path) -> None:
    result = row(made_run(tmp_path, scored(SCORES), measured("kl", kl), matched_kl=True), "matched_kl")
    assert np.isnan(result.difference)
    assert result.test == f"none: {reason}"


def test_a_prompt_without_a_score_at_one_end_is_left_out_and_counted(tmp_path: Path) -> None:
    """A third prompt lacks a score at b's round 1: its row in b cannot be interpolated, and the one in a has nothing to stand against."""
    scores = {key: (*values, 7.0) for key, values in SCORES.items()} | {(B, 0, 1): (1.0, 2.0, NAN)}
    result = row(made_run(tmp_path, scored(scores), measured("kl", KL), matched_kl=True), "matched_kl")
    assert (result.difference, result.n_clusters, result.n_dropped) == (2.5, 2, 2)


# dev prefers round 1 for a in seed 0 (two equals: the first), round 2 in seed 1, and round 2 for b; round 0 is never chosen
DEV = {(A, 0): (9.0, 2.0, 2.0), (A, 1): (9.0, 1.0, 2.0), (B, 0): (9.0, 0.0, 1.0), (B, 1): (9.0, 0.0, 1.0)}
TWO = SCORES | {(arm, 1, round_): tuple(1 + value for value in values) for (arm, _, round_), values in SCORES.items()}


def test_the_round_chosen_on_dev_by_hand(tmp_path: Path) -> None:
    """Final: a (5, 3) and (6, 4), b (3, 0) and (4, 1): 2.5. Chosen on dev, a's seed 0 is (1, 1): (-2, 1) and (2, 3), 1 on average."""
    run = made_run(tmp_path, scored(TWO), measured("dev_score", DEV))
    assert run.dev_round == {(A, 0): 1, (A, 1): 2, (B, 0): 2, (B, 1): 2}
    final, dev = row(run, "final"), row(run, "dev_best")
    assert (final.difference, final["round"], final.family) == (2.5, "2", "primary")
    assert (dev.difference, dev["round"], dev.family) == (1.0, "1+2/2", "descriptive")


def test_families_are_at_the_declared_round(tmp_path: Path) -> None:
    run = made_run(tmp_path, scored(TWO), measured("dev_score", DEV), round="dev_best")
    table = contrasts(run)
    assert table.loc[table["family"] == "primary", "at"].tolist() == ["dev_best"]
    assert table["at"].drop_duplicates().tolist() == ["dev_best", "final"]
    assert table.loc[table["at"] == "final", "p_adjusted"].isna().all()


def test_a_declared_round_that_dev_never_chose_is_no_result(tmp_path: Path) -> None:
    result = row(made_run(tmp_path, scored(TWO), measured("kl", KL), round="dev_best"), "dev_best")
    assert (result.family, result.test) == ("primary", "none: no dev_score was recorded")


def test_contrasts_of_a_run_that_may_stop_at_any_look(tmp_path: Path) -> None:
    """The declared rule is that of the contrasts: `anytime_contrast` of the same rows; Holm's correction as ever."""
    rng = np.random.default_rng(0)
    values = {(arm, seed, 1): (mean + rng.normal(size=30)).tolist() for arm, mean in ((A, 2.0), (B, 0.0)) for seed in range(6)}
    run = made_run(tmp_path, scored(values), measured("kl", KL), stopping="anytime")
    expected, result = anytime_contrast(scored(values), A, B), row(run, "final")
    assert (result.difference, result.ci_low, result.p_value) == (expected.difference, expected.ci_low, expected.p_value)
    assert result.p_adjusted == result.p_value
    assert "valid at any look" in result.test

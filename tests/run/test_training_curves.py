"""Which fits an arm-seed made, for which round, and what is kept of their losses and steps; by hand, without a model."""

import json
from pathlib import Path

import pandas as pd
import pytest

from apo_bench.run.tables import _curves, rows_in
from apo_bench.run.training_curves import LOSSES, STEPS, Fit, fits_of, keep_curves, thinned
from apo_bench.store import RunStore
from apo_bench.tables import TABLES, read_table, write_table
from apo_bench.types import BestOfNPolicy, EnsembleRewardModel, Policy, RewardModel, Round

STEP = {"updates": 2, "prompts": 4, "samples": 16, "trained_samples": 12, "reward": 0.5, "kl": None, "learning_rate": 1e-4}


def trained(store: RunStore, kind: str, name: str, losses: list[float] | None = None, steps: list[dict[str, object]] | None = None) -> str:
    """A trained model's artifact, without its weights; returns its key."""

    def build(folder: Path) -> dict[str, float]:
        if losses is not None:
            (folder / LOSSES).write_text(json.dumps(losses))
        if steps is not None:
            (folder / STEPS).write_text("".join(json.dumps(row) + "\n" for row in steps))
        return {}

    return store.artifact(kind, {"name": name}, build).key


def test_a_fit_belongs_to_the_round_that_finishes_after_it(tmp_path: Path) -> None:
    """Used in order: a reward model, samples, a start, the first round's policy, a second, of whose samples the best count."""
    store = RunStore(tmp_path)
    reward = trained(store, "reward_models", "r", [0.7])
    samples = trained(store, "samples", "s")
    start, first, second = (trained(store, "policies", name, [1.0]) for name in ("start", "first", "second"))
    linear = trained(store, "reward_models", "linear")  # has no updates
    unused = trained(store, "policies", "unused", [2.0])
    best = BestOfNPolicy("best", Policy(second), RewardModel(linear), 4)
    rounds = [Round(Policy(first), RewardModel(reward)), Round(best, EnsembleRewardModel("both", (RewardModel(reward),)))]
    fits = fits_of(store, [reward, samples, start, first, second, linear, unused], rounds)
    assert fits == [
        Fit(f"reward_models/{reward}", 1, 1),
        Fit(f"policies/{start}", 1, 2),
        Fit(f"policies/{first}", 1, 3),
        Fit(f"policies/{second}", 2, 4),
        Fit(f"policies/{unused}", 2, 5),
    ]
    assert [fit.round for fit in fits_of(store, [first, second])] == [0, 0]


@pytest.mark.parametrize(("n", "most", "updates"), [(3, 3, [1, 2, 3]), (7, 3, [3, 6, 7]), (0, 3, []), (400, 200, list(range(2, 401, 2)))])
def test_many_losses_are_means_of_neighbours(n: int, most: int, updates: list[int]) -> None:
    """The losses are 1, 2, ..., n: a row that ends at update u, after one that ends at v, has the mean of v + 1, ..., u."""
    rows = thinned([float(loss) for loss in range(1, n + 1)], most)
    assert [row["update"] for row in rows] == updates
    assert [row["loss"] for row in rows] == [(v + 1 + u) / 2 for v, u in zip([0, *updates], updates, strict=False)]


def test_tables_of_two_arm_seeds_that_share_what_evaluates(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    own = trained(store, "policies", "own", [3.0, 2.0])
    online = trained(store, "policies", "online", [1.0], [{"step": 1, **STEP}, {"step": 2, **STEP, "kl": 0.25}])
    shared = [Fit(f"policies/{trained(store, 'policies', 'initial', [5.0])}", 0, 1)]
    records = {
        ("sft", 0): {"curves": {"arm": keep_curves(store, [Fit(f"policies/{own}", 1, 1)]), "shared": keep_curves(store, shared)}},
        ("grpo", 0): {"curves": {"arm": keep_curves(store, [Fit(f"policies/{online}", 1, 1)]), "shared": keep_curves(store, shared)}},
    }
    assert len(rows_in(tmp_path, records["sft", 0])) == 2
    for key in (own, online):  # as `store.keep` removes models
        (store.root / "policies" / key / LOSSES).unlink()
    frames = _curves(tmp_path, records, {}, {})
    for name, rows in frames.items():
        write_table(tmp_path / f"{name}.parquet", name, rows)
    training = read_table(tmp_path / "training.parquet", "training")
    assert training[["arm", "seed", "round", "model", "update", "loss"]].values.tolist() == [
        ["_bench", -1, 0, "policy", 1, 5.0],
        ["grpo", 0, 1, "policy", 1, 1.0],
        ["sft", 0, 1, "policy", 1, 3.0],
        ["sft", 0, 1, "policy", 2, 2.0],
    ]
    steps = read_table(tmp_path / "steps.parquet", "steps")
    assert tuple(steps) == TABLES["steps"].names
    assert steps[["arm", "step", "reward"]].values.tolist() == [["grpo", 1, 0.5], ["grpo", 2, 0.5]]
    assert pd.isna(steps["kl"][0])
    assert steps["kl"][1] == 0.25


def test_a_measure_that_no_step_has_is_missing(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    online = trained(store, "policies", "online", steps=[{"step": 1, **STEP}])
    keys = {"arm": keep_curves(store, fits_of(store, [online])), "shared": keep_curves(store, [])}
    frames = _curves(tmp_path, {("reinforce", 0): {"curves": keys}}, {}, {})
    write_table(tmp_path / "steps.parquet", "steps", frames["steps"])
    assert read_table(tmp_path / "steps.parquet", "steps")["kl"].isna().all()


def test_a_run_without_a_gradient_has_no_curves(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    keys = {"arm": keep_curves(store, []), "shared": keep_curves(store, [])}
    assert _curves(tmp_path, {("best", 0): {"curves": keys}}, {}, {}) == {}


def test_trials_and_controls_stand_beside_the_arms(tmp_path: Path) -> None:
    """Two trials of sft on seed 1000, the second online; A/A; an oracle, which trains nothing. What evaluates the trials is there once."""
    store = RunStore(tmp_path)
    own, first, again, referee = (trained(store, "policies", name, [loss]) for name, loss in zip("abcd", (3.0, 4.0, 5.0, 6.0), strict=True))
    online = trained(store, "policies", "online", steps=[{"step": 1, **STEP, "loss": 0.5}])

    def record(model: str, *shared: str) -> dict[str, dict[str, str]]:
        return {"curves": {"arm": keep_curves(store, fits_of(store, [model])), "shared": keep_curves(store, fits_of(store, shared))}}

    trials = {("sft", 0, 1000): record(first, referee), ("sft", 1, 1000): record(online, referee)}
    frames = _curves(tmp_path, {("sft", 0): record(own)}, trials, {("_aa", 1_000_000): record(again), ("_oracle", 0): {"rounds": []}})
    for name, rows in frames.items():
        write_table(tmp_path / f"{name}.parquet", name, rows)
    rows = read_table(tmp_path / "training.parquet", "training").fillna({"trial": 0})
    assert rows[["arm", "trial", "seed", "loss"]].values.tolist() == [
        ["_aa", 0, 1_000_000, 5.0], ["_bench", 0, -1, 6.0], ["_tune.sft", 1, 1000, 4.0], ["sft", 0, 0, 3.0],
    ]  # fmt: skip
    steps = read_table(tmp_path / "steps.parquet", "steps")
    assert steps[["arm", "trial", "seed", "loss"]].values.tolist() == [["_tune.sft", 2, 1000, 0.5]]

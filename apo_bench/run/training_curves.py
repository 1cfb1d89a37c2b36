"""The losses of an arm-seed's fits and the steps of its online training, kept apart from models, which `store.keep` may remove."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apo_bench.hashing import code_hash
from apo_bench.store import RunStore
from apo_bench.tables import TABLES
from apo_bench.types import BestOfNPolicy, EnsembleRewardModel, Policy, RewardModel, Round

KIND = "curves"
LOSSES, STEPS = "training_losses.json", "steps.jsonl"  # beside a trained model's weights; steps: beside an online policy's
MODELS = {"policies": "policy", "reward_models": "reward model"}
MOST_ROWS = 200  # of a fit


@dataclass(frozen=True)
class Fit:
    """A trained model's folder in the store, such as `policies/KEY`, the round that it was trained for, and its place among the fits."""

    artifact: str
    round: int
    number: int


def fits_of(store: RunStore, charged: Iterable[str], rounds: Sequence[Round] = ()) -> list[Fit]:
    """Those of an arm-seed's artifacts, in order of use, that have a training curve, numbered from 1.

    A fit belongs to the round that finishes after it: the first whose policy or reward model is not used before it. Without rounds it
    is 0.
    """
    order = {key: place for place, key in enumerate(charged)}
    ends = [max((order[key] for key in _keys(round_) if key in order), default=-1) for round_ in rounds]
    curves = [(place, f"{kind}/{key}") for key, place in order.items() for kind in MODELS if _has_curve(store.root / kind / key)]
    return [
        Fit(artifact, next((round_ for round_, end in enumerate(ends, 1) if end >= place), len(ends)), number)
        for number, (place, artifact) in enumerate(curves, 1)
    ]


def keep_curves(store: RunStore, fits: Sequence[Fit]) -> str:
    """Write `training.parquet` and, where there was online training, `steps.parquet` of these fits as an artifact; returns its key."""
    import pandas as pd

    def build(folder: Path) -> Mapping[str, float]:
        frames: dict[str, list[dict[str, Any]]] = {"training": [], "steps": []}
        for fit in fits:
            source, place = store.root / fit.artifact, {"round": fit.round, "fit": fit.number}
            model = {"model": MODELS[Path(fit.artifact).parent.name], "artifact": fit.artifact}
            frames["training"] += [{**place, **model, **row} for row in thinned(_losses(source))]
            frames["steps"] += [{**place, **row} for row in _steps(source)]
        for name, rows in frames.items():
            if rows:
                pd.DataFrame(rows).to_parquet(folder / f"{name}.parquet", index=False)
        return {}

    inputs = {"fits": [[fit.artifact, fit.round, fit.number] for fit in fits], "code": code_hash(__name__)}
    return store.artifact(KIND, inputs, build).key


def thinned(losses: Sequence[float], most: int = MOST_ROWS) -> list[dict[str, float]]:
    """At most `most` rows of `update` and `loss`: the mean over the updates since the row before. Fewer updates: a row each."""
    width = max(1, -(-len(losses) // most))
    blocks = [losses[start : start + width] for start in range(0, len(losses), width)]
    return [{"update": min((n + 1) * width, len(losses)), "loss": sum(block) / len(block)} for n, block in enumerate(blocks)]


def _keys(round_: Round) -> list[str]:
    """The keys of the models with weights of their own that a round ends with."""
    waiting: list[Policy | RewardModel | None] = [round_.policy, round_.reward_model]
    keys = []
    while waiting:
        model = waiting.pop()
        if isinstance(model, BestOfNPolicy):
            waiting += [model.policy, model.reward_model]
        elif isinstance(model, EnsembleRewardModel):
            waiting += model.members
        elif model is not None:
            keys.append(model.key)
    return keys


def _has_curve(folder: Path) -> bool:
    return (folder / LOSSES).is_file() or (folder / STEPS).is_file()


def _losses(folder: Path) -> list[float]:
    return json.loads((folder / LOSSES).read_text()) if (folder / LOSSES).is_file() else []


def _steps(folder: Path) -> list[dict[str, Any]]:
    """Rows of the table `steps`; what a step does not have is missing."""
    if not (folder / STEPS).is_file():
        return []
    names = [name for name in TABLES["steps"].names if name not in ("arm", "seed", "round", "fit")]
    rows = [json.loads(line) for line in (folder / STEPS).read_text(encoding="utf-8").splitlines() if line]
    return [{name: math.nan if row.get(name) is None else row[name] for name in names} for row in rows]

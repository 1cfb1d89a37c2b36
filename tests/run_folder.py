"""Run folders made of hand-made tables, for tests of reports."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from apo_bench.tables import TABLES

SEEDS = (0, 1, 2)


def experiment(**changes: Any) -> dict[str, Any]:
    recipe = {"learning_rate": 1e-3}
    apo = {"use": "apo_bench.apo@APO", "player": {"use": "baselines/rejection_sampling.py@RejectionSampling"}}
    return {
        "name": "synthetic",
        "task": "sim_hh",
        "seeds": list(SEEDS),
        "models": {
            "policy": {
                "architecture": {"model_type": "llama"},
                "warmup": recipe,
                "training": recipe,
                "sampling": {"max_new_tokens": 8},
            },
            "reward": {"kind": "neural", "initial": "policy", "training": recipe},
            "gold": [{"name": "encoder", "model": {"kind": "ngram"}}],
        },
        "evaluation": {"sampling": {"max_new_tokens": 8}},
        "budget": {"human_pairs": 100},
        "arms": {
            "rjs": {"use": "baselines/rejection_sampling.py@RejectionSampling"},
            "golden_refresh": {**apo, "opponent": "initial"},
            "apo_rjs": apo,
        },
        "compare": {
            "primary": [{"a": "apo_rjs", "b": "golden_refresh", "matched": ["annotation", "samples", "updates", "flops"]}],
            "secondary": [{"a": "apo_rjs", "b": "rjs", "matched": ["samples"]}],
            "axes": ["all", "harmless"],
        },
    } | changes


def write_run(folder: Path, tables: dict[str, pd.DataFrame], settings: dict[str, Any] | None = None, **manifest: Any) -> Path:
    (folder / "tables").mkdir(parents=True)
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings or experiment()))
    facts = {
        "name": "synthetic",
        "commit": "abc",
        "dirty": False,
        "versions": {"python": "3.11"},
        "provenance": "Made by a test.",
        "splits": {"test": {"pairs": 80, "prompts": 24, "clusters": 20}},
        "notes": ["identical pairs dropped: 3"],
        "failures": [],
        "seeds": list(SEEDS),
        "arms": {"rjs": "x@Y"},
        "task": "sim_hh",
        "command": "apo-bench run x.yaml",
    }
    (folder / "manifest.json").write_text(json.dumps(facts | manifest))
    for name, table in tables.items():
        table.to_parquet(folder / "tables" / f"{name}.parquet")
    return folder


def frame(name: str, rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    """Rows as the table of that name, without the columns that older folders lack."""
    return pd.DataFrame(rows, columns=[column.name for column in TABLES[name].columns if not column.added])


def scored(scores: Mapping[tuple[str, int, int], Sequence[float]], scorer: str = "ground_truth", axis: str = "helpful") -> pd.DataFrame:
    """Scores of prompts p0, p1, ..., each a cluster of its own, by arm, seed and round; NaN: no row."""
    rows = [
        (arm, seed, round_, f"p{place}", f"p{place}", axis, scorer, float(value))
        for (arm, seed, round_), values in scores.items()
        for place, value in enumerate(values)
        if value == value
    ]
    return frame("scores", rows)


def measured(metric: str, measurements: Mapping[tuple[str, int], Sequence[float]], axis: str = "all") -> pd.DataFrame:
    """A metric after rounds 0, 1, ... by arm and seed; NaN: no row."""
    rows = [
        (arm, seed, round_, axis, metric, float(value), 0.0, 8)
        for (arm, seed), values in measurements.items()
        for round_, value in enumerate(values)
        if value == value
    ]
    return frame("metrics", rows)

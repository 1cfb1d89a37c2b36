"""A run folder of hand-made responses to the prompts of a real task, for tests of what goes out and comes in."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from run_folder import experiment, frame, measured, scored, write_run
from tiny_world import TREE, tiny_task

from apo_bench.judging.judge_protocol import ResponsePair
from apo_bench.types import Prompt

PROMPTS: tuple[Prompt, ...] = tiny_task().prompts["test"]


def answered(
    folder: Path,
    texts: Mapping[tuple[str, int, int], Sequence[str]],
    verdicts: Sequence[tuple[Any, ...]] = (),
    dev_scores: Mapping[tuple[str, int], Sequence[float]] | None = None,
) -> Path:
    """A run in which each (arm, seed, round) answered the first prompts so, and judges said what `verdicts` (table judgments) hold.

    With `dev_scores` after rounds 0, 1, ... of each arm and seed it compares arms at dev_best.
    """
    rows = [
        (arm, seed, round_, PROMPTS[place].id, text, len(text.split()), "eos")
        for (arm, seed, round_), responses in texts.items()
        for place, text in enumerate(responses)
    ]
    tables = {
        "scores": scored({key: [0.0] * len(responses) for key, responses in texts.items()}),
        "ledger": frame("ledger", []),
        "responses": pd.DataFrame(rows, columns=["arm", "seed", "round", "prompt_id", "text", "tokens", "finish"]),
    }
    if verdicts:
        tables["judgments"] = frame("judgments", verdicts)
    settings = experiment(task=TREE["task"])
    if dev_scores:
        tables["metrics"] = measured("dev_score", dev_scores)
        settings["compare"]["round"], settings["evaluation"]["dev_prompts"] = "dev_best", 2
    return write_run(folder, tables, settings)


def compared(place: int, a: str, b: str, seed: int = 0, arms: tuple[str, str] = ("apo_rjs", "rjs")) -> ResponsePair:
    """Two responses to the prompt at that place, lengths in words."""
    return ResponsePair(*arms, seed, seed, "1", PROMPTS[place], a, b, float(len(a.split())), float(len(b.split())))

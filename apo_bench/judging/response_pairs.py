"""Which responses judges compare: pairs of arms, seeds and test prompts."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from apo_bench.config.schema import JUDGE, Experiment
from apo_bench.data.splits import balanced
from apo_bench.errors import InputError
from apo_bench.judging.judge_protocol import ResponsePair
from apo_bench.types import Prompt

if TYPE_CHECKING:
    import pandas as pd


def arm_pairs(experiment: Experiment) -> list[tuple[str, str]]:
    """The pairs of arms that judges compare, each once. Where a judge is the scorer, the declared comparisons come first."""
    judging, compare, arms = experiment.judging, experiment.compare, list(experiment.arms)
    declared = [(pair.a, pair.b) for pair in (*compare.primary, *compare.secondary)]
    chosen = {
        "declared": declared,
        "round_robin": list(combinations(arms, 2)),
        "reference": [(arm, str(judging.reference)) for arm in arms if arm != judging.reference],
    }[judging.pairs]
    if compare.scorer.startswith(JUDGE):
        chosen = [*declared, *(pair for pair in chosen if pair not in declared and pair[::-1] not in declared)]
    return list(dict.fromkeys(chosen))


def response_pairs(
    experiment: Experiment,
    rounds: Mapping[tuple[str, int], int],
    responses: "pd.DataFrame",
    prompts: Sequence[Prompt],
    table: str | Path = "tables/responses.parquet",
) -> Iterator[ResponsePair]:
    """Every pair of arms x seeds x prompts that both arms answered.

    `rounds` gives the round at which each finished arm-seed is compared, `responses` the rows of the table `responses`, `prompts` the
    task's test prompts. Raises InputError, which names the `table`, for a response to another prompt, and for an arm-seed without
    responses at its round.
    """
    judging, by_id = experiment.judging, {prompt.id: prompt for prompt in prompts}
    answers: dict[tuple[str, int, int], dict[str, tuple[str, float]]] = {}  # (arm, seed, round) -> prompt id -> text, tokens
    columns = (responses[name].tolist() for name in ("arm", "seed", "round", "prompt_id", "text", "tokens"))
    for arm, seed, round_, id_, text, tokens in zip(*columns, strict=True):
        if id_ not in by_id:
            reason = f"{id_} is no test prompt of task {experiment.task.use}; have its data or options changed?"
            raise InputError(f"{table}: prompt_id: {reason}")
        answers.setdefault((arm, seed, round_), {})[id_] = text, float(tokens)
    for a, b in arm_pairs(experiment):
        seeds = [seed for seed in experiment.seeds if (a, seed) in rounds and (b, seed) in rounds]
        if judging.seeds == "next" and len(seeds) == 1:
            raise InputError("judging.seeds: next needs at least two seeds that both arms finished")
        opponents = seeds if judging.seeds == "same" else [*seeds[1:], *seeds[:1]]
        for seed_a, seed_b in zip(seeds, opponents, strict=True):
            sides = [(arm, seed, rounds[arm, seed]) for arm, seed in ((a, seed_a), (b, seed_b))]
            for arm, seed, round_ in (side for side in sides if side not in answers):
                raise InputError(f"{table}: no row of {arm}, seed {seed}, round {round_}")
            answers_a, answers_b = (answers[side] for side in sides)
            label = "/".join(dict.fromkeys(str(round_) for *_, round_ in sides))
            for prompt in balanced([by_id[id_] for id_ in answers_a if id_ in answers_b], judging.prompts):
                (text_a, tokens_a), (text_b, tokens_b) = answers_a[prompt.id], answers_b[prompt.id]
                yield ResponsePair(a, b, seed_a, seed_b, label, prompt, text_a, text_b, tokens_a, tokens_b)

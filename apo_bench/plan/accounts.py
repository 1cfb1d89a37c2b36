"""What a run would spend, arm by arm in the order of a run: later arms share the artifacts of earlier ones."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from apo_bench.config import tuning as tune
from apo_bench.config.controls import AA, ORACLE, aa_seeds
from apo_bench.config.plugins import resolve
from apo_bench.data.task import without_collector
from apo_bench.engines.counting import PlannedArtifact
from apo_bench.evaluation.evaluate import RoundEvaluation
from apo_bench.lab.ledger import STOCKS, UNITS, marginals
from apo_bench.plan.arm_spend import CountingContext, play
from apo_bench.plan.match_spend import with_value
from apo_bench.plan.seeds import PLAYED, PlayedArm, copied
from apo_bench.types import Round

BENCH = "_bench"
MODELS = ("policies", "reward_models")  # kinds of artifact
RUN = "_run"
REPORT = 1.2e6  # bytes of figures, page and csv files, whatever the sizes
TABLES = 0.25  # of what evaluations take on disk, their rows take in tables and report once more


@dataclass(frozen=True)
class Disk:
    """Bytes of the artifacts that an account computes first: all, and the weights among them. NaN: not known."""

    all: float = 0.0
    weights: float = 0.0

    @classmethod
    def of(cls, artifacts: Iterator[PlannedArtifact]) -> "Disk":
        everything = list(artifacts)
        rows = sum(artifact.bytes for artifact in everything if artifact.kind == "evaluations")
        return cls(sum(part.bytes for part in everything) + TABLES * rows, sum(part.weights for part in everything))

    def __add__(self, other: "Disk") -> "Disk":
        return Disk(self.all + other.all, self.weights + other.weights)

    def times(self, factor: float) -> "Disk":
        return Disk(factor * self.all, factor * self.weights)


@dataclass(frozen=True)
class Work:
    """What is computed, by kind of artifact: how many, and how much work: FLOPs, or for samples the tokens there is room for.

    A batch of samples ends with its longest response. NaN: not known.
    """

    artifacts: Mapping[str, float]
    amounts: Mapping[str, float]

    @classmethod
    def of(cls, planned: Sequence[PlannedArtifact], share: float = 1.0) -> "Work":
        artifacts, amounts = Counter[str](), Counter[str]()
        for artifact in planned:
            artifacts[artifact.kind] += 1
            amounts[artifact.kind] += artifact.work  # pyright: ignore[reportArgumentType]
            amounts.update(artifact.within)
        return cls({kind: share * artifacts[kind] for kind in amounts}, {kind: share * amount for kind, amount in amounts.items()})


class Accounts:
    """The accounts of one experiment. `base` is the folder that its method files are relative to.

    Raises InputError for a method that cannot be resolved; arm-seeds that would fail are in `failures`, (account, seed, message).
    """

    def __init__(self, context: CountingContext, base: Path | None) -> None:
        self.context, self.base = context, base
        self._methods = {name: self._method(name, {}) for name in context.experiment.arms}
        self.failures: list[tuple[str, int, str]] = []
        self.disk: dict[str, Disk] = {}
        self._played: dict[tuple[str, int], PlayedArm] = {}  # of arms and of the A/A control
        self._tuned: list[tuple[str, int, dict[str, float], dict[str, float]]] = []
        self._kept = 0  # artifacts that an account has already

    def fill(self) -> None:
        """Count everything that a run of the experiment does."""
        with without_collector():
            self.golds()
            self.tuning()
            self.arms()
            self.controls()
            self.context.store.forget()

    def arms(self) -> None:
        """Every arm for every seed; seeds beyond the first are copied, if no arm of these spends otherwise for another of them."""
        experiment = self.context.experiment
        for seed in experiment.seeds[:PLAYED]:
            for arm in experiment.arms:
                self.arm_seed(arm, arm, seed)
        *_, last = experiment.seeds[:PLAYED]
        forms = [[self._played[arm, seed].form(self.context) for arm in experiment.arms] for seed in experiment.seeds[:PLAYED]]
        alike = not self.failures and len(forms) == PLAYED and forms[0] == forms[-1]
        own = {key for arm in experiment.arms for key in self._played[arm, last].planned}
        for seed in experiment.seeds[PLAYED:]:
            for arm in experiment.arms:
                if alike:
                    self._played[arm, seed] = copied(self.context, arm, self._played[arm, last], own, seed)
                    self._take(arm)
                else:
                    self.arm_seed(arm, arm, seed)
        self._played = {(arm, seed): self._played[arm, seed] for arm in experiment.arms for seed in experiment.seeds}

    def golds(self) -> None:
        self.context.evaluate_golds()
        self._take(BENCH)
        self.disk[BENCH] += Disk(REPORT)

    def tuning(self) -> None:
        """Every trial is its arm again, at its setting and on tuning's seeds, scored on dev prompts."""
        tuning, context = self.context.experiment.tune, self.context
        if tuning is None:
            return
        for arm, grid in tuning.grids.items():
            for seed in tuning.seeds:
                labs = []
                for number, setting in enumerate(tune.trials(arm, grid, tuning.trials)):
                    lab, error = play(context, arm, self._method(arm, setting), seed)
                    labs.append(lab)
                    self.failures += [(f"{tune.TUNING}{arm}", seed, f"trial {number + 1}: {error}")] if error else []
                    for round_ in lab.rounds if not error else ():
                        evaluation = RoundEvaluation(context, round_, seed)
                        evaluation.dev_score()
                        evaluation.divergence(context.dev_prompts)
                used = {unit: float((max if unit in STOCKS else sum)(lab.used[unit] for lab in labs)) for unit in UNITS}
                new = marginals((number, lab.charged, lab.seen) for number, lab in enumerate(labs)).values()
                self._tuned.append((f"{tune.TUNING}{arm}", seed, used, {unit: sum(spent[unit] for spent in new) for unit in UNITS}))
            self._take(f"{tune.TUNING}{arm}")

    def arm_seed(self, account: str, arm: str, seed: int) -> None:
        planned, bench = len(self.context.planned), len(self.context.charged)
        lab, error = play(self.context, arm, self._methods[arm], seed)
        if error:
            self.failures.append((account, seed, error))
        else:
            first = lab.rounds[0].reward_model
            for number, round_ in enumerate((Round(self.context.initial_policy, first), *lab.rounds)):
                self.context.evaluate(round_, seed, first)
                if account == arm:  # controls are asked no sets
                    self.context.evaluate_sets(round_, seed, number, len(lab.rounds))
        new = (islice(keys, before, None) for keys, before in ((self.context.planned, planned), (self.context.charged, bench)))
        self._played[account, seed] = PlayedArm.of(lab, *map(list, new))
        self._take(account)

    def controls(self) -> None:
        experiment = self.context.experiment
        reference, controls = experiment.reference, experiment.controls
        for seed in aa_seeds(experiment) if controls.aa else ():
            self.arm_seed(AA, reference, seed)
        for seed in experiment.seeds if controls.oracle else ():
            if (rounds := self._played[reference, seed].rounds) and (reference, seed) not in {failure[:2] for failure in self.failures}:
                self.context.evaluate_oracle(rounds[-1], seed)
        if controls.oracle:
            self._take(ORACLE)

    def removed(self) -> float:
        """Bytes of the models that `store.keep` leaves out once the report is written; see `run.models_csv.unkept`."""
        keep, planned = self.context.experiment.store.keep, self.context.planned
        if keep == "all":
            return 0.0
        last = [played.rounds[-1] for played in self._played.values() if played.rounds]
        kept = {round_.policy.key for round_ in last}
        kept |= {round_.reward_model.key for round_ in last if round_.reward_model and keep == "last_round"}
        waiting = list(kept)
        while waiting:
            base, _ = self.context.engine.bases.get(waiting.pop(), (None, None))
            if base is not None and base not in kept:
                kept.add(base)
                waiting.append(base)
        left_out = {key for played in self._played.values() for key in played.charged if key not in kept and planned[key].kind in MODELS}
        return sum(planned[key].bytes for key in left_out)

    @property
    def n_rounds(self) -> dict[tuple[str, int], int]:
        """Of each arm-seed, controls among them."""
        return {key: len(played.rounds) for key, played in self._played.items()}

    def ledger(self) -> pd.DataFrame:
        """arm, seed, unit, used, marginal, budget of every account."""
        experiment, task = self.context.experiment, self.context.task
        new = marginals((key, arm.charged, arm.seen) for key, arm in self._played.items())
        rows = []
        for (account, seed), played in self._played.items():
            budget = experiment.budget_of(experiment.reference if account == AA else account)
            rows += [
                (account, seed, unit, used, new[account, seed][unit], budget.get(unit, math.nan)) for unit, used in played.used.items()
            ]
        rows += [(arm, seed, unit, used[unit], marginal[unit], math.nan) for arm, seed, used, marginal in self._tuned for unit in UNITS]
        spent = {unit: sum(counts.get(unit, 0.0) for counts in self.context.charged.values()) for unit in UNITS}
        spent["human_pairs"] = float(len(task.pairs["gold"]) + (len(task.pairs["dev"]) if self.context.dev_prompts else 0))
        rows += [(BENCH, -1, unit, spent[unit], spent[unit], math.nan) for unit in UNITS]
        return pd.DataFrame(rows, columns=["arm", "seed", "unit", "used", "marginal", "budget"])

    def work(self) -> dict[str, Work]:
        """What each arm computes alone, as a mean over seeds, and what the whole run computes."""
        planned, seeds = self.context.planned, len(self.context.experiment.seeds)
        of_arm: dict[str, list[PlannedArtifact]] = {}
        for (account, _), played in self._played.items():
            of_arm.setdefault(account, []).extend(planned[key] for key in played.charged)
        return {**{arm: Work.of(those, 1 / seeds) for arm, those in of_arm.items()}, RUN: Work.of(list(planned.values()))}

    def _method(self, arm: str, setting: Mapping[str, Any]) -> Any:
        sized = self.context.experiment.arms[arm]
        for parameter, value in setting.items():
            sized = with_value(sized, parameter, value)
        return resolve(sized.use, sized.parameters, base=self.base, arm=f"arms.{arm}")

    def _take(self, account: str) -> None:
        """Assign the artifacts since the last call to this account."""
        self.disk[account] = self.disk.get(account, Disk()) + Disk.of(islice(self.context.planned.values(), self._kept, None))
        self._kept = len(self.context.planned)

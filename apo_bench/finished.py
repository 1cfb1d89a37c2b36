"""Arms that are already trained: checkpoints, adapters and response files from elsewhere, evaluated like any arm.

What they cost is not known, and matches nothing, unless it is declared.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from apo_bench.config.schema import Budget, FinishedModel
from apo_bench.errors import InputError
from apo_bench.lab import Lab
from apo_bench.types import Policy

Rounds = str | tuple[str, ...]  # a path, or one a round
Paths = Rounds | dict[int, Rounds]  # the same for every seed, or by seed


@dataclass(frozen=True)
class Finished:
    """Exactly one of `policies`, `adapters` and `responses`: a path, a list of paths, one a round, or either by seed.

    One path for all seeds is one checkpoint: its seeds differ by sampling alone, which the report says.
    """

    policies: Paths | None = None  # model folders or hub ids
    adapters: Paths | None = None  # folders of LoRA adapters, as peft writes them
    responses: Paths | None = None  # files of prompts and responses: JSON lines, or AlpacaEval's model outputs
    base: str | None = None  # what adapters stand on; None: what their folder names
    model: FinishedModel | None = None  # settings in place of those of models.policy
    cost: Budget | None = None  # what one seed of it cost, declared; of other units it is not known

    def __post_init__(self) -> None:
        if sum(paths is not None for paths in (self.policies, self.adapters, self.responses)) != 1:
            raise InputError("give exactly one of policies, adapters and responses")
        if self.base is not None and self.adapters is None:
            raise InputError("base goes with adapters")

    def run(self, lab: Lab) -> None:
        for path in self.rounds(lab.seed):
            lab.finish_round(self._policy(lab, path))

    def rounds(self, seed: int) -> tuple[str, ...]:
        """The paths of a seed's rounds. Raises InputError where it has none."""
        paths = self.policies or self.adapters or self.responses or ()
        if isinstance(paths, Mapping):
            if seed not in paths:
                raise InputError(f"Finished: nothing for seed {seed}; it has seeds {', '.join(map(str, paths))}")
            paths = paths[seed]
        return (paths,) if isinstance(paths, str) else paths

    def _policy(self, lab: Lab, path: str) -> Policy:
        if self.responses is not None:
            return lab.finished_responses(path, cost=self.cost)
        return lab.finished_policy(path, base=self.base, model=self.model, cost=self.cost)

"""The smallest online algorithms: REINFORCE, with and without a reference."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from apo_bench.losses import View
from apo_bench.losses.online_algorithm import Rollouts


@dataclass(frozen=True)
class Reinforce:
    """Minus the response's log-probability times its score less the prompt's mean."""

    reads: ClassVar[Literal["rollouts"]] = "rollouts"
    needs_reference: ClassVar[bool] = False

    def advantages(self, rollouts: Rollouts) -> Tensor:
        return rollouts.scores - rollouts.scores.mean(dim=1, keepdim=True)

    def __call__(self, view: View) -> Tensor:
        return -view.advantages * view.response_logps.squeeze(1)


@dataclass(frozen=True)
class ReinforceToReference(Reinforce):
    """With the response's log-ratio to the reference, times `coeff`, taken off its score."""

    coeff: float = 0.1
    needs_reference: ClassVar[bool] = True

    def advantages(self, rollouts: Rollouts) -> Tensor:
        assert rollouts.log_ratios is not None
        return rollouts.scores - self.coeff * rollouts.log_ratios.sum(dim=-1)

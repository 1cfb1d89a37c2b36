"""Players: a policy's move against a fixed reward model, alone or in the game."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

from annotated_types import Ge, Gt

from apo_bench.errors import InputError
from apo_bench.lab.lab import Lab
from apo_bench.types import Group, Policy, RewardModel

T = TypeVar("T")
Count = Annotated[int, Ge(1)]  # field types for methods: what an experiment file gives is checked against them
Positive = Annotated[float, Gt(0)]


@runtime_checkable
class PolicyUpdate(Protocol):
    """A player's move: a policy better liked by the reward model. `draw` makes its samples fresh."""

    def update(self, lab: Lab, policy: Policy, reward_model: RewardModel, draw: int) -> Policy: ...


@dataclass(frozen=True)
class Player:
    """What players have in common: they sample n answers to a round's prompts, have them scored, and train on what `learn` makes of them.

    Alone, a player's reward model is fitted once, to human pairs.
    """

    rounds: Count = 3
    prompts_per_round: Count | None = None  # None: all policy prompts, every round
    samples_per_prompt: Count = 4
    learning_rate: Positive | tuple[Positive, ...] | None = None  # None: the experiment's; several: one a round
    epochs: Positive | None = None

    def learn(self, lab: Lab, policy: Policy, groups: Sequence[Group], rate: float | None) -> Policy:
        """The policy trained on scored samples of it; each player has its own way."""
        raise NotImplementedError

    def update(self, lab: Lab, policy: Policy, reward_model: RewardModel, draw: int) -> Policy:
        prompts = lab.prompts("policy", n=self.prompts_per_round, draw=draw)
        samples = lab.sample(policy, prompts, n=self.samples_per_prompt, draw=draw)
        return self.learn(lab, policy, lab.score(reward_model, samples), of_round(self.learning_rate, draw, "learning_rate"))

    def run(self, lab: Lab) -> None:
        play_alone(lab, self, self.rounds)


@dataclass(frozen=True)
class OnlinePlayer:
    """What online players have in common: a round is so many steps, each of which samples from the current weights, scores, and trains.

    A round goes on from the last one's policy, with fresh prompts and an optimizer of its own. `algorithm` is an OnlineAlgorithm or a
    PolicyLoss of pairs. Alone, a player's reward model is fitted once, to human pairs.
    """

    in_one_process: ClassVar[bool] = True  # no `executor.launch`

    rounds: Count = 3
    steps_per_round: Count = 10
    prompts_per_step: Count = 64
    samples_per_prompt: Count = 4
    reference: Literal["initial", "round_start"] = "initial"  # of the KL, or of a loss of pairs
    learning_rate: Positive | tuple[Positive, ...] | None = None  # None: the experiment's; several: one a round
    epochs: Positive | None = None  # passes over a step's samples; None: the experiment's

    def update(self, lab: Lab, policy: Policy, reward_model: RewardModel, draw: int) -> Policy:
        algorithm: Any = getattr(self, "algorithm")  # noqa: B009 (a field or a property of each player)
        reference = lab.initial_policy if self.reference == "initial" else policy
        return lab.train_online(
            policy, reward_model, algorithm, steps=self.steps_per_round, prompts_per_step=self.prompts_per_step, n=self.samples_per_prompt,
            draw=draw, reference=reference if algorithm.needs_reference else None,
            learning_rate=of_round(self.learning_rate, draw, "learning_rate"), epochs=self.epochs,
        )  # fmt: skip

    def run(self, lab: Lab) -> None:
        play_alone(lab, self, self.rounds)


def of_round(values: T | tuple[T, ...], round_: int, name: str) -> T:
    """The value for a round (0, 1, ...), where one is given for all rounds or one a round. Raises InputError if they run out."""
    if not isinstance(values, tuple):
        return values
    if round_ >= len(values):
        raise InputError(f"{name}: {len(values)} given, one a round, but round {round_ + 1} is played")
    return values[round_]


def play_alone(lab: Lab, player: PolicyUpdate, rounds: int, start: Policy | None = None) -> None:
    """A player without an adversary: the reward model is fitted once, to human pairs, or finished, and the policy moves each round.

    It moves from `start`, or the initial policy.
    """
    from apo_bench.losses import RankingLoss  # here, since losses bring torch, and a replay does without

    reward_model = lab.finished_reward_model or lab.train_reward_model(lab.pairs(), loss=RankingLoss())
    policy = start or lab.initial_policy
    for round_ in range(rounds):
        policy = player.update(lab, policy, reward_model, draw=round_)
        lab.finish_round(policy, reward_model)

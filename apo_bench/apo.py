"""Adversarial Preference Optimization: the policy and its reward model take turns in a min-max game.

Cheng et al., "Adversarial Preference Optimization: Enhancing Your Alignment via RM-LLM Game", arXiv:2311.08045.

Each round, with the policy fixed, the reward model learns to tell golden responses from the policy's current samples while
staying faithful to human preference pairs (the max step); then, with the reward model fixed, the policy learns to please it
(the min step), by whatever update the player brings. No new annotation is bought: the golden responses are the same each round.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from apo_bench.lab import Count, Lab, PolicyUpdate, Positive, golden_over_samples
from apo_bench.losses import APOLoss


@dataclass(frozen=True)
class APO:
    """APO with any player. Two parameters turn it into its own controls, so that nothing else can differ:

    opponent "initial": the reward model is refitted on the initial policy's fresh samples, not the current one's (golden_refresh).
    refit "once": and only in the first round (golden_static).

    The others are the paper's ablations of the reward-model step. How many human pairs and golden responses there are is the budget's
    to say.
    """

    trains_reward_model: ClassVar[bool] = True  # a finished one only by a recipe of its own

    player: PolicyUpdate  # the policy's move
    rounds: Count = 3
    samples_per_prompt: Count = 4  # per golden response
    apo_coeff: Positive = 0.1  # weight of golden-over-sample pairs beside human pairs
    opponent: Literal["current", "initial"] = "current"  # whose samples the golden responses are held up against
    refit: Literal["every_round", "once"] = "every_round"
    start: Literal["base", "previous"] = "base"  # each round's reward model starts from the base model (the paper) or goes on
    human_pairs: bool = True  # without, the reward model is an adversary and nothing else, as in GAIL (arXiv:1606.03476)
    duel: Literal["ranking", "difference"] = "ranking"  # what a golden-over-sample pair costs; difference: as in a WGAN

    def run(self, lab: Lab) -> None:
        human, golden = lab.pairs() if self.human_pairs else (), lab.golden()
        golden_prompts = [response.prompt for response in golden]
        loss = APOLoss(self.apo_coeff, self.samples_per_prompt, self.duel)
        policy, reward_model = lab.initial_policy, None
        for round_ in range(self.rounds):
            if reward_model is None or self.refit == "every_round":
                # max step: r = argmin  L_rank(human) + apo_coeff L_rank(golden > samples of the opponent)
                opponent = policy if self.opponent == "current" else lab.initial_policy
                samples = lab.sample(opponent, golden_prompts, n=self.samples_per_prompt, draw=round_)
                duels = golden_over_samples(golden, samples)
                previous = reward_model if self.start == "previous" else None
                reward_model = lab.train_reward_model(human, duels, loss=loss, start=previous)
            # min step: the policy's turn against the fixed reward model
            policy = self.player.update(lab, policy, reward_model, draw=round_)
            lab.finish_round(policy, reward_model)

"""Self-play fine-tuning (SPIN, Chen et al., arXiv:2401.01335, Algorithm 1): golden responses against the policy's own, no reward model.

Each round the policy samples answers to the golden responses' prompts, and is trained to prefer the golden ones, by the logistic loss of
log-ratios to itself at the round's start. APO plays the same game with a reward model between. In the paper's experiments a round also
rereads the samples of the round before; here each has its own.
"""

from dataclasses import dataclass

from apo_bench.lab import Count, Lab, Positive, golden_over_samples, of_round
from apo_bench.losses import DPOLoss


@dataclass(frozen=True)
class SPIN:
    """Prefer golden responses to samples of the previous iterate, which is the reference too."""

    rounds: Count = 3
    samples_per_prompt: Count = 1  # per golden response
    beta: Positive | tuple[Positive, ...] = 0.1  # the paper's lambda; several: one a round
    learning_rate: Positive | tuple[Positive, ...] | None = None  # None: the experiment's; several: one a round
    epochs: Positive | None = None

    def run(self, lab: Lab) -> None:
        golden = lab.golden()
        prompts = [response.prompt for response in golden]
        policy = lab.initial_policy
        for round_ in range(self.rounds):
            duels = golden_over_samples(golden, lab.sample(policy, prompts, n=self.samples_per_prompt, draw=round_))
            loss, rate = DPOLoss(of_round(self.beta, round_, "beta")), of_round(self.learning_rate, round_, "learning_rate")
            policy = lab.train_policy(policy, duels, loss, reference=policy, learning_rate=rate, epochs=self.epochs)
            lab.finish_round(policy)

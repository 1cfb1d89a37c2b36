"""The models of an experiment: the policy, the reward model, the gold reward models."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from apo_bench.config.schema.policies import PolicyModel
from apo_bench.config.schema.reward_models import RewardSpec, is_frozen
from apo_bench.config.schema.values import Section, Seeds, distinct


class Gold(Section):
    """A gold reward model, never used for selection: trained on the gold split once per seed in `seeds`, or finished before."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """its name in reports and in `compare.scorer`"""

    model: RewardSpec = Field(discriminator="kind")
    """the model, by `kind`; another architecture than `models.reward`, so that both do not err alike"""

    seeds: Seeds = (0, 1, 2)
    """training seeds; scores are means over them. A finished model (`kind: pretrained`, `judge`) has one: `[0]`"""

    @model_validator(mode="after")
    def _one_seed_of_a_finished_model(self) -> Self:
        if is_frozen(self.model) and len(self.seeds) > 1:
            if "seeds" in self.model_fields_set:
                raise ValueError("seeds: a finished reward model has one score, whatever the seed; give [0] or leave it out")
            object.__setattr__(self, "seeds", (0,))  # the default of such a model; the section is frozen
        return self


class Models(Section):
    """The models of an experiment."""

    policy: PolicyModel
    """where every arm starts"""

    reward: RewardSpec = Field(discriminator="kind")
    """the reward model that methods train, or use as it is: `kind: neural`, `ngram`, `pretrained`, `judge` or `ensemble`"""

    gold: tuple[Gold, ...] = Field(min_length=1)
    """the reward models that evaluate; the first is the default scorer"""

    @field_validator("gold")
    @classmethod
    def _distinct_names(cls, golds: tuple[Gold, ...]) -> tuple[Gold, ...]:
        distinct([gold.name for gold in golds])
        if clash := {gold.name for gold in golds} & {"proxy", "ground_truth", "length", "refusal"}:
            raise ValueError(f"gold may not be called {sorted(clash)[0]}")
        return golds

"""What an experiment file may contain. Unknown keys are refused, and nothing is converted."""

from apo_bench.config.schema.arms import Arm, Controls, MatchSpend, Tune
from apo_bench.config.schema.capabilities import Capabilities
from apo_bench.config.schema.comparisons import Compare, Comparison
from apo_bench.config.schema.execution import EngineChoice, Executor, StoreSettings
from apo_bench.config.schema.experiment import DRAWN, Evaluation, Experiment, Factor, Level, Report, TaskChoice
from apo_bench.config.schema.judges import JudgeChoice, Judging
from apo_bench.config.schema.models import Gold, Models
from apo_bench.config.schema.policies import FinishedModel, Lora, PolicyModel, Recipe, Sampling, SamplingEngine
from apo_bench.config.schema.prompt_sets import RULE, PromptSet
from apo_bench.config.schema.reward_models import (
    EnsembleReward,
    FinishedReward,
    JudgeReward,
    NetworkReward,
    NeuralReward,
    NgramReward,
    PretrainedReward,
    RewardSpec,
    SingleReward,
    is_frozen,
    members,
)
from apo_bench.config.schema.values import JUDGE, WHOLE, Budget, Match, Seed, Unit

__all__ = [
    "DRAWN",
    "JUDGE",
    "RULE",
    "WHOLE",
    "Arm",
    "Budget",
    "Capabilities",
    "Compare",
    "Comparison",
    "Controls",
    "EngineChoice",
    "EnsembleReward",
    "Evaluation",
    "Executor",
    "Experiment",
    "Factor",
    "FinishedModel",
    "FinishedReward",
    "Gold",
    "JudgeChoice",
    "JudgeReward",
    "Judging",
    "Level",
    "Lora",
    "Match",
    "MatchSpend",
    "Models",
    "NetworkReward",
    "NeuralReward",
    "NgramReward",
    "PolicyModel",
    "PretrainedReward",
    "PromptSet",
    "Recipe",
    "Report",
    "RewardSpec",
    "Sampling",
    "SamplingEngine",
    "Seed",
    "SingleReward",
    "StoreSettings",
    "TaskChoice",
    "Tune",
    "Unit",
    "is_frozen",
    "members",
]  # fmt: skip

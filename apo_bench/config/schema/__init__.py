"""What an experiment file may contain. Unknown keys are refused, and nothing is converted."""

from apo_bench.config.schema.arms import Arm, Controls, MatchSpend, Tune
from apo_bench.config.schema.comparisons import Compare, Comparison
from apo_bench.config.schema.execution import EngineChoice, Executor, StoreSettings
from apo_bench.config.schema.experiment import Evaluation, Experiment, Factor, Level, Report, TaskChoice
from apo_bench.config.schema.judges import JudgeChoice, Judging
from apo_bench.config.schema.models import (
    EnsembleReward,
    Gold,
    Lora,
    Models,
    NetworkReward,
    NeuralReward,
    NgramReward,
    PolicyModel,
    PretrainedReward,
    Recipe,
    RewardSpec,
    Sampling,
    SamplingEngine,
    SingleReward,
    is_frozen,
    members,
)
from apo_bench.config.schema.values import JUDGE, WHOLE, Budget, Match, Seed, Unit

__all__ = [
    "JUDGE", "WHOLE", "Arm", "Budget", "Compare", "Comparison", "Controls", "EngineChoice", "EnsembleReward", "Evaluation", "Executor",
    "Experiment", "Factor", "Gold", "JudgeChoice", "Judging", "Level", "Lora", "Match", "MatchSpend", "Models", "NetworkReward",
    "NeuralReward", "NgramReward", "PolicyModel", "PretrainedReward", "Recipe", "Report", "RewardSpec", "Sampling", "SamplingEngine",
    "Seed", "SingleReward", "StoreSettings", "TaskChoice", "Tune", "Unit", "is_frozen", "members",
]  # fmt: skip

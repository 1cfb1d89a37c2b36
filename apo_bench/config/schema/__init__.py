"""What an experiment file may contain. Unknown keys are refused, and nothing is converted."""

from apo_bench.config.schema.arms import Arm, Controls, MatchSpend, Tune
from apo_bench.config.schema.comparisons import Compare, Comparison
from apo_bench.config.schema.execution import EngineChoice, Executor, StoreSettings
from apo_bench.config.schema.experiment import Evaluation, Experiment, Factor, Level, Report, TaskChoice
from apo_bench.config.schema.judges import JudgeChoice, Judging
from apo_bench.config.schema.models import Gold, Lora, Models, NeuralReward, NgramReward, PolicyModel, Recipe, RewardSpec, Sampling
from apo_bench.config.schema.values import JUDGE, WHOLE, Budget, Match, Seed, Unit

__all__ = [
    "JUDGE", "WHOLE", "Arm", "Budget", "Compare", "Comparison", "Controls", "EngineChoice", "Evaluation", "Executor", "Experiment",
    "Factor", "Gold", "JudgeChoice", "Judging", "Level", "Lora", "Match", "MatchSpend", "Models", "NeuralReward", "NgramReward",
    "PolicyModel", "Recipe", "Report", "RewardSpec", "Sampling", "Seed", "StoreSettings", "TaskChoice", "Tune", "Unit",
]  # fmt: skip

"""Statistics of arms: frames and arrays in, frozen results out, no I/O. docs/statistics.md explains the choices."""

from apo_bench.stats.anytime_valid import anytime_contrast, anytime_contrast_of, e_value
from apo_bench.stats.bootstrap import Bootstrap, two_way_bootstrap
from apo_bench.stats.bradley_terry import BradleyTerry, bradley_terry
from apo_bench.stats.calibration import Bin, CalibrationError, brier, calibration_error, ece, reliability
from apo_bench.stats.chance_corrected_agreement import RaterAgreement, gwet_ac1, krippendorff_alpha, weighted_kappa
from apo_bench.stats.confidence_intervals import clustered_mean, clustered_share, share_interval, wilson
from apo_bench.stats.davidson import Davidson, davidson
from apo_bench.stats.instruction_difficulty import instruction_difficulty
from apo_bench.stats.length_control import LengthControlled, length_controlled_win_rate
from apo_bench.stats.meta_analysis import MetaAnalysis, meta_analysis
from apo_bench.stats.multiple_comparisons import EffectSize, benjamini_hochberg, contrasts, effect_size, holm
from apo_bench.stats.non_inferiority import (
    Equivalence,
    NonInferiority,
    SuperiorAndNonInferior,
    equivalence,
    noninferiority,
    superior_and_noninferior,
)
from apo_bench.stats.power_analysis import (
    Components,
    Size,
    binary_components,
    components,
    mde_table,
    minimum_detectable_effect,
    noncentral_t_power,
    plan_size,
    power,
)
from apo_bench.stats.prediction_powered import PredictionPowered, prediction_powered_win_rate
from apo_bench.stats.random_judges import AcrossJudges, mean_across_judges, win_rate_across_judges
from apo_bench.stats.rater_agreement import Agreement, agreement
from apo_bench.stats.score_layout import Layout, lay_out
from apo_bench.stats.simultaneous_contrasts import RankSets, SimultaneousContrasts, rank_sets, simultaneous_contrasts
from apo_bench.stats.two_way_random_effects import (
    Contrast,
    MeanTest,
    TwoWayError,
    contrast,
    contrast_of,
    effective_df,
    mean_test,
    paired_error,
    share_test,
    unpaired_error,
)
from apo_bench.stats.unbalanced_designs import UnbalancedContrast, contrast_of_all_rows, unbalanced_contrast
from apo_bench.stats.win_rate_estimates import JudgedWinRate, WinRate, judged_win_rate, win_rate

__all__ = [
    "AcrossJudges", "Agreement", "Bin", "Bootstrap", "BradleyTerry", "CalibrationError", "Components", "Contrast", "Davidson",
    "EffectSize", "Equivalence", "JudgedWinRate", "Layout", "LengthControlled", "MeanTest", "MetaAnalysis", "NonInferiority",
    "PredictionPowered", "RankSets", "RaterAgreement", "SimultaneousContrasts", "Size", "SuperiorAndNonInferior", "TwoWayError",
    "UnbalancedContrast", "WinRate", "agreement", "anytime_contrast", "anytime_contrast_of", "benjamini_hochberg", "binary_components",
    "bradley_terry", "brier", "calibration_error", "clustered_mean", "clustered_share", "components", "contrast", "contrast_of",
    "contrast_of_all_rows", "contrasts", "davidson", "e_value", "ece", "effect_size", "effective_df", "equivalence", "gwet_ac1", "holm",
    "instruction_difficulty", "judged_win_rate", "krippendorff_alpha", "lay_out", "length_controlled_win_rate", "mde_table",
    "mean_across_judges", "mean_test", "meta_analysis", "minimum_detectable_effect", "noncentral_t_power", "noninferiority",
    "paired_error", "plan_size", "power", "prediction_powered_win_rate", "rank_sets", "reliability", "share_interval", "share_test",
    "simultaneous_contrasts", "superior_and_noninferior", "two_way_bootstrap", "unbalanced_contrast", "unpaired_error", "weighted_kappa",
    "wilson", "win_rate", "win_rate_across_judges",
]  # fmt: skip

"""Whether the gold reward models will tell good responses from bad: what the held-out pairs can show, and an n-gram model in seconds.

A report tests nothing by a gold model whose accuracy on held-out human pairs has an interval that includes one half.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from apo_bench.analysis.results import POOLED
from apo_bench.config.schema import Experiment, is_frozen
from apo_bench.data.task import Task
from apo_bench.errors import InputError
from apo_bench.evaluation.context import FLOOR
from apo_bench.models.ngram import NgramRewardModel
from apo_bench.stats import clustered_share
from apo_bench.types import Pair, identity

MOST_PAIRS = 2000  # gold pairs of an axis that the n-gram model is fitted to
DOUBTFUL = 0.6  # an accuracy that reward models on human pairs often stay below


@dataclass(frozen=True)
class GoldForecast:
    """Of an axis: gold pairs, held-out pairs, the accuracy that these tell from one half, and an n-gram model's with its 95 % interval.

    What is told from one half follows from how alike the n-gram model's pairs of a cluster are, else from the number of pairs. NaN: fewer
    than two clusters, or no n-gram model.
    """

    axis: str
    n_gold: int
    n_held_out: int
    detectable: float
    accuracy: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def interval(self) -> str:
        return f"{self.accuracy:.2f} ({self.low:.2f} to {self.high:.2f})"


def detectable_accuracy(share: float, low: float, high: float) -> float:
    """The share above which an interval as wide as this one of another share leaves out one half.

    Ends of `clustered_share` are the p with (share - p)^2 = c p (1 - p), so it is 1/2 + sqrt(c) / 2. NaN where there is no interval.
    """
    end = low if low > 0 else high
    return min(1.0, 0.5 + abs(share - end) / (2 * math.sqrt(end * (1 - end)))) if 0 < end < 1 else math.nan


def of_independent_pairs(n: int, n_clusters: int, confidence: float = 0.95) -> float:
    """As `detectable_accuracy` for n pairs that are right or wrong each by itself: the best that they can tell. NaN for one cluster."""
    return min(1.0, 0.5 + float(stdtrit(n_clusters - 1, (1 + confidence) / 2)) / (2 * math.sqrt(n))) if n_clusters > 1 else math.nan


def forecast(experiment: Experiment, task: Task) -> list[GoldForecast]:
    """One for each axis that the scorer is tested on; none where that is no gold model."""
    golds, compare, limit = experiment.models.gold, experiment.compare, experiment.evaluation.diagnostic_pairs
    gold = next((gold for gold in golds if compare.scorer in ("gold", gold.name)), None)
    if gold is None:
        return []
    pairs = sorted(task.pairs["test"], key=lambda pair: identity("diagnostic", pair.id))[:limit]  # as the evaluation chooses them
    tested = dict.fromkeys(axis for name in compare.axes for axis in (task.axes if name == POOLED else (name,)))
    fits = not is_frozen(gold.model)
    return [_forecast(axis, _of(axis, task.pairs["gold"]), _of(axis, pairs), fits) for axis in tested]


def _of(axis: str, pairs: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in pairs if pair.prompt.axis == axis]


def _forecast(axis: str, gold: Sequence[Pair], held_out: Sequence[Pair], fits: bool) -> GoldForecast:
    clusters = [pair.prompt.cluster_id for pair in held_out]
    known = GoldForecast(axis, len(gold), len(held_out), of_independent_pairs(len(held_out), len(set(clusters))))
    if not fits or len(set(clusters)) < 2:
        return known
    try:
        chosen = sorted(gold, key=lambda pair: identity("forecast", pair.id))[:MOST_PAIRS]
        model = NgramRewardModel.fit(chosen, None, FLOOR, None)
    except InputError:  # no n-grams at all
        return known
    chosen_scores, rejected_scores = (
        np.array(model.score([(pair.prompt, getattr(pair, side)) for pair in held_out])) for side in ("chosen", "rejected")
    )
    margins = chosen_scores - rejected_scores
    accuracy, low, high, _ = clustered_share((margins > 0) + 0.5 * (margins == 0), clusters)
    return GoldForecast(axis, known.n_gold, known.n_held_out, detectable_accuracy(accuracy, low, high), accuracy, low, high)


def warnings(forecasts: Sequence[GoldForecast]) -> Iterator[str]:
    """A line for each reason to expect an uninformative gold."""
    for each in forecasts:
        if not each.detectable <= DOUBTFUL:
            reached = "no accuracy" if math.isnan(each.detectable) else f"only an accuracy above {each.detectable:.2f}"
            yield (
                f"models.gold: on {each.axis} {each.n_held_out} held-out pairs tell {reached} from one half; otherwise gold is "
                "uninformative there, and nothing is tested"
            )
        if each.low <= 0.5:
            yield (
                f"models.gold: on {each.axis} an n-gram model of {min(each.n_gold, MOST_PAIRS)} gold pairs has an accuracy of "
                f"{each.interval}: gold may be uninformative there, and then nothing is tested"
            )


def sentences(forecasts: Sequence[GoldForecast]) -> Iterator[str]:
    """What is expected of gold on each axis."""
    for each in forecasts:
        reached = "none" if math.isnan(each.detectable) else f"one above {each.detectable:.2f}"
        ngram = "" if math.isnan(each.accuracy) else f" An n-gram model of its {each.n_gold} gold pairs has {each.interval}."
        yield f"Gold on {each.axis}: {each.n_held_out} held-out pairs tell {reached} from an accuracy of one half.{ngram}"
    if any(each.low <= 0.5 or not each.detectable <= DOUBTFUL for each in forecasts):
        yield "A gold model whose accuracy cannot be told from one half is uninformative, and nothing is tested by it."

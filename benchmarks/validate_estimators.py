"""Do the intervals of shares, agreement, families of arms, sequences and contrasts with missing rows cover what they should?

    OMP_NUM_THREADS=1 python benchmarks/validate_estimators.py --only kappas

Simulates samples of known truth, and counts how often the 95 % intervals of `apo_bench.stats` hold it. Writes
results/validation/estimators.csv: a row a cell, with the share that each interval covers and its mean width. The same --seed
gives the same file; --only replaces the rows of one study. About twenty minutes on one core.
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from apo_bench.stats import (
    RaterAgreement,
    agreement,
    clustered_mean,
    clustered_share,
    gwet_ac1,
    krippendorff_alpha,
    meta_analysis,
    prediction_powered_win_rate,
    share_test,
    weighted_kappa,
)
from apo_bench.stats.anytime_valid import half_width
from apo_bench.stats.meta_analysis import Tau
from apo_bench.stats.random_judges import across_judges_of
from apo_bench.stats.score_layout import Layout
from apo_bench.stats.simultaneous_contrasts import arm_covariances, contrast_matrix, least_p_values, pointwise_alpha
from apo_bench.stats.two_way_random_effects import TwoWayError, estimate_difference, mean_test_of, paired_error
from apo_bench.stats.unbalanced_designs import estimate_unbalanced

OUT = Path(__file__).resolve().parents[1] / "results" / "validation"
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2_000, help="samples a cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", choices=list(STUDIES))
    arguments = parser.parse_args()
    path, names = arguments.out / "estimators.csv", [arguments.only] if arguments.only else list(STUDIES)
    rows = pd.DataFrame([row for name in names for row in STUDIES[name](np.random.default_rng(arguments.seed), arguments.samples)])
    if arguments.only and path.exists():
        old = pd.read_csv(path)
        rows = pd.concat([old[old["study"] != arguments.only], rows])
    rows.to_csv(path, index=False, float_format="%.4g", lineterminator="\n")


def covered(study: str, cell: str, method: str, ends: list[tuple[float, float]], truth: float) -> Row:
    """Coverage and mean width of the intervals that exist."""
    low, high = np.array(ends).T
    known = ~np.isnan(low)
    inside = (low <= truth) & (truth <= high)
    return {
        "study": study, "cell": cell, "method": method, "samples": int(known.sum()),
        "coverage": float(inside[known].mean()), "width": float((high - low)[known].mean()),
    }  # fmt: skip


def ties(rng: np.random.Generator, samples: int) -> Iterator[Row]:
    """Independent preferences of 0, 1/2 and 1."""
    for n, (win, tie) in product((10, 30, 50, 200), ((0.98, 0.02), (0.95, 0.04), (0.9, 0.1), (0.7, 0.28), (0.3, 0.4))):
        draws = rng.choice([1.0, 0.5, 0.0], (samples, n), p=[win, tie, max(0.0, 1 - win - tie)])
        for method, function in (("share", clustered_share), ("t", clustered_mean)):
            ends = [function(values, range(n))[1:3] for values in draws]
            yield covered("ties", f"{n} items, {win:g} won, {tie:g} tied", method, ends, win + tie / 2)


def clusters(rng: np.random.Generator, samples: int) -> Iterator[Row]:
    """Beta-binomial clusters."""
    for n, size, share, correlation in product((10, 20, 50), (3, 20), (0.5, 0.9, 0.97), (0.05, 0.5)):
        spread, codes = 1 / correlation - 1, np.repeat(np.arange(n), size)
        chances = rng.beta(share * spread, (1 - share) * spread, (samples, n))
        draws = rng.random((samples, n * size)) < np.repeat(chances, size, axis=1)
        for method, function in (("share", clustered_share), ("t", clustered_mean)):
            ends = [function(values, codes)[1:3] for values in draws]
            yield covered("clusters", f"{n} clusters of {size}, share {share:g}, correlation {correlation:g}", method, ends, share)


def seeds(rng: np.random.Generator, samples: int) -> Iterator[Row]:
    """Seeds and prompts with normal effects on the logit; verdicts in both orders."""
    for n_seeds, n_prompts, share, sd in product((1, 3, 5, 10), (20, 100), (0.5, 0.8, 0.95, 0.98), (0.0, 0.5)):
        sd_seeds = sd if n_seeds > 1 else 0.0
        base = np.log(share / (1 - share))
        truth = float((1 / (1 + np.exp(-base - np.hypot(sd_seeds, 1) * rng.standard_normal(1_000_000)))).mean())
        ends = []
        for _ in range(samples // 4):
            logit = base + sd_seeds * rng.standard_normal((n_seeds, 1)) + rng.standard_normal(n_prompts)
            tested = share_test(rng.binomial(2, 1 / (1 + np.exp(-logit))) / 2)
            ends.append((tested.ci_low, tested.ci_high))
        yield covered("seeds", f"{n_seeds} seeds, {n_prompts} prompts, share {truth:.3f}, seed SD {sd_seeds:g}", "share", ends, truth)


def kappas(rng: np.random.Generator, samples: int) -> Iterator[Row]:
    """b has a's label with probability kappa and draws one as a does otherwise: Cohen's kappa is that probability."""
    for n, shares, kappa in product((30, 100), ([0.5, 0.5], [0.8, 0.2], [0.9, 0.1], [0.5, 0.3, 0.2]), (0.0, 0.2, 0.6, 0.9)):
        ends, wald = [], []
        for _ in range(samples // 4):
            a, other = (rng.choice(len(shares), n, p=shares) for _ in range(2))
            result = agreement(a, np.where(rng.random(n) < kappa, a, other))
            ends.append((result.ci_low, result.ci_high))
            half = 1.959964 * result.standard_error
            wald.append((result.kappa - half, result.kappa + half))
        for method, intervals in (("4 added", ends), ("Wald", wald)):
            yield covered("kappas", f"{n} items, labels {'/'.join(map(str, shares))}, kappa {kappa:g}", method, intervals, kappa)


def missing(rng: np.random.Generator, samples: int) -> Iterator[Row]:
    """Differences of seeds x clusters with holes: at random, or more of them where seed and cluster are good. The truth is 0."""
    whole = "complete cases"
    for paired, n_seeds, n_clusters, (seed, cluster, rest), how in product(
        (True, False), (3, 5, 10), (30, 100), ((0.0, 0.3, 0.7), (0.3, 0.3, 0.4)), ("10 % at random", "30 % at random", "20 % by effect")
    ):
        ends: dict[str, list[tuple[float, float]]] = {"all rows": [], whole: []}
        for _ in range(samples // 4):
            sides = []
            for _ in range(1 if paired else 2):
                good_seed, good_cluster = rng.normal(size=(n_seeds, 1)), rng.normal(size=n_clusters)
                side = seed**0.5 * good_seed + (cluster if paired else cluster / 2) ** 0.5 * good_cluster
                side = side + rest**0.5 * rng.normal(size=side.shape)
                share = 0.2 + 0.1 * np.sign(good_seed) * (seed > 0) + 0.1 * np.sign(good_cluster) if "effect" in how else int(how[:2]) / 100
                side[rng.random(side.shape) < share] = np.nan
                sides.append(side)
            full = ~np.isnan(np.concatenate(sides)).any(0)
            some = np.all([~np.isnan(side).all(0) for side in sides], axis=0)
            for method, kept in (("all rows", some), (whole, full)):
                if kept.sum() < 3:
                    continue
                first, second = sides[0][:, kept], 0 * sides[0][:, kept] if paired else sides[1][:, kept]
                layout = Layout(first, second, paired, (first, second), np.full(kept.sum(), 1 / kept.sum()), 0)
                tested = mean_test_of(estimate_unbalanced(layout, "missing"), 0.95)
                ends[method].append((tested.ci_low, tested.ci_high))
        cell = f"{'paired' if paired else 'unpaired'}, {n_seeds} seeds, {n_clusters} clusters, seeds' variance {seed:g}, {how}"
        for method, intervals in ends.items():
            if intervals:
                yield covered("missing", cell, method, intervals, 0.0)


def labels(rng: np.random.Generator, samples: int) -> Iterator[Row]:
    """A judge's verdicts on everything, labels on a random part; clusters of questions and seeds with normal effects on the logit."""
    for (n, n_labelled, size, n_seeds), accuracy, share in product(
        ((500, 60, 1, 0), (500, 100, 5, 0), (1000, 200, 1, 5)), (0.5, 0.9), (0.6, 0.95)
    ):
        sds = 0.8 * (size > 1 or n_seeds > 0), 0.3 * (n_seeds > 0)
        base = np.log(share / (1 - share))
        truth = float((1 / (1 + np.exp(-base - np.hypot(*sds) * rng.standard_normal(1_000_000)))).mean())
        seed = np.repeat(np.arange(max(n_seeds, 1)), n // max(n_seeds, 1))
        cluster = np.tile(np.arange(n // max(n_seeds, 1)) // size, max(n_seeds, 1))
        ends: dict[str, list[tuple[float, float]]] = {"powered": [], "labels alone": []}
        for _ in range(samples // 8):
            logit = base + sds[0] * rng.standard_normal(cluster.max() + 1)[cluster] + sds[1] * rng.standard_normal(seed.max() + 1)[seed]
            won = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(float)
            judge = np.where(rng.random(n) < accuracy, won, 1 - won)
            label = np.where(rng.permutation(n) < n_labelled, won, np.nan)
            rows = pd.DataFrame({"judge": judge, "label": label, "cluster_id": cluster} | ({"seed": seed} if n_seeds else {}))
            result = prediction_powered_win_rate(rows)
            ends["powered"].append((result.ci_low, result.ci_high))
            ends["labels alone"].append((result.labels_low, result.labels_high))
        cell = f"{n_labelled} labels of {n}, clusters of {size}, {n_seeds or 1} seeds, judge right in {accuracy:g}, share {truth:.3f}"
        for method, intervals in ends.items():
            yield covered("labels", cell, method, intervals, truth)


def families(rng: np.random.Generator, samples: int) -> Iterator[Row]:
    """Arms that are all alike, paired by seed, the first with twice the others' SD or not: do all intervals of a family hold 0 at once?"""
    for (n_seeds, n_clusters), n_arms, (seed, cluster), first_sd, kind in product(
        ((3, 30), (3, 100), (5, 30), (5, 100), (10, 100)), (4, 8), ((0.0, 0.3), (0.4, 0.2)), (1.0, 2.0), ("reference", "all pairs")
    ):
        pairs = list(combinations(range(n_arms), 2)) if kind == "all pairs" else [(arm, 0) for arm in range(1, n_arms)]
        signs, hold = contrast_matrix(pairs, n_arms), {"simultaneous": [], "Bonferroni": [], "each alone": []}
        widths: dict[str, list[float]] = {method: [] for method in hold}
        for _ in range(samples // 10):
            values = seed**0.5 * rng.normal(size=(n_arms, n_seeds, 1)) + cluster**0.5 * rng.normal(size=(n_arms, 1, n_clusters))
            values = values + (1 - seed - cluster) ** 0.5 * rng.normal(size=(n_arms, n_seeds, n_clusters))
            values[0] *= first_sd
            estimates = [estimate_difference(paired_layout(values[a], values[b]), "families") for a, b in pairs]
            minima = least_p_values(estimates, signs, arm_covariances(values, paired=True), 2_000, rng)
            errors = TwoWayError(*(np.array([getattr(x.error, name) for x in estimates]) for name in TwoWayError.__dataclass_fields__))
            p_value = errors.p_value(np.array([x.mean for x in estimates])).min()
            level = pointwise_alpha(minima, estimates, 0.05)[0]
            for method, alpha in (("simultaneous", level), ("Bonferroni", 0.05 / len(pairs)), ("each alone", 0.05)):
                hold[method].append(p_value > alpha)
                widths[method].append(float(2 * (errors.quantile(1 - alpha / 2) * np.sqrt(errors.variance)).mean()))
        cell = f"{n_arms} arms, {kind}, {n_seeds} seeds, {n_clusters} clusters, seeds' variance {seed:g}, first arm's SD {first_sd:g}"
        for method, results in hold.items():
            yield {
                "study": "families", "cell": cell, "method": method, "samples": len(results),
                "coverage": float(np.mean(results)), "width": float(np.mean(widths[method])),
            }  # fmt: skip


def raters(rng: np.random.Generator, samples: int) -> Iterator[Row]:
    """Four grades by three raters, of whom each leaves out a fifth: a rater grades the item's own grade, blurred, or guesses."""

    def draw(n: int, shares: list[float], noise: float) -> np.ndarray:
        truth = rng.choice(4, n, p=shares)
        blurred = np.clip(truth[:, None] + rng.choice([-1, 0, 0, 1], (n, 3)), 0, 3)
        return np.where(rng.random((n, 3)) < noise, rng.choice(4, (n, 3), p=shares), blurred).astype(float)

    def estimates(grades: np.ndarray) -> dict[str, RaterAgreement]:
        places = np.argwhere(~np.isnan(grades))
        rows = pd.DataFrame({"item": places[:, 0], "rater": places[:, 1], "label": grades[tuple(places.T)]})
        return {
            "alpha, nominal": krippendorff_alpha(rows), "alpha, ordinal": krippendorff_alpha(rows, level="ordinal"),
            "AC1": gwet_ac1(rows), "kappa, quadratic": weighted_kappa(grades[:, 0], grades[:, 1], weights="quadratic", order=range(4)),
        }  # fmt: skip

    for n, shares, noise in product((30, 100), ([0.25] * 4, [0.7, 0.1, 0.1, 0.1]), (0.1, 0.6)):
        truths = [estimates(draw(500, shares, noise)) for _ in range(100)]  # no jackknife of 50,000 items
        ends: dict[str, list[tuple[float, float]]] = {method: [] for method in truths[0]}
        for _ in range(samples // 10):
            grades = draw(n, shares, noise)
            grades[rng.random(grades.shape) < 0.2] = np.nan
            for method, result in estimates(grades).items():
                ends[method].append((result.ci_low, result.ci_high))
        for method, intervals in ends.items():
            truth = float(np.mean([result[method].coefficient for result in truths]))
            yield covered("raters", f"{n} items, labels {'/'.join(map(str, shares))}, noise {noise:g}", method, intervals, truth)


def sequences(rng: np.random.Generator, samples: int) -> Iterator[Row]:
    """Differences without an effect, looked at after every seed from the fourth to the twentieth: does every look's interval hold 0?"""
    for n_clusters, (seed, cluster) in product((30, 100), ((0.0, 0.3), (0.1, 0.2), (0.4, 0.2))):
        hold: dict[str, list[bool]] = {"anytime": [], "fixed": []}
        for _ in range(samples // 2):
            values = seed**0.5 * rng.normal(size=(20, 1)) + cluster**0.5 * rng.normal(size=n_clusters)
            values = values + (1 - seed - cluster) ** 0.5 * rng.normal(size=values.shape)
            some = [values[:n] for n in range(4, 21)]
            hold["anytime"].append(all(abs(x.mean()) <= half_width(x, 0.05) for x in some))
            hold["fixed"].append(all(paired_error(x).p_value(x.mean()) > 0.05 for x in some))
        for method, results in hold.items():
            cell = f"20 seeds, {n_clusters} clusters, seeds' variance {seed:g}"
            yield {"study": "sequences", "cell": cell, "method": method, "samples": len(results), "coverage": float(np.mean(results))}


def judges(rng: np.random.Generator, samples: int) -> Iterator[Row]:
    """Judges, seeds and clusters with normal effects and interactions: does the interval hold the mean over all judges there are?

    The judges' SD is in units of the rest's, which is 1; judges by clusters half of it in variance. Of win rates the effects are on the
    logit, and each comparison is asked in both orders.
    """
    for kind, n_judges, n_seeds, n_clusters, sd in product(("mean", "win rate"), (2, 3, 5, 10), (1, 5), (50,), (0.0, 0.2, 0.6)):
        base, sd_seeds = 1.0, 0.2 * (n_seeds > 1)
        spread = float(np.sqrt(sd**2 + sd_seeds**2 + 0.5**2 + sd**2 / 2))
        truth = 0.0 if kind == "mean" else float((1 / (1 + np.exp(-base - spread * rng.standard_normal(1_000_000)))).mean())
        ends: dict[str, list[tuple[float, float]]] = {"judges random": [], "these judges": []}
        for _ in range(samples // 8):
            shape = (n_judges, n_seeds, n_clusters)
            values = sd * rng.normal(size=(n_judges, 1, 1)) + sd_seeds * rng.normal(size=(n_seeds, 1)) + 0.5 * rng.normal(size=n_clusters)
            values = values + sd / 2**0.5 * rng.normal(size=(n_judges, 1, n_clusters)) + np.zeros(shape)
            if kind == "mean":
                values = values + rng.normal(size=shape)
            else:
                values = rng.binomial(2, 1 / (1 + np.exp(-base - values))) / 2
            result = across_judges_of(values, 0.5 * (kind != "mean"), is_share=kind != "mean")
            ends["judges random"].append((result.ci_low, result.ci_high))
            ends["these judges"].append((result.these_low, result.these_high))
        for method, intervals in ends.items():
            cell = f"{kind}, {n_judges} judges, {n_seeds} seeds, {n_clusters} clusters, judges' SD {sd:g}"
            yield covered("judges", cell, method, intervals, truth)


def experiments(rng: np.random.Generator, samples: int) -> Iterator[Row]:
    """Differences of experiments whose standard errors, 0.3 to 1, are themselves estimates: by so many degrees of freedom."""
    for n, tau, df in product((3, 6, 12), (0.0, 0.5, 2.0), (2, 4, 30)):
        ends: dict[Tau, list[tuple[float, float]]] = {"paule_mandel": [], "reml": []}
        for _ in range(samples // 4):
            errors = rng.uniform(0.3, 1, size=n)
            differences, estimated = tau * rng.normal(size=n) + errors * rng.normal(size=n), errors * (rng.chisquare(df, n) / df) ** 0.5
            for method, intervals in ends.items():
                result = meta_analysis(differences, estimated, tau=method)
                intervals.append((result.ci_low, result.ci_high))
        for method, intervals in ends.items():
            yield covered("experiments", f"{n} experiments, tau {tau:g}, errors of {df} degrees of freedom", method, intervals, 0.0)


def paired_layout(first: np.ndarray, second: np.ndarray) -> Layout:
    """Of arms (S, P) without holes, every prompt its own cluster."""
    return Layout(first, second, True, (first, second), np.full(first.shape[1], 1 / first.shape[1]), 0)


STUDIES: dict[str, Callable[[np.random.Generator, int], Iterator[Row]]] = {
    "ties": ties, "clusters": clusters, "seeds": seeds, "kappas": kappas, "missing": missing, "labels": labels,
    "families": families, "raters": raters, "sequences": sequences, "judges": judges, "experiments": experiments,
}  # fmt: skip


if __name__ == "__main__":
    main()

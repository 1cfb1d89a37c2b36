"""Speed of the two-way bootstrap. python benchmarks/two_way_bootstrap_speed.py [--draws 10000] [--prompts 4664]

12 arms x 5 seeds x 4,664 prompts of synthetic scores: all 11 contrasts against one arm with 10,000 draws of `two_way_bootstrap`, next to
a plain loop over pandas resamples (rows of the drawn seeds and prompts joined, then averaged) and a lean one, both timed on a few draws
of one contrast in the same process and extrapolated. Targets: 10 s or less on two cores, at least 20 times faster, under 1 GB.
"""

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from apo_bench.stats import two_way_bootstrap

ARMS, SEEDS = 12, 5


def synthetic_scores(prompts: int, seed: int = 0) -> pd.DataFrame:
    """A long frame of ARMS arms; the seeds of all arms are paired, each prompt is its own cluster."""
    rng = np.random.default_rng(seed)
    shape = (ARMS, SEEDS, prompts)
    values = rng.normal(size=shape) + 0.3 * rng.normal(size=(ARMS, SEEDS, 1)) + rng.normal(size=(1, 1, prompts))
    arm, seed_label, prompt = (axis.ravel() for axis in np.indices(shape))
    names = np.array([f"arm{i:02d}" for i in range(ARMS)])
    return pd.DataFrame({"arm": names[arm], "seed": seed_label, "prompt_id": prompt, "value": values.ravel()})


def plain_loop(scores: pd.DataFrame, a: str, b: str, draws: int, seed: int = 0) -> list[float]:
    """Differences of two arms' means, the rows of drawn seeds and prompts joined from the long frame at every draw."""
    rng, rows, differences = np.random.default_rng(seed), scores[scores["arm"].isin([a, b])], []
    seeds, prompts = rows["seed"].unique(), rows["prompt_id"].unique()
    for _ in range(draws):
        some = {name: rng.choice(labels, len(labels)) for name, labels in (("seed", seeds), ("prompt_id", prompts))}
        drawn = rows.merge(pd.DataFrame({"seed": some["seed"]})).merge(pd.DataFrame({"prompt_id": some["prompt_id"]}))
        means = drawn.groupby("arm")["value"].mean()
        differences.append(float(means[a] - means[b]))
    return differences


def lean_loop(scores: pd.DataFrame, a: str, b: str, draws: int, seed: int = 0) -> list[float]:
    """The same, as lean as pandas gets: one table of differences, prompts x seeds, whose rows and columns are sampled."""
    rng = np.random.default_rng(seed)
    arms = (scores[scores["arm"] == arm].pivot(index="prompt_id", columns="seed", values="value") for arm in (a, b))
    difference = next(arms) - next(arms)
    again = (difference.sample(frac=1, replace=True, random_state=rng) for _ in range(draws))
    return [float(resample.sample(frac=1, replace=True, axis=1, random_state=rng).to_numpy().mean()) for resample in again]


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds and CPU seconds."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4_664)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--loop-draws", type=int, default=100, help="draws of the loops that are timed")
    arguments = parser.parse_args()
    scores = synthetic_scores(arguments.prompts)
    reference, *others = sorted(scores["arm"].unique())
    work = f"{len(others)} contrasts, {arguments.draws:,} draws each"
    print(f"{ARMS} arms x {SEEDS} seeds x {arguments.prompts:,} prompts: {len(scores):,} rows; {work}")

    ours = timed(lambda: [two_way_bootstrap(scores, arm, reference, draws=arguments.draws, seed=0) for arm in others])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{'two_way_bootstrap':18} {ours[0]:8.1f} s, CPU {ours[1]:8.1f} s; peak memory {peak:.0f} MiB")
    times = arguments.draws * len(others) / arguments.loop_draws
    for name, loop in (("plain pandas loop", plain_loop), ("lean pandas loop", lean_loop)):
        clock, cpu = (times * seconds for seconds in timed(lambda loop=loop: loop(scores, others[0], reference, arguments.loop_draws)))
        ratios = f"{clock / ours[0]:.0f} times as long by the clock, {cpu / ours[1]:.0f} times the CPU"
        print(f"{name:18} {clock:8.1f} s, CPU {cpu:8.1f} s; {ratios} (extrapolated from {arguments.loop_draws} draws of one contrast)")


if __name__ == "__main__":
    main()

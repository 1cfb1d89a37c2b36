"""The planned FLOPs that one more arm adds to a run, relative to a run of that arm alone, gold models and evaluation included.

    python benchmarks/marginal_arm_cost.py [--experiment experiments/quickstart.yaml]

For each arm, plans all arms, all but it, and it alone (without controls and judges), and prints the ratio of its marginal cost to its cost
alone; evaluation, gold models and the warm-up of the initial policy count in both.
"""

import argparse
from pathlib import Path

from apo_bench.plan.accounts import BENCH
from apo_bench.plan.make_plan import plan
from apo_bench.run.experiment import resolve_experiment


def flops(path: Path, arms: list[str]) -> float:
    """The FLOPs of a run of these arms: the marginal cost of each, and evaluation."""
    resolved = resolve_experiment(path, {"controls": {}, "judges": {}})
    experiment, task = resolved.experiment, resolved.task
    pair = {"a": arms[0], "b": arms[-1]}
    chosen = {name: experiment.arms[name] for name in arms}
    compare = experiment.compare.model_copy(
        update={"primary": (type(experiment.compare.primary[0])(**pair),), "secondary": (), "curves": {}}
    )
    projection = plan(experiment.model_copy(update={"arms": chosen, "compare": compare}), task, base=path.parent)
    ledger = projection.ledger[(projection.ledger["unit"] == "flops") & projection.ledger["arm"].isin([*arms, BENCH])]
    return float(ledger["marginal"].sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=Path(__file__).parents[1] / "experiments" / "quickstart.yaml")
    path = parser.parse_args().experiment.resolve()
    arms = list(resolve_experiment(path).experiment.arms)
    everything = flops(path, arms)
    for arm in arms:
        added = everything - flops(path, [other for other in arms if other != arm])
        print(f"{arm}: adds {added / flops(path, [arm]):.2f} of what it takes alone", flush=True)


if __name__ == "__main__":
    main()

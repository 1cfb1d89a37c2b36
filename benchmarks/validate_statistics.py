"""Do the tests of `apo_bench.stats` keep their level?

    OMP_NUM_THREADS=1 python benchmarks/validate_statistics.py --run results/aa_calibration

Simulates scores of arms that do not differ, and of arms that differ by a known amount, and counts how often `contrast`,
`two_way_bootstrap` and the tests people make instead are wrong. With --run, also splits the seeds of a finished run (of
experiments/aa_calibration.yaml) into halves that differ in nothing but their seeds. Writes validation.md and its tables as csv.
The same --seed gives the same files, byte for byte. About ten minutes on one core, under 1 GB.
"""

import argparse
import sys
import time
from pathlib import Path

import pandas as pd
from validation import rejection_rates
from validation.end_to_end import end_to_end
from validation.validation_page import Settings, Tables, page

OUT = Path(__file__).resolve().parents[1] / "results" / "validation"
FULLY_COMPARED = ("grid", "unequal")  # groups of cells on which the other tests are made too


def main() -> None:
    arguments = _arguments()
    counts = Settings(arguments.nulls, arguments.bootstrap_nulls, arguments.draws, arguments.splits, arguments.seed, arguments.run)
    tables = measure(counts)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.files().items():
        table.to_csv(arguments.out / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")
    (arguments.out / "validation.md").write_text(page(tables, counts), encoding="utf-8")
    _log(arguments.out / "validation.md")


def measure(counts: Settings) -> Tables:
    n, seed = counts.nulls, counts.seed
    grid, rates = rejection_rates.grid(), []
    for group, cells in rejection_rates.GROUPS.items():
        rates.append(rejection_rates.null_rates(group, cells(), n, seed, wrong=group in FULLY_COMPARED))
        _log(f"nulls: {group}")
    if counts.bootstrap_nulls:
        for group, cells in (("grid", grid), ("shapes", rejection_rates.bootstrap_shapes())):
            rates.append(rejection_rates.bootstrap_rates(group, cells, counts.bootstrap_nulls, counts.draws, seed))
        _log("nulls: bootstrap")
    tables = Tables(
        nulls=pd.concat(rates, ignore_index=True),
        coverage=rejection_rates.coverage(n, seed),
        families=rejection_rates.families(n, seed),
        powers=rejection_rates.powers(n, seed),
        end_to_end=end_to_end(counts.run, counts.splits, seed) if counts.run else None,
        disagreement=rejection_rates.frame_and_array_disagree(grid, seed),
    )
    _log("coverage, families, power, end to end")
    return tables


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nulls", type=int, default=10_000, help="data sets a cell for the t tests")
    parser.add_argument("--bootstrap-nulls", type=int, default=300, help="data sets a cell for the bootstrap; 0 leaves it out")
    parser.add_argument("--draws", type=int, default=2_000, help="bootstrap draws a data set")
    parser.add_argument("--splits", type=int, default=2_000, help="random splits of a run's seeds, for each arm, scorer and S")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--run", type=Path, help="a finished run folder")
    return parser.parse_args()


def _log(what: object) -> None:
    print(f"{time.process_time():5.0f} s  {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

"""The page of the validation: text, tables in %, and every cell that misses a bound."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from apo_bench.stats.bootstrap import SHAPE_SEEDS
from validation.compared_tests import ALTERNATIVE_TESTS, CONTRAST, RESAMPLED_NULLS, RESAMPLES, SATTERTHWAITE
from validation.markdown_tables import SHARE_NAMES, by_share, filled, markdown, marked, named, of_group, percent_range
from validation.missed_bounds import COLLAPSE, SKEWED_ARM, grouped, scores_of
from validation.rejection_rates import (
    BOOTSTRAP,
    BOUNDED,
    ENOUGH_CLUSTERS,
    INTERVAL,
    LEAST,
    LEVELS,
    MOST,
    PAIRS_IN_FAMILY,
    POWER,
    binomial_error,
)
from validation.simulated_worlds import LARGE_METHOD_SD, SEED_SHARES


@dataclass(frozen=True)
class Settings:
    """The sizes of the simulation."""

    nulls: int
    bootstrap_nulls: int
    draws: int
    splits: int
    seed: int
    run: Path | None = None


@dataclass(frozen=True)
class Tables:
    """The measured rates. `disagreement`: the largest difference between p-values computed from frames and from arrays."""

    nulls: pd.DataFrame
    coverage: pd.DataFrame
    families: pd.DataFrame
    powers: pd.DataFrame
    end_to_end: pd.DataFrame | None
    disagreement: float

    def files(self) -> dict[str, pd.DataFrame]:
        tables = {"nulls": self.nulls, "coverage": self.coverage, "families": self.families, "power": self.powers}
        return tables | ({} if self.end_to_end is None else {"end_to_end": self.end_to_end})

    @property
    def contrast(self) -> pd.DataFrame:
        return self.nulls[self.nulls["test"] == CONTRAST]


def page(tables: Tables, counts: Settings) -> str:
    sections = [
        _head,
        _worlds,
        _grid,
        _misses,
        _few,
        _shapes,
        _unequal,
        _sweep,
        _levels,
        _bootstrap,
        _wrong,
        _coverage,
        _families,
        _power,
        _end_to_end,
    ]
    return "\n\n".join(filled(text) for section in sections if (text := section(tables, counts))) + "\n"


def _head(tables: Tables, counts: Settings) -> str:
    run = f" --run results/{counts.run.name}" if counts.run else ""
    numbers = f"--nulls {counts.nulls} --bootstrap-nulls {counts.bootstrap_nulls} --draws {counts.draws} --seed {counts.seed}"
    misses = pd.concat(
        [tables.nulls.loc[tables.nulls["test"].isin(BOUNDED), "misses"], tables.coverage["misses"], tables.families["misses"]]
    )
    upwards = sum(miss.startswith("above") for miss in misses)
    plain = tables.contrast[(tables.contrast["shape"] == "normal") & (tables.contrast["collapse_depth"] == 0)]
    at = "; ".join(f"at {100 * level:g} %, {percent_range(plain[name], 2 if level < 0.05 else 1)} %" for name, level in LEVELS.items())
    error = 200 * binomial_error(MOST, counts.nulls)
    return f"""# Do the tests keep their word?

    OMP_NUM_THREADS=1 python benchmarks/validate_statistics.py {numbers}{run}

A test at the 5 % level may call two arms different in at most 5 % of the cases in which they are not. Here arms that do not differ are
simulated, {counts.nulls:,} times a cell, and the rejections counted: of `contrast` and `two_way_bootstrap` (`apo_bench.stats`), and of
the tests that people make instead. `nulls.csv`, `coverage.csv`, `families.csv`, `power.csv` and `end_to_end.csv` have every number.
The simulation calls the contrast's array functions; on two data sets of every cell of the grid the public function on a long frame gave
the same p-value (largest difference {tables.disagreement:.0e}).

**Found.** Over {len(plain)} cells with normal scores and at least three seeds and three clusters, the contrast rejects of true nulls:
{at}. Of {PAIRS_IN_FAMILY} pairs, Holm's correction lets at least one through in at most {100 * tables.families["holm"].max():.1f} %.
Most of what people make instead goes far beyond 5 % as soon as seeds vary ([below](#the-tests-people-make-instead)).
{(misses != "").sum()} of {len(misses)} cells (contrast, bootstrap, intervals, families; all kinds of scores) miss a bound, {upwards} of
them upwards; [all are named](#cells-that-miss-a-bound).

**Bounds.** At most {100 * MOST:.0f} % everywhere; at least {100 * LEAST:.0f} % where there are three seeds and {ENOUGH_CLUSTERS} clusters
or more and the seeds' share of the variance is a third or more. A cell is marked (▲ above, ▼ below) where it lies beyond a bound by more
than two binomial standard errors, those of its number of data sets at the bound itself: {error:.2f} points at {100 * MOST:.0f} % and
{counts.nulls:,} data sets."""


def _worlds(_: Tables, _counts: Settings) -> str:
    return f"""## What was simulated

    score[arm, seed, prompt] = difficulty[prompt] + method-by-prompt[arm, cluster] + seed effect[arm, seed] + residual

300 prompts, in clusters of 1 (300 clusters) or 10 (30 clusters); the prompts of a cluster share their method-by-prompt effect. The
residual's SD is 1, difficulty's too; difficulty is common to both arms and cancels. Method-by-prompt SD: 0 or {LARGE_METHOD_SD:g}, each
arm its own effects. The seed SD is set by the **seed share**, the seeds' part of the variance of the mean difference: 0 ("no"),
{SEED_SHARES["small"]:.0%} ("small"), {SEED_SHARES["large"]:.0%} ("large"); `nulls.csv` has the SDs. Arms paired by seed also share a seed
effect, which cancels; arms not paired have seeds of their own."""


def _grid(tables: Tables, _: Settings) -> str:
    return f"""## The contrast

The mean difference over its standard error, sqrt(V), is held against a mixture of two t distributions, one with the seeds' degrees of
freedom and one with the clusters', weighted by their shares of V. Rejections of true nulls in %, nominal 5 %, normal scores; the first
number of a cell with 300 clusters, the second with 30.

{by_share(of_group(tables.contrast, "grid"), ["seeds", "method SD"])}"""


def _misses(tables: Tables, _: Settings) -> str:
    intervals = tables.coverage.assign(test="95 % interval", rejected=1 - tables.coverage["covered"])
    pairs = tables.families.assign(test=f"Holm, {PAIRS_IN_FAMILY} pairs", rejected=tables.families["holm"])
    rows = pd.concat([table[table["misses"] != ""] for table in (tables.nulls, intervals, pairs)])
    near = ((tables.contrast["misses"] == "") & (tables.contrast["rejected"] > MOST)).sum()
    return f"""## Cells that miss a bound

Of the contrast, the bootstrap, the intervals and the families; column `misses` of the csv files marks each cell. A further {near} cells of
the contrast lie above {100 * MOST:.0f} % by less than two standard errors.

{grouped(rows) if len(rows) else "None."}"""


def _few(tables: Tables, _: Settings) -> str:
    table = tables.nulls[tables.nulls["group"] == "few"]
    several, two = (table[table["test"] == name] for name in (CONTRAST, INTERVAL))
    designs = sorted(several["clusters"].unique()), sorted(several["seeds_a"].unique())
    rows = [[str(p), *(_worst(several[(several["clusters"] == p) & (several["seeds_a"] == s)]) for s in designs[1])] for p in designs[0]]
    rests = [
        [str(p), *(_worst(two[(two["clusters"] == p) & (two["seeds_a"] == s)]) for s in (2, *designs[1]))] for p in two["clusters"].unique()
    ]
    return f"""## Few seeds, few clusters

The most rejections in % at 5 % over seed shares of 0 to 99.9 % and method-by-prompt SDs of 0, 1 and 4, clusters of one prompt: paired / not
paired.

{markdown(["clusters", *(f"{s} seeds" for s in designs[1])], rows)}

Two seeds, or two clusters, give an interval and no p-value; they are taken for all of V, which makes it wide where the other side
varies too. The same for how often the 95 % interval leaves out the truth:

{markdown(["clusters", *(f"{s} seeds" for s in (2, *designs[1]))], rests)}"""


def _shapes(tables: Tables, _: Settings) -> str:
    table = of_group(tables.contrast, "shapes").assign(scores=lambda rows: [scores_of(row) for row in rows.to_dict("records")])
    return f"""## Skewed and tied scores

Method-by-prompt SD {LARGE_METHOD_SD:g}; 300 / 30 clusters. "Skewed": residuals, seed and method-by-prompt effects are centred exponentials
(skewness 2) in both arms; "{SKEWED_ARM}": seed and method-by-prompt effects in arm a only, so that no skewness cancels;
"{COLLAPSE}": the seeds' effects are normal in both arms, with one SD, except that arm a's fall by 10 or 30 of these SDs in
one seed of ten, the true mean difference being 0 all the same; "whole numbers": normal scores, rounded, most of them ties; "rare events":
one score in a hundred is 1, the others 0, independent of each other (no seed SD, method-by-prompt SD 0).

{by_share(table, ["scores", "seeds"])}"""


def _unequal(tables: Tables, _: Settings) -> str:
    table = of_group(tables.contrast, "unequal")
    more = (table["seed_sd_a"] > table["seed_sd_b"]).map({True: "4 : 1", False: "1 : 4"})
    return f"""## Not paired, unequal seed SDs

300 clusters, not paired; the seed SD of one arm is four times the other's. Rejections in %, method-by-prompt SD 0 / {LARGE_METHOD_SD:g}.

{by_share(table.assign(**{"seed SDs, a : b": more}), ["seeds", "seed SDs, a : b"])}"""


def _sweep(tables: Tables, _: Settings) -> str:
    table = of_group(tables.contrast, "sweep")
    cells = {(row["seeds"], row["pairing"], row["seed_share"]): marked(row) for row in table.to_dict("records")}
    shares, designs = sorted(table["seed_share"].unique()), dict.fromkeys(key[:2] for key in cells)
    rows = [[*design, *(cells[*design, share] for share in shares)] for design in designs]
    text = f"300 clusters, method-by-prompt SD {LARGE_METHOD_SD:g}. Rejections in %, by seed share."
    return f"## Few seeds, seed shares between\n\n{text}\n\n{markdown(['seeds', 'pairing', *(f'{share:.0%}' for share in shares)], rows)}"


def _levels(tables: Tables, counts: Settings) -> str:
    table = tables.nulls[(tables.nulls["shape"] == "normal") & (tables.nulls["collapse_depth"] == 0)]
    both = pd.concat([of_group(table[table["test"].isin([CONTRAST, SATTERTHWAITE])], group) for group in table["group"].unique()])
    both["seeds"] = both["seeds"].where(both["group"] != "few", "3 to 20, on 3 to 10 clusters")
    rows = []
    for design, part in both.groupby(["seeds", "pairing"], sort=False):
        most = [f"{100 * part.loc[part['test'] == test, name].max():.2f}" for test in (CONTRAST, SATTERTHWAITE) for name in LEVELS]
        rows.append([*map(str, design), *most])
    at = [f"{100 * level:g} %" for level in LEVELS.values()]
    errors = " and ".join(f"{200 * binomial_error(level, counts.nulls):.2f} points at {100 * level:g} %" for level in (0.01, 0.001))
    headers = [
        "seeds",
        "pairing",
        *(f"contrast at {level_name}" for level_name in at),
        *(f"Satterthwaite at {level_name}" for level_name in at),
    ]
    return f"""## Smaller levels

What a p-value of 0.01 or 0.001 is worth, and what a correction for many pairs builds on: the most rejections in % over all normal cells,
of the contrast and of the same variance with one t distribution of Satterthwaite's degrees of freedom, the textbook's way. Where few
seeds happen to lie close together, their share comes out small and those degrees of freedom too many, at small levels above all: that is
why it was not taken. Two standard errors of one cell: {errors}; the most of many cells lies beyond by chance.

{markdown(headers, rows)}"""


def _bootstrap(tables: Tables, counts: Settings) -> str:
    table = tables.nulls[tables.nulls["test"] == BOOTSTRAP]
    if table.empty:
        return ""
    shapes = of_group(table, "shapes").assign(scores=lambda rows: [scores_of(row) for row in rows.to_dict("records")])
    return f"""## The two-way bootstrap

Fewer than {SHAPE_SEEDS} seeds drawn again show no shape: interval and p-value are then the contrast's. From {SHAPE_SEEDS} on:
{counts.bootstrap_nulls} data sets a cell, {counts.draws:,} draws each, the public function. Rejections in %, 300 / 30 clusters; two
standard errors are {200 * binomial_error(MOST, counts.bootstrap_nulls):.1f} points, so a single cell says little. All cells together:
{100 * table["rejected"].mean():.1f} %. Interval and p-value are never bolder than the contrast's.

{by_share(of_group(table, "grid"), ["seeds", "method SD"])}

On the skewed scores and rare events [of above](#skewed-and-tied-scores):

{by_share(shapes, ["scores", "seeds"])}"""


def _wrong(tables: Tables, _: Settings) -> str:
    table = tables.nulls[tables.nulls["group"].isin(["grid", "unequal"]) & (tables.nulls["test"] != BOOTSTRAP)]
    rows = []
    for test in [CONTRAST, SATTERTHWAITE, *(alternative.label for alternative in ALTERNATIVE_TESTS)]:
        part = table[table["test"] == test]
        by_share = [part[part["seed_share"] == share] for share in SEED_SHARES.values()]
        rows.append(
            [
                test,
                *(percent_range(share_rows["rejected"]) for share_rows in by_share),
                f"{(part['rejected'] > MOST).mean():.0%} of {len(part)}",
            ]
        )
    headers = ["test", *SHARE_NAMES.values(), f"cells above {100 * MOST:.0f} %"]
    return f"""## The tests people make instead

Rejections of true nulls in %, nominal 5 %, from the least to the most over the cells of the grid and of the unequal seed SDs, normal
scores; {RESAMPLED_NULLS:,} data sets a cell (the first two rows': all), {RESAMPLES:,} resamples each. Where prompts come in clusters, "over
prompts" is over cluster means: the mistake is not made twice.

{markdown(headers, rows)}

- *Permutation within (seed, prompt)* swaps the arms' answers, so it asks whether these two sets of checkpoints differ. They do: each seed
  gave another policy. So do the *t test* and the *bootstrap over prompts* of scores averaged over seeds, which see no seed at all, and the
  *t test over all rows*, which takes the rows of one policy as unrelated.
- *t test over seed means* is right about new seeds on the same prompts. New prompts would give another difference; it does not see that.
- *Percentile bootstrap over seeds and prompts* resamples the right things, but three seeds drawn from three have two thirds of their
  variance, and its interval has the tails of a normal distribution.
- *Plain Satterthwaite df* take the seeds' share as known; a share from two degrees of freedom is a guess ([more](#smaller-levels)).
- *Clusters ignored*: 30 independent things counted as 300. *Pooled df*: two arms' seeds counted as if both varied alike."""


def _coverage(tables: Tables, _: Settings) -> str:
    table = tables.coverage.assign(group="coverage", rejected=lambda rows: rows["covered"])
    return f"""## Coverage where the arms differ

The 95 % interval around a true difference of 0.5. Arm a varies 1.5 times as much as arm b in everything (so difficulty does not cancel)
and its seed SD is twice b's on top. Share of intervals that hold the true difference, in %. The bounds are those of the tests: 94 at least,
96 at most where seeds matter; ▲ where too many intervals miss, ▼ where too few do. 300 / 30 clusters.

{by_share(of_group(table, "coverage"), ["seeds"])}"""


def _families(tables: Tables, counts: Settings) -> str:
    table = of_group(tables.families.assign(group="families"), "families")
    rates = {(row["seeds"], row["pairing"], row["seed_share"]): row for row in table.to_dict("records")}
    shares, rows = sorted(table["seed_share"].unique()), []
    for design in dict.fromkeys(key[:2] for key in rates):
        cells = (rates.get((*design, share)) for share in shares)
        rows.append([*design, *("" if row is None else f"{100 * row['uncorrected']:.1f} / {marked(row, 'holm')}" for row in cells)])
    return f"""## {PAIRS_IN_FAMILY} arms against one

All nulls true, 300 clusters, method-by-prompt SD {LARGE_METHOD_SD:g}, {counts.nulls:,} families: how often (in %) at least one pair is
declared different at 5 %, uncorrected / after Holm's correction.

{markdown(["seeds", "pairing", *(named(share) for share in shares)], rows)}"""


def _power(tables: Tables, counts: Settings) -> str:
    table = of_group(tables.powers.assign(group="power"), "power")
    names, rows = ("simulated", "predicted", "noncentral_t"), []
    for design, part in table.groupby(["seeds_a", "pairing"]):
        by_share = part.sort_values("seed_share").to_dict("records")
        rows.append([*map(str, design), *(" / ".join(f"{100 * share_rows[name]:.1f}" for name in names) for share_rows in by_share)])
    ours, textbook = ((table[name] - table["simulated"]).abs().max() for name in names[1:])
    return f"""## Power

How often a true effect is found (in %, {counts.nulls:,} data sets; 300 clusters, method-by-prompt SD {LARGE_METHOD_SD:g}) / what `power`
promises / the textbook's noncentral t with Satterthwaite's degrees of freedom. Effects are `minimum_detectable_effect` at
{100 * POWER:.0f} %. Farthest from the simulation: `power` {100 * ours:.1f} points, noncentral t {100 * textbook:.1f} points.

{markdown(["seeds", "pairing", *SHARE_NAMES.values()], rows)}"""


def _end_to_end(tables: Tables, counts: Settings) -> str:
    if tables.end_to_end is None or counts.run is None:
        return "## End to end\n\nNot made: needs `--run`, a finished run folder."
    table = tables.end_to_end
    columns = list(dict.fromkeys(zip(table["arm"], table["scorer"], strict=True)))
    records = table.to_dict("records")
    rates = {(cell["test"], cell["arm"], cell["scorer"], cell["seeds"]): 100 * cell["rejected"] for cell in records}
    sizes = sorted(table["seeds"].unique())
    rows = [[test, *(" / ".join(f"{rates[test, *column, s]:.1f}" for s in sizes) for column in columns)] for test in table["test"].unique()]
    n, prompts, clusters = (table[name].iloc[0] for name in ("seeds_run", "prompts", "clusters"))
    own = table[table["test"] == CONTRAST].drop_duplicates(["arm", "scorer"]).to_dict("records")
    spread = "; ".join(f"{row['arm']}, {row['scorer']} {row['seed_sd']:.3g}" for row in own)
    return f"""## End to end

`results/{counts.run.name}`: {n} seeds of an arm, from the experiment file to the scores of its final round ({prompts} prompts in
{clusters} clusters, all axes pooled). {counts.splits:,} random splits into S against S seeds; the halves differ in nothing but their
seeds. Not paired. Rejections in %, S = {", ".join(map(str, sizes))}. The splits are all of the same {n} seeds, so they are not independent
(at S = {sizes[0]} only {n // (2 * sizes[0])} are disjoint), and one run's rate may lie some points off the test's. Prompts and method are
the same in both halves, so there is no method-by-prompt variance, and the contrast is conservative where seeds vary little. SD of the
seed means: {spread}.

{markdown(["test", *(f"{arm}, {scorer}" for arm, scorer in columns)], rows)}"""


def _worst(part: pd.DataFrame) -> str:
    """The most rejections, paired / not paired."""
    if part.empty:
        return ""
    return " / ".join(marked(rows.sort_values("rejected").to_dict("records")[-1]) for _, rows in part.groupby("paired", sort=False))

"""The report's tables for a paper: main table, contrasts, budget and win rates, each a .tex file to be read by \\input.

A file is one table environment and needs booktabs alone. What comes from an experiment or a task (names of arms, axes, judges) is data:
every character that TeX would act upon is escaped, and what pdflatex cannot set is written as its code point, [U+202E].
"""

import math
import unicodedata
from collections.abc import Mapping, Sequence

import pandas as pd

from apo_bench.analysis.contrasts import MATCHED_KL
from apo_bench.analysis.results import POOLED, Run, exclude_failed, seed_means
from apo_bench.config.schema import Unit
from apo_bench.formatting import ALPHA, Row, count, number, probability, rows_of, signed

SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "`": r"\textquoteleft{}", "'": r"\textquoteright{}", '"': r"\textquotedblright{}", "-": "{-}", ",": "{,}", "!": "{!}", "?": "{?}",
}  # fmt: skip
ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030a": "r", "\u030c": "v", "\u0327": "c"}
LETTERS = {"ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}", "æ": r"\ae{}", "Æ": r"\AE{}", "ł": r"\l{}", "Ł": r"\L{}", "±": r"$\pm$"}
UNITS: dict[Unit, str] = {
    "human_pairs": "human pairs", "golden_responses": "golden", "sampled_responses": "samples", "rm_updates": "RM updates",
    "policy_updates": "policy updates", "flops": "FLOPs",
}  # fmt: skip
MANY = 40  # rows beyond which a table of win rates shows the pooled axes only
AT = {"final": "at the final round", "dev_best": "at the round chosen on dev", MATCHED_KL: "at equal KL"}
Cells = Sequence[str]


def escape(text: object) -> str:
    """Text as TeX sets it, with nothing in it that TeX would do; white space of any kind is one blank."""
    return "".join(_character(one) for one in unicodedata.normalize("NFC", " ".join(str(text).split())))


def _character(one: str) -> str:
    if one in SPECIAL or one in LETTERS:
        return SPECIAL.get(one) or LETTERS[one]
    if " " <= one <= "~":
        return one
    base, *marks = unicodedata.normalize("NFD", one)
    if base.isascii() and base.isalpha() and len(marks) == 1 and marks[0] in ACCENTS:
        return f"\\{ACCENTS[marks[0]]}{{{base}}}"
    return f"[U+{ord(one):04X}]"


def render(run: Run, frames: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """main.tex, by_axis.tex (more than one axis), contrasts.tex, budget.tex and judged.tex (if judged): file names and contents.

    `frames` are the report's: contrasts, summary, budget and, where a judge was asked, judged. The same tables give the same bytes.
    """
    made = {"main": main(run, frames, (POOLED,))}
    if len(run.axes) > 1:
        made["by_axis"] = main(run, frames, run.axes)
    made |= {"contrasts": contrasts(run, frames["contrasts"]), "budget": budget(run, frames["budget"])}
    if "judged" in frames:
        made["judged"] = judged(frames["judged"], run.axes)
    return {f"{name}.tex": "\n".join(lines) + "\n" for name, lines in made.items()}


def main(run: Run, frames: Mapping[str, pd.DataFrame], axes: Sequence[str]) -> list[str]:
    """Arms at their last round x scorers, mean and sample SD over seeds: on all axes with KL and seeds, or a block of rows per axis."""
    scorers, whole = [scorer for scorer in run.scorers if scorer != "proxy"], list(axes) == [POOLED]
    kl, start = _kl(run), frames["summary"][frames["summary"]["round"] == 0].drop_duplicates(["axis", "scorer"])
    initial = {(row.axis, row.scorer): row.mean for row in rows_of(start)}
    blocks = []
    for axis in axes:
        by = {key: (one.mean(), one.std()) for key, one in seed_means(run.final_scores, axis).groupby(["arm", "scorer"])["value"]}
        best = {
            one: _best(frames["contrasts"], {arm: by[arm, one][0] for arm in run.arms if (arm, one) in by}, one, axis) for one in scorers
        }
        rows = [["initial policy", *[_number(initial.get((axis, one), math.nan)) for one in scorers], *["--"] * (2 * whole)]]
        for arm in run.arms:
            cells = [_mean_sd(*by.get((arm, one), (math.nan, math.nan)), bold=best[one] == arm) for one in scorers]
            rows.append([_arm(arm), *cells, *([kl.get(arm, "--"), str(len(run.arm_seeds.get(arm, [])))] if whole else [])])
        blocks.append((None if whole else axis, rows))
    heads = ["arm", *map(escape, scorers), *(["KL", "seeds"] if whole else [])]
    by = ["arm"] if whole else ["arm", "axis"]
    clusters = _span(run.final_scores.groupby(by)["cluster_id"].nunique())
    note = (
        f"Mean over {_seeds(run)} seeds $\\pm$ sample SD over seeds, of answers to prompts in {clusters} clusters, which weigh alike. Bold "
        "is the highest mean of its column, where it was tested against every other arm and is higher each time (contrasts at the final "
        "round, two-way over seeds and clusters of prompts, $p < 0.05$, adjusted where the contrast is declared); no bold where a test is "
        "missing or cannot tell two arms apart."
    )
    if whole:
        note += r" KL to the initial policy in nats per response; $\leq$: an upper bound."
    caption = f"Scores at each arm's final round, {'all axes pooled' if whole else 'by axis'}"
    return _table("main" if whole else "by-axis", caption, "l" + "r" * (len(heads) - 1), heads, blocks, note)


def _best(compared: pd.DataFrame, means: Mapping[str, float], scorer: str, axis: str) -> str | None:
    """The arm with the highest mean, if it was tested against every other arm and is higher at 5 %; else None."""
    if len(means) < 2:
        return None
    top = max(means, key=lambda arm: means[arm])
    rows = compared[(compared["at"] == "final") & (compared["scorer"] == scorer) & (compared["axis"] == axis)]
    beaten = set()
    for row in rows_of(rows):
        if top in (row.arm_a, row.arm_b):
            p = row.p_value if math.isnan(row.p_adjusted) else row.p_adjusted
            ahead = row.difference > 0 if row.arm_a == top else row.difference < 0
            beaten |= {row.arm_b if row.arm_a == top else row.arm_a} if p < ALPHA and ahead else set()
    return top if beaten >= set(means) - {top} else None


def _kl(run: Run) -> dict[str, str]:
    """The mean KL of each arm at its last round, or an upper bound on it."""
    table = exclude_failed(run.tables["metrics"], run.failed)
    last = table[(table["round"] == table["arm"].map(run.final_round)) & (table["axis"] == POOLED)].dropna(subset=["value"])
    means = last.groupby(["arm", "metric"])["value"].mean().to_dict()
    found = {arm: f"$\\leq {number(means[arm, 'kl_bound'])}$" for arm in run.arms if (arm, "kl_bound") in means}
    return found | {arm: _number(means[arm, "kl"]) for arm in run.arms if (arm, "kl") in means}


def contrasts(run: Run, compared: pd.DataFrame) -> list[str]:
    """The declared contrasts: difference, interval, p-values, effect size."""
    compare = run.experiment.compare
    blocks, used = [], compared[compared["family"] != "descriptive"]
    for family in ("primary", "secondary"):
        rows = rows_of(used[used["family"] == family])
        if rows:
            blocks.append((family, [_contrast(row) for row in rows]))
    heads = ["contrast", "axis", "difference", r"95\,\% interval", "$p$", "$p$ (adj.)", "$g$"]
    scopes = "; ".join(dict.fromkeys(used["scope"].astype(str)))
    tests = "; ".join(dict.fromkeys(used["test"].astype(str)))
    note = (
        f"{escape(_span(used['n_seeds']))} seeds of each arm, {escape(_span(used['n_clusters']))} clusters of prompts. Interval and $p$: "
        f"{escape(tests)}. Scope: {escape(scopes)}. $p$ (adj.): Holm over the primary family, Benjamini and Hochberg over the secondary. "
        "$g$: the difference in SDs of the second arm's scores over prompts within a seed (Hedges)."
    )
    note += r" Differences are those of win rates from $1/2$." if run.judge else ""
    caption = f"Declared contrasts {AT[compare.round]}, by {escape(run.scorer)}"
    return _table("contrasts", caption, "llrcrrr", heads, blocks, note)


def _contrast(row: Row) -> list[str]:
    interval = "--" if math.isnan(row.ci_low) else f"[{_signed(row.ci_low)}, {_signed(row.ci_high)}]"
    numbers = [_signed(row.difference), interval, _p(row.p_value), _p(row.p_adjusted), _signed(row.hedges_g)]
    return [_pair(row), "all" if row.axis == POOLED else escape(row.axis), *numbers]


def budget(run: Run, matches: pd.DataFrame) -> list[str]:
    """What each arm spent, means over seeds; the note says which declared matches hold."""
    ledger = exclude_failed(run.tables["ledger"], run.failed)
    used = ledger[ledger["arm"].isin(run.arms)].groupby(["arm", "unit"])["used"].mean().to_dict()
    rows = [
        [_arm(arm), *[_count(used.get((arm, unit), 0.0)) for unit in UNITS]]
        for arm in run.arms
        if any((arm, unit) in used for unit in UNITS)
    ]
    declared = matches[matches["declared"] == "yes"]
    missed = [f"{row.arm_a} and {row.arm_b} in {row.unit}" for row in rows_of(declared[declared["matched"] == "no"])]
    said = "Nothing was declared matched." if declared.empty else "All that was declared matched is."
    if missed:
        said = f"Declared matched and not: {escape('; '.join(missed))}."
    note = (
        f"Means over {_seeds(run)} seeds of what an arm would spend alone. FLOPs are counted ($2ND$ forward, $6ND$ in training, and "
        f"attention), not measured. {said} Counts match where they are equal in every seed, FLOPs within 5\\,\\%."
    )
    return _table("budget", "What each arm spent", "l" + "r" * len(UNITS), ["arm", *UNITS.values()], [(None, rows)], note)


def judged(rates: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    """Win rates, a block for each judge and axis."""
    if len(rates) > MANY or len(axes) == 1:
        rates = rates[rates["axis"] == POOLED]
    blocks = []
    for key, rows in rates.groupby(["judge", "axis"], sort=False):
        judge, axis = key  # pyright: ignore[reportGeneralTypeIssues] (of two columns)
        cells = []
        for row in rows_of(rows):
            raw, controlled = (
                [_number(value), "--" if math.isnan(low) else f"[{_number(low)}, {_number(high)}]"]
                for value, low, high in ((row.win_rate, row.ci_low, row.ci_high), (row.lc_win_rate, row.lc_low, row.lc_high))
            )
            cells.append([_pair(row, "over"), *raw, _p(row.p_value), *controlled, _count(row.n_comparisons)])
        blocks.append((f"{judge}, {'all axes pooled' if axis == POOLED else axis}", cells))
    heads = ["pair", "win rate", r"95\,\% interval", "$p$", "eq. length", r"95\,\% interval", "$n$"]
    tests = "; ".join(dict.fromkeys(rates["test"].astype(str)))
    doubted = sorted({str(row.judge) for row in rows_of(rates) if isinstance(row.informative, str) and row.informative})
    note = (
        f"{_span(rates['n_seeds'])} seeds, {_span(rates['n_clusters'])} clusters of prompts; $n$: comparisons, each in both orders, a tie "
        f"one half. Interval and $p$: {escape(tests)}. Equal length: the win rate that is left where both answers are equally long."
    )
    note += f" No better than chance, or not shown to be: {escape(', '.join(doubted))}." if doubted else ""
    return _table("judged", "Win rates, by judge", "lrcrrcr", heads, blocks, note)


def _table(
    name: str, caption: str, columns: str, heads: Cells, blocks: Sequence[tuple[str | None, Sequence[Cells]]], note: str
) -> list[str]:
    """A table environment; a block of rows has a title, or none."""
    lines = [
        r"\begin{table}",
        r"\centering",
        r"\setlength{\abovecaptionskip}{0pt}\setlength{\belowcaptionskip}{5pt}",
        f"\\caption{{{caption}.}}",
        f"\\label{{tab:{name}}}",
        r"\footnotesize",
    ]
    lines += [r"\setlength{\tabcolsep}{3pt}", f"\\begin{{tabular}}{{@{{}}{columns}@{{}}}}", r"\toprule", _row(heads), r"\midrule"]
    for place, (title, rows) in enumerate(blocks):
        lines += [r"\addlinespace"] if place else []
        lines += [f"\\multicolumn{{{len(heads)}}}{{@{{}}l}}{{\\textit{{{escape(title)}}}}} \\\\"] if title else []
        lines += [_row(row) for row in rows]
    return [*lines, r"\bottomrule", r"\end{tabular}", r"\par\smallskip", f"\\parbox{{\\linewidth}}{{\\scriptsize {note}}}", r"\end{table}"]


def _row(cells: Cells) -> str:
    return f"{' & '.join(cells)} \\\\"


def _arm(name: str) -> str:
    return f"\\texttt{{{escape(name)}}}"


def _pair(row: Row, between: str = "$-$") -> str:
    return f"{_arm(row.arm_a)} {between} {_arm(row.arm_b)}"


def _mean_sd(mean: float, sd: float, *, bold: bool) -> str:
    value = f"\\textbf{{{number(mean)}}}".replace("{-", "{$-$") if bold else _number(mean)
    return value if math.isnan(sd) else f"{value} {{\\scriptsize$\\pm$ {number(sd)}}}"


def _number(value: float) -> str:
    return "--" if math.isnan(value) else f"${number(value)}$"


def _signed(value: float) -> str:
    return "--" if math.isnan(value) else f"${signed(value)}$"


def _count(value: float) -> str:
    """A count with its thousands apart; large ones as powers of ten."""
    text = count(value)
    if "e" in text:
        mantissa, exponent = text.split("e")
        return f"${float(mantissa):.2f}\\cdot 10^{{{int(exponent)}}}$"
    return "--" if math.isnan(value) else f"${text.replace(',', '{,}')}$"


def _p(value: float) -> str:
    text = probability(value)
    return f"${text}$" if text else "--"


def _seeds(run: Run) -> str:
    return _span(pd.Series([len(run.arm_seeds.get(arm, [])) for arm in run.arms]))


def _span(values: pd.Series) -> str:
    """A number, or the lowest and highest of several."""
    known = sorted({int(value) for value in values.dropna()})
    return "no" if not known else str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"

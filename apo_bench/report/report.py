"""A run folder's tables -> report.md, page, csv files, LaTeX and figures. No model is opened. Responses are shown on the page alone."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from apo_bench.analysis import costs, preregistration, published, results
from apo_bench.analysis import win_rates as judged
from apo_bench.analysis.contrasts import MATCHED_KL, contrasts
from apo_bench.analysis.results import POOLED, Run
from apo_bench.config.schema import JUDGE
from apo_bench.formatting import Row, claim, count, inert, letter, number, plain, probability, rows_of, signed, table, tested
from apo_bench.report import latex, page, sections, sections_controls, sections_costs, sections_judging
from apo_bench.report.write import write_report_files

CAPTIONS = {
    "contrasts": "Declared contrasts with 95 % intervals; filled: adjusted p < 0.05",
    "budget": "What each arm would spend alone, mean over seeds; hatched: what it added in this run",
    "by_round": "Scores by round; bands or bars: sample SD over seeds",
    "by_kl": "Scores against KL to the initial policy; the last round is numbered, hollow markers stand at an upper bound on the KL",
    "by_annotation": "Scores at the final round against annotation used; bands: sample SD over seeds",
    "reward_models": "Reward models by round; bands or bars: sample SD over seeds",
    "reliability": "Reliability of the reward models on held-out human pairs: accuracy against confidence, larger markers for more pairs",
}
ADJUSTED = (
    "p (adjusted): Holm's correction over the primary family, Benjamini and Hochberg's over the secondary one; other p-values are "
    "unadjusted and descriptive. g: the difference in SDs of the second arm's scores over prompts within a seed (Hedges). P(a > b): share "
    "of prompts on which the first arm scores higher, ties one half."
)
LIMIT = 60_000  # characters of report.md: a pull request's text takes 65,536
SPARE = {  # sections whose tables go where it is longer, one after the other, and where else they stand
    "Reward models by round": "by_round.csv", "Answers by round": "by_round.csv", "Contrasts": "contrasts.csv",
    "Scores by round beside the reward model": "by_round.csv",
}  # fmt: skip
WHERE = {"final": "at the final round", "dev_best": "at the round chosen on dev", MATCHED_KL: "at equal KL"}


def write_report(folder: Path, *, aggregates_only: bool = False) -> Path:
    """Rebuild `folder`/report from its tables; the same tables give the same bytes. Returns the path of report.md.

    Reads experiment.yaml (resolved), manifest.json and tables/*.parquet. With `aggregates_only` the page shows no prompt, response or
    judge's words. Raises InputError, one line naming file and key or column.
    """
    from apo_bench.report import figures  # matplotlib takes a second to import

    run = results.read_run(folder)
    summary, diagnostics = results.summary(run), results.reward_model_diagnostics(run)
    judgments, audit = run.tables["judgments"], run.tables["judge_audit"]
    rates = judged.win_rates(judgments, audit, run.axes) if len(judgments) else None
    frames = {
        "summary": summary,
        "by_round": results.metrics_by_round(run, summary, diagnostics),
        "contrasts": contrasts(run, rates),
        "budget": costs.budget_matches(run),
        "sharing": costs.marginal_costs(run),
        "plan": costs.planned_and_spent(run),
        "controls": sections_controls.controls(run),
    }
    if rates is not None:
        held = run.tables["scores"][run.tables["scores"]["scorer"].isin([*run.golds, "ground_truth"])]
        frames |= {
            "judged": rates,
            "judge_audit": audit,
            "judges_agreement": judged.flag_uninformative_judges(judged.judge_agreement(judgments), audit, run.axes, ("judge", "other")),
            "judges_against_scores": judged.flag_uninformative_judges(
                judged.judge_score_agreement(judgments, results.exclude_failed(held, run.failed)), audit, run.axes
            ),
        }
    files: dict[str, bytes | str] = {}
    timings = folder / "tables" / "timings.parquet"
    if timings.exists():  # measured, so it has a page and a table of its own, which no two runs have alike
        measured = costs.time_and_memory(run, results.read_table(timings, ("arm", "seed", "measure", "value")))
        files["tables/measured.csv"] = csv_text(measured)
        files["measured.md"] = "\n".join(sections_costs.measured(run, measured)) + "\n"
    if beside := run.experiment.report.beside:
        rows = published.read_published(published.find_published(beside))
        frames["beside"] = published.compare_with_published(run, frames, rows, run.experiment.report.arms)
    shown = run.axes if len(run.axes) == 1 else (POOLED, *run.axes)
    drawn = {
        **figures.draw_contrasts(frames["contrasts"]),
        **figures.draw_budget(frames["sharing"], run.arms),
        **figures.draw_scores(summary, run.arms, run.scorers, shown),
        **figures.draw_by_annotation(costs.annotation_curves(run)),
        **figures.draw_reward_models(diagnostics[diagnostics["axis"] == POOLED], run.arms),
        **figures.draw_reliability(results.reliability_curve(run), run.arms),
    }
    files |= {f"tables/{name}.csv": csv_text(frame) for name, frame in frames.items()}
    files |= {f"tables/{name}": text for name, text in latex.render(run, frames).items()}
    files |= {f"figures/{name}": content for name, content in drawn.items()}
    files["report.html"] = page.render(
        folder, run, frames, controls=sections_controls.sentences(run, frames["controls"]),
        failed_controls=sections_controls.failed(frames["controls"]), warnings=_all_warnings(run, frames),
        aggregates_only=aggregates_only or run.experiment.report.aggregates_only,
    )  # fmt: skip
    stems = list(dict.fromkeys(name.partition(".")[0] for name in drawn))
    files["report.md"] = "\n".join(shortened(compose(run, summary, diagnostics, frames, stems))) + "\n"
    write_report_files(folder, files)
    return folder / "report" / "report.md"


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as csv, with nothing in it that a spreadsheet would run."""
    safe = frame.map(lambda cell: inert(cell) if isinstance(cell, str) else cell)
    return safe.to_csv(index=False, float_format="%.12g", lineterminator="\n")


def compose(
    run: Run, summary: pd.DataFrame, diagnostics: pd.DataFrame, frames: Mapping[str, pd.DataFrame], figures: Sequence[str]
) -> list[str]:
    """The lines of report.md. `frames` are those of the csv files; judged ones only where a judge was asked."""
    compared, budget = frames["contrasts"], frames["budget"]

    def drawn(*names: str) -> list[str]:
        lines = [f"![{CAPTIONS[name]}](figures/{name}.png)" for name in names if name in figures]
        return [*lines, ""] if lines else []

    variation = ", ".join(f"{factor} {plain(json.dumps(level))}" for factor, level in (run.manifest.get("variation") or {}).items())
    lines = [f"# {run.experiment.name}{f': {variation}' if variation else ''}", ""]
    lines += [f"**The harness failed a control of its own:** {plain(found)}" for found in sections_controls.failed(frames["controls"])]
    lines += [f"**Not matched as declared:** {missed}" for missed in _missed(budget)]
    if changed := run.manifest.get("preregistration_change"):
        lines += [f"**Not as preregistered:** {preregistration.describe_change(changed)}"]
    lines += [""] if len(lines) > 2 else []
    lines += [f"**Controls:** {plain(' '.join(sections_controls.sentences(run, frames['controls'])))}", "", "## Answer", ""]
    planned = len(run.experiment.seeds)
    lines += [f"- {_sentence(row, planned)}" for row in rows_of(compared[compared["family"] == "primary"])]
    lines += ["", *[f"- {_matches(budget, pair.a, pair.b)}" for family, pair in results.declared_pairs(run) if family == "primary"]]
    if warnings := _all_warnings(run, frames):
        lines += ["", "## Warnings", "", *[f"- {plain(warning)}" for warning in warnings]]
    lines += ["", "## Scores at the final round", "", *sections.final(run, summary)]
    lines += ["", "## Scores by round beside the reward model", "", *drawn("by_round", "by_kl")]
    lines += sections.by_round(run, summary, diagnostics)
    lines += ["", "## Contrasts", "", *drawn("contrasts"), *_contrasts(run, compared)]
    lines += ["", "## Controls", "", *sections_controls.section(run, frames["controls"])]
    if "judged" in frames:
        about = (frames[name] for name in ("judges_agreement", "judges_against_scores"))
        names = sorted(frames["judged"]["judge"].unique())
        lines += ["", "## Judged", "", *sections_judging.judged(frames["judged"])]
        lines += ["", *sections_judging.trust(frames["judge_audit"], names, *about)]
    if run.dev_round:
        lines += ["", "## Rounds chosen on dev", "", *sections.chosen_on_dev(run)]
    if run.experiment.compare.curves:
        lines += ["", "## Scores against annotation", "", *drawn("by_annotation"), *sections.curves(run)]
    lines += ["", "## Answers by round", "", *sections.answers(run, summary)]
    lines += ["", "## Reward models by round", "", *drawn("reward_models", "reliability"), *sections.reward_models(run, diagnostics)]
    lines += ["", "## Gold reward models", "", *sections.gold(run)]
    if run.manifest.get("tuned"):
        lines += ["", "## Tuning", "", *sections.tuning(run)]
    lines += ["", "## Budget", "", *drawn("budget"), *sections_costs.budget(run, budget)]
    if name := run.experiment.report.beside:
        lines += ["", f"## Published numbers: {name}", "", *published.published_section(run, frames, name, run.experiment.report.arms)]
    lines += ["", "## Data and provenance", "", *_provenance(run)]
    return lines


def shortened(lines: Sequence[str], limit: int = LIMIT) -> list[str]:
    """The lines of report.md without the tables of SPARE's sections, in its order, until at most `limit` characters are left.

    Headings and figures stay. What is longer all the same stays longer: nothing else is spared.
    """
    kept = list(lines)
    for title, elsewhere in SPARE.items():
        if sum(len(line) + 1 for line in kept) <= limit:
            break
        if f"## {title}" in kept:
            start = kept.index(f"## {title}") + 1
            end = next((place for place in range(start, len(kept)) if kept[place].startswith("## ")), len(kept))
            note = f"Left out here, so that this text fits a pull request: `{elsewhere}` and `report.html` have it."
            kept[start:end] = ["", *(line for line in kept[start:end] if line.startswith("![")), "", note, ""]
    return kept


def _sentence(row: Row, planned: int) -> str:
    where = f"{row.scorer}, {'all axes pooled' if row.axis == POOLED else row.axis}{'' if row.at == 'final' else f', {WHERE[row.at]}'}"
    a, b = f"`{row.arm_a}`", f"`{row.arm_b}`"
    if math.isnan(row.difference):
        return f"**No result for {a} against {b}** ({where}): {plain(row.test.removeprefix('none: '))}."
    rate = row.scorer.startswith(JUDGE)  # whose difference is that of the win rate from 1/2
    size = f"win rate {number(0.5 + row.difference)}" if rate else f"difference {signed(row.difference)}"
    if not math.isnan(row.ci_low):
        low, high = (number(0.5 + end) if rate else signed(end) for end in (row.ci_low, row.ci_high))
        size += f", 95 % interval {low} to {high}"
    seeds = f"{row.n_seeds} of {planned} planned seeds" if row.n_seeds < planned else f"{planned} {'seed' if planned == 1 else 'seeds'}"
    counts = f"{seeds}, {row.n_clusters} clusters of prompts"
    if math.isnan(row.p_adjusted):
        return f"**No test of {a} against {b}** ({where}): {size}; {plain(row.test.removeprefix('none: '))}. Scope: {row.scope}; {counts}."
    said = claim(a, b, where, row.difference, row.p_adjusted)
    return f"{said}: {size}, {tested(row.p_adjusted, row.p_value, row.test)}. Scope: {row.scope}; {counts}."


def _missed(budget: pd.DataFrame) -> list[str]:
    rows = budget[(budget["declared"] == "yes") & (budget["matched"] == "no")]
    return [f"`{r.arm_a}` against `{r.arm_b}`: {r.unit} {_spent(r)}." for r in rows_of(rows)]


def _spent(row: Row) -> str:
    ratio = "" if math.isnan(row.ratio) else f", ratio {row.ratio:.3g}"
    return f"{count(row.used_a)} against {count(row.used_b)}{ratio}"


def _matches(budget: pd.DataFrame, a: str, b: str) -> str:
    rows = rows_of(budget[(budget["arm_a"] == a) & (budget["arm_b"] == b) & (budget["kind"] != "")])

    def these(declared: str, matched: str) -> list[Row]:
        return [row for row in rows if (row.declared, row.matched) == (declared, matched)]

    parts = []
    if kept := these("yes", "yes"):
        parts.append("matched as declared: " + ", ".join(row.unit for row in kept))
    if missed := these("yes", "no"):
        parts.append("**declared but not matched**: " + ", ".join(f"{row.unit} ({_spent(row)})" for row in missed))
    if equal := these("no", "yes"):
        parts.append("equal without being required: " + ", ".join(row.unit for row in equal))
    if other := these("no", "no"):
        parts.append("not required and different: " + ", ".join(f"{row.unit} ({_spent(row)})" for row in other))
    return f"`{a}` against `{b}`: {'; '.join(parts)}."


def _all_warnings(run: Run, frames: Mapping[str, pd.DataFrame]) -> list[str]:
    return [*_warnings(run, frames["contrasts"]), *_of_judges(run, frames)]


def _warnings(run: Run, compared: pd.DataFrame) -> list[str]:
    found = []
    for failure in run.manifest.get("failures", []):
        seed = "" if failure.get("seed") is None else f", seed {failure['seed']}"
        found.append(f"Failed: {failure['arm']}{seed}: {failure['message']}")
    for arm in run.arms:
        seeds = run.arm_seeds.get(arm, [])
        if missing := sorted(set(run.experiment.seeds) - set(seeds)):
            found.append(f"{arm}: no final scores for seed {', '.join(map(str, missing))}; contrasts use the seeds that both arms have.")
        if missing := [seed for seed in seeds if run.dev_round and (arm, seed) not in run.dev_round]:
            found.append(f"{arm}: no dev_score for seed {', '.join(map(str, missing))}, so no round chosen on dev.")
    for gold in run.golds:
        for axis in run.axes:
            if reason := results.uninformative_gold(run, gold, axis):
                found.append(f"Gold model {gold}: {reason}. No test is made on it, nor on the pooled axes.")
    primary = compared[compared["family"] == "primary"]
    few = primary[primary["n_seeds"].between(1, 2)].drop_duplicates(["arm_a", "arm_b"])
    for row in rows_of(few):
        found.append(f"{row.arm_a} against {row.arm_b}: only {row.n_seeds} seed(s); three or more are needed for a claim about new seeds.")
    for row in rows_of(compared[compared["n_dropped"] > 0]):
        where = f"{row.arm_a} against {row.arm_b}, {row.axis}, {row.scorer}{'' if row.at == 'final' else f', {WHERE[row.at]}'}"
        found.append(f"{where}: {row.n_dropped} rows left out (prompt not scored in every seed of both).")
    if len(there := (run.manifest.get("hardware") or {}).get("workers") or ()) > 1:
        found.append(f"Arm-seeds ran on different hardware: {'; '.join(json.dumps(one, sort_keys=True) for one in there)}.")
    found += [f"Table {name} is absent; what it would show is missing." for name in run.absent]
    if run.manifest.get("dirty"):
        found.append("The code had uncommitted changes.")
    return found


def _of_judges(run: Run, frames: Mapping[str, pd.DataFrame]) -> list[str]:
    """Judges that nothing may rest on, and those that were left without answers."""
    found = sections_judging.warnings(frames["judged"]) if "judged" in frames else []
    for name, about in (run.manifest.get("judges") or {}).items():
        if message := about.get("left_out"):
            found.append(f"Judge {name}: {message}; left out.")
        if unanswered := about.get("unanswered"):
            reasons = ", ".join(f"{count(times)} {reason}" for reason, times in sorted(unanswered.items()))
            found.append(f"Judge {name}: questions without an answer: {reasons}; the same command asks again.")
    return found


def _contrasts(run: Run, compared: pd.DataFrame) -> list[str]:
    """The contrasts at the declared round in full; elsewhere those of the declared axes, by gold and truth."""
    declared, axes, notes = run.experiment.compare.round, {POOLED, *run.experiment.compare.axes}, {}
    lines = []
    for at in dict.fromkeys(compared["at"]):
        rows = compared[compared["at"] == at]
        if at != declared:
            rows = rows[rows["axis"].isin(axes) & (rows["scorer"] != "proxy")]
            lines += ["", f"### {WHERE[at][0].upper()}{WHERE[at][1:]}", ""]
        lines += _contrast_table(rows, at, notes)
        if at == declared:
            lines += ["", ADJUSTED]
            others = [WHERE[other] for other in dict.fromkeys(compared["at"]) if other != declared]
            if others or declared != "final":
                lines[-1] += f" These are contrasts {WHERE[declared]}{'; below ' if others else ''}{' and '.join(others)}, descriptive."
        elif at == MATCHED_KL:
            lines += [
                "",
                "KL: the largest distance from the initial policy that both arms reach in every shared seed, in nats per response on all "
                "axes. There each prompt's score is interpolated linearly in KL within the round in which the arm-seed first goes so far. "
                "The KL is itself estimated, which the intervals do not know.",
            ]
    explained = [f"- ({mark}) Test: {plain(test)}. Scope: {plain(scope)}." for (test, scope), mark in notes.items()]
    return [*lines, "", *explained]


def _contrast_table(rows: pd.DataFrame, at: str, notes: dict[tuple[str, str], str]) -> list[str]:
    cells = []
    for one in rows_of(rows):
        mark = notes.setdefault((str(one.test), str(one.scope)), letter(len(notes)))
        interval = "-" if math.isnan(one.ci_low) else f"{signed(one.ci_low)} to {signed(one.ci_high)}"
        pair = f"`{one.arm_a}` - `{one.arm_b}`"
        numbers = [signed(one.difference), interval, probability(one.p_value), probability(one.p_adjusted)]
        numbers += [signed(one.hedges_g), number(one.p_superior)]
        sizes = [str(one.n_seeds), str(one.n_clusters)]
        place = number(one.kl) if at == MATCHED_KL else str(one.round)
        cells.append([pair, plain(one.axis), one.scorer, one.family, *numbers, *sizes, place, mark])
    place = "KL" if at == MATCHED_KL else "round"
    headers = ["contrast", "axis", "scorer", "family", "difference", "95 % interval", "p", "p (adjusted)", "g", "P(a > b)"]
    return table([*headers, "seeds", "clusters", place, "note"], cells)


def _provenance(run: Run) -> list[str]:
    manifest = run.manifest
    lines = [f"{plain(manifest.get('provenance') or 'No provenance was recorded.')}", ""]
    splits = manifest.get("splits") or {}
    if splits:
        rows = [
            [plain(name), *[str(counts.get(what, "-")) for what in ("pairs", "prompts", "clusters")]] for name, counts in splits.items()
        ]
        lines += [*table(["split", "pairs", "prompts", "clusters"], rows), ""]
    lines += [f"- {plain(note)}" for note in manifest.get("notes") or []]
    arms = manifest.get("arms") or {name: arm.use for name, arm in run.experiment.arms.items()}
    commit = f"{manifest.get('commit') or 'unknown'}{' with uncommitted changes' if manifest.get('dirty') else ''}"
    versions = ", ".join(f"{name} {version}" for name, version in sorted((manifest.get("versions") or {}).items()))
    facts = {
        "task": manifest.get("task") or run.experiment.task.use,
        "seeds": ", ".join(map(str, run.experiment.seeds)),
        "arms": ", ".join(f"{name} = {use}" for name, use in arms.items()),
        "command": manifest.get("command"),
        "commit": commit,
        "versions": versions,
    }
    return [*lines, *[f"- {name}: {plain(value)}" for name, value in facts.items() if value]]

"""Builds the report of a run folder from its tables and writes it: report.md, page, csv files, LaTeX and figures. No model is opened."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from apo_bench.analysis import controls, costs, published, results, verification, win_rates
from apo_bench.analysis.across_judges import across_judges, judge_ranking
from apo_bench.analysis.arm_ranking import arm_ranking
from apo_bench.analysis.capabilities import capability_losses
from apo_bench.analysis.contrasts import contrasts, scope_of
from apo_bench.analysis.human_labels import human_labels, imported_judges
from apo_bench.analysis.results import Run
from apo_bench.config.load import dump_experiment
from apo_bench.formatting import csv_text
from apo_bench.report import latex, markdown
from apo_bench.report.charts import Bars, Forest, Lines
from apo_bench.report.display_names import with_display_names
from apo_bench.report.document import Part, Report, Section, blocks_of
from apo_bench.report.page.render import render as render_page
from apo_bench.report.page.samples import read_samples
from apo_bench.report.sections import (
    answer,
    capabilities,
    finished,
    judges,
    preregistered,
    prompt_sets,
    provenance,
    reward_models,
    samplers,
    scores,
    training,
)
from apo_bench.report.sections import arm_ranking as ranking_section
from apo_bench.report.sections import contrasts as contrast_sections
from apo_bench.report.sections import costs as cost_sections
from apo_bench.report.sections import human_labels as label_section
from apo_bench.report.tables import Table
from apo_bench.report.write import write_report_files
from apo_bench.store import updating
from apo_bench.tables import read_table, table_path


def write_report(folder: Path, *, aggregates_only: bool = False) -> Path:
    """Rebuild `folder`/report from its tables; the same tables give the same bytes. Returns the path of report.md.

    Reads experiment.yaml (resolved), manifest.json and tables/*.parquet. With `aggregates_only` it shows no prompt, response or
    judge's words. Raises InputError, one line naming file and key or column.
    """
    with updating(folder):
        run = results.read_run(folder)
        is_aggregate = aggregates_only or run.experiment.report.aggregates_only
        run = without_quotes(run) if is_aggregate else run
        frames = report_frames(run)
        report = with_display_names(build(folder, run, frames), run.experiment.report.names)
        files: dict[str, bytes | str] = dict(render(report))
        files["report.html"] = render_page(report, None if is_aggregate else read_samples(folder, run), is_aggregate=is_aggregate)
        files["rerun.yaml"] = dump_experiment(verification.experiment_as_run(run))
        timings = table_path(folder, "timings")
        if timings.exists():  # measured, so no two runs have the same: a file and a table of their own
            measured = costs.time_and_memory(run, read_table(timings, "timings"))
            files["tables/measured.csv"] = csv_text(measured)
            section = Section(f"{run.experiment.name}: as measured", cost_sections.measured_blocks(measured))
            files["measured.md"] = "\n".join(markdown.section_lines([section], "#")[1:]) + "\n"
        write_report_files(folder, files)
    return folder / "report" / "report.md"


def without_quotes(run: Run) -> Run:
    """The run without judges' words."""
    judges = {
        name: {key: value for key, value in facts.items() if key != "unread"} for name, facts in run.manifest.get("judges", {}).items()
    }
    return replace(run, manifest={**run.manifest, **({"judges": judges} if judges else {})})


def report_frames(run: Run) -> dict[str, pd.DataFrame]:
    """The frames behind the report, which are its csv files, by name; those of judges only where a judge was asked."""
    summary = results.summary(run)
    judgments, audit = run.tables["judgments"], run.tables["judge_audit"]
    rates = win_rates.win_rates(judgments, audit, run.axes) if len(judgments) else None
    frames = {
        "summary": summary,
        "by_round": results.metrics_by_round(run, summary, results.reward_model_diagnostics(run)),
        "contrasts": contrasts(run, rates),
        "arm_seeds": verification.arm_seed_scores(run),
        "arm_ranking": arm_ranking(run),
        "budget": costs.budget_matches(run),
        "sharing": costs.marginal_costs(run),
        "plan": costs.planned_and_spent(run),
        "controls": controls.controls(run),
        **training.frames(run),
        **prompt_sets.frames(run),
    }
    if len(losses := capability_losses(run)):
        frames["capabilities"] = losses
    if rates is not None:
        scored = run.tables["scores"][run.tables["scores"]["scorer"].isin([*run.golds, "ground_truth"])]
        against = win_rates.judge_score_agreement(judgments, results.exclude_failed(scored, run.failed))
        between, across = win_rates.judge_agreement(judgments), across_judges(judgments, rates)
        frames |= {
            "judged": rates.assign(scope=[scope_of(run, dict(row)) for _, row in rates.iterrows()]),
            "across_judges": across.assign(scope=[scope_of(run, dict(row)) for _, row in across.iterrows()]),
            "judge_ranking": judge_ranking(judgments, rates),
            "judge_audit": audit,
            "human_labels": human_labels(judgments, imported_judges(run)),
            "judges_agreement": win_rates.flag_uninformative_judges(between, audit, run.axes, ("judge", "other")),
            "judges_against_scores": win_rates.flag_uninformative_judges(against, audit, run.axes),
        }
    if source := run.experiment.report.beside:
        rows = published.read_published(published.find_published(source))
        frames["beside"] = published.compare_with_published(run, frames, rows, run.experiment.report.arms)
    return frames


def build(folder: Path, run: Run, frames: Mapping[str, pd.DataFrame]) -> Report:
    """The report of a run: every section, in order. A new section is one entry here, a new table one among a section's blocks."""
    sentences = controls.sentences(run, frames["controls"])
    details = [
        scores.round_section(run, frames),
        contrast_sections.section(run, frames["contrasts"]),
        contrast_sections.control_section(run, frames["controls"]),
        judges.section(run, frames),
        prompt_sets.section(run, frames),
        label_section.section(frames["human_labels"]) if "human_labels" in frames else None,
        scores.dev_section(run) if run.dev_round else None,
        scores.annotation_section(run) if run.experiment.compare.curves else None,
        scores.answer_section(run, frames),
        capabilities.section(run, frames),
        reward_models.section(run, frames, results.reward_model_diagnostics(run)),
        reward_models.gold_section(run),
        training.section(run),
        cost_sections.tuning_section(run) if run.manifest.get("tuned") else None,
        cost_sections.section(run, frames),
        samplers.section(run),
    ]
    source = run.experiment.report.beside
    published_parts = [provenance.published_section(run, source, frames["beside"])] if source else []
    parts = [
        Part("answer", "The answer", [*answer.sections(run, frames, sentences), *preregistered.sections(run)]),
        Part(
            "scores",
            "Scores",
            [scores.final_section(run, frames), ranking_section.section(run, frames["arm_ranking"]), finished.section(run)],
        ),
        Part("figures", "Figures and tables", [section for section in details if section and section.blocks]),
        Part("published", "Published numbers", published_parts),
        Part("samples", "Samples", []),
        Part("provenance", "Provenance", [provenance.section(run), provenance.machine_section(folder, run)]),
    ]
    varied = ", ".join(f"{factor} {json.dumps(level)}" for factor, level in (run.manifest.get("variation") or {}).items())
    return Report(run.experiment.name, parts, frames, varied)


def render(report: Report) -> dict[str, bytes | str]:
    """report.md, csv files, LaTeX and figures: names within the report's folder and contents."""
    from apo_bench.report import figures  # matplotlib takes a second to import

    blocks = list(blocks_of(report.sections))
    named = {block.name: block.frame for block in blocks if isinstance(block, Table) and block.name}
    drawn = [block for block in blocks if isinstance(block, Lines | Forest | Bars) and block.name]
    return {
        "report.md": markdown.render(report),
        **{f"tables/{name}.csv": csv_text(frame) for name, frame in {**named, **report.frames}.items()},
        **{f"tables/{name}": text for name, text in latex.render(report).items()},
        **{f"figures/{name}": content for figure in drawn for name, content in figures.draw(figure).items()},
    }

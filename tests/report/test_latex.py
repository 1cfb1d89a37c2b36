"""Tables for a paper: what they say, hostile text that stays text, and that pdflatex sets them."""

import math
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folder import experiment, frame, measured, scored, write_run

from apo_bench.analysis import costs, results
from apo_bench.analysis.contrasts import contrasts
from apo_bench.analysis.results import Run
from apo_bench.report import latex
from apo_bench.report.display_names import with_display_names
from apo_bench.report.document import Block, Part, Report, Section
from apo_bench.report.latex import escape
from apo_bench.report.sections import contrasts as contrast_sections
from apo_bench.report.sections import scores
from apo_bench.report.sections.costs import section as costs_section
from apo_bench.report.sections.judges import win_rate_blocks

HOSTILE = [
    r"\input{/etc/passwd}",
    r"\immediate\write18{touch owned}",
    r"}\end{tabular}\end{document}",
    r"100 % & $x_1^2$ # {~} \\ ^^5cinput",
    r"\catcode`\%=12 \def\x{y}\x \csname end\endcsname",
    "a|b<c>\"d\"'e'`f` --- ?` !` ,,",
    "日本語 \U0001f600 ﬁ ½ עברית",
    "na\u00efve \u00c5ngstr\u00f6m stra\u00dfe Bj\u00f8rn \u0141\u00f3d\u017a e\u0301 q\u0308",
    "tab\tnew\nline\rreturn\x0bv\x0cf",
    "".join(map(chr, (*range(1, 32), *range(127, 160)))),
    "\u202eevil\u202c \u200b\ufeff\u00ad\ud800",
    "$$\\loop\\iftrue\\repeat$$",
    "",
]
PDFLATEX = shutil.which("pdflatex")


def set_by_pdflatex(folder: Path, body: str) -> str:
    """The log of a document with booktabs alone; fails where pdflatex stops at an error."""
    document = "\n".join([r"\documentclass{article}", r"\usepackage{booktabs}", r"\begin{document}", body, r"\end{document}", ""])
    (folder / "document.tex").write_text(document, encoding="utf-8")
    command = [str(PDFLATEX), "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "document.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-2000:].decode(errors="replace")
    return (folder / "document.log").read_text(errors="replace")


needs_pdflatex = pytest.mark.skipif(PDFLATEX is None, reason="pdflatex is not installed (Debian: texlive-latex-recommended)")


def test_what_tex_acts_upon_is_escaped() -> None:
    assert escape(r"a_b & 100% of $5 #1 {x} ~ ^ \y") == (
        r"a\_b \& 100\% of \$5 \#1 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{}y"
    )
    assert escape("\u00fc \u00df \u2192 \u202e \x1b e\u0301") == r"\"{u} \ss{} [U+2192] [U+202E] [U+001B] \'{e}"
    assert escape(" two\n\tlines ") == "two lines"


@given(st.text())
def test_escaped_text_is_ascii_and_holds_no_command_of_its_own(text: str) -> None:
    """Without the few commands that `escape` itself writes, no character is left that TeX acts upon."""
    escaped = escape(text)
    assert escaped.isascii()
    assert escaped.isprintable()
    for command in sorted([*latex.SPECIAL.values(), *latex.LETTERS.values()], key=len, reverse=True):
        if command.startswith(("\\", "$")):
            escaped = escaped.replace(command, "")
    for accent in latex.ACCENTS.values():
        for letter in map(chr, (*range(65, 91), *range(97, 123))):
            escaped = escaped.replace(f"\\{accent}{{{letter}}}", "")
    for command in ("{-}", "{,}", "{!}", "{?}"):
        escaped = escaped.replace(command, "")
    assert not set("\\{}$&#^~%_") & set(escaped)


@needs_pdflatex
def test_hostile_text_is_set_and_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret.tex").write_text("SECRET")
    texts = [*HOSTILE, r"\input{secret}", r"\input secret "]
    log = set_by_pdflatex(tmp_path, "\n\n".join(f"x{escape(text)}x \\texttt{{{escape(text)}}}" for text in texts))
    assert "secret.tex" not in log
    assert not (tmp_path / "owned").exists()


# --- the tables ---------------------------------------------------------------------------------------------------------------


def made_run(folder: Path, axis: str = "helpful", second: str = "harmless") -> Run:
    """apo_rjs is higher than both others by about 2 on every prompt, by ground truth; on the second axis all are alike."""
    generator = np.random.default_rng(5)
    parts = []
    for name, gap in ((axis, 2.0), (second, 0.0)):
        values = {
            (arm, seed, round_): (gap * (arm == "apo_rjs") * round_ + 0.1 * generator.normal() + 0.2 * generator.normal(size=6)).tolist()
            for arm in ("rjs", "golden_refresh", "apo_rjs")
            for seed in range(3)
            for round_ in range(2)
        }
        rows = scored(values, axis=name)
        parts.append(rows.assign(prompt_id=f"{name}." + rows["prompt_id"], cluster_id=f"{name}." + rows["cluster_id"]))
    settings = experiment()
    settings["compare"] |= {"scorer": "ground_truth", "axes": ["all", axis]}
    kl = {(arm, seed): [0.0, 1.5] for arm in ("rjs", "apo_rjs") for seed in range(3)}
    spent = [
        (arm, seed, unit, used, math.nan)
        for arm in ("rjs", "golden_refresh", "apo_rjs")
        for seed in range(3)
        for unit, used in (("human_pairs", 1500.0), ("flops", 2e12), ("sampled_responses", 40.0 if arm == "rjs" else 60.0))
    ]
    tables = {
        "scores": pd.concat(parts, ignore_index=True),
        "metrics": measured("kl", kl),
        "reward_models": frame("reward_models", []),
        "ledger": frame("ledger", spent),
        "gold": frame("gold", []),
    }
    return results.read_run(write_run(folder / "run", tables, settings))


RATES = {
    "arm_a": "apo_rjs", "arm_b": "rjs", "axis": "all", "judge": "gpt_4", "round": "1", "win_rate": 0.6, "ci_low": 0.5, "ci_high": 0.7,
    "p_value": 0.04, "lc_win_rate": 0.55, "lc_low": math.nan, "lc_high": math.nan, "n_seeds": 3, "n_clusters": 12,
    "n_comparisons": 1200, "informative": "", "test": "two-way t test", "scope": "new seeds", "note": "", "lc_note": "", "missing_why": "",
    **dict.fromkeys(("n_missing", "worst_low", "worst_high", "inconsistency_rate", "first_position_rate", "tie_share"), 0.0),
    **dict.fromkeys(("length_difference", "agreed_win_rate", "agreed_low", "agreed_high"), 0.0),
}  # fmt: skip


def analyse(run: Run, **changes: str) -> dict[str, pd.DataFrame]:
    return {
        "summary": results.summary(run),
        "sharing": costs.marginal_costs(run),
        "plan": costs.planned_and_spent(run),
        "contrasts": contrasts(run),
        "budget": costs.budget_matches(run),
        "judged": pd.DataFrame([RATES | changes]),
    }


def tables(run: Run, frames: dict[str, pd.DataFrame], names: Mapping[str, str] | None = None) -> dict[str, str]:
    """The paper's tables of a run, by name. `names`: display names."""
    blocks: list[Block] = [
        scores.final_section(run, frames),
        contrast_sections.section(run, frames["contrasts"]),
        costs_section(run, frames),
    ]
    blocks += win_rate_blocks(frames["judged"]) if "judged" in frames else []
    report = Report("synthetic", [Part("all", "All", [Section("All", blocks)])], {})
    report = with_display_names(report, names or {})
    return {name.removesuffix(".tex"): text for name, text in latex.render(report).items()}


def write(run: Run, frames: dict[str, pd.DataFrame], folder: Path) -> list[Path]:
    texts = tables(run, frames)
    for name, text in texts.items():
        (folder / f"{name}.tex").write_text(text, encoding="ascii")
    return [folder / f"{name}.tex" for name in texts]


def test_bold_is_the_highest_mean_as_on_the_page(tmp_path: Path) -> None:
    """apo_rjs was tested against both others and is higher, on one axis and pooled; on the other axis nothing is told apart."""
    run = made_run(tmp_path)
    frames = analyse(run)
    texts = tables(run, frames)
    main = [line for line in texts["main"].splitlines() if line.startswith(r"\texttt")]
    assert [line.startswith(r"\texttt{apo\_rjs} & 3 & \textbf{") for line in main] == [True, False, False]
    assert "Bold: the highest mean of its column" in texts["main"]
    assert main[0].endswith(r"& $1.500$ {\scriptsize$\pm$ 0.000} \\")
    assert main[1].endswith(r"& -- \\")
    blocks = texts["by_axis"].split("addlinespace")
    for block, axis, n_lower in zip(blocks, ("harmless", "helpful"), (0, 2), strict=True):
        assert f"\\textit{{{axis}}}" in block
        assert (block.count(r"\textbf"), block.split(r"\bottomrule")[0].count(latex.DAGGER)) == (1, n_lower)


def test_no_mark_without_a_test_against_the_highest(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    frames = analyse(run)
    frames["contrasts"] = frames["contrasts"].query("arm_b != 'rjs'")
    main = tables(run, frames)["main"].split(r"\bottomrule")[0]
    assert (main.count(r"\textbf"), main.count(latex.DAGGER)) == (1, 1)


def test_win_rates_stand_in_the_main_table(tmp_path: Path) -> None:
    """Each arm's own side of a pair; what is longer than a line is set in lines, and not stretched."""
    run = made_run(tmp_path)
    main = tables(run, analyse(run))["main"]
    assert r"win rate{,} by gpt\_4" in main
    assert r"& 0.600 over \texttt{rjs} &" in main
    assert r"& 0.400 over \texttt{apo\_rjs} &" in main
    frames = analyse(run)
    frames["judged"] = pd.concat([frames["judged"], pd.DataFrame([RATES | {"arm_b": "golden_refresh"}])])
    main = tables(run, frames)["main"]
    assert r"\raggedright 0.600 over \texttt{rjs}; 0.600 over \texttt{golden\_refresh} &" in main
    assert f"p{{{latex.WIDTH}}}" in main


def test_what_the_tables_say(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    frames = analyse(run)
    (row,) = [row for row in frames["contrasts"].itertuples() if (row.family, row.axis) == ("primary", "all")]
    texts = tables(run, frames)
    text = texts["contrasts"]
    assert float(row.p_adjusted) < 0.05  # pyright: ignore[reportArgumentType]
    assert f"${row.difference:+.3f}${latex.DAGGER} & [${row.ci_low:+.3f}$, ${row.ci_high:+.3f}$]" in text
    assert "3 seeds of each arm, 6 to 12 clusters of prompts" in text
    assert "new seeds and new prompts" in text
    spent = texts["budget"]
    assert r"\texttt{rjs} & $1{,}500$ & $0$ & $40$ & $0$ & $0$ & $2.00\cdot 10^{12}$ \\" in spent
    assert r"Declared matched and not: apo\_rjs and rjs in sampled\_responses." in spent
    judged = texts["judged"]
    assert r"\texttt{apo\_rjs} over \texttt{rjs} & $0.600$ [$0.500$, $0.700$] & $0.040$ & $1{,}200$ & $0.550$ \\" in judged
    assert r"\textit{gpt\_4{,} all axes pooled}" in judged


def test_a_file_begins_with_the_preamble_that_it_needs(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    for text in tables(run, analyse(run)).values():
        comment = [line for line in text.splitlines() if line.startswith("%")]
        assert text.startswith("\n".join(comment) + "\n\\begin{table}\n")
        assert [line.lstrip("% ") for line in comment if "usepackage" in line] == [r"\usepackage{booktabs}"]


def test_a_dagger_marks_what_is_shown_and_its_rule_stands_below(tmp_path: Path) -> None:
    """Of declared contrasts those with adjusted p below .05; of scores those that the contrast with the highest tells from it."""
    run = made_run(tmp_path)
    frames = analyse(run)
    compared = frames["contrasts"]
    declared = compared[(compared["family"] != "descriptive") & (compared["at"] == "final")]
    text = tables(run, frames)["contrasts"]
    marked = [latex.DAGGER in line for line in text.splitlines() if line.startswith(r"\texttt")]
    assert 0 < sum(marked) == int((declared["p_adjusted"] < 0.05).sum())
    assert text.count(f"{latex.DAGGER}: adjusted p") == 1
    main = tables(run, frames)["main"]
    assert [line.split(" & ")[2].count(latex.DAGGER) for line in main.splitlines() if line.startswith(r"\texttt")] == [0, 1, 1]
    assert main.count(f"{latex.DAGGER}: lower than the highest mean") == 1
    frames["contrasts"] = compared.assign(p_value=0.9, p_adjusted=0.9)
    assert latex.DAGGER not in "".join(tables(run, frames).values())


def test_display_names_stand_in_captions_blocks_and_notes(tmp_path: Path) -> None:
    names = {"apo_rjs": "APO, ours", "gpt_4": "GPT-4", "ground_truth": "truth"}
    run = made_run(tmp_path)
    texts = tables(run, analyse(run), names)
    assert r"\caption{Declared contrasts at the final round{,} by truth.}" in texts["contrasts"]
    assert r"\textit{GPT{-}4{,} all axes pooled}" in texts["judged"]
    assert r"not: APO{,} ours and rjs in sampled\_responses" in texts["budget"]
    assert not any(name in text for name in ("apo\\_rjs", "gpt\\_4", "ground\\_truth") for text in texts.values())


@pytest.mark.slow
@needs_pdflatex
def test_the_files_compile_by_input_and_are_the_same_twice(tmp_path: Path) -> None:
    """Axes and judges with names that TeX would act upon; booktabs is all they need, and nothing sticks out of an article's column."""
    run = made_run(tmp_path, axis=HOSTILE[3], second=r"\input{secret}")
    (tmp_path / "secret.tex").write_text("SECRET")
    frames = analyse(run, judge=HOSTILE[1], test="win rate against 50 % & 1/2")
    paths = write(run, frames, tmp_path)
    assert [path.name for path in paths] == ["main.tex", "by_axis.tex", "contrasts.tex", "budget.tex", "judged.tex"]
    before = [path.read_bytes() for path in paths]
    log = set_by_pdflatex(tmp_path, "\n".join(f"\\input{{{path.stem}}}" for path in paths))
    assert "secret.tex" not in log
    assert not (tmp_path / "owned").exists()
    assert [path.read_bytes() for path in write(run, frames, tmp_path)] == before


@needs_pdflatex
def test_a_run_in_which_all_failed_still_compiles(tmp_path: Path) -> None:
    run = results.read_run(write_run(tmp_path / "run", {}, failures=[{"arm": "rjs", "seed": 0, "message": "no memory"}]))
    frames = analyse(run)
    frames.pop("judged")
    paths = write(run, frames, tmp_path)
    assert [path.stem for path in paths] == ["main", "contrasts", "budget"]
    set_by_pdflatex(tmp_path, "\n".join(f"\\input{{{path.stem}}}" for path in paths))


@needs_pdflatex
def test_usual_tables_fit_an_articles_column(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    paths = write(run, analyse(run), tmp_path)
    assert "Overfull" not in set_by_pdflatex(tmp_path, "\n".join(f"\\input{{{path.stem}}}" for path in paths))

"""Figures that stay readable: every arm has a look of its own, and nothing sticks out."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg

from apo_bench.report import figures
from apo_bench.report.charts import Figure, Lines, Panel, kl_or_bound, series_of
from apo_bench.report.sections.contrasts import forests
from apo_bench.report.sections.costs import budget_figure
from apo_bench.report.sections.reward_models import diagnostic_figure, reliability_figure
from apo_bench.report.sections.scores import score_figures
from apo_bench.report.text import say

MINUS = "\N{MINUS SIGN}"
ARMS = [f"golden_refresh_of_a_player_{k}" for k in range(13)]


def summary(arms: list[str], bounded: tuple[str, ...] = ()) -> pd.DataFrame:
    rows = []
    for place, arm in enumerate(arms):
        for round_ in range(3):
            rows.append((arm, round_, "all", "gold", 0.1 * place * round_, 0.1))
            rows.append((arm, round_, "all", "kl_bound" if arm in bounded and round_ else "kl", round_ * (1.0 + place), 0.1))
    return pd.DataFrame(rows, columns=["arm", "round", "axis", "scorer", "mean", "seed_sd"])


def run_of(arms: Sequence[str], axes: Sequence[str] = ("all",)) -> Any:
    """What figures read of a run."""
    compare = SimpleNamespace(round="final", axes=("all",))
    return SimpleNamespace(arms=tuple(arms), axes=tuple(axes), scorers=("gold",), experiment=SimpleNamespace(compare=compare))


def draw(drawn: Iterable[Figure]) -> dict[str, bytes]:
    """The files of the figures that have some."""
    return {name: content for figure in drawn if figure.name for name, content in figures.draw(figure).items()}


def curve_figure(rows: list[tuple[Any, ...]]) -> Lines:
    """Rows of curve, annotation, scorer, mean and seed_sd as the report draws them."""
    table = pd.DataFrame(rows, columns=["curve", "annotation", "scorer", "mean", "seed_sd"]).sort_values("annotation")
    curves = tuple(dict.fromkeys(table["curve"]))
    series = tuple(series_of(curve, place, table[table["curve"] == curve], "annotation") for place, curve in enumerate(curves))
    return Lines("by_annotation", "", say(""), (Panel("gold", series),), curves, "annotation used")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The figures by name, instead of files."""
    kept: dict[str, Any] = {}
    monkeypatch.setattr(figures, "save", lambda figure, name: {name: kept.setdefault(name, figure)})
    return kept


@pytest.mark.slow
def test_the_legend_of_many_arms_is_whole_and_covers_no_panel(drawn: dict[str, Any]) -> None:
    draw(score_figures(run_of(ARMS), summary(ARMS)))
    assert set(drawn) == {"by_round", "by_kl"}
    for figure in drawn.values():
        FigureCanvasAgg(figure).draw()
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ARMS
        box, renderer = legend.get_window_extent(), figure.canvas.get_renderer()
        assert figure.get_size_inches()[0] in (figures.COLUMN, figures.WIDTH)
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        for panel in figure.axes:
            assert panel.get_tightbbox(renderer).y1 <= box.y0
            assert panel.get_tightbbox(renderer).x1 <= figure.bbox.x1
            assert panel.get_tightbbox(renderer).x0 >= 0


def test_28_arms_look_different() -> None:
    assert len({tuple(figures._look(place).values()) for place in range(28)}) == 28


def test_hollow_markers_stand_at_a_bound(drawn: dict[str, Any]) -> None:
    arms = ["dpo", "best_of_n"]
    draw(score_figures(run_of(arms), summary(arms, bounded=("best_of_n",))))

    def hollow(figure: Any) -> dict[str, bool]:
        lines = [line for line in figure.axes[0].get_lines() if line.get_label() in arms]
        return {str(line.get_label()): line.get_markerfacecolor() == "white" for line in lines}

    assert hollow(drawn["by_kl"]) == {"dpo": False, "best_of_n": True}
    assert hollow(drawn["by_round"]) == {"dpo": False, "best_of_n": False}
    (bound,) = [line for line in drawn["by_kl"].axes[0].get_lines() if line.get_label() == "best_of_n"]
    assert list(bound.get_xdata()) == [0, 2, 4]


def test_a_measured_kl_comes_before_its_bound() -> None:
    rows = [("a", 1, "all", "kl_bound", 2.0), ("a", 1, "all", "kl", 1.0), ("b", 1, "all", "kl_bound", 3.0)]
    table = kl_or_bound(pd.DataFrame(rows, columns=["arm", "round", "axis", "scorer", "mean"]))
    assert table[["arm", "kl", "bound"]].to_numpy().tolist() == [["a", 1.0, False], ["b", 3.0, True]]


def test_reliability_shows_the_first_and_the_last_round(drawn: dict[str, Any]) -> None:
    """Rounds 0 to 3: round 0 shows round 1's reward model, so it is left out; one round alone is drawn once. Areas grow with n."""
    rows = [("many", round_, k, 0.55 + k / 10, 0.1 * round_ + k / 10, 10 * (3 * k + 1)) for round_ in range(4) for k in (0, 1)]
    rows += [("one", round_, 0, 0.55, 0.5, 10) for round_ in (0, 1)]
    table = pd.DataFrame(rows, columns=["arm", "round", "bin", "confidence", "accuracy", "n"])
    draw(reliability_figure(("many", "absent", "one"), table))
    many, single = drawn["reliability"].axes
    assert (many.get_title(), single.get_title()) == ("many", "one")
    curves = [list(line.get_ydata()) for line in many.get_lines()]
    np.testing.assert_allclose(curves[1:], [[0.1, 0.2], [0.3, 0.4]])
    assert len(single.get_lines()) == 2  # the diagonal and one round
    assert curves[0] == [0.5, 1]
    small, large = many.collections[0].get_sizes()
    assert (large - 4) / (small - 4) == pytest.approx(4)


def test_curves_and_diagnostics_are_drawn_where_there_are_rows(drawn: dict[str, Any]) -> None:
    rows = [("plain", 300, "gold", 0.3, 0.1), ("plain", 100, "gold", 0.1, np.nan), ("apo", 120, "gold", 0.5, 0.1)]
    draw([curve_figure(rows)])
    (panel,) = drawn["by_annotation"].axes
    plain = panel.get_lines()[0]
    assert (list(plain.get_xdata()), list(plain.get_ydata())) == ([100, 300], [0.1, 0.3])
    diagnostics = pd.DataFrame([("a", 1, metric, 0.5, 0.1) for metric in ("ece", "fixed_mean", "fixed_sd")])
    diagnostics.columns = ["arm", "round", "metric", "mean", "seed_sd"]
    draw(diagnostic_figure(("a",), diagnostics.assign(axis="all")))
    assert [panel.get_title() for panel in drawn["reward_models"].axes] == ["ECE", "mean score of fixed responses"]


def compared(axes: tuple[str, ...] = ("all",), arm: str = "golden_refresh") -> pd.DataFrame:
    rows = [("apo", arm, axis, "gold", 0.5, 0.1, 0.9, 0.02, "primary") for axis in axes]
    rows += [
        ("apo", "plain", "all", "gold", -0.1, -0.4, 0.2, 0.4, "secondary"),
        ("apo", "x", "all", "gold", 9, 9, 9, np.nan, "descriptive"),
    ]
    rows += [("apo", "none", "all", "gold", np.nan, np.nan, np.nan, np.nan, "secondary")]
    columns = ["arm_a", "arm_b", "axis", "scorer", "difference", "ci_low", "ci_high", "p_adjusted", "family"]
    return pd.DataFrame(rows, columns=columns).assign(at="final")


def test_the_forest_has_the_declared_contrasts(drawn: dict[str, Any]) -> None:
    """From top to bottom: primary, then secondary; filled where p < 0.05; without a result there is no point."""
    draw(forests(run_of([]), compared()))
    (panel,) = drawn["contrasts"].axes
    assert [label.get_text() for label in panel.get_yticklabels()] == [
        f"apo {MINUS} {other}" for other in ("golden_refresh", "plain", "none")
    ]
    _, interval, point, _, other, *_ = panel.get_lines()
    assert (list(interval.get_xdata()), list(interval.get_ydata())) == ([0.1, 0.9], [0, 0])
    assert (list(point.get_xdata()), point.get_markerfacecolor()) == ([0.5], figures.COLOURS[0])
    assert other.get_markerfacecolor() == "white"
    assert panel.get_ylim()[0] > panel.get_ylim()[1]


@pytest.mark.parametrize("axes", [("all",), ("all", "a long name of an axis")])
def test_names_in_the_forest_are_whole(drawn: dict[str, Any], axes: tuple[str, ...]) -> None:
    draw(forests(run_of([]), compared(axes, "golden_refresh_of_a_player_12")))
    figure = drawn["contrasts"]
    with rc_context(figures.STYLE):
        FigureCanvasAgg(figure).draw()
        box = figure.axes[0].get_tightbbox(figure.canvas.get_renderer())
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.legends[0].get_window_extent().y0


def test_no_contrast_has_a_result_and_nothing_is_drawn() -> None:
    assert list(forests(run_of([]), compared().assign(difference=np.nan))) == []


def test_budget_bars(drawn: dict[str, Any]) -> None:
    """Full bars: what an arm costs alone; hatched: what it added. A unit that an arm never spent is a bar of 0."""
    spent = {("b", "flops"): (4.0, 1.0), ("a", "flops"): (2.0, 2.0)}
    draw([budget_figure(("a", "b", "absent"), spent, {})])
    panels = {panel.get_title(): panel for panel in drawn["budget"].axes}
    assert [bar.get_width() for bar in panels["FLOPs"].patches] == [2, 4, 2, 1]
    assert [bar.get_width() for bar in panels["samples"].patches] == [0, 0, 0, 0]
    assert [text.get_text() for text in drawn["budget"].legends[0].get_texts()] == ["alone", "added in this run"]


DRAW = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[2].split(os.pathsep)
from test_figures import compared, draw_all
draw_all(Path(sys.argv[1]))
"""


def draw_all(folder: Path) -> list[Path]:
    """Write every kind of figure of two arms, with names that are no mathematics, no markup and not printable."""
    hostile = "$x^</text>&\u202e\x1b-->"
    table = summary(["a", "b"]).assign(axis=hostile)
    rows = [(hostile, k, "gold", 0.1 * k, 0.1) for k in (1, 2)]
    drawn = [*score_figures(run_of(["a", "b"], (hostile,)), table), curve_figure(rows), *forests(run_of([]), compared((hostile, "all")))]
    drawn.append(budget_figure(("a",), {("a", "flops"): (4e12, np.nan)}, {("a", "flops"): 5e12}))
    files = draw(drawn)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


@pytest.mark.slow
def test_files_are_the_same_twice_whole_and_inert(tmp_path: Path) -> None:
    """In another process, with other hashes of texts, too. PDFs embed TrueType fonts and no type 3; an svg is XML and without script."""
    paths = draw_all(tmp_path / "here")
    assert {path.suffix for path in paths} == {".png", ".svg", ".pdf"}
    command = [sys.executable, "-c", DRAW, str(tmp_path / "there"), os.pathsep.join(sys.path)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "7"}, cwd=Path(__file__).parents[2])
    for path in paths:
        content = path.read_bytes()
        assert content == (tmp_path / "there" / path.name).read_bytes(), path
        if path.suffix == ".pdf":
            assert b"/FontFile2" in content
            assert b"/Type3" not in content
            assert b"CreationDate" not in content
        elif path.suffix == ".svg":
            tags = {element.tag.rpartition("}")[2] for element in ET.fromstring(content).iter()}
            assert not {"script", "text", "image", "date"} & tags


def test_nothing_measured_draws_nothing() -> None:
    nothing = pd.DataFrame({"arm": [], "round": [], "metric": []})
    assert diagnostic_figure(("a",), nothing) == []
    assert reliability_figure(("a",), nothing) == []

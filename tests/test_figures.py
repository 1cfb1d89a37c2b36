"""Figures that stay readable: every arm has a look of its own, and nothing sticks out."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from apo_bench import figures

ARMS = [f"golden_refresh_of_a_player_{k}" for k in range(13)]


def summary(arms: list[str], bounded: tuple[str, ...] = ()) -> pd.DataFrame:
    rows = []
    for place, arm in enumerate(arms):
        for round_ in range(3):
            rows.append((arm, round_, "all", "gold", 0.1 * place * round_, 0.1))
            rows.append((arm, round_, "all", "kl_bound" if arm in bounded and round_ else "kl", round_ * (1.0 + place), 0.1))
    return pd.DataFrame(rows, columns=["arm", "round", "axis", "scorer", "mean", "seed_sd"])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The figures by name, instead of files."""
    kept: dict[str, Any] = {}
    monkeypatch.setattr(figures, "save", lambda figure, stem: [kept.setdefault(stem.name, figure)])
    return kept


def test_the_legend_of_many_arms_is_whole_and_covers_no_panel(drawn: dict[str, Any], tmp_path: Path) -> None:
    figures.draw_scores(summary(ARMS), ARMS, ["gold"], ["all"], tmp_path)
    assert set(drawn) == {"by_round", "by_kl"}
    for figure in drawn.values():
        FigureCanvasAgg(figure).draw()
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ARMS
        box, renderer = legend.get_window_extent(), figure.canvas.get_renderer()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
        for panel in figure.axes:
            assert panel.get_tightbbox(renderer).y1 <= box.y0
            assert panel.get_tightbbox(renderer).x1 <= figure.bbox.x1


def test_28_arms_look_different() -> None:
    names = [str(k) for k in range(28)]
    assert len({tuple(figures._look(names, name).values()) for name in names}) == 28


def test_hollow_markers_stand_at_a_bound(drawn: dict[str, Any], tmp_path: Path) -> None:
    arms = ["dpo", "best_of_n"]
    figures.draw_scores(summary(arms, bounded=("best_of_n",)), arms, ["gold"], ["all"], tmp_path)

    def hollow(figure: Any) -> dict[str, bool]:
        lines = [line for line in figure.axes[0].get_lines() if line.get_label() in arms]
        return {str(line.get_label()): line.get_markerfacecolor() == "white" for line in lines}

    assert hollow(drawn["by_kl"]) == {"dpo": False, "best_of_n": True}
    assert hollow(drawn["by_round"]) == {"dpo": False, "best_of_n": False}
    (bound,) = [line for line in drawn["by_kl"].axes[0].get_lines() if line.get_label() == "best_of_n"]
    assert list(bound.get_xdata()) == [0, 2, 4]


def test_a_measured_kl_comes_before_its_bound() -> None:
    rows = [("a", 1, "all", "kl_bound", 2.0), ("a", 1, "all", "kl", 1.0), ("b", 1, "all", "kl_bound", 3.0)]
    table = figures.kl_or_bound(pd.DataFrame(rows, columns=["arm", "round", "axis", "scorer", "mean"]))
    assert table[["arm", "kl", "bound"]].to_numpy().tolist() == [["a", 1.0, False], ["b", 3.0, True]]


def test_reliability_shows_the_first_and_the_last_round(drawn: dict[str, Any], tmp_path: Path) -> None:
    """Rounds 0 to 3: round 0 shows round 1's reward model, so it is left out; one round alone is drawn once. Areas grow with n."""
    rows = [("many", round_, k, 0.55 + k / 10, 0.1 * round_ + k / 10, 10 * (3 * k + 1)) for round_ in range(4) for k in (0, 1)]
    rows += [("one", round_, 0, 0.55, 0.5, 10) for round_ in (0, 1)]
    table = pd.DataFrame(rows, columns=["arm", "round", "bin", "confidence", "accuracy", "n"])
    figures.draw_reliability(table, ["many", "absent", "one"], tmp_path)
    many, one = drawn["reliability"].axes
    assert (many.get_title(), one.get_title()) == ("many", "one")
    curves = [list(line.get_ydata()) for line in many.get_lines()]
    np.testing.assert_allclose(curves[1:], [[0.1, 0.2], [0.3, 0.4]])
    assert len(one.get_lines()) == 2  # the diagonal and one round
    assert curves[0] == [0.5, 1]
    small, large = many.collections[0].get_sizes()
    assert (large - 6) / (small - 6) == pytest.approx(4)


def test_curves_and_diagnostics_are_drawn_where_there_are_rows(drawn: dict[str, Any], tmp_path: Path) -> None:
    rows = [("plain", 300, "gold", 0.3, 0.1), ("plain", 100, "gold", 0.1, np.nan), ("apo", 120, "gold", 0.5, 0.1)]
    figures.draw_by_annotation(pd.DataFrame(rows, columns=["curve", "annotation", "scorer", "mean", "seed_sd"]), tmp_path)
    (panel,) = drawn["by_annotation"].axes
    plain = panel.get_lines()[0]
    assert (list(plain.get_xdata()), list(plain.get_ydata())) == ([100, 300], [0.1, 0.3])
    found = pd.DataFrame([("a", 1, metric, 0.5, 0.1) for metric in ("ece", "fixed_mean", "fixed_sd")])
    found.columns = ["arm", "round", "metric", "mean", "seed_sd"]
    figures.draw_reward_models(found, ["a"], tmp_path)
    assert [panel.get_title() for panel in drawn["reward_models"].axes] == ["ece", "fixed_mean"]


@pytest.mark.parametrize("draw", [figures.draw_reward_models, figures.draw_reliability])
def test_nothing_measured_draws_nothing(draw: Any, tmp_path: Path) -> None:
    assert draw(pd.DataFrame({"arm": [], "round": [], "metric": []}), ["a"], tmp_path) == []
    assert not list(tmp_path.iterdir())

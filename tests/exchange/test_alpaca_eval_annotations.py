"""AlpacaEval's annotations: its own leaderboard again, and one line for every row that is wrong."""

import gzip
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apo_bench.errors import InputError
from apo_bench.exchange.alpaca_eval_annotations import NO_PREFERENCE, import_annotations, read_annotations, strengths, win_rates

DATA = Path(__file__).parents[3] / "shared" / "data" / "judging" / "alpaca_eval2"
ROW = {
    "instruction": "hi", "output_1": "yes?", "output_2": "go", "generator_1": "base", "generator_2": "model", "annotator": "gpt",
    "dataset": "koala", "preference": 1.75,
}  # fmt: skip


def written(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def annotation(instruction: str, preference: Any, model: str = "model", **changes: Any) -> dict[str, Any]:
    return ROW | {"instruction": instruction, "preference": preference, "generator_2": model} | changes


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    if not DATA.is_dir():
        pytest.skip("the judge data are not beside the project (../shared/data/judging)")
    return pd.read_csv(DATA / "published.csv").set_index("model")


@pytest.mark.slow
def test_the_leaderboard_again(published: pd.DataFrame, tmp_path: Path) -> None:
    """Win rates and standard errors in percent to 1e-6, counts and the models' mean lengths as published."""
    done = import_annotations(sorted(DATA.glob("*.jsonl.gz")), tmp_path)
    assert (done.n, done.missing) == (4 * 805, {})
    rates = pd.read_csv(tmp_path / "win_rates.csv").set_index("arm_a")
    assert set(rates.index) == set(published.index)
    for ours, theirs in (("win_rate", "win_rate"), ("standard_error", "standard_error")):
        assert (100 * rates[ours]).to_dict() == pytest.approx(published[theirs].to_dict(), abs=1e-6)
    for ours, theirs in (("n_wins", "n_wins"), ("n_losses", "n_wins_base"), ("n_ties", "n_draws"), ("n", "n_total")):
        assert rates[ours].to_dict() == published[theirs].to_dict()
    assert {model: int(length) for model, length in rates["length_a"].items()} == published["avg_length"].to_dict()
    assert set(rates["arm_b"]) == {"gpt4_1106_preview"}
    assert (rates["lc_win_rate"] > rates["win_rate"]).all()  # as theirs: all are shorter than the reference
    assert (published["length_controlled_winrate"] > published["win_rate"]).all()
    alone = win_rates(read_annotations(sorted(DATA.glob("*.jsonl.gz"))), draws=100, without_difficulty=True).set_index("arm_a")
    theirs = published["length_controlled_winrate"]
    off = [float((100 * frame["lc_win_rate"] - theirs).abs().mean()) for frame in (rates, alone)]
    assert off[0] < 2 < 8 < off[1]  # a table of difficulty from these four models only
    fitted = strengths(read_annotations(sorted(DATA.glob("*.jsonl.gz"))))["weighted_alpaca_eval_gpt4_turbo"]
    assert list(fitted.strengths["model"][1:]) == list(rates["win_rate"].sort_values(ascending=False).index)
    summary = (tmp_path / "summary.md").read_text()
    assert "| weighted_alpaca_eval_gpt4_turbo | vicuna-7b-v1.5 | gpt4_1106_preview | 0.048 |" in summary
    assert "## Strengths by weighted_alpaca_eval_gpt4_turbo" in summary


def test_a_preference_becomes_the_model_s_value(tmp_path: Path) -> None:
    """preference - 1 for generator_2; 0 is a draw; null and NaN are missing. Lengths in characters."""
    preferences = [1, 2, 1.5, 0, 1.75, None, math.nan, 2.0]
    rows = read_annotations([written(tmp_path / "a.jsonl", *(annotation(f"q{place}", x) for place, x in enumerate(preferences)))])
    assert list(rows["value"].fillna(-1)) == [0, 1, 0.5, 0.5, 0.75, -1, -1, 1]
    assert list(rows["failure"]) == ["", "", "", "", "", NO_PREFERENCE, NO_PREFERENCE, ""]
    first = rows.iloc[0]
    assert (first["arm_a"], first["arm_b"], first["judge"], first["axis"], first["round"]) == ("model", "base", "gpt", "koala", "")
    assert (first["order"], first["verdict"], first["length_a"], first["length_b"]) == ("", None, 2, 4)
    assert rows["cluster_id"].nunique() == 8


def test_the_same_rows_as_list_and_compressed(tmp_path: Path) -> None:
    rows = [annotation("a", 1.25), annotation("b", None), annotation("\u2028c", 2)]
    lines = written(tmp_path / "a.jsonl", *rows)
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + lines.read_bytes() + b"\n\n"))
    frames = [read_annotations([tmp_path / name]) for name in ("a.jsonl", "a.json", "a.jsonl.gz")]
    assert frames[0].equals(frames[1])
    assert frames[0].equals(frames[2])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROW | {"preference": 3}, "line 2: preference: a number from 1 to 2, or 0 for a draw, is needed, got 3"),
        (ROW | {"preference": 0.5}, "line 2: preference: a number from 1 to 2"),
        (ROW | {"preference": "2"}, "line 2: preference: .*got '2'"),
        (ROW | {"preference": True}, "line 2: preference: .*got True"),
        (ROW | {"preference": math.inf}, "line 2: preference: .*got inf"),
        ({key: ROW[key] for key in ROW if key != "preference"}, "line 2: preference: missing"),
        (ROW | {"output_1": None}, "line 2: output_1: missing"),
        (ROW | {"output_2": 5}, "line 2: output_2: text is needed, got 5"),
        (ROW | {"dataset": 5}, "line 2: dataset: text is needed, got 5"),
        (ROW | {"instruction": "\ud800"}, r"line 2: instruction: not Unicode text \(character 0\)"),
        (ROW | {"instruction": "before"}, "line 2: instruction: annotated before, .*line 1"),
        ([], "line 2: an annotation is a mapping of keys, got list"),
    ],
)
def test_a_bad_row_is_one_line_that_says_where(tmp_path: Path, row: Any, message: str) -> None:
    path = written(tmp_path / "a.jsonl", ROW | {"instruction": "before"}, row)
    with pytest.raises(InputError, match=f"a.jsonl: {message}") as caught:
        read_annotations([path])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"{", "line 1: not valid JSON"),
        ("a.json", b"{}", "a list of annotations is needed, got dict"),
        ("a.json", b"[1]", "row 1: an annotation is a mapping of keys, got int"),
        ("a.jsonl", b"", "no annotations"),
        ("a.jsonl", b"\xff", r"not UTF-8 \(byte 0\)"),
        ("a.jsonl.gz", b"no", "not readable"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], "not readable"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: {message}"):
        read_annotations([tmp_path / name])


VALUES = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3), lambda x: st.lists(x, max_size=2))


@given(st.lists(st.fixed_dictionaries({}, optional={key: VALUES | st.just(ROW[key]) for key in ROW}) | VALUES, max_size=3))
def test_any_rows_are_verdicts_or_one_line(rows: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder) / "a.jsonl", *rows)
        verdicts, refusal = None, ""
        try:
            verdicts = read_annotations([path])
        except InputError as error:
            refusal = str(error)
    assert (len(verdicts) <= len(rows)) if verdicts is not None else refusal.startswith(str(path))
    assert verdicts is None or verdicts["value"].dropna().between(0, 1).all()
    assert "\n" not in refusal


def test_what_the_statistics_refuse_is_said_and_no_number_made_up(tmp_path: Path) -> None:
    """One model without any verdict; two models are no field to rank."""
    import_annotations([written(tmp_path / "a.jsonl", annotation("a", None), annotation("b", None))], tmp_path / "out")
    row = pd.read_csv(tmp_path / "out" / "win_rates.csv").iloc[0]
    assert (row["n"], row["n_missing"], math.isnan(row["win_rate"])) == (0, 2, True)
    assert row["test"] == "none: win_rate: no preferences (2 missing)"
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "| gpt | model | base | - | - | 0 | 2 | 0 / 0 / 0 | - (-) | 2 / 4 |" in text
    assert "Strengths" not in text


def test_a_baselines_own_file_is_skipped_and_counted(tmp_path: Path) -> None:
    files = [written(tmp_path / "base.jsonl", ROW | {"generator_2": "base"}), written(tmp_path / "a.jsonl", ROW)]
    done = import_annotations(files, tmp_path / "out")
    assert (done.n, done.n_skipped) == (1, 1)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["skipped"] == 1
    with pytest.raises(InputError, match=r"base.jsonl: no annotations but 1 of a model compared with itself"):
        read_annotations(files[:1])


def test_no_win_rate_at_equal_lengths_of_one_model_unless_it_is_wanted(tmp_path: Path) -> None:
    """Of one model, what is an easy instruction and what is a good answer are the same; a second model makes a table."""
    rows = [annotation(str(i), 1 + (i % 3 > 0), output_1="a" * (5 + i % 4), output_2="a" * (7 - i % 5)) for i in range(24)]
    more = [row | {"generator_2": "other", "preference": 1 + (i % 2)} for i, row in enumerate(rows)]
    single, both = (read_annotations([written(tmp_path / "a.jsonl", *lines)]) for lines in (rows, rows + more))
    assert win_rates(single, draws=100)["lc_win_rate"].isna().all()
    assert win_rates(single, draws=100)["lc_test"].str.contains("without-difficulty").all()
    assert win_rates(single, draws=100, without_difficulty=True)["lc_win_rate"].notna().all()
    rates = win_rates(both, draws=100)
    assert rates["lc_win_rate"].notna().all()
    assert not rates["lc_note"].str.contains("no difficulty").any()


def test_win_rates_are_apart_by_judge_and_model(tmp_path: Path) -> None:
    """By hand: gpt on x: (1 + 0) / 2; gpt on y: 1/4; people on x: 1."""
    rows = [annotation("a", 2, "x"), annotation("b", 1, "x"), annotation("a", 1.25, "y"), annotation("a", 2, "x", annotator="people")]
    rates = win_rates(read_annotations([written(tmp_path / "a.jsonl", *rows)]), draws=100)
    assert {(row.judge, row.arm_a): row.win_rate for row in rates.itertuples()} == {
        ("gpt", "x"): 0.5,
        ("gpt", "y"): 0.25,
        ("people", "x"): 1.0,
    }


def test_outside_verdicts_do_not_go_into_another_folder(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", ROW)
    import_annotations([path], tmp_path / "out")
    import_annotations([path], tmp_path / "out")  # once more, in place
    (tmp_path / "run").mkdir()
    for name in ("experiment.yaml", "manifest.json"):
        (tmp_path / "run" / name).write_text("{}")
        with pytest.raises(InputError, match="run: not a folder of outside verdicts"):
            import_annotations([path], tmp_path / "run")
        (tmp_path / "run" / name).unlink()
    assert not list((tmp_path / "run").iterdir())

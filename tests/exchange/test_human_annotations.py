"""A sheet comes back as exactly the verdicts that people put into it, or with one line that says where it is wrong."""

import csv
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from exchange_run import PROMPTS, answered, compared
from hypothesis import given
from hypothesis import strategies as st

from apo_bench.analysis.win_rates import comparisons_from_verdicts
from apo_bench.errors import InputError
from apo_bench.exchange.export import SHEET, export_annotate, key_path
from apo_bench.exchange.human_annotations import EMPTY, NO_ROW, import_sheets, read_sheets
from apo_bench.judging.judge_protocol import value_of
from apo_bench.stats import judged_win_rate

PAIRS = [compared(place, f"ours {place}", f"theirs {place}") for place in range(4)]
VALUES = {"1": "first", "2": "second", "tie": "tie", "": None}


def filled(sheet: Path, preferences: Sequence[str], **style: Any) -> pd.DataFrame:
    """Put preferences under the sheet's rows in order, as a spreadsheet would save it; returns the rows with what was shown."""
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, preference in zip(rows, preferences, strict=True):
        row["preference"] = preference
    text = io.StringIO()
    writer = csv.DictWriter(text, SHEET, **style)
    writer.writeheader()
    writer.writerows(rows)
    sheet.write_text(text.getvalue(), encoding="utf-8", newline="")
    shown = json.loads(key_path(sheet).read_text())["shown"]
    return pd.DataFrame([shown[row["id"]] | {"verdict": VALUES[row["preference"].strip().casefold()]} for row in rows])


def by_prompt(rows: pd.DataFrame) -> dict[str, tuple[str, Any]]:
    verdicts = rows["verdict"].astype(object)
    return {
        id_: (order, None if pd.isna(verdict) else verdict)
        for id_, order, verdict in zip(rows["prompt_id"], rows["order"], verdicts, strict=True)
    }


def sheet_of(folder: Path, *lines: str) -> Path:
    """A sheet exported for PAIRS whose rows are replaced by these; {0} to {3} are its ids."""
    sheet = folder / "sheet.csv"
    export_annotate(PAIRS, sheet)
    ids = list(json.loads(key_path(sheet).read_text())["shown"])
    sheet.write_text("\n".join(line.format(*ids) for line in lines), encoding="utf-8")
    return sheet


TEXT = st.text(max_size=12) | st.sampled_from(
    [
        "=1+1",
        "a,b;c\td",
        'said "no"',
        "two\nlines",
        "\r",
        "\r\n",
        "'quoted",
        "\u200f\u202eright to left",
        "\ufeff",
        "\x00",
        "naïve 😀",
        '"',
        "",
    ]
)
STYLES = st.sampled_from([
    {}, {"quoting": csv.QUOTE_ALL}, {"delimiter": ";"}, {"delimiter": "\t"},
    {"delimiter": ";", "lineterminator": "\n", "quoting": csv.QUOTE_ALL},
])  # fmt: skip


@given(st.lists(st.tuples(TEXT, TEXT, st.sampled_from(["1", "2", "tie", "Tie ", ""])), min_size=1, max_size=6), STYLES, st.integers(0, 9))
def test_a_filled_sheet_comes_back_as_it_was_filled(rows: list[tuple[str, str, str]], style: dict[str, Any], seed: int) -> None:
    """Whatever the texts and however the spreadsheet saves them; identical responses are ties, "" is no verdict."""
    pairs = [compared(place, a, b) for place, (a, b, _) in enumerate(rows)]
    different = [preference for a, b, preference in rows if a != b]
    with tempfile.TemporaryDirectory() as folder:
        sheet = Path(folder) / "sheet.csv"
        if not different:
            with pytest.raises(InputError, match="nothing to annotate"):
                export_annotate(pairs, sheet, seed=seed)
            return
        export_annotate(pairs, sheet, seed=seed)
        expected = by_prompt(filled(sheet, different, **style))
        verdicts = read_sheets([sheet])
    same = {pair.prompt.id: ("ab", "tie") for pair in pairs if pair.a == pair.b}
    assert by_prompt(verdicts) == expected | same
    assert len(verdicts) == len(rows)
    for row in verdicts.itertuples():
        order, choice = (expected | same)[row.prompt_id]
        value = value_of(order, choice)
        assert row.value == value or (value != value and row.value != row.value)
        assert (row.judge, row.failure) == ("human", "" if choice else EMPTY)


def test_what_is_empty_or_gone_is_missing(tmp_path: Path) -> None:
    """Row 1 says 1, row 2 is empty and cut short, row 3 says 2.0 as a column of numbers does, row 4 is gone; a blank row means nothing."""
    sheet = sheet_of(tmp_path, "id,prompt,response_1,response_2,preference", "{0},p,x,y,1", "{1},p,x", ",,,,", "{2},p,x,y,2.0")
    rows = read_sheets([sheet])
    shown = list(json.loads(key_path(sheet).read_text())["shown"].values())
    assert list(rows["verdict"].fillna("")) == ["first", "", "second", ""]
    assert list(rows["failure"]) == ["", EMPTY, "", NO_ROW]
    assert list(rows["value"].fillna(-1)) == [float(shown[0]["order"] == "ab"), -1, float(shown[2]["order"] == "ba"), -1]
    assert list(rows["prompt_id"]) == [entry["prompt_id"] for entry in shown]


HEAD = "id,prompt,response_1,response_2,preference"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((HEAD, "{0},p,x,y,1", '{1},p,"x\nx",y,left'), "line 3: preference: 1, 2 or tie is needed, got 'left'"),
        ((HEAD, '{0},p,"x\nx",y,1', "{1},p,x,y,3"), "line 4: preference: 1, 2 or tie is needed, got '3'"),
        ((HEAD, "{0},p,x,y,1", "{0},p,x,y,1"), r"line 3: id: s\w+_0001 is on line 2 already"),
        ((HEAD, "nobody,p,x,y,1"), "line 2: id: 'nobody' is not in the sheet's key"),
        ((HEAD, ",p,x,y,1"), "line 2: id: '' is not in the sheet's key"),
        ((HEAD, "{0},p,x,y,1,2"), "line 2: more cells than columns"),
        ((HEAD, '{0},"p,x,y,1'), "line 2: not readable as CSV"),
        (("id,verdict", "{0},1"), "line 1: the columns id and preference are needed, once each"),
        (("id,preference,preference", "{0},1,2"), "line 1: the columns id and preference are needed, once each"),
        ((), "line 1: the columns id and preference are needed, once each"),
    ],
)
def test_a_bad_sheet_is_one_line_that_says_where(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=f"sheet.csv: {message}") as caught:
        read_sheets([sheet_of(tmp_path, *lines)])
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=60))
def test_any_file_is_a_sheet_or_one_line(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sheet = sheet_of(Path(folder), HEAD)
        for start in (b"", HEAD.encode() + b"\n"):
            sheet.write_bytes(start + content)
            verdicts, refusal = None, ""
            try:
                verdicts = read_sheets([sheet])
            except InputError as error:
                refusal = str(error)
            assert (len(verdicts) == len(PAIRS)) if verdicts is not None else refusal.startswith(str(sheet))
            assert "\n" not in refusal


def test_cells_longer_than_the_reader_s_limit(tmp_path: Path) -> None:
    """Python's reader refuses 131,073 characters unless told otherwise, and is left as it was."""
    sheet = tmp_path / "sheet.csv"
    export_annotate([compared(0, "a" * 200_000, "b")], sheet)
    limit = csv.field_size_limit()
    assert list(read_sheets([sheet])["failure"]) == [EMPTY]
    assert csv.field_size_limit() == limit


def test_files_that_are_no_sheet_or_no_key(tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path, HEAD, "{0},p,x,y,1")
    with pytest.raises(InputError, match=r"other.csv: no such file"):
        read_sheets([tmp_path / "other.csv"], key_path(sheet))
    with pytest.raises(InputError, match=r"other.key.json: no such file"):
        read_sheets([tmp_path / "other.csv"])
    sheet.write_bytes("id,preference\n\xe9,1".encode("latin-1"))
    with pytest.raises(InputError, match=r"sheet.csv: not UTF-8 \(byte 14\)"):
        read_sheets([sheet])
    key = json.loads(key_path(sheet).read_text())
    first = next(iter(key["shown"]))
    key["shown"][first]["order"] = "left"
    key_path(sheet).write_text(json.dumps(key))
    with pytest.raises(InputError, match=rf"sheet.key.json: shown.{first}.order: .*is it a sheet's key\?"):
        read_sheets([sheet])
    key_path(sheet).write_text("{")
    with pytest.raises(InputError, match=r"sheet.key.json: not JSON: .*is it a sheet's key\?"):
        read_sheets([sheet])


def test_several_sheets_are_one_judge_and_no_comparison_is_in_two(tmp_path: Path) -> None:
    for name, pairs in (("a", PAIRS[:2]), ("b", PAIRS[2:]), ("c", PAIRS[1:])):
        export_annotate(pairs, tmp_path / f"{name}.csv")
    assert len(read_sheets([tmp_path / "a.csv", tmp_path / "b.csv"])) == 4
    with pytest.raises(InputError, match=rf"c.key.json: apo_rjs and rjs on prompt {PROMPTS[1].id} are in .*a.key.json already"):
        read_sheets([tmp_path / "a.csv", tmp_path / "c.csv"])
    with pytest.raises(InputError, match="a key goes with one sheet, got 2"):
        read_sheets([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "a.key.json")


def test_one_order_a_comparison_is_a_whole_comparison(tmp_path: Path) -> None:
    """Four prompts, first place wins each: the value is 1 where arm_a was shown first, so the win rate is the share shown "ab".

    `comparisons` takes a judge that was asked once at its word, and `judged_win_rate` does so without the column order.
    """
    sheet = tmp_path / "sheet.csv"
    export_annotate(PAIRS, sheet)
    filled(sheet, ["1"] * 4)
    rows = read_sheets([sheet])
    share = (rows["order"] == "ab").mean()
    assert 0 < share < 1
    assert comparisons_from_verdicts(rows)["value"].mean() == share
    estimate = judged_win_rate(rows.drop(columns="order"))
    assert (estimate.win_rate, estimate.n_comparisons, estimate.n_missing) == (share, 4, 0)


# Into a run

TEXTS = {
    (arm, 0, round_): [f"{text} {place}" for place in range(4)]
    for arm, text in (("apo_rjs", "ours"), ("rjs", "theirs"))
    for round_ in (0, 1)
}
MACHINE = [
    ("apo_rjs", "rjs", 0, 0, "1", pair.prompt.id, pair.prompt.cluster_id, pair.prompt.axis, "machine", order, "tie", 0.5, "", 2.0, 2.0)
    for pair in PAIRS
    for order in ("ab", "ba")
]


def judgments(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "tables" / "judgments.parquet")


def test_people_join_the_judges_of_a_run_and_may_go_on(tmp_path: Path) -> None:
    """4 human rows beside 8 of a machine; a sheet that was filled in further replaces what it said before; a second judge joins."""
    folder, sheet = answered(tmp_path / "run", TEXTS, MACHINE), tmp_path / "sheet.csv"
    export_annotate(PAIRS, sheet)
    filled(sheet, ["1", "", "", "tie"])
    assert import_sheets(folder, [sheet]).missing == {EMPTY: 2}
    filled(sheet, ["1", "2", "", "tie"])
    done = import_sheets(folder, [sheet])
    assert (done.path, done.n, done.missing) == (folder / "tables" / "judgments.parquet", 4, {EMPTY: 1})
    table = judgments(folder)
    assert table["judge"].value_counts().to_dict() == {"machine": 8, "human": 4}
    assert table.loc[table["judge"] == "human", "verdict"].notna().sum() == 3
    kept = pd.read_parquet(folder / "imported" / "human.parquet")
    assert sorted(kept["prompt_id"]) == sorted(pair.prompt.id for pair in PAIRS)
    import_sheets(folder, [sheet], judge="second")
    assert set(judgments(folder)["judge"]) == {"machine", "human", "second"}


def test_the_first_judge_of_a_run_may_be_a_person(tmp_path: Path) -> None:
    folder, sheet = answered(tmp_path / "run", TEXTS), tmp_path / "sheet.csv"
    export_annotate(PAIRS, sheet)
    import_sheets(folder, [sheet])
    assert len(judgments(folder)) == 4


def test_a_person_takes_no_machine_s_name(tmp_path: Path) -> None:
    folder, sheet = answered(tmp_path / "run", TEXTS, MACHINE), tmp_path / "sheet.csv"
    export_annotate(PAIRS, sheet)
    with pytest.raises(InputError, match="there is a judge machine already; import under another name"):
        import_sheets(folder, [sheet], judge="machine")
    with pytest.raises(InputError, match="judge 'a/b': letters, digits"):
        import_sheets(folder, [sheet], judge="a/b")
    assert len(judgments(folder)) == 8


def test_verdicts_on_other_responses_are_no_verdicts_on_this_run(tmp_path: Path) -> None:
    changed = TEXTS | {("rjs", 0, 1): ["theirs 0", "theirs 1", "theirs 2", "new"], ("rjs", 0, 0): ["old"] * 4}
    folder, sheet = answered(tmp_path / "run", changed), tmp_path / "sheet.csv"
    export_annotate(PAIRS, sheet)
    with pytest.raises(InputError, match=rf"apo_rjs, seed 0, and rjs, seed 0 to prompt {PROMPTS[3].id} are not those shown"):
        import_sheets(folder, [sheet])
    assert not (folder / "imported").exists()
    assert not (folder / "tables" / "judgments.parquet").exists()

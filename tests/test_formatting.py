"""Text from outside steers no terminal and adds no line: by itself, in Markdown, in tables, in errors and in what a command says failed."""

import math
import sys
import unicodedata

import pytest
import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from apo_bench import formatting as markdown
from apo_bench.cli import judging as judging_commands
from apo_bench.cli import terminal
from apo_bench.errors import InputError
from apo_bench.formatting import duration, one_line, visible

TURNING = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}  # Unicode's classes of marks that turn text
RUDE = "\x1b[2J\x1b]0;pwn\x07 \u202eevil\nfailed: nobody\r\u2028| # Fine"
SHOWN = "␛[2J␛]0;pwn␇ ⟨U+202E⟩evil failed: nobody | # Fine"


def steering(text: str) -> set[str]:
    """What of a text is no newline, and a control character, a separator of lines, or a mark that turns text: by Unicode's own tables."""
    marks = {"\u200e", "\u200f", "\u061c"}
    return {
        character
        for character in text
        if character != "\n"
        and (
            unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs")
            or unicodedata.bidirectional(character) in TURNING
            or character in marks
        )
    }


@pytest.mark.slow
def test_nothing_that_steers_is_left_of_any_character() -> None:
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    assert steering(visible(every)) == {"\t"}
    assert steering(one_line(every)) == set()
    assert "\n" not in one_line(every)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x00\x1b[0m\x7f", "\u2400\u241b[0m\u2421"),
        ("\x85\u202e\u2066\ufeff\u200b", "⟨U+0085⟩⟨U+202E⟩⟨U+2066⟩⟨U+FEFF⟩⟨U+200B⟩"),
        ("\ud83d \U000e0041", "⟨U+D83D⟩ ⟨U+E0041⟩"),
        ("👩\u200d💻 עברית", "👩\u200d💻 עברית"),
    ],
)
def test_what_is_hidden_is_shown_by_name(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown


def test_a_message_is_one_line() -> None:
    assert one_line(RUDE) == one_line(SHOWN) == SHOWN


def test_markdown_gets_one_line() -> None:
    assert markdown.plain(RUDE) == SHOWN.replace("|", "\\|")
    assert markdown.table(["a", "b"], [["1", markdown.plain(RUDE)], ["2", "x\n\x1b| 3 |"]]) == [
        "| a | b |", "| --- | --- |", f"| 1 | {markdown.plain(RUDE)} |", "| 2 | x ␛| 3 | |",
    ]  # fmt: skip


@pytest.mark.parametrize("tty", [False, True])
def test_tables_and_paragraphs_steer_no_terminal(tty: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Heads, titles, captions and cells too, and the columns stay as wide as what is shown; `:skull:` is what it says."""
    monkeypatch.setenv("TERM", "dumb")  # no colours of ours
    if tty:
        monkeypatch.setenv("FORCE_COLOR", "1")
    rude = "\x1b[2J\u202e:skull:"
    table = Table(rude, "b", box=SIMPLE_HEAD, title=rude, caption=rude)
    table.add_row("1", "2")
    table.add_row(rude, "3")
    terminal.print_tables(table, rude)
    output = capsys.readouterr().out
    assert steering(output) == set()
    assert output.count("␛[2J⟨U+202E⟩:skull:") == 5
    assert len({line.rstrip().rindex(line.rstrip()[-1]) for line in output.splitlines() if line.rstrip().endswith(("  2", "  3"))}) == 1


@pytest.mark.parametrize("error", [InputError(RUDE), OSError(2, "No such file", RUDE)])
def test_an_error_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), terminal.plain_errors():
        raise error
    output = capsys.readouterr().err
    assert output == (f"error: {SHOWN}\n" if isinstance(error, InputError) else f"error: {SHOWN}: No such file\n")


def test_what_a_judge_did_not_answer_is_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        judging_commands._fail_on([RUDE, "gpt: 2 questions"])
    assert capsys.readouterr().err == f"failed: {SHOWN}\nfailed: gpt: 2 questions\n"


def test_durations() -> None:
    """One and a half of a unit and more are given in it. A duration that is not known is no number."""
    seconds = (0, 0.4, 89, 90, 5399, 5400, 3600 * 1500, math.nan)
    texts = ["0 s", "0 s", "89 s", "1.5 min", "90.0 min", "1.5 h", "1,500.0 h", "not known"]
    assert [duration(value) for value in seconds] == texts


def test_signs_of_numbers_are_minus_signs_and_hyphens_stay() -> None:
    """By hand: after a blank, a bracket or a plus; not in words, ranges, dates, exponents, options or paths."""
    assert markdown.minus("-0.5 (-1 to +2), +-3, [-.5") == "\u22120.5 (\u22121 to +2), +\u22123, [\u2212.5"
    for text in ("SHA-256", "1e-05", "2026-12-01", "3-5", "--set", "a/-1", "no-1", "x - y", "-"):
        assert markdown.minus(text) == text
    assert markdown.minus(" - ") == " \u2212 "  # between two names

"""What is seen of a run: lines without a terminal, and on one a view that says how far, how fast, how long still and what is spent."""

from pathlib import Path

import pytest
from rich.console import Console

from apo_bench.run.jobs import GOLD, INITIAL, Job, ProgressEvent, final_event
from apo_bench.run.progress import View, live

FOLDER = Path("run")
JOBS = [Job(Path("mine.yaml"), "{}", FOLDER, arm, seed) for arm, seed in ((INITIAL, 0), (GOLD, 1), ("a", 0), ("a", 1), ("b", 0), ("b", 1))]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def view(clock: Clock) -> View:
    return View(JOBS, {"a": {"human_pairs": 32, "golden_responses": 0, "flops": 1e9}, "b": {}}, workers=2, now=clock)


def seen(view: View, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(view)
    return console.export_text()


def test_the_view_of_a_run_in_the_middle(view: View, clock: Clock) -> None:
    """By hand: a's seed 0 took 40 s. b's seed 0 has been at it for 10 s of the 40 that any arm takes, b's seed 1 waits, a's seed 1 has
    failed: (30 + 40) / 2 workers = 35 s left. 500 tokens in the last 30 s: 17 a second."""
    view.show(JOBS[0], final_event(None))
    view.show(JOBS[1], final_event(None))
    view.show(JOBS[2], ProgressEvent("starting"))
    clock.now += 20
    view.show(JOBS[3], ProgressEvent("starting"))
    view.show(JOBS[3], final_event("no luck"))
    clock.now += 20
    view.show(JOBS[2], final_event(None))
    view.show(JOBS[4], ProgressEvent("starting"))
    clock.now += 10
    view.show(JOBS[4], ProgressEvent("sampling 8 x 2", 500.0, {"human_pairs": 16, "flops": 2e9}))
    assert view.left_s() == pytest.approx(35)
    lines = [line.rstrip() for line in seen(view).splitlines()]
    assert lines == [
        "initial policy  ✓", "gold seed 1     ✓", "a               ✓ ✗", "b               ▸ ·", "", "b seed 0  sampling 8 x 2", "",
        "4 of 6 done, 50 s so far, about 35 s left, 17 tokens/s, 1 failed",
    ]  # fmt: skip


def test_tokens_per_second_are_of_the_last_half_minute(view: View, clock: Clock) -> None:
    assert view.tokens_per_s() is None
    view.show(JOBS[2], ProgressEvent("starting"))
    clock.now += 100
    view.show(JOBS[2], ProgressEvent("sampling", 1000.0))
    assert view.tokens_per_s() == pytest.approx(10)  # the only two words there are
    clock.now += 10
    view.show(JOBS[3], ProgressEvent("scoring", 300.0))
    assert view.tokens_per_s() == pytest.approx(30)


@pytest.mark.parametrize(
    ("used", "message"),
    [
        ({}, "0% of its human_pairs"),
        ({"human_pairs": 24, "flops": 5e8}, "75% of its human_pairs"),
        ({"human_pairs": 16, "flops": 9e8}, "90% of its flops"),
    ],
)
def test_spent_is_the_unit_nearest_its_end(view: View, used: dict[str, float], message: str) -> None:
    """24 of 32 pairs are 75 %, 9e8 of 1e9 flops 90 %; a budget of 0 has no share."""
    view.show(JOBS[2], ProgressEvent("sampling", 0.0, used))
    assert view.spent(JOBS[2]) == message
    assert view.spent(JOBS[4]) == ""


def test_a_long_stage_and_odd_names_stay_inside_the_width(view: View) -> None:
    """A method's own words may be markup or escapes, or lines of their own: they are shown as they are, by name, in one line."""
    view.show(JOBS[4], ProgressEvent("[bold red]x[/] \x1b[31m\u202e\n3 of 6" + "y" * 200))
    text = seen(view, 80)
    assert "[bold red]x[/] ␛[31m⟨U+202E⟩ 3 of 6" in " ".join(text.split())
    assert not {"\x1b", "\u202e"} & set(text)
    assert max(map(len, text.splitlines())) <= 80


def test_without_a_terminal_a_line_for_every_finished_job(capfd: pytest.CaptureFixture[str]) -> None:
    with live(JOBS[2:4], {}, 1) as show:
        show(JOBS[2], ProgressEvent("starting"))
        show(JOBS[3], final_event("no luck"))
        show(JOBS[2], final_event(None))
    assert capfd.readouterr().err.splitlines() == ["[1/2] a seed 1: failed", "[2/2] a seed 0: done"]


def test_a_line_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with live(JOBS[2:3], {}, 1) as show:
        show(JOBS[2], ProgressEvent("\x1b]0;pwn\x07\u202e\n[2/2] b seed 0: done", finished=True))
    assert capfd.readouterr().err == "[1/1] a seed 0: ␛]0;pwn␇⟨U+202E⟩ [2/2] b seed 0: done\n"

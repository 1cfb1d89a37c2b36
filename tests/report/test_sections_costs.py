"""The report's section on costs, from tables by hand."""

from pathlib import Path
from typing import Any

import pandas as pd
from run_folder import experiment, frame, scored, write_run

from apo_bench.analysis import costs
from apo_bench.analysis.results import Run, read_run
from apo_bench.report.document import Section
from apo_bench.report.markdown import section_lines
from apo_bench.report.sections.costs import measured_blocks, section

NAN = float("nan")
FIT = {"arm": "rjs", "to": "apo_rjs", "unit": "flops", "by": "rounds", "value": 3, "ratio": 0.98, "beside": [[2, 0.7], [4, 1.3]]}


def run(folder: Path, ledger: list[tuple[Any, ...]], plan: list[tuple[Any, ...]] | None = None, **manifest: Any) -> Run:
    """A ledger of arm, seed, unit, used, marginal (NaN: it was not recorded), and a plan of arm, unit, amount."""
    tables = {"scores": scored({(arm, seed, 1): (0, 0) for arm in ("rjs", "apo_rjs") for seed in (0, 1)})}
    table = pd.DataFrame(ledger, columns=["arm", "seed", "unit", "used", "marginal"]).assign(budget=NAN)
    tables["ledger"] = table.drop(columns="marginal") if table["marginal"].isna().all() else table
    if plan:
        tables["plan"] = pd.DataFrame(plan, columns=["arm", "unit", "planned"])
    settings = experiment(controls={"aa": True}, compare={"primary": [{"a": "apo_rjs", "b": "rjs"}]})
    return read_run(write_run(folder / "run", tables, settings, **manifest))


def text(run: Run) -> str:
    frames = {"budget": costs.budget_matches(run), "sharing": costs.marginal_costs(run), "plan": costs.planned_and_spent(run)}
    return "\n".join(section_lines([section(run, frames)], "##"))


LEDGER = [
    ("rjs", 0, "flops", 100.0, 100.0), ("rjs", 1, "flops", 100.0, 100.0),
    ("apo_rjs", 0, "flops", 200.0, 50.0), ("apo_rjs", 1, "flops", 200.0, 50.0),
    ("_aa", 9, "flops", 100.0, 90.0), ("_bench", -1, "flops", 7.0, 7.0),
]  # fmt: skip


def test_each_arm_alone_and_in_this_run(tmp_path: Path) -> None:
    """300 in place of 600 over all arms and seeds: half is saved. The control's own account stands beside, with the reference's budget."""
    section_text = text(run(tmp_path, LEDGER))
    alone, _, added = section_text.partition("### What each arm added in this run")
    for line in ("| `rjs` | 100 |", "| `apo_rjs` | 200 |", "| `_aa` | 100 |", "| `_bench` | 7 |"):
        assert line in alone
    assert "| `apo_rjs` | 50 |" in added
    assert "300 flops in place of 600 (50 % saved)" in added
    assert "No plan was kept." in added


def test_what_was_not_recorded_is_not_said(tmp_path: Path) -> None:
    section_text = text(run(tmp_path, [(*row[:4], NAN) for row in LEDGER]))
    assert "added in this run" not in section_text
    assert "| `apo_rjs` | 200 |" in section_text


def test_plan_and_run(tmp_path: Path) -> None:
    """rjs was to spend 80 and spent 100, a quarter more."""
    section_text = text(run(tmp_path, LEDGER, [("rjs", "flops", 80.0), ("apo_rjs", "flops", 195.0)]))
    assert "| `rjs` | 100 of 80 |" in section_text
    assert "Off by more than 10 %: `rjs` flops (1.250 of the plan)." in section_text
    (tmp_path / "other").mkdir()
    section_text = text(run(tmp_path / "other", LEDGER, [("rjs", "flops", 99.0), ("apo_rjs", "flops", 195.0)]))
    assert "Nothing is off by more than 10 %." in section_text


def test_sized_arms_in_words(tmp_path: Path) -> None:
    section_text = text(run(tmp_path, LEDGER, fits={"rjs": FIT}))
    expected = (
        "`rjs` was given rounds = 3, so as to spend as much flops as `apo_rjs`: 0.980 of it by plan (2: 0.700, 4: 1.300), 0.500 in the run."
    )
    assert expected in section_text


def test_what_was_measured_is_a_page_of_its_own(tmp_path: Path) -> None:
    recorded = run(tmp_path, LEDGER)
    timings = frame_of([("rjs", 0, "wall_s", 1.25), ("rjs", 1, "wall_s", 2.25), ("rjs", 0, "peak_memory_bytes", 5e8)])
    lines = section_lines([Section("measured", measured_blocks(costs.time_and_memory(recorded, timings)))])
    assert "| `rjs` | seconds of work | 1.8 | 1.2 | 2.2 | 2 |" in lines
    assert any(line.startswith("| `rjs` | peak memory, bytes | 5.000e+08 |") for line in lines)
    assert "measured.md" in text(run(tmp_path / "again", LEDGER, [("rjs", "flops", 80.0)]))


def frame_of(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["arm", "seed", "measure", "value"])


def test_an_arm_that_failed_in_every_seed_breaks_nothing(tmp_path: Path) -> None:
    failures = [{"arm": "rjs", "seed": seed, "message": "gone"} for seed in (0, 1)]
    tables = {"scores": scored({("apo_rjs", 0, 1): (0, 0)}), "ledger": frame("ledger", [("apo_rjs", 0, "flops", 1.0, NAN)])}
    recorded = read_run(write_run(tmp_path / "run", tables, failures=failures, fits={"rjs": FIT}))
    assert "- in the run" in text(recorded)

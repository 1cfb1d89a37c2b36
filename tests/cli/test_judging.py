"""judge, audit-judge, export and import-judgments, as a user calls them."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from judged_run import SIMULATED, judged, run_folder
from tiny_world import TREE
from typer.testing import CliRunner

from apo_bench.cli.main import app
from apo_bench.report.report import write_report

HH = Path(__file__).parents[3] / "shared" / "data" / "hh" / "hh_helpful_base_test.jsonl"


def call(*words: str | Path, status: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == status, (result.output, result.exception)
    return result


def refused(*words: str | Path) -> str:
    result = call(*words, status=2)
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with one judge and its report."""
    created = run_folder(tmp_path / "run", judges={"sim": {"use": SIMULATED}}, task=TREE["task"])
    judged(created)
    write_report(created)
    return created


@pytest.mark.slow
def test_a_judge_is_added_to_a_finished_run(folder: Path, tmp_path: Path) -> None:
    text = f"{{name: second, use: {SIMULATED}, noise: 0.5}}"
    assert "report.md" in call("judge", folder, "--judge", text).stdout
    report = (folder / "report" / "report.md").read_text()
    assert "## Judged" in report
    assert "| second |" in report
    assert "second, sim" in report.replace("sim, second", "second, sim")  # their agreement
    file = tmp_path / "third.yaml"
    file.write_text(f"name: third\nuse: {SIMULATED}\n")
    call("judge", folder, "--judge", file)
    assert set(pd.read_parquet(folder / "tables" / "judgments.parquet")["judge"]) == {"sim", "second", "third"}
    call("judge", folder, "--judge", "sim")  # one of its own, by name


@pytest.mark.slow
def test_adding_a_judge_ends_with_its_audit_and_its_win_rates_and_it_is_removed_again(folder: Path) -> None:
    before = (folder / "report" / "tables" / "judged.csv").read_text()
    lines = call("judge", folder, "--judge", f"{{name: second, use: {SIMULATED}, noise: 0.5}}").stdout.splitlines()
    assert lines[0].startswith("Audit of second, ")
    title = next(place for place, line in enumerate(lines) if "Win rates by second" in line)
    assert any("apo_rjs over" in line for line in lines[title:])
    assert lines[-2].endswith("report.md")
    assert lines[-1] == f"{folder / 'report' / 'report.html'}  (apo-bench open {folder})"
    assert max(map(len, lines[:-1])) <= 100
    assert "second" in (folder / "report" / "tables" / "judged.csv").read_text()
    call("judge", folder, "--remove", "second")
    assert (folder / "report" / "tables" / "judged.csv").read_text() == before
    assert "has no such judge" in refused("judge", folder, "--remove", "second")
    assert "give --judge or --remove" in refused("judge", folder)


@pytest.mark.slow
def test_the_report_quotes_an_unread_answer_of_each_kind(tmp_path: Path) -> None:
    """The simulated judge says the same whenever it fails; aggregates have no words of judges."""
    folder = run_folder(tmp_path / "run", {"audit_pairs": 0}, judges={"sim": {"use": SIMULATED, "failure_rate": 1.0}}, task=TREE["task"])
    judged(folder)
    write_report(folder)
    quote = "sim, unparsable: \u201cBoth have their merits.\u201d"
    assert quote in (folder / "report" / "report.md").read_text()
    write_report(folder, aggregates_only=True)
    assert "Both have their merits" not in (folder / "report" / "report.md").read_text() + (folder / "report" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("x.yaml", "--judge x.yaml: no such file"),
        ("[1]", "--judge: a mapping with name: and use: is needed"),
        ("{use: a@B}", "--judge: a mapping with name: and use: is needed"),
        ("{name: x}", "--judge: use: missing"),
        ("{name: ../x, use: a@B}", "--judge: name: '../x'"),
        ("{name: x, use: a.py}", "--judge: use:"),
        ("{name: x, use: absent.py@B}", "judges.x: use: absent.py: no such file"),
        (f"{{name: sim, use: {SIMULATED}, noise: 3.0}}", "judges.sim:"),
        ("{name: [", "--judge: not valid YAML"),
    ],
)
def test_what_is_no_judge_is_one_line(folder: Path, given: str, message: str) -> None:
    before = sorted(folder.rglob("*"))
    assert message in refused("judge", folder, "--judge", given)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.slow
def test_a_name_that_is_no_judge_is_told_which_there_are(folder: Path) -> None:
    assert "this run's own judges: sim" in refused("judge", folder, "--judge", "smi")


@pytest.mark.slow
def test_files_that_cannot_be_read_or_written_are_one_line(folder: Path, tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: é".encode("latin-1"))
    taken = tmp_path / "taken"
    taken.touch()
    assert "latin.yaml: not UTF-8" in refused("judge", folder, "--judge", latin)
    assert "latin.yaml: not UTF-8" in refused("golden", "sim_hh", "--writer", latin, "--out", tmp_path / "g.jsonl")
    assert "absent.yaml: no such file" in refused("golden", "sim_hh", "--writer", tmp_path / "absent.yaml", "--out", tmp_path / "g.jsonl")
    assert str(taken) in refused("export", folder, "--format", "pairs", "--out", taken)
    assert str(taken) in refused("export", folder, "--format", "annotate", "--out", taken / "sheet.csv")


@pytest.mark.slow
def test_judge_needs_a_finished_run(tmp_path: Path) -> None:
    assert "not a finished run folder" in refused("judge", tmp_path, "--judge", f"{{name: x, use: {SIMULATED}}}")


@pytest.mark.slow
def test_a_judge_is_audited_on_a_task(tmp_path: Path) -> None:
    words = (
        "audit-judge",
        "--judge",
        f"{{name: sim, use: {SIMULATED}, noise: 0.2}}",
        "--data",
        "sim_hh",
        "--n",
        "60",
        "--out",
        tmp_path / "a",
    )
    output = call(*words).stdout
    assert "helpful: the judge can be used" in output
    table = pd.read_csv(tmp_path / "a" / "report" / "audit.csv")
    assert {"accuracy", "kappa", "consistency", "attack_instruction", "missing"} <= set(table["metric"])
    journal = tmp_path / "a" / "store" / "sim.jsonl"
    before = journal.read_bytes()
    assert call(*words).stdout == output  # nothing is asked again
    assert journal.read_bytes() == before


@pytest.mark.skipif(not HH.is_file(), reason="the HH data are not beside the project (../shared/data/hh)")
def test_a_judge_without_its_truth_says_so(tmp_path: Path) -> None:
    message = refused("audit-judge", "--judge", f"{{name: s, use: {SIMULATED}}}", "--data", HH, "--out", tmp_path / "a")
    assert "judges.s: SimulatedJudge: the task has no ground truth" in message
    assert not (tmp_path / "a").exists()


def test_audit_data_that_is_nothing(tmp_path: Path) -> None:
    message = refused("audit-judge", "--judge", f"{{name: s, use: {SIMULATED}}}", "--data", "nowhere", "--out", tmp_path / "a")
    assert "--data nowhere: neither a file nor a task" in message


@pytest.mark.slow
def test_responses_go_out_and_peoples_verdicts_come_back(folder: Path, tmp_path: Path) -> None:
    """Half of the annotators' sheet is filled in, always 1; the rest is missing and counted."""
    call("export", folder, "--format", "alpaca-eval", "--out", tmp_path / "ae")
    assert json.loads((tmp_path / "ae" / "rjs" / "seed0" / "model_outputs.json").read_text())[0]["generator"] == "rjs-seed0-round1"
    call("export", folder, "--format", "pairs", "--out", tmp_path / "pairs", "--judge", "sim")
    first = json.loads((tmp_path / "pairs" / "sim.jsonl").read_text().splitlines()[0])
    assert set(first) >= {"prompt", "chosen", "rejected"}

    sheet = tmp_path / "sheet.csv"
    call("export", folder, "--format", "annotate", "--out", sheet)
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows[: len(rows) // 2]:
        row["preference"] = "1"
    with sheet.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    output = call("import-judgments", sheet, "--run", folder).stdout
    assert f"left empty {len(rows) - len(rows) // 2}" in output
    verdicts = pd.read_parquet(folder / "tables" / "judgments.parquet").query("judge == 'human'")
    assert (verdicts["verdict"] == "first").sum() == len(rows) // 2
    assert "| human |" in (folder / "report" / "report.md").read_text()
    assert "Judge human: not audited" in (folder / "report" / "report.md").read_text()
    judged(folder)  # tables made anew keep what people said
    assert "human" in set(pd.read_parquet(folder / "tables" / "judgments.parquet")["judge"])


def test_alpaca_evals_annotations_get_our_statistics(tmp_path: Path) -> None:
    rows = [
        {
            "instruction": f"question {i}", "output_1": "a b c", "output_2": "a b", "generator_1": "base", "generator_2": "mine",
            "annotator": "gpt", "dataset": "helpful", "preference": 1 + (i % 2),
        }
        for i in range(40)
    ]  # fmt: skip
    file = tmp_path / "annotations.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    output = call("import-judgments", file, "--out", tmp_path / "out").stdout
    assert "| gpt | mine | base | 0.500 |" in output
    assert len(pd.read_parquet(tmp_path / "out" / "tables" / "judgments.parquet")) == 40


@pytest.mark.slow
def test_import_judgments_needs_one_place(folder: Path, tmp_path: Path) -> None:
    for words in ((), ("--run", folder, "--out", tmp_path)):
        assert "give --run for filled sheets or --out" in refused("import-judgments", tmp_path / "x.csv", *words)

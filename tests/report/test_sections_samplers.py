"""The report's section on sampling by a server, from a table by hand."""

from pathlib import Path

from run_folder import frame, scored, write_run

from apo_bench.analysis.results import read_run
from apo_bench.report.markdown import section_lines
from apo_bench.report.sections.samplers import section

NAN = float("nan")
SCORES = {"scores": scored({("rjs", 0, 1): (0, 0)}), "ledger": frame("ledger", [("rjs", 0, "flops", 1.0, NAN)])}


def test_a_row_for_each_engine(tmp_path: Path) -> None:
    rows = [
        ("rjs", 0, "arm", "vllm 1.0", 640, 32, 1024, 2.5e-6, 4.1e-5, 3e-12, 0.25),
        ("rjs", 0, "evaluation", "transformers", 96, NAN, NAN, NAN, NAN, NAN, NAN),
    ]
    text = "\n".join(section_lines([section(read_run(write_run(tmp_path / "run", {**SCORES, "samplers": frame("samplers", rows)})))], "##"))
    assert "| `rjs` | 0 | arm | vllm 1.0 | 640 | 32 | 1,024 | 2.5e-06 | 4.1e-05 | 3e-12 | 25 % |" in text
    assert "| `rjs` | 0 | evaluation | transformers | 96 | - | - | - | - | - | - |" in text


def test_a_run_without_a_server_has_none(tmp_path: Path) -> None:
    assert section(read_run(write_run(tmp_path / "run", SCORES))).blocks == []

"""Where a report comes from, in words."""

from pathlib import Path
from typing import Any

import pytest
from run_folder import frame, scored, write_run

from apo_bench.analysis.results import read_run
from apo_bench.report.document import Facts, Section
from apo_bench.report.markdown import block_lines, inline
from apo_bench.report.sections.provenance import in_words, machine_section, section

DEFAULTS: dict[str, Any] = {"commit": "3f67c209dbd2", "dirty": False, "versions": {"apo-bench": "0.2.0"}}
REGISTERED = {"day": "2026-01-31", "file": "x.preregistration.json", "sha256": "9" * 64, "question": "?", "committed": None}


def written(folder: Path, **manifest: Any) -> Path:
    tables = {"scores": scored({("rjs", 0, 1): [1.0]}), "ledger": frame("ledger", [])}
    return write_run(folder, tables, **{**DEFAULTS, **manifest})


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        ({}, "Run with apo-bench 0.2.0, commit `3f67c20`, without uncommitted changes, under 3 seeds (0, 1, 2). It was not preregistered."),
        ({"commit": None, "dirty": None, "versions": {}}, "Run with apo-bench, a commit that is not known, under 3 seeds (0, 1, 2). It"),
        ({"preregistered": {**REGISTERED, "deviations": []}}, "It was preregistered on 2026-01-31."),
        ({"preregistered": {**REGISTERED, "deviations": ["a", "b"]}}, "preregistered on 2026-01-31, and differs from that in 2 places."),
    ],
)
def test_a_run_in_words(tmp_path: Path, manifest: dict[str, Any], sentence: str) -> None:
    assert sentence in inline(in_words(read_run(written(tmp_path / "run", **manifest))))


def test_hashes_and_commands_are_folded_away(tmp_path: Path) -> None:
    run = read_run(written(tmp_path / "run", command="apo-bench run x --set a=-1", preregistered={**REGISTERED, "deviations": []}))
    *words, details = section(run).blocks
    assert isinstance(details, Section)
    assert details.is_folded
    assert "9" * 64 not in "\n".join(line for block in words for line in block_lines(block))
    (facts,) = details.blocks
    assert isinstance(facts, Facts)
    assert f"SHA-256 {'9' * 64}" in inline(facts.items["preregistration"])
    assert inline(facts.items["command"]) == "`apo-bench run x --set a=-1`"  # as it is typed


def test_the_machine_in_words(tmp_path: Path) -> None:
    hardware = {"cores": 2, "machine": "Linux x86_64", "workers": [{"device": "cuda", "gpu": "A100", "threads": 4}]}
    folder = written(tmp_path / "run", hardware=hardware)
    (folder / "first_day.txt").write_text("2026-12-01\n")
    words = machine_section(folder, read_run(folder)).blocks[0]
    assert isinstance(words, tuple)
    assert inline(words) == "Begun on 2026-12-01; Linux x86_64 with 2 cores; workers on cuda, A100, 4 threads."

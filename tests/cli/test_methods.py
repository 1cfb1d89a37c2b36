"""`apo-bench methods`: everything that ships is listed, with what its docstring and code say."""

import json

import pytest
from typer.testing import CliRunner

from apo_bench.cli.main import app
from apo_bench.cli.methods import HEADINGS, Listed, citation, listing, purpose
from apo_bench.config.plugins import resolve
from apo_bench.losses import ALGORITHMS, SHIPPED
from apo_bench.package_data import shipped_root

LISTED = {item.name: item for item in listing()}


def test_everything_that_ships_is_listed() -> None:
    by_kind = {kind: [item.name for item in LISTED.values() if item.kind == kind] for kind in HEADINGS}
    assert by_kind["loss"] == list(SHIPPED)
    assert by_kind["online algorithm"] == list(ALGORITHMS)
    assert {name.rpartition("@")[2] for name in by_kind["reward loss"]} == {"RankingLoss", "APOLoss"}
    files = {name.partition("@")[0] for name in by_kind["method"]}
    assert files == {"apo_bench.apo", *(f"baselines/{path.name}" for path in (shipped_root() / "baselines").glob("*.py"))}
    assert all(item.purpose and "\n" not in item.purpose and item.reads for item in LISTED.values())


def test_a_listed_method_can_be_named() -> None:
    player = {"use": "baselines/rrhf.py@RRHF"}
    assert resolve("apo_bench.apo@APO", {"player": player}, base=None)
    assert resolve("baselines/rejection_sampling.py@RejectionSampling", {}, base=None)


@pytest.mark.parametrize(
    ("name", "reads", "needs", "player"),
    [
        ("apo_bench.apo@APO", "human pairs, golden responses, samples", "a reward model", False),
        ("baselines/rejection_sampling.py@RejectionSampling", "human pairs, samples", "a reward model", True),
        ("baselines/preference.py@Preference", "human pairs, golden responses, samples", "a reference (by its loss)", False),
        ("baselines/iterative_dpo.py@DPO", "human pairs, samples", "a reference (by its loss), a reward model", True),
        ("baselines/sft.py@SFT", "human pairs, golden responses", "", False),
        ("baselines/online.py@Online", "human pairs, samples", "a reference (by its loss), a reward model", True),
        ("baselines/human_refit.py@HumanRefit", "human pairs", "a reward model", False),
        ("baselines/spin.py@SPIN", "golden responses, samples", "a reference", False),
        ("sigmoid", "pairs", "a reference", False),
        ("simpo", "pairs", "", False),
        ("rrhf", "groups", "a reward model", False),
        ("grpo", "rollouts", "a reference, a reward model", False),
        ("dapo", "rollouts", "a reward model", False),
    ],
)
def test_what_is_read_and_needed(name: str, reads: str, needs: str, player: bool) -> None:
    """By reading each file."""
    item = LISTED[name]
    assert (item.reads, item.needs, item.player) == (reads, needs, player)


def test_a_paper_is_what_the_first_paragraph_cites() -> None:
    text = "A loss\nof two lines (Me et al., arXiv:2301.00001, Eq. 2): x.\n\nAs in arXiv:2302.00002 (2023)."
    assert citation(text) == "Me et al., arXiv:2301.00001, Eq. 2"
    assert citation("A game.\n\nMe, arXiv:2301.00001; arXiv:2301.00001 and arXiv:2302.00002.") == "arXiv:2301.00001, arXiv:2302.00002"
    assert citation("Nobody's (a parameter).") == ""
    assert purpose("A loss (Me, 1992, Sec. 4): -x.\n\nMore.") == "A loss: -x"


def test_the_command_prints_it_and_gives_it_to_programs() -> None:
    as_text, as_json = (CliRunner().invoke(app, ["methods", *words]).output for words in ([], ["--format", "json"]))
    assert [Listed(**row) for row in json.loads(as_json)] == list(LISTED.values())
    assert "baselines/kto.py@KTO\n      Kahneman-Tversky optimization" in as_text
    assert max(map(len, as_text.splitlines())) <= 100

"""Parameters of the shipped judges: `--help` lists what the code has, with its defaults."""

from apo_bench.cli.judging import PARAMETERS
from apo_bench.judging.judge_parameters import judge_parameters


def test_help_lists_every_judge_with_its_parameters() -> None:
    assert [line for line in PARAMETERS.split("\n\n") if line] == [judge.line for judge in judge_parameters()]

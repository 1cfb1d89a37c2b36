"""A template that drops a system turn without a word is refused where there is one to drop.

Reported of others: raullenchai/Rapid-MLX#1765, google-ai-edge/LiteRT-LM#3688.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_families import family_policy, family_tokenizer
from tiny_tokenizers import prompt
from typer.testing import CliRunner

from apo_bench.cli.main import app
from apo_bench.errors import InputError
from apo_bench.models.tokenize import ChatFormat


@pytest.mark.parametrize(
    ("name", "reason"), [("silent", "leaves out the system turn"), ("gemma", "no system turn"), ("base", "no chat template")]
)
def test_a_system_prompt_without_a_place_is_refused(name: str, reason: str) -> None:
    tokenizer = family_tokenizer(name)
    with pytest.raises(InputError, match=f"system_prompt.*{reason}"):
        ChatFormat(tokenizer, "Answer in French.").encode_prompt(prompt("how"), 99)
    ChatFormat(tokenizer, "").encode_prompt(prompt("how"), 99)  # nothing to drop


def test_a_user_turn_that_a_template_drops_is_refused() -> None:
    """A template that shows the last turn only."""
    tokenizer = family_tokenizer("chatml")
    tokenizer.chat_template = "{{ messages[-1].content }}{% if add_generation_prompt %} says:{% endif %}"
    with pytest.raises(InputError, match="leaves out the user turn 'how do I wash it'"):
        ChatFormat(tokenizer).encode_prompt(prompt("how do I wash it", "by hand", "and dry it"), 999)


def test_check_says_so_in_one_line(tree: dict[str, Any], write_experiment: Callable[[dict[str, Any]], Path], tmp_path: Path) -> None:
    policy = tree["models"]["policy"]
    del policy["architecture"], policy["warmup"]
    policy |= {"path": str(family_policy("silent", tmp_path / "silent")), "system_prompt": "Answer in French."}
    result = CliRunner().invoke(app, ["check", str(write_experiment(tree))])
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert "models.policy.system_prompt: the chat template leaves out the system turn 'Answer in French.'" in line

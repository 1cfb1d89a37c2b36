"""The comparison with TRL, with tiny random models: both sides compute the same, and every stage has a row."""

import json
import re
from pathlib import Path

import pytest
from tiny_tokenizers import WORDS, bert_tokenizer
from transformers import AutoConfig, AutoModel

from apo_bench.config.python_files import load_python_file
from apo_bench.models import policy as policies

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """Folders of a policy and of an encoder, and enough preferences for every split."""
    policies.save_model(*policies.new_policy({"model_type": "llama", **SMALL}, WORDS, seed=0), tmp_path / "policy")
    tokenizer = bert_tokenizer()
    encoder = AutoModel.from_config(AutoConfig.for_model("bert", vocab_size=len(tokenizer), max_position_embeddings=256, **SMALL))
    policies.save_model(encoder, tokenizer, tmp_path / "encoder")
    questions = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS[:3]]
    rows = [{"prompt": f"\n\nHuman: {text}\n\nAssistant:", "chosen": "wash it", "rejected": "no"} for text in questions]
    (tmp_path / "helpful.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [str(tmp_path / name) for name in ("policy", "encoder", "helpful.jsonl")]


@pytest.mark.slow
def test_losses_are_equal_and_every_stage_has_a_row(inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Three kinds of training, whose losses differ by less than 1e-3; five stages, and two rounds of them."""
    pytest.importorskip("trl", reason="trl is not installed; run: pip install trl")
    against_trl = load_python_file(Path(__file__).parents[2] / "benchmarks" / "against_trl.py")
    against_trl.main([*inputs, *"--pairs 4 --prompts 2 --responses 3 --tokens 3 --batch-size 2 --repeats 2".split()])
    printed = capsys.readouterr().out
    apart = [float(number) for number in re.findall(r"at most (\S+) apart", printed)]
    assert len(apart) == 5  # losses of each training, scores of each repeat
    assert max(apart) < 1e-3
    rows = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|")]
    assert rows[2:] == [*against_trl.STAGES, "RJS round", "DPO round"]


def test_a_folder_without_a_model_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    against_trl = load_python_file(Path(__file__).parents[2] / "benchmarks" / "against_trl.py")
    with pytest.raises(SystemExit):
        against_trl.main([str(tmp_path), str(tmp_path), "hh.jsonl"])
    assert f"{tmp_path}: not a model folder, it has no config.json" in capsys.readouterr().err

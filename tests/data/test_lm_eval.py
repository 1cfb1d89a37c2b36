"""lm-eval runs our tasks offline, on exactly our test split, and its accuracy is the one computed here from the model's own logits."""

import json
import os
import random
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apo_bench.data.lm_eval import as_lm_eval_dataset
from apo_bench.data.task import load_task
from apo_bench.errors import InputError

pytest.importorskip("lm_eval", reason="the lm-eval extra is not installed")
ROOT = Path(__file__).parents[2]
TASKS = ("hh_helpful", "hh_harmless", "sim_hh")
LIMIT = 12
SIM_OPTIONS = {"prompts_per_cluster": 2, "pairs_per_prompt": 1, "demonstrations_per_cluster": 1}
WORDS = ("apple", "bridge", "candle", "desert", "engine", "forest", "garden", "hammer", "island", "jacket", "kettle", "ladder", "mirror")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """250 conversations an axis in HH's form, of random words."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    draw = random.Random(0)

    def say(most: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, most)))

    with path.open("w", encoding="utf-8") as file:
        for number in range(250):
            for axis in ("helpful", "harmless"):
                prompt = f"\n\nHuman: {say(4)} {number}\n\nAssistant: {say(3)}\n\nHuman: {say(3)}\n\nAssistant:"
                row = {"prompt": prompt, "chosen": say(6), "rejected": f"{say(6)} {{{{no}}}}", "subset": f"{axis}-base/test"}
                file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised Llama that reads characters."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    letters = ["<unk>", "<eos>", *string.printable]
    tokenizer = Tokenizer(models.WordLevel({letter: place for place, letter in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.5,  # wide, so that sides differ clearly
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def run(data: Path, model: Path, out: Path, tasks: str) -> subprocess.CompletedProcess[str]:
    """The command of the README, in a process that cannot reach the network."""
    metadata = {"hh": {"data_files": [str(data)]}, "sim_hh": SIM_OPTIONS}
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu"]
    command += ["--include_path", "tasks", "--tasks", tasks, "--metadata", json.dumps(metadata), "--limit", str(LIMIT)]
    command += ["--batch_size", "8", "--output_path", str(out), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **offline}, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def results(data: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("out")
    done = run(data, model, out, ",".join(TASKS))
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(next(out.rglob("results_*.json")).read_text(encoding="utf-8"))
    result["samples"] = {
        task: [json.loads(line) for line in next(out.rglob(f"samples_{task}_*.jsonl")).read_text(encoding="utf-8").splitlines()]
        for task in TASKS
    }
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_lm_eval_sees_our_test_pairs(results: dict[str, Any], data: Path, name: str):
    """The first documents are the first test pairs of load_task, the label points at the chosen side, and all were scored."""
    use, options = ("sim_hh", SIM_OPTIONS) if name == "sim_hh" else ("hh", {"data_files": [str(data)]})
    pairs = [pair for pair in load_task(use, options, base=None).pairs["test"] if use == "sim_hh" or f"hh_{pair.prompt.axis}" == name]
    documents = [sample["doc"] for sample in sorted(results["samples"][name], key=lambda sample: sample["doc_id"])]
    seen = [(doc["choices"][doc["gold"]], doc["choices"][1 - doc["gold"]]) for doc in documents]
    assert seen == [(pair.chosen, pair.rejected) for pair in pairs[:LIMIT]]
    assert all(pair.prompt.messages[-1].content in doc["prompt"] for pair, doc in zip(pairs, documents, strict=False))
    assert results["n-samples"][name] == {"original": len(pairs), "effective": LIMIT}


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_accuracy_is_the_models_own(results: dict[str, Any], model: Path, name: str):
    """acc: the share of documents whose chosen side has the larger sum of token log-probabilities after the prompt, taken one by one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)

    def log_likelihood(prompt: str, side: str) -> float:
        context, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, f"{prompt} {side}"))
        with torch.no_grad():
            logits = network(torch.tensor([whole])).logits[0]
        scores = torch.log_softmax(logits, dim=-1)[:-1].gather(1, torch.tensor(whole)[1:, None])[:, 0]
        return float(scores[len(context) - 1 :].sum())

    right = []
    for sample in results["samples"][name]:
        doc = sample["doc"]
        ours = [log_likelihood(doc["prompt"], side) for side in doc["choices"]]
        assert ours == pytest.approx([float(answer[0]) for answer in sample["filtered_resps"]], abs=1e-3)
        right.append(ours[doc["gold"]] > ours[1 - doc["gold"]])
    assert results["results"][name]["acc,none"] == pytest.approx(sum(right) / LIMIT)


@pytest.mark.slow
def test_the_chosen_sides_place_varies(results: dict[str, Any]):
    """Else a model that ties everything would score 1: ties go to the first place."""
    for name in TASKS:
        assert {sample["doc"]["gold"] for sample in results["samples"][name]} == {0, 1}


def test_an_option_that_hh_does_not_have_is_refused(data: Path):
    """Options stand under the task's name; the model's arguments beside them are none of ours."""
    folder = ROOT / "tasks" / "hh"
    both = as_lm_eval_dataset(folder, {"pretrained": "x", "seed": 3, "hh": {"data_files": [str(data)]}}, render=str)["test"]
    helpful = as_lm_eval_dataset(folder, {"hh": {"data_files": [str(data)]}}, render=str, axis="helpful")["test"]
    assert 0 < len(helpful) < len(both)
    with pytest.raises(InputError, match=r"hh\.yaml: options\.files: no such option"):
        as_lm_eval_dataset(folder, {"hh": {"files": [str(data)]}}, render=str)

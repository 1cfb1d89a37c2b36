"""Reward models that accelerate shards: who loads which weights, and what two processes compute with what they were sent."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_tokenizers import WORDS, chatml_tokenizer, prompt
from transformers import AutoConfig, AutoModelForCausalLM

from apo_bench.config.schema import NeuralReward, PretrainedReward, Recipe
from apo_bench.losses import RankingLoss
from apo_bench.models import device
from apo_bench.models import policy as policies
from apo_bench.models import reward as rewards
from apo_bench.models.finished_reward import load_finished
from apo_bench.types import Pair

pytestmark = pytest.mark.slow

AXES = ("helpful", "harmless")
LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SPEC = NeuralReward(path=".", max_tokens=48, training=Recipe(learning_rate=1e-2))
PAIRS = [Pair(prompt("boil"), "rinse and dry", "no"), Pair(prompt("how do i", "wash", "it"), "no", "rinse it")]


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("body"), chatml_tokenizer()
    torch.manual_seed(0)
    policies.save_model(AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA, **policies.token_ids(tokenizer))), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def finished(body: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    policies.save_model(*rewards.new_reward_model(SPEC, body, AXES, None, seed=3), folder)
    return folder


def load(kind: str, body: Path, finished: Path, *, shards: bool) -> Any:
    """The model to be trained of a body with a new head, of an architecture, or of a finished reward model."""
    if kind == "finished":
        return load_finished(finished, PretrainedReward(kind="pretrained", path=str(finished), max_tokens=48), shards)[0]
    if kind == "architecture":
        spec = NeuralReward(architecture=LLAMA, max_tokens=48, training=Recipe(learning_rate=1e-2))
        return rewards.new_reward_model(spec, None, AXES, WORDS, 3, shards)[0]
    return rewards.new_reward_model(SPEC, body, AXES, None, 3, shards)[0]


@pytest.mark.parametrize("kind", ["body", "architecture", "finished"])
@pytest.mark.parametrize(("rank", "efficient", "empty"), [("0", "true", False), ("1", "true", True), ("1", "false", False)])
def test_a_process_that_gets_its_shards_from_another_loads_no_weights(
    body: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, kind: str, rank: str, efficient: str, empty: bool
) -> None:
    """Its weights are on the meta device, under the names of the others', and its buffers in memory; what is only read is loaded whole."""
    for name, value in {"ACCELERATE_USE_FSDP": "true", device.EFFICIENT: efficient, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, value)
    model, whole = (load(kind, body, finished, shards=shards) for shards in (True, False))
    assert {weight.is_meta for weight in model.parameters()} == {empty}
    assert not any(tensor.is_meta for tensor in (*model.buffers(), *whole.parameters()))
    assert {name: weight.shape for name, weight in model.named_parameters()} == {
        name: weight.shape for name, weight in whole.named_parameters()
    }
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), whole.buffers(), strict=True))
    assert (model.config.id2label, model.config.pad_token_id) == (whole.config.id2label, whole.config.pad_token_id)


def shard_and_step(body: str, into: str) -> None:
    """What a process does: loads its part, shards as accelerate does under FSDP2, and takes the gradient of the pairs' loss."""
    import torch.distributed as dist
    from accelerate.utils.fsdp_utils import fsdp2_load_full_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", init_method=f"file://{into}/meeting", rank=rank, world_size=2)
    model, tokenizer = rewards.new_reward_model(SPEC, body, AXES, None, 3, shards=True)
    loaded = sum(weight.numel() for weight in model.parameters() if not weight.is_meta)
    whole, mesh = model.state_dict(), init_device_mesh("cpu", (2,))
    for layer in (*model.model.layers, model):
        fully_shard(layer, mesh=mesh)
    fsdp2_load_full_state_dict(type("Process", (), {"is_main_process": rank == 0}), model, whole)
    kept = sum(weight.to_local().numel() for weight in model.parameters())
    terms = rewards.loss_terms(model, rewards.collate(rewards.pair_items(model, tokenizer, PAIRS, SPEC), 0), RankingLoss())
    terms.sum().backward()
    gradients = {name: weight.grad.full_tensor().tolist() for name, weight in model.named_parameters()}
    result = {"loaded": loaded, "kept": kept, "terms": terms.tolist(), "gradients": gradients}
    Path(into, f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def test_two_processes_score_with_what_the_first_has_loaded(body: Path, tmp_path: Path) -> None:
    """The first loads all weights, the second none; then each keeps its half, and losses and gradients are those of one process.

    Both read the same pairs, and gradients are means over processes.
    """
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    variables = {**os.environ, "PYTHONPATH": paths, "ACCELERATE_USE_FSDP": "true", device.EFFICIENT: "true"}
    command = [sys.executable, __file__, str(body), str(tmp_path)]
    processes = [subprocess.Popen(command, env={**variables, "LOCAL_RANK": str(rank)}) for rank in (0, 1)]
    assert [process.wait() for process in processes] == [0, 0]
    model, tokenizer = rewards.new_reward_model(SPEC, body, AXES, None, 3)
    size = sum(weight.numel() for weight in model.parameters())
    terms = rewards.loss_terms(model, rewards.collate(rewards.pair_items(model, tokenizer, PAIRS, SPEC), 0), RankingLoss())
    terms.sum().backward()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert (first["loaded"], second["loaded"], first["kept"] + second["kept"]) == (size, 0, size)
    assert abs(first["kept"] - second["kept"]) < size / 4  # rows of an odd number are not halved
    for process in (first, second):
        assert process["terms"] == pytest.approx(terms.tolist(), abs=1e-5)
        for name, weight in model.named_parameters():
            assert weight.grad is not None
            torch.testing.assert_close(torch.tensor(process["gradients"][name]), weight.grad, atol=1e-5, rtol=1e-4)


if __name__ == "__main__":
    shard_and_step(*sys.argv[1:])

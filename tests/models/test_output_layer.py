"""The output layer on response positions, in chunks: against logits of every position, and what it holds."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any, ClassVar

import pytest
import torch
from meta_models import Masked, llama_3b
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModelForCausalLM

from apo_bench.losses import DPOLoss, IPOLoss, KTOLoss, PolicyLoss, RRHFLoss, SFTLoss, View, WPOLoss
from apo_bench.losses import token_logps as plain_token_logps
from apo_bench.models import output_layer
from apo_bench.models.memory import saved_for_backward
from apo_bench.models.output_layer import is_recognised, log_collision, response_positions, token_logps
from apo_bench.training import encoding

V = 40
SHAPE = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 8, "vocab_size": V, "pad_token_id": 0, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "tied": {"model_type": "llama", "tie_word_embeddings": True},
    "untied": {"model_type": "llama", "tie_word_embeddings": False},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "soft-capped": {"model_type": "gemma2", "final_logit_softcapping": 1.0},
    "scaled": {"model_type": "cohere", "logit_scale": 0.5},
    "divided": {"model_type": "granite", "logits_scaling": 3.0},
    "with a bias": {"model_type": "phi"},
    "experts": {"model_type": "mixtral"},
    "state space": {"model_type": "mamba"},
    "LoRA": {"model_type": "llama", "lora": ["q_proj", "down_proj"]},
    "LoRA on the head": {"model_type": "llama", "tie_word_embeddings": False, "lora": ["v_proj", "lm_head"]},
}
UNLIKE = {"model_type": "opt", "word_embed_proj_dim": 16, "ffn_dim": 32}  # its layers are not called by its base model


def new_model(name: str, seed: int = 0) -> Any:
    fields = {**SHAPE, **(UNLIKE if name == "opt" else MODELS[name])}
    lora = fields.pop("lora", None)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields), dtype=torch.float32)
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=2, target_modules=lora, init_lora_weights=False))  # pyright: ignore
    return model


def new_batch(sides: int, seed: int = 1) -> dict[str, Tensor]:
    """Three items of so many sides: prompts of 3 to 5 tokens, responses of 1 to 6, padding behind them."""
    generator = torch.Generator().manual_seed(seed)
    prompts, ends = (torch.randint(*limits, (sides, 3, 1), generator=generator) for limits in ((3, 6), (6, 12)))
    place = torch.arange(12).expand(sides, 3, 12)
    ids = torch.randint(1, V, (sides, 3, 12), generator=generator) * (place < ends)
    return {
        "input_ids": ids, "attention_mask": (place < ends).long(), "response_mask": ((place >= prompts) & (place < ends)).long(),
        "reference_logps": -torch.rand(sides, 3, 12, generator=generator), "scores": torch.randn(3, sides, generator=generator),
        "labels": torch.tensor([True, False, True]),
    }  # fmt: skip


def plain_terms(model: Any, batch: dict[str, Tensor], loss: PolicyLoss) -> Tensor:
    """The loss on log-probabilities of every position from the model's own logits."""
    ids, attention = batch["input_ids"].flatten(0, 1), batch["attention_mask"].flatten(0, 1)
    logits = model(input_ids=ids, attention_mask=attention).logits
    logps = plain_token_logps(logits, ids).view(batch["input_ids"].shape)
    optional = {"reference_logps": batch["reference_logps"].transpose(0, 1), "scores": batch["scores"], "labels": batch["labels"]}
    collision = torch.nn.functional.pad(log_collision(logits[:, :-1]), (1, 0)).view(logps.shape)
    optional["log_collision"] = collision.transpose(0, 1)
    probabilities = torch.distributions.Categorical(logits=logits[:, :-1])
    optional["entropy"] = torch.nn.functional.pad(probabilities.entropy(), (1, 0)).view(logps.shape).transpose(0, 1)
    return loss(View(logps.transpose(0, 1), batch["response_mask"].transpose(0, 1), optional))


@dataclass(frozen=True)
class LikelihoodAndEntropy(SFTLoss):
    """Less a half of the entropy where response tokens stand, which has a gradient."""

    also_reads: ClassVar[tuple[str, ...]] = ("entropy",)

    def __call__(self, view: View) -> Tensor:
        return super().__call__(view) - 0.5 * (view.entropy * view.mask).sum(dim=(1, 2))


def gradients(model: nn.Module, terms: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    terms.sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.fixture(params=[1, 7, 10**6], ids=["single positions", "chunks of 7", "all at once"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "CHUNK", V * request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize(  # of each kind of data; of losses of pairs, that of sums, and that which reads more of the logits
    ("loss", "sides"),
    [
        (SFTLoss(), 1),
        (DPOLoss(0.3), 2),
        (WPOLoss(IPOLoss(0.01)), 2),
        (KTOLoss(0.03, 100.0, 100.0), 2),
        (RRHFLoss(2.0), 4),
        (LikelihoodAndEntropy(), 1),
    ],
    ids=["sft", "dpo", "wpo", "kto", "rrhf", "entropy"],
)
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_the_plain_ones(name: str, loss: PolicyLoss, sides: int) -> None:
    model, batch = new_model(name).train(), new_batch(sides)
    assert is_recognised(model)
    assert model.training
    terms, plain = encoding.loss_terms(model, batch, loss), plain_terms(model, batch, loss)
    torch.testing.assert_close(terms, plain, atol=1e-5, rtol=1e-5)
    ours, theirs = gradients(model, terms), gradients(model, plain)
    assert ours.keys() == theirs.keys() == {name for name, weight in model.named_parameters() if weight.requires_grad}
    for weight, gradient in theirs.items():
        scale = max(1.0, gradient.abs().max().item())  # 1e-5 of the largest, where gradients are large
        torch.testing.assert_close(ours[weight], gradient, atol=1e-5 * scale, rtol=1e-5, msg=weight)
    assert max(gradient.abs().max().item() for gradient in theirs.values()) > 0.1


@pytest.mark.usefixtures("chunk")
def test_a_model_that_is_built_otherwise_gives_its_own_logits() -> None:
    model, batch = new_model("opt").eval(), new_batch(2)
    assert not is_recognised(model)
    terms, plain = encoding.loss_terms(model, batch, DPOLoss(), recognised=False), plain_terms(model, batch, DPOLoss())
    torch.testing.assert_close(terms, plain, atol=1e-5, rtol=1e-5)
    ours, theirs = gradients(model, terms), gradients(model, plain)
    assert all(torch.allclose(ours[weight], theirs[weight], atol=1e-5) for weight in theirs)


def test_a_head_that_looks_back_is_not_recognised() -> None:
    """Its logits add those of the position before, which chunks of positions do not have."""
    model = new_model("untied").eval()

    class LooksBack(nn.Module):
        def forward(self, states: Tensor) -> Tensor:
            return (states + states.roll(1, dims=1)) @ weight.T

    weight = model.lm_head.weight
    assert is_recognised(model)
    model.lm_head = LooksBack()
    assert not is_recognised(model)


def test_log_probabilities_are_0_off_the_response_and_at_the_first_position() -> None:
    model, batch = new_model("tied").eval(), new_batch(1)
    ids, mask = batch["input_ids"][0], batch["response_mask"][0].clone()
    mask[0, 0] = 1
    logps = token_logps(model, ids, batch["attention_mask"][0], mask)
    assert ((logps != 0) == (batch["response_mask"][0] == 1)).all()


def test_a_batch_without_response_tokens() -> None:
    """Nothing is likely or unlikely, and every gradient is 0."""
    model, batch = new_model("tied").train(), new_batch(1)
    nothing = torch.zeros_like(batch["input_ids"][0])
    logps = token_logps(model, batch["input_ids"][0], batch["attention_mask"][0], nothing)
    assert logps.tolist() == nothing.tolist()
    assert {gradient.abs().max().item() for gradient in gradients(model, logps).values()} == {0.0}


def test_positions_and_their_logits_row_by_row() -> None:
    """The states before the response tokens; their logits are those of the model."""
    model, batch = new_model("divided").eval(), new_batch(1)
    ids, attention, mask = (batch[name][0] for name in ("input_ids", "attention_mask", "response_mask"))
    with torch.no_grad():
        positions = response_positions(model, ids, attention, mask)
        own = model(input_ids=ids, attention_mask=attention).logits[:, :-1][mask[:, 1:] == 1]
        torch.testing.assert_close(positions.logits(positions.states), own)
    assert len(own) == mask.sum()
    assert model(input_ids=ids).logits.shape == (3, 12, V)  # the model is as it was


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.usefixtures("one_process", "chunk")
@pytest.mark.parametrize("name", ["untied", "tied", "LoRA on the head"])
def test_gradients_pass_through_ddp(name: str) -> None:
    """As Trainer wraps it: weights without a gradient are looked for behind the outputs. Each gradient is reduced once, here doubled."""
    model, batch = new_model(name).train(), new_batch(2)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)

    def doubled(_, bucket):  # its annotations would have to be torch's
        future = torch.futures.Future()
        future.set_result(2 * bucket.buffer())
        return future

    wrapped.register_comm_hook(None, doubled)
    ours = gradients(model, encoding.loss_terms(wrapped, batch, DPOLoss()))
    theirs = gradients(model, plain_terms(model, batch, DPOLoss()))
    assert ours.keys() == theirs.keys()
    for weight, gradient in theirs.items():
        torch.testing.assert_close(ours[weight], 2 * gradient, atol=1e-5, rtol=1e-5, msg=weight)


@pytest.mark.usefixtures("chunk")
def test_an_autocast_forward_pass_computes_logits_in_its_precision() -> None:
    """accelerate puts autocast into `forward`. Under bfloat16 the chunks are what the whole is, and not what fp32 is."""
    model, batch = new_model("untied").train(), new_batch(1)
    in_fp32 = encoding.loss_terms(model, batch, SFTLoss())
    model.forward = MethodType(torch.autocast("cpu", torch.bfloat16)(type(model).forward), model)
    terms, plain = encoding.loss_terms(model, batch, SFTLoss()), plain_terms(model, batch, SFTLoss())
    torch.testing.assert_close(terms, plain, atol=1e-4, rtol=1e-4)
    assert (terms - in_fp32).abs().max() > 1e-3
    ours, theirs = gradients(model, terms), gradients(model, plain)
    for weight, gradient in theirs.items():
        torch.testing.assert_close(ours[weight], gradient, atol=0.02 * gradient.abs().max().item(), rtol=0, msg=weight)


@pytest.mark.parametrize("tied", [True, False])
def test_a_3b_policy_saves_a_fifth_of_what_logits_of_every_position_take(tied: bool) -> None:
    """RRHF of 2 prompts with 4 responses at 768 tokens, 512 of them responses; the output layer's share, layers apart.

    Plain: log-softmax of 8 x 767 positions x 128,256 in fp32, and the hidden states: 3.2 GB. Here the last chunk's 523 positions, 0.27 GB.
    """
    model = llama_3b(layers=1, tied=tied)
    ids, attention = (torch.zeros(8, 768, dtype=torch.long, device="meta") for _ in range(2))
    mask = (torch.arange(768) >= 256).long().expand(8, 768)
    assert is_recognised(model)
    passes = {
        "layers": lambda: Masked(model.model.base_model)(ids, attention).last_hidden_state,
        "plain": lambda: plain_token_logps(model(ids, attention).logits, ids),
        "chunks": lambda: token_logps(model, ids, attention, mask),
    }
    saved = {}
    for name, forward in passes.items():
        with saved_for_backward([*model.parameters(), ids, attention]) as counted:
            forward()
        saved[name] = counted.bytes
    plain, chunks = saved["plain"] - saved["layers"], saved["chunks"] - saved["layers"]
    assert plain == pytest.approx(4 * (8 * 767 * 128256 + 8 * 768 * 3072), rel=0.01)
    assert chunks < 0.3e9
    assert plain / chunks > 10

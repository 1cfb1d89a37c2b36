"""Scores beside padding: allenai/reward-bench#137 and #115, huggingface/trl#422 and #937."""

from pathlib import Path

import pytest
import torch
from foreign_models import ITEMS, policy_folder, reward_folder, tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from apo_bench.config.schema import PolicyModel, PretrainedReward, Sampling
from apo_bench.models import reward as rewards
from apo_bench.models.finished_reward import load_finished
from apo_bench.models.generate import generate
from apo_bench.models.policy import load_policy
from apo_bench.types import Prompt

PADS = {
    "own": ("own", {}),
    "own, none in the configuration": ("own", {"pad_token_id": None}), 
    "the end token": ("end", {}),
    "none": (None, {}),
    "the end token, none in the configuration": ("end", {"pad_token_id": None}),
    "another in the configuration": ("own", {"pad_token_id": 1}),
}  # fmt: skip


@pytest.mark.parametrize("spare", [0, 40])
@pytest.mark.parametrize("pads", PADS)
def test_every_response_has_the_score_it_has_alone(tmp_path: Path, pads: str, spare: int) -> None:
    """Expected: transformers alone on one text, as the folder says, without padding; the text as the template writes it."""
    pad, fields = PADS[pads]
    folder = reward_folder(tmp_path, tokenizer(pad), spare, **fields)
    model, own = AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    alone = []
    for prompt, text in ITEMS:
        turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
        ids = own.apply_chat_template([*turns, {"role": "assistant", "content": text}], return_dict=False)
        with torch.no_grad():
            alone.append(float(model(torch.tensor([ids])).logits))
    spec = PretrainedReward(kind="pretrained", path=str(folder))
    assert rewards.score(*load_finished(folder, spec), ITEMS, spec)[0] == pytest.approx(alone, abs=1e-5)
    assert max(alone) - min(alone) > 0.1


@pytest.mark.parametrize("spare", [0, 40])
@pytest.mark.parametrize("pad", ["own", "end", None])
def test_a_policy_answers_beside_padding_as_alone(tmp_path: Path, pad: str | None, spare: int) -> None:
    """Greedy answers to prompts of different length, in a batch: those that transformers gives to each prompt alone, padding apart."""
    folder = policy_folder(tmp_path, tokenizer(pad), spare)
    spec = PolicyModel.model_validate({
        "path": str(folder), "max_prompt_tokens": 64, "training": {"learning_rate": 1.0}, "sampling": {"max_new_tokens": 6}
    })  # fmt: skip
    model, own = load_policy(folder)
    prompts = [prompt for prompt, _ in ITEMS[:1] + ITEMS[2:]]
    responses = generate(model, own, prompts, 1, Sampling(max_new_tokens=6, temperature=0), spec, seed=0)[0]
    plain, reader = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def alone(prompt: Prompt) -> list[int]:
        text = reader.apply_chat_template(
            [{"role": "system", "content": ""}, {"role": "user", "content": prompt.messages[0].content}], tokenize=False,
            add_generation_prompt=True,
        )  # fmt: skip
        ids = torch.tensor([reader(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            for _ in range(6):
                logits = plain(ids).logits[:, -1]
                logits[:, own.pad_token_id :][:, :1] = -torch.inf
                ids = torch.cat([ids, logits.argmax(-1)[None]], dim=1)
        return ids[0, -6:].tolist()

    assert [list(response.token_ids or ()) for response in responses] == [alone(prompt) for prompt in prompts]

"""Neural reward models: sequence classification on any backbone, with one label, or one for each axis. Those that are trained here stop
reading at the end of the response's turn; a finished model reads what its makers let it read (`finished_reward`)."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apo_bench.config.schema import NetworkReward, NeuralReward, PretrainedReward
from apo_bench.errors import InputError
from apo_bench.losses import RewardLoss
from apo_bench.models import flops, precision
from apo_bench.models.adapters import CLASSIFICATION_HEADS
from apo_bench.models.device import gets_weights_from_another, is_sharded, on_meta, seeded
from apo_bench.models.model_folder import check_context, fit_embedding, read_config, read_model
from apo_bench.models.padding import in_like_lengths, like_lengths, pad
from apo_bench.models.policy import on_device, token_ids
from apo_bench.models.tokenize import ChatFormat, Encoded, load_tokenizer
from apo_bench.models.word_tokenizer import word_tokenizer
from apo_bench.types import NOTHING_CUT, CutTexts, Pair, Prompt, is_cut

ANY_AXIS = "any"  # the one label's name where the axes share it
UNNAMED = "LABEL_0"  # transformers' own name for the one output of a model from elsewhere
OURS = "apo_bench_reward"  # a field in the configuration of models that are trained here


def new_reward_model(
    spec: NeuralReward, start: str | Path | None, axes: Sequence[str], vocabulary: Sequence[str] | None, seed: int, shards: bool = False
) -> tuple[Any, Any]:
    """(model, tokenizer), in fp32: from the folder `start`, or the spec's architecture; the seed draws the head (and a new body).

    `shards` as for `load_policy`.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    names = list(axes) if spec.axis_heads else [ANY_AXIS]
    attention = "sdpa" if spec.attention == "auto" else spec.attention
    shards = shards and is_sharded()
    with seeded(seed):
        if start is not None:
            tokenizer = load_tokenizer(start, spec.trust_remote_code)
            config = read_config(start, spec.trust_remote_code, num_labels=len(names))
            check_context(config, f"{start}: max_tokens", spec.max_tokens)
            model = read_model(
                AutoModelForSequenceClassification, start, config=config, new_head=True, trust_remote_code=spec.trust_remote_code,
                shards=shards, **precision.load_options(attention=attention),
            )  # fmt: skip
            fit_embedding(model, tokenizer)
        else:
            assert spec.architecture is not None
            assert vocabulary is not None
            tokenizer = word_tokenizer(vocabulary)
            fields = dict(spec.architecture)
            config = AutoConfig.for_model(fields.pop("model_type"), **fields, **token_ids(tokenizer), num_labels=len(names))
            with on_meta() if shards and gets_weights_from_another() else nullcontext():
                model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}
    setattr(model.config, OURS, True)
    return model if shards else on_device(model), tokenizer


def load_reward_model(
    folder: str | Path, trust_remote_code: bool = False, labels_of: Path | None = None, **options: Any
) -> tuple[Any, Any]:
    """(model, tokenizer) of a trained reward model; `options` as for `load_policy`. The head is in fp32.

    With `labels_of`, a folder of adapters, the body is read, to get its labels and a new head, which the adapters bring.
    """
    from transformers import AutoModelForSequenceClassification

    tokenizer = load_tokenizer(folder, trust_remote_code)
    config = None
    if labels_of is not None:  # the rest is the body's own: what was stored counts a row for padding that the body's file may lack
        stored = read_config(labels_of, trust_remote_code)
        config = read_config(folder, trust_remote_code, id2label=stored.id2label, label2id=stored.label2id)
        setattr(config, OURS, getattr(stored, OURS, False))
    with seeded(0):  # a missing head is drawn before it is read
        model = read_model(
            AutoModelForSequenceClassification, folder, config=config, new_head=labels_of is not None, trust_remote_code=trust_remote_code,
            **precision.load_options(**options),
        )  # fmt: skip
    fit_embedding(model, tokenizer)
    if options.get("dtype", "float32") != "float32":
        precision.heads_in_fp32(model, CLASSIFICATION_HEADS)
    return on_device(model), tokenizer


def is_ours(model: Any) -> bool:
    return bool(getattr(model.config, OURS, False))


def label(model: Any, axis: str, spec: NetworkReward | None = None) -> int:
    """The output that scores this axis: of a finished model the spec's. Raises InputError for an axis the model has none for."""
    if isinstance(spec, PretrainedReward) and not is_ours(model):
        return spec.output
    labels = model.config.label2id
    if set(labels) not in ({ANY_AXIS}, {UNNAMED}) and axis not in labels:
        raise InputError(f"reward model: no output for axis {axis!r}; it has {', '.join(labels)}")
    return labels.get(axis, 0)


def pair_items(model: Any, tokenizer: Any, pairs: Sequence[Pair], spec: NetworkReward, cut: CutTexts = NOTHING_CUT) -> list[dict[str, Any]]:
    """Encoded pairs for `training.fit`; texts in `cut` have no end."""
    items: list[dict[str, Any]] = []
    for pair in pairs:
        texts = [(pair.prompt, text) for text in (pair.chosen, pair.rejected)]
        sides = [encoded.ids for encoded in encode_texts(tokenizer, texts, spec, cut, model)]
        items.append({
            "sides": sides, "golden": pair.source == "golden_over_sample", "label": label(model, pair.prompt.axis, spec),
            "size": 1, "length": sum(map(len, sides)),
        })  # fmt: skip
    return items


def collate(items: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """All chosen sides, then all rejected ones: (2B, T)."""
    ids, attention = pad([item["sides"][side] for side in (0, 1) for item in items], pad_id)
    per_pair = {name: torch.tensor([item[name] for item in items]) for name in ("golden", "label")}
    return {"input_ids": ids, "attention_mask": attention, **per_pair}


def loss_terms(model: Any, batch: Mapping[str, Tensor], loss: RewardLoss) -> Tensor:
    """One loss term per pair, (B,)."""
    ids, attention = batch["input_ids"], batch["attention_mask"]
    logits = in_like_lengths(  # (2B, labels)
        attention, lambda rows, width: outputs(model, ids[rows, :width], attention[rows, :width])
    )
    chosen, rejected = logits.gather(1, batch["label"].repeat(2)[:, None]).squeeze(1).chunk(2)
    return loss(chosen - rejected, batch["golden"])


def outputs(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, labels), whatever form a model from elsewhere gives its scores. Raises InputError for scores of tokens, and for none."""
    result = model(input_ids=ids, attention_mask=mask)
    logits = result if isinstance(result, Tensor) else getattr(result, "logits", None)
    logits = result[0] if logits is None else logits
    logits = logits[:, None] if logits.ndim == 1 else logits
    if logits.ndim != 2 or len(logits) != len(ids):
        raise InputError(f"reward model: it gives numbers of shape {tuple(logits.shape)} for {len(ids)} texts, not one or several a text")
    return logits


def set_template(tokenizer: Any, spec: NetworkReward) -> None:
    """Take the chat template off the tokenizer of a finished model that reads transcripts."""
    if isinstance(spec, PretrainedReward) and spec.template == "transcript":
        tokenizer.chat_template = None


def chat_format(tokenizer: Any, spec: NetworkReward, model: Any = None) -> ChatFormat:
    """How a reward model reads. One that was trained here without a system turn does not get the template's."""
    system_prompt = "" if spec.system_prompt is None and model is not None and is_ours(model) else spec.system_prompt
    return ChatFormat(tokenizer, system_prompt, spec.chat_template_kwargs, spec.template_date)


def encode_texts(
    tokenizer: Any, items: Sequence[tuple[Prompt, str]], spec: NetworkReward, cut: CutTexts = NOTHING_CUT, model: Any = None
) -> list[Encoded]:
    """What the model reads of each (prompt, response). A finished `model` from elsewhere reads all that its template writes."""
    chat = chat_format(tokenizer, spec, model)
    whole = isinstance(spec, PretrainedReward) and (model is None or not is_ours(model))
    return [
        chat.encode_scored(prompt, text, spec.max_tokens, axis_input=spec.axis_input, cut=is_cut(cut, prompt, text), whole=whole)
        for prompt, text in items
    ]


@torch.no_grad()
def score(
    model: Any, tokenizer: Any, items: Sequence[tuple[Prompt, str]], spec: NetworkReward, cut: CutTexts = NOTHING_CUT
) -> tuple[list[float], dict[str, float]]:
    """A score for each (prompt, response), each distinct one computed once, and the counts spent (charged per item).

    Texts in `cut` have no end. Raises InputError for a score that is not finite.
    """
    model.eval()
    encoded = encode_texts(tokenizer, items, spec, cut, model)
    distinct = sorted({tuple(item.ids) for item in encoded}, key=lambda ids: (len(ids), ids))
    scores: dict[tuple[int, ...], list[float]] = {}  # by label
    for texts in like_lengths([len(ids) for ids in distinct], spec.score_batch_size):
        batch = distinct[texts]
        ids, mask = pad(batch, tokenizer.pad_token_id)
        logits = outputs(model, ids.to(model.device), mask.to(model.device))
        scores.update(zip(batch, logits.float().tolist(), strict=True))
    counts: dict[str, float] = {
        "scored_responses": len(items),
        "scored_tokens": sum(len(item.ids) for item in encoded),
        "flops": flops.size(model).forward([len(item.ids) for item in encoded]),
        "truncated_scored": sum(item.truncated for item in encoded),
    }
    values = [scores[tuple(item.ids)][label(model, prompt.axis, spec)] for item, (prompt, _) in zip(encoded, items, strict=True)]
    if not all(map(math.isfinite, values)):
        place = next(place for place, value in enumerate(values) if not math.isfinite(value))
        raise InputError(f"reward model: its score of a response to prompt {items[place][0].id} is {values[place]}, not a finite number")
    return values, counts

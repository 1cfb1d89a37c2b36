"""Finished reward models: loaded as their makers left them, to be scored as their makers score them."""

from pathlib import Path
from typing import Any, Literal

import torch

from apo_bench.config.schema import PretrainedReward
from apo_bench.errors import InputError
from apo_bench.models import precision
from apo_bench.models.adapters import CLASSIFICATION_HEADS
from apo_bench.models.device import gets_weights_from_another, is_sharded
from apo_bench.models.model_folder import check_context, fit_embedding, read_config, read_model
from apo_bench.models.padding import pad
from apo_bench.models.policy import on_device
from apo_bench.models.reward import outputs, set_template
from apo_bench.models.tokenize import load_tokenizer

MARKER = "pretrained.json"  # in an artifact that stands for a finished model, whose weights stay where they are
PROBES = ((1,), (1, 2, 3, 1, 2, 3))  # places in a vocabulary: two texts of different length
CLASSIFIER, ANY_MODEL = "AutoModelForSequenceClassification", "AutoModel"


def load_finished(source: str | Path, spec: PretrainedReward, shards: bool = False, **options: Any) -> tuple[Any, Any]:
    """(model, tokenizer) from a folder or the hub; `shards` and `options` as for `load_policy`. The head is in fp32.

    What pads is what the model's configuration says, even where that is the end token: alone, too, such a model reads no further than the
    last token before it. Raises InputError for a folder that is not whole, an output that the model lacks, a context shorter
    than `max_tokens`, and a model of its own code whose scores change with padding.
    """
    config = read_config(source, spec.trust_remote_code)
    check_finished(source, config, spec)
    shards = shards and is_sharded()
    model = read_model(
        auto_class(config), source, config=config, trust_remote_code=spec.trust_remote_code, shards=shards,
        **precision.load_options(**options),
    )  # fmt: skip
    tokenizer = finished_tokenizer(source, spec, model)
    if options.get("dtype", "float32") != "float32":
        precision.heads_in_fp32(model, CLASSIFICATION_HEADS)
    model = (model if shards else on_device(model)).eval()
    if spec.trust_remote_code and spec.score_batch_size > 1 and not (shards and gets_weights_from_another()):
        _check_padding(model, tokenizer, source)
    return model, tokenizer


def finished_tokenizer(source: str | Path, spec: PretrainedReward, model: Any) -> Any:
    """The tokenizer of a finished model, at one with it. Raises InputError where there is no chat template that the spec asks for."""
    from transformers import AutoTokenizer

    tokenizer = load_tokenizer(source, spec.trust_remote_code)
    own = model.config.get_text_config().pad_token_id
    known = isinstance(own, int) and 0 <= own < min(model.get_input_embeddings().weight.shape[0], len(tokenizer))
    if known and own != tokenizer.pad_token_id:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=spec.trust_remote_code)  # without a token added to it
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(own)
    fit_embedding(model, tokenizer)
    if spec.template == "chat" and not tokenizer.chat_template:
        raise InputError(f"{source}: its tokenizer has no chat template; give template: transcript")
    set_template(tokenizer, spec)
    return tokenizer


def own_template(source: str | Path, trust_remote_code: bool = False) -> Literal["chat", "transcript"]:
    """What a finished model reads where nobody says: its tokenizer's chat template, if there is one."""
    return "chat" if load_tokenizer(source, trust_remote_code).chat_template else "transcript"


def check_finished(source: str | Path, config: Any, spec: PretrainedReward) -> None:
    """Raise InputError where the spec asks for an output that the model does not have, or for a longer context."""
    if spec.output >= config.num_labels:
        raise InputError(f"{source}: output: {spec.output}, but it has {config.num_labels} outputs, counted from 0")
    check_context(config, f"{source}: max_tokens", spec.max_tokens)


def auto_class(config: Any) -> Any:
    """What loads the model: a classifier, or, where its own code brings no such class, whatever that brings."""
    import transformers

    own = getattr(config, "auto_map", None) or {}
    return getattr(transformers, ANY_MODEL if ANY_MODEL in own and CLASSIFIER not in own else CLASSIFIER)


@torch.no_grad()
def _check_padding(model: Any, tokenizer: Any, source: str | Path) -> None:
    """transformers' own classes find the last token themselves; other code may not."""
    ids = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    probes = [[ids[place % len(ids)] for place in probe] for probe in PROBES]

    def read(*texts: list[int]) -> torch.Tensor:
        return outputs(model, *(part.to(model.device) for part in pad(texts, tokenizer.pad_token_id))).float()

    if not torch.allclose(read(*probes), torch.cat([read(probe) for probe in probes]), rtol=0.02, atol=0.02):
        raise InputError(f"{source}: its code gives other scores beside padding; give score_batch_size: 1")

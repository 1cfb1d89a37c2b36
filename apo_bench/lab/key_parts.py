"""What stands for losses, data and reward models in the keys of artifacts."""

import inspect
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from apo_bench.clients.response_scores import ResponseScorer
from apo_bench.config.schema import JudgeReward, NetworkReward, PolicyModel, SingleReward
from apo_bench.errors import InputError
from apo_bench.hashing import code_hash, path_identity
from apo_bench.types import CutTexts, Group, Pair, Policy, TrainingItem, UnpairedExample


def of_loss(loss: Any) -> dict[str, Any]:
    """A loss by class, code and fields: two closures may have equal source, two dataclasses may not."""
    if not is_dataclass(loss) or isinstance(loss, type):
        raise InputError(f"loss {loss!r}: a loss is a dataclass instance, so that its fields enter the memo key")
    own = {field.name: getattr(loss, field.name) for field in fields(loss)}
    described = {name: of_loss(value) if is_dataclass(value) else value for name, value in own.items()}  # a loss of a loss
    return {"class": type(loss).__qualname__, "code": code_hash(Path(inspect.getfile(type(loss)))), **described}


def of_item(item: TrainingItem) -> tuple[Any, ...]:
    """An item that a policy is trained on."""
    if isinstance(item, Group):
        return item.prompt.id, item.responses, item.scores
    if isinstance(item, UnpairedExample):
        return item.prompt.id, item.response, item.desirable, *(() if item.mismatched is None else (item.mismatched,))
    return item.prompt.id, item.id if isinstance(item, Pair) else item.response


def of_reward_spec(spec: SingleReward) -> dict[str, Any]:
    """A reward model's settings."""
    if isinstance(spec, JudgeReward):  # its prices and its pace change no score
        return dict(ResponseScorer.of(spec).identity)
    return spec.model_dump(mode="json", exclude={"path"})


def of_base(spec: SingleReward, body: Policy | None) -> str | None:
    """What a reward model starts from, by content where it lies here, so that a moved folder keeps its keys."""
    return (body.key if body else path_identity(spec.path)) if isinstance(spec, NetworkReward) else None


def of_format(model: PolicyModel) -> dict[str, Any]:
    """Those of a policy's settings that change what it reads and writes, and in which precision."""
    precision = {"dtype", "stored_dtype", "attention", "quantize"}
    limits, chat = {"max_prompt_tokens", "max_response_tokens"}, {"system_prompt", "chat_template_kwargs", "template_date"}
    return model.model_dump(mode="json", include={*limits, *chat, *precision})


def of_cut(cut: CutTexts) -> dict[str, Any]:
    """Cut texts; nothing where there are none."""
    return {"cut": sorted((name, sorted(texts)) for name, texts in cut.items())} if cut else {}

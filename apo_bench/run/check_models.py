"""Checks of an experiment's models before anything runs: settings, and the folders of those that are on this machine.

Of a folder the names and shapes of its weights are compared with what its configuration needs, without reading a weight; and its tokenizer
encodes a conversation.
"""

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from apo_bench.clients.chat import ChatClient
from apo_bench.clients.response_scores import ResponseScorer
from apo_bench.config.finished_arms import finished_arms, finished_models, paths
from apo_bench.config.schema import Experiment, JudgeReward, NetworkReward, NgramReward, PolicyModel, PretrainedReward, Recipe
from apo_bench.errors import InputError, NotHere
from apo_bench.models import precision
from apo_bench.models.adapter_folder import CONFIG, foreign_base
from apo_bench.models.model_folder import check_context, check_sizes, config_fields
from apo_bench.models.pretrained_weights import IMPORT_NAMES, resolve_model, similar_model
from apo_bench.run.first_prompts import named_models
from apo_bench.types import Message, Prompt

PROBE = Prompt("probe", (Message("user", "a"), Message("assistant", "b"), Message("user", "c")), "axis", "probe")
Network = PolicyModel | NetworkReward


def check_models(experiment: Experiment, base: Path, n_axes: int | None) -> Iterator[str]:
    """Check the models; yields notes. `n_axes`: of the task, None where that is not known. Raises InputError that names a key."""
    finished = dict(finished_models(experiment))
    for key, model in named_models(experiment):
        if isinstance(model, NgramReward):
            continue
        if key in finished:
            yield from _check_finished(key, finished[key], base, experiment)
            continue
        if isinstance(model, JudgeReward):
            yield from _check_judge(key, model)
            continue
        if model.architecture is not None:
            _check_architecture(f"{key}.architecture", model.architecture)
            _check_context(key, model, model.architecture, experiment)
        if model.path is not None:
            yield from _check_path(key, model, model.path, base, experiment, n_axes)
        recipes = [recipe for recipe in (model.training, model.warmup) if recipe is not None]
        yield from _check_precision(key, model, recipes)
        if any(recipe.lora is not None for recipe in recipes) and importlib.util.find_spec("peft") is None:
            yield f"{key}: lora needs peft, which is not installed; run: pip install peft"
    yield from _check_adapters(experiment, base)


def _check_finished(key: str, model: PolicyModel, base: Path, experiment: Experiment) -> Iterator[str]:
    """As of the policy, under the key of the path. An arm's recipe is its maker's."""
    try:
        yield from (note.replace(f"{key}.path: ", f"{key}: ") for note in _check_path(key, model, str(model.path), base, experiment, None))
    except InputError as error:
        raise InputError(str(error).replace(f"{key}.path: ", f"{key}: ")) from None


def _check_adapters(experiment: Experiment, base: Path) -> Iterator[str]:
    """Check that folders of adapters hold some, and that what they stand on is known."""
    for name, arm in finished_arms(experiment).items():
        for key, path in paths(arm):
            if key.partition(".")[0] != "adapters":
                continue
            try:
                folder = Path(resolve_model(path, base))
                if not (folder / CONFIG).is_file():
                    raise InputError(f"{path}: it holds no adapters (no {CONFIG})")
                if not arm.parameters.get("base"):
                    foreign_base(folder)
            except InputError as error:
                raise InputError(f"arms.{name}.{key}: {str(error).removeprefix('path: ')}") from None
            if importlib.util.find_spec("peft") is None:
                yield f"arms.{name}.{key}: adapters need peft, which is not installed; run: pip install peft"


def _check_judge(key: str, model: JudgeReward) -> Iterator[str]:
    """A note where the key's variable is not set, or the `judge` extra not installed; no call is made. Raises InputError for a setting."""
    try:
        scorer = ResponseScorer.of(model)
    except InputError as error:
        raise InputError(f"{key}.{str(error).removeprefix('ResponseScorer: ')}") from None
    try:
        ChatClient(scorer.endpoint)
    except NotHere as error:
        yield f"{key}.{error}"
    except InputError as error:
        raise InputError(f"{key}.{error}") from None


def _check_precision(key: str, model: Network, recipes: Sequence[Recipe]) -> Iterator[str]:
    """A note for each package that these settings need and this machine lacks. Raises InputError for an optimizer that is none."""
    quantize = model.quantize if isinstance(model, PolicyModel) else None
    missing = {precision.lacking(attention=model.attention, quantize=quantize)}
    for recipe in recipes:
        try:
            precision.check_optimizer(recipe.optimizer)
        except InputError as error:
            raise InputError(f"{key}.training.{error}") from None
        missing.add(precision.lacking(optimizer=recipe.optimizer))
    yield from (f"{key}.{line}" for line in sorted(missing - {None}))  # pyright: ignore


def _check_path(key: str, model: Network, path: str, base: Path, experiment: Experiment, n_axes: int | None) -> Iterator[str]:
    try:
        resolved = resolve_model(path, base)
    except InputError as error:
        if path not in IMPORT_NAMES:
            raise InputError(f"{key}.{error}") from None
        yield f"{key}.{error}"
        return
    if not os.path.isabs(resolved):
        yield f"{key}.path: {path} is taken for a hub id and was not checked{similar_model(path, base)}"
        return
    try:
        fields = config_fields(Path(resolved))
        check_sizes(f"{Path(resolved) / 'config.json'}", fields)
    except InputError as error:
        raise InputError(f"{key}.path: {error}") from None
    _check_context(key, model, fields, experiment)
    if model.trust_remote_code and "auto_map" in fields:
        yield f"{key}.path: {path} brings its own code, and its weights were not checked"
        return
    try:
        _check_folder(Path(resolved), model, n_axes)
    except InputError as error:
        if str(error).split(":")[0] in type(model).model_fields:  # a setting of the model's
            raise InputError(f"{key}.{error}") from None
        raise InputError(f"{key}.path: {error if resolved in str(error) else f'{resolved}: {error}'}") from None


def _check_folder(folder: Path, model: Network, n_axes: int | None) -> None:
    """Raise InputError for weights that are missing or of another shape, a tokenizer that does not go with them, and a chat template that
    cannot be used."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from apo_bench.models.finished_reward import check_finished, finished_tokenizer
    from apo_bench.models.model_folder import check_model, fit_embedding
    from apo_bench.models.reward import encode_texts
    from apo_bench.models.tokenize import ChatFormat, load_tokenizer

    checked = partial(check_model, folder=folder, trust_remote_code=model.trust_remote_code)
    if isinstance(model, PretrainedReward):
        network = checked(AutoModelForSequenceClassification)
        check_finished(folder, network.config, model)
        tokenizer = finished_tokenizer(folder, model, network)
        encode_texts(tokenizer, [(PROBE, "d")], model, model=network)
        return
    if isinstance(model, PolicyModel):
        network = checked(AutoModelForCausalLM)
    else:
        labels: dict[str, Any] = {} if model.axis_heads and n_axes is None else {"num_labels": n_axes if model.axis_heads else 1}
        network = checked(AutoModelForSequenceClassification, new_head=True, **labels)
    tokenizer = load_tokenizer(folder, model.trust_remote_code)
    fit_embedding(network, tokenizer)
    if isinstance(model, PolicyModel):
        chat = ChatFormat.of(tokenizer, model)
        chat.encode_prompt(PROBE, model.max_prompt_tokens)
        chat.encode_response(PROBE, "d", model.max_response_tokens)
    else:
        encode_texts(tokenizer, [(PROBE, "d")], model)


def _check_context(key: str, model: Network, config: Mapping[str, Any], experiment: Experiment) -> None:
    """Raise InputError where prompt and longest response need more positions than the model's configuration gives it."""
    if not isinstance(model, PolicyModel):
        return check_context(config, f"{key}.max_tokens", model.max_tokens)
    longest = max(model.max_response_tokens, model.sampling.max_new_tokens, experiment.evaluation.sampling.max_new_tokens)
    check_context(config, f"{key}.max_prompt_tokens, with the longest response", model.max_prompt_tokens + longest)


def _check_architecture(key: str, fields: Mapping[str, Any]) -> None:
    """Raise InputError for a field that the model type does not have: transformers ignores it, and the model has another size."""
    from transformers import CONFIG_MAPPING

    own = dict(fields)
    kind = own.pop("model_type", None)
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise InputError(f"{key}.model_type: transformers has no model type {kind!r}")
    known = CONFIG_MAPPING[kind]()
    for field in own:
        if field in ("vocab_size", "pad_token_id", "eos_token_id", "bos_token_id", "num_labels"):
            raise InputError(f"{key}.{field}: follows from the task and may not be given")
        if not hasattr(known, field):
            raise InputError(f"{key}.{field}: {kind} has no such field")
    check_sizes(key, own)
    try:
        CONFIG_MAPPING[kind](**own)
    except Exception as error:
        raise InputError(f"{key}: {error}") from None

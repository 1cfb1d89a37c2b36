"""`--tiny`: any experiment with models of 40,000 random weights and sizes to match, to see that its file works.

Nothing it reports means anything. Task and data stay as they are; so do rounds, samples and learning rates, adapters and what is frozen.
Judges behind a server are left out.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from apo_bench.config import plugins as methods
from apo_bench.config.schema import JUDGE, Experiment, Gold
from apo_bench.provenance import code_hash

# The most that each size may be; what an experiment leaves open is set to it.
POLICY = {"max_prompt_tokens": 48, "max_response_tokens": 16}
REWARD = {"max_tokens": 64, "score_batch_size": 64}
RECIPE = {"epochs": 1, "batch_size": 8, "warmup_steps": 0}
LONG_RECIPE = {"epochs": 0.1, "warmup_steps": 0}  # of a warm-up and of gold models, which learn from all that the task has
SAMPLING = {"max_new_tokens": 8, "batch_size": 64}
EVALUATION = {"prompts": 16, "kl_prompts": 8, "held_out_golden": 8, "diagnostic_pairs": 32}
DEV_PROMPTS, PROMPTS_PER_ROUND, SEEDS, TRIALS, LEVELS = 8, 8, 2, 2, 2
JUDGING = {"prompts": 8, "audit_pairs": 8}
BUDGET = {"human_pairs": 64, "golden_responses": 16}
LEAST = 4  # of an arm's own budget, which keeps its proportion to the experiment's

LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 2048}
PAD, END = "<|tiny_pad|>", "<|tiny_end|>"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def tiny_overrides(experiment: Experiment, path: Path, cache_folder: Path) -> dict[str, Any]:
    """Whole sections that `load_experiment` takes as overrides: every model path a tiny model's in `cache_folder`, all sizes small.

    Sizes already smaller stay. An architecture stays too. `path` is the experiment's file, beside which methods are looked up. Builds
    the models that are not there yet, one for each path of the experiment, so that different models stay different.
    Raises InputError for a method that cannot be found.
    """
    tree = experiment.model_dump(mode="json")
    models, budget = tree["models"], tree["budget"]
    folders: dict[str, str] = {}

    def swapped(model: dict[str, Any]) -> dict[str, Any]:
        if not model.get("path"):
            return model
        if model["path"] not in folders:
            folders[model["path"]] = _spelled(tiny_model(cache_folder, seed=len(folders)))
        return {**model, "path": folders[model["path"]], **({"trust_remote_code": False} if "trust_remote_code" in model else {})}

    def policy(model: dict[str, Any]) -> dict[str, Any]:
        return _capped(_recipes(swapped(model), RECIPE), POLICY) | {"sampling": _capped(model["sampling"], SAMPLING)}

    def reward(model: dict[str, Any], recipe: Mapping[str, float] = RECIPE) -> dict[str, Any]:
        return _capped(_recipes(swapped(model), recipe), REWARD) if model["kind"] == "neural" else model

    def gold(one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "model": reward(one["model"], LONG_RECIPE), "seeds": one["seeds"][:SEEDS]}

    def gold_level(one: dict[str, Any]) -> dict[str, Any]:
        try:  # a level of `vary` is as the file spells it, perhaps without what has a default
            return gold(Gold.model_validate_json(json.dumps(one), strict=True).model_dump(mode="json"))
        except ValidationError:
            return one  # refused with the right words when the experiment is checked

    evaluation: dict[str, Any] = _capped(tree["evaluation"], EVALUATION) | {"sampling": _capped(tree["evaluation"]["sampling"], SAMPLING)}
    if evaluation["dev_prompts"] is not None:
        evaluation["dev_prompts"] = min(evaluation["dev_prompts"], DEV_PROMPTS)
    made: dict[str, Any] = {
        "seeds": tree["seeds"][:SEEDS],
        "models": {"policy": policy(models["policy"]), "reward": reward(models["reward"]), "gold": [gold(one) for one in models["gold"]]},
        "evaluation": evaluation,
        "budget": _capped(BUDGET | budget, BUDGET),
        "judging": _capped(tree["judging"], JUDGING),
        "arms": {name: _arm(arm, budget, path, name) for name, arm in tree["arms"].items()},
    }
    if tree["judges"]:
        made["judges"] = {name: swapped(one) for name, one in tree["judges"].items() if "base_url" not in one}  # nobody is called
        if tree["compare"]["scorer"].removeprefix(JUDGE) in tree["judges"].keys() - made["judges"].keys():
            made["compare"] = {**tree["compare"], "scorer": "gold"}
    if tree["tune"]:
        made["tune"] = {**tree["tune"], "trials": TRIALS, "seeds": tree["tune"]["seeds"][:1]}
    if tree["vary"]:
        level = {"initial_policy": swapped, "gold": gold_level}
        made["vary"] = {
            factor: [level[factor](one) if factor in level and isinstance(one, dict) else one for one in levels[:LEVELS]]
            for factor, levels in tree["vary"].items()
        }
    return made


def tiny_model(cache_folder: Path, seed: int) -> Path:
    """The folder of a random Llama that reads bytes, in `cache_folder`; built if it is not there. The same seed, the same bytes.

    A reward model can start from it too. The folder's name says which code made it, and the folder is there whole or not at all.
    """
    folder = cache_folder / f"tiny-{seed}-{code_hash(__name__)[:8]}"
    if folder.is_dir():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    from apo_bench.models.policy import save_model, token_ids

    tokenizer = byte_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**LLAMA, **token_ids(tokenizer), initializer_range=0.1))
    cache_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=cache_folder) as scratch:
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        save_model(model, tokenizer, Path(scratch) / "model")
        if shown:
            logging.enable_progress_bar()
        try:
            (Path(scratch) / "model").rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was first, with the same bytes
                raise
    return folder


def byte_tokenizer() -> Any:
    """A tokenizer with one token for each byte of UTF-8, a padding and an end token, and a plain chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [PAD, END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=END, chat_template=TEMPLATE, clean_up_tokenization_spaces=False
    )


def _capped(section: Mapping[str, Any], most: Mapping[str, float]) -> dict[str, Any]:
    return {**section, **{key: cap if section[key] is None else min(section[key], cap) for key, cap in most.items()}}


def _recipes(model: Mapping[str, Any], training: Mapping[str, float]) -> dict[str, Any]:
    caps = {"training": training, "warmup": LONG_RECIPE}
    return {**model, **{key: _recipe(model[key], most) for key, most in caps.items() if model.get(key)}}


def _recipe(recipe: Mapping[str, Any], most: Mapping[str, float]) -> dict[str, Any]:
    """Adapters go to all linear layers: the names of a large model's are not those of a tiny one's."""
    lora = recipe["lora"] and {**recipe["lora"], "target_modules": "all-linear"}
    return _capped(recipe, most) | {"micro_batch_size": None, "lora": lora}


def _arm(arm: Mapping[str, Any], budget: Mapping[str, float], path: Path, name: str) -> dict[str, Any]:
    own = {unit: _share(amount, budget.get(unit), BUDGET.get(unit)) for unit, amount in arm["budget"].items()}
    parameters = {key: value for key, value in arm.items() if key not in ("use", "budget", "fit")}
    return {**_small_turns(arm["use"], parameters, path, f"{path}: arms.{name}"), "budget": own, "fit": arm["fit"]}


def _share(amount: float, whole: float | None, cap: int | None) -> float:
    """An arm's own budget for a unit whose budget shrinks from `whole` to `cap`."""
    if cap is None or not amount or (whole is not None and whole <= cap):
        return amount
    return min(amount, cap) if whole is None else min(amount, max(LEAST, round(amount * cap / whole)))


def _small_turns(use: str, parameters: Mapping[str, Any], path: Path, where: str) -> dict[str, Any]:
    """A method, and those among its parameters, with few prompts a round wherever that is a parameter."""
    inner = partial(_small_turns, path=path)
    own: dict[str, Any] = {
        key: inner(value["use"], {name: part for name, part in value.items() if name != "use"}, where=f"{where}.{key}")
        if isinstance(value, Mapping) and "use" in value
        else value
        for key, value in parameters.items()
    }
    method = methods.resolve(use, own, base=path.parent, arm=where)
    if "prompts_per_round" in {field.name for field in dataclasses.fields(method)}:
        own["prompts_per_round"] = min(own.get("prompts_per_round") or PROMPTS_PER_ROUND, PROMPTS_PER_ROUND)
    return {"use": use, **own}


def _spelled(folder: Path) -> str:
    """The folder with `~` for the home it lies in, so that a run's experiment.yaml names no machine's path."""
    home, full = os.path.abspath(Path.home()), os.path.abspath(folder)
    return f"~{full.removeprefix(home)}" if full.startswith(home + os.sep) else full

"""`--tiny`: an experiment with models of 40,000 random weights and small sizes, to see that its file works.

Its results mean nothing. Task, data, rounds, samples, learning rates, adapters and frozen layers stay as they are. Judges behind a server
are left out.
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
from apo_bench.config.schema import JUDGE, RULE, WHOLE, Experiment, Gold
from apo_bench.hashing import code_hash

# Upper limits of sizes; a size that the experiment leaves open is set to its limit.
POLICY = {"max_prompt_tokens": 48, "max_response_tokens": 16}
REWARD = {"max_tokens": 64, "score_batch_size": 64}
RECIPE = {"epochs": 1, "batch_size": 8, "warmup_steps": 0}
LONG_RECIPE = {"epochs": 0.1, "warmup_steps": 0}  # of a warm-up and of gold models, which train on all of the task's data
SAMPLING = {"max_new_tokens": 8, "batch_size": 64}
EVALUATION = {"prompts": 16, "kl_prompts": 8, "held_out_golden": 8, "diagnostic_pairs": 32}
PROMPT_SET = {"prompts": 8}
DEV_PROMPTS, SEEDS, TRIALS, LEVELS = 8, 2, 2, 2
ITEMS = 4  # of each lm-eval task
TURN = {"prompts_per_round": 8, "prompts_per_step": 4, "steps_per_round": 2}  # of players
JUDGING = {"prompts": 8, "audit_pairs": 8}
BUDGET = {"human_pairs": 64, "golden_responses": 16}
LEAST = 4  # lower limit of an arm's own budget, which is scaled with the experiment's

LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 2048}
PAD, END = "<|tiny_pad|>", "<|tiny_end|>"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def tiny_overrides(experiment: Experiment, path: Path, cache_folder: Path) -> dict[str, Any]:
    """Overrides, whole sections of the experiment: every model path is a tiny model's in `cache_folder`, and all sizes are small.

    Sizes that are already smaller stay, and so do architectures. `path` is the experiment file, beside which methods are looked up.
    Builds the models that do not exist yet, one for each path of the experiment, so that different models stay different.
    Raises InputError for a method that does not exist.
    """
    tree = experiment.model_dump(mode="json", context=WHOLE)
    models, budget = tree["models"], tree["budget"]
    folders: dict[tuple[str, int], str] = {}

    def swapped(model: dict[str, Any]) -> dict[str, Any]:
        if not model.get("path"):
            return model
        outputs = model["output"] + 1 if model.get("kind") == "pretrained" else 0
        if (name := (model["path"], outputs)) not in folders:
            folders[name] = _with_tilde(tiny_model(cache_folder, seed=len(folders), outputs=outputs))
        return {**model, "path": folders[name], **({"trust_remote_code": False} if "trust_remote_code" in model else {})}

    def sampling(settings: dict[str, Any]) -> dict[str, Any]:
        return _capped(settings, SAMPLING) | {"engine": None, "max_mismatch": None}  # no server reads heads of 8

    def policy(model: dict[str, Any]) -> dict[str, Any]:
        return _capped(_recipes(swapped(model), RECIPE), _with_room(POLICY, model)) | {"sampling": sampling(model["sampling"])}

    def reward(model: dict[str, Any], recipe: Mapping[str, float] = RECIPE) -> dict[str, Any]:
        if model["kind"] == "ensemble":
            return {**model, "of": [reward(member, recipe) for member in model["of"]]}
        return _capped(_recipes(swapped(model), recipe), _with_room(REWARD, model)) if model["kind"] in ("neural", "pretrained") else model

    def small_gold(gold: dict[str, Any]) -> dict[str, Any]:
        return {**gold, "model": reward(gold["model"], LONG_RECIPE), "seeds": gold["seeds"][:SEEDS]}

    def gold_level(gold: dict[str, Any]) -> dict[str, Any]:
        try:  # a level of `vary` is as the file spells it, perhaps without keys that have a default
            return small_gold(Gold.model_validate_json(json.dumps(gold), strict=True).model_dump(mode="json"))
        except ValidationError:
            return gold  # the check of the experiment refuses it

    evaluation: dict[str, Any] = _capped(tree["evaluation"], EVALUATION) | {"sampling": sampling(tree["evaluation"]["sampling"])}
    if evaluation["dev_prompts"] is not None:
        evaluation["dev_prompts"] = min(evaluation["dev_prompts"], DEV_PROMPTS)
    if evaluation.get("prompt_sets"):
        evaluation["prompt_sets"] = [_small_set(part, tree["judges"]) for part in evaluation["prompt_sets"]]
    if evaluation.get("capabilities"):
        evaluation["capabilities"] |= {"limit": min(evaluation["capabilities"]["limit"] or ITEMS, ITEMS)}
    overrides: dict[str, Any] = {
        "seeds": tree["seeds"][:SEEDS],
        "models": {
            "policy": policy(models["policy"]),
            "reward": reward(models["reward"]),
            "gold": [small_gold(gold) for gold in models["gold"]],
        },
        "evaluation": evaluation,
        "budget": _capped(BUDGET | budget, BUDGET),
        "judging": _capped(tree["judging"], JUDGING),
        "arms": {name: _arm(arm, budget, path, name) for name, arm in tree["arms"].items()},
    }
    if tree["judges"]:
        overrides["judges"] = {name: swapped(judge) for name, judge in tree["judges"].items() if "base_url" not in judge}
        if tree["compare"]["scorer"].removeprefix(JUDGE) in tree["judges"].keys() - overrides["judges"].keys():
            overrides["compare"] = {**tree["compare"], "scorer": "gold"}
    if tree["tune"]:
        overrides["tune"] = {**tree["tune"], "trials": TRIALS, "seeds": tree["tune"]["seeds"][:1]}
    if tree["vary"]:
        small = {"initial_policy": swapped, "gold": gold_level}
        overrides["vary"] = {
            factor: [small[factor](level) if factor in small and isinstance(level, dict) else level for level in levels[:LEVELS]]
            for factor, levels in tree["vary"].items()
        }
    return overrides


def tiny_model(cache_folder: Path, seed: int, outputs: int = 0) -> Path:
    """The folder of a random Llama that reads bytes, in `cache_folder`; built if it does not exist. Equal seeds give equal bytes.

    A reward model can start from it too; with `outputs` it is a finished reward model itself. The folder's name holds the
    hash of the code that made it; the folder is complete or absent.
    """
    folder = cache_folder / f"tiny-{seed}-{f'{outputs}-' if outputs else ''}{code_hash(__name__)[:8]}"
    if folder.is_dir():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
    from transformers.utils import logging

    from apo_bench.models.policy import save_model, token_ids

    tokenizer = byte_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(**LLAMA, **token_ids(tokenizer), initializer_range=0.1)
        if outputs:
            config.num_labels = outputs
        model = LlamaForSequenceClassification(config) if outputs else LlamaForCausalLM(config)
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
            if not folder.is_dir():  # otherwise another process was first, and wrote the same bytes
                raise
    return folder


def byte_tokenizer() -> Any:
    """A tokenizer with one token for each byte of UTF-8, a padding and an end token, and a plain chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [PAD, END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=END, chat_template=TEMPLATE, clean_up_tokenization_spaces=False
    )


def _small_set(part: Mapping[str, Any], judges: Mapping[str, Any]) -> dict[str, Any]:
    """Few prompts, and refusals told by the rule where a judge behind a server would."""
    served = "base_url" in judges.get(part["refusal_by"], {})
    return {**_capped(part, PROMPT_SET), **({"refusal_by": RULE} if served else {})}


def _capped(section: Mapping[str, Any], most: Mapping[str, float]) -> dict[str, Any]:
    return {**section, **{key: cap if section[key] is None else min(section[key], cap) for key, cap in most.items()}}


def _with_room(limits: Mapping[str, int], model: Mapping[str, Any]) -> dict[str, int]:
    """The limits, with room for a system turn, of which every byte is a token."""
    system = len((model["system_prompt"] or "").encode())
    return {key: limit + system if key in ("max_prompt_tokens", "max_tokens") else limit for key, limit in limits.items()}


def _recipes(model: Mapping[str, Any], training: Mapping[str, float]) -> dict[str, Any]:
    caps = {"training": training, "warmup": LONG_RECIPE}
    return {**model, **{key: _recipe(model[key], most) for key, most in caps.items() if model.get(key)}}


def _recipe(recipe: Mapping[str, Any], most: Mapping[str, float]) -> dict[str, Any]:
    """Adapters apply to all linear layers: a tiny model does not have the layer names of a large one."""
    lora = recipe["lora"] and {**recipe["lora"], "target_modules": "all-linear"}
    return _capped(recipe, most) | {"micro_batch_size": None, "lora": lora}


def _arm(arm: Mapping[str, Any], budget: Mapping[str, float], path: Path, name: str) -> dict[str, Any]:
    own = {unit: _share(amount, budget.get(unit), BUDGET.get(unit)) for unit, amount in arm["budget"].items()}
    parameters = {key: value for key, value in arm.items() if key not in ("use", "budget", "fit")}
    return {**_small_rounds(arm["use"], parameters, path, f"{path}: arms.{name}"), "budget": own, "fit": arm["fit"]}


def _share(amount: float, whole: float | None, cap: int | None) -> float:
    """An arm's own budget for a unit whose budget shrinks from `whole` to `cap`."""
    if cap is None or not amount or (whole is not None and whole <= cap):
        return amount
    return min(amount, cap) if whole is None else min(amount, max(LEAST, round(amount * cap / whole)))


def _small_rounds(use: str, parameters: Mapping[str, Any], path: Path, where: str) -> dict[str, Any]:
    """A method, and the methods among its parameters, with few prompts per round wherever that is a parameter."""
    inner = partial(_small_rounds, path=path)
    own: dict[str, Any] = {
        key: inner(value["use"], {name: part for name, part in value.items() if name != "use"}, where=f"{where}.{key}")
        if isinstance(value, Mapping) and "use" in value
        else value
        for key, value in parameters.items()
    }
    method = methods.resolve(use, own, base=path.parent, arm=where)
    for name, limit in TURN.items():
        if name in {field.name for field in dataclasses.fields(method)}:
            own[name] = min(own.get(name) or limit, limit)
    return {"use": use, **own}


def _with_tilde(folder: Path) -> str:
    """The folder with `~` for the home directory, so that a run's experiment.yaml names no machine's path."""
    home, full = os.path.abspath(Path.home()), os.path.abspath(folder)
    return f"~{full.removeprefix(home)}" if full.startswith(home + os.sep) else full

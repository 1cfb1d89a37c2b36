"""Models out of folders and from the hub: whole, and at one with their tokenizer, or refused in one line.

Nothing that a folder should bring is drawn at random but a head that is meant to be new.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from apo_bench.errors import InputError

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
POOLER = "pooler."  # of encoders: new where a head is, in folders of bodies that were trained without one
OFFSET = {  # model types whose positions are counted from after the padding token's id
    "camembert", "data2vec-text", "ibert", "longformer", "luke", "mluke", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta",
    "xlm-roberta-xl", "xmod",
}  # fmt: skip
LIMITS = {  # of sizes in a configuration, by what their names end with: larger ones are mistakes, and cost minutes before they fail
    r"layers?": 2**10, r"heads?": 2**12, r"experts": 2**14, r"vocab_size": 2**24, r"hidden_size|dim|d_model|n_embd": 2**17,
    r"intermediate_size|hidden_dim|ffn_dim|d_ff|n_inner": 2**20, r"position_embeddings|n_positions|max_seq_len": 2**26,
}  # fmt: skip
POSITIVE = ("hidden_size", "n_embd", "d_model", "num_hidden_layers", "n_layer", "num_attention_heads", "n_head", "vocab_size", "num_labels")


def read_model(
    auto: Any, source: str | Path, *, config: Any = None, new_head: bool = False, trust_remote_code: bool = False, shards: bool = False,
    **options: Any,
) -> Any:  # fmt: skip
    """A model by an auto class, from safetensors; `options` are `from_pretrained`'s.

    `new_head`: a head, which is all that stands outside the body, may be missing and is then drawn. `shards`: accelerate is to shard it,
    and of a machine's processes the first loads weights. Raises InputError, one line, for weights that are missing or of another shape,
    naming them, and for a source that cannot be read.
    """
    from apo_bench.models.device import gets_weights_from_another, on_meta, whole_weights

    config = read_config(source, trust_remote_code) if config is None else config
    if shards and gets_weights_from_another():
        with on_meta():
            return auto.from_config(config, trust_remote_code=trust_remote_code, **options)
    options |= {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    with refusing(source), _quiet(), nullcontext() if shards else whole_weights():
        _refuse_pickles(source)
        model, info = auto.from_pretrained(source, config=config, trust_remote_code=trust_remote_code, **options)
    if wrong := [f"{name} is {_shape(here)}, not {_shape(wanted)}" for name, here, wanted in sorted(info["mismatched_keys"], key=str)]:
        raise InputError(f"{source}: weights of another shape than its config.json gives, or than is needed: {_some(wrong)}")
    body = f"{model.base_model_prefix}."
    missing = [name for name in sorted(info["missing_keys"]) if not new_head or (name.startswith(body) and POOLER not in name)]
    if missing:
        raise InputError(f"{source}: weights are missing: {_some(missing)}")
    if info["error_msgs"]:
        raise InputError(f"{source}: {info['error_msgs'][0]}")
    return model


def check_model(auto: Any, folder: Path, trust_remote_code: bool = False, *, new_head: bool = False, **changes: Any) -> Any:
    """The model of a folder on torch's meta device: names and shapes of its weights are compared, and no weight is read.

    `changes`: fields of its configuration that differ. Raises InputError as `read_model` does.
    """
    config = read_config(folder, trust_remote_code, **changes)
    return read_model(auto, folder, config=config, new_head=new_head, trust_remote_code=trust_remote_code, device_map="meta")


def read_config(source: str | Path, trust_remote_code: bool = False, **changes: Any) -> Any:
    """A configuration, with `changes` in it. Raises InputError for one that transformers cannot use, and for absurd sizes."""
    from transformers import AutoConfig

    if (Path(source) / "config.json").is_file():
        check_sizes(str(Path(source) / "config.json"), config_fields(Path(source)))
    with refusing(source), _quiet():
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **changes)


def config_fields(folder: Path) -> dict[str, Any]:
    """The fields in a folder's config.json. Raises InputError where there are none."""
    path = folder / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{folder} is not a model folder (it has no config.json)") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not JSON") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path} is not a JSON object")
    return fields


def check_sizes(where: str, fields: Mapping[str, Any]) -> None:
    """Raise InputError for a size below 1, or beyond every model that there is."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            check_sizes(f"{where}: {name}", value)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        limit = next((limit for form, limit in reversed(LIMITS.items()) if re.search(rf"(^|_)({form})$", name)), None)
        if limit is not None and value > limit:
            raise InputError(f"{where}: {name}: {value:.12g} is too large; the limit is {limit}")
        if name in POSITIVE and value < 1:
            raise InputError(f"{where}: {name}: {value:.12g} is too small; it is 1 or more")


def context_length(config: Any) -> int | None:
    """How many tokens a model can read, by its configuration, or by the fields of one; None: no limit is known."""
    fields: Mapping[str, Any] = config if isinstance(config, Mapping) else config.get_text_config().to_dict()
    fields = {**fields, **fields.get("text_config", {})} if isinstance(fields.get("text_config"), Mapping) else fields
    positions = next((fields[name] for name in ("max_position_embeddings", "n_positions", "max_seq_len") if fields.get(name)), None)
    if not isinstance(positions, int) or positions < 1:
        return None
    padding = fields.get("pad_token_id", 1)
    return positions - padding - 1 if fields.get("model_type") in OFFSET and isinstance(padding, int) else positions


def check_context(config: Any, key: str, tokens: int) -> None:
    """Raise InputError, naming the setting, where a model cannot read so many tokens."""
    context = context_length(config)
    if context is not None and tokens > context:
        raise InputError(f"{key}: {tokens} tokens, but the model's context has {context}")


def fit_embedding(model: Any, tokenizer: Any) -> None:
    """Give a padding token that the embedding lacks a row, and tell the model which id pads.

    Raises InputError for a tokenizer with other tokens beyond the embedding: their rows would be random.
    """
    from apo_bench.models.device import seeded

    rows = model.get_input_embeddings().weight.shape[0]
    beyond = sorted(id for id in tokenizer.get_vocab().values() if id >= rows and id != tokenizer.pad_token_id)
    if beyond:
        token = tokenizer.convert_ids_to_tokens(beyond[0])
        raise InputError(f"{tokenizer.name_or_path}: its tokenizer has {token!r} as token {beyond[0]}, but the model {rows} embeddings")
    if tokenizer.pad_token_id >= rows:
        with seeded(0):
            model.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id


@contextmanager
def refusing(source: str | Path) -> Iterator[None]:
    """Whatever a library raises about a user's folder, within, as an InputError that names the folder."""
    import torch

    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # libraries raise anything from OSError to KeyError
        message = " ".join(str(error).split()) or "cannot be read"
        if "contains custom code" in message:
            raise InputError(f"{source}: it brings its own code, which is run only with trust_remote_code: true") from None
        raise InputError(f"{source}: {message if len(message) < 400 else f'{message[:400]}...'} ({type(error).__name__})") from None


def _refuse_pickles(source: str | Path) -> None:
    """Pickled weights can run code, and are not read."""
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*.safetensors*")):
        pickles = [path.name for pattern in PICKLED for path in sorted(folder.glob(pattern))]
        if pickles:
            raise InputError(f"{source}: its weights are pickled ({pickles[0]}), and only safetensors are read; save the model again")
        raise InputError(f"{source}: it has no weights (no .safetensors file)")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report of what it loads, within."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _shape(shape: Any) -> str:
    return " x ".join(map(str, shape)) or "a number"


def _some(names: list[str]) -> str:
    """The first few of many."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

"""Policies that were trained elsewhere, behind the Lab: they stay where they are, and an artifact of the store stands for each."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from apo_bench.config.schema import FinishedModel, PolicyModel
from apo_bench.engines.protocol import Engine
from apo_bench.errors import InputError
from apo_bench.hashing import checksum, path_identity
from apo_bench.lab import key_parts
from apo_bench.lab.metered_store import MeteredStore
from apo_bench.lab.response_files import read_responses, text_keys
from apo_bench.lab.stored_results import load_scores, save_scores
from apo_bench.models.adapter_folder import foreign_base, is_foreign_adapter
from apo_bench.models.precision import resolved
from apo_bench.models.pretrained_weights import resolve_model
from apo_bench.types import FinishedPolicy, Policy, Prompt, Response, ResponseFile, identity


def finished_policy(
    path: str, base: str | None, own: FinishedModel, policy_model: PolicyModel, engine: Engine, store: MeteredStore
) -> FinishedPolicy:
    """The policy at a path, with its settings: those of `own` in place of the experiment's.

    Adapters stand on `base`, or on what their folder names. The key is of the files' content, the base and the settings.
    """
    path = resolve_model(path, None)
    below = None
    if is_foreign_adapter(Path(path)):
        below = finished_policy(base or foreign_base(Path(path)), None, own, policy_model, engine, store)
    elif base is not None:
        raise InputError(f"{path}: it holds no adapters (no adapter_config.json) to put on {base}")
    settings = resolved(own.on(policy_model, below.settings.path if below else path), engine.hardware.get("device"))
    policy = FinishedPolicy("", path, below, settings)
    inputs = {
        "finished": path_identity(path),
        "base": below.key if below else None,
        "format": key_parts.of_format(settings),
        "seed": None,
    }
    artifact, _ = store.computed("policies", inputs, lambda folder: engine.keep_in_place(policy, folder))
    return FinishedPolicy(artifact.key, path, below, settings)


def response_file(path: str, initial: Policy, policy_model: PolicyModel, engine: Engine, store: MeteredStore) -> ResponseFile:
    """The responses in a file, with their lengths in tokens of the initial policy's."""
    content = _content(path)
    texts = _responses(path, content)
    inputs = {"responses": content, "policy": initial.key, "format": key_parts.of_format(policy_model), "seed": None}
    _, tokens = store.computed(
        "lengths", inputs, lambda folder: engine.count_tokens(initial, tuple(texts.values()), policy_model), save_scores, load_scores
    )
    answers = {key: (text, int(n)) for (key, text), n in zip(texts.items(), tokens, strict=True)}
    return ResponseFile(identity("responses", content, initial.key), path, answers)


def responses_of(file: ResponseFile, prompts: Sequence[Prompt], n: int) -> tuple[Response, ...]:
    """The file's response to each prompt that it has, in order. Raises InputError where more than one a prompt is wanted."""
    if n != 1:
        raise InputError(f"{file.path}: it has one response a prompt, and {n} are sampled")
    answers = ((prompt, next((file.responses[key] for key in text_keys(prompt) if key in file.responses), None)) for prompt in prompts)
    return tuple(Response(prompt, *answer, "eos") for prompt, answer in answers if answer is not None)


def _content(path: str) -> str:
    try:
        return checksum(Path(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


@cache
def _responses(path: str, content: str) -> dict[str, str]:
    """Read once for all seeds and rounds, and again when the file has changed."""
    return read_responses(Path(path))

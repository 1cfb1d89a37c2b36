"""A policy of a run as an ordinary model folder: its adapters merged into their base. One from elsewhere is written as a copy."""

import json
from pathlib import Path

from apo_bench.config.load import load_experiment
from apo_bench.config.schema import Arm, FinishedModel, PolicyModel
from apo_bench.errors import InputError
from apo_bench.run.models_csv import read_models
from apo_bench.types import FinishedPolicy, Policy


def export_model(folder: Path, arm: str, seed: int, round_: int | None, out: Path) -> Path:
    """Write the policy of an arm-seed after a round (None: its last) into the folder `out`, with its tokenizer; returns `out`.

    Raises InputError where the run has no such policy, or no longer, and where `out` is not empty.
    """
    rows = [row for row in read_models(folder) if (row["arm"], row["seed"], row["kind"]) == (arm, str(seed), "policy")]
    rounds = {int(row["round"]): row for row in rows}
    if not rounds:
        raise InputError(f"{folder}: no policy of arm {arm!r}, seed {seed}")
    number = max(rounds) if round_ is None else round_
    if number not in rounds:
        raise InputError(f"{folder}: arm {arm!r}, seed {seed} has rounds 0 to {max(rounds)}, not {number}")
    if not rounds[number]["folder"]:
        which = f"the policy of arm {arm!r}, seed {seed}, round {number}"
        raise InputError(f"{folder}: {which} has no weights in the store: it was removed, or is best of n")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: not empty; choose another --out")
    from apo_bench.engines.stored_models import StoredModels
    from apo_bench.models import adapters
    from apo_bench.models.policy import save_model

    experiment = load_experiment(folder / "experiment.yaml")
    policy, spec = _policy(folder / rounds[number]["folder"], experiment.models.policy, experiment.arms.get(arm))
    model, tokenizer = StoredModels(folder, float("inf")).policy_with_adapters(policy, spec, in_fp32=True)
    save_model(adapters.plain(model), tokenizer, out)
    return out


def _policy(folder: Path, settings: PolicyModel, arm: Arm | None) -> tuple[Policy, PolicyModel]:
    """The policy that a folder of the store holds, or that it notes the place of, with how it is read.

    Raises InputError where the folder, or a policy from elsewhere, is no longer there.
    """
    from apo_bench.models.finished_reward import MARKER  # which imports torch

    if not folder.is_dir():
        raise InputError(f"{folder}: the policy is not in the store any more; run the experiment again, which makes it")
    note = folder / MARKER
    if not note.is_file():
        return Policy(folder.name), settings
    lies, base = (json.loads(note.read_text(encoding="utf-8"))[name] for name in ("path", "base"))
    for path in filter(None, (lies, base)):
        if Path(path).is_absolute() and not Path(path).is_dir():
            raise InputError(f"{note}: the policy lies at {path}, which is not there any more")
    own = FinishedModel.model_validate_json(json.dumps((arm.parameters.get("model") if arm else None) or {}))
    below = FinishedPolicy(f"{folder.name} base", base) if base else None
    return FinishedPolicy(folder.name, lies, below), own.on(settings, base or lies)

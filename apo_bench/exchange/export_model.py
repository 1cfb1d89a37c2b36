"""A policy of a run as an ordinary model folder: its adapters merged into their base."""

from pathlib import Path

from apo_bench.errors import InputError
from apo_bench.run.models_csv import read_models


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
    from apo_bench.run.experiment import experiment_of_run
    from apo_bench.types import Policy

    spec = experiment_of_run(folder, Path.cwd())[0].models.policy
    policy = Policy(Path(rounds[number]["folder"]).name)
    model, tokenizer = StoredModels(folder, float("inf")).policy_with_adapters(policy, spec, in_fp32=True)
    save_model(adapters.plain(model), tokenizer, out)
    return out

"""`apo-bench new-method NAME`: write a working method, loss or online algorithm, an experiment that compares it, and a test of it."""

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from apo_bench.errors import InputError

Kind = Literal["player", "loss", "online"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Template:
    """What is written for a kind: the code's template; what it is compared with, by its arm's name; the arms, and a test's method."""

    code: str
    rival: str
    arm: str
    rival_arm: str
    method: str
    parameters: str


TEMPLATES: Mapping[Kind, Template] = {
    "player": Template(
        "player.py.txt", "rejection_sampling",
        "{use: NAME.py@CLASS, rounds: 2, prompts_per_round: 128, share: 0.5}",
        "{use: baselines/rejection_sampling.py@RejectionSampling, rounds: 2, prompts_per_round: 128}",
        "NAME.py@CLASS", '{"prompts_per_round": 8}',
    ),
    "loss": Template(
        "loss.py.txt", "sigmoid",
        "{use: baselines/preference.py@Preference, loss: {use: NAME.py@CLASS, margin: 0.5}}",
        "{use: baselines/preference.py@Preference, loss: sigmoid}",
        "baselines/preference.py@Preference", '{"loss": {"use": "NAME.py@CLASS"}}',
    ),
    "online": Template(
        "online.py.txt", "rloo",
        "{use: baselines/online.py@Online, algorithm: {use: NAME.py@CLASS}, rounds: 1, steps_per_round: 8, prompts_per_step: 32}",
        "{use: baselines/online.py@Online, algorithm: rloo, rounds: 1, steps_per_round: 8, prompts_per_step: 32}",
        "baselines/online.py@Online", '{"algorithm": {"use": "NAME.py@CLASS"}, "rounds": 1, "steps_per_round": 2, "prompts_per_step": 4}',
    ),
}  # fmt: skip


def write_method(name: str, folder: Path, kind: Kind = "player") -> tuple[Path, Path, Path]:
    """Write NAME.py, NAME.yaml and test_NAME.py into `folder`, which is created if absent; returns their paths. No file is overwritten.

    Raises InputError for a name that is not a module's, for one that is taken, and where a file cannot be written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise InputError(f"new-method {name!r}: a name has small letters, digits and single underscores, such as my_method")
    template = TEMPLATES[kind]
    if name == template.rival:
        raise InputError(f"new-method {name}: that is the method it is compared with; take another name")
    paths = folder / f"{name}.py", folder / f"{name}.yaml", folder / f"test_{name}.py"
    if taken := [path for path in paths if path.exists()]:
        raise InputError(f"new-method {name}: {taken[0]} is there already; nothing was written")
    class_name = "".join(part.capitalize() for part in name.split("_"))
    arms = {"RIVAL_ARM": template.rival_arm, "ARM": template.arm, "RIVAL": template.rival}
    fields = {**arms, "METHOD": template.method, "PARAMETERS": template.parameters, "CLASS": class_name, "NAME": name}
    sources = resources.files("apo_bench.cli") / "templates"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, source in zip(paths, (template.code, "experiment.yaml.txt", "test.py.txt"), strict=True):
            text = (sources / source).read_text(encoding="utf-8")
            for field, value in fields.items():
                text = text.replace(field, value)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise InputError(f"new-method {name}: {error.filename}: {error.strerror}") from None
    return paths

"""The folder of a model's LoRA adapters: peft's own two files, which any tool reads, and `base.json`, which says what they belong on.

Nothing here imports torch.
"""

import json
from pathlib import Path
from typing import Any

from apo_bench.config.schema import Lora
from apo_bench.errors import InputError
from apo_bench.store import write_json

BASE, CONFIG = "base.json", "adapter_config.json"


def write_base(folder: Path, policy: str | None, lora: Lora) -> None:
    """Note the policy in the store that the adapters belong on, by key (None: a reward model's own body), and their settings."""
    write_json(folder / BASE, {"policy": policy, "lora": lora.model_dump(mode="json")})


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds adapters in place of a whole model."""
    return (folder / BASE).is_file()


def base_of(folder: Path) -> str | None:
    """Key of the policy that a folder's adapters belong on; None for a whole model, and for a reward model on its own body."""
    return _read(folder)["policy"] if is_adapter(folder) else None


def settings_of(folder: Path) -> Lora | None:
    """The settings that a folder's adapters were trained with; None for a whole model."""
    return Lora.model_validate_json(json.dumps(_read(folder)["lora"])) if is_adapter(folder) else None


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / BASE).read_text(encoding="utf-8"))


def is_foreign_adapter(folder: Path) -> bool:
    """Whether a folder holds adapters as peft leaves them, and no whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def foreign_base(folder: Path) -> str:
    """The model that a folder's adapters were trained on: of a run's store the folder beside it, else what peft noted.

    Raises InputError where that is not said, or no more there.
    """
    if (key := base_of(folder)) is not None:
        base = str(folder.parent / key)
    else:
        fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        base = fields.get("base_model_name_or_path") or ""
    if not base or (Path(base).is_absolute() and not Path(base).is_dir()):
        raise InputError(f"{folder}: its adapters stand on {base or 'a model that it does not name'}, which is not here; give `base`")
    return base

"""The folder of a model's LoRA adapters: peft's own two files, which any tool reads, and `base.json`, which says what they belong on.

Nothing here imports torch.
"""

import json
from pathlib import Path
from typing import Any

from apo_bench.config.schema import Lora
from apo_bench.store import write_json

BASE = "base.json"


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

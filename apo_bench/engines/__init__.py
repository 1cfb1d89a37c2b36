"""What computes behind the Lab: sampling, scoring, KL and training. `transformers` computes, `counting` only counts, for plans."""

import importlib
from pathlib import Path

from apo_bench.config.schema import EngineChoice, Executor
from apo_bench.engines.protocol import Engine
from apo_bench.errors import InputError

ENGINES = {"transformers": "TransformersEngine"}


def engine_module(choice: EngineChoice) -> str:
    """The full name of an engine's module, whose code is part of every key. Raises InputError for one that is not there."""
    if choice.use not in ENGINES:
        raise InputError(f"engine.use: no engine named {choice.use!r}; engines: {', '.join(ENGINES)}")
    return f"{__name__}.{choice.use}"


def open_engine(choice: EngineChoice, executor: Executor, run_folder: Path) -> Engine:
    """The engine of a run folder; its backend is imported here."""
    module = importlib.import_module(engine_module(choice))
    return getattr(module, ENGINES[choice.use])(run_folder, choice.memory_gb, executor.launch, executor.checkpoint_s)

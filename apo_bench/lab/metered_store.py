"""The artifacts that one arm-seed uses: each is computed once, whoever needs it, and charged to the arm's ledger."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from apo_bench.engines.protocol import Engine
from apo_bench.lab.ledger import Ledger
from apo_bench.store import Artifact, Computed
from apo_bench.types import identity

T = TypeVar("T")
Progress = Callable[[str, Mapping[Any, float]], None]  # a stage, and what the arm has used before it


class ArtifactStore(Protocol):
    """Where the Lab's results are kept: a run's store, or, for plans, one that only counts."""

    def computed(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        compute: Callable[[Path], Computed[T]],
        save: Callable[[Path, T], None] | None = None,
        load: Callable[[Path], T] | None = None,
    ) -> tuple[Artifact, Any]: ...


class MeteredStore:
    """A store with the arm's ledger. `code`: the hash of the code that computes, which every key holds.

    `charged`: every distinct artifact used, with its counts; `wall_s`: what they took to compute, whoever computed them.
    """

    def __init__(
        self,
        store: ArtifactStore,
        engine: Engine,
        ledger: Ledger,
        seed: int,
        code: str,
        progress: Progress,
        charged: dict[str, Mapping[str, float]] | None,
    ) -> None:
        self.charged = {} if charged is None else charged
        self.wall_s = self.peak_memory_bytes = self.peak_device_bytes = 0.0
        self.ledger = ledger
        self._store, self._engine, self.seed, self._code, self._progress = store, engine, seed, code, progress

    def admit(self, stage: str, **amounts: float) -> None:
        """Before something is spent. Raises BudgetExceeded."""
        self.ledger.settle()
        self.ledger.admit(**amounts)
        self.report(stage)

    def report(self, stage: str) -> None:
        """Tell whoever waits what is done now."""
        self._progress(stage, self.ledger.used)

    def computed(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        compute: Callable[[Path], Computed[T]],
        save: Callable[[Path, T], None] | None = None,
        load: Callable[[Path], T] | None = None,
    ) -> tuple[Artifact, Any]:
        """The artifact and its value, computed if it is not there, and charged."""
        named = {"seed": self.seed, **inputs, "code": self._code, "engine": self._engine.identity}
        artifact, value = self._store.computed(kind, named, compute, save, load)
        self.ledger.charge(artifact.counts)
        self.charged[artifact.key] = artifact.counts
        self.wall_s += artifact.wall_s
        self.peak_memory_bytes = max(self.peak_memory_bytes, artifact.peak_memory_bytes)
        self.peak_device_bytes = max(self.peak_device_bytes, artifact.peak_device_bytes)
        return artifact, value

    def derived_seed(self, *purpose: str) -> int:
        """Equal over arms, so that arms of one seed share their luck; different for every purpose."""
        return int(identity(str(self.seed), *purpose), 16) % 2**63

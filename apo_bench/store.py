"""Content-addressed artifacts and atomic files: the only writer under a run folder.

An artifact is a folder `store/<kind>/<key>/` whose key hashes everything that can change its content. It is built under a temporary name
and renamed when complete, so that a folder with a final name is always complete. Its manifest holds a checksum of every file, which is
compared when the artifact is first read. Equal keys are computed once, also by several processes.
"""

import hashlib
import json
import os
import resource
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock

from apo_bench.hashing import checksum, digest
from apo_bench.provenance import origin

RUN_LOCK = ".run.lock"  # in the store: held by a sweep, and while a run marks its jobs as waiting
MANIFEST = "manifest.json"
TIMING = "timing.json"  # measured values have a file of their own, which need not be byte-identical


T = TypeVar("T")


@dataclass(frozen=True)
class Computed(Generic[T]):
    """A value, the amounts that computing it spent, by ledger unit, and the largest device memory that it took (0: on a CPU)."""

    value: T
    counts: Mapping[str, float]
    peak_device_bytes: float = field(default=0.0, kw_only=True)


@dataclass(frozen=True)
class Artifact:
    """A finished artifact. `counts` are the amounts spent to make it; every arm that uses it is charged them in full."""

    key: str
    folder: Path
    counts: Mapping[str, float]
    wall_s: float
    peak_memory_bytes: float
    peak_device_bytes: float = 0.0


class RunStore:
    """Artifacts of one run folder."""

    def __init__(self, run_folder: Path) -> None:
        self.run_folder = run_folder
        self.root = run_folder / "store"
        self._verified: dict[tuple[str, str], Artifact] = {}
        self.built: list[str] = []  # kind/key of the artifacts that this process computed
        self.tokens = 0.0  # sampled, scored and trained on for them

    @property
    def used(self) -> list[str]:
        """Keys of all artifacts that this process used, whoever built them."""
        return sorted(key for _, key in self._verified)

    def artifact(self, kind: str, inputs: Mapping[str, Any], build: Callable[[Path], Mapping[str, float]]) -> Artifact:
        """Return the artifact that these inputs name, building it if it does not exist.

        `inputs` must be JSON-ready and name everything that can change the result. `build(folder)` writes the files and
        returns the counts. A damaged artifact is moved aside and built again.
        """
        return self._artifact(kind, inputs, lambda folder: Computed(None, build(folder)))

    def _artifact(self, kind: str, inputs: Mapping[str, Any], build: Callable[[Path], Computed[Any]]) -> Artifact:
        key = digest({"kind": kind, **inputs})
        if (kind, key) in self._verified:
            return self._verified[kind, key]
        final = self.root / kind / key
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.parent / f".{key}.lock"):
            if final.exists() and (damage := damage_of(final)):
                aside = free_name(final.with_name(f"{key}.damaged"))
                final.rename(aside)
                print(f"{final}: {damage}; moved to {aside.name} and computed again")
            if not final.exists():
                self._build(kind, key, final, inputs, build)
            shutil.rmtree(scratch_of(final), ignore_errors=True)  # the artifact is complete: nothing is to be resumed
        artifact = self._open(key, final)
        self._verified[kind, key] = artifact
        return artifact

    def computed(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        compute: Callable[[Path], Computed[T]],
        save: Callable[[Path, T], None] | None = None,
        load: Callable[[Path], T] | None = None,
    ) -> tuple[Artifact, Any]:
        """As `artifact`, with the value that `compute(folder)` returned: saved when computed, and always read back from the files."""

        def build(folder: Path) -> Computed[T]:
            result = compute(folder)
            if save is not None:
                save(folder, result.value)
            return result

        artifact = self._artifact(kind, inputs, build)
        return artifact, load(artifact.folder) if load is not None else None

    def open(self, kind: str, key: str) -> Artifact:
        """An artifact known to exist. Raises FileNotFoundError if it does not."""
        return self._verified.get((kind, key)) or self._open(key, self.root / kind / key)

    def _open(self, key: str, folder: Path) -> Artifact:
        manifest = json.loads((folder / MANIFEST).read_text())
        timing = json.loads((folder / TIMING).read_text())
        return Artifact(
            key, folder, manifest["counts"], timing["wall_s"], timing["peak_memory_bytes"], timing.get("peak_device_bytes", 0.0)
        )

    def _build(self, kind: str, key: str, final: Path, inputs: Mapping[str, Any], build: Callable[[Path], Computed[Any]]) -> None:
        for left_over in final.parent.glob(f".{key}.tmp*"):  # of a killed process: this one holds the lock
            shutil.rmtree(left_over)
        folder = temporary_name(final)
        folder.mkdir()
        started = time.monotonic()
        try:
            computed = build(folder)
            counts = {name: float(amount) for name, amount in computed.counts.items()}
            files = {str(path.relative_to(folder)): checksum(path) for path in sorted(folder.rglob("*")) if path.is_file()}
            manifest = {"kind": kind, "key": key, "inputs": inputs, "counts": counts, "files": files, **origin()}
            write_json(folder / MANIFEST, sealed(manifest))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
            measured = {"wall_s": time.monotonic() - started, "peak_memory_bytes": peak, "peak_device_bytes": computed.peak_device_bytes}
            write_json(folder / TIMING, measured)
            folder.rename(final)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.built.append(f"{kind}/{key}")
        self.tokens += sum(amount for name, amount in counts.items() if name.endswith("_tokens"))


def scratch_of(folder: Path) -> Path:
    """Where the build of an artifact may keep what a later try resumes from: created on demand, removed when the artifact is complete.

    `folder` is the argument of `build`. A build that fails or is killed leaves it behind.
    """
    return folder.with_name(f".{key_of(folder)}.scratch")


def key_of(folder: Path) -> str:
    """The key of the artifact that is being built in a folder, or lies there."""
    return folder.name.lstrip(".").partition(".")[0]


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: it is either the old one or the new one, never half."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """As `write_text`."""
    with _replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_table(path: Path, table: Any) -> None:
    """Write a frame as parquet, atomically."""
    with _replacing(path) as temporary:
        table.to_parquet(temporary, index=False)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place at the end, or is removed where writing it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nobody else uses, in another container or on another machine either."""
    return path.with_name(f".{path.name[:100]}.tmp-{machine()}-{os.getpid()}-{secrets.token_hex(4)}")


def machine() -> str:
    """A short name of where a process number means this process: host, boot and process namespace."""
    parts = [socket.gethostname(), boot()]
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return digest(parts)[:8]


def boot() -> str:
    """Since when this machine runs, as Linux names it; "" elsewhere."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.is_file() else ""


def updating(folder: Path) -> Any:
    """A lock for whoever reads a run folder's tables, manifest, judges or report in order to write them. A thread may take it again."""
    store = folder.resolve() / "store"
    return FileLock(store / ".report.lock", is_singleton=True) if store.is_dir() else nullcontext()


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON-ready mapping with a hash of its other keys under "seal"."""
    return {**value, "seal": _seal(value)}


def is_sealed(value: Any) -> bool:
    """Whether a mapping is as `sealed` left it."""
    return isinstance(value, dict) and value.get("seal") == _seal({key: inner for key, inner in value.items() if key != "seal"})


def _seal(value: Mapping[str, Any]) -> str:
    """As `digest`, but allows NaN, which a measured value can be."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


def damage_of(folder: Path) -> str | None:
    """The damage of a finished artifact in words, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = manifest["files"]
        timing = json.loads((folder / TIMING).read_text())
        _ = timing["wall_s"], timing["peak_memory_bytes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"unreadable manifest ({type(error).__name__})"
    if not is_sealed(manifest):
        return "the manifest does not match its seal"
    for name, expected in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if checksum(folder / name) != expected:
            return f"{name} does not match its checksum"
    return None


def free_name(path: Path) -> Path:
    """The path, or the path with the first number that is free."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}{number}")
    return candidate

"""The contract any method can be put through: deterministic under a seed, budget respected, blind, replayable.

It runs the method for real, on a very small simulated world with very small models.
"""

import ast
import contextlib
import dataclasses
import importlib
import json
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from apo_bench.config.plugins import resolve, source_files
from apo_bench.config.python_files import neighbours
from apo_bench.config.schema import Experiment, Unit
from apo_bench.data.task import Task, load_task
from apo_bench.engines import open_engine
from apo_bench.errors import BudgetExceeded, InputError
from apo_bench.evaluation.context import EvaluationContext
from apo_bench.lab import Lab
from apo_bench.store import RunStore
from apo_bench.types import BestOfNPolicy, Policy

SEED = 7
OPEN_MODULES = {
    "abc", "collections", "dataclasses", "enum", "functools", "itertools", "math", "numpy", "operator", "statistics", "torch", "typing",
    "apo_bench.apo", "apo_bench.lab", "apo_bench.losses", "apo_bench.types",
}  # fmt: skip
CLOSED_ATTRIBUTES = {"load", "save", "loadtxt", "savetxt", "genfromtxt", "fromfile", "tofile", "memmap", "hub"}
CLOSED_CALLS = {"open", "exec", "eval", "compile", "__import__", "globals", "vars", "getattr", "setattr"}
KNOWN_BEFOREHAND: tuple[Unit, ...] = (
    "human_pairs", "golden_responses", "sampled_responses", "scored_responses", "rm_updates", "policy_updates",
)  # fmt: skip
_RECIPE = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 32}
_TINY = {
    "name": "contract",
    "task": {
        "use": "sim_hh",
        "options": {"prompts_per_cluster": 1, "pairs_per_prompt": 1, "demonstrations_per_cluster": 2},
    },
    "seeds": [SEED],
    "models": {
        "policy": {
            "architecture": {
                "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            },
            "max_prompt_tokens": 24,
            "max_response_tokens": 24,
            "warmup": _RECIPE,
            "training": _RECIPE,
            "sampling": {"max_new_tokens": 12, "batch_size": 256},
        },
        "reward": {"kind": "neural", "initial": "policy", "max_tokens": 48, "training": _RECIPE},
        "gold": [{"name": "gold", "model": {"kind": "ngram"}}],
    },
    "evaluation": {"sampling": {"max_new_tokens": 12}},
    "budget": {"human_pairs": 48, "golden_responses": 12},
    "arms": {"method": {"use": "baselines/sft.py@SFT"}},
    "compare": {"primary": [{"a": "method", "b": "method"}]},
}  # fmt: skip


@dataclass(frozen=True)
class CheckResult:
    name: str
    passed: bool
    detail: str


class _Interrupted(BaseException):
    """Stands for a kill between two verbs; no method may catch it."""


def check_method(spec: str, parameters: Mapping[str, Any], base: Path | None = None) -> list[CheckResult]:
    """Run every check on the method `spec` (file.py@Class or module@Class) with these parameters.

    Raises InputError if it cannot be resolved or is only a player, with `update` but no `run`.
    """
    method = resolve(spec, parameters, base=base)
    if not callable(getattr(method, "run", None)):
        raise InputError(
            f"{spec}: it has no run(lab); a player is checked as the player of a method that has one, such as apo_bench.apo@APO"
        )
    experiment = Experiment.model_validate_json(json.dumps(_TINY))
    task = load_task(experiment.task.use, experiment.task.options, base=None)
    with tempfile.TemporaryDirectory() as folder:
        trial = _Trial(method, experiment, task, Path(folder))
        checks: list[tuple[str, Callable[[], str]]] = [
            ("deterministic", trial.deterministic),
            ("budget respected", trial.budget_respected),
            ("blind", lambda: trial.blind(source_files(spec, parameters, base=base))),
            ("replayable", trial.replayable),
        ]
        try:
            trial.reference()
        except Exception as error:
            return [CheckResult("runs", False, f"{type(error).__name__}: {error}")]
        return [_result(name, check) for name, check in checks]


def _result(name: str, check: Callable[[], str]) -> CheckResult:
    try:
        return CheckResult(name, True, check())
    except AssertionError as failure:
        return CheckResult(name, False, str(failure))
    except Exception as error:  # a method may raise anything
        return CheckResult(name, False, f"{type(error).__name__}: {error}")


class _Trial:
    """One method's runs. The reference run's store is kept: replays must add nothing to it."""

    def __init__(self, method: Any, experiment: Experiment, task: Task, folder: Path) -> None:
        self.method, self.experiment, self.task, self.folder = method, experiment, task, folder
        self.first: Lab | None = None

    def run(
        self, place: str, *, budget: Mapping[Any, float] | None = None, task: Task | None = None, stop_after: int | None = None
    ) -> tuple[Lab, RunStore]:
        """Run in the store `place`; `stop_after` kills it at that verb."""
        experiment = self.experiment.model_copy(update={"budget": {**self.experiment.budget, **(budget or {})}})
        store = RunStore(self.folder / place)
        verbs = 0

        def count(stage: str, used: Mapping[Any, float]) -> None:
            nonlocal verbs
            verbs += 1
            if stop_after is not None and verbs > stop_after:
                raise _Interrupted

        engine = open_engine(experiment.engine, experiment.executor, store.run_folder)
        quiet = EvaluationContext(experiment, task or self.task, store, engine)
        _ = quiet.initial_policy  # so that only the method's own verbs are counted
        lab = dataclasses.replace(quiet, progress=count).lab(SEED, arm="method")
        store.built.clear()
        self.method.run(lab)
        assert stop_after is None or verbs <= stop_after, "stopped between two verbs, it went on: it catches what it must not"
        return lab, store

    def reference(self) -> Lab:
        if self.first is None:
            self.first, _ = self.run("first")
            assert self.first.rounds, "no round was finished: lab.finish_round was never called"
        return self.first

    def deterministic(self) -> str:
        """Keys hash inputs, so equal final keys could hide unequal weights: compare the files' checksums."""
        again, store = self.run("second")
        assert again.rounds == self.reference().rounds, "two runs with one seed finished different rounds"
        for round_ in again.rounds:
            here, there = (weights(RunStore(self.folder / place), round_.policy) for place in ("first", "second"))
            assert here == there, f"two runs with one seed gave other weights to policy {round_.policy.key}"
        return f"{len(again.rounds)} rounds, {len(store.built)} artifacts, equal weights in two fresh runs"

    def budget_respected(self) -> str:
        used = self.reference().used
        stopped = []
        for unit in KNOWN_BEFOREHAND:
            if used[unit] < 2:
                continue
            half = float(used[unit] // 2)
            try:
                lab, _ = self.run("first", budget={unit: half})
            except BudgetExceeded:
                stopped.append(unit)
                continue
            except InputError as error:
                raise AssertionError(f"with {half:g} of {unit} it stopped with: {error}") from None
            assert lab.rounds, f"with {half:g} of {unit} it finished no round and did not say why: it catches BudgetExceeded"
            assert lab.used[unit] <= half, f"{unit}: used {lab.used[unit]:g} of a budget of {half:g}"
        return f"half of each unit: stopped by {', '.join(stopped) or 'none'}; the others were adapted to"

    def blind(self, sources: tuple[Path, ...]) -> str:
        for path in sources:
            beside = {file.stem for file in neighbours(path)} if path.suffix == ".py" else set[str]()
            if breach := find_forbidden_access(path.read_text(encoding="utf-8"), beside):
                raise AssertionError(f"{path.name}: {breach}")
        changed = {
            split: tuple(reversed(self.task.pairs[split])) if split in ("gold", "dev", "test") else pairs
            for split, pairs in self.task.pairs.items()
        }
        prompts = {split: () if split in ("gold", "dev", "test") else prompts for split, prompts in self.task.prompts.items()}
        lab, store = self.run("first", task=dataclasses.replace(self.task, pairs=changed, prompts=prompts, ground_truth=None))
        assert lab.rounds == self.reference().rounds, "its result depends on held-out data"
        assert not store.built, f"with other held-out data it computed {store.built[0]}"
        return "opens nothing but the Lab; other held-out data change nothing"

    def replayable(self) -> str:
        lab, store = self.run("first")
        assert not store.built, f"a replay computed {store.built[0]} again"
        assert lab.used == self.reference().used, "a replay charged another ledger"
        for verb in (1, 3):
            with contextlib.suppress(_Interrupted):
                self.run("interrupted", stop_after=verb)
        resumed, _ = self.run("interrupted")
        assert resumed.rounds == self.reference().rounds, "stopped and run again, it finished different rounds"
        assert resumed.used == self.reference().used, "stopped and run again, it was charged another ledger"
        return "a replay computes nothing, and a run stopped after 1 and 3 verbs ends the same"


def weights(store: RunStore, policy: Policy) -> dict[str, str]:
    """Checksums of a policy's weight files; a best-of-n policy's are its base's and its reward model's."""
    if isinstance(policy, BestOfNPolicy):
        chooser = _checksums(store, "reward_models", policy.reward_model.key)
        return weights(store, policy.policy) | {f"reward model: {name}": value for name, value in chooser.items()}
    return _checksums(store, "policies", policy.key)


def _checksums(store: RunStore, kind: str, key: str) -> dict[str, str]:
    manifest = json.loads((store.open(kind, key).folder / "manifest.json").read_text())
    return {name: value for name, value in manifest["files"].items() if name.endswith(".safetensors")}


def find_forbidden_access(source: str, neighbours: Collection[str] = ()) -> str | None:
    """The first thing in a method's source that reaches past the Lab: an import, a call or an attribute.

    `neighbours`: modules of its own folder, which it may import, and which are read likewise.

    A lint that finds slips, not a sandbox that stops an adversary.
    """
    for node in ast.walk(ast.parse(source)):
        line = f"line {getattr(node, 'lineno', 0)}"
        names = [alias.name for alias in node.names if alias.name not in neighbours] if isinstance(node, ast.Import) else []
        if closed := [name for name in names if not _is_open(name)]:
            return f"{line}: imports {closed[0]}, which is not open to methods"
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module in neighbours:
                continue
            if not _is_open(module):
                return f"{line}: imports {module}, which is not open to methods"
            if borrowed := [alias.name for alias in node.names if _is_borrowed(module, alias.name)]:
                return f"{line}: imports {borrowed[0]}, which {module} only borrows"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CLOSED_CALLS:
            return f"{line}: calls {node.func.id}()"
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            return f"{line}: reads the private attribute {node.attr}"
        if isinstance(node, ast.Attribute) and node.attr in CLOSED_ATTRIBUTES:
            return f"{line}: reaches for a file with {node.attr}"
    return None


def _is_open(module: str) -> bool:
    return module in OPEN_MODULES or module.split(".")[0] in OPEN_MODULES


def _is_borrowed(module: str, name: str) -> bool:
    """Whether one of our modules has this name from elsewhere: `from apo_bench.lab import Path` is a way to files."""
    if not module.startswith("apo_bench"):
        return False
    value = getattr(importlib.import_module(module), name, None)
    if value is None or isinstance(value, ModuleType):  # a module of ours leads to what it imports
        return True
    home = getattr(value, "__module__", "builtins")
    return home not in ("builtins", "typing") and not home.startswith("apo_bench")

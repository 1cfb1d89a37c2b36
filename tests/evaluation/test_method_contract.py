"""Bad methods, each caught by the check that is there for it."""

import textwrap
from pathlib import Path

import pytest
from tiny_world import tiny_bench, tiny_lab

from apo_bench.errors import InputError
from apo_bench.evaluation.method_contract import CheckResult, check_method, find_forbidden_access, weights
from apo_bench.losses import RankingLoss

pytestmark = pytest.mark.slow

IMPORTS = """
from dataclasses import dataclass, field
from apo_bench.lab import Lab, best_of
from apo_bench.losses import RankingLoss, SFTLoss
"""


def checks(folder: Path, source: str) -> dict[str, CheckResult]:
    path = folder / "bad.py"
    path.write_text(IMPORTS + textwrap.dedent(source), encoding="utf-8")
    return {result.name: result for result in check_method("bad.py@Bad", {}, base=folder)}


def caught(folder: Path, source: str) -> dict[str, str]:
    """Failed checks, with what they said."""
    return {name: result.detail for name, result in checks(folder, source).items() if not result.passed}


TURN = """
        model = lab.train_reward_model(lab.pairs(), loss=RankingLoss())
        samples = lab.sample(lab.initial_policy, lab.prompts(n=4), n=2, draw=draw)
        policy = lab.train_policy(lab.initial_policy, best_of(lab.score(model, samples)), SFTLoss())
        lab.finish_round(policy, model)
"""


def test_a_good_one_passes(tmp_path: Path) -> None:
    results = checks(tmp_path, "@dataclass(frozen=True)\nclass Bad:\n    def run(self, lab: Lab) -> None:\n        draw = 0" + TURN)
    assert list(results) == ["deterministic", "budget respected", "blind", "replayable"]
    assert [result.detail for result in results.values() if not result.passed] == []
    assert results["deterministic"].detail == "1 rounds, 4 artifacts, equal weights in two fresh runs"
    assert "stopped by sampled_responses, scored_responses" in results["budget respected"].detail


def test_chance_without_a_seed(tmp_path: Path) -> None:
    """numpy is open to methods, so only two runs can tell."""
    failed = caught(
        tmp_path,
        f"""
import numpy as np

@dataclass(frozen=True)
class Bad:
    def run(self, lab):
        draw = int(np.random.default_rng().integers(2**60)){TURN}""",
    )
    assert failed["deterministic"] == "two runs with one seed finished different rounds"


def test_global_chance(tmp_path: Path) -> None:
    """Training seeds the global generators, so that two fresh runs may agree by accident; a replay, which does not train, cannot."""
    failed = caught(
        tmp_path,
        f"""
import random

@dataclass(frozen=True)
class Bad:
    def run(self, lab):
        draw = random.getrandbits(60){TURN}""",
    )
    assert failed.keys() & {"deterministic", "replayable"}
    assert failed["blind"] == "bad.py: line 6: imports random, which is not open to methods"


def test_state_kept_between_runs(tmp_path: Path) -> None:
    """A frozen dataclass may still hold a list."""
    failed = caught(
        tmp_path,
        f"""
@dataclass(frozen=True)
class Bad:
    runs: list[int] = field(default_factory=list)

    def run(self, lab):
        draw = len(self.runs)
        self.runs.append(draw){TURN}""",
    )
    assert failed["deterministic"] == "two runs with one seed finished different rounds"
    assert "replayable" in failed


def test_a_best_of_n_policys_weights_are_its_bases_and_its_reward_models(tmp_path: Path) -> None:
    """Two reward models on other pairs: equal below, different in the reward model's file alone."""
    context = tiny_bench(tmp_path)
    lab = tiny_lab(context)
    few, more = (lab.train_reward_model(lab.pairs(n), loss=RankingLoss()) for n in (8, 12))
    base = weights(context.store, context.initial_policy)
    one, two, nested = (
        weights(context.store, policy)
        for policy in (
            lab.best_of_n(context.initial_policy, few, 2),
            lab.best_of_n(context.initial_policy, more, 2),
            lab.best_of_n(lab.best_of_n(context.initial_policy, more, 2), few, 2),
        )
    )
    assert set(base) == {"model.safetensors"}
    assert set(one) == set(two) == {"model.safetensors", "reward model: model.safetensors"}
    assert one["model.safetensors"] == two["model.safetensors"] == base["model.safetensors"]
    assert one["reward model: model.safetensors"] != two["reward model: model.safetensors"]
    assert nested["reward model: model.safetensors"] == one["reward model: model.safetensors"]


def test_chance_in_best_of_n_is_seen(tmp_path: Path) -> None:
    """It trains no policy, yet a reward model of pairs drawn by chance is another method each time."""
    failed = caught(
        tmp_path,
        """
import numpy as np

@dataclass(frozen=True)
class Bad:
    def run(self, lab):
        pairs = lab.pairs()
        order = np.random.default_rng().permutation(len(pairs))
        model = lab.train_reward_model([pairs[place] for place in order], loss=RankingLoss())
        lab.finish_round(lab.best_of_n(lab.initial_policy, model, 2), model)""",
    )
    assert failed["deterministic"] == "two runs with one seed finished different rounds"


def test_reaching_past_the_lab(tmp_path: Path) -> None:
    failed = caught(
        tmp_path,
        """
@dataclass(frozen=True)
class Bad:
    def run(self, lab):
        lab._store.open
        lab.finish_round(lab.initial_policy)
""",
    )
    assert failed == {"blind": "bad.py: line 9: reads the private attribute _store"}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import os", "imports os, which is not open to methods"),
        ("import math, os.path", "imports os.path, which is not open to methods"),
        ("from pathlib import Path", "imports pathlib, which is not open to methods"),
        ("def run(lab):\n    import sys", "imports sys, which is not open to methods"),
        ("open('notes.txt')", "calls open()"),
        ("lab._store", "reads the private attribute _store"),
        ("lab.__dict__['_store']", "reads the private attribute __dict__"),
        ("from apo_bench.store import RunStore", "imports apo_bench.store, which is not open to methods"),
        ("from apo_bench import store", "imports apo_bench, which is not open to methods"),
        ("import apo_bench", "imports apo_bench, which is not open to methods"),
        ("getattr(lab, '_st' + 'ore')", "calls getattr()"),
        ("exec('import os')", "calls exec()"),
    ],
)
def test_closed_doors(source: str, said: str) -> None:
    found = find_forbidden_access(f"x = 1\n{source}\n")
    assert found is not None
    assert found.partition(": ")[2] == said


@pytest.mark.parametrize(
    "source",
    [
        "from apo_bench.lab import Path\nPath('test.jsonl').read_text()",
        "from apo_bench.lab import lab\nlab.Path('test.jsonl').read_text()",
        "from apo_bench.types import hashlib\nhashlib.file_digest",
        "import numpy as np\nnp.load('weights.npy')",
        "import torch\ntorch.load('weights.pt')",
        "import builtins",
        "from . import neighbour",
        "from .os import path",
    ],
)
def test_other_ways_out(source: str) -> None:
    assert find_forbidden_access(source) is not None


def test_what_is_open() -> None:
    assert (
        find_forbidden_access("import numpy as np\nimport torch.nn.functional as F\nfrom apo_bench.types import Pair\nx = np.mean([1])\n")
        is None
    )


def test_a_method_that_swallows_a_kill(tmp_path: Path) -> None:
    """It would end as if all were well when it is stopped between two verbs."""
    failed = caught(
        tmp_path,
        f"""
@dataclass(frozen=True)
class Bad:
    def run(self, lab):
        try:
            self.play(lab, 0)
        except BaseException:
            pass

    def play(self, lab, draw):{TURN}""",
    )
    assert "replayable" in failed


def test_a_method_that_swallows_its_budget(tmp_path: Path) -> None:
    """Out of budget it finishes no round and says nothing: that is no adapting."""
    failed = caught(
        tmp_path,
        f"""
@dataclass(frozen=True)
class Bad:
    def run(self, lab):
        try:
            self.play(lab, 0)
        except Exception:
            pass

    def play(self, lab, draw):{TURN}""",
    )
    assert "budget respected" in failed


def test_no_round_finished(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(IMPORTS + "\n@dataclass(frozen=True)\nclass Bad:\n    def run(self, lab):\n        lab.pairs()\n")
    (result,) = check_method("bad.py@Bad", {}, base=tmp_path)
    assert (result.name, result.passed) == ("runs", False)
    assert "no round was finished" in result.detail


def test_a_method_that_breaks(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(IMPORTS + "\n@dataclass(frozen=True)\nclass Bad:\n    def run(self, lab):\n        1 / 0\n")
    assert check_method("bad.py@Bad", {}, base=tmp_path) == [CheckResult("runs", False, "ZeroDivisionError: division by zero")]


def test_a_player_alone_is_no_method(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(
        IMPORTS + "\n@dataclass(frozen=True)\nclass Bad:\n    def update(self, lab, policy, reward_model, draw):\n        ...\n"
    )
    with pytest.raises(InputError, match=r"bad\.py@Bad: it has no run\(lab\)"):
        check_method("bad.py@Bad", {}, base=tmp_path)

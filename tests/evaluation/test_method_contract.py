"""Bad methods, each caught by the check that is there for it."""

from pathlib import Path
from unittest.mock import ANY

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


BAD = """
@dataclass(frozen=True)
class Bad:
"""
DIFFERENT_ROUNDS = "two runs with one seed finished different rounds"


def checks(folder: Path, body: str, imports: str = "") -> dict[str, CheckResult]:
    (folder / "bad.py").write_text(f"{IMPORTS}{imports}{BAD}{body}", encoding="utf-8")
    return {result.name: result for result in check_method("bad.py@Bad", {}, base=folder)}


def caught(folder: Path, body: str, imports: str = "") -> dict[str, str]:
    """Failed checks, with what they said."""
    return {name: result.detail for name, result in checks(folder, body, imports).items() if not result.passed}


TURN = """
        model = lab.train_reward_model(lab.pairs(), loss=RankingLoss())
        samples = lab.sample(lab.initial_policy, lab.prompts(n=4), n=2, draw=draw)
        policy = lab.train_policy(lab.initial_policy, best_of(lab.score(model, samples)), SFTLoss())
        lab.finish_round(policy, model)
"""


def playing(draw: str) -> str:
    """A method of one round, by its draw."""
    return f"    def run(self, lab: Lab) -> None:\n        draw = {draw}{TURN}"


def swallowing(error: str) -> str:
    """A method of one round that goes on after an error."""
    return f"""
    def run(self, lab):
        try:
            self.play(lab, 0)
        except {error}:
            pass

    def play(self, lab, draw):{TURN}"""


# a frozen dataclass may still hold a list
REMEMBERING = f"""
    runs: list[int] = field(default_factory=list)

    def run(self, lab):
        draw = len(self.runs)
        self.runs.append(draw){TURN}"""
# trains no policy, yet a reward model of pairs drawn by chance is another method each time
BEST_OF_N_BY_CHANCE = """
    def run(self, lab):
        pairs = lab.pairs()
        order = np.random.default_rng().permutation(len(pairs))
        model = lab.train_reward_model([pairs[place] for place in order], loss=RankingLoss())
        lab.finish_round(lab.best_of_n(lab.initial_policy, model, 2), model)"""


def test_a_good_one_passes(tmp_path: Path) -> None:
    results = checks(tmp_path, playing("0"))
    assert list(results) == ["deterministic", "budget respected", "blind", "replayable"]
    assert [result.detail for result in results.values() if not result.passed] == []
    assert results["deterministic"].detail == "1 rounds, 4 artifacts, equal weights in two fresh runs"
    assert "stopped by sampled_responses, scored_responses" in results["budget respected"].detail


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # numpy is open to methods, so only two runs can tell
        pytest.param(playing("int(np.random.default_rng().integers(2**60))"), {"deterministic": DIFFERENT_ROUNDS}, id="unseeded chance"),
        pytest.param(BEST_OF_N_BY_CHANCE, {"deterministic": DIFFERENT_ROUNDS}, id="chance in best of n"),
        pytest.param(REMEMBERING, {"deterministic": DIFFERENT_ROUNDS, "replayable": ANY}, id="state kept between runs"),
        # stopped between two verbs it would end as if all were well
        pytest.param(swallowing("BaseException"), {"replayable": ANY}, id="swallows a kill"),
        # out of budget it finishes no round and says nothing: that is no adapting
        pytest.param(swallowing("Exception"), {"budget respected": ANY}, id="swallows its budget"),
    ],
)
def test_a_bad_method_fails_its_check(tmp_path: Path, body: str, expected: dict[str, str]) -> None:
    failed = caught(tmp_path, body, imports="\nimport numpy as np\n")
    assert {name: failed[name] for name in expected} == expected


def test_global_chance(tmp_path: Path) -> None:
    """Training seeds the global generators, so that two fresh runs may agree by accident; a replay, which does not train, cannot."""
    failed = caught(tmp_path, playing("random.getrandbits(60)"), imports="\nimport random\n")
    assert failed.keys() & {"deterministic", "replayable"}
    assert failed["blind"] == "bad.py: line 6: imports random, which is not open to methods"


def test_reaching_past_the_lab(tmp_path: Path) -> None:
    failed = caught(tmp_path, "    def run(self, lab):\n        lab._store.ledger\n        lab.finish_round(lab.initial_policy)\n")
    assert failed == {"blind": "bad.py: line 9: reads the private attribute _store"}


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        ("lab.pairs()", "AssertionError: no round was finished: lab.finish_round was never called"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_method_that_finishes_no_round(tmp_path: Path, line: str, detail: str) -> None:
    assert checks(tmp_path, f"    def run(self, lab):\n        {line}\n") == {"runs": CheckResult("runs", False, detail)}


def test_a_player_alone_is_no_method(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bad\.py@Bad: it has no run\(lab\)"):
        checks(tmp_path, "    def update(self, lab, policy, reward_model, draw):\n        ...\n")


def test_a_best_of_n_policys_weights_are_its_bases_and_its_reward_models(tmp_path: Path) -> None:
    """Two reward models on other pairs: equal below, different in the reward model's file alone."""
    context = tiny_bench(tmp_path)
    lab = tiny_lab(context)
    few, more = (lab.train_reward_model(lab.pairs(n), loss=RankingLoss()) for n in (8, 12))
    base = weights(context.store, context.initial_policy)
    by_few, by_more, nested = (
        weights(context.store, policy)
        for policy in (
            lab.best_of_n(context.initial_policy, few, 2),
            lab.best_of_n(context.initial_policy, more, 2),
            lab.best_of_n(lab.best_of_n(context.initial_policy, more, 2), few, 2),
        )
    )
    assert set(base) == {"model.safetensors"}
    assert set(by_few) == set(by_more) == {"model.safetensors", "reward model: model.safetensors"}
    assert by_few["model.safetensors"] == by_more["model.safetensors"] == base["model.safetensors"]
    assert by_few["reward model: model.safetensors"] != by_more["reward model: model.safetensors"]
    assert nested["reward model: model.safetensors"] == by_few["reward model: model.safetensors"]


@pytest.mark.parametrize(
    ("source", "expected"),
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
def test_closed_doors(source: str, expected: str) -> None:
    breach = find_forbidden_access(f"x = 1\n{source}\n")
    assert breach is not None
    assert breach.partition(": ")[2] == expected


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

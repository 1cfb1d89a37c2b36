"""Offline preference optimization with a loss from a user's own file, as docs/new-loss.md tells: nothing else is edited."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from pages import DOCS, blocks
from safetensors.torch import load_file
from tiny_world import tiny_bench, tiny_tree

from apo_bench.config.plugins import resolve, source_files
from apo_bench.errors import InputError
from apo_bench.losses import DPOLoss, HingeLoss, View, WPOLoss

PREFERENCE = "baselines/preference.py@Preference"
TWO = "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n"
CODE_LINES = 15


@pytest.fixture
def simpo(tmp_path: Path) -> Path:
    """The page's file, in a folder of its own."""
    (text,) = [block.text for block in blocks(DOCS / "new-loss.md") if "class SimPO" in block.text]
    (tmp_path / "simpo.py").write_text(text)
    return tmp_path / "simpo.py"


def arm(**parameters: Any) -> dict[str, Any]:
    return {"use": PREFERENCE, "loss": {"use": "simpo.py@SimPO", "beta": 2.5}, **parameters}


def apo_bench(folder: Path, *words: str) -> str:
    """A command as a user gives it; its output."""
    code = "from apo_bench.cli.main import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def policies(run: Path) -> Mapping[str, dict[str, torch.Tensor]]:
    """Weights of every policy in a run's store, by key."""
    return {path.parent.name: load_file(path) for path in (run / "store" / "policies").glob("*/model.safetensors")}


def test_the_loss_of_the_page_is_short_and_right(simpo: Path) -> None:
    """By hand: log-probabilities -2 over 2 tokens against -6 over 3, so -1 against -2; beta 2.5, gamma 1: -log sigmoid(2.5 - 1)."""
    assert len([line for line in simpo.read_text().splitlines() if line.strip()]) <= CODE_LINES
    method = resolve(PREFERENCE, {"loss": {"use": "simpo.py@SimPO", "beta": 2.5}}, base=simpo.parent)
    logps = torch.tensor([[[-0.5, -1.5, 0.0], [-1.0, -2.0, -3.0]]])
    view = View(logps, torch.tensor([[[1, 1, 0], [1, 1, 1]]]))
    assert method.loss(view).tolist() == pytest.approx([0.2014132779827524])  # log(1 + exp(-1.5))
    assert [path.name for path in source_files(PREFERENCE, {"loss": {"use": "simpo.py@SimPO"}}, base=simpo.parent)] == [
        "preference.py",
        "simpo.py",
    ]


@pytest.mark.slow
def test_a_loss_in_a_users_file_trains_replays_launches_is_planned_and_passes_the_contract(simpo: Path) -> None:
    """The launched run of two gloo processes ends with the same weights to 1e-4, and the loss has moved the policy."""
    folder = simpo.parent
    tree = tiny_tree() | {"arms": {"simpo": arm(), "dpo": {"use": PREFERENCE}}, "compare": {"primary": [{"a": "simpo", "b": "dpo"}]}}
    tree["seeds"], tree["executor"] = [0], {"use": "local"}
    (folder / "mine.yaml").write_text(yaml.safe_dump(tree))
    (folder / "two.yaml").write_text(TWO)

    assert "simpo" in apo_bench(folder, "plan", "mine.yaml", "--no-probe")
    apo_bench(folder, "run", "mine.yaml", "--workers", "1", "--out", "here")
    scores = pd.read_parquet(folder / "here" / "tables" / "scores.parquet")
    assert set(scores["arm"]) == {"simpo", "dpo"}
    alone = policies(folder / "here")
    assert len(alone) == 4  # the base, the warmed-up initial policy, and one of each arm
    stored = {path: path.stat().st_mtime_ns for path in (folder / "here" / "store").rglob("manifest.json")}
    apo_bench(folder, "run", "mine.yaml", "--workers", "1", "--out", "here")
    assert {path: path.stat().st_mtime_ns for path in (folder / "here" / "store").rglob("manifest.json")} == stored

    apo_bench(folder, "run", "mine.yaml", "--workers", "1", "--out", "launched", "--set", 'executor={"launch": "two.yaml"}')
    launched = policies(folder / "launched")
    assert len(launched) == 4
    name = "model.embed_tokens.weight"
    for weights in launched.values():
        assert min(float((weights[name] - other[name]).abs().max()) for other in alone.values()) < 1e-4
    moved = sorted(float((a[name] - b[name]).abs().max()) for a in alone.values() for b in alone.values() if a is not b)
    assert moved[0] > 1e-3  # no two of them are one policy

    checked = apo_bench(folder, "check-method", PREFERENCE, "--with", "{loss: {use: simpo.py@SimPO, beta: 2.5}}")
    assert checked.count("passed") == 4


@pytest.mark.slow
def test_an_edited_loss_is_trained_again(simpo: Path, tmp_path: Path) -> None:
    bench = tiny_bench(tmp_path / "run")
    keys = []
    for text in (simpo.read_text(), simpo.read_text().replace("- self.gamma", "- 2 * self.gamma")):
        simpo.write_text(text)
        lab = bench.lab(0, arm="rjs")
        resolve(PREFERENCE, {"loss": {"use": "simpo.py@SimPO"}}, base=simpo.parent).run(lab)
        keys.append(lab.rounds[-1].policy.key)
    assert keys[0] != keys[1]


@pytest.mark.slow
def test_golden_over_samples_are_pairs_too(tmp_path: Path) -> None:
    """6 golden responses, 2 samples each: 12 pairs, 1 update of at most 16 items; the loss needs a reference, which it is given."""
    bench = tiny_bench(tmp_path)
    lab = bench.lab(0, arm="rjs")
    method = resolve(PREFERENCE, {"pairs": "golden_over_sample", "samples_per_prompt": 2}, base=None)
    method.run(lab)
    assert method.loss == DPOLoss()
    assert lab.used["sampled_responses"] == 12
    assert lab.used["policy_updates"] == 1
    assert lab.used["human_pairs"] == 0


@pytest.mark.slow
def test_the_name_sigmoid_is_dpo(tmp_path: Path) -> None:
    """By name and as a class: the same policy."""
    bench = tiny_bench(tmp_path)
    keys = set()
    for loss in ("sigmoid", {"name": "sigmoid", "beta": 0.1}, {"use": "apo_bench.losses@DPOLoss", "beta": 0.1}):
        lab = bench.lab(0, arm="rjs")
        method = resolve(PREFERENCE, {"loss": loss}, base=None)
        method.run(lab)
        keys.add(lab.rounds[-1].policy.key)
    assert len(keys) == 1
    assert method.loss == DPOLoss(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("reads = 'demonstrations'\n    needs_reference = False", "lab.train_policy: Mine reads demonstrations, got pairs"),
        ("reads = 'pairs'", "PolicyLoss is needed"),
        ("reads = 'pairs'\n    needs_reference = False", "the loss reads view.scores, which is not there"),
    ],
)
def test_a_loss_that_does_not_fit_is_one_line(body: str, message: str, tmp_path: Path) -> None:
    lines = f"from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    {body}\n    def __call__(self, view):\n"
    (tmp_path / "mine.py").write_text(lines + "        return view.scores.sum(1)\n")
    lab = tiny_bench(tmp_path / "run").lab(0, arm="rjs")
    with pytest.raises(InputError) as refused:
        resolve(PREFERENCE, {"loss": {"use": "mine.py@Mine"}}, base=tmp_path).run(lab)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("nope", "no shipped loss is called 'nope'; there are: sigmoid, "),
        ("kto", "KTOLoss reads unpaired, and this method trains on pairs"),
        ({"name": "simpo", "beta": "2"}, "simpo.beta: a number is needed"),
        (3, "PolicyLoss is needed"),
    ],
)
def test_a_loss_that_is_not_there_is_refused_where_it_is_named(loss: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"^{PREFERENCE}\.loss: {message}[^\n]*$".replace("'", ".")):
        resolve(PREFERENCE, {"loss": loss}, base=None)


@pytest.mark.slow
def test_a_weighted_loss_is_keyed_by_the_loss_that_it_weighs(tmp_path: Path) -> None:
    """Two classes with equal fields are two losses, also inside another."""
    lab = tiny_bench(tmp_path).lab(0, arm="rjs")
    keys = set()
    for inner in (DPOLoss(), HingeLoss(), HingeLoss(0.2)):
        keys.add(lab.train_policy(lab.initial_policy, lab.pairs(8), WPOLoss(inner), reference=lab.initial_policy).key)
    assert len(keys) == 3


def test_a_methods_file_may_import_its_neighbours(tmp_path: Path) -> None:
    """Two folders have a `scale.py` each, and each method finds its own; a method whose neighbour changes is read again."""
    source = "from dataclasses import dataclass\nfrom scale import SCALE\n@dataclass(frozen=True)\nclass M:\n    def run(self, lab):\n"
    for name, scale in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scale.py").write_text(f"SCALE = {scale}\n")
        (tmp_path / name / "method.py").write_text(source + "        return SCALE\n")
    here, there = (resolve("method.py@M", {}, base=tmp_path / name) for name in ("a", "b"))
    assert (here.run(None), there.run(None)) == (1, 2)
    assert "scale" not in sys.modules
    (tmp_path / "a" / "scale.py").write_text("SCALE = 3\n")
    assert resolve("method.py@M", {}, base=tmp_path / "a").run(None) == 3
    names = {path.name for path in source_files("method.py@M", {}, base=tmp_path / "a")}
    assert names == {"method.py", "scale.py"}

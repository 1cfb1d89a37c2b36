"""Checkpoints: a killed fit resumes to the same bytes as one that was never stopped, and an incomplete checkpoint does not count."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_tokenizers import WORDS
from training_items import LLAMA, RECIPE, demonstrations, groups, pairs, train_policy, train_reward_model

from apo_bench.config.schema import Lora, NeuralReward
from apo_bench.losses import APOLoss, DPOLoss, PolicyLoss, RankingLoss, RRHFLoss, SFTLoss
from apo_bench.models import policy as policies
from apo_bench.store import Artifact, RunStore, scratch_of
from apo_bench.training.checkpoints import COMPLETE, checkpoint_after, latest_checkpoint, mark_complete, updates_at

pytestmark = pytest.mark.slow

LLAMA_WITH_DROPOUT = {**LLAMA, "attention_dropout": 0.2}
BERT = {
    "model_type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "hidden_dropout_prob": 0.2,
}  # fmt: skip
LORA = Lora(rank=2)


@dataclass(frozen=True)
class Interruption:
    """A fit to 37 items that dies in pass `dies`; an epoch's updates have 16, 16 and 5 items, 4, 4 and 2 passes in micro-batches of 4."""

    data: Any
    loss: Any
    recipe: Mapping[str, Any]
    dies: int
    done: int  # updates whose checkpoint is there then
    passes: int  # all that an undisturbed fit takes
    left: int  # those after the checkpoint

    def train(self, start: Path, loss: Any, into: Path, checkpoint_s: float = 600.0) -> Mapping[str, float]:
        recipe = RECIPE.model_copy(update=dict(self.recipe))
        if isinstance(loss, PolicyLoss):
            reference = start if loss.needs_reference else None
            return train_policy(start, self.data, loss, recipe, into, reference=reference, seed=3, checkpoint_s=checkpoint_s)
        spec = NeuralReward(architecture=BERT if recipe.lora else LLAMA_WITH_DROPOUT, axis_heads=True, training=recipe)
        return train_reward_model(self.data, loss, spec, into, seed=3, checkpoint_s=checkpoint_s)


INTERRUPTIONS = {
    # passes 1-10 are the first epoch, 11-14 update 4, 15-18 update 5; half an epoch more than two are updates 7 and 8
    "in the second epoch": Interruption(
        demonstrations(37), SFTLoss(), {"epochs": 2.5, "micro_batch_size": 4, "schedule": "cosine", "warmup_steps": 2}, 16, 4, 28, 14
    ),
    "in an epoch's first update": Interruption(
        pairs(37), DPOLoss(0.3), {"epochs": 3, "micro_batch_size": 4, "schedule": "linear"}, 12, 3, 30, 20
    ),
    "in the last update": Interruption(
        demonstrations(37), SFTLoss(), {"epochs": 2, "micro_batch_size": 4, "warmup_steps": 4}, 20, 5, 20, 2
    ),
    "before a checkpoint": Interruption(demonstrations(37), SFTLoss(), {"epochs": 1}, 1, 0, 3, 3),
    # in whole batches an epoch has 3 passes
    "frozen": Interruption(groups(37), RRHFLoss(1.0), {"epochs": 2, "freeze": "embed_tokens|norm", "weight_decay": 0.1}, 3, 2, 6, 4),
    "adapters": Interruption(
        demonstrations(37), SFTLoss(), {"epochs": 2, "lora": LORA, "schedule": "linear", "warmup_steps": 1}, 5, 4, 6, 2
    ),
    "a reward model": Interruption(pairs(37), APOLoss(0.5, 2), {"epochs": 2, "micro_batch_size": 8, "schedule": "cosine"}, 8, 4, 10, 3),
    "a head beside adapters": Interruption(pairs(37), RankingLoss(), {"epochs": 3, "lora": LORA}, 6, 5, 9, 4),
}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    raise KeyboardInterrupt


def watched(loss: Any, seen: list[None], dies: int | None = None, how: Callable[[], None] = kill) -> Any:
    """The same loss; it counts its passes and dies in one of them."""

    def call(self: Any, *tensors: Any) -> Any:
        seen.append(None)
        if len(seen) == dies:
            how()
        return type(loss).__call__(self, *tensors)

    return type(type(loss).__name__, (type(loss),), {"__call__": call})(**asdict(loss))


def artifact(folder: Path, fit: Interruption, loss: Any) -> Artifact:
    """The fit as an artifact of a store, with a checkpoint after every update."""

    def build(into: Path) -> Mapping[str, float]:
        return fit.train(folder / "start", loss, into, checkpoint_s=0)

    return RunStore(folder).artifact("fits", {"recipe": str(fit.recipe)}, build)


def die_in_all(folder: Path) -> None:
    """Train every fit in a process of its own, which is killed."""
    torch.set_num_threads(1)
    for fit in INTERRUPTIONS.values():
        if (child := os.fork()) == 0:
            artifact(folder, fit, watched(fit.loss, [], fit.dies))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder in which every fit was killed."""
    folder = tmp_path_factory.mktemp("killed")
    policies.save_model(*policies.new_policy(LLAMA_WITH_DROPOUT, WORDS, seed=0), folder / "start")
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        sys.path[:0] = sys.argv[1].split(":")
        from test_checkpoints import die_in_all
        die_in_all(Path(sys.argv[2]))
    """)
    subprocess.run([sys.executable, "-c", script, ":".join(sys.path), str(folder)], check=True)
    return folder


@pytest.mark.parametrize("name", INTERRUPTIONS)
def test_a_killed_fit_resumes_to_the_same_bytes(killed: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    fit, seen, undisturbed = INTERRUPTIONS[name], list[None](), list[None]()
    resumed = artifact(killed, fit, watched(fit.loss, seen))
    assert ("resuming from this checkpoint" in capsys.readouterr().out) == (fit.done > 0)
    counts = fit.train(killed / "start", watched(fit.loss, undisturbed), tmp_path / "undisturbed")
    assert (len(undisturbed), len(seen)) == (fit.passes, fit.left)
    assert resumed.counts == counts
    weights = "adapter_model.safetensors" if name == "adapters" else "model.safetensors"
    for file in (weights, "training_losses.json"):
        assert (resumed.folder / file).read_bytes() == (tmp_path / "undisturbed" / file).read_bytes()
    assert not scratch_of(resumed.folder).exists()


# --- invalid checkpoints ------------------------------------------------------------------------------------------------------


def interrupted(folder: Path, fit: Interruption) -> Path:
    """The scratch folder of a fit that was stopped where the table says so."""
    policies.save_model(*policies.new_policy(LLAMA_WITH_DROPOUT, WORDS, seed=0), folder / "start")
    with pytest.raises(KeyboardInterrupt):
        artifact(folder, fit, watched(fit.loss, [], fit.dies, interrupt))
    [scratch] = (folder / "store" / "fits").glob(".*.scratch")
    return scratch


@pytest.mark.parametrize("damage", ["truncated weights", "no optimizer", "no marker", "of other data"])
def test_a_fit_starts_again_where_its_checkpoint_is_invalid(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All passes are run again, and the bytes are those of a fit without checkpoints."""
    fit, seen = INTERRUPTIONS["in the last update"], list[None]()
    [checkpoint] = interrupted(tmp_path, fit).glob("checkpoint-*")
    assert checkpoint.name == f"checkpoint-{fit.done}"
    if damage == "truncated weights":
        weights = (checkpoint / "model.safetensors").read_bytes()
        (checkpoint / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif damage == "of other data":
        marker = (checkpoint / COMPLETE).read_text()
        (checkpoint / COMPLETE).write_text(marker.replace('"of": "', '"of": "0'))
    else:
        (checkpoint / {"no optimizer": "optimizer.pt", "no marker": COMPLETE}[damage]).unlink()
    retrained = artifact(tmp_path, fit, watched(fit.loss, seen))
    fault = {"truncated weights": "model.safetensors does not match", "no optimizer": "optimizer.pt is missing"}
    fault |= {"no marker": "not complete", "of other data": "of another fit"}
    assert f"{checkpoint}: {fault[damage]}" in capsys.readouterr().out
    assert len(seen) == fit.passes
    counts = fit.train(tmp_path / "start", fit.loss, tmp_path / "undisturbed")
    assert retrained.counts == counts
    assert (retrained.folder / "model.safetensors").read_bytes() == (tmp_path / "undisturbed" / "model.safetensors").read_bytes()


def test_a_short_fit_keeps_no_checkpoint(tmp_path: Path) -> None:
    fit = INTERRUPTIONS["in the last update"]
    policies.save_model(*policies.new_policy(LLAMA_WITH_DROPOUT, WORDS, seed=0), tmp_path / "start")
    fit.train(tmp_path / "start", fit.loss, tmp_path / "trained", checkpoint_s=600.0)
    assert not list(scratch_of(tmp_path / "trained").glob("*"))


def written(folder: Path, updates: int) -> Path:
    checkpoint = checkpoint_after(folder, updates)
    checkpoint.mkdir()
    (checkpoint / "weights").write_text(f"after {updates}")
    return checkpoint


def test_the_last_complete_checkpoint_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed while the one after it was written: 9 is complete, 10 has no marker; 10 is later than 9, whatever their names' order."""
    mark_complete(written(tmp_path, 9), "this fit")
    half = written(tmp_path, 10)
    assert latest_checkpoint(tmp_path, "this fit") == tmp_path / "checkpoint-9"
    assert capsys.readouterr().out == f"{half}: not complete; skipping an invalid checkpoint\n"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]
    assert updates_at(tmp_path / "checkpoint-9") == 9


def test_a_complete_checkpoint_replaces_those_before(tmp_path: Path) -> None:
    for updates in (1, 2, 11):
        mark_complete(written(tmp_path, updates), "this fit")
        assert [path.name for path in tmp_path.iterdir()] == [f"checkpoint-{updates}"]
    assert latest_checkpoint(tmp_path / "nowhere", "this fit") is None


@pytest.mark.parametrize("marker", ["", "{", "[]", '{"of": "this fit"}', '{"of": "this fit", "files": 3}'])
def test_a_checkpoint_with_a_broken_marker_does_not_count(tmp_path: Path, marker: str, capsys: pytest.CaptureFixture[str]) -> None:
    (written(tmp_path, 1) / COMPLETE).write_text(marker)
    assert latest_checkpoint(tmp_path, "this fit") is None
    assert "unreadable marker" in capsys.readouterr().out

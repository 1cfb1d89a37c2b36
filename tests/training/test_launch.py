"""Fits under `accelerate launch`: two processes are one, and what goes wrong in them is one line."""

import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from apo_bench.training.launch import (
    COUNTS,
    FAILED,
    ORIGIN,
    REQUEST,
    PolicyFit,
    RewardFit,
    carry_out,
    identity,
    module_at,
    read,
    written,
)
from filelock import FileLock
from safetensors.torch import load_file
from tiny_world import tiny_bench
from training_items import apart

from apo_bench.config.schema import Executor, Lora, NeuralReward
from apo_bench.errors import InputError
from apo_bench.evaluation.context import Bench
from apo_bench.lab.ledger import Ledger
from apo_bench.losses import DPOLoss, RankingLoss, SFTLoss
from apo_bench.store import write_json
from apo_bench.training.checkpoints import Checkpoints

pytestmark = pytest.mark.slow

TWO = "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n"
N = 41  # updates of 16, 16 and 9; of the 9, in fours, the third round has one item for one process and none for the other
CHANGES = {"learning_rate": 1e-3, "micro_batch_size": 4, "epochs": 1.5, "weight_decay": 0.1, "schedule": "linear"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return tiny_bench(tmp_path_factory.mktemp("launched"))


@pytest.fixture
def two(tmp_path: Path) -> str:
    (tmp_path / "two.yaml").write_text(TWO)
    return str(tmp_path / "two.yaml")


def fits(bench: Bench, folder: Path) -> dict[str, PolicyFit | RewardFit]:
    """Everything that trains weights, on the tiny world's data and from its initial policy; each in folders of its own."""
    start = bench.store.open("policies", bench.initial_policy.key).folder
    models, pairs = bench.experiment.models, bench.task.pairs["rm"][:N]
    recipe = models.policy.training.model_copy(update=CHANGES)
    shown = bench.task.demonstrations[:N]

    def policy(name: str, data: Any, loss: Any, **changes: Any) -> PolicyFit:
        own = recipe.model_copy(update=changes)
        return PolicyFit(
            start, tuple(data), loss, start, models.policy, own, 3, folder / name, Checkpoints(folder / f"{name}.scratch", 600.0)
        )

    assert isinstance(models.reward, NeuralReward)
    spec = models.reward.model_copy(update={"training": recipe, "axis_heads": True})
    axes, vocabulary = tuple(bench.task.axes), tuple(bench.task.vocabulary or ())
    kept = Checkpoints(folder / "reward.scratch", 600.0)
    reward = RewardFit(str(start), tuple(pairs), RankingLoss(), axes, vocabulary, spec, 3, folder / "reward", kept)
    return {
        "sft": policy("sft", shown, SFTLoss()),
        "dpo": policy("dpo", pairs, DPOLoss(0.3)),
        "adapters": policy("adapters", shown, SFTLoss(), lora=Lora(rank=2)),
        "reward": reward,
        "indivisible": policy("indivisible", shown, SFTLoss(), micro_batch_size=16),
    }


def losses(folder: Path) -> list[float]:
    return json.loads((folder / "training_losses.json").read_text())


def test_two_processes_are_one(bench: Bench, two: str, tmp_path: Path) -> None:
    """Losses and weights agree to 1e-4, counts exactly; all in one launch, since starting takes longest.

    16 items in micro-batches of 16 are not for two, which every process says in a line of its own.
    """
    script = textwrap.dedent("""
        import sys
        from apo_bench.errors import InputError
        from apo_bench.training.launch import main
        for request in sys.argv[1:]:
            try:
                main([request])
            except InputError:
                pass
    """)
    (tmp_path / "script.py").write_text(script)
    requests = []
    for fit in fits(bench, tmp_path / "two").values():
        requests.append(fit.checkpoints.folder / REQUEST)
        write_json(requests[-1], {**written(fit), "lock": str(tmp_path / "lock")})
    with FileLock(tmp_path / "lock"):
        options = ["--config_file", two, "--multi_gpu", "--main_process_port", "0"]
        command = [sys.executable, "-m", "accelerate.commands.launch", *options, str(tmp_path / "script.py"), *map(str, requests)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, fit in fits(bench, tmp_path / "one").items():
        theirs = tmp_path / "two"
        if name == "indivisible":
            for process in (0, 1):
                said = json.loads((theirs / "indivisible.scratch" / f"{FAILED}{process}").read_text())
                assert said == {"input": True, "message": "batch_size 16 is not a multiple of micro_batch_size 16 x 2 processes"}
            continue
        counts = carry_out(fit, None)
        assert json.loads((theirs / f"{name}.scratch" / COUNTS).read_text()) == counts
        assert losses(theirs / name) == pytest.approx(losses(fit.into), abs=1e-4)
        assert len(losses(fit.into)) == 5
        weights, trained = (load_file(folder / "model.safetensors") for folder in (theirs / name, fit.into))
        assert apart(weights, trained) < 1e-4


METHOD = """
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from apo_bench.losses import SFTLoss


@dataclass(frozen=True)
class Fragile(SFTLoss):
    passes: str
    dies: int

    def __call__(self, logps, mask):
        if os.environ.get("RANK") == "1":
            with open(self.passes, "a") as file:
                file.write("pass\\n")
            if Path(self.passes).read_text().count("pass") == self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(logps, mask)
"""


def test_a_killed_process_is_one_line_and_the_next_run_goes_on(bench: Bench, two: str, tmp_path: Path) -> None:
    """The second of two processes dies in its 8th pass, the second of update 4; with a method's own loss, through the Lab.

    An epoch is three updates of two passes each. 1.5 epochs are 5 updates; after the checkpoint of the third, 4 passes are left.
    """
    (tmp_path / "fragile.py").write_text(METHOD)
    loss = module_at(f"{ORIGIN}{tmp_path / 'fragile.py'}").Fragile(str(tmp_path / "passes"), dies=8)
    recipe = bench.experiment.models.policy.training.model_copy(update=CHANGES)
    elsewhere = replace(
        bench,
        experiment=bench.experiment.model_copy(update={"executor": Executor(checkpoint_s=0, launch=two)}),
        hardware={**bench.hardware, **identity(two)},
    )

    def train(on: Bench) -> Path:
        lab = on._lab(0, bench.initial_policy, bench.experiment.models.reward, Ledger("_bench", {}))
        made = lab.train_policy(bench.initial_policy, bench.task.demonstrations[:N], loss, recipe=recipe)
        return bench.store.open("policies", made.key).folder

    with pytest.raises(RuntimeError) as failed:
        train(elsewhere)
    assert "\n" not in str(failed.value)
    assert str(failed.value).startswith(f"{two}: training under accelerate launch ended with status 1: ")
    assert "SIGKILL" in str(failed.value)
    [scratch] = (bench.store.root / "policies").glob(".*.scratch")
    assert [path.name for path in scratch.glob("checkpoint-*/COMPLETE")] == ["COMPLETE"]
    assert (tmp_path / "passes").read_text() == "pass\n" * 8
    trained, alone = train(elsewhere), train(bench)
    assert trained != alone
    assert (tmp_path / "passes").read_text() == "pass\n" * (8 + 4)
    assert losses(trained) == pytest.approx(losses(alone), abs=1e-4)
    assert apart(load_file(trained / "model.safetensors"), load_file(alone / "model.safetensors")) < 1e-4
    assert not scratch.exists()


# --- without a launch ---------------------------------------------------------------------------------------------------------


def test_a_fit_comes_back_as_it_was_written(bench: Bench, tmp_path: Path) -> None:
    """All of it: paths, records, settings, the loss by class and fields; and every float to the bit."""
    for name, fit in fits(bench, tmp_path).items():
        write_json(tmp_path / name / REQUEST, written(fit))
        assert read(json.loads((tmp_path / name / REQUEST).read_text())) == fit


def test_what_a_process_does_ends_with_the_one_that_asked(tmp_path: Path) -> None:
    code = "import sys, pathlib; from apo_bench.training.launch import end_with\n"
    code += "print('at work', flush=True); end_with(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with FileLock(tmp_path / "lock") as held, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        assert process.poll() is None
        held.release()
        assert process.wait(timeout=60) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read (FileNotFoundError)"),
        ("{", "cannot be read (ParserError)"),
        ("- 1", "not an accelerate configuration"),
        ("num_machines: 2", "num_machines 2; a fit is launched on one machine"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_line(bench: Bench, tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError) as wrong:
        carry_out(fits(bench, tmp_path)["sft"], str(tmp_path / "x.yaml"))
    assert str(wrong.value) == f"executor.launch: {tmp_path / 'x.yaml'}: {said}"
    with pytest.raises(InputError):
        identity(str(tmp_path / "x.yaml"))


def test_a_configuration_is_known_by_its_content(two: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "two.yaml").write_text(TWO)
    assert identity(None) == {}
    assert identity(two) == identity(str(tmp_path / "elsewhere" / "two.yaml"))
    Path(two).write_text(TWO.replace("2", "4"))
    assert identity(two) != identity(str(tmp_path / "elsewhere" / "two.yaml"))

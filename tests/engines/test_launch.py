"""Training under `accelerate launch`: two processes compute what one does, and a failure in them is one line."""

import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from safetensors.torch import load_file
from tiny_world import tiny_bench
from training_items import apart

from apo_bench.config.python_files import load_python_file
from apo_bench.config.schema import Lora, NeuralReward
from apo_bench.engines import transformers
from apo_bench.engines.launch import COUNTS, FAILED, REQUEST, configuration, job_from_json, job_to_json, launch
from apo_bench.engines.transformers import TransformersEngine
from apo_bench.errors import InputError
from apo_bench.evaluation.context import EvaluationContext
from apo_bench.lab.ledger import Ledger
from apo_bench.losses import AOTLoss, DPOLoss, HingeLoss, KTOLoss, RankingLoss, RRHFLoss, SFTLoss, View, WPOLoss
from apo_bench.store import scratch_of, write_json
from apo_bench.training.training_spec import PolicyTraining, RewardModelTraining
from apo_bench.types import Group, RewardModel, UnpairedExample

pytestmark = pytest.mark.slow

TWO = "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n"
N = 41  # updates of 16, 16 and 9; of the 9, in fours, the third round has one item for one process and none for the other
CHANGES = {"learning_rate": 1e-3, "micro_batch_size": 4, "epochs": 1.5, "weight_decay": 0.1, "schedule": "linear"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    return tiny_bench(tmp_path_factory.mktemp("launched"))


@pytest.fixture
def two(tmp_path: Path) -> str:
    (tmp_path / "two.yaml").write_text(TWO)
    return str(tmp_path / "two.yaml")


def training_jobs(bench: EvaluationContext) -> dict[str, PolicyTraining | RewardModelTraining]:
    """Every way to train weights, on the tiny world's data and from its initial policy."""
    start, models = bench.initial_policy, bench.experiment.models
    pairs, demonstrations = bench.task.pairs["rm"][:N], bench.task.demonstrations[:N]
    recipe = models.policy.training.model_copy(update=CHANGES)
    indivisible = recipe.model_copy(update={"micro_batch_size": 16})
    adapters = recipe.model_copy(update={"lora": Lora(rank=2)})
    assert isinstance(models.reward, NeuralReward)
    reward = models.reward.model_copy(update={"training": recipe, "axis_heads": True})
    axes, vocabulary = tuple(bench.task.axes), tuple(bench.task.vocabulary or ())
    return {
        "sft": PolicyTraining(start, demonstrations, SFTLoss(), None, models.policy, recipe, 3),
        "dpo": PolicyTraining(start, pairs, DPOLoss(0.3), start, models.policy, recipe, 3),
        "adapters": PolicyTraining(start, demonstrations, SFTLoss(), None, models.policy, adapters, 3),
        "reward": RewardModelTraining(None, start, pairs, RankingLoss(), axes, vocabulary, reward, 3),
        "indivisible": PolicyTraining(start, demonstrations, SFTLoss(), None, models.policy, indivisible, 3),
    }


def train(engine: TransformersEngine, job: PolicyTraining | RewardModelTraining, into: Path) -> Any:
    """The counts of training in this process."""
    trained = engine.train_policy(job, into) if isinstance(job, PolicyTraining) else engine.train_reward_model(job, into)
    return trained.counts


def losses(folder: Path) -> list[float]:
    return json.loads((folder / "training_losses.json").read_text())


def test_two_processes_compute_what_one_does(bench: EvaluationContext, two: str, tmp_path: Path) -> None:
    """Losses and weights agree to 1e-4, counts exactly; all in one launch, since starting takes longest.

    16 items in micro-batches of 16 cannot be split in two, which every process reports in a line of its own.
    """
    script = textwrap.dedent("""
        import sys
        from apo_bench.errors import InputError
        from apo_bench.engines.launch import main
        for request in sys.argv[1:]:
            try:
                main([request])
            except InputError:
                pass
    """)
    (tmp_path / "script.py").write_text(script)
    requests = []
    for name, job in training_jobs(bench).items():
        into = tmp_path / "two" / name
        requests.append(scratch_of(into) / REQUEST)
        where = {"run_folder": str(bench.store.run_folder), "into": str(into), "checkpoint_s": 600.0, "lock": str(tmp_path / "lock")}
        write_json(requests[-1], {**job_to_json(job), **where})
    with FileLock(tmp_path / "lock"):
        options = ["--config_file", two, "--multi_gpu", "--main_process_port", "0"]
        command = [sys.executable, "-m", "accelerate.commands.launch", *options, str(tmp_path / "script.py"), *map(str, requests)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    engine = TransformersEngine(bench.store.run_folder)
    for name, job in training_jobs(bench).items():
        launched, alone = tmp_path / "two" / name, tmp_path / "one" / name
        if name == "indivisible":
            for process in (0, 1):
                failure = json.loads((scratch_of(launched) / f"{FAILED}{process}").read_text())
                assert failure == {"input": True, "message": "batch_size 16 is not a multiple of micro_batch_size 16 x 2 processes"}
            continue
        counts = train(engine, job, alone)
        assert json.loads((scratch_of(launched) / COUNTS).read_text()) == {"counts": counts, "peak_device_bytes": 0.0}
        assert losses(launched) == pytest.approx(losses(alone), abs=1e-4)
        assert len(losses(alone)) == 5
        weights = "adapter_model.safetensors" if name == "adapters" else "model.safetensors"
        assert apart(load_file(launched / weights), load_file(alone / weights)) < 1e-4


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

    def __call__(self, view):
        if os.environ.get("RANK") == "1":
            with open(self.passes, "a") as file:
                file.write("pass\\n")
            if Path(self.passes).read_text().count("pass") == self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(view)
"""


def test_a_killed_process_is_one_line_and_the_next_run_resumes(bench: EvaluationContext, two: str, tmp_path: Path) -> None:
    """The second of two processes dies in its 8th pass, the second of update 4; with a method's own loss, through the Lab.

    An epoch is three updates of two passes each. 1.5 epochs are 5 updates; after the checkpoint of the third, 4 passes are left.
    """
    (tmp_path / "fragile.py").write_text(METHOD)
    loss = load_python_file(tmp_path / "fragile.py").Fragile(str(tmp_path / "passes"), dies=8)
    recipe = bench.experiment.models.policy.training.model_copy(update=CHANGES)
    launching = replace(bench, engine=TransformersEngine(bench.store.run_folder, launch_config=two, checkpoint_s=0))

    def trained_by(context: EvaluationContext) -> Path:
        lab = context._lab(0, bench.initial_policy, bench.experiment.models.reward, Ledger("_bench", {}))
        policy = lab.train_policy(bench.initial_policy, bench.task.demonstrations[:N], loss, recipe=recipe)
        return bench.store.open("policies", policy.key).folder

    with pytest.raises(RuntimeError) as failed:
        trained_by(launching)
    assert "\n" not in str(failed.value)
    assert str(failed.value).startswith(f"{two}: training under accelerate launch ended with status 1: ")
    assert "SIGKILL" in str(failed.value)
    [scratch] = (bench.store.root / "policies").glob(".*.scratch")
    assert [path.name for path in scratch.glob("checkpoint-*/COMPLETE")] == ["COMPLETE"]
    assert (tmp_path / "passes").read_text() == "pass\n" * 8
    launched, alone = trained_by(launching), trained_by(bench)
    assert launched != alone
    assert (tmp_path / "passes").read_text() == "pass\n" * (8 + 4)
    assert losses(launched) == pytest.approx(losses(alone), abs=1e-4)
    assert apart(load_file(launched / "model.safetensors"), load_file(alone / "model.safetensors")) < 1e-4
    assert not scratch.exists()


# --- without a launch ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DesirableLikelihood:
    """A loss on unpaired data, in a module that is not the project's."""

    weight: float
    reads = "unpaired"
    needs_reference = False

    def __call__(self, view: View) -> Any:
        return -self.weight * view.labels * view.response_logps.squeeze(1)


def test_a_job_comes_back_from_json_as_it_was(bench: EvaluationContext) -> None:
    """All of it: handles, records, settings, the loss by class and fields; and every float to the bit."""
    jobs = training_jobs(bench)
    sft, prompt = jobs["sft"], bench.task.prompts["policy"][0]
    assert isinstance(sft, PolicyTraining)
    jobs["groups"] = replace(sft, loss=RRHFLoss(1 / 3), data=(Group(prompt, ("sorry", ""), (0.1 + 0.2, -1e-17)),))
    jobs["sampled"] = replace(sft, token_ids={prompt.id: {"sorry": (5, 1), "a, b\n": ()}})
    jobs["weighted"] = replace(jobs["dpo"], loss=WPOLoss(HingeLoss(0.3), "none"))
    mismatched = tuple(UnpairedExample(pair.prompt, pair.chosen, True, pair.rejected) for pair in bench.task.pairs["rm"][:N])
    jobs["kto"] = replace(jobs["dpo"], loss=KTOLoss(0.3), data=mismatched)
    jobs["continued"] = replace(jobs["reward"], start=RewardModel("abc"), body=None, vocabulary=None)
    for job in jobs.values():
        assert job_from_json(json.loads(json.dumps(job_to_json(job)))) == job


def test_processes_do_not_split_an_update(bench: EvaluationContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = replace(training_jobs(bench)["dpo"], loss=AOTLoss())
    monkeypatch.setattr(transformers, "PartialState", lambda: SimpleNamespace(num_processes=2))
    assert isinstance(job, PolicyTraining)
    with pytest.raises(InputError, match=r"^executor.launch: AOTLoss reads an update whole, and 2 processes would split it$"):
        TransformersEngine(tmp_path).train_policy(job, tmp_path / "trained")


def test_a_loss_of_a_users_own_file_comes_back_by_its_path(bench: EvaluationContext) -> None:
    prompt, sft = bench.task.prompts["policy"][0], training_jobs(bench)["sft"]
    assert isinstance(sft, PolicyTraining)
    job = replace(sft, loss=DesirableLikelihood(0.1), data=(UnpairedExample(prompt, "sorry", True), UnpairedExample(prompt, "no", False)))
    again = job_from_json(json.loads(json.dumps(job_to_json(job))))
    assert isinstance(again, PolicyTraining)
    assert again.data == job.data
    assert (type(again.loss).__name__, again.loss.weight, again.loss.reads) == ("DesirableLikelihood", 0.1, "unpaired")


def test_a_launched_process_ends_with_the_launching_process(tmp_path: Path) -> None:
    code = "import sys, pathlib; from apo_bench.engines.launch import end_with_launcher\n"
    code += "print('at work', flush=True); end_with_launcher(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with FileLock(tmp_path / "lock") as lock, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        assert process.poll() is None
        lock.release()
        assert process.wait(timeout=60) == 1


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "no such file"),
        ("{", "not valid YAML (line 1)"),
        ("- 1", "not an accelerate configuration"),
        ("num_machines: 2", "num_machines 2; a fit is launched on one machine"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_line(bench: EvaluationContext, tmp_path: Path, text: str | None, fault: str) -> None:
    if text is not None:
        (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError) as wrong:
        launch(training_jobs(bench)["sft"], TransformersEngine(tmp_path, launch_config=str(tmp_path / "x.yaml")), tmp_path / "trained")
    assert str(wrong.value).startswith(f"executor.launch: {tmp_path / 'x.yaml'}: {fault}")
    with pytest.raises(InputError):
        configuration(str(tmp_path / "x.yaml"))


def test_a_configuration_is_identified_by_its_content(two: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "two.yaml").write_text(TWO)
    assert configuration(None) == {}
    assert configuration(two) == configuration(str(tmp_path / "elsewhere" / "two.yaml"))
    Path(two).write_text(TWO.replace("2", "4"))
    assert configuration(two) != configuration(str(tmp_path / "elsewhere" / "two.yaml"))

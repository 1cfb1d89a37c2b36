"""What an experiment, a task or a model may not do: write outside the run folder, run code that nobody allowed, come as a pickle."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_world import LLAMA, tiny_tree

from apo_bench.config.load import load_experiment
from apo_bench.errors import InputError
from apo_bench.models.policy import load_policy, new_policy, save_model
from apo_bench.run.validate import check_experiment

pytestmark = pytest.mark.slow

MAIN = "from apo_bench.cli.main import main; main()"
HOSTILE = ["../outside", "/tmp/outside", "a/b", "..", ".hidden", "a\x00b", "-rf", "a\nb", "con:aux", "~", ""]
SPY = """
import os, sys

def note(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        written = os.fsdecode(arguments[0])
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"):
        written = os.fsdecode(arguments[1 if event in ("os.rename", "os.link", "os.symlink") else 0])
    else:
        return
    if event == "os.remove" and arguments[1] != -1:  # relative to a folder that is open, as a tree is removed
        written = os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), written)
    line = (os.path.abspath(written) + "\\n").encode()
    os.write(log, line)

log = os.open(os.environ["SPY_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
sys.addaudithook(note)
"""


def write(folder: Path, tree: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


def test_nothing_is_written_outside_the_run_folder(tmp_path: Path) -> None:
    """Every file that the run and its workers open for writing, make, rename or remove, as the interpreter tells it; their temporary
    folder is their own. The file formats left in the store are plain ones."""
    (tmp_path / "spy").mkdir()
    (tmp_path / "temporary").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "spy" / "sitecustomize.py").write_text(SPY)
    tree = tiny_tree()
    tree["judges"] = {"simulated": {"use": "apo_bench.judging.simulated_judge@SimulatedJudge"}}
    tree["compare"]["curves"] = {"../../outside": ["rjs", "apo_rjs"]}
    path, folder, log = write(tmp_path / "here", tree), tmp_path / "run", tmp_path / "log"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "spy"), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "SPY_LOG": str(log), "TMPDIR": str(tmp_path / "temporary"), "HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "temporary" / "inductor"),
    }  # fmt: skip
    command = [sys.executable, "-c", MAIN, "run", str(path), "--out", str(folder), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path / "here")
    assert done.returncode == 0, done.stderr
    written = set(log.read_text().splitlines())
    inside = {name for name in written if Path(name).is_relative_to(folder)}
    assert any(name.endswith("responses.jsonl") for name in inside)  # workers are heard too; what libraries in other languages write is not
    assert any(name.endswith("report.md") for name in inside)
    allowed = (
        tmp_path / "temporary",
        tmp_path / "home" / ".config" / "matplotlib",
        tmp_path / "home" / ".cache",
        Path("/dev"),
        Path("/proc"),
    )
    odd = {name for name in written - inside if not any(Path(name).is_relative_to(place) for place in allowed)}
    assert not {name for name in odd if Path(name) not in (tmp_path / "home" / ".config", log, folder.parent)}
    assert not list((tmp_path / "here").glob("*[!l]"))  # no file beside the experiment
    plain = {".safetensors", ".json", ".jsonl", ".parquet", ".npz", ".lock", ".jinja", ".txt", ".model"}
    assert {file.suffix for file in (folder / "store").rglob("*") if file.is_file() and not file.name.startswith(".")} <= plain


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["name", "arm", "judge", "gold"])
def test_a_name_that_could_lead_elsewhere_is_refused(tmp_path: Path, place: str, name: str) -> None:
    tree = tiny_tree()
    if place == "name":
        tree["name"] = name
    elif place == "arm":
        tree["arms"][name] = tree["arms"]["rjs"]
    elif place == "judge":
        tree["judges"] = {name: {"use": "apo_bench.judging.simulated_judge@SimulatedJudge"}}
    else:
        tree["models"]["gold"][0]["name"] = name
    with pytest.raises(InputError):
        load_experiment(write(tmp_path, tree))


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    """A tag that would call a function is an error in one line, and nothing is called."""
    path = write(tmp_path, tiny_tree())
    path.write_text(path.read_text() + f"\nextra: !!python/object/apply:os.mkdir [{tmp_path / 'made'}]\n")
    with pytest.raises(InputError, match="not valid YAML"):
        load_experiment(path)
    assert not (tmp_path / "made").exists()


def test_check_lists_files_that_are_code(tmp_path: Path) -> None:
    """A method's file, a player's and a task's own; shipped ones are not listed, since whoever runs apo-bench runs them anyway."""
    from apo_bench.package_data import shipped_root

    (tmp_path / "mine.py").write_text((shipped_root() / "baselines" / "rejection_sampling.py").read_text())
    tree = tiny_tree()
    tree["arms"]["apo_rjs"]["player"]["use"] = "mine.py@RejectionSampling"
    tree["arms"]["mine"] = {"use": "mine.py@RejectionSampling"}
    notes = check_experiment(write(tmp_path, tree))
    assert [note for note in notes if note.startswith("code")] == [
        f"code, not of apo-bench: {tmp_path / 'mine.py'} (arms.apo_rjs, arms.mine)"
    ]
    assert not [note for note in check_experiment(write(tmp_path / "other", tiny_tree())) if note.startswith("code")]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(*new_policy(LLAMA, ["a", "b", "c"], seed=0), folder)
    return folder


def test_a_models_own_code_does_not_run(model_folder: Path, tmp_path: Path) -> None:
    """A model folder that brings code (auto_map) is refused, and the code has not run; `check` says so where it is allowed."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "code_of_model.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\nclass Config: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "of_its_own",
        "auto_map": {"AutoConfig": "code_of_model.Config", "AutoModelForCausalLM": "code_of_model.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((ValueError, InputError)):
        load_policy(folder)
    assert not (tmp_path / "ran").exists()


def test_weights_in_a_pickle_are_not_loaded(model_folder: Path, tmp_path: Path) -> None:
    import torch

    folder = tmp_path / "model"
    folder.mkdir()
    for file in model_folder.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    model, _ = load_policy(model_folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        load_policy(folder)

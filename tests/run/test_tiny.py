"""--tiny: any experiment file, end to end, with models of 40,000 random weights; and the large files that need it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from apo_bench.cli.main import app
from apo_bench.config.load import load_experiment
from apo_bench.models.adapter_folder import is_adapter
from apo_bench.package_data import shipped_root
from apo_bench.run import scheduler
from apo_bench.run.jobs import Failure, Job, run_job
from apo_bench.run.tiny import byte_tokenizer, tiny_model, tiny_overrides

Tree = dict[str, Any]
LARGE = ("hh_llama", "hh_llama2_chat", "hh_modern")
GROCERIES = ("apples", "barley", "carrots", "dates", "eggs", "flour", "grapes", "honey")


def call(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def in_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APO_BENCH_MODELS", str(cache))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- the model ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_is_built_alike_twice_and_only_once(tmp_path: Path) -> None:
    first, other = tiny_model(tmp_path / "one", seed=0), tiny_model(tmp_path / "other", seed=0)
    assert first.name == other.name
    assert content(first) == content(other)
    assert "model.safetensors" in content(first)
    assert sorted((tmp_path / "one").iterdir()) == [first]  # nothing left over
    second = tiny_model(tmp_path / "one", seed=1)
    assert content(second)["model.safetensors"] != content(first)["model.safetensors"]
    (first / "config.json").write_text("mine")
    assert tiny_model(tmp_path / "one", seed=0) == first
    assert (first / "config.json").read_text() == "mine"


@given(st.text())
def test_the_tokenizer_takes_any_text_byte_by_byte(text: str) -> None:
    ids = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode())
    assert byte_tokenizer().decode(ids) == text


def test_the_chat_template_is_plain() -> None:
    messages = [{"role": role, "content": text} for role, text in (("system", "Be brief."), ("user", "Tea?"), ("assistant", "Yes."))]
    tokenizer = byte_tokenizer()
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "system: Be brief.\nuser: Tea?\nassistant: Yes.<|tiny_end|>\n"
    prompt = tokenizer.apply_chat_template(messages[1:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "user: Tea?\nassistant: "


# --- the overrides --------------------------------------------------------------------------------------------------------------


def made_tiny(tree: Tree, write_experiment: Callable[[Tree], Path], cache: Path) -> Any:
    """The experiment as --tiny makes it."""
    path = write_experiment(tree)
    return load_experiment(path, tiny_overrides(load_experiment(path), path, cache))


def from_paths(tree: Tree) -> Tree:
    """With paths in place of architectures: the policy's and the second gold model's is the same."""
    models = tree["models"]
    for key in ("policy", "reward"):
        del models[key]["architecture"]
    del models["policy"]["warmup"]
    models["policy"]["path"], models["reward"]["path"] = "some/policy", "some/reward"
    neural = {"kind": "neural", "path": "some/policy", "training": {"learning_rate": 1e-5, "micro_batch_size": 1, "batch_size": 64}}
    models["gold"].append({"name": "other", "model": neural})
    return tree


@pytest.mark.slow
def test_every_path_becomes_a_tiny_model_of_its_own(tree: Tree, write_experiment: Callable[[Tree], Path], cache: Path) -> None:
    models = made_tiny(from_paths(tree), write_experiment, cache).models
    assert [Path(models.policy.path).name[:7], Path(models.reward.path).name[:7]] == ["tiny-0-", "tiny-1-"]
    assert models.gold[1].model.path == models.policy.path
    assert Path(models.policy.path).parent == cache
    assert models.reward.training.lora.target_modules == "all-linear"  # q_proj in the file, which a tiny model may not have
    assert models.gold[1].model.training.micro_batch_size is None


def test_a_folder_in_the_home_is_spelled_without_it(
    tree: Tree, write_experiment: Callable[[Tree], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = made_tiny(from_paths(tree), write_experiment, tmp_path / "home" / ".cache").models.policy.path
    assert path.startswith("~/.cache/tiny-0-")
    assert Path(path).expanduser().is_dir()


def test_sizes_shrink_and_never_grow(tree: Tree, write_experiment: Callable[[Tree], Path], cache: Path) -> None:
    """Where a file says nothing or more, the size is --tiny's; what is smaller stays, and so do architecture, rounds and arms."""
    tree["seeds"] = [7, 3, 5]
    tree["evaluation"] |= {"prompts": 12, "kl_prompts": 500}
    tree["budget"] = {"human_pairs": 10_000, "flops": 1e15}
    tree["arms"]["rjs"] |= {"rounds": 5, "samples_per_prompt": 3}
    tree["arms"]["apo_rjs"]["player"]["prompts_per_round"] = 6
    tree["arms"]["grpo"] = {"use": "baselines/online.py@Online", "algorithm": "grpo", "prompts_per_step": 3}
    small = made_tiny(tree, write_experiment, cache)
    assert small.arms["grpo"].parameters == {"algorithm": "grpo", "prompts_per_step": 3, "steps_per_round": 2}
    assert small.seeds == (7, 3)
    assert (small.evaluation.prompts, small.evaluation.kl_prompts, small.evaluation.dev_prompts) == (12, 8, None)
    assert small.budget == {"human_pairs": 64, "golden_responses": 16, "flops": 1e15}
    assert small.arms["rjs"].parameters == {"rounds": 5, "samples_per_prompt": 3, "prompts_per_round": 8}
    assert small.arms["apo_rjs"].parameters["player"]["prompts_per_round"] == 6
    assert "prompts_per_round" not in small.arms["apo_rjs"].parameters
    assert small.models.policy.architecture == tree["models"]["policy"]["architecture"]
    assert (small.models.policy.max_prompt_tokens, small.models.policy.sampling.max_new_tokens) == (32, 8)
    assert (small.models.policy.training.batch_size, small.models.policy.training.learning_rate) == (8, 1e-4)
    assert (small.models.policy.training.epochs, small.models.policy.warmup.epochs) == (1, 0.1)


def test_an_arms_own_budget_keeps_its_proportion(tree: Tree, write_experiment: Callable[[Tree], Path], cache: Path) -> None:
    """64 of 640 is a tenth: 320 becomes 32, 1280 becomes 128, 10 the least, 4. Flops stay."""
    tree["budget"] = {"human_pairs": 640}
    for name, pairs in (("half", 320), ("double", 1280), ("few", 10), ("none", 0)):
        tree["arms"][name] = {**tree["arms"]["rjs"], "budget": {"human_pairs": pairs, "flops": 7.0}}
    arms = made_tiny(tree, write_experiment, cache).arms
    assert [arms[name].budget["human_pairs"] for name in ("half", "double", "few", "none")] == [32, 128, 4, 0]
    assert arms["few"].budget["flops"] == 7.0


def test_tuning_and_variation_shrink_too(tree: Tree, write_experiment: Callable[[Tree], Path], cache: Path) -> None:
    """Levels that differ in their model go on to differ."""
    tree = from_paths(tree)
    tree["evaluation"]["dev_prompts"] = 100
    tree["tune"] = {"trials": 4, "seeds": [8, 9], "grids": {arm: {"rounds": [1, 2, 3, 4]} for arm in tree["arms"]}}
    tree["vary"] = {
        "world": [4, 5, 6],
        "initial_policy": [{"path": "some/policy"}, {"path": "another/policy"}],
        "gold": [{"name": "one", "model": {"kind": "ngram"}}, {"name": "two", "model": tree["models"]["gold"][1]["model"]}],
    }
    small = made_tiny(tree, write_experiment, cache)
    assert (small.evaluation.dev_prompts, small.tune.trials, small.tune.seeds) == (8, 2, (8,))
    assert small.vary["world"] == (4, 5)
    first, other = (Path(level["path"]).name for level in small.vary["initial_policy"])
    assert first == Path(small.models.policy.path).name
    assert first != other
    assert small.vary["gold"][0]["seeds"] == [0, 1]
    assert small.vary["gold"][1]["model"]["path"] == small.models.policy.path
    tree["vary"] = {"gold": [{"name": "one", "model": {"kind": "ngram"}}, {"name": "two"}]}
    assert made_tiny(tree, write_experiment, cache).vary["gold"][1] == {"name": "two"}


def test_a_method_that_is_not_there_is_named(tree: Tree, write_experiment: Callable[[Tree], Path], in_cache: None) -> None:
    tree["arms"]["apo_rjs"]["player"] = {"use": "absent.py@Player"}
    path = write_experiment(tree)
    result = call("check", str(path), "--tiny")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {path}: arms.apo_rjs.player: use: absent.py: no such file")


# --- end to end -------------------------------------------------------------------------------------------------------------------


def shopping(path: Path) -> Path:
    """160 conversations an axis in HH's form, about groceries."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(160):
            goods, more = GROCERIES[number % 8], GROCERIES[number // 8 % 8]
            for axis in ("helpful", "harmless"):
                prompt = f"\n\nHuman: Where are {goods} for list {number}?\n\nAssistant: Why?\n\nHuman: For {axis} {more}.\n\nAssistant:"
                row = {"chosen": f" In aisle {number}, by the {more}.", "rejected": f" I forgot list {number}."}
                file.write(json.dumps({"prompt": prompt, "subset": f"{axis}-base/test", **row}) + "\n")
    return path


def in_this_process(jobs: Sequence[Job], work: Callable[..., str | None], *settings: Any) -> list[Failure]:
    """What an executor does, without processes that import torch anew."""
    outcomes = [(job, run_job(work, job)) for job in jobs]
    return [Failure(job.arm, job.seed, message) for job, message in outcomes if message]


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_large_experiment_runs_tiny(name: str, tmp_path: Path, in_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All arms, one seed and one round; but in the first file one arm plays all three rounds that its learning rates are for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scheduler, "executor", lambda name: in_this_process)
    arms = load_experiment(shipped_root() / "experiments" / f"{name}.yaml").arms
    short = [f"arms.{arm}.rounds=1" for arm in arms if arm != "best_of_n" and (name, arm) != (LARGE[0], "apo_dpo")]
    sets = [f"task.options.data_files=[{shopping(tmp_path / 'shopping.jsonl')}]", "seeds=[0]", "arms.best_of_n.n=[2]", *short]
    result = call("run", f"experiments/{name}.yaml", "--tiny", *(word for round_ in sets for word in ("--set", round_)))
    assert result.exit_code == 0, (result.output, result.exception)
    folder = tmp_path / "results" / f"{name}-tiny"
    assert (folder / "report" / "report.md").is_file()
    about = json.loads((folder / "manifest.json").read_text())
    assert about["failures"] == []
    assert about["command"].startswith(f"apo-bench run experiments/{name}.yaml --tiny --set 'seeds=[0]' --set 'task.options.data_files=")
    assert "models" not in about["command"]
    store = folder / "store"
    assert {path.name for path in (store / "arm_seeds").glob("*.json")} == {f"{arm}.0.json" for arm in arms}
    for arm in arms.keys() - {"best_of_n"}:  # which has no weights of its own; all others have learnt something
        start, *rounds = json.loads((store / "arm_seeds" / f"{arm}.0.json").read_text())["rounds"]
        first, last = (store / "policies" / round_["policy"] for round_ in (start, rounds[-1]))
        if is_adapter(last):  # which begin as zeros
            assert any(value.any() for key, value in load_file(last / "adapter_model.safetensors").items() if ".lora_B." in key), arm
        else:
            assert (first / "model.safetensors").read_bytes() != (last / "model.safetensors").read_bytes(), arm
    written = yaml.safe_load((folder / "experiment.yaml").read_text())
    policy = written["models"]["policy"]
    assert (written["seeds"], policy["max_prompt_tokens"] - len(policy["system_prompt"])) == ([0], 48)


@pytest.mark.parametrize("name", LARGE)
def test_a_large_experiment_is_valid_without_hub_or_gpu(name: str) -> None:
    """Only what comes from the hub is left unchecked: three models and the task's data, each a note."""
    result = call("check", f"experiments/{name}.yaml")
    assert result.exit_code == 0, result.output
    assert [("hub" in line) for line in result.stdout.splitlines()] == [False, True, True, True, True]


@pytest.mark.slow
def test_every_shipped_experiment_can_be_tiny(cache: Path) -> None:
    for path in sorted((shipped_root() / "experiments").glob("*.yaml")):
        small = load_experiment(path, tiny_overrides(load_experiment(path), path, cache))
        assert small.name == load_experiment(path).name


# --- judges -----------------------------------------------------------------------------------------------------------------------


def test_judges_are_made_small_and_nobody_is_called(tree: Tree, write_experiment: Callable[[Tree], Path], cache: Path) -> None:
    """A local judge gets a tiny model, one behind a server is left out; what was scored by it is scored by gold."""
    tree["judges"] = {
        "local": {"use": "apo_bench.judging.local_judge@LocalJudge", "path": "someone/large"},
        "gpt": {"use": "apo_bench.judging.chat_judge@ChatJudge", "model": "m", "base_url": "http://127.0.0.1:9", "api_key_env": None},
        "sim": {"use": "apo_bench.judging.simulated_judge@SimulatedJudge", "noise": 0.5},
    }
    tree["compare"]["scorer"] = "judge/gpt"
    path = write_experiment(tree)
    made_tiny = load_experiment(path, tiny_overrides(load_experiment(path), path, cache))
    assert list(made_tiny.judges) == ["local", "sim"]
    assert Path(made_tiny.judges["local"].parameters["path"]).parent == cache
    assert made_tiny.judges["sim"].parameters == {"noise": 0.5}
    assert (made_tiny.judging.prompts, made_tiny.judging.audit_pairs, made_tiny.compare.scorer) == (8, 8, "gold")


@pytest.mark.slow
def test_a_tiny_run_asks_a_local_judge(tree: Tree, write_experiment: Callable[[Tree], Path], tmp_path: Path, in_cache: None) -> None:
    tree["judges"] = {"local": {"use": "apo_bench.judging.local_judge@LocalJudge", "path": "someone/large"}}
    path = write_experiment(tree)
    result = call("run", str(path), "--tiny", "--workers", "2", "--out", str(tmp_path / "run"))
    assert result.exit_code == 0, result.output
    assert "| local |" in (tmp_path / "run" / "report" / "report.md").read_text()


@pytest.mark.slow
def test_a_finished_reward_model_becomes_a_tiny_finished_one(tree: Tree, write_experiment: Callable[[Tree], Path], cache: Path) -> None:
    """With as many outputs as the experiment needs, so that `check` accepts it; a member of an ensemble too."""
    spec = {"kind": "pretrained", "path": "org/reward", "output": 2, "max_tokens": 4096}
    tree["models"]["gold"] = [{"name": "finished", "model": spec}]
    tree["models"]["reward"] = {"kind": "ensemble", "of": [{"kind": "ngram"}, spec]}
    del tree["arms"]["apo_rjs"]
    tree["arms"]["best"] = {"use": "baselines/best_of_n.py@BestOfN"}
    tree["compare"]["primary"] = [{"a": "best", "b": "rjs"}]
    path = write_experiment(tree)
    overrides = tiny_overrides(load_experiment(path), path, cache)
    gold, member = overrides["models"]["gold"][0]["model"], overrides["models"]["reward"]["of"][1]
    assert gold == member
    assert (gold["output"], gold["max_tokens"]) == (2, 64)
    assert "ok" in call("check", str(write_experiment({**tree, "models": {**tree["models"], **overrides["models"]}}))).output

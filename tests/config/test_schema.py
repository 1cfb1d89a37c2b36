"""Experiment files: what is accepted, and that whatever is wrong is one line that names file and key."""

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import EXPERIMENT
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from apo_bench.cli.main import app
from apo_bench.config.load import dump_experiment, load_experiment
from apo_bench.config.plain_yaml import parse_yaml
from apo_bench.config.schema import Experiment, NeuralReward, NgramReward
from apo_bench.errors import InputError, InputErrors

Tree = dict[str, Any]
ABSENT = object()


def change(tree: Tree, key: str, value: Any) -> Tree:
    """The tree with the value of a dotted key replaced, or the key removed."""
    *parents, last = key.split(".")
    at: Any = tree
    for parent in parents:
        at = at[int(parent) if isinstance(at, list) else parent]
    place = int(last) if isinstance(at, list) else last
    if value is ABSENT:
        del at[place]
    else:
        at[place] = value
    return tree


def refusal(path: Path, overrides: Tree | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load_experiment(path, overrides)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_a_valid_experiment_and_its_defaults(tree: Tree, write_experiment: Callable[[Tree], Path]) -> None:
    experiment = load_experiment(write_experiment(tree))
    assert experiment.seeds == (0, 1)
    assert experiment.arms["apo_rjs"].parameters == {"rounds": 1, "player": {"use": "baselines/rejection_sampling.py@RejectionSampling"}}
    assert experiment.models.policy.sampling.temperature == 1.0
    assert isinstance(experiment.models.reward, NeuralReward)
    assert isinstance(experiment.models.gold[0].model, NgramReward)
    assert experiment.compare.scorer == "gold"
    assert experiment.compare.correction == "holm"


def test_what_is_written_back_reads_the_same(tree: Tree, write_experiment: Callable[[Tree], Path], tmp_path: Path) -> None:
    """The run folder keeps the resolved experiment; a replay compares it with what is asked now."""
    experiment = load_experiment(write_experiment(change(tree, "evaluation.sampling.data_parallel", 4)))
    again = tmp_path / "again.yaml"
    again.write_text(dump_experiment(experiment))
    assert load_experiment(again) == experiment
    assert experiment.evaluation.sampling.data_parallel == 4


def test_how_many_workers_share_a_sampling_job_is_in_no_dump_but_a_files(tree: Tree, write_experiment: Callable[[Tree], Path]) -> None:
    """Keys hold dumps, of the whole or of parts, in python or in JSON."""
    path, keys = write_experiment(tree), ("models.policy.sampling.data_parallel", "evaluation.sampling.data_parallel")
    alone, shared = load_experiment(path), load_experiment(path, dict.fromkeys(keys, 4))
    assert alone != shared
    assert dump_experiment(alone) != dump_experiment(shared)
    for mode in ("json", "python"):
        assert alone.model_dump(mode=mode) == shared.model_dump(mode=mode)
    assert alone.model_dump_json() == shared.model_dump_json()
    assert alone.models.policy.sampling.model_dump() == shared.models.policy.sampling.model_dump()
    assert refusal(path, {keys[0]: 0}) == f"{path}: {keys[0]}: 1 or more is needed (got 0)"


def test_a_task_may_be_a_bare_name_and_overrides_reach_under_it(tree: Tree, write_experiment: Callable[[Tree], Path]) -> None:
    path = write_experiment(change(tree, "task", "sim_hh"))
    assert load_experiment(path).task.use == "sim_hh"
    task = load_experiment(path, {"task.options.world_seed": 3, "seeds": [7]}).task
    assert (task.use, task.options) == ("sim_hh", {"world_seed": 3})


def test_yaml_rules() -> None:
    """1e-3 is a number (YAML 1.1 has it as text), a date stays text, and `<<` merges."""
    assert parse_yaml("1e-3", "--set x") == 0.001
    assert parse_yaml("2024-02-30", "--set x") == "2024-02-30"
    assert parse_yaml("{a: &a {x: 1, y: 1}, b: {<<: *a, y: 2}}", "--set x")["b"] == {"x": 1, "y": 2}


BAD_VALUES = [
    ("name", "../up", "name"),
    ("name", 3, "name"),
    ("names", "small", "names"),
    ("seeds", [0, 0], "seeds: 0 occurs twice"),
    ("seeds", [], "seeds"),
    ("seeds", ["0"], "seeds.0"),
    ("seeds", [True], "seeds.0"),
    ("seeds", [-1], "seeds.0"),
    ("seeds", [2**32], "seeds.0"),
    ("seeds", 3, "seeds"),
    ("task", ABSENT, "task"),
    ("task", 3, "task"),
    ("task.option", {}, "task.option"),
    ("models.policy.path", "x", "models.policy: give exactly one of path and architecture"),
    ("models.policy.warmup", ABSENT, "models.policy: warmup goes with architecture"),
    ("models.policy.training.learning_rate", 0, "models.policy.training.learning_rate"),
    ("models.policy.training.learning_rate", "0.1", "models.policy.training.learning_rate"),
    ("models.policy.training.learning_rate", math.nan, "models.policy.training.learning_rate"),
    ("models.policy.training.learning_rate", math.inf, "models.policy.training.learning_rate"),
    ("models.policy.training.micro_batch_size", 3, "models.policy.training: batch_size 8 is not a multiple"),
    ("models.policy.training.freeze", "(", "models.policy.training.freeze: not a regular expression"),
    ("models.policy.training.lr", 1, "models.policy.training.lr"),
    ("models.policy.sampling.top_p", 1.5, "models.policy.sampling.top_p"),
    ("models.policy.sampling.max_new_tokens", ABSENT, "models.policy.sampling.max_new_tokens: missing"),
    ("models.policy.sampling.engine", {"use": "vllm"}, "models.policy.sampling.engine: give exactly one of python and url"),
    ("evaluation.sampling.engine", {"python": "p", "url": "http://h"}, "evaluation.sampling.engine: give exactly one of python and url"),
    ("evaluation.sampling.engine", {"url": "h:80"}, "evaluation.sampling.engine.url"),
    (
        "evaluation.sampling.engine",
        {"url": "http://h", "arguments": ["--x"]},
        "evaluation.sampling.engine: arguments and attention_backend",
    ),
    ("models.policy.sampling.max_mismatch", 0.1, "models.policy.sampling: max_mismatch goes with engine"),
    ("models.reward.kind", "linear", "models.reward"),
    ("models.reward.training.lora.target_modules", 3, "models.reward.training.lora.target_modules:"),
    ("models.reward.training.lora.rank", 8.5, "models.reward.training.lora.rank:"),
    ("models.reward.trainng", {}, "models.reward.trainng:"),
    ("models.gold", [], "models.gold"),
    ("models.gold.0.seeds", [], "models.gold.0.seeds"),
    ("models.gold.0.seeds", [1, 1], "models.gold.0.seeds: 1 occurs twice"),
    ("models.gold.0.name", "proxy", "models.gold: gold may not be called proxy"),
    ("evaluation.prompts", 1, "evaluation.prompts"),
    ("budget.gpu_hours", 3, "budget.gpu_hours"),
    ("budget.flops", -1, "budget: flops"),
    ("budget.flops", "many", "budget.flops"),
    ("arms", {}, "arms"),
    ("arms.rjs", {"rounds": 1}, "arms.rjs.use"),
    ("arms.rjs.use", "baselines/iterative_dpo.py", "arms.rjs.use"),
    ("arms._gold", {"use": "a@B"}, "arms: name '_gold'"),
    ("arms...", {"use": "a@B"}, "arms: name '..'"),
    ("compare.primary.0.a", "apo", "compare.primary.0.a: no arm named 'apo'"),
    ("compare.primary.0.matched", ["time"], "compare.primary.0.matched.0"),
    ("compare.primary", [], "compare.primary"),
    ("compare.secondary", [{"a": "apo_rjs", "b": "rjs"}], "compare: 'apo_rjs against rjs' occurs twice"),
    ("compare.scorer", "silver", "compare.scorer: no scorer named 'silver'"),
    ("compare.axes", [], "compare.axes"),
    ("compare.axes", ["all", "all"], "compare.axes: 'all' occurs twice"),
    ("compare.round", "best", "compare.round"),
    ("compare.round", "dev_best", "compare.round: dev_best needs evaluation.dev_prompts"),
    ("compare.curves", {"plain": ["rjs", "rj"]}, "compare.curves.plain: no arm named 'rj'; arms: rjs, apo_rjs"),
    ("evaluation.dev_prompts", 1, "evaluation.dev_prompts"),
    ("models.policy.seed", -1, "models.policy.seed"),
    ("arms.rjs.budget", {"human_pairs": -1}, "arms.rjs.budget: human_pairs: a budget is 0 or more"),
    ("arms.rjs.budget", {"gpu_hours": 1}, "arms.rjs.budget.gpu_hours"),
    ("arms.rjs.budget", {"flops": math.inf}, "arms.rjs.budget.flops"),
    ("arms.rjs.budget", {"flops": math.nan}, "arms.rjs.budget"),
    ("arms.rjs.budget", 3, "arms.rjs.budget"),
    ("judges", {"_x": {"use": "a@B"}}, "judges: name '_x'"),
    ("judges", {"sim": {"noise": 1.0}}, "judges.sim.use"),
    ("judges", {"sim": {"use": "a.py"}}, "judges.sim.use"),
    ("judging", {"pairs": "some"}, "judging.pairs"),
    ("judging", {"pairs": "reference"}, "judging: reference goes with pairs: reference"),
    ("judging", {"reference": "rjs"}, "judging: reference goes with pairs: reference"),
    ("judging", {"pairs": "reference", "reference": "nobody"}, "judging.reference: no arm named 'nobody'"),
    ("judging", {"prompts": 1}, "judging.prompts"),
    ("judging", {"audit_pairs": -1}, "judging.audit_pairs"),
    ("compare.scorer", "judge/sim", "compare.scorer: no scorer named 'judge/sim'"),
    ("vary", {"world": [1]}, "vary.world"),
    ("vary", {"weather": [1, 2]}, "vary.weather"),
]


@pytest.mark.parametrize(("key", "value", "expected"), BAD_VALUES, ids=[f"{key}-{i}" for i, (key, _, _) in enumerate(BAD_VALUES)])
def test_bad_values(tree: Tree, write_experiment: Callable[[Tree], Path], key: str, value: Any, expected: str) -> None:
    if key == "arms...":  # a name with dots is no dotted key
        tree["arms"][".."] = value
    else:
        change(tree, key, value)
    path = write_experiment(tree)
    assert refusal(path).startswith(f"{path}: {expected}")


TUNE: Tree = {
    "trials": 2,
    "grids": {"rjs": {"learning_rate": [1e-3, 1e-4]}, "apo_rjs": {"player.learning_rate": [1e-3, 1e-4], "apo_coeff": [0.1, 1.0]}},
}
BAD_TUNING = [
    ("evaluation.dev_prompts", None, "tune: needs evaluation.dev_prompts"),
    ("tune.trials", 1, "tune.trials"),
    ("tune.trials", 3, "tune.grids.rjs: 2 settings for 3 trials; every arm gets equally many"),
    ("tune.seeds", [5, 1], "tune.seeds: 1 is a seed of the experiment; tuning needs seeds of its own"),
    ("tune.seeds", [7, 7], "tune.seeds: 7 occurs twice"),
    ("tune.seeds", [], "tune.seeds"),
    ("tune.grids", {}, "tune.grids"),
    ("tune.grids.apo_rjs", ABSENT, "tune.grids: 'apo_rjs' is missing; every arm is tuned alike"),
    ("tune.grids.apo", {"rounds": [1, 2]}, "tune.grids: 'apo' is no arm"),
    ("tune.grids.rjs", {}, "tune.grids.rjs: 1 settings for 2 trials"),
    ("tune.grids.rjs.learning_rate", [], "tune.grids.rjs.learning_rate"),
    ("tune.grids.rjs.learning_rate", 1e-3, "tune.grids.rjs.learning_rate"),
    ("tune.grids.rjs.learning_rate", [1e-3, 1e-4, 1e-3], "tune.grids.rjs.learning_rate: a value occurs twice"),
    ("tune.grids.rjs.learning_rate", [[1e-3, 1e-4], [1e-3, 1e-4]], "tune.grids.rjs.learning_rate: a value occurs twice"),
    ("tune.grids.rjs", {"budget.human_pairs": [10, 20]}, "tune.grids.rjs.budget.human_pairs: no parameter of a method"),
    ("tune.grids.rjs", {"use": ["a.py@A", "b.py@B"]}, "tune.grids.rjs.use: no parameter of a method"),
]


@pytest.mark.parametrize(("key", "value", "expected"), BAD_TUNING, ids=[f"{key}-{i}" for i, (key, _, _) in enumerate(BAD_TUNING)])
def test_tuning_is_equal_for_all_arms_or_refused(
    tree: Tree, write_experiment: Callable[[Tree], Path], key: str, value: Any, expected: str
) -> None:
    tree["tune"], tree["evaluation"]["dev_prompts"] = copy.deepcopy(TUNE), 8
    path = write_experiment(change(tree, key, value))
    assert refusal(path).startswith(f"{path}: {expected}")


def test_a_tuned_experiment_and_its_defaults(tree: Tree, write_experiment: Callable[[Tree], Path]) -> None:
    tree["tune"], tree["evaluation"]["dev_prompts"] = copy.deepcopy(TUNE), 8
    tune = load_experiment(write_experiment(tree)).tune
    assert tune is not None
    assert (tune.trials, tune.seeds) == (2, (1000,))
    assert tune.grids["apo_rjs"] == {"player.learning_rate": (1e-3, 1e-4), "apo_coeff": (0.1, 1.0)}


def test_an_arm_with_a_dot_in_its_name_is_not_tuned(tree: Tree, write_experiment: Callable[[Tree], Path]) -> None:
    """A setting is a dotted key of the experiment: arms.v1.2.learning_rate would be another arm's."""
    tree["arms"]["v1.2"] = tree["arms"]["rjs"]
    path = write_experiment(tree)
    assert "v1.2" in load_experiment(path).arms
    tree["tune"], tree["evaluation"]["dev_prompts"] = copy.deepcopy(TUNE), 8
    tree["tune"]["grids"]["v1.2"] = TUNE["grids"]["rjs"]
    assert refusal(write_experiment(tree)).startswith(f"{path}: tune.grids.v1.2: an arm with a dot in its name cannot be tuned")


def test_an_arms_own_budget_replaces_the_experiments_unit_by_unit(tree: Tree, write_experiment: Callable[[Tree], Path]) -> None:
    tree["arms"]["rjs"]["budget"] = {"human_pairs": 40, "flops": 1e12}
    experiment = load_experiment(write_experiment(tree))
    assert experiment.budget == {"human_pairs": 100, "golden_responses": 20}
    assert experiment.budget_of("rjs") == {"human_pairs": 40, "golden_responses": 20, "flops": 1e12}
    assert experiment.budget_of("apo_rjs") == experiment.budget_of("somebody else") == experiment.budget
    assert "budget" not in experiment.arms["rjs"].parameters  # it is no field of the method


BAD_TEXTS = {
    "twice": ("name: a\nname: b\n", "key 'name' occurs twice (line 2)"),
    "twice_deep": ("task:\n  use: a\n  use: b\n", "key 'use' occurs twice (line 3)"),
    "boolean_key": ("no: 1\n", "key False is not text (line 1)"),
    "list_key": ("? [1]\n: 2\n", "key [1] is not text (line 1)"),
    "broken": ("name: [\n", "not valid YAML (line 2)"),
    "unknown_tag": ("name: !!python/name:os.system x\n", "not valid YAML (line 1)"),
    "bytes": ("name: !!binary aGk=\n", "not plain data"),
    "itself": ("name: &a [*a]\n", "a value holds itself (line 1)"),
    "surrogate": ('name: "\\ud800"\n', "not JSON: "),
    "long_number": (f"seeds: [{'9' * 5000}]\n", "not valid YAML"),
    "deep": ("name: " + "[" * 1000 + "]" * 1000, "more than 100 levels (line 1)"),
    "empty": ("", "an experiment is a mapping of keys, got NoneType"),
    "list": ("- a\n", "an experiment is a mapping of keys, got list"),
    "control": ("name: \x00\n", "not valid YAML"),
}


@pytest.mark.parametrize(("text", "expected"), BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_bad_files(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    assert refusal(path).startswith(f"{path}: {expected}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.yaml") == f"{tmp_path / 'absent.yaml'}: no such file"
    assert refusal(tmp_path) == f"{tmp_path}: Is a directory"
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    assert refusal(tmp_path / "latin.yaml") == f"{tmp_path / 'latin.yaml'}: not UTF-8 (byte 6)"


def test_an_override_that_goes_through_a_value(tree: Tree, write_experiment: Callable[[Tree], Path]) -> None:
    assert refusal(write_experiment(tree), {"seeds.0": 1}) == "--set seeds.0: 'seeds' is not a mapping"


# --- misspelt keys -------------------------------------------------------------------------------------------------------------


def lines(path: Path) -> list[str]:
    """What is wrong with a file, a line each, without its name."""
    with pytest.raises(InputError) as caught:
        load_experiment(path)
    return [line.removeprefix(f"{path}: ") for line in getattr(caught.value, "lines", (str(caught.value),))]


def moved(tree: Tree, key: str, name: str) -> None:
    """Give the value of a dotted key another name."""
    *parents, last = key.split(".")
    at: Any = tree
    for parent in parents:
        at = at[int(parent) if isinstance(at, list) else parent]
    at[name] = at.pop(last)


MISSPELT = [  # key, its misspelling: that the key is then missing goes unsaid
    ("arms", "amrs"),
    ("seeds", "seed"),
    ("models", "model"),
    ("models.policy", "polcy"),
    ("models.policy.training", "trainng"),
    ("models.policy.training.learning_rate", "lr"),
    ("models.policy.training.learning_rate", "learning-rate"),
    ("models.policy.sampling.max_new_tokens", "max_tokens"),
    ("models.reward.kind", "knd"),
    ("models.reward.training.lora.target_modules", "target_module"),
    ("models.gold.0.model", "modle"),
    ("models.gold.0.name", "nmae"),
    ("evaluation.prompts", "prompt"),
    ("budget.human_pairs", "human_pair"),
    ("arms.rjs.use", "ues"),
    ("compare.primary", "primry"),
    ("compare.primary.0.matched", "match"),
    ("task.options", "option"),
]


@pytest.mark.parametrize(("key", "name"), MISSPELT, ids=[f"{key}-{name}" for key, name in MISSPELT])
def test_a_misspelt_key_is_named_with_the_right_name(tree: Tree, write_experiment: Callable[[Tree], Path], key: str, name: str) -> None:
    moved(tree, key, name)
    parent, _, last = key.rpartition(".")
    assert lines(write_experiment(tree)) == [f"{parent + '.' if parent else ''}{name}: no such key; did you mean {last!r}?"]


KINDS = "'neural', 'ngram', 'pretrained', 'judge' or 'ensemble'"
MATCHES = "'annotation', 'samples', 'updates' or 'flops'"
WRONG = [
    ("models.policy.learning_rate", 1, "no such key here; it belongs in models.policy.warmup or models.policy.training"),
    ("policy", {}, "no such key here; it belongs in models"),
    ("models.reward.kind", "nueral", f"{KINDS} is needed; did you mean 'neural'? (got 'nueral')"),
    ("models.reward.kind", ABSENT, f"missing; {KINDS} is needed"),
    ("models.gold.0.model.max_feature", 3, "no such key; did you mean 'max_features'?"),
    ("models.gold.0.seeds", 3, "a list is needed (got 3)"),
    ("models.gold", {"name": "x"}, "a list is needed (got a mapping)"),
    ("seeds", 3, "a list is needed (got 3)"),
    ("seeds", "0, 1", "a list is needed (got '0, 1')"),
    ("arms", ["rjs"], "a mapping is needed (got a list)"),
    ("arms.rjs", "x.py@X", "a mapping is needed (got 'x.py@X')"),
    ("arms.rjs.use", "x.py", "module@Class or file.py@Class is needed (got 'x.py')"),
    ("models.reward.training.lora.target_modules", 3, "a list or 'all-linear' is needed (got 3)"),
    ("models.reward.training.lora.target_modules", "all", "a list or 'all-linear' is needed (got 'all')"),
    ("models.policy.training.gradient_checkpointing", "yes", "true or false or 'auto' is needed (got 'yes')"),
    ("models.policy.training.epochs", "2", "a number is needed (got '2')"),
    ("models.policy.template_date", "soon", "a date such as 2025-01-31 is needed (got 'soon')"),
    ("compare.primary.0.matched", ["sample"], f"{MATCHES} is needed; did you mean 'samples'? (got 'sample')"),
    ("compare.round", "dev-best", "'final' or 'dev_best' is needed; did you mean 'dev_best'? (got 'dev-best')"),
    ("compare.scorer", "linaer", "no scorer named 'linaer'; scorers: gold, ground_truth, linear, proxy; did you mean 'linear'?"),
    ("compare.primary.0.a", "apo", "no arm named 'apo'; arms: rjs, apo_rjs; did you mean 'apo_rjs'?"),
    ("vary", {"world": [1]}, "too short, at least 2 needed"),
    ("name", "a b", "letters, digits, '_', '-', '.' are needed, at most 100, a letter or digit first (got 'a b')"),
    ("executor", "Local", "small letters, digits and '_' are needed, a letter first (got 'Local')"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "expected"), WRONG, ids=[f"{key}-{i}" for i, (key, _, _) in enumerate(WRONG)])
def test_what_is_wrong_is_a_single_line(tree: Tree, write_experiment: Callable[[Tree], Path], key: str, value: Any, expected: str) -> None:
    """No error that only follows from it (a list too short without its wrong member), and none of a kind that is not meant."""
    (line,) = lines(write_experiment(change(tree, key, value)))
    assert line.endswith(f": {expected}")
    assert line.startswith(key)


def test_all_errors_come_together_and_misspelt_keys_first(tree: Tree, write_experiment: Callable[[Tree], Path]) -> None:
    moved(tree, "arms", "amrs")
    tree["name"], tree["surplus"], tree["budget"]["flop"] = 3, 1, 3
    path = write_experiment(tree)
    first, surplus, flop, name = lines(path)
    assert first == "amrs: no such key; did you mean 'arms'?"
    assert surplus.startswith("surplus: no such key; keys: name, task, seeds, models, ")
    assert flop == "budget.flop: no such key; did you mean 'flops'?"
    assert name == "name: text is needed (got 3)"
    result = CliRunner().invoke(app, ["check", str(path)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [f"error: {path}: {line}" for line in (first, surplus, flop, name)]


def test_sections_that_do_not_agree_are_all_named(tree: Tree, write_experiment: Callable[[Tree], Path]) -> None:
    tree["compare"] |= {"primary": [{"a": "rs", "b": "q"}], "scorer": "silver"}
    assert [line.partition(";")[0] for line in lines(write_experiment(tree))] == [
        "compare.primary.0.a: no arm named 'rs'", "compare.primary.0.b: no arm named 'q'", "compare.scorer: no scorer named 'silver'",
    ]  # fmt: skip


def test_so_many_errors_are_counted(tree: Tree, write_experiment: Callable[[Tree], Path]) -> None:
    tree["seeds"] = ["x"] * 25
    every_line = lines(write_experiment(tree))
    assert (len(every_line), every_line[-1]) == (21, "and 5 more errors")


def test_errors_travel_between_processes() -> None:
    errors = InputErrors(["a: b", "c:\nd"])
    again = pickle.loads(pickle.dumps(errors))
    assert (again.lines, str(again)) == (errors.lines, str(errors)) == (("a: b", "c: d"), "a: b; and c: d")


# --- the same through the command line: status 2, one line, nothing written --------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("seeds", [0, 0], "seeds"),
        ("surplus", 1, "surplus"),
        ("compare.primary.0.b", "nobody", "compare.primary.0.b"),
        ("task.use", "no_such_task", "no_such_task"),
        ("task.options.no_such_option", 1, "no_such_option"),
        ("task.options.world_seed", "x", "world_seed"),
        ("arms.rjs.use", "baselines/absent.py@Absent", "arms.rjs: use: baselines/absent.py"),
        ("arms.rjs.depth", 3, "arms.rjs: unknown parameter 'depth'"),
        ("arms.rjs.rounds", "3", "arms.rjs.rounds"),
        ("arms.apo_rjs.player.depth", 3, "arms.apo_rjs.player: unknown parameter 'depth'"),
        ("compare.axes", ["honest"], "compare.axes"),
        ("compare.primary.0.a", "rjs", "compare: arm 'rjs' is compared with itself"),
        ("models.policy.architecture.hiden_size", 8, "models.policy.architecture.hiden_size"),
        ("models.policy.architecture.model_type", "lama", "models.policy.architecture.model_type"),
        ("models.reward.architecture.num_attention_heads", 3, "models.reward.architecture"),
        ("evaluation.prompts", 10**6, "evaluation.prompts"),
    ],
)
def test_a_refused_run_writes_nothing(
    tree: Tree, write_experiment: Callable[[Tree], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any, named: str
) -> None:
    path = write_experiment(change(tree, key, value))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    before = sorted(path.parent.iterdir())
    result = CliRunner().invoke(app, ["run", str(path)])
    assert result.exit_code == 2, result.output
    assert [line.startswith("error: ") for line in result.stderr.splitlines() if not line.startswith("reading ")] == [True]
    assert result.stdout == ""
    assert named in result.stderr
    assert str(path) in result.stderr
    assert not list(here.iterdir())
    assert sorted(path.parent.iterdir()) == before


# --- mutations ---------------------------------------------------------------------------------------------------------------


def places(tree: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a tree."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [*([before] if before else []), *(place for key, value in inner for place in places(value, (*before, key)))]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@given(st.sampled_from(places(EXPERIMENT)), JUNK, st.sampled_from(["replace", "remove", "add"]))
def test_a_mutated_experiment_loads_or_is_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...], junk: Any, how: str
) -> None:
    """Whatever value stands wherever: an Experiment or an InputError that starts with the file, never another exception."""
    tree: Any = copy.deepcopy(EXPERIMENT)
    at = tree
    for key in place[:-1]:
        at = at[key]
    if how == "remove":
        del at[place[-1]]
    elif how == "add" and isinstance(at, dict):
        at[str(junk)] = junk
    else:
        at[place[-1]] = junk
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    try:
        answer = load_experiment(path)
    except InputError as error:
        answer = str(error)
    if isinstance(answer, str):
        assert answer.startswith(f"{path}: ")
        assert len(answer.splitlines()) == 1
        assert not any(words in answer for words in ("Input should", "Extra inputs", "Field required", "validation", "another value"))
    else:
        assert isinstance(answer, Experiment)


def test_an_experiment_without_display_names_is_written_without_the_key() -> None:
    tree = copy.deepcopy(EXPERIMENT)
    assert "names" not in Experiment.model_validate(tree).model_dump(mode="json")["report"]
    arm = next(iter(tree["arms"]))
    tree["report"] = {"names": {arm: "Shown"}}
    assert Experiment.model_validate(tree).model_dump(mode="json")["report"]["names"] == {arm: "Shown"}

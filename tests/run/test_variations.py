"""What varies, level by level; and a real experiment in two worlds, from its file to the spread."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import write_experiment
from hypothesis import given
from hypothesis import strategies as st
from tiny_world import tiny_tree

from apo_bench.config.load import load_experiment, read_experiment
from apo_bench.config.schema import Experiment
from apo_bench.config.variations import Variation, variations
from apo_bench.errors import InputError
from apo_bench.run import pipeline
from apo_bench.run import variations as variation
from apo_bench.run.experiment import ResolvedExperiment
from apo_bench.run.jobs import Failure
from apo_bench.run.validate import check_experiment
from apo_bench.run.variations import run_variations

OTHER_GOLD = {"name": "other", "model": {"kind": "ngram", "ngrams": [1, 1]}, "seeds": [5]}


def experiment(vary: dict[str, Any], **policy: Any) -> Experiment:
    tree = tiny_tree() | {"vary": vary}
    tree["models"]["policy"] |= policy
    return Experiment.model_validate_json(json.dumps(tree))


def test_nothing_varies() -> None:
    assert variations(experiment({})) == ()


def test_a_number_is_a_seed() -> None:
    """Of the world, of the initial policy, and the only seed of every gold model."""
    worlds = variations(experiment({"world": [3, 1]}))
    assert worlds == (
        Variation("world=3", {"world": 3}, {"task.options.world_seed": 3, "vary": {}}),
        Variation("world=1", {"world": 1}, {"task.options.world_seed": 1, "vary": {}}),
    )
    assert variations(experiment({"initial_policy": [0, 7]}))[1].overrides == {"models.policy.seed": 7, "vary": {}}
    gold = variations(experiment({"gold": [0, 7]}))[1]
    (only,) = gold.overrides["models.gold"]
    assert (gold.label, only["name"], only["model"]["kind"], only["seeds"]) == ("gold=7", "linear", "ngram", [7])


def test_a_mapping_replaces_fields() -> None:
    small, dotted = variations(experiment({"world": [{"prompts_per_cluster": 2, "world_seed": 4}, {"expert_share.helpful": 1}]}))
    assert small.overrides == {"task.options.prompts_per_cluster": 2, "task.options.world_seed": 4, "vary": {}}
    assert dotted.overrides == {"task.options.expert_share.helpful": 1, "vary": {}}
    assert variations(experiment({"gold": [OTHER_GOLD, 0]}))[0].overrides["models.gold"] == [OTHER_GOLD]
    as_is, other = variations(experiment({"initial_policy": [{}, {"path": "org/model-b", "architecture": None, "warmup": None}]}))
    assert (as_is.label, as_is.overrides) == ("initial_policy=as_is", {"vary": {}})
    assert other.label == "initial_policy=model-b"
    assert other.overrides["models.policy.architecture"] is None


def test_factors_are_crossed_the_last_one_fastest() -> None:
    variations_ = variations(experiment({"world": [0, 1], "gold": [4, 5]}))
    assert [variation_.label for variation_ in variations_] == ["world=0,gold=4", "world=0,gold=5", "world=1,gold=4", "world=1,gold=5"]
    assert [variation_.levels for variation_ in variations_[1:3]] == [{"world": 0, "gold": 5}, {"world": 1, "gold": 4}]
    assert set(variations_[2].overrides) == {"task.options.world_seed", "models.gold", "vary"}


def test_a_dotted_key_takes_a_value_at_each_level() -> None:
    """Its last word names it; levels are kept as they are written."""
    parts = variations(experiment({"world": [0, 1], "budget.human_pairs": [10, 20.5]}))
    assert [part.label for part in parts[:2]] == ["world=0,human_pairs=10", "world=0,human_pairs=20.5"]
    assert parts[1].levels == {"world": 0, "human_pairs": 20.5}
    assert parts[3].overrides == {"task.options.world_seed": 1, "budget.human_pairs": 20.5, "vary": {}}


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ({"worlds": [0, 1]}, "vary.worlds: world, initial_policy, gold, or a dotted key"),
        ({"a.world": [0, 1]}, "vary.a.world: "),
        ({"a.b": [0, 1], "c.b": [0, 1]}, "vary.a.b: "),
        ({"world": [0, 0.5]}, "vary.world.1: a seed, or fields in a mapping, is needed, got 0.5"),
        ({"a.b": [0, {"c": 1}]}, "vary.a.b.1: a plain value is needed"),
    ],
)
def test_factors_that_mean_nothing(vary: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        experiment(vary)


def test_names_of_mappings_are_their_values() -> None:
    """Of a path the last part; seeds keep their number, and what is equal in a path without case is numbered."""
    levels = [{"a": 1}, 1, {"a": "/home/x/Model"}, {"a": {"b": ["model", None]}}, {"a": "ä/.."}, {"a": "x" * 99}]
    labels = [variation_.label.removeprefix("world=") for variation_ in variations(experiment({"world": levels}))]
    assert labels == ["1-2", "1", "Model", "model-2", "as_is", "x" * 24]


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ({"world": [0, 1, 0]}, "vary.world.2: the same as vary.world.0"),
        ({"world": [1, {"world_seed": 1}]}, "vary.world.1: the same as vary.world.0"),
        ({"world": [0, 1], "gold": [OTHER_GOLD, OTHER_GOLD]}, "vary.gold.1: the same as vary.gold.0"),
    ],
)
def test_levels_that_are_the_same(vary: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        variations(experiment(vary))
    assert str(caught.value) == message


def test_a_seed_of_a_policy_needs_an_architecture() -> None:
    fixed = experiment({"initial_policy": [{}, 1]}, architecture=None, warmup=None, path="a/b")
    with pytest.raises(InputError, match=r"^vary.initial_policy.1: a seed needs a models.policy.architecture"):
        variations(fixed)


VALUES = st.one_of(st.integers(0, 50), st.text(max_size=8), st.none(), st.lists(st.integers(0, 3), max_size=2))
SEEDS = st.integers(0, 9)
WORLDS = st.one_of(SEEDS, st.dictionaries(st.sampled_from(["world_seed", "expert_share", "any"]), VALUES, max_size=3))
POLICIES = st.one_of(SEEDS, st.fixed_dictionaries({"seed": SEEDS, "max_prompt_tokens": st.integers(1, 99)}))
GOLDS = st.one_of(SEEDS, st.fixed_dictionaries({"name": st.sampled_from(["a", "b_1"]), "model": st.just({"kind": "ngram"})}))
VARY = st.fixed_dictionaries(
    {},
    optional={
        "world": st.lists(WORLDS, min_size=2, max_size=4),
        "initial_policy": st.lists(POLICIES, min_size=2, max_size=3),
        "gold": st.lists(GOLDS, min_size=2, max_size=3),
    },
)


def _effect(factor: str, level: Any) -> Any:
    """A seed spelt as the field it sets, so that levels that do the same are equal."""
    seed = {"world": "world_seed", "initial_policy": "seed", "gold": "seeds of all"}[factor]
    return {seed: level} if isinstance(level, int) else level


@pytest.mark.slow
@given(VARY)
def test_labels_are_distinct_and_safe_and_every_variation_loads(tmp_path_factory: pytest.TempPathFactory, vary: dict[str, Any]) -> None:
    """Whatever the levels are: unless two are the same, every combination is an experiment that does not vary."""
    path = tmp_path_factory.getbasetemp() / "property.yaml"
    path.write_text(json.dumps(tiny_tree() | {"vary": vary}))
    effects = {factor: [_effect(factor, level) for level in levels] for factor, levels in vary.items()}
    if any(variation_ in levels[:place] for levels in effects.values() for place, variation_ in enumerate(levels)):
        with pytest.raises(InputError, match=r": the same as vary\."):
            variations(load_experiment(path))
        return
    variations_ = variations(load_experiment(path))
    labels = [variation_.label.lower() for variation_ in variations_]
    assert len(set(labels)) == len(labels)
    for variation_ in variations_:
        assert all(part.count("=") == 1 and part.isprintable() and "/" not in part for part in variation_.label.split(","))
        loaded = load_experiment(path, variation_.over(None))
        assert loaded.vary == {}
        for factor, level in variation_.levels.items():
            if isinstance(level, int):
                seeds = {"world": loaded.task.options.get("world_seed"), "initial_policy": loaded.models.policy.seed}
                assert level == seeds[factor] if factor != "gold" else {gold.seeds for gold in loaded.models.gold} == {(level,)}


def test_a_variation_comes_after_the_users_overrides_and_leaves_them_alone(tmp_path: Path) -> None:
    """Replacing all options, and the factor itself, does not undo a level; a mapping given once reaches every variation unchanged."""
    path = write_experiment(tmp_path, tiny_tree())
    overrides = {"task.options": {"prompts_per_cluster": 2}, "vary.world": [{"expert_share": {"a": 1}}, 5], "vary": {"world": [5, 6]}}
    before = copy.deepcopy(overrides)
    first, second = variations(load_experiment(path, {"vary": {"world": [{"label_temperature": 2.0}, 6]}}))
    assert load_experiment(path, first.over(overrides)).task.options == {"prompts_per_cluster": 2, "label_temperature": 2.0}
    assert load_experiment(path, second.over(overrides)).task.options == {"prompts_per_cluster": 2, "world_seed": 6}
    assert overrides == before


# --- check -----------------------------------------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        check_experiment(path)
    return str(caught.value)


@pytest.mark.slow
def test_check_takes_every_variation(tmp_path: Path) -> None:
    tree = tiny_tree() | {"vary": {"world": [0, {"pairs_per_prompt": 2}]}}
    assert check_experiment(write_experiment(tmp_path, tree), sizes=False) == []
    tree["vary"]["world"].append({"pair_per_prompt": 3})
    path = write_experiment(tmp_path, tree)
    assert refused(path).startswith(f"{path}: vary: world=3: ")
    assert "options.pair_per_prompt: no such option" in refused(path)


def test_check_says_which_variations_a_note_is_about(tmp_path: Path) -> None:
    """Both budgets are noted: 0 golden responses in both variations, a hub id in one."""
    tree = tiny_tree()
    tree["budget"]["golden_responses"] = 0
    tree["vary"] = {"initial_policy": [{}, {"path": "a/b", "architecture": None, "warmup": None}]}
    assert check_experiment(write_experiment(tmp_path, tree), sizes=False) == [
        "budget.golden_responses: 0, so an arm that needs any fails",
        "initial_policy=b: models.policy.path: a/b is taken for a hub id and was not checked",
    ]


def test_check_refuses_a_world_seed_that_the_task_does_not_have(tmp_path: Path) -> None:
    tree = tiny_tree() | {"task": "hh", "vary": {"world": [{}, 1]}}
    tree["models"]["policy"] |= {"path": "a/b", "architecture": None, "warmup": None}
    path = write_experiment(tmp_path, tree)
    assert refused(path).startswith(f"{path}: vary.world.1: task hh has no option world_seed; options: ")


def test_check_names_file_and_key_of_a_bad_level(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, tiny_tree() | {"vary": {"gold": [0, -1]}})
    assert refused(path).startswith(f"{path}: vary: gold=-1: models.gold.0.seeds.0: ")
    path = write_experiment(tmp_path, tiny_tree() | {"vary": {"world": [0, 0]}})
    assert refused(path) == f"{path}: vary.world.1: the same as vary.world.0"
    path = write_experiment(tmp_path, tiny_tree() | {"vary": {"worlds": [0, 1]}})
    assert refused(path).startswith(f"{path}: vary.worlds: ")


# --- runs ------------------------------------------------------------------------------------------------------------------------


def test_bad_input_writes_nothing(tmp_path: Path) -> None:
    path, out = write_experiment(tmp_path / "experiments", tiny_tree() | {"vary": {"gold": [0, -1]}}), tmp_path / "out"
    with pytest.raises(InputError, match=r"tiny\.yaml: models\.gold\.0\.seeds\.0: "):
        run_variations(read_experiment(path), out)
    with pytest.raises(InputError, match=r"tiny\.yaml: vary\.gold\.1: the same as vary\.gold\.0"):
        run_variations(read_experiment(path, {"vary.gold": [0, 0]}), out)
    assert not out.exists()


def test_the_folder_of_an_ordinary_run_is_left_alone(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, tiny_tree() | {"vary": {"world": [0, 1]}})
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds a run without vary; give another folder or name$"):
        run_variations(read_experiment(path), tmp_path)
    assert sorted(path_.name for path_ in tmp_path.iterdir()) == ["manifest.json", "tiny.yaml"]


@pytest.mark.slow
def test_what_fails_in_one_variation_leaves_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A level that only the runner refuses (the task has no such option), and an arm that fails: both are named, in order."""
    path = write_experiment(tmp_path, tiny_tree() | {"vary": {"world": [{"absent": 1}, 8]}})
    calls: list[Any] = []

    def run(resolved: ResolvedExperiment, workers: int, variation: dict[str, Any], **_: Any) -> pipeline.RunResult:
        calls.append((json.loads(resolved.overrides), resolved.folder.name, workers, variation))
        return pipeline.RunResult(resolved.folder, (Failure("rjs", 1, "budget exceeded"),))

    monkeypatch.setattr(pipeline, "run", run)
    result = run_variations(read_experiment(path, {"seeds": [1]}), tmp_path / "out", 3)
    assert calls == [({"seeds": [1], "task.options.world_seed": 8, "vary": {}}, "world=8", 3, {"world": 8})]
    refused, failed = result.failures
    assert re.match(r"world=1: .*: options\.absent: no such option; ", refused)
    assert failed == "world=8: rjs, seed 1: budget exceeded"
    report = (result.folder / "report" / "report.md").read_text()
    assert "**No result**: no variation has a report." in report
    assert "world=8: no report" in report


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tiny_tree() | {"seeds": [0], "vary": {"world": [0, 1]}}
    tree["arms"]["apo_rjs"]["rounds"] = 1
    tree["models"]["gold"][0]["seeds"] = [0]
    tree["compare"]["scorer"] = "ground_truth"
    return write_experiment(tmp_path_factory.mktemp("experiments"), tree)


@pytest.fixture(scope="module")
def done(question: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "varied"
    result = run_variations(read_experiment(question), folder, workers=1)
    assert (result.folder, result.failures) == (folder, ())
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def artifacts(folder: Path) -> dict[str, int]:
    """When each artifact and record was made."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob("*/store/*/*")}


@pytest.mark.slow
def test_each_world_is_an_ordinary_run(question: Path, done: Path) -> None:
    assert sorted(path.name for path in done.iterdir()) == ["experiment.yaml", "report", "world=0", "world=1"]
    for seed in (0, 1):
        folder = done / f"world={seed}"
        assert load_experiment(folder / "experiment.yaml").task.options["world_seed"] == seed
        assert json.loads((folder / "manifest.json").read_text())["variation"] == {"world": seed}
        assert (folder / "report" / "report.md").is_file()
    worlds = [(done / f"world={seed}" / "tables" / "scores.parquet").read_bytes() for seed in (0, 1)]
    assert worlds[0] != worlds[1]
    assert load_experiment(done / "experiment.yaml") == load_experiment(question)


@pytest.mark.slow
def test_the_spread_is_made_of_the_worlds_contrasts(done: Path) -> None:
    """The mean over two worlds is half the sum of their differences, and two levels have no p-value."""
    import pandas as pd

    (row,) = pd.read_csv(done / "report" / "tables" / "spread.csv").query("family == 'primary'").to_dict("records")
    contrasts = [
        pd.read_csv(done / f"world={seed}" / "report" / "tables" / "contrasts.csv").query("family == 'primary'") for seed in (0, 1)
    ]
    first, second = (float(contrast["difference"].iloc[0]) for contrast in contrasts)
    assert (row["difference.world=0"], row["difference.world=1"]) == (first, second)
    assert row["mean"] == pytest.approx((first + second) / 2, abs=1e-12)
    assert row["sd"] == pytest.approx(abs(first - second) / 2**0.5, rel=1e-9)
    assert pd.isna(row["p_value"])
    assert (row["n_variations"], row["scope"], row["test"]) == (2, "new worlds", "none: two levels give an interval only")


@pytest.mark.slow
def test_replay_computes_nothing_and_rebuilding_changes_no_byte(question: Path, done: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before, times = everything(done), artifacts(done)
    assert any("arm_seeds" in name for name in times)
    assert run_variations(read_experiment(question), done, workers=1).failures == ()
    assert artifacts(done) == times
    assert capfd.readouterr().err.splitlines() == ["variation 1/2: world=0", "variation 2/2: world=1", "report: over all variations"]
    assert variation.is_varied(done)
    assert not variation.is_varied(done / "world=0")
    assert variation.rebuild(done) == done / "report" / "report.md"
    assert everything(done) == before


def test_nothing_to_rebuild(question: Path, tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text(question.read_text())
    with pytest.raises(InputError, match="no variation has finished"):
        variation.rebuild(tmp_path)

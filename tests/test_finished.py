"""Experiments whose arms are already trained: two checkpoints and a file of responses beside a trained arm, from check to report."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from command_line import write_experiment
from foreign_models import POLICY, adapter_folder, policy_folder, tokenizer
from tiny_world import RJS, SMALL_TURN, smallest_tree, tiny_task

from apo_bench.config.plugins import resolve
from apo_bench.config.schema import FinishedModel
from apo_bench.errors import InputError
from apo_bench.exchange.export_model import export_model
from apo_bench.finished import Finished
from apo_bench.lab.ledger import UNITS
from apo_bench.models import adapters
from apo_bench.models.policy import load_policy
from apo_bench.plan.make_plan import plan
from apo_bench.run import pipeline
from apo_bench.run.experiment import resolve_experiment
from apo_bench.run.pipeline import RunResult
from apo_bench.run.validate import check_experiment

FINISHED = "apo_bench.finished@Finished"
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"


def method(**parameters: Any) -> Finished:
    return resolve(FINISHED, json.loads(json.dumps(parameters)), base=None, arm="arms.x")


def test_paths_by_seed_and_by_round() -> None:
    assert method(policies="a").rounds(3) == ("a",)
    assert method(policies=["a", "b"]).rounds(3) == ("a", "b")
    assert method(adapters={0: ["a", "b"], 1: ["c", "d"]}).rounds(1) == ("c", "d")
    assert method(responses={0: "a", 1: "b"}, cost={"flops": 1e18}).cost == {"flops": 1e18}
    assert method(policies="a", model={"system_prompt": None, "max_prompt_tokens": 9}).model == FinishedModel(
        system_prompt=None, max_prompt_tokens=9
    )
    with pytest.raises(InputError, match="Finished: nothing for seed 2; it has seeds 0, 1"):
        method(policies={0: "a", 1: "b"}).rounds(2)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({}, "give exactly one of policies, adapters and responses"),
        ({"policies": "a", "responses": "b"}, "give exactly one of policies, adapters and responses"),
        ({"policies": "a", "base": "b"}, "base goes with adapters"),
        ({"policies": "a", "cost": {"dollars": 3}}, "cost.dollars: no such key; keys: human_pairs, "),
        ({"policies": "a", "model": {"temperature": 1}}, "model.temperature: no such key"),
    ],
)
def test_what_it_refuses(parameters: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        method(**parameters)


def response_file(path: Path, lacking: int = 2) -> Path:
    """Responses to the test prompts in AlpacaEval's form, but to some of them."""
    prompts = tiny_task().prompts["test"][lacking:]
    rows = [{"instruction": prompt.messages[0].content, "output": "rinse it", "generator": "m"} for prompt in prompts]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with two checkpoints of it, and a model of another vocabulary and template."""
    folder = tmp_path_factory.mktemp("files")
    for number, name in enumerate(("base", "first", "second")):
        policy_folder(folder / name, initializer_range=0.2 + 0.01 * number)
    own = tokenizer()
    own.add_tokens(["wash"])
    own.chat_template = TEMPLATE
    policy_folder(folder / "other", own)
    response_file(folder / "outputs.json")
    adapter_folder(folder / "first", folder / "lora")
    return folder


def finished_tree(files: Path) -> dict[str, Any]:
    tree = smallest_tree()
    tree["models"]["policy"] = {**POLICY, "path": str(files / "base")}
    tree["evaluation"] |= {"prompts": None, "dev_prompts": 6}
    tree["judges"] = {"sim": {"use": "apo_bench.judging.simulated_judge@SimulatedJudge"}}
    tree["judging"] = {"prompts": 12, "audit_pairs": 4}
    tree["arms"] = {
        "rjs": {"use": RJS, "rounds": 1, **SMALL_TURN, "prompts_per_round": 4},
        "checkpoints": {"use": FINISHED, "policies": {0: [str(files / "first"), "second"], 1: ["second", "base"]}},
        "other": {
            "use": FINISHED, "policies": str(files / "other"), "model": {"system_prompt": None, "max_prompt_tokens": 80},
            "cost": {"flops": 1e15, "human_pairs": 32},
        },
        "file": {"use": FINISHED, "responses": "outputs.json"},
        "lora": {"use": FINISHED, "adapters": {0: "lora", 1: "lora"}},
    }  # fmt: skip
    tree["compare"] = {
        "primary": [{"a": "checkpoints", "b": "rjs", "matched": ["annotation", "flops"]}],
        "secondary": [{"a": "other", "b": "rjs", "matched": ["annotation"]}, {"a": "file", "b": "rjs"}],
    }
    return tree


@pytest.fixture(scope="module")
def experiment(files: Path) -> Path:
    return write_experiment(files, finished_tree(files))


@pytest.fixture(scope="module")
def done(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    result = pipeline.run(resolve_experiment(experiment, None, tmp_path_factory.mktemp("runs") / "finished"), workers=1)
    assert result.failures == ()
    return result


def table(done: RunResult, name: str) -> pd.DataFrame:
    return pd.read_parquet(done.folder / "tables" / f"{name}.parquet")


@pytest.mark.slow
def test_check_says_what_is_the_same_and_what_is_lacking(experiment: Path) -> None:
    notes = "\n".join(check_experiment(experiment))
    assert "arms.other: one for all 2 seeds, which then differ by sampling alone, if at all" in notes
    assert "arms.checkpoints: one for all" not in notes
    assert f"arms.file.responses: outputs.json: 2 of the task's {len(tiny_task().prompts['test'])} test prompts are not in it" in notes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "reason"),
    [
        ({"policies": "./nowhere"}, r"arms.x.policies: './nowhere': no such model folder"),
        ({"policies": {0: "base"}}, "arms.x: Finished: nothing for seed 1; it has seeds 0"),
        ({"policies": {0: "base", 1: ["base", "first"]}}, "arms.x: 2 rounds in seed 1, 1 in seed 0"),
        ({"adapters": "base"}, r"arms.x.adapters: base: it holds no adapters \(no adapter_config.json\)"),
        ({"responses": "none.json"}, "arms.x.responses: none.json: not readable: .*No such file"),
        ({"responses": "unmatched.jsonl"}, "arms.x.responses: unmatched.jsonl: none of the task's .* test prompts is in it"),
        ({"policies": "base", "model": {"max_prompt_tokens": 9999}}, "arms.x.policies.max_prompt_tokens, with the longest response"),
    ],
)
def test_check_refuses(files: Path, tmp_path: Path, arm: dict[str, Any], reason: str) -> None:
    (files / "unmatched.jsonl").write_text(json.dumps({"prompt": "nobody asks this", "response": "no"}))
    tree = finished_tree(files)
    tree["arms"]["x"] = {"use": FINISHED, **arm}
    path = files / f"{tmp_path.name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(InputError, match=reason):
        check_experiment(path)


@pytest.mark.slow
def test_every_arm_has_its_rounds_and_scores(done: RunResult) -> None:
    scores = table(done, "scores")
    last = scores.groupby("arm")["round"].max().to_dict()
    assert last == {"rjs": 1, "checkpoints": 2, "other": 1, "file": 1, "lora": 1}
    by_round = scores[scores["scorer"] == "linear"].groupby(["arm", "round"])["prompt_id"].nunique()
    n = len(tiny_task().prompts["test"])
    assert (by_round["checkpoints", 2], by_round["file", 1]) == (n, n - 2)
    metrics = table(done, "metrics")
    assert set(metrics.loc[metrics["metric"] == "unmatched", "value"]) == {2.0}
    lengths = scores[(scores["arm"] == "file") & (scores["round"] == 1) & (scores["scorer"] == "length")]
    assert set(lengths["value"]) == {len("rinse it") + 1.0}  # a byte a token, and an end


@pytest.mark.slow
def test_they_are_judged_and_chosen_on_dev_where_that_can_be(done: RunResult) -> None:
    """A file of responses to test prompts has none to dev prompts, and so no dev score."""
    judged = table(done, "judgments").groupby(["arm_a", "arm_b"])["value"].count()
    assert {("checkpoints", "rjs"), ("other", "rjs"), ("file", "rjs")} == set(judged.index)
    assert (judged > 0).all()
    metrics = table(done, "metrics")
    scored = metrics[(metrics["metric"] == "dev_score") & (metrics["round"] > 0)]
    assert set(scored["arm"]) == {"rjs", "checkpoints", "other", "lora"}


@pytest.mark.slow
def test_kl_is_known_where_vocabularies_are_equal(done: RunResult) -> None:
    """The second round of seed 1 is the initial policy itself."""
    metrics = table(done, "metrics")
    kl = metrics[(metrics["metric"] == "kl") & (metrics["axis"] == "all") & (metrics["round"] > 0)].set_index(["arm", "seed", "round"])[
        "value"
    ]
    assert set(kl.index.get_level_values("arm")) == {"rjs", "checkpoints", "lora"}
    assert kl["checkpoints", 1, 2] == 0.0
    assert kl["checkpoints", 0, 1] > 0


@pytest.mark.slow
def test_what_is_not_known_matches_nothing_and_what_is_declared_matches(done: RunResult) -> None:
    ledger = table(done, "ledger").set_index(["arm", "seed", "unit"])["used"]
    assert all(math.isnan(ledger["checkpoints", 0, unit]) for unit in UNITS)
    assert (ledger["other", 1, "flops"], ledger["other", 1, "human_pairs"]) == (1e15, 32)
    budget = pd.read_csv(done.folder / "report" / "tables" / "budget.csv").set_index(["arm_a", "unit"])["matched"]
    assert (budget["checkpoints", "human_pairs"], budget["checkpoints", "flops"]) == ("unknown", "unknown")
    assert (budget["other", "human_pairs"], budget["other", "flops"], budget["other", "golden_responses"]) == ("yes", "no", "unknown")


@pytest.mark.slow
def test_the_report_says_what_is_known_and_what_is_declared(done: RunResult) -> None:
    """In its own section, in the tables of costs and scores, in the answer, and in the scope of contrasts."""
    report = " ".join((done.folder / "report" / "report.md").read_text().split())
    prompts = len(tiny_task().prompts["test"])
    for text in (
        "## Arms that were trained elsewhere",
        "one checkpoint for all 2 seeds, so nothing is shown of other trainings like it",
        "1.000e+15 flops, 32 human_pairs a seed are **declared**, not metered; what else it cost is not known, and matches nothing",
        "KL to the initial policy not known: its vocabulary is not the initial policy's",
        "KL to the initial policy not known: responses in a file have none",
        f"2 of {prompts} test prompts are not in the file, and are left out",
        "| `other` | 1 | 2, of one checkpoint |",
        "| `file` | 1 | 2, of one file |",
        "1.000e+15, declared |",
        "| `other` / `rjs` | human_pairs | 32 | 32 | 1.000 | annotation | yes | yes, as declared |",
        "| `checkpoints` / `rjs` | flops | not known |",
        "**Not known to match as declared:** `checkpoints` against `rjs`: flops not known against",
        "; of other this checkpoint only",
    ):
        assert text in report, text
    assert "of nan" not in report
    assert "nan %" not in report


@pytest.mark.slow
def test_a_win_rate_is_of_the_one_checkpoint(done: RunResult) -> None:
    """As the contrast by the gold model says; an arm with a checkpoint a seed is not marked."""
    tables = done.folder / "report" / "tables"
    scopes = pd.read_csv(tables / "judged.csv").groupby("arm_a")["scope"].unique()
    assert all("; of other this checkpoint only" in scope or scope == "no result" for scope in scopes["other"])
    assert not any("checkpoint only" in scope for scope in scopes["checkpoints"])
    contrasts = pd.read_csv(tables / "contrasts.csv")
    assert not contrasts["scope"].str.contains("only; of .* only").any()


@pytest.mark.slow
def test_a_finished_policy_is_exported_as_a_copy(done: RunResult, files: Path, tmp_path: Path) -> None:
    """Weights and template are those at its place, adapters are merged into their base; one that has moved away is a line."""
    import torch

    for arm, source in (("other", load_policy(files / "other")[0]), ("lora", _with_lora(files))):
        model, own = load_policy(export_model(done.folder, arm, 0, None, tmp_path / arm))
        ids = torch.arange(3, 40)[None]
        with torch.no_grad():
            assert torch.allclose(model(ids).logits, source(ids).logits, atol=1e-4)
        assert own.chat_template == (TEMPLATE if arm == "other" else tokenizer().chat_template)
    (files / "other").rename(files / "moved")
    try:
        with pytest.raises(InputError, match=r"the policy lies at .*other, which is not there any more"):
            export_model(done.folder, "other", 1, None, tmp_path / "again")
    finally:
        (files / "moved").rename(files / "other")


def _with_lora(files: Path) -> Any:
    return adapters.readable(adapters.load(load_policy(files / "first")[0], files / "lora"))


@pytest.mark.slow
def test_a_plan_knows_that_it_does_not_know(experiment: Path) -> None:
    resolved = resolve_experiment(experiment)
    planned = plan(resolved.experiment, resolved.task, base=resolved.base)
    used = planned.used()
    assert all(math.isnan(used["checkpoints"][unit]) for unit in UNITS)
    assert used["other"]["flops"] == 1e15
    assert planned.saved["sampled_responses"] == (2 * 8, 2 * 8)  # of rjs alone
    assert "checkpoints is already trained: what it cost is not known, and matches nothing. Its evaluation is counted." in planned.notes
    assert not planned.failures


@pytest.mark.slow
def test_a_replay_computes_nothing(done: RunResult, experiment: Path) -> None:
    preview = pipeline.preview(resolve_experiment(experiment, None, done.folder))
    assert all(is_finished for _, is_finished in preview)

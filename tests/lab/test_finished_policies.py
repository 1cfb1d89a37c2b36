"""Finished policies behind the Lab: where their weights lie, what they answer, what they cost, and how far they are from the start."""

import json
import math
from pathlib import Path

import pytest
import torch
from foreign_models import adapter_folder, policy_folder, tokenizer
from tiny_world import tiny_bench, tiny_lab

from apo_bench.config.schema import FinishedModel, PolicyModel
from apo_bench.errors import InputError
from apo_bench.evaluation.context import EvaluationContext
from apo_bench.evaluation.evaluate import RoundEvaluation
from apo_bench.lab.ledger import UNITS
from apo_bench.losses import RankingLoss, SFTLoss
from apo_bench.models import adapters
from apo_bench.models.policy import load_policy, save_model
from apo_bench.models.tokenize import ChatFormat
from apo_bench.types import BestOfNPolicy, Demonstration, FinishedPolicy, Policy, Round

pytestmark = pytest.mark.slow
OTHER_TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    return tiny_bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def folder(bench: EvaluationContext, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The initial policy after some training, in a folder of its own."""
    lab = tiny_lab(bench, arm="elsewhere", seed=9)
    prompts = lab.prompts("policy", 6)
    demonstrations = [Demonstration(prompt, bench.task.pairs["rm"][0].chosen) for prompt in prompts]
    trained = lab.train_policy(lab.initial_policy, demonstrations, SFTLoss(), epochs=3.0)
    return copied(bench, trained, tmp_path_factory.mktemp("trained"))


def stored(bench: EvaluationContext, policy: Policy) -> Path:
    return bench.store.root / "policies" / policy.key


def copied(bench: EvaluationContext, policy: Policy, into: Path) -> Path:
    save_model(*load_policy(stored(bench, policy)), into)
    return into


def test_it_stays_where_it_is_and_answers_as_in_the_store(bench: EvaluationContext, folder: Path) -> None:
    """A copy of a stored policy has its answers; the artifact that stands for it has no weights; its cost is not known, whatever it did."""
    lab = tiny_lab(bench)
    prompts = lab.prompts("policy", 4)
    policy = lab.finished_policy(str(folder))
    assert [path.name for path in stored(bench, policy).glob("*.safetensors")] == []
    texts = [response.text for response in lab.sample(policy, prompts, n=2)]
    other = copied(bench, bench.initial_policy, folder.parent / "copy_of_initial")
    same, initial = lab.sample(lab.finished_policy(str(other)), prompts, n=2), lab.sample(lab.initial_policy, prompts, n=2)
    assert [(row.text, row.tokens) for row in same] == [(row.text, row.tokens) for row in initial]
    assert texts != [row.text for row in initial]
    assert all(math.isnan(lab.used[unit]) for unit in UNITS)


def test_one_artifact_for_all_seeds_by_content(bench: EvaluationContext, folder: Path, tmp_path: Path) -> None:
    """The same files elsewhere are the same policy, other settings another."""
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in folder.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    first, second = (tiny_lab(bench, seed=seed) for seed in (0, 1))
    policy = first.finished_policy(str(folder))
    assert policy.key == second.finished_policy(str(moved)).key
    assert policy.key != first.finished_policy(str(folder), model=FinishedModel(max_prompt_tokens=8)).key


def test_declared_costs_are_charged_once(bench: EvaluationContext, folder: Path) -> None:
    """Two rounds, one declared cost; sampling here is added to it, and other units stay unknown."""
    lab, cost = tiny_lab(bench), {"flops": 1e15, "human_pairs": 7, "sampled_responses": 5}
    first, policy = (lab.finished_policy(str(folder), cost=cost) for _ in range(2))  # pyright: ignore[reportArgumentType]
    assert first == policy
    assert (lab.used["flops"], lab.used["human_pairs"]) == (1e15, 7)
    assert math.isnan(lab.used["policy_updates"])
    lab.sample(policy, lab.prompts("policy", 3))
    assert lab.used["sampled_responses"] == 8
    assert sum(counts.get("human_pairs", 0) for counts in lab.charged.values()) == 7


def test_adapters_on_their_base(bench: EvaluationContext, folder: Path, tmp_path: Path) -> None:
    """They answer as the merged model does; the base is what peft noted, or what is given."""
    own = adapter_folder(folder, tmp_path / "adapters")
    base, its_tokenizer = load_policy(folder)
    save_model(adapters.plain(adapters.load(base, own)), its_tokenizer, tmp_path / "merged")
    lab = tiny_lab(bench)
    prompts = lab.prompts("policy", 4)
    merged, named = lab.finished_policy(str(tmp_path / "merged")), lab.finished_policy(str(own))
    given = lab.finished_policy(str(own), base=str(folder))
    assert named.key == given.key
    answers = [[row.text for row in lab.sample(policy, prompts)] for policy in (merged, named)]
    assert answers[0] == answers[1]
    with pytest.raises(InputError, match=r"holds no adapters \(no adapter_config.json\) to put on"):
        lab.finished_policy(str(folder), base=str(folder))
    config = json.loads((own / "adapter_config.json").read_text())
    (own / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/nowhere/at/all"}))
    with pytest.raises(InputError, match="its adapters stand on /nowhere/at/all, which is not here; give `base`"):
        lab.finished_policy(str(own))


def test_another_vocabulary_and_template(bench: EvaluationContext, tmp_path: Path) -> None:
    """A byte model with a chat template beside a word model: it reads its own template, has its own limits, and no KL."""
    own = tokenizer()
    own.chat_template = OTHER_TEMPLATE
    other = policy_folder(tmp_path / "bytes", own)
    model = FinishedModel(system_prompt=None, max_prompt_tokens=200, max_response_tokens=20)
    lab = tiny_lab(bench)
    policy = lab.finished_policy(str(other), model=model)
    assert isinstance(policy, FinishedPolicy)
    settings: PolicyModel = policy.settings
    assert (settings.max_prompt_tokens, settings.system_prompt, settings.path) == (200, None, str(other))
    assert len(lab.sample(policy, lab.prompts("policy", 2))) == 2
    assert RoundEvaluation(bench, Round(policy, None), seed=0).divergence() == []


def test_kl_where_vocabularies_are_equal(bench: EvaluationContext, folder: Path) -> None:
    """Of a copy of the initial policy 0, of a trained one that of the same weights in the store."""
    lab = tiny_lab(bench)
    initial = lab.finished_policy(str(copied(bench, bench.initial_policy, folder.parent / "initial")))
    rows = RoundEvaluation(bench, Round(initial, None), seed=0).divergence()
    assert {row["value"] for row in rows} == {0.0}
    assert all(row["value"] > 0 for row in RoundEvaluation(bench, Round(lab.finished_policy(str(folder)), None), seed=0).divergence())


def test_what_is_finished_is_not_trained(bench: EvaluationContext, folder: Path) -> None:
    lab = tiny_lab(bench)
    policy = lab.finished_policy(str(folder))
    data = [Demonstration(prompt, "a") for prompt in lab.prompts("policy", 2)]
    with pytest.raises(InputError, match=r"is finished, to be sampled and evaluated; to train it, give it as models\.policy\.path"):
        lab.train_policy(policy, data, SFTLoss())
    assert isinstance(lab.best_of_n(policy, lab.train_reward_model(lab.pairs(4), loss=RankingLoss()), 2), BestOfNPolicy)


def test_a_folder_that_is_not_whole(bench: EvaluationContext, folder: Path, tmp_path: Path) -> None:
    """It stops here, before anything is sampled."""
    (tmp_path / "broken").mkdir()
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / "broken" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=r"broken: it has no weights \(no .safetensors file\)"):
        tiny_lab(bench).finished_policy(str(tmp_path / "broken"))
    with pytest.raises(InputError, match="no such model folder"):
        tiny_lab(bench).finished_policy("./nowhere")


def test_kl_where_only_the_template_differs(bench: EvaluationContext, tmp_path: Path) -> None:
    """By hand: the sum over a response's tokens of sum p (log p - log q), p after the policy's own prompt, q after the initial policy's."""
    folder = copied(bench, bench.initial_policy, tmp_path / "templated")
    model, own = load_policy(folder)
    own.chat_template = "{% for m in messages %}{{ m['content'] }} the {% endfor %}"
    own.save_pretrained(folder)
    policy = tiny_lab(bench).finished_policy(str(folder), model=FinishedModel(max_prompt_tokens=12))
    assert isinstance(policy, FinishedPolicy)
    evaluation = RoundEvaluation(bench, Round(policy, None), seed=0)
    (row,) = [row for row in evaluation.divergence() if row["axis"] == "all"]
    prompts, limit = bench.fewer_prompts, bench.experiment.evaluation.sampling
    untruncated = limit.model_copy(update={"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0})
    samples = evaluation.lab.sample(policy, prompts, n=1, draw=-2, sampling=untruncated)
    _, plain = load_policy(stored(bench, bench.initial_policy))
    sides = [(own, policy.settings), (plain, bench.policy_model)]
    expected = []
    for sample in samples:
        assert sample.token_ids is not None
        logps = []
        for reader, settings in sides:
            start = ChatFormat.of(reader, settings).encode_prompt(sample.prompt, settings.max_prompt_tokens).ids
            with torch.no_grad():
                logits = model(torch.tensor([[*start, *sample.token_ids]])).logits[0, len(start) - 1 : -1].float()
            logits[:, own.pad_token_id] = -1e4
            logps.append(logits.log_softmax(-1))
        expected.append(float((logps[0].exp() * (logps[0] - logps[1])).sum()))
    assert row["value"] == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    assert row["value"] > 0.01

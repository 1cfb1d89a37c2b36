"""The transformers engine: models stay loaded, and one in memory computes bit for bit what one from disk does."""

import copy
import dataclasses
import json
import math
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from constant_policy import LLAMA
from tiny_tokenizers import WORDS, prompt
from tiny_world import tiny_bench
from torch import Tensor
from training_items import RECIPE, pairs, train_policy
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from apo_bench.config.plugins import resolve
from apo_bench.config.schema import NeuralReward, Sampling
from apo_bench.engines import transformers as transformers_engine
from apo_bench.engines.model_cache import stored_bytes
from apo_bench.engines.protocol import KLJob, SamplingJob, ScoringJob
from apo_bench.engines.transformers import GIB, TransformersEngine
from apo_bench.errors import InputError
from apo_bench.evaluation.context import EvaluationContext
from apo_bench.evaluation.evaluate import evaluate
from apo_bench.lab import best_of
from apo_bench.losses import DPOLoss, RankingLoss, SFTLoss, View
from apo_bench.losses.policy_loss import Reads
from apo_bench.models import policy as policies
from apo_bench.models import reward as rewards
from apo_bench.models.tokenize import ChatFormat
from apo_bench.store import RunStore
from apo_bench.training.training_spec import PolicyTraining
from apo_bench.types import BestOfNPolicy, Policy, Prompt, RewardModel, Round, UnpairedExample

pytestmark = pytest.mark.slow

CAUSAL, CLASSIFIER = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
Loads = Counter[tuple[str, str]]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    """How often each (class, folder) was read from disk."""
    counts: Loads = Counter()

    def counting(kind: Any) -> Any:
        from_pretrained = kind.from_pretrained

        def load(folder: Any, *arguments: Any, **options: Any) -> Any:
            counts[kind.__name__, str(folder)] += 1
            return from_pretrained(folder, *arguments, **options)

        return load

    for kind in (AutoModelForCausalLM, AutoModelForSequenceClassification):
        monkeypatch.setattr(kind, "from_pretrained", counting(kind))
    return counts


def folder_of(bench: EvaluationContext, model: Policy | RewardModel) -> str:
    return str(bench.store.root / ("policies" if isinstance(model, Policy) else "reward_models") / model.key)


def with_evaluation(bench: EvaluationContext, **settings: Any) -> EvaluationContext:
    evaluation = bench.experiment.evaluation.model_copy(update=settings)
    return dataclasses.replace(bench, experiment=bench.experiment.model_copy(update={"evaluation": evaluation}))


# --- what is resident -----------------------------------------------------------------------------------------------------------


def test_an_arm_and_its_evaluation_load_each_model_at_most_once(loads: Loads, tmp_path: Path) -> None:
    """Two rounds of APO, every round evaluated, with a referee.

    In the process that trained them all policies and reward models are in memory: only the body of new reward models is read, from the
    initial policy's folder. A process that evaluates a round of another loads that round's models and the initial policy.
    """
    bench = with_evaluation(tiny_bench(tmp_path), dev_prompts=8)
    arm = bench.experiment.arms["apo_rjs"]
    lab = bench.lab(0, arm="apo_rjs")
    resolve(arm.use, arm.parameters, base=None, arm="apo_rjs").run(lab)
    assert len(lab.rounds) == 2
    first = lab.rounds[0].reward_model
    for round_ in (Round(bench.initial_policy, first), *lab.rounds):
        evaluate(bench, round_, 0, first)
    bench.gold_accuracy()
    bench.floor_accuracy(0)
    assert loads == {(CLASSIFIER, folder_of(bench, bench.initial_policy)): 1}

    loads.clear()
    fresh = with_evaluation(
        dataclasses.replace(bench, store=RunStore(tmp_path), engine=TransformersEngine(tmp_path)), prompts=12, kl_prompts=5
    )
    last = lab.rounds[1]
    evaluate(fresh, last, 0, first)
    assert last.reward_model is not None
    assert loads == {
        (CAUSAL, folder_of(bench, last.policy)): 1,
        (CAUSAL, folder_of(bench, bench.initial_policy)): 1,
        (CLASSIFIER, folder_of(bench, last.reward_model)): 1,
    }


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    return tiny_bench(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def trained(bench: EvaluationContext) -> tuple[Policy, RewardModel]:
    """A policy and a reward model that were just trained, and stay in memory."""
    lab = bench.lab(0)
    reward_model = lab.train_reward_model(bench.training_data.pairs[:40], loss=RankingLoss())
    groups = lab.score(reward_model, lab.sample(lab.initial_policy, lab.prompts(n=20), n=2))
    return lab.train_policy(lab.initial_policy, best_of(groups), SFTLoss(), epochs=3), reward_model


def test_a_model_in_memory_computes_what_the_same_model_from_disk_does(
    bench: EvaluationContext, trained: tuple[Policy, RewardModel], loads: Loads
) -> None:
    """Samples, scores and KL are equal to the last bit, and so is every weight."""
    policy, reward_model = trained
    models, prompts = bench.experiment.models, bench.task.prompts["policy"][:24]
    resident, fresh = bench.engine, TransformersEngine(bench.store.run_folder)
    sampling = SamplingJob(policy, prompts, 3, Sampling(max_new_tokens=12, batch_size=32), models.policy, seed=5)
    responses = resident.generate(sampling)
    scoring = ScoringJob(reward_model, tuple((response.prompt, response.text) for response in responses.value), models.reward)
    kl = KLJob(policy, bench.initial_policy, responses.value, models.policy, batch_size=8)
    scores, nats = resident.score(scoring), resident.kl(kl)
    assert loads == {}
    assert fresh.generate(sampling) == responses
    assert fresh.score(scoring) == scores
    assert fresh.kl(kl) == nats
    assert sorted(loads.values()) == [1, 1, 1]
    assert len(set(scores.value)) > 24
    assert max(nats.value) > 0.01
    for key in (("policy", policy.key), ("reward model", reward_model.key)):
        in_memory, from_disk = (engine.models.resident.get(key, pytest.fail)[0].state_dict() for engine in (resident, fresh))  # pyright: ignore
        assert in_memory.keys() == from_disk.keys()
        assert all(torch.equal(weight, from_disk[name]) for name, weight in in_memory.items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="CPU kernels")
@pytest.mark.parametrize("words", [1, 9])
def test_loaded_weights_lie_where_torch_allocates(words: int, tmp_path: Path) -> None:
    """At multiples of 64 bytes, wherever they lie in their files: CPU kernels give other last bits elsewhere."""
    policies.save_model(*policies.new_policy(LLAMA, WORDS[:words], seed=0), tmp_path / "policy")
    reward = rewards.new_reward_model(NeuralReward(path=".", training=RECIPE), tmp_path / "policy", ("helpful",), None, seed=0)
    policies.save_model(*reward, tmp_path / "reward")
    for model, _ in (policies.load_policy(tmp_path / "policy"), rewards.load_reward_model(tmp_path / "reward"), reward):
        weights = {name: weight.data_ptr() % 64 for name, weight in (*model.named_parameters(), *model.named_buffers())}
        assert set(weights.values()) == {0}, weights


def test_a_policy_larger_than_the_limit_is_used_and_not_kept(bench: EvaluationContext, loads: Loads) -> None:
    prompts, spec = bench.task.prompts["policy"][:2], bench.experiment.models.policy
    engine = TransformersEngine(bench.store.run_folder, memory_gb=stored_bytes(folder_of(bench, bench.initial_policy)) / 2 / GIB)
    job = SamplingJob(bench.initial_policy, prompts, 1, spec.sampling, spec, seed=0)
    assert engine.generate(job) == engine.generate(job) == bench.engine.generate(job)
    assert loads == {(CAUSAL, folder_of(bench, bench.initial_policy)): 2}


def test_sampling_leaves_a_resident_policys_generation_config_alone(bench: EvaluationContext, tmp_path: Path) -> None:
    """What is saved with a policy does not depend on whether it was sampled before."""
    engine, other = (TransformersEngine(bench.store.run_folder) for _ in range(2))
    policy, spec = bench.initial_policy, bench.experiment.models.policy
    hot = SamplingJob(policy, bench.task.prompts["policy"][:2], 2, Sampling(max_new_tokens=3, temperature=1.7, top_k=5), spec, seed=0)
    engine.generate(hot)
    model, _ = engine.models.resident.get(("policy", policy.key), pytest.fail)  # pyright: ignore
    config, fields = model.generation_config, copy.deepcopy(model.generation_config.to_dict())
    engine.generate(hot)
    assert model.generation_config is config
    assert config.to_dict() == fields
    for trainer, name in ((engine, "sampled"), (other, "not sampled")):
        trainer.train_policy(sft_job(bench), tmp_path / name)
    saved = [(tmp_path / name / "generation_config.json").read_bytes() for name in ("sampled", "not sampled")]
    assert saved[0] == saved[1]


def sft_job(bench: EvaluationContext) -> PolicyTraining:
    spec = bench.experiment.models.policy
    return PolicyTraining(bench.initial_policy, bench.task.demonstrations[:16], SFTLoss(), None, spec, spec.training, 0)


def test_a_policy_that_is_trained_further_stays_as_it_was(bench: EvaluationContext, tmp_path: Path) -> None:
    engine = TransformersEngine(bench.store.run_folder)
    spec = bench.experiment.models.policy
    sampling = SamplingJob(bench.initial_policy, bench.task.prompts["policy"][:8], 2, spec.sampling, spec, seed=1)
    before = engine.generate(sampling)
    engine.train_policy(sft_job(bench), tmp_path / "trained")
    assert engine.models.resident.keys == (("policy", bench.initial_policy.key), ("policy", "trained"))
    assert engine.generate(sampling) == before


@pytest.mark.parametrize("shared", [True, False], ids=["the start", "another policy"])
def test_the_reference_is_freed_before_the_first_step(
    shared: bool, bench: EvaluationContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: Loads
) -> None:
    """Where training starts from the reference itself, one model is in memory: that one. Otherwise the policy and its copy."""
    start = bench.initial_policy if shared else Policy(sft_policy(bench))
    loads.clear()
    engine, spec = TransformersEngine(bench.store.run_folder), bench.experiment.models.policy
    references, alive, fit = list[weakref.ref[Any]](), list[bool](), transformers_engine.fit
    take = engine.models.resident.take

    def take_reference(*arguments: Any) -> Any:
        loaded = take(*arguments)
        references.append(weakref.ref(loaded[0]))
        return loaded

    def watched(model: Any, items: Any, collate: Any, terms: Any, *arguments: Any) -> Any:
        def first_terms(model: Any, batch: Any) -> Tensor:
            alive.append(references[0]() is not None)
            return terms(model, batch)

        assert shared == (references[0]() is model)
        return fit(model, items, collate, first_terms, *arguments)

    monkeypatch.setattr(engine.models.resident, "take", take_reference)
    monkeypatch.setattr(transformers_engine, "fit", watched)
    pairs = bench.task.pairs["rm"][:16]
    job = PolicyTraining(start, pairs, DPOLoss(), bench.initial_policy, spec, spec.training, 0)
    engine.train_policy(job, tmp_path / "trained")
    assert set(alive) == {shared}
    assert engine.models.resident.keys == ((("policy", "trained"),) if shared else (("policy", start.key), ("policy", "trained")))
    assert loads == {(CAUSAL, folder_of(bench, policy)): 1 for policy in (start, bench.initial_policy)}


def sft_policy(bench: EvaluationContext) -> str:
    """The key of a policy that was trained from the initial one."""
    folder = bench.store.root / "policies" / "sft"
    if not folder.exists():
        TransformersEngine(bench.store.run_folder).train_policy(sft_job(bench), folder)
    return folder.name


def test_a_best_of_n_policy_has_no_weights(bench: EvaluationContext) -> None:
    policy, spec = BestOfNPolicy("best", bench.initial_policy, RewardModel("rm"), 2), bench.experiment.models.policy
    with pytest.raises(InputError, match=r"^lab: a best-of-n policy has no weights[^\n]*$"):
        bench.engine.kl(KLJob(policy, bench.initial_policy, (), spec, 1))


# --- losses of a method's own -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DesirableLikelihood:
    """The log-probability of undesirable responses minus that of desirable ones."""

    reads: ClassVar[Reads] = "unpaired"
    needs_reference: ClassVar[bool] = False

    def __call__(self, view: View) -> Tensor:
        return torch.where(view.labels, -1.0, 1.0) * view.response_logps.squeeze(1)


@dataclass(frozen=True)
class PairsWithScores(DesirableLikelihood):
    reads: ClassVar[Reads] = "pairs"

    def __call__(self, view: View) -> Tensor:
        return (view.scores * view.response_logps).sum(dim=1)


@dataclass(frozen=True)
class PairsWithUndeclaredReference(DesirableLikelihood):
    reads: ClassVar[Reads] = "pairs"

    def __call__(self, view: View) -> Tensor:
        return (view.response_logps - view.reference_response_logps).sum(dim=1)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "policy"
    policies.save_model(*policies.new_policy({**LLAMA, "initializer_range": 0.2}, WORDS, seed=0), folder)
    return folder


def logp(folder: Path, question: Prompt, text: str) -> float:
    """Log-probability of one response, by a plain forward pass."""
    model, tokenizer = policies.load_policy(folder)
    ids, end = ChatFormat(tokenizer, None).encode_prompt(question, 16).ids, ChatFormat(tokenizer, None).encode_response(question, text, 12)
    with torch.no_grad():
        rows = model.eval()(torch.tensor([ids + end])).logits[0].log_softmax(dim=-1)
    return sum(rows[len(ids) + place - 1, token].item() for place, token in enumerate(end))


def test_a_loss_on_unpaired_data_sees_each_responses_label(start: Path, tmp_path: Path) -> None:
    """One update of 6 items: its loss is the mean term by hand, and it makes desirable responses likelier and the others less so."""
    texts = ("rinse", "no no", "wash it", "boil", "dry and dry and dry", "how")
    data = [UnpairedExample(prompt("how do i wash it"), text, bool(place % 3)) for place, text in enumerate(texts)]
    recipe = RECIPE.model_copy(update={"learning_rate": 1e-2})
    counts = train_policy(start, data, DesirableLikelihood(), recipe, tmp_path / "trained")
    assert counts["policy_updates"] == 1
    before, after = ([logp(folder, item.prompt, item.response) for item in data] for folder in (start, tmp_path / "trained"))

    def mean_term(logps: Sequence[float]) -> float:
        return math.fsum(-value if item.desirable else value for item, value in zip(data, logps, strict=True)) / 6

    [loss] = json.loads((tmp_path / "trained" / "training_losses.json").read_text())
    assert loss == pytest.approx(mean_term(before), abs=1e-3)
    assert mean_term(after) < mean_term(before) - 0.1


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (PairsWithScores(), r"view\.scores, which is not there: only data of losses with reads = \"groups\" have it"),
        (PairsWithUndeclaredReference(), r"view\.reference_logps, which is not there: it needs a reference: set needs_reference = True"),
    ],
)
def test_a_field_that_the_data_do_not_have_is_one_line(start: Path, tmp_path: Path, loss: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"^the loss reads {message}[^\n]*$"):
        train_policy(start, pairs(4), loss, RECIPE, tmp_path / "trained")
    assert not (tmp_path / "trained").exists()

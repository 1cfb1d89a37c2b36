"""How long a run takes and how much memory, from a short probe of this machine: each verb at the experiment's sizes and batch shapes.

A probe runs in a process of its own, as a run's worker does, and leaves no files. Its measurements hold for this machine, at this time,
and for one process at a time.
"""

import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apo_bench.config.schema import Experiment, NeuralReward, PolicyModel
from apo_bench.data.task import Task
from apo_bench.engines.model_sizes import policy_size, reward_size
from apo_bench.plan.accounts import RUN
from apo_bench.plan.make_plan import Plan
from apo_bench.types import Demonstration, Pair, Prompt

LONG_S = 2.0  # a verb that takes longer is not tried at a second size
FEW, MANY = 2, 8  # updates of a training
N = 4  # samples a prompt
ANSWERS = 32  # that tell how long answers are
BYTES = 4  # of a weight in fp32
STATE = 4  # copies of a model's weights in training: themselves, gradients, and Adam's two moments
WITH_MODELS = ("samples", "scores", "kl", "reward_models", "policies")  # kinds of artifact that models compute
KL_LIKE = "scores"  # reading answers twice takes what scoring takes


@dataclass(frozen=True)
class Rate:
    """Seconds of a verb: for each call, and for each unit of what the plan says it has to do."""

    call_s: float
    unit_s: float
    peak_bytes: float


@dataclass(frozen=True)
class Probe:
    """What was measured, by kind of artifact; a kind that is not in `rates` could not be. `start_s`: until a worker is ready."""

    rates: Mapping[str, Rate]
    start_s: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Timing:
    """arm_s: an arm-seed's work alone, in one process, evaluation apart. arm_bytes: the most memory that takes.

    run_s: of the whole run with so many workers, and run_bytes their memory together. NaN: not known.
    """

    workers: int
    arm_s: Mapping[str, float]
    arm_bytes: Mapping[str, float]
    run_s: float
    run_bytes: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Trial:
    """What the probing process measures."""

    policy: PolicyModel
    reward: NeuralReward | None
    axes: tuple[str, ...]
    vocabulary: tuple[str, ...] | None
    prompts: tuple[Prompt, ...]
    pairs: tuple[Pair, ...]
    started: float = field(default_factory=time.time)


def probe(experiment: Experiment, task: Task) -> Probe:
    """Measure what a run of the experiment does. Models that are not on this machine, or do not fit, are not measured."""
    models = experiment.models
    size = policy_size(models.policy, task.vocabulary)
    if not size.is_here:
        return Probe({}, math.nan, ("time and memory are not known: models.policy is not on this machine",))
    if (needed := STATE * BYTES * size.n_weights) > _free_bytes():
        return Probe({}, math.nan, (f"time and memory are not known: training models.policy takes {needed / 1e9:,.0f} GB",))
    reward = models.reward if isinstance(models.reward, NeuralReward) else None
    if reward and not reward_size(reward, models.policy, task.axes, task.vocabulary).is_here:
        return Probe({}, math.nan, ("time and memory are not known: models.reward is not on this machine",))
    trial = _Trial(models.policy, reward, task.axes, task.vocabulary, task.prompts["policy"], task.pairs["rm"])
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(_measure, trial).result()
        except Exception as error:  # a package that is missing, memory that ran out: a plan can do without its probe
            return Probe({}, math.nan, (" ".join(f"time and memory are not known: {type(error).__name__}: {error}".split()),))


def answer_tokens(experiment: Experiment, task: Task) -> float | None:
    """How long the initial policy's answers are, on the average of a few: where it is a model that was trained elsewhere.

    None: it is warmed up on the task's own responses, which tell as much, or it is not on this machine, or does not fit.
    """
    policy = experiment.models.policy
    if policy.path is None or not (size := policy_size(policy, task.vocabulary)).is_here or BYTES * size.n_weights > _free_bytes():
        return None
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(_answer, policy, task.prompts["policy"][:ANSWERS]).result()
        except Exception:  # an arm will report what is wrong with the model
            return None


def _answer(policy: PolicyModel, prompts: Sequence[Prompt]) -> float:
    from apo_bench.models import policy as policies
    from apo_bench.models.generate import generate

    policies.use_one_thread()
    assert policy.path is not None
    loaded = policies.load_policy(policy.path, policy.trust_remote_code)
    answers, _ = generate(*loaded, prompts, 1, policy.sampling, policy, seed=0)
    return sum(answer.tokens for answer in answers) / len(answers)


def timing(plan: Plan, measured: Probe, workers: int) -> Timing:
    """Time and memory of the plan's work at the measured rates."""
    arms = {arm: work for arm, work in plan.work.items() if arm != RUN}
    rates = {**measured.rates, **({"kl": measured.rates[KL_LIKE]} if KL_LIKE in measured.rates else {})}

    def seconds(kinds: Mapping[str, float], amounts: Mapping[str, float]) -> float:
        known = ((rates.get(kind), n, amounts[kind]) for kind, n in kinds.items() if kind in WITH_MODELS)
        return sum(n * rate.call_s + amount * rate.unit_s if rate else math.nan for rate, n, amount in known if amount)

    def peak(kinds: Mapping[str, float], amounts: Mapping[str, float]) -> float:
        used = [kind for kind in kinds if kind in WITH_MODELS and amounts[kind]]
        return max(rates[kind].peak_bytes for kind in used) if used and all(kind in rates for kind in used) else math.nan

    arm_s = {arm: seconds(work.artifacts, work.amounts) for arm, work in arms.items()}
    arm_bytes = {arm: peak(work.artifacts, work.amounts) for arm, work in arms.items()}
    whole = plan.work[RUN]
    together = max(seconds(whole.artifacts, whole.amounts) / workers, *arm_s.values())
    return Timing(workers, arm_s, arm_bytes, measured.start_s + together, workers * peak(whole.artifacts, whole.amounts), measured.notes)


def _measure(trial: _Trial) -> Probe:
    """In the probing process."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    from apo_bench.config.schema import EngineChoice, Executor
    from apo_bench.engines import open_engine
    from apo_bench.engines.protocol import SamplingJob, ScoringJob
    from apo_bench.losses import RankingLoss, SFTLoss
    from apo_bench.models import policy as policies
    from apo_bench.training.training_spec import PolicyTraining, RewardModelTraining
    from apo_bench.types import Policy, RewardModel

    policies.use_one_thread()
    start_s, rates = time.time() - trial.started, {}
    with tempfile.TemporaryDirectory() as scratch:
        engine, spec = open_engine(EngineChoice(memory_gb=1e-9), Executor(), Path(scratch)), trial.policy  # every call loads its model
        base = Policy(_new(scratch, "policies").name)
        engine.create_policy(spec, trial.vocabulary, Path(scratch) / "store" / "policies" / base.key)

        def some(items: Sequence[Any], n: int) -> tuple[Any, ...]:
            return tuple(items[place % len(items)] for place in range(n))

        def sample(batches: int) -> float:
            prompts = some(trial.prompts, batches * max(1, spec.sampling.batch_size // N))
            sampling = spec.sampling.model_copy(update={"engine": None})  # a server's time is not known before it runs
            responses = engine.generate(SamplingJob(base, prompts, N, sampling, spec, seed=0)).value
            return len(responses) * spec.sampling.max_new_tokens

        def train(updates: int) -> float:
            recipe = spec.training.model_copy(update={"epochs": 1.0})
            data = tuple(Demonstration(pair.prompt, pair.chosen) for pair in some(trial.pairs, updates * recipe.batch_size))
            job = PolicyTraining(base, data, SFTLoss(), None, spec, recipe, 0)
            return engine.train_policy(job, _new(scratch, "policies")).counts["flops"]

        rates["samples"] = _rate(sample, 1, 3)
        rates["policies"] = _rate(train, FEW, MANY)
        if reward := trial.reward:
            recipe = reward.training.model_copy(update={"epochs": 1.0})
            brief = reward.model_copy(update={"training": recipe})
            trained: list[Path] = []

            def train_reward(updates: int) -> float:
                trained.append(_new(scratch, "reward_models"))
                body = base if reward.initial else None
                pairs = some(trial.pairs, updates * recipe.batch_size)
                job = RewardModelTraining(None, body, pairs, RankingLoss(), trial.axes, trial.vocabulary, brief, 0)
                return engine.train_reward_model(job, trained[-1]).counts["flops"]

            def score(batches: int) -> float:
                pairs = some(trial.pairs, batches * reward.score_batch_size)
                items = tuple((pair.prompt, f"{pair.chosen} {n}") for n, pair in enumerate(pairs))
                return engine.score(ScoringJob(RewardModel(trained[-1].name), items, reward)).counts["flops"]

            rates["reward_models"] = _rate(train_reward, FEW, MANY)
            rates["scores"] = _rate(score, 1, 4)
    served = ("sampling is timed as transformers does it, not as vLLM does",) if trial.policy.sampling.engine else ()
    return Probe(rates, start_s, served)


def _rate(verb: Callable[[int], float], small: int, large: int) -> Rate:
    """A verb at two sizes, by the clock; at one where that takes long. What loading and compiling take the first time is not counted."""
    _reset_peak()
    started = time.monotonic()
    first = verb(small), time.monotonic() - started
    if first[1] > LONG_S:
        return Rate(0.0, first[1] / first[0], _peak_bytes())
    timings = []
    for size in (small, large):
        started = time.monotonic()
        timings.append((verb(size), time.monotonic() - started))
    (few, short), (many, long) = timings
    unit_s = max(0.0, (long - short) / (many - few)) or long / many
    return Rate(max(0.0, short - unit_s * few), unit_s, _peak_bytes())


def _new(scratch: str, kind: str) -> Path:
    """The folder of a new artifact in the probe's own store."""
    folder = Path(scratch) / "store" / kind
    folder.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=folder))


def _reset_peak() -> None:
    """Let the peak of memory begin anew; where the system does not, it is that of all verbs so far."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_bytes() -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return math.nan


def _free_bytes() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return math.inf

"""An experiment -> its plan: what every arm would spend, what sharing saves, which pairs match, what judges cost, and which
differences the run could detect.

Nothing is trained, no judge is called, and nothing is written.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from apo_bench.analysis import costs
from apo_bench.analysis.power import ALPHA, primary_power
from apo_bench.analysis.results import POOLED, Run
from apo_bench.clients.endpoint import ChatSettings
from apo_bench.clients.rate_limit import most_tokens
from apo_bench.config.finished_arms import declared_cost, finished_arms
from apo_bench.config.plugins import JUDGE, resolve
from apo_bench.config.schema import Experiment, NetworkReward, PromptSet, members
from apo_bench.config.tuning import TUNING
from apo_bench.data.task import Task
from apo_bench.errors import InputError, NotHere
from apo_bench.judging.attacks import ATTACKS
from apo_bench.judging.judge_protocol import Question
from apo_bench.judging.prompt_templates import template_for
from apo_bench.judging.refusals import read_labelled
from apo_bench.judging.response_pairs import arm_pairs
from apo_bench.lab.ledger import UNITS
from apo_bench.plan.accounts import Accounts, Disk, Work
from apo_bench.plan.arm_spend import CountingContext, counting_context
from apo_bench.plan.capability_tokens import capability_note
from apo_bench.plan.device_memory import DeviceMemory, device_memory
from apo_bench.plan.match_spend import MatchedArm, size_arms, with_sizes
from apo_bench.stats.power_analysis import minimum_detectable_effect
from apo_bench.tables import empty_table


@dataclass(frozen=True)
class JudgePlan:
    """The most that one judge is asked. `worst_usd`: if every question were as long as the longest and asked twice; None: no price."""

    name: str
    questions: int
    audit_questions: int
    worst_usd: float | None
    max_usd: float | None = None  # the judge's own limit


@dataclass(frozen=True)
class Detectable:
    """The smallest difference of a primary pair on an axis that this design can detect; NaN with the reason in `note`."""

    a: str
    b: str
    axis: str
    n_seeds: int
    n_clusters: int
    difference: float = math.nan
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """What an experiment would spend.

    ledger: arm, seed, unit, used (alone), marginal (in this run: what no earlier arm or seed has made or bought), budget (NaN: none).
    Beside the arms there are the control "_aa", "_tune.<arm>" (all its trials, by tuning seed) and "_bench" (seed -1), if at all. matches:
    as `costs.budget_matches`. failures: (account, seed, message) of each arm-seed that would fail. disk: by account, each artifact where
    it is computed first; `removed`: bytes of them that `store.keep` leaves out at the end. work: of each arm alone, mean over seeds; of
    everything in "_run". fits: how arms with `fit` were sized. finished: arms that are already trained. NaN: not known here.
    """

    name: str
    arms: tuple[str, ...]
    n_seeds: int
    ledger: pd.DataFrame
    matches: pd.DataFrame
    failures: tuple[tuple[str, int, str], ...]
    disk: Mapping[str, Disk]
    removed: float
    work: Mapping[str, Work]
    judges: tuple[JudgePlan, ...]
    detectable: tuple[Detectable, ...]
    notes: tuple[str, ...]
    fits: Mapping[str, MatchedArm]
    memory: DeviceMemory
    finished: tuple[str, ...] = ()

    @property
    def accounts(self) -> tuple[str, ...]:
        """The arms, then the controls, the tuning and `_bench`, as far as there are any."""
        return tuple(dict.fromkeys(self.ledger["arm"]))

    def used(self, column: Literal["used", "marginal"] = "used") -> dict[str, dict[str, float]]:
        """Account -> unit -> mean over seeds; `_bench` last."""
        means = self.ledger.groupby(["arm", "unit"])[column].agg(lambda values: values.mean(skipna=False)).to_dict()
        return {arm: {unit: float(means[arm, unit]) for unit in UNITS} for arm in self.accounts}

    @property
    def saved(self) -> dict[str, tuple[float, float]]:
        """Unit -> (all arms and seeds alone, the same in this run), summed; without arms that are already trained."""
        rows = self.ledger[self.ledger["arm"].isin(self.arms)]
        rows = rows[~rows["arm"].isin(self.finished)]
        sums = rows.groupby("unit")[["used", "marginal"]].agg(lambda values: values.sum(skipna=False)).reindex(UNITS, fill_value=0.0)
        return {unit: (float(sums["used"][unit]), float(sums["marginal"][unit])) for unit in UNITS}


def plan(
    experiment: Experiment,
    task: Task,
    *,
    base: Path | None = None,
    pilot: Run | None = None,
    response_tokens: float | None = None,
    initial_tokens: float | None = None,
    power: float = 0.8,
    fits: Mapping[str, MatchedArm] | None = None,
    device_bytes: float | None = None,
) -> Plan:
    """The plan of an experiment whose model paths are resolved. `base` is the folder that its method files are relative to.

    `pilot` is a finished run with the same primary pairs, which variances are taken from. `response_tokens`, `initial_tokens`: see
    `counting.Expected`. `fits`: how arms are sized, if already solved; None solves it here. `device_bytes`: memory of the GPU that it is
    planned for; None: of this machine's device, whose memory is not compared. Raises InputError for a method, a
    judge or a size that cannot be resolved. Arms that would fail are in `failures`.
    """
    if response_tokens is not None and not 1 <= response_tokens < math.inf:
        raise InputError(f"response_tokens: a mean length of 1 or more, got {response_tokens:g}")
    fits, unsized = (fits, []) if fits is not None else _fits(experiment, task, base)
    experiment = with_sizes(experiment, fits)
    context = counting_context(experiment, task, response_tokens, initial_tokens, None if device_bytes is None else "cuda")
    accounts = Accounts(context, base)
    accounts.fill()
    ledger = accounts.ledger()
    failed = [{"arm": arm, "seed": seed} for arm, seed, _ in accounts.failures]
    projected = Run(experiment, {"failures": failed}, {"ledger": ledger, "samplers": empty_table("samplers")}, ())
    return Plan(
        name=experiment.name,
        arms=tuple(experiment.arms),
        n_seeds=len(experiment.seeds),
        ledger=ledger,
        matches=costs.budget_matches(projected),
        failures=tuple(accounts.failures),
        disk=accounts.disk,
        removed=accounts.removed(),
        work=accounts.work(),
        judges=tuple(_judges(projected, context, base, accounts.n_rounds)),
        detectable=tuple(_detectable(projected, context, pilot, power)),
        notes=(*unsized, *_notes(context, response_tokens, initial_tokens), *filter(None, [capability_note(experiment, base)])),
        fits=fits,
        memory=device_memory(context.experiment, context.engine, device_bytes),
        finished=tuple(finished_arms(experiment)),
    )


def _fits(experiment: Experiment, task: Task, base: Path | None) -> tuple[Mapping[str, MatchedArm], list[str]]:
    try:
        return size_arms(experiment, task, base), []
    except NotHere as error:
        return {}, [f"{error}; sized arms are planned as the file has them."]


def _judges(run: Run, context: CountingContext, base: Path | None, n_rounds: Mapping[tuple[str, int], int]) -> Iterator[JudgePlan]:
    experiment, judging = run.experiment, run.experiment.judging
    prompts = min(len(context.test_prompts), judging.prompts or len(context.test_prompts))
    questions = 2 * len(arm_pairs(experiment)) * len(experiment.seeds) * prompts
    for part in experiment.evaluation.prompt_sets if experiment.judges else ():
        if "judge" in part.scorers:
            n = _answers(context, part)
            questions += 2 * len(arm_pairs(experiment)) * len(experiment.seeds) * min(n, judging.prompts or n)
    audited = min(judging.audit_pairs, len(context.task.pairs["test"]))
    audit = 2 * audited * (1 + (len(ATTACKS) if judging.attacks else 0))
    for name, choice in experiment.judges.items():
        spec = resolve(choice.use, choice.parameters, base=base, arm=f"judges.{name}", kind=JUDGE)
        settings = spec if isinstance(spec, ChatSettings) and spec.endpoint.priced else None
        of_refusals = sum(
            _refusal_questions(context, part, n_rounds) for part in experiment.evaluation.prompt_sets if part.refusal_by == name
        )
        usd = None if settings is None else _worst_usd(settings, questions + of_refusals, audit, context)
        yield JudgePlan(name, questions + of_refusals, audit, usd, settings.max_usd if settings else None)


def _answers(context: CountingContext, part: PromptSet) -> int:
    """How many answers a policy gives to a set."""
    return sum(len(question.prompts) for question in context.prompt_sets[part.name].questions)


def _refusal_questions(context: CountingContext, part: PromptSet, n_rounds: Mapping[tuple[str, int], int]) -> int:
    """How many questions about refusals a set comes to: every answer, those of the initial policy once a seed, and the labelled ones."""
    if "refusal" not in part.scorers:
        return 0
    arms, seeds = context.experiment.arms, context.experiment.seeds
    after = sum(n if part.round == "all" else min(n, 1) for (arm, _), n in n_rounds.items() if arm in arms)
    labelled, _ = read_labelled(Path(part.refusal_labels) if part.refusal_labels else None)
    return _answers(context, part) * (after + len(seeds)) + len(labelled)


def _worst_usd(judge: ChatSettings, questions: int, audit: int, context: CountingContext) -> float:
    """Every question with the longest prompt and the longest response known, a byte a token, asked twice and answered in full."""
    sampling = context.experiment.evaluation.sampling
    pairs = context.task.pairs["test"]
    longest = max((text for pair in pairs for text in (pair.chosen, pair.rejected)), key=lambda text: len(text.encode()), default="")
    answer = "x" * max(len(longest.encode()), 4 * sampling.max_new_tokens)
    longest_prompt = max(context.test_prompts, key=lambda prompt: sum(len(message.content.encode()) for message in prompt.messages))
    template = getattr(judge, "template", "by_axis")
    messages = template_for(template, longest_prompt.axis).messages(Question(longest_prompt, answer, answer + " "))
    return 2 * (questions + audit) * judge.endpoint.cost_usd(most_tokens(messages), judge.max_tokens)


def _detectable(run: Run, context: CountingContext, pilot: Run | None, power: float) -> Iterator[Detectable]:
    experiment = run.experiment
    known = {(size.a, size.b, size.axis): size for size in primary_power(pilot, power=power)} if pilot else {}
    for pair in experiment.compare.primary:
        for axis in experiment.compare.axes:
            clusters = {prompt.cluster_id for prompt in context.test_prompts if axis in (POOLED, prompt.axis)}
            detectable = Detectable(pair.a, pair.b, axis, len(experiment.seeds), len(clusters))
            pilot_power = known.get((pair.a, pair.b, axis))
            if pilot_power is None or pilot_power.components is None:
                why = (
                    "not known without a pilot"
                    if pilot is None
                    else (pilot_power.note if pilot_power else "the pilot has no such primary pair and axis")
                )
                yield replace(detectable, note=why)
                continue
            parts = pilot_power.components
            difference = minimum_detectable_effect(
                seed_sd=parts.seed_sd,
                method_prompt_sd=parts.method_prompt_sd,
                residual_sd=parts.residual_sd,
                n_seeds=detectable.n_seeds,
                n_clusters=detectable.n_clusters,
                paired=parts.paired,
                power=power,
                alpha=ALPHA,
            )
            note = "two seeds or two clusters make no test" if math.isnan(difference) else pilot_power.note
            yield replace(detectable, difference=difference, note=note)


def _notes(context: CountingContext, response_tokens: float | None, initial_tokens: float | None) -> Iterator[str]:
    experiment, expected = context.experiment, context.engine.expected
    mean = expected.tokens(experiment.models.policy.sampling)
    whose = "the mean of the task's own responses, cut at max_new_tokens" if response_tokens is None else "as given"
    yield f"A sampled answer is taken to have {mean:.1f} tokens, its end included: {whose}. Tokens and FLOPs are expectations."
    if response_tokens is None and initial_tokens is not None:
        yield f"The initial policy's own answers have {initial_tokens:.1f}, as a few of them did that were sampled."
    sizes = _paths(experiment, expected)
    if published := dict.fromkeys(size.published for _, size in sizes if size.published):
        its = "its files are" if len(published) == 1 else "their files are"
        yield f"Shape of {', '.join(published)} as published; {its} not here, so tokens are taken as 4 characters each."
    if without := [name for name, size in sizes if size.model is None]:
        yield f"{', '.join(without)}: not on this machine, so its tokens are taken as 4 characters each, and FLOPs and disk are not known."
    if trainers := sorted(context.engine.trainers):
        yield f"{', '.join(trainers)}: time and device memory are estimates, of our own fits of its data; tokens and FLOPs are unknown."
    for name, arm in finished_arms(experiment).items():
        declared = ", ".join(declared_cost(arm) or {})
        known = f"{declared} are as declared; what else it cost is" if declared else "what it cost is"
        yield f"{name} is already trained: {known} not known, and matches nothing. Its evaluation is counted."
    for part in experiment.evaluation.prompt_sets:
        n = _answers(context, part)
        rounds = "every round" if part.round == "all" else "the last round"
        yield (
            f"Prompt set {part.name}: {n} answers of the initial policy and of each arm-seed's policy after {rounds}, about {n * mean:.0f} "
            "tokens a policy; with their scores among what evaluation spends."
        )
    if experiment.tune:
        yield f"{TUNING}<arm> is what all of its trials spend together. Arms are planned as the file has them, before a setting is chosen."
    if experiment.vary:
        levels = math.prod(len(levels) for levels in experiment.vary.values())
        yield f"`vary` repeats the experiment at {levels} levels; the plan is of one."


def _paths(experiment: Experiment, expected: Any) -> Sequence[tuple[str, Any]]:
    models = experiment.models
    rewards = [("models.reward", models.reward), *((f"models.gold.{gold.name}", gold.model) for gold in models.gold)]
    networks = [(name, member) for name, spec in rewards for member in members(spec) if isinstance(member, NetworkReward)]
    return [("models.policy", expected.policy), *((name, expected.reward(member)) for name, member in networks)]

"""What each model of an experiment reads: the first prompt, rendered and encoded as the run will. No weights are loaded."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from apo_bench.clients.response_scores import ResponseScorer
from apo_bench.config.finished_arms import finished_models
from apo_bench.config.schema import (
    Experiment,
    JudgeReward,
    NetworkReward,
    NeuralReward,
    PolicyModel,
    PretrainedReward,
    SingleReward,
    members,
)
from apo_bench.data.task import Task
from apo_bench.errors import InputError
from apo_bench.store import write_json

FIRST_PROMPTS = "first_prompts.json"


@dataclass(frozen=True)
class FirstPrompt:
    """`tokens` that a model reads, `target`: those that a policy is trained to answer with; `text` is all of them in one.

    `end`: the token that ends a response. `note`: why a model could not be shown, or what its folder says otherwise.
    """

    model: str  # its key in the experiment
    path: str
    text: str = ""
    ids: tuple[int, ...] = ()
    tokens: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    end: str = ""
    note: str = ""


def first_prompts(experiment: Experiment, task: Task, base: Path) -> Iterator[FirstPrompt]:
    """The first prompt of the rm split with the preferred response, as each model reads it; judges get their first question.

    Raises InputError, naming the model's key, where its chat template refuses the conversation or leaves a part of it out.
    """
    for key, spec in named_models(experiment):
        if isinstance(spec, PolicyModel | NetworkReward):
            try:
                yield first_prompt(key, spec, experiment, task)
            except InputError as error:
                raise InputError(f"{key}.{error}") from None
        elif isinstance(spec, JudgeReward):
            pair = task.pairs["rm"][0]
            scorer = ResponseScorer.of(spec)
            messages = scorer.endpoint.laid_out(scorer.messages(pair.prompt, pair.chosen))
            text = "\n\n".join(f"{message['role']}:\n{message['content']}" for message in messages)
            yield FirstPrompt(key, spec.model, text, note="as it is sent to the server, whose template writes the rest")
    yield from _of_judges(experiment, task, base)


def named_models(experiment: Experiment) -> Iterator[tuple[str, PolicyModel | SingleReward]]:
    """The policy, the reward model, the golds and finished policies, each with its key; the members of ensembles one by one."""
    models = experiment.models
    yield "models.policy", models.policy
    for key, spec in [("models.reward", models.reward), *((f"models.gold.{n}.model", gold.model) for n, gold in enumerate(models.gold))]:
        several = members(spec)
        yield from ((key if len(several) == 1 else f"{key}.of.{place}", member) for place, member in enumerate(several))
    yield from finished_models(experiment)


def first_prompt(key: str, spec: PolicyModel | NetworkReward, experiment: Experiment, task: Task) -> FirstPrompt:
    """What one model reads. Raises InputError as `first_prompts` does, without the key."""
    from apo_bench.models.model_folder import read_config
    from apo_bench.models.reward import chat_format, encode_texts, set_template
    from apo_bench.models.tokenize import ChatFormat, load_tokenizer
    from apo_bench.models.word_tokenizer import word_tokenizer

    body = experiment.models.policy if isinstance(spec, NeuralReward) and spec.initial else spec
    if body.path is None:
        tokenizer = word_tokenizer(task.vocabulary or ())
    else:
        try:
            tokenizer = load_tokenizer(body.path, body.trust_remote_code)
        except OSError as error:
            return FirstPrompt(key, body.path, note=str(error).splitlines()[0])
    pair, finished = task.pairs["rm"][0], None
    if not isinstance(spec, PolicyModel):
        set_template(tokenizer, spec)
    if isinstance(spec, PretrainedReward) and Path(spec.path).is_dir():
        finished = SimpleNamespace(config=read_config(spec.path, spec.trust_remote_code))  # tells whether it was trained here
    chat = ChatFormat.of(tokenizer, spec) if isinstance(spec, PolicyModel) else chat_format(tokenizer, spec, finished)
    target: list[int] = []
    if isinstance(spec, PolicyModel):
        ids = chat.encode_prompt(pair.prompt, spec.max_prompt_tokens).ids
        target = chat.encode_response(pair.prompt, pair.chosen, spec.max_response_tokens)
    else:
        ids = encode_texts(tokenizer, [(pair.prompt, pair.chosen)], spec, model=finished)[0].ids
    end = "" if tokenizer.eos_token_id is None and not tokenizer.chat_template else tokenizer.convert_ids_to_tokens(chat.end_id)
    note = _ends_otherwise(Path(body.path), chat) if body.path and isinstance(spec, PolicyModel) else ""
    return _shown(key, body.path or "", tokenizer, ids, target, end, note)


def write_first_prompts(folder: Path, experiment: Experiment, task: Task, base: Path) -> None:
    """Keep what the models read, for the manifest."""
    shown = first_prompts(experiment, task, base)
    write_json(folder / FIRST_PROMPTS, {each.model: {"text": each.text, "end": each.end, "note": each.note} for each in shown})


def read_first_prompts(folder: Path) -> Mapping[str, Any]:
    """What `write_first_prompts` kept; nothing of a run that is older."""
    path = folder / FIRST_PROMPTS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _of_judges(experiment: Experiment, task: Task, base: Path) -> Iterator[FirstPrompt]:
    from apo_bench.config.plugins import JUDGE, resolve
    from apo_bench.judging.judge_protocol import Question
    from apo_bench.judging.local_judge import LocalJudge

    pair = task.pairs["rm"][0]
    for name, choice in experiment.judges.items():
        judge = resolve(choice.use, choice.parameters, base=base, arm=f"judges.{name}", kind=JUDGE)
        if isinstance(judge, LocalJudge):
            from apo_bench.models.pretrained_weights import resolve_model
            from apo_bench.models.tokenize import load_tokenizer

            path = resolve_model(judge.path, base)
            try:
                tokenizer = load_tokenizer(path, judge.trust_remote_code)
            except OSError as error:
                yield FirstPrompt(f"judges.{name}", path, note=str(error).splitlines()[0])
                continue
            ids = judge.encode(judge.chat(tokenizer), Question(pair.prompt, pair.chosen, pair.rejected))
            yield _shown(f"judges.{name}", path, tokenizer, ids, [], "", "")


def _shown(key: str, path: str, tokenizer: Any, ids: list[int], target: list[int], end: str, note: str) -> FirstPrompt:
    pieces = [tokenizer.decode([token]) for token in (*ids, *target)]
    text = tokenizer.decode([*ids, *target])
    return FirstPrompt(key, path, text, (*ids, *target), tuple(pieces[: len(ids)]), tuple(pieces[len(ids) :]), end, note)


def _ends_otherwise(folder: Path, chat: Any) -> str:
    """A note where the model's generation_config.json does not stop at the token that ends its template's turns."""
    path = folder / "generation_config.json"
    own = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    ends = own if isinstance(own, list) else [own]
    if own is None or chat.end_id in ends:
        return ""
    listed = ", ".join(map(str, chat.tokenizer.convert_ids_to_tokens(ends)))
    return f"generation_config.json ends at {listed}; sampling stops at both"

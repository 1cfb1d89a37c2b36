"""Reward models as judges: the higher score wins, and what was not scored is missing."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import chatml_tokenizer, prompt
from transformers import AutoConfig, AutoModelForCausalLM

from apo_bench.config.schema import NeuralReward, Recipe
from apo_bench.errors import InputError
from apo_bench.judging.judge_protocol import JudgeContext, Question, Verdict, both_orders
from apo_bench.judging.reward_judge import NO_SCORE, TOO_LONG, RewardModelJudge
from apo_bench.models import policy as policies
from apo_bench.models import reward as rewards
from apo_bench.models.tokenize import ChatFormat, load_tokenizer
from apo_bench.types import Prompt

LLAMA = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "initializer_range": 0.3,
}  # fmt: skip
PAIRS = [
    *both_orders(prompt("how do i wash it", "rinse", "and dry it"), "no", "rinse and dry"),
    *both_orders(prompt("dry", axis="harmless"), "", "boil and dry and boil"),
    *both_orders(prompt("boil"), "wash it", "no no"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with one output for each axis."""
    import torch

    base, path = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("reward")
    tokenizer = chatml_tokenizer()
    torch.manual_seed(0)
    policies.save_model(AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA, **policies.token_ids(tokenizer))), tokenizer, base)
    spec = settings(axis_heads=True)
    policies.save_model(*rewards.new_reward_model(spec, base, ("helpful", "harmless"), None, seed=3), path)
    return path


def settings(**fields: Any) -> NeuralReward:
    return NeuralReward(**{"path": ".", "max_tokens": 48, "training": Recipe(learning_rate=1.0), **fields})


def scorer(scores: dict[str, float], scored: list[str] | None = None) -> JudgeContext:
    """Gold scores by response; `scored` collects what was scored."""

    def score(gold: str, items: Sequence[tuple[Prompt, str]]) -> list[float]:
        assert gold == "linear"
        if scored is not None:
            scored.extend(text for _, text in items)
        return [scores[text] for _, text in items]

    return JudgeContext(gold_scorer=score, gold_ids={"linear": "abc"})


# --- gold ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "choice", "probability"),
    [
        (2.0, 1.0, "first", 0.731059),  # sigmoid(1)
        (1.0, 2.0, "second", 0.268941),
        (1.0, 1.0, "tie", 0.5),
        (0.5, 0.25, "tie", 0.562177),  # sigmoid(0.25), within the margin of 0.25
        (0.25, 0.51, "second", 0.435364),  # sigmoid(-0.26)
        (900.0, -900.0, "first", 1.0),
    ],
)
def test_the_higher_score_wins(first: float, second: float, choice: str, probability: float) -> None:
    judge = RewardModelJudge(gold="linear", tie_margin=0.25).open(scorer({"one": first, "other": second}))
    verdict = judge.compare(prompt("dry"), "one", "other")
    assert (verdict.choice, verdict.answered, verdict.calls) == (choice, True, 1)
    assert verdict.probability == pytest.approx(probability, abs=1e-6)
    assert verdict.text == f"score(A) = {first:g}, score(B) = {second:g}"


def test_each_response_is_scored_once() -> None:
    scored: list[str] = []
    judge = RewardModelJudge(gold="linear").open(scorer({"a": 0.0, "b": 1.0, "c": 2.0}, scored))
    questions = [*both_orders(prompt("dry"), "a", "b"), *both_orders(prompt("dry"), "a", "c")]
    assert [verdict.choice for _, verdict in judge.verdicts(questions)] == ["second", "first", "second", "first"]
    assert scored == ["a", "b", "c"]


@pytest.mark.parametrize("scores", [(math.nan, 1.0), (math.inf, math.inf)])
def test_a_score_that_is_none_is_missing(scores: tuple[float, float]) -> None:
    verdict = RewardModelJudge(gold="linear").open(scorer(dict(zip("ab", scores, strict=True)))).compare(prompt("dry"), "a", "b")
    assert (verdict.choice, verdict.failure) == (None, NO_SCORE)


# --- a folder -----------------------------------------------------------------------------------------------------------------------


def verdicts(judge: RewardModelJudge, questions: Sequence[Question] = PAIRS) -> dict[Question, Verdict]:
    return dict(judge.open(JudgeContext()).verdicts(questions))


def test_a_folder_judges_as_it_scores(folder: Path) -> None:
    """Against `score` itself, item by item; the two orders mirror each other: sigmoid(x) + sigmoid(-x) = 1."""
    by_question, loaded = verdicts(RewardModelJudge(path=str(folder))), rewards.load_reward_model(folder)
    assert list(by_question) == PAIRS
    for question, verdict in by_question.items():
        items = [(question.prompt, question.first), (question.prompt, question.second)]
        (first, second), counts = rewards.score(*loaded, items, settings())
        assert verdict.choice == ("first" if first > second else "second")
        assert verdict.probability == pytest.approx(1 / (1 + math.exp(second - first)), abs=1e-5)
        assert verdict.prompt_tokens == counts["scored_tokens"]
    for ab, ba in zip(PAIRS[::2], PAIRS[1::2], strict=True):
        assert by_question[ab].probability + by_question[ba].probability == pytest.approx(1, abs=1e-5)
    assert {verdict.choice for verdict in by_question.values()} == {"first", "second"}


def test_a_folder_is_found_beside_the_experiment(folder: Path) -> None:
    judge = RewardModelJudge(path=folder.name).open(JudgeContext(base=str(folder.parent)))
    assert judge.compare(PAIRS[0].prompt, PAIRS[0].first, PAIRS[0].second) == verdicts(RewardModelJudge(path=str(folder)))[PAIRS[0]]


def test_what_does_not_fit_is_not_cut(folder: Path) -> None:
    """The longer response fits exactly where as many tokens are allowed as it and its prompt are; with one fewer its question is not
    scored, and another one is."""
    long, short = Question(prompt("dry"), "no", "rinse and dry and boil"), Question(prompt("dry"), "no", "")
    tokenizer = load_tokenizer(folder)
    longest = len(ChatFormat(tokenizer).encode_scored(long.prompt, long.second, 999).ids)
    whole = verdicts(RewardModelJudge(path=str(folder), max_tokens=longest), [long, short])
    assert None not in {verdict.choice for verdict in whole.values()}
    cut = verdicts(RewardModelJudge(path=str(folder), max_tokens=longest - 1), [long, short])
    assert (cut[long].choice, cut[long].failure, cut[long].answered, cut[long].calls) == (None, TOO_LONG, True, 0)
    assert cut[short].choice == whole[short].choice


def test_an_axis_without_an_output_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="no output for axis 'humour'"):
        verdicts(RewardModelJudge(path=str(folder)), [Question(prompt("dry", axis="humour"), "no", "boil")])


# --- parameters ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"gold": "linear", "path": "minilm"}])
def test_exactly_one_model(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^RewardModelJudge: give exactly one of gold and path, got gold="):
        RewardModelJudge(**fields)


def test_a_gold_model_needs_a_run_and_a_path_a_folder() -> None:
    with pytest.raises(InputError, match=r"^RewardModelJudge: gold: 'linear' is a reward model of a run"):
        RewardModelJudge(gold="linear").open(JudgeContext())
    with pytest.raises(InputError, match=r"^RewardModelJudge: gold: no gold reward model 'other'; there are: linear$"):
        RewardModelJudge(gold="other").open(scorer({}))
    with pytest.raises(InputError, match=r"path: '\./nowhere': no such model folder"):
        RewardModelJudge(path="./nowhere").open(JudgeContext())


def test_the_identity_is_the_content_and_the_parameters(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    identity, same, other = (
        judge.open(JudgeContext()).identity
        for judge in (
            RewardModelJudge(path=str(folder)), RewardModelJudge(path=str(copy)), RewardModelJudge(path=str(folder), tie_margin=0.5),
        )
    )  # fmt: skip
    assert identity == same != other
    assert str(folder) not in json.dumps(identity)
    (copy / "README.md").write_text("Another model.")
    assert RewardModelJudge(path=str(copy)).open(JudgeContext()).identity != identity

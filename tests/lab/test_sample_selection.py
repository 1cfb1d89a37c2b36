"""Selection among scored samples, and golden responses over samples."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apo_bench.errors import InputError
from apo_bench.lab import best_of, best_worst, golden_over_samples, with_mismatched
from apo_bench.types import Demonstration, Golden, Group, Message, Pair, Prompt, Response, UnpairedExample

PROMPTS = [Prompt(f"id{number}", (Message("user", f"question {number}"),), "helpful", f"cluster{number}") for number in range(4)]
texts = st.sampled_from(["a", "b", "c", "d"])
values = st.sampled_from([-1.0, 0.0, 0.5, 2.0])


@st.composite
def groups(draw: st.DrawFn) -> list[Group]:
    prompts = draw(st.lists(st.sampled_from(PROMPTS), unique=True, max_size=4))
    answers = [draw(st.lists(st.tuples(texts, values), min_size=1, max_size=5)) for _ in prompts]
    return [Group(prompt, *map(tuple, zip(*some, strict=True))) for prompt, some in zip(prompts, answers, strict=True)]


@given(groups())
def test_best_of_takes_the_first_of_the_best(some: list[Group]) -> None:
    best = best_of(some)
    assert [demonstration.prompt for demonstration in best] == [group.prompt for group in some]
    for demonstration, group in zip(best, some, strict=True):
        winners = [text for text, value in zip(group.responses, group.scores, strict=True) if value == max(group.scores)]
        assert demonstration.response == winners[0]


@given(groups())
def test_best_worst_gives_no_pair_for_ties(some: list[Group]) -> None:
    pairs = {pair.prompt: pair for pair in best_worst(some)}
    for group in some:
        scores = dict(zip(group.scores[::-1], group.responses[::-1], strict=True))  # reversed: the first of equals stays
        best, worst = scores[max(scores)], scores[min(scores)]
        if len(scores) == 1 or best == worst:
            assert group.prompt not in pairs
        else:
            assert pairs[group.prompt] == Pair(group.prompt, best, worst, "best_over_worst")
    assert len(pairs) == len(best_worst(some))


@given(st.lists(st.sampled_from(PROMPTS), unique=True, min_size=1), st.data())
def test_golden_over_samples_gives_each_sample_a_duel(prompts: list[Prompt], data: st.DataObject) -> None:
    golden = [Golden(prompt, data.draw(texts)) for prompt in prompts]
    samples = [Response(prompt, data.draw(texts), 1, "eos") for prompt in prompts for _ in range(3)]
    duels = golden_over_samples(golden, samples)
    gold = {response.prompt: response.text for response in golden}
    assert [(pair.prompt, pair.rejected) for pair in duels] == [(sample.prompt, sample.text) for sample in samples]
    assert all(pair.chosen == gold[pair.prompt] and pair.source == "golden_over_sample" for pair in duels)


def test_an_empty_response_is_never_imitated() -> None:
    """The highest score is an empty response's; of the second prompt's only response nothing is left."""
    some = [Group(PROMPTS[0], ("", "a", "b"), (9.0, 0.5, 0.7)), Group(PROMPTS[1], (" \n",), (1.0,))]
    assert best_of(some) == (Demonstration(PROMPTS[0], "b"),)


def test_selection_by_hand() -> None:
    first, second = PROMPTS[:2]
    some = [Group(first, ("a", "b", "c"), (0.5, 2.0, 2.0)), Group(second, ("x", "y"), (1.0, 1.0))]
    assert best_of(some) == (Demonstration(first, "b"), Demonstration(second, "x"))
    assert best_worst(some) == (Pair(first, "b", "a", "best_over_worst"),)
    samples = [Response(first, "g", 1, "eos"), Response(first, "s", 1, "eos")]
    duels = tuple(Pair(first, "g", text, "golden_over_sample") for text in ("g", "s"))
    assert golden_over_samples([Golden(first, "g")], samples) == duels


def test_a_mismatched_response_is_the_last_before_it_to_another_prompt() -> None:
    """Prompts 0, 0, 1, 2: the first takes that of the last, and so does the second, whose neighbour has its own prompt."""
    examples = [UnpairedExample(PROMPTS[number], text, text < "c") for number, text in ((0, "a"), (0, "b"), (1, "c"), (2, "d"))]
    mismatched = with_mismatched(examples)
    assert [example.mismatched for example in mismatched] == ["d", "d", "b", "c"]
    assert [(example.prompt, example.response, example.desirable) for example in mismatched] == [
        (example.prompt, example.response, example.desirable) for example in examples
    ]


def test_without_another_prompt_nothing_is_mismatched() -> None:
    with pytest.raises(InputError, match="all examples have the same"):
        with_mismatched([UnpairedExample(PROMPTS[0], text, True) for text in "ab"])

"""Training data selected from scored samples, or from golden responses."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from apo_bench.errors import InputError
from apo_bench.training.data import best_and_worst
from apo_bench.types import Demonstration, Golden, Group, Pair, Response, UnpairedExample


def golden_over_samples(golden: Sequence[Golden], samples: Sequence[Response]) -> tuple[Pair, ...]:
    """Golden above each of the samples on its prompt (the APO paper's duels).

    A sample equal to the golden response stays in: its margin is 0 whatever the weights, so it has no gradient, and the number
    of updates does not depend on how well the opponent plays. Arms stay matched.
    """
    texts = {response.prompt.id: response.text for response in golden}
    return tuple([Pair(sample.prompt, texts[sample.prompt.id], sample.text, "golden_over_sample") for sample in samples])


def best_of(groups: Sequence[Group]) -> tuple[Demonstration, ...]:
    """The best-scored response to each prompt; among equals the first.

    An empty response is never imitated, whatever its score, as in the APO authors' code: a prompt with no other is left out.
    """
    best = []
    for group in groups:
        written = [place for place, text in enumerate(group.responses) if text.strip()]
        if written:
            place = written[int(np.argmax([group.scores[place] for place in written]))]
            best.append(Demonstration(group.prompt, group.responses[place]))
    return tuple(best)


def best_worst(groups: Sequence[Group]) -> tuple[Pair, ...]:
    """The best-scored response over the worst to each prompt; a tie, or equal texts, gives no pair."""
    pairs = []
    for group in groups:
        if places := best_and_worst(group.responses, group.scores):
            best, worst = (group.responses[place] for place in places)
            pairs.append(Pair(group.prompt, best, worst, "best_over_worst"))
    return tuple(pairs)


def with_mismatched(examples: Sequence[UnpairedExample]) -> tuple[UnpairedExample, ...]:
    """Each example with the response of the one before it that has another prompt, the last following on the first.

    Nearly every response is thereby mismatched once. Raises InputError where all have the same prompt.
    """
    if len({example.prompt.id for example in examples}) < 2:
        raise InputError("lab.with_mismatched: a mismatched response is one to another prompt, and all examples have the same")
    mismatched = []
    for place, example in enumerate(examples):
        other = next(other for step in range(1, len(examples)) if (other := examples[place - step]).prompt.id != example.prompt.id)
        mismatched.append(replace(example, mismatched=other.response))
    return tuple(mismatched)

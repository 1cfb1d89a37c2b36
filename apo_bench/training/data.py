"""What a policy is trained on, and whether a loss can read it. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from apo_bench.errors import InputError
from apo_bench.types import Demonstration, Group, Pair, TrainingItem, UnpairedExample

KINDS: Mapping[type, str] = {Demonstration: "demonstrations", Pair: "pairs", UnpairedExample: "unpaired", Group: "groups"}


def kind_of(item: TrainingItem) -> str:
    """What a training item is, as losses call it."""
    return KINDS[type(item)]


def sides_of(item: TrainingItem) -> tuple[str, ...]:
    """The responses of an item, in the order in which a loss sees them."""
    if isinstance(item, Pair):
        return item.chosen, item.rejected
    return item.responses if isinstance(item, Group) else (item.response,)


def check_data(loss: Any, data: Sequence[TrainingItem], has_reference: bool) -> None:
    """Raises InputError, before anything is spent, where the loss cannot be trained on these data."""
    name = type(loss).__name__
    if missing := [attribute for attribute in ("reads", "needs_reference") if not hasattr(loss, attribute)]:
        raise InputError(f"lab.train_policy: {name} has no {missing[0]}; a policy loss declares reads and needs_reference")
    if unlike := next((kind_of(item) for item in data if kind_of(item) != loss.reads), None):
        raise InputError(f"lab.train_policy: {name} reads {loss.reads}, got {unlike}")
    if len({len(sides_of(item)) for item in data}) > 1:
        raise InputError("lab.train_policy: groups of different sizes; give each prompt the same number of responses")
    if loss.needs_reference != has_reference:
        wrong = "needs a reference policy; give reference=" if loss.needs_reference else "reads no reference policy; leave reference out"
        raise InputError(f"lab.train_policy: {name} {wrong}")

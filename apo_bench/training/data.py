"""What a policy is trained on, and whether a loss can read it. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from apo_bench.config.schema import Recipe
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
    if isinstance(item, UnpairedExample) and item.mismatched is not None:
        return item.response, item.mismatched
    return item.responses if isinstance(item, Group) else (item.response,)


def check_data(loss: Any, data: Sequence[TrainingItem], has_reference: bool, recipe: Recipe) -> None:
    """Raises InputError, before anything is spent, where the loss cannot be trained on these data by this recipe."""
    name = type(loss).__name__
    if missing := [attribute for attribute in ("reads", "needs_reference") if not hasattr(loss, attribute)]:
        raise InputError(f"lab.train_policy: {name} has no {missing[0]}; a policy loss declares reads and needs_reference")
    if unlike := next((kind_of(item) for item in data if kind_of(item) != loss.reads), None):
        raise InputError(f"lab.train_policy: {name} reads {loss.reads}, got {unlike}")
    if len({len(sides_of(item)) for item in data}) > 1:
        raise InputError("lab.train_policy: groups of different sizes; give each prompt the same number of responses")
    if getattr(loss, "needs_mismatched", False) and any(len(sides_of(item)) == 1 for item in data):
        raise InputError(f"lab.train_policy: {name} needs mismatched responses; give it lab.with_mismatched(examples)")
    if loss.needs_reference != has_reference:
        wrong = "needs a reference policy; give reference=" if loss.needs_reference else "reads no reference policy; leave reference out"
        raise InputError(f"lab.train_policy: {name} {wrong}")
    if couples_items(loss) and recipe.items_per_pass != recipe.batch_size:
        sizes = f"micro_batch_size {recipe.micro_batch_size} would split its {recipe.batch_size} items"
        raise InputError(f"lab.train_policy: {name} reads an update whole: {sizes}; leave it out")


def couples_items(loss: Any) -> bool:
    """Whether a loss reads an update whole, since its terms depend on the other items."""
    return getattr(loss, "couples_items", False)

"""What a policy is trained on, and whether a loss can read it. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from apo_bench.config.schema import Recipe
from apo_bench.errors import InputError
from apo_bench.types import Demonstration, Group, Pair, TrainingItem, UnpairedExample

ON_DEMAND = ("log_collision", "entropy")  # fields of a view that are computed where a loss names them in `also_reads`
ONLINE = ("rollouts", "pairs")  # what algorithms read that are trained online
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
        raise InputError(f"lab.train_policy: {name} {_reference_fault(loss)}")
    if couples_items(loss) and recipe.items_per_pass != recipe.batch_size:
        sizes = f"micro_batch_size {recipe.micro_batch_size} would split its {recipe.batch_size} items"
        raise InputError(f"lab.train_policy: {name} reads an update whole: {sizes}; leave it out")


def check_online(algorithm: Any, has_reference: bool, recipe: Recipe, prompts: int, steps: int, prompts_per_step: int, n: int) -> None:
    """Raises InputError, before anything is spent, where a policy cannot be trained online like that. `prompts`: how many there are."""
    name, verb = type(algorithm).__name__, "lab.train_online"
    if missing := [attribute for attribute in ("reads", "needs_reference") if not hasattr(algorithm, attribute)]:
        raise InputError(f"{verb}: {name} has no {missing[0]}; an online algorithm declares reads and needs_reference")
    if algorithm.reads not in ONLINE:
        raise InputError(f"{verb}: {name} reads {algorithm.reads}; what is trained online reads {' or '.join(ONLINE)}")
    least = {"steps": (steps, 1), "prompts_per_step": (prompts_per_step, 1), "n": (n, 2 if algorithm.reads == "pairs" else 1)}
    if wrong := next((key for key, (value, bound) in least.items() if value < bound), None):
        raise InputError(f"{verb}: {wrong} is {least[wrong][1]} or more for {name}, got {least[wrong][0]}")
    if prompts_per_step > prompts:
        raise InputError(f"{verb}: prompts_per_step {prompts_per_step}, but the policy split has {prompts} prompts")
    if unknown := [field for field in getattr(algorithm, "also_reads", ()) if field not in ON_DEMAND]:
        raise InputError(f"{verb}: {name} also_reads {unknown[0]!r}; there are: {', '.join(ON_DEMAND)}")
    if algorithm.needs_reference != has_reference:
        raise InputError(f"{verb}: {name} {_reference_fault(algorithm)}")
    if couples_items(algorithm) and recipe.items_per_pass != recipe.batch_size:
        sizes = f"micro_batch_size {recipe.micro_batch_size} would split its {recipe.batch_size} items"
        raise InputError(f"{verb}: {name} reads an update whole: {sizes}; leave it out")


def _reference_fault(loss: Any) -> str:
    return "needs a reference policy; give reference=" if loss.needs_reference else "reads no reference policy; leave reference out"


def best_and_worst(texts: Sequence[str], scores: Sequence[float]) -> tuple[int, int] | None:
    """Places of the best-scored and the worst of a prompt's responses, the first among equals; None for a tie, or equal texts."""
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    return (best, worst) if scores[best] > scores[worst] and texts[best] != texts[worst] else None


def couples_items(loss: Any) -> bool:
    """Whether a loss reads an update whole, since its terms depend on the other items."""
    return getattr(loss, "couples_items", False)

"""What a loss can be trained on, refused in one line before anything is spent."""

from dataclasses import dataclass
from typing import Any

import pytest

from apo_bench.config.schema import Recipe
from apo_bench.errors import InputError
from apo_bench.losses import AOTLoss, BCOLoss, DPOLoss, KTOLoss, RRHFLoss, SFTLoss
from apo_bench.training.data import check_data, kind_of, sides_of
from apo_bench.types import Demonstration, Group, Message, Pair, Prompt, UnpairedExample

PROMPT = Prompt("id", (Message("user", "how do i wash it"),), "helpful", "cluster")
DEMONSTRATION, PAIR, LABELLED = Demonstration(PROMPT, "rinse"), Pair(PROMPT, "rinse", "no"), UnpairedExample(PROMPT, "no", False)
GROUP = Group(PROMPT, ("rinse", "no", "dry"), (2.0, 0.0, 1.0))
WITH_MISMATCHED = UnpairedExample(PROMPT, "no", False, "boil")
WHOLE = Recipe(learning_rate=1e-3, epochs=1, batch_size=8)


@dataclass(frozen=True)
class Undeclared:
    """A loss that does not say what it reads."""

    def __call__(self, view: Any) -> Any:
        return view.response_logps.sum(dim=1)


def test_kinds_and_sides_of_items() -> None:
    items = (DEMONSTRATION, PAIR, LABELLED, WITH_MISMATCHED, GROUP)
    assert [kind_of(item) for item in items] == ["demonstrations", "pairs", "unpaired", "unpaired", "groups"]
    assert [sides_of(item) for item in items] == [("rinse",), ("rinse", "no"), ("no",), ("no", "boil"), ("rinse", "no", "dry")]


@pytest.mark.parametrize(
    ("data", "loss", "has_reference", "message"),
    [
        ([GROUP], SFTLoss(), False, "SFTLoss reads demonstrations, got groups"),
        ([GROUP], DPOLoss(0.1), True, "DPOLoss reads pairs, got groups"),
        ([LABELLED], DPOLoss(0.1), True, "DPOLoss reads pairs, got unpaired"),
        ([DEMONSTRATION], RRHFLoss(), False, "RRHFLoss reads groups, got demonstrations"),
        ([GROUP, PAIR], RRHFLoss(), False, "RRHFLoss reads groups, got pairs"),
        ([GROUP, Group(PROMPT, ("no", "dry"), (0.0, 1.0))], RRHFLoss(), False, "groups of different sizes; give each prompt the same"),
        ([PAIR], DPOLoss(0.1), False, "DPOLoss needs a reference policy; give reference="),
        ([DEMONSTRATION], SFTLoss(), True, "SFTLoss reads no reference policy; leave reference out"),
        ([LABELLED], KTOLoss(), True, "KTOLoss needs mismatched responses; give it lab.with_mismatched"),
        ([DEMONSTRATION], Undeclared(), False, "Undeclared has no reads; a policy loss declares reads and needs_reference"),
    ],
)
def test_data_that_a_loss_cannot_read_are_refused(data: Any, loss: Any, has_reference: bool, message: str) -> None:
    with pytest.raises(InputError, match=rf"^lab\.train_policy: {message}[^\n]*$"):
        check_data(loss, data, has_reference, WHOLE)


def test_data_that_a_loss_reads_are_accepted() -> None:
    check_data(SFTLoss(), [DEMONSTRATION], False, WHOLE)
    check_data(DPOLoss(0.1), [PAIR, PAIR], True, WHOLE.model_copy(update={"micro_batch_size": 2}))
    check_data(RRHFLoss(), [GROUP, GROUP], False, WHOLE)
    check_data(KTOLoss(), [WITH_MISMATCHED], True, WHOLE)


@pytest.mark.parametrize(("loss", "item"), [(AOTLoss(), PAIR), (KTOLoss(), WITH_MISMATCHED), (BCOLoss(), LABELLED)])
def test_an_update_whose_items_are_compared_is_not_split(loss: Any, item: Any) -> None:
    recipe = WHOLE.model_copy(update={"micro_batch_size": 2})
    with pytest.raises(InputError, match=r"reads an update whole: micro_batch_size 2 would split its 8 items; leave it out$"):
        check_data(loss, [item], True, recipe)
    check_data(loss, [item], True, WHOLE.model_copy(update={"micro_batch_size": 8}))

"""What a loss can be trained on, refused in one line before anything is spent."""

from dataclasses import dataclass
from typing import Any

import pytest

from apo_bench.errors import InputError
from apo_bench.losses import DPOLoss, RRHFLoss, SFTLoss
from apo_bench.training.data import check_data, kind_of, sides_of
from apo_bench.types import Demonstration, Group, Message, Pair, Prompt, UnpairedExample

PROMPT = Prompt("id", (Message("user", "how do i wash it"),), "helpful", "cluster")
DEMONSTRATION, PAIR, LABELLED = Demonstration(PROMPT, "rinse"), Pair(PROMPT, "rinse", "no"), UnpairedExample(PROMPT, "no", False)
GROUP = Group(PROMPT, ("rinse", "no", "dry"), (2.0, 0.0, 1.0))


@dataclass(frozen=True)
class Undeclared:
    """A loss that does not say what it reads."""

    def __call__(self, view: Any) -> Any:
        return view.response_logps.sum(dim=1)


def test_kinds_and_sides_of_items() -> None:
    items = (DEMONSTRATION, PAIR, LABELLED, GROUP)
    assert [kind_of(item) for item in items] == ["demonstrations", "pairs", "unpaired", "groups"]
    assert [sides_of(item) for item in items] == [("rinse",), ("rinse", "no"), ("no",), ("rinse", "no", "dry")]


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
        ([DEMONSTRATION], Undeclared(), False, "Undeclared has no reads; a policy loss declares reads and needs_reference"),
    ],
)
def test_data_that_a_loss_cannot_read_are_refused(data: Any, loss: Any, has_reference: bool, message: str) -> None:
    with pytest.raises(InputError, match=rf"^lab\.train_policy: {message}[^\n]*$"):
        check_data(loss, data, has_reference)


def test_data_that_a_loss_reads_are_accepted() -> None:
    check_data(SFTLoss(), [DEMONSTRATION], False)
    check_data(DPOLoss(0.1), [PAIR, PAIR], True)
    check_data(RRHFLoss(), [GROUP, GROUP], False)

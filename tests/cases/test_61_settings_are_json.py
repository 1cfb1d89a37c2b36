"""What a judge's `extra` holds goes into a request as it is: what JSON cannot say is refused before anything is asked."""

import math
from typing import Any

import pytest

from apo_bench.clients.endpoint import Sampling
from apo_bench.errors import InputError
from apo_bench.judging.chat_judge import ChatJudge


@pytest.mark.parametrize("value", [math.nan, math.inf, [math.nan], {"a": -math.inf}, b"a"])
def test_a_value_that_json_has_not(value: Any) -> None:
    with pytest.raises(InputError, match=r"ChatJudge: extra: no JSON: "):
        ChatJudge("m", "http://127.0.0.1:1/v1", extra={"top_p": value})


def test_a_value_that_json_has() -> None:
    extra = {"top_p": 0.5, "stop": ["x", None], "nested": {"a": [True]}}
    assert extra.items() <= Sampling(extra=extra).body().items()

"""`export --format model` of a run whose store was moved or pruned by hand: one line that names the folder."""

from pathlib import Path

import pytest

from apo_bench.config.schema import Arm, PolicyModel
from apo_bench.errors import InputError
from apo_bench.exchange.export_model import _policy


def test_a_policy_whose_folder_is_gone(tmp_path: Path) -> None:
    settings, arm = PolicyModel.model_construct(), Arm.model_construct()
    with pytest.raises(InputError, match=r"store/policies/abc: the policy is not in the store any more"):
        _policy(tmp_path / "store" / "policies" / "abc", settings, arm)

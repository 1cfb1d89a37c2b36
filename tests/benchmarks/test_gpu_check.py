"""The GPU check at toy sizes on a CPU: every part that needs no process of its own gives its rows, and measures nothing on the page."""

from pathlib import Path

import pytest

from apo_bench.config.python_files import load_python_file

check = load_python_file(Path(__file__).parents[2] / "benchmarks" / "gpu" / "check.py")
TOY = check.SHAPES["toy"]


@pytest.mark.slow
def test_parts_give_their_rows() -> None:
    """Two precisions and their ratio, RRHF and DPO, two batch sizes and the KL of a model from itself, and three batches of samples."""
    parts = (check.steps, check.training_memory, check.divergence, check.sampling_speed)
    rows = {part.__name__: dict(check.measured(part, TOY)) for part in parts}
    assert {name: len(values) for name, values in rows.items()} == {"steps": 3, "training_memory": 2, "divergence": 3, "sampling_speed": 3}
    assert not any("failed" in value for values in rows.values() for value in values.values())
    assert rows["divergence"]["KL of a model from itself"] == "at most 0 nats"


def test_a_part_that_fails_leaves_a_row_and_stops_no_other() -> None:
    def breaks(shape: object) -> check.Rows:
        yield "before", "1"
        raise RuntimeError("no | kernel\nfor this")

    assert check.measured(breaks, TOY) == [("before", "1"), ("breaks", "failed: RuntimeError: no / kernel for this")]


def test_without_a_gpu_the_table_is_empty() -> None:
    page = check.page([("update", "0.1 s")], None)
    assert "not run on a GPU yet" in page
    assert "0.1 s" not in page
    assert "| update | 0.1 s |" in check.page([("update", "0.1 s")], TOY)
    assert (Path(check.__file__).with_name("RESULTS.md")).exists()

"""What each arm-seed added to a run, by hand."""

from apo_bench.lab.ledger import UNITS, marginals
from apo_bench.run.tables import _marginals_of


def test_what_is_made_and_bought_is_whose_comes_first() -> None:
    """The second shares x, and pays for y; it buys c alone. The third finds everything there. Units that nobody spent are 0."""
    nobody: dict[str, set[str]] = {"human_pairs": set(), "golden_responses": set()}
    first = ("rjs", {"x": {"flops": 5.0, "truncated": 9.0}}, {**nobody, "human_pairs": ["a", "b"]})
    second = ("apo", {"x": {"flops": 5.0}, "y": {"flops": 2.0, "rm_updates": 1.0}}, {**nobody, "human_pairs": ["b", "c"]})
    third = ("again", {"y": {"flops": 2.0, "rm_updates": 1.0}}, {**nobody, "human_pairs": ["a", "c"]})
    spent = marginals([first, second, third])
    assert list(spent) == ["rjs", "apo", "again"]
    assert spent["rjs"] == dict.fromkeys(UNITS, 0.0) | {"flops": 5, "human_pairs": 2}
    assert spent["apo"] == dict.fromkeys(UNITS, 0.0) | {"flops": 2, "rm_updates": 1, "human_pairs": 1}
    assert spent["again"] == dict.fromkeys(UNITS, 0.0)


def test_of_records_older_than_that_nothing_is_known() -> None:
    seen = {"human_pairs": ["a"], "golden_responses": []}
    new = {"charged": {"x": {"flops": 1.0}}, "seen": seen}
    assert _marginals_of({("rjs", 0): new})["rjs", 0]["flops"] == 1
    assert _marginals_of({("rjs", 0): new, ("rjs", 1): {"used": {}}}) == {}

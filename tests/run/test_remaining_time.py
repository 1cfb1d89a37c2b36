"""The estimate of the time that unfinished jobs take."""

from apo_bench.run.remaining_time import remaining_time


def test_a_job_takes_the_median_of_its_kind() -> None:
    """a: the median of 1, 2, 9 is 2; one open job has 2 - 0.5 left, one that has run for longer has 0. Nothing is known of b."""
    assert remaining_time([("a", 0.5), ("a", 7.0), ("b", 0.0)], {"a": [1.0, 2.0, 9.0]}) == (1.5, 1)


def test_a_kind_without_finished_jobs_takes_the_default() -> None:
    assert remaining_time([("b", 1.0)], {"a": [4.0]}, default=[4.0, 6.0]) == (4.0, 0)
    assert remaining_time([], {}) == (0.0, 0)

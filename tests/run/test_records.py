"""Records: which code is in their key."""

from apo_bench.hashing import PACKAGE, code_files


def test_a_records_key_holds_the_code_that_computes_it_and_none_that_shows_or_checks_it() -> None:
    """All rows come from the worker. Of its own room it needs three more modules; whatever else is edited there invalidates no record."""
    files = {str(path.relative_to(PACKAGE)) for path in code_files("apo_bench.run.worker")}
    assert {file for file in files if file.startswith("run/")} == {f"run/{name}.py" for name in ("worker", "records", "experiment", "jobs")}
    assert {"evaluation/evaluate.py", "evaluation/oracle.py", "lab/lab.py", "config/plugins.py", "data/task.py", "store.py"} <= files
    assert not {file.partition("/")[0] for file in files} & {"cli", "report", "analysis", "judging", "clients", "plan", "exchange"}
    assert "formatting.py" not in files

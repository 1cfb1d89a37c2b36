"""Two commands that read a run's files, change them and write them back, at once: both changes stay."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
from judged_run import SIMULATED, judged, run_folder
from tiny_world import tiny_task

from apo_bench.config.load import load_experiment
from apo_bench.config.schema import JudgeChoice
from apo_bench.errors import InputError
from apo_bench.run import judges


def add_at_once(folder: Path, choices: Mapping[str, JudgeChoice]) -> list[BaseException]:
    """Add the judges, each in a thread that has read the run's files before any writes."""
    experiment, errors = load_experiment(folder / "experiment.yaml"), list[BaseException]()
    ready, open_judge = threading.Barrier(len(choices)), judges.open_judge

    def add(name: str, choice: JudgeChoice) -> None:
        try:
            judges.add_judge(folder, name, choice, experiment, tiny_task())
        except BaseException as error:
            errors.append(error)

    def together(*given: object) -> object:
        ready.wait(60)
        return open_judge(*given)  # pyright: ignore[reportArgumentType]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "open_judge", together)
        threads = [threading.Thread(target=add, args=item) for item in choices.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return errors


@pytest.mark.slow
def test_judges_that_are_added_at_once_all_stay(tmp_path: Path) -> None:
    """Their choices, verdicts, audits and manifest entries, and those of the run's own judge."""
    folder = run_folder(tmp_path / "run", {"attacks": False}, judges={"own": {"use": SIMULATED}})
    judged(folder)
    choices = {f"j{n}": JudgeChoice(use=SIMULATED, noise=1.0 + n) for n in range(3)}  # pyright: ignore[reportCallIssue]
    assert add_at_once(folder, choices) == []
    assert set(json.loads((folder / "judges.json").read_text())) == set(choices)
    assert set(json.loads((folder / "manifest.json").read_text())["judges"]) == {"own", *choices}
    for table in ("judgments", "judge_audit"):
        assert set(pd.read_parquet(folder / "tables" / f"{table}.parquet")["judge"]) == {"own", *choices}


@pytest.mark.slow
def test_a_run_that_was_made_anew_meanwhile_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_folder(tmp_path / "run", {"audit_pairs": 0})
    path, ask = folder / "tables" / "responses.parquet", judges._ask

    def changing(*given: object) -> object:
        result = ask(*given)  # pyright: ignore[reportArgumentType]
        responses = pd.read_parquet(path)
        responses.assign(text=responses["text"] + " then dip").to_parquet(path)
        return result

    monkeypatch.setattr(judges, "_ask", changing)
    choice = JudgeChoice(use=SIMULATED)  # pyright: ignore[reportCallIssue]
    with pytest.raises(InputError, match="it was run again meanwhile"):
        judges.add_judge(folder, "late", choice, load_experiment(folder / "experiment.yaml"), tiny_task())
    assert not (folder / "judges.json").exists()


@pytest.mark.slow
def test_a_judge_is_removed_and_the_others_stay(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", {"attacks": False}, judges={"own": {"use": SIMULATED}})
    before, _ = judged(folder)
    experiment, choice = load_experiment(folder / "experiment.yaml"), JudgeChoice(use=SIMULATED, noise=2.0)  # pyright: ignore[reportCallIssue]
    judges.add_judge(folder, "late", choice, experiment, tiny_task())
    judges.remove_judge(folder, "late")
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "tables" / "judgments.parquet"), before)
    assert json.loads((folder / "judges.json").read_text()) == {}
    assert set(json.loads((folder / "manifest.json").read_text())["judges"]) == {"own"}
    assert "_judge.late" not in set(pd.read_parquet(folder / "tables" / "timings.parquet")["arm"])
    assert (folder / "store" / "judging" / "late.jsonl").is_file()  # paid for, should it be added again
    with pytest.raises(InputError, match=r"judges\.late: .* has no such judge; added or imported: none"):
        judges.remove_judge(folder, "late")
    with pytest.raises(InputError, match=r"judges\.own: it is in .*'s experiment"):
        judges.remove_judge(folder, "own")

"""`apo-bench judge --remove NAME`: a path in place of a name reaches no file outside the imported verdicts."""

import shutil
from pathlib import Path

import pytest
from judged_run import run_folder

from apo_bench.errors import InputError
from apo_bench.run.judges import remove_judge


@pytest.mark.parametrize("name", ["../tables/scores", "../../mine", "./kept", ""])
def test_what_is_no_judge_is_refused_and_stays(name: str, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", {"audit_pairs": 0})
    imported, scores = folder / "imported", folder / "tables" / "scores.parquet"
    imported.mkdir()
    for place in (tmp_path / "mine.parquet", imported / "kept.parquet"):
        shutil.copy(scores, place)
    with pytest.raises(InputError, match=r"has no such judge; added or imported: kept"):
        remove_judge(folder, name)
    assert all(path.is_file() for path in (scores, tmp_path / "mine.parquet", imported / "kept.parquet"))

"""A published report's contrasts that were edited, cut short or cannot be: named, not compared and not combined."""

from pathlib import Path

import pytest

from apo_bench.analysis.reproduction import read_contrasts
from apo_bench.errors import InputError
from apo_bench.report.write import write_report_files

HEAD = "arm_a,arm_b,axis,scorer,at,family,difference,ci_low,ci_high,p_value,p_adjusted,standard_error,df,n_seeds\n"
ROW = "a,b,all,gpt2,final,primary,0.5,0.1,0.9,0.01,0.02,0.2,4,3\n"


def published(folder: Path, content: str = HEAD + ROW) -> Path:
    write_report_files(folder, {"tables/contrasts.csv": content})
    return folder / "report" / "tables" / "contrasts.csv"


@pytest.mark.parametrize("edited", [HEAD + ROW.replace("0.5", "5.5"), HEAD, HEAD + ROW + ROW.replace("gpt2", "proxy")])
def test_an_edited_table_does_not_match_its_checksum(edited: str, tmp_path: Path) -> None:
    path = published(tmp_path)
    assert read_contrasts(tmp_path).contrasts["difference"].tolist() == [0.5]
    path.write_text(edited)
    with pytest.raises(InputError, match=r"contrasts\.csv: does not match its checksum in report\.json"):
        read_contrasts(tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROW.replace("0.5", "inf"), "column difference: inf cannot be"),
        (ROW.replace("0.02,0.2", "0.02,-0.2"), "column standard_error: -0.2 cannot be"),
    ],
)
def test_numbers_that_cannot_be(row: str, message: str, tmp_path: Path) -> None:
    published(tmp_path, HEAD + row)
    with pytest.raises(InputError, match=rf"contrasts\.csv: {message}"):
        read_contrasts(tmp_path)

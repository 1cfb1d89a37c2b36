"""The journal: nothing that was added is lost, nothing that is damaged is believed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apo_bench.clients.journal import Journal
from apo_bench.errors import InputError

TEXT = st.text(st.characters(codec="utf-8"), max_size=30)


def write(path: Path, *records: tuple[str, dict[str, object]]) -> None:
    with Journal(path).open() as journal:
        for key, record in records:
            journal.add(key, record)


@given(
    records=st.lists(
        st.tuples(TEXT, st.dictionaries(TEXT.filter(lambda name: name != "key"), TEXT | st.floats(allow_nan=False))), max_size=8
    )
)
def test_what_was_added_is_read_back(tmp_path_factory, records):
    """Whatever the texts; of records with one key the last counts."""
    path = tmp_path_factory.mktemp("journal") / "calls.jsonl"
    write(path, *records)
    journal = Journal(path)
    assert journal.n_damaged == 0
    assert journal.records == {key: {"key": key, **record} for key, record in records}


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_torn_last_line_is_left_out_and_does_not_tear_the_next(tmp_path, cut):
    path = tmp_path / "calls.jsonl"
    write(path, ("a", {"x": 1}), ("b", {"x": 2}))
    path.write_bytes(path.read_bytes()[:-cut])
    assert set(Journal(path).records) == ({"a", "b"} if cut == 1 else {"a"})  # only the line's end is gone: the record is whole
    write(path, ("c", {"x": 3}))
    assert set(Journal(path).records) == {"a", "c"} | ({"b"} if cut == 1 else set())


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(tmp_path_factory, place, bit):
    """A line whose bit was flipped is left out, or two if it was the end of a line; the others stand as they were."""
    path = tmp_path_factory.mktemp("journal") / "calls.jsonl"
    write(path, *((str(number), {"text": f"answer {number}"}) for number in range(5)))
    whole, data = Journal(path).records, bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)
    journal = Journal(path)
    assert journal.n_damaged >= 1
    assert len(journal.records) >= 3
    assert all(whole[key] == record for key, record in journal.records.items())


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "calls.jsonl"
    with Journal(path).open(), pytest.raises(InputError, match=r"calls\.jsonl: another process is writing it"), Journal(path).open():
        pass
    with Journal(path).open() as journal:
        journal.add("a", {})
    assert Journal(path).records == {"a": {"key": "a"}}


def test_adding_to_a_journal_that_is_not_open_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not open"):
        Journal(tmp_path / "calls.jsonl").add("a", {})


@pytest.mark.slow
def test_what_was_added_survives_kill_9(tmp_path):
    """A child adds records and kills itself: all of them are there, and the lock is free."""
    path = tmp_path / "calls.jsonl"
    code = (
        "import os, signal, sys; from pathlib import Path; from apo_bench.clients.journal import Journal\n"
        "with Journal(Path(sys.argv[1])).open() as journal:\n"
        "    for number in range(100): journal.add(str(number), {'x': number})\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=dict(os.environ), check=False)
    assert done.returncode == -signal.SIGKILL
    with Journal(path).open() as journal:
        assert [journal.records[str(number)]["x"] for number in range(100)] == list(range(100))

"""Locks and logs, which runs, evaluations, data sets and indexes share."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pixelbert.data.store import PreparedDataset
from pixelbert.data.writer import DatasetWriter
from pixelbert.errors import PixelBertError
from pixelbert.files import append_line, exclusive, read_log

HOLD = """
import os, sys, time
from pathlib import Path
from pixelbert.files import exclusive
with exclusive(Path(sys.argv[1]), "busy"):
    child = os.fork()
    if child == 0:
        time.sleep(60)
    print(child, flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    """Not with the processes that load data for it, which may outlive it."""
    lock = tmp_path / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(PixelBertError, match="busy"), exclusive(lock, "busy"):
            pass
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # it lives on
        with exclusive(lock, "busy"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_lock_waits_for_nobody(tmp_path: Path) -> None:
    with exclusive(tmp_path / "lock", "busy"):  # all the time: who waited would not come back
        done = subprocess.run(
            [sys.executable, "-c", HOLD, str(tmp_path / "lock")], capture_output=True, text=True, timeout=120
        )
    assert "busy" in done.stderr


@pytest.mark.parametrize(
    ("tail", "rows", "damaged"),
    [
        (b"", 2, None),
        (b'{"step": 3}', 2, None),  # killed between the brace and the line break: not a line yet
        (b'{"ste', 2, None),
        (b'{"step": 3}\n', 3, None),
        (b'{"ste\n{"step": 4}\n', 2, 3),
        (b'{"ste\n{"step": 4}\n{"st', 2, 3),
        (b"[1]\n", 2, 3),
        (b"\xff\xfe\n", 2, 3),
        (b'{"step": "3"}\n', 2, 3),
    ],
)
def test_a_log_is_read_to_its_last_whole_line(tmp_path: Path, tail: bytes, rows: int, damaged: int | None) -> None:
    file = tmp_path / "metrics.jsonl"
    append_line(file, {"step": 1})
    append_line(file, {"step": 2})
    sound = file.stat().st_size
    file.write_bytes(file.read_bytes() + tail)
    log = read_log(file, lambda row: isinstance(row.get("step"), int))
    assert (len(log.rows), log.damaged) == (rows, damaged)
    assert log.whole == (sound if rows == 2 else file.stat().st_size)
    assert log.behind == ([{"step": 4}] if b"4" in tail else [])
    assert read_log(tmp_path / "none").rows == []


def test_a_carriage_return_ends_no_line(tmp_path: Path) -> None:
    """One turned bit makes it of a minus sign; nothing that follows is taken for a last line that was cut short."""
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n{"step": 2, "loss":\r3.0x}\n{"step": 3}\n')
    log = read_log(file)
    assert (log.rows, log.damaged, log.behind) == ([{"step": 1}], 2, [{"step": 3}])


def test_two_writers_of_one_data_set(tmp_path: Path) -> None:
    """One has to wait; nothing is left beside what is there in the end, nor by one that was killed."""
    output = tmp_path / "set"
    (tmp_path / ".set.partial").mkdir()  # of one that was killed
    (tmp_path / ".set.lock").touch()
    with DatasetWriter(output, name="a") as writer:
        with pytest.raises(PixelBertError, match="being written by another process"), DatasetWriter(output, name="b"):
            pass
        writer.add_image("a:0", path="0.png", width=4, height=4)
        writer.add_example("train", "a:0", ["a:0"], "a photo")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert PreparedDataset.open(output).name == "a"

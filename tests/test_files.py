"""Locks and logs, which runs, evaluations, data sets and indexes share."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
    began = time.monotonic()
    with exclusive(tmp_path / "lock", "busy"):
        done = subprocess.run(
            [sys.executable, "-c", HOLD, str(tmp_path / "lock")], capture_output=True, text=True, timeout=60
        )
    assert "busy" in done.stderr
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("tail", "rows", "damaged"),
    [
        (b"", 2, None),
        (b'{"step": 3}', 2, None),  # killed between the brace and the line break: not a line yet
        (b'{"ste', 2, None),
        (b'{"step": 3}\n', 3, None),
        (b'{"ste\n{"step": 4}\n', 2, 3),
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
    assert read_log(tmp_path / "none").rows == []

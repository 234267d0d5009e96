"""A run that is asked to end, with the processes that load its data: all are asked, the run saves, and nobody stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pixelbert.train import signals
from pixelbert.train.checkpoint import checkpoints
from pixelbert.train.signals import StopRequest
from test_faults import RECIPE, same, train

# Long enough that it is not at its end when it is asked.
LONG: dict[str, Any] = {"epochs": 40.0, "checkpoint_every": 1000, "evaluate_every": 0, "log_every": 1}
START = """
import multiprocessing, sys
multiprocessing.set_start_method(sys.argv.pop(1))
from pixelbert import cli
cli.main()
"""
# A large checkpoint: to flush it takes longer than torchrun needs to notice that another process has ended.
SLOW_DISK = """
import time
from pixelbert import cli
from pixelbert.train import checkpoint, signals
publish, signals.AGAIN = checkpoint.publish, 0.0
checkpoint.publish = lambda *of: (time.sleep(3), publish(*of))
cli.main()
"""
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def logged(output: Path) -> int:
    file = output / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def children(process: int) -> list[int]:
    """Those that a process has started."""
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def end(processes: list[int], seconds: float = 5) -> bool:
    """Whether all of them end within so many seconds. (One that nobody has waited for stays as a zombie.)"""

    def state(process: int) -> str:
        try:
            return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return "gone"

    deadline = time.monotonic() + seconds
    while (left := [p for p in processes if state(p) not in ("gone", "Z", "X")]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not left


class Run:
    """A run in a process group of its own, with two processes that load data."""

    def __init__(self, tmp_path: Path, method: str = "fork", *launcher: str, **changes: Any) -> None:
        self.output, recipe = tmp_path / "run", tmp_path / "run.yaml"
        recipe.write_text(yaml.safe_dump(RECIPE | LONG | {"data": RECIPE["data"] | {"workers": 2}} | changes))
        command = [*(launcher or (sys.executable, "-c", START, method)), "train", str(recipe)]
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # as many as here, for the same bits
        self.process = subprocess.Popen(
            [*command, "--output", str(self.output)],
            env=os.environ | threads | {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def reach(self, steps: int) -> None:
        """Wait until it has logged so many."""
        deadline = time.monotonic() + 120
        while logged(self.output) < steps:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize(("method", "asked"), [("fork", signal.SIGTERM), ("spawn", signal.SIGHUP)])
def test_the_whole_process_group_is_asked(tmp_path: Path, method: str, asked: signal.Signals) -> None:
    run = Run(tmp_path, method)
    run.reach(3)
    loaders = children(run.process.pid)
    assert len(loaders) >= 2
    os.kill(run.process.pid, asked)  # `timeout` sends it to the process that it started,
    os.killpg(run.process.pid, asked)  # and then to all of the group
    said = run.process.communicate(timeout=60)[1]
    assert run.process.returncode == 128 + asked, said
    assert "Traceback" not in said
    steps = logged(run.output)
    assert f"step {steps} of" in said
    assert [folder.name for folder in checkpoints(run.output)] == [f"step-{steps:08d}"]
    assert end(loaders)


def test_it_goes_on_from_there(tmp_path: Path) -> None:
    changes = {"epochs": 1.2}
    train(tmp_path / "whole", **LONG | changes)
    run = Run(tmp_path, **changes)
    run.reach(3)
    os.killpg(run.process.pid, signal.SIGTERM)
    assert run.process.wait(60) == 128 + signal.SIGTERM
    train(run.output, **LONG | changes)
    assert json.loads((run.output / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 23
    assert same_metrics(run.output, tmp_path / "whole")


def same_metrics(output: Path, whole: Path) -> bool:
    for folder in (output, whole):
        (folder / "validation.jsonl").touch()
    return same(output, whole)


def test_several_that_train(tmp_path: Path) -> None:
    run = Run(tmp_path, "", *TORCHRUN, "-m", "pixelbert")
    run.reach(3)
    ranks = children(run.process.pid)
    loaders = [loader for rank in ranks for loader in children(rank)]
    assert len(ranks) == 2
    assert len(loaders) == 4
    os.killpg(run.process.pid, signal.SIGTERM)  # torchrun hands it to the groups of its own processes
    said = run.process.communicate(timeout=60)[1]
    steps = logged(run.output)
    assert f"step {steps} of" in said
    assert [folder.name for folder in checkpoints(run.output)] == [f"step-{steps:08d}"]
    assert end([*ranks, *loaders])


def test_the_first_of_several_is_asked(tmp_path: Path) -> None:
    """It has to finish the checkpoint, and torchrun ends it as soon as another process has ended."""
    (tmp_path / "slow.py").write_text(SLOW_DISK)
    run = Run(tmp_path, "", *TORCHRUN, str(tmp_path / "slow.py"))
    run.reach(3)
    first = next(p for p in children(run.process.pid) if b"\0RANK=0\0" in Path(f"/proc/{p}/environ").read_bytes())
    os.kill(first, signal.SIGTERM)
    said = run.process.communicate(timeout=60)[1]
    assert [folder.name for folder in checkpoints(run.output)] == [f"step-{logged(run.output):08d}"], said


def test_a_run_that_is_killed_leaves_no_loaders(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.reach(1)
    loaders = children(run.process.pid)
    os.kill(run.process.pid, signal.SIGKILL)
    assert end(loaders, 30)  # they look for it every five seconds


class TestRequests:
    def test_another_at_once_is_the_same_and_a_later_one_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
        try:
            with StopRequest() as stop:
                signal.raise_signal(signal.SIGUSR1)
                signal.raise_signal(signal.SIGTERM)
                assert stop.signal == signal.SIGUSR1
                monkeypatch.setattr(signals, "AGAIN", 0.0)
                with pytest.raises(KeyboardInterrupt):
                    signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.signal(signal.SIGUSR1, before)

    def test_nohup_stays_in_force(self) -> None:
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with StopRequest() as stop:
                signal.raise_signal(signal.SIGHUP)
                assert stop.signal == 0
                assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        finally:
            signal.signal(signal.SIGHUP, before)

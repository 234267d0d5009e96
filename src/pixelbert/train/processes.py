"""The other processes of a run, those that load its data and those that train with it: what to tell of their end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import torch

from pixelbert.errors import PixelBertError
from pixelbert.model.load_report import first_line

LOADER = "DataLoader worker"  # what torch calls a process that loads data
# What tells each of several processes its place: torchrun, then MPIs.
PLACED = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


@contextmanager
def deaths_told() -> Iterator[None]:
    """Turn the error that torch raises, wherever the program is, when another process of the run has died."""
    try:
        yield
    except RuntimeError as error:
        if tells_of_death(error):
            raise death(error) from error
        raise


def tells_of_death(error: BaseException) -> bool:
    """Whether this is torch's word of a dead loading process, or NCCL's or gloo's of nobody at the other end."""
    if not isinstance(error, RuntimeError):
        return False
    said = str(error)
    return isinstance(error, torch.distributed.DistError) or "gloo" in said.lower() or LOADER in said


def death(error: Exception) -> PixelBertError:
    """What to tell of it: the end of a training process, or else of one that loads data."""
    if tells_of_death(error) and LOADER not in str(error):
        return PixelBertError(
            f"another process of this run has died or cannot be reached ({first_line(error)}). Give the same command "
            "again to go on"
        )
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or torch raises once more, in the midst of telling it
    return PixelBertError(
        f"a process that loads data has died ({first_line(error)}). Give the same command again to go on; "
        "if memory is short, with a lower data.workers"
    )


def doubtful_restarts() -> str | None:
    """What to tell a user of `torchrun --max-restarts` whose processes may not find each other again.

    torchrun (2.13) keeps one store, in which processes look each other up, over its restarts: a process may find there
    where one that died was to be reached, and wait for it.
    """
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0" or os.environ.get(OWN_STORE) == "1":
        return None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    return f"set {OWN_STORE}=1 for torchrun, or the processes that it restarts may wait for those that died"


def started_alone() -> str | None:
    """What to tell a user of `accelerate launch --num_processes 2 --cpu`, which starts one process and says nothing.

    So it does without `--cpu` where there is no second GPU. It names a meeting point where several processes are asked
    for; the variables that tell each of several its place come from whatever starts more than one.
    """
    launched = "ACCELERATE_DYNAMO_BACKEND" in os.environ and "MASTER_ADDR" in os.environ
    asked = asked_of_launcher()
    if not launched or asked == 1 or any(name in os.environ for name in PLACED):
        return None
    return (
        f"accelerate launch was asked for {asked or 'several'} processes and has started this one alone: so it does "
        "with --cpu, and where there are not so many GPUs. On CPUs, "
        f"`ACCELERATE_USE_CPU=true torchrun --nproc-per-node {asked or 2} -m pixelbert ...` starts them"
    )


def asked_of_launcher() -> int | None:
    """The `--num_processes` of the command that started this process; None where it has none or cannot be seen."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return None
    for word, following in pairwise(words):
        name, _, value = word.replace("-", "_").partition("=")
        if name == "__num_processes" and (value or following).isdigit():
            return int(value or following)
    return None

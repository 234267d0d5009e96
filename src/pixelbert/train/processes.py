"""The other processes of a run, those that load its data and those that train with it: what to tell of their end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pixelbert.errors import PixelBertError
from pixelbert.model.load_report import first_line

LOADER = "DataLoader worker"  # what torch calls a process that loads data
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

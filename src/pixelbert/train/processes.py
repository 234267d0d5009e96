"""The other processes of a run, those that load its data and those that train with it: what to tell of their end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pixelbert.errors import PixelBertError
from pixelbert.model.load_report import first_line

OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


@contextmanager
def deaths_told() -> Iterator[None]:
    """Turn the error that torch raises, wherever the program is, when another process of the run has died."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise loader_died(error) from error
        if peer_died(error):
            raise PixelBertError(
                f"another process of this run has died or cannot be reached ({first_line(error)}). Give the same "
                "command again to go on"
            ) from error
        raise


def loader_died(error: Exception) -> PixelBertError:
    """What to tell of a process that loads data; and have torch not tell it again when it takes its loader down."""
    before = sys.unraisablehook

    def told(unraisable: sys.UnraisableHookArgs) -> None:
        if "DataLoader worker" not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = told
    return PixelBertError(
        f"a process that loads data has died ({first_line(error)}). Give the same command again to go on; "
        "if memory is short, with a lower data.workers"
    )


def peer_died(error: RuntimeError) -> bool:
    """Whether this is what NCCL or gloo raises when it finds nobody at the other end."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()


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

"""Where to compute and in which precision, when nobody says; and how several processes share an evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
from accelerate import PartialState

from pixelbert.errors import PixelBertError

T = TypeVar("T")
Precision = Literal["bf16", "fp32"]


def best_device(device: str | None = None) -> str:
    """The device that is asked for, or else the best there is.

    Raises:
        PixelBertError: there is no such device.
    """
    device = device or str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise PixelBertError(f"the device {device!r} cannot be used ({reason}): cpu always can") from error
    return device


def best_precision(device: str | torch.device) -> Precision:
    """bf16 where a device computes with it (CUDA since Ampere; CPUs with AVX512-BF16 or AMX), else fp32.

    Elsewhere bfloat16 is emulated: on a CPU with AVX2 a ResNet-50 took eight times as long in it as in float32.
    """
    kind = torch.device(device).type
    able = False
    if kind == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        able = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return "bf16" if able else "fp32"


@dataclass(frozen=True)
class Share:
    """A process's part of work that several do.

    Args:
        rank: its number, from 0.
        world: how many processes there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and tells."""
        return self.rank == 0

    def of(self, items: list[T]) -> list[T]:
        """Of a list that all have alike, what this process does. Each item is one process's; neighbours, which may
        be of one photo, stay together.
        """
        first, end = (len(items) * rank // self.world for rank in (self.rank, self.rank + 1))
        return items[first:end]

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            torch.distributed.barrier()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """What the first process does before the others do the same, and find it done."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()


def launched_share(device: str) -> Share:
    """The share of a process that `accelerate launch` or torchrun has started, which gets a device of the kind to
    itself; else all of the work.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Share()
    # The first may encode photos for long while the others wait.
    state = PartialState(cpu=device == "cpu", timeout=timedelta(hours=12))
    return Share(state.process_index, state.num_processes)

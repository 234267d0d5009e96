"""Where to compute and in which precision, when nobody says; and how several processes share an evaluation."""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from pixelbert.errors import PixelBertError

T = TypeVar("T")
Precision = Literal["bf16", "fp32"]
# What share of float32's time bfloat16 may take at most to be chosen: it rounds more, and a choice by a hair would be
# another one each time.
WORTH_ROUNDING = 0.8


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
    """bf16 where the device is clearly faster in it, else fp32. CUDA says so itself; a CPU's flags don't tell.

    With AVX512-BF16 an AMD EPYC is the faster in bfloat16, and an Intel Xeon without AMX takes twice as long as in
    float32; without such instructions it is emulated, and took eight times as long and more.
    """
    kind = torch.device(device).type
    faster = False
    if kind == "cuda":
        faster = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        taken = cpu_milliseconds()
        faster = taken["bf16"] < WORTH_ROUNDING * taken["fp32"]
    return "bf16" if faster else "fp32"


@functools.cache
def cpu_milliseconds() -> dict[Precision, float]:
    """What the network does most, a matrix product and a 3x3 convolution, in either precision: measured once in a
    process, in about 50 ms (200 where bfloat16 is emulated), with no random number drawn.

    Nothing that the machine does beside it may decide: on one thread, which waits for no other, and by its own clock;
    all take turns, and the fastest of each counts.
    """
    # Windows tells a thread's time in steps of 16 ms.
    clock = time.perf_counter if sys.platform == "win32" else time.thread_time
    types: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
    cases = [(name, case) for name, dtype in types.items() for case in like_the_network(dtype)]
    fastest = [math.inf] * len(cases)
    with one_thread(), torch.inference_mode(), torch.autocast("cpu", enabled=False):
        for _, case in cases:
            case()  # its kernels are made now
        until = time.perf_counter() + 0.04
        while math.inf in fastest or time.perf_counter() < until:
            for i, (_, case) in enumerate(cases):
                started = clock()
                case()
                fastest[i] = min(fastest[i], 1000 * (clock() - started))
    return {name: sum(taken for (of, _), taken in zip(cases, fastest, strict=True) if of == name) for name in types}


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch compute on one thread, and afterwards on as many as before."""
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


def like_the_network(dtype: torch.dtype) -> list[Callable[[], object]]:
    """A matrix product and a convolution, of 34 and 58 million operations."""
    matrix = torch.ones(256, 256, dtype=dtype)
    image = torch.ones(1, 64, 28, 28, dtype=dtype).contiguous(memory_format=torch.channels_last)
    filters = torch.ones(64, 64, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return [lambda: matrix @ matrix, lambda: torch.nn.functional.conv2d(image, filters, padding=1)]


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

    def agreed(self, precision: Precision) -> Precision:
        """What the first process has chosen, in all of them: two clocks need not say the same."""
        values = [precision]
        if self.world > 1:
            broadcast_object_list(values)
        return values[0]

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

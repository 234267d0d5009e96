"""Clocks, counters and the facts that stand beside every figure."""

from __future__ import annotations

import contextlib
import io
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import accelerate
import PIL
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from pixelbert.device import best_precision

Case = Callable[[], Any]
Result = dict[str, Any]


def interleaved(
    cases: Mapping[str, Case], repeats: int, device: torch.device, *, of_a_core: bool = False
) -> dict[str, list[float]]:
    """Seconds of each case, `repeats` times each after one run that is not counted; with `of_a_core`, those that this
    process computed, on however many cores, and not those in which it waited for one.

    Case after case, round after round, so that what else the machine does falls on all of them; and each round starts
    with another case, so that none always follows the same.
    """
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        once(cases[name], device, of_a_core)
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(once(cases[name], device, of_a_core))
    return seconds


def once(case: Case, device: torch.device, of_a_core: bool = False) -> float:
    """Seconds of one run (see `interleaved`): by the device's own clock on CUDA, where the host runs ahead of it."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        case()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000
    clock = time.process_time if of_a_core else time.perf_counter
    started = clock()
    case()
    return clock() - started


def times(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Medians and all values, for the JSON file."""
    return {
        name: {"median_s": round(median(values), 6), "seconds": [round(value, 6) for value in values]}
        for name, values in seconds.items()
    }


def working_type(device: torch.device) -> torch.dtype:
    """The type that the device computes fastest in, of those that recipes choose between."""
    return torch.bfloat16 if best_precision(device) == "bf16" else torch.float32


def autocast(device: torch.device) -> torch.autocast:
    """Autocast as training has it: where the device computes with bfloat16, and off elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=best_precision(device) == "bf16")


def autocasted(case: Case, device: torch.device) -> Case:
    """The case under autocast."""

    def run() -> Any:
        with autocast(device):
            return case()

    return run


def flops(case: Case) -> int:
    """Floating-point operations of a case (a multiplication with an addition is two), counted by torch. Kernels fused
    by hand are not seen: count the network as it is before `for_inference`."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: conv_backward}) as counter:
        case()
    return int(counter.get_total_flops())


def conv_backward(grad: Any, x: Any, weight: Any, *rest: Any, **kwargs: Any) -> int:
    """Operations of a convolution's backward pass, from the shapes: as many as of its forward pass for each gradient
    that is wanted, of its input and its weights. (torch's own count takes grouped convolutions for full ones.)"""
    forward = 2 * math.prod(grad) * math.prod(weight[1:])
    return forward * sum(rest[-1][:2])


def matrix_rate(device: torch.device, repeats: int = 5) -> float:
    """FLOP/s of a product of two large square matrices of `working_type`: what the device gives to work that is nothing
    else."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(working_type(device)) for _ in range(2))
    seconds = interleaved({"matrices": lambda: a @ b}, repeats, device)["matrices"]
    return 2 * side**3 / median(seconds)


def peak_memory(case: Case, device: torch.device) -> int:
    """Bytes at most: what tensors took on CUDA; on a CPU, all that this process ever had resident."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        case()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    case()
    import resource  # which Windows does not have

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else 1024 * kilobytes


def environment(device: torch.device) -> dict[str, Any]:
    """Hardware and versions."""
    facts: dict[str, Any] = {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "pillow": PIL.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_memory_gb": round(properties.total_memory / 1e9, 1)}
        facts["cuda"] = torch.version.cuda
    if hasattr(os, "getloadavg"):
        facts["load_average"] = round(os.getloadavg()[0], 2)
    return facts


def processor_name() -> str:
    """The CPU's name where the system tells it, and what it can do with bfloat16."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    able = [kind for kind in ("avx512_bf16", "amx_bf16") if capabilities.get(kind)]
    return f"{name} ({', '.join(able) or 'no bfloat16 instructions'})"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the messages of what is timed."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield

"""Where to compute and in which precision, when nobody says."""

from __future__ import annotations

from typing import Any, Literal

import torch

from pixelbert.errors import PixelBertError

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

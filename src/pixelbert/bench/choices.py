"""`pixelbert bench choices`: each place where the code takes one of two ways to the same result because it is faster.

Both ways are timed side by side, with the shapes of the network at its full size, and the one that the code takes on
this device is named. So a choice that another machine decided can be tried on this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelbert.bench import subjects
from pixelbert.bench.measure import Case, Result, interleaved, times, working_type
from pixelbert.bench.subjects import GEOMETRIES
from pixelbert.device import best_precision
from pixelbert.model.configuration import PixelBertConfig
from pixelbert.model.encoder import Encoder, Layout, dropout, fused, is_written_out, written_out
from pixelbert.model.inference import (
    EncoderInBlocks,
    FusedLinear,
    for_inference,
    has_fused_kernels,
    linear_layers_fused,
)
from pixelbert.model.modeling import PixelBertForPreTraining

PAIRS, POSITIONS, HEADS, WIDTH = 16, 120, 12, 768  # of a micro-batch: sentences beside 100 pixels
NEVER, ALWAYS = 0.0, 2.0  # to pack, as `Layout.WORTHWHILE`
Pair = dict[str, Case]


def choices(device: torch.device, quick: bool) -> Result:
    """Both ways of each choice that was made for speed, and which the code takes here."""
    details: Result = {}
    for name, taken, ways in every_choice(device):
        timed = times(interleaved(ways, 5 if quick else 21, device))
        faster = min(timed, key=lambda way: timed[way]["median_s"])
        for way, entry in timed.items():
            ratio = entry["median_s"] / min(other["median_s"] for other in timed.values())
            facts = {"taken": way == taken, "faster": way == faster, "times_the_faster": round(ratio, 2)}
            details[f"{name}: {way}"] = entry | facts
    wrong = {name: e["times_the_faster"] for name, e in details.items() if e["taken"] and e["times_the_faster"] > 1.1}
    return {"slower_than_the_other_way": wrong, "details": details}


def every_choice(device: torch.device) -> Iterator[tuple[str, str, Pair]]:
    """Each choice: what it is, which way the code takes, and the ways."""
    yield precision(device)
    yield from attention(device)
    yield drawing(device)
    if device.type == "cpu":  # on others all are padded, linear layers and blocks are as they come
        yield from packing(device)
        yield from linear_layers()
        yield blocks(device)


def precision(device: torch.device) -> tuple[str, str, Pair]:
    """One photo of 384 x 640 and eight sentences, by a network in either precision."""
    geometry = GEOMETRIES["r50_384x640"]
    model = subjects.network(PixelBertForPreTraining, geometry, device).eval()
    pixels = subjects.photo(geometry.height, geometry.width)[None].to(device)
    text = {k: v.to(device) for k, v in subjects.sentences(8).items()}
    index = torch.zeros(8, dtype=torch.long, device=device)

    @torch.inference_mode()
    def match(network: Any) -> None:
        network(network.encode_images(pixels), **text, image_index=index)

    ways: Pair = {name: partial(match, for_inference(model, name)) for name in ("fp32", "bf16")}
    return "precision", best_precision(device), ways


def attention(device: torch.device) -> Iterator[tuple[str, str, Pair]]:
    """Attention in plain operations and through torch's fused kernels, in each precision; with dropout in training."""
    for dtype in (torch.float32, torch.bfloat16):
        if dtype == torch.bfloat16 and working_type(device) != dtype:
            continue  # nobody computes in it here
        q, k, v = (
            torch.randn(PAIRS, HEADS, POSITIONS, WIDTH // HEADS, device=device, dtype=dtype).requires_grad_()
            for _ in range(3)
        )
        mask = torch.ones(PAIRS, 1, 1, POSITIONS, dtype=torch.bool, device=device)
        mask[..., 15:20] = False
        for training in (True, False):
            p = 0.1 if training else 0.0
            run = forwards_and_backwards if training else forwards
            ways: Pair = {
                "plain operations": partial(run, partial(context_alone, q, k, v, mask, p)),
                "fused kernels": partial(run, partial(fused, q, k, v, mask, p)),
            }
            taken = "plain operations" if is_written_out(device, dtype, training) else "fused kernels"
            name = "attention, a training step" if training else "attention, inference"
            yield f"{name}, {str(dtype).removeprefix('torch.')}", taken, ways


def context_alone(*args: Any) -> Tensor:
    """What attention in plain operations found, without its weights."""
    return written_out(*args)[0]


def drawing(device: torch.device) -> tuple[str, str, Pair]:
    """Dropout of the vectors of a micro-batch."""
    x = torch.randn(PAIRS * POSITIONS, WIDTH, device=device, dtype=working_type(device)).requires_grad_()
    ours, theirs = "16 bits a value", "torch's"
    ways: Pair = {
        ours: partial(forwards_and_backwards, lambda: dropout(x, 0.1)),
        theirs: partial(forwards_and_backwards, lambda: F.dropout(x, 0.1)),
    }
    return "dropout", ours if device.type == "cpu" else theirs, ways


def packing(device: torch.device) -> Iterator[tuple[str, str, Pair]]:
    """Two layers of the transformer on sequences with more and less padding."""
    encoder = Encoder(PixelBertConfig(num_hidden_layers=2)).to(device, working_type(device)).eval()
    x = torch.randn(PAIRS, POSITIONS, WIDTH, device=device, dtype=working_type(device))
    for padding in (0.02, 0.08, 0.25):
        mask = torch.ones(PAIRS, POSITIONS, dtype=torch.bool, device=device)
        mask[:, POSITIONS - round(padding * POSITIONS) :] = False
        taken = "packed" if 1 - padding < Layout.WORTHWHILE else "padded"
        ways: Pair = {
            "packed": partial(encode, encoder, x, mask, ALWAYS),
            "padded": partial(encode, encoder, x, mask, NEVER),
        }
        yield f"sequences, {padding:.0%} of them padding", taken, ways


@torch.inference_mode()
def encode(encoder: Encoder, x: Tensor, mask: Tensor, worthwhile: float) -> None:
    """Run the layers, packing or not."""
    with set_to(Layout, "WORTHWHILE", worthwhile):
        encoder(x, mask)


def linear_layers() -> Iterator[tuple[str, str, Pair]]:
    """A linear layer through oneDNN with weights laid out beforehand, and as `F.linear` has it."""
    for dtype in (torch.float32, torch.bfloat16):
        if not has_fused_kernels(dtype) or (dtype == torch.bfloat16 and best_precision("cpu") != "bf16"):
            continue
        plain = nn.Linear(WIDTH, 4 * WIDTH).to(dtype).requires_grad_(False)
        laid_out = FusedLinear(plain)
        x = torch.randn(1024, WIDTH, dtype=dtype)
        ways: Pair = {
            "oneDNN's": partial(forwards, partial(laid_out, x)),
            "torch's": partial(forwards, partial(plain, x)),
        }
        taken = "oneDNN's" if linear_layers_fused(dtype) else "torch's"
        yield f"linear layers, inference, {str(dtype).removeprefix('torch.')}", taken, ways


def blocks(device: torch.device) -> tuple[str, str, Pair]:
    """Two layers of the transformer on 64 pairs, some at a time and all at once."""
    dtype = working_type(device)
    encoder = Encoder(PixelBertConfig(num_hidden_layers=2)).to(device, dtype).eval()
    x = torch.randn(64, POSITIONS, WIDTH, device=device, dtype=dtype)
    ways: Pair = {
        "in blocks": partial(forwards, partial(EncoderInBlocks(encoder), x)),
        "at once": partial(forwards, partial(encoder, x)),
    }
    return "64 pairs, inference", "in blocks", ways


@torch.inference_mode()
def forwards(case: Callable[[], Any]) -> None:
    """Once, with nothing kept for a backward pass."""
    case()


def forwards_and_backwards(case: Callable[[], Tensor]) -> None:
    """Once, with the gradient of the sum."""
    out = case()
    out.backward(torch.ones_like(out))


@contextmanager
def set_to(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute with another value for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)

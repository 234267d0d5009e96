"""A network made ready for inference: the same function, faster (measured in docs/performance.md).

- The CNN's batch norms are folded into its convolutions.
- bfloat16 weights are made once, where autocast would make them at every call.
- On a CPU, convolutions and linear layers run through oneDNN's fused kernels: ReLU, GELU and the shortcut's sum in the
  same pass over memory, weights of linear layers laid out beforehand. `torch.compile` puts in the same kernels, after
  compiling for every new shape. Linear layers in float32 run so with AVX-512 alone: with AVX2 the
  library that `F.linear` calls was the faster (`pixelbert bench choices` times both).
- On a CPU, many pairs go through the transformer in blocks, so that what stands between its layers stays in the cache.
"""

from __future__ import annotations

import copy
import functools
from itertools import repeat
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelbert.model.encoder import Encoder, Intermediate
from pixelbert.model.heads import BiasedLinear, ImageTextMatchingHead, TwoTowerHead
from pixelbert.model.resnet import Bottleneck, ResNet, channels_last, folded

M = TypeVar("M", bound=nn.Module)
IN_FLOAT32 = (ImageTextMatchingHead, BiasedLinear, TwoTowerHead)  # they compute in it, whatever is around them
ROWS_AT_ONCE = 1024  # of the transformer's input, all sequences of a block together
ACTIVATIONS = {"gelu": ("gelu", "none"), "relu": ("relu", "")}  # those that oneDNN fuses, and its names for them


def for_inference(model: M, precision: str) -> M:
    """A copy that infers faster and can be neither trained nor saved. The model stays as it is, and what the copy has
    no need to change it shares.

    Args:
        model: a Pixel-BERT with or without a head, on its device.
        precision: fp32, or bf16: the copy's weights are bfloat16 then, and it needs no autocast.

    Returns:
        A network of the same class with the same `forward`; its scores differ by rounding alone.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tensors = [*model.parameters(), *model.buffers()]
    fast = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}).eval()
    base: Any = getattr(fast, "pixelbert", fast)
    trunk = trunk_for_inference(base.backbone, dtype)
    base.backbone = None  # it is converted already
    cast(fast, dtype)
    if isinstance(trunk, FusedTrunk) and linear_layers_fused(dtype):
        fuse_linear_layers(fast, base.config.hidden_act)
    if base.device.type == "cpu":
        base.encoder = EncoderInBlocks(base.encoder)
    base.backbone = trunk
    return fast


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """New weights of this type in place of those that there are, but for layers that compute in float32 always."""
    for module in model.modules():
        wanted = torch.float32 if isinstance(module, IN_FLOAT32) else dtype
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(weight.detach().to(wanted), requires_grad=False)


def trunk_for_inference(trunk: ResNet, dtype: torch.dtype) -> nn.Module:
    """A copy of the CNN alone that infers faster; see `for_inference`."""
    ready = channels_last(folded(trunk).to(dtype)).requires_grad_(False)
    fused = ready.conv1.weight.device.type == "cpu" and has_fused_kernels(dtype)
    return FusedTrunk(ready) if fused else ready


@functools.cache
def has_fused_kernels(dtype: torch.dtype) -> bool:
    """Whether this build of torch has oneDNN's fused kernels, and this CPU runs them with this type."""
    try:
        trunk = nn.Conv2d(16, 16, 1).to(dtype)
        x = torch.zeros(1, 16, 2, 2, dtype=dtype).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            FusedConv(trunk, relu=True)(x, x.clone())
            FusedLinear(nn.Linear(16, 16).to(dtype), "gelu")(x[..., 0, 0])
    except (AttributeError, RuntimeError, TypeError):  # NotImplementedError is a RuntimeError
        return False
    return True


def linear_layers_fused(dtype: torch.dtype) -> bool:
    """Whether oneDNN's linear layers are the faster: in float32 with AVX-512 alone (`pixelbert bench choices`)."""
    return dtype == torch.bfloat16 or has_avx512()


def has_avx512() -> bool:
    """Whether this is a CPU with AVX-512."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_f"))


class EncoderInBlocks(nn.Module):
    """An encoder that takes some of the pairs at a time; see `Encoder`."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, x: Tensor, mask: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """As `Encoder.forward`."""
        pairs = max(ROWS_AT_ONCE // x.shape[1], 1)
        masks = repeat(None) if mask is None else mask.split(pairs)
        parts = [self.encoder(*block, **options) for block in zip(x.split(pairs), masks, strict=False)]
        if len(parts) == 1:
            return parts[0]  # type: ignore[no-any-return]
        outputs, attentions = zip(*parts, strict=True)
        of_layers = None if attentions[0] is None else tuple(map(torch.cat, zip(*attentions, strict=True)))
        return torch.cat(outputs), of_layers


class FusedLinear(nn.Module):
    """activation(Linear(x)) in one kernel, with weights in the order in which it reads them.

    Args:
        linear: the layer.
        activation: one of `ACTIVATIONS`, or none.
    """

    def __init__(self, linear: nn.Linear, activation: str = "") -> None:
        super().__init__()
        self.attribute, self.algorithm = ACTIVATIONS.get(activation, ("none", ""))
        weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)"""
        x = x.to(self.weight.dtype)
        kernel = torch.ops.mkldnn._linear_pointwise
        return kernel(x, self.weight, self.bias, self.attribute, [], self.algorithm)  # type: ignore[no-any-return]


def fuse_linear_layers(model: nn.Module, activation: str) -> None:
    """Put `FusedLinear` in place of every linear layer; where a feed-forward network begins, with its activation."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Intermediate) and activation in ACTIVATIONS:
                setattr(module, name, FusedLinear(child.dense, activation))
            elif type(child) is nn.Linear:  # those derived from it compute in float32
                setattr(module, name, FusedLinear(child))


class FusedConv(nn.Module):
    """A convolution, the sum with a shortcut and ReLU in one kernel."""

    def __init__(self, conv: nn.Conv2d, relu: bool) -> None:
        super().__init__()
        self.relu = relu
        self.where: tuple[Any, ...] = (conv.padding, conv.stride, conv.dilation, conv.groups)
        # Not laid out beforehand like a linear layer's: the best order depends on the photo's shape, and a wrong one
        # took up to 15 times as long.
        self.weight = conv.weight
        self.bias = conv.bias

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """(I, C, H, W) -> (I, C', H', W'); `shortcut`, of that shape, is overwritten."""
        kernel = torch.ops.mkldnn._convolution_pointwise
        arguments = (x, self.weight, self.bias, *self.where)
        relu = "relu" if self.relu else None
        if shortcut is None:
            return kernel(*arguments, relu or "none", [], "")  # type: ignore[no-any-return]
        added = torch.ops.mkldnn._convolution_pointwise_.binary
        return added(shortcut, *arguments, "add", 1.0, relu, [], None)  # type: ignore[no-any-return]


class FusedBottleneck(nn.Module):
    """See `Bottleneck`."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.convs = nn.ModuleList(FusedConv(conv, relu=True) for conv in (block.conv1, block.conv2, block.conv3))
        down = block.downsample
        self.downsample = FusedConv(down, relu=False) if isinstance(down, nn.Conv2d) else None

    def forward(self, x: Tensor) -> Tensor:
        first, second, third = self.convs
        inner = second(first(x))
        # The input is read no more, so the sum may stand in its place.
        return third(inner, x if self.downsample is None else self.downsample(x))  # type: ignore[no-any-return]


class FusedTrunk(nn.Module):
    """A folded ResNet without its classifier: (I, 3, H, W) -> (I, C, H/32, W/32)."""

    def __init__(self, trunk: ResNet) -> None:
        super().__init__()
        self.shape = trunk.shape
        self.stem = FusedConv(trunk.conv1, relu=True)
        self.blocks = nn.ModuleList(FusedBottleneck(m) for m in trunk.modules() if isinstance(m, Bottleneck))

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = pixel_values.to(self.stem.weight.dtype).contiguous(memory_format=torch.channels_last)
        x = F.max_pool2d(self.stem(x), 3, stride=2, padding=1)
        for block in self.blocks:
            x = block(x)
        return x

"""The CNN trunk (paper section 3.2, "Image Feature Embedding"): ResNet-50 and ResNeXt-152 32x8d.

Modules carry torchvision's parameter names, so torchvision and timm state dicts load unchanged. There is no
classifier: the trunk ends after stage 5 (`layer4`), at 1/32 of the image's sides. Shapes: I images, H x W
their sides, C channels.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers.modeling_layers import GradientCheckpointingLayer

STAGES = ("layer1", "layer2", "layer3", "layer4")  # the paper's stages 2 to 5


@dataclass(frozen=True)
class BackboneShape:
    """Blocks in each of the four stages, groups and width of the 3x3 convolutions, channels of the stem."""

    layers: tuple[int, int, int, int]
    groups: int = 1
    width_per_group: int = 64
    stem: int = 64

    @property
    def out_channels(self) -> int:
        return self.channels_after("layer4")

    def channels_after(self, stage: str) -> int:
        """Channels of a stage's output."""
        return self.stem * 2 ** STAGES.index(stage) * Bottleneck.expansion


def normalised(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """A convolution and the batch norm after it.

    A frozen one is a fixed scale and shift of each channel. In training they go into the convolution's weights and
    bias, which saves a pass over the feature map forwards and another backwards, and the memory for its input. (Without
    gradients see `for_inference`, which does so once.)
    """
    learned = not isinstance(norm, nn.BatchNorm2d) or norm.training or norm.weight.requires_grad
    if learned or not torch.is_grad_enabled():
        return norm(conv(x))  # type: ignore[no-any-return]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight, bias = conv.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class Bottleneck(GradientCheckpointingLayer):
    """1x1, 3x3, 1x1 convolutions around a shortcut (He et al. 2016; grouped 3x3: Xie et al. 2017)."""

    expansion = 4

    def __init__(self, channels: int, planes: int, stride: int, shape: BackboneShape, stride_in_1x1: bool) -> None:
        super().__init__()
        width = planes * shape.width_per_group // 64 * shape.groups
        out = planes * self.expansion
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(channels, width, 1, stride=first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=second, padding=1, groups=shape.groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | nn.Conv2d | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.downsample is not None:
            folded_already = isinstance(self.downsample, nn.Conv2d)
            shortcut = self.downsample(x) if folded_already else normalised(x, *self.downsample)  # type: ignore[misc]
        x = self.relu(normalised(x, self.conv1, self.bn1))
        x = self.relu(normalised(x, self.conv2, self.bn2))
        return self.relu(normalised(x, self.conv3, self.bn3) + shortcut)


BACKBONES: dict[str, BackboneShape] = {
    "resnet50": BackboneShape((3, 4, 6, 3)),
    "resnext152_32x8d": BackboneShape((3, 8, 36, 3), groups=32, width_per_group=8),
    # Small enough to train from scratch on a CPU in minutes: the demonstration, the tests, generated scenes.
    "resnet14_small": BackboneShape((1, 1, 1, 1), stem=16),
}


class ResNet(nn.Module):
    """A bottleneck ResNet without its classifier: (I, 3, H, W) -> (I, C, H/32, W/32).

    Args:
        shape: depth and width.
        stride_in_1x1: see `PixelBertConfig`.
        frozen_batch_norm: normalise with the stored statistics and never change scale and shift. An image's
            features then don't depend on the images beside it, in training too.
    """

    def __init__(self, shape: BackboneShape, *, stride_in_1x1: bool = False, frozen_batch_norm: bool = True) -> None:
        super().__init__()
        self.shape = shape
        self.frozen_batch_norm = frozen_batch_norm
        self.conv1 = nn.Conv2d(3, shape.stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(shape.stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = shape.stem
        for i, blocks in enumerate(shape.layers):
            planes = shape.stem * 2**i
            stage = nn.Sequential()
            for j in range(blocks):
                stride = 2 if i > 0 and j == 0 else 1
                # A stem of 64 has the published widths; smaller stems scale them.
                stage.append(Bottleneck(channels, planes, stride, shape, stride_in_1x1))
                channels = planes * Bottleneck.expansion
            self.add_module(f"layer{i + 1}", stage)
        self.train()

    def batch_norms(self) -> list[nn.BatchNorm2d]:
        """All batch norms, in order."""
        return [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]

    def train(self, mode: bool = True) -> ResNet:
        super().train(mode)
        if self.frozen_batch_norm:
            # Here, and not only when built: from_pretrained makes new parameters, then calls eval().
            for norm in self.batch_norms():
                norm.eval().requires_grad_(False)
        return self

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = pixel_values.to(self.conv1.weight.dtype).contiguous(memory_format=torch.channels_last)
        x = self.maxpool(self.relu(normalised(x, self.conv1, self.bn1)))
        for stage in STAGES:
            x = getattr(self, stage)(x)
        return x

    def frozen_part(self, last: str) -> list[nn.Module]:
        """The stem and the stages up to and including this one."""
        return [self.conv1, self.bn1, *(getattr(self, stage) for stage in STAGES[: STAGES.index(last) + 1])]

    def go_on(self, x: Tensor, last: str) -> Tensor:
        """The stages that follow on this one, of its output."""
        for stage in STAGES[STAGES.index(last) + 1 :]:
            x = getattr(self, stage)(x)
        return x


def channels_last(trunk: ResNet) -> ResNet:
    """Lay the convolutions' weights out as the fastest kernels read them; the same values under the same names."""
    return trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def beginning(trunk: ResNet, last: str) -> ResNet:
    """A copy that ends after this stage."""
    trunk = copy.deepcopy(trunk)
    for stage in STAGES[STAGES.index(last) + 1 :]:
        setattr(trunk, stage, nn.Sequential())
    return trunk


def folded(trunk: ResNet) -> ResNet:
    """A copy for inference with its batch norms folded into the convolutions before them: the same function, faster."""
    trunk = copy.deepcopy(trunk).eval()
    for block in [trunk, *(m for m in trunk.modules() if isinstance(m, Bottleneck))]:
        for name, child in list(block.named_children()):
            if isinstance(child, nn.Conv2d):
                norm_name = name.replace("conv", "bn")
                setattr(block, name, fuse_conv_bn_eval(child, getattr(block, norm_name)))
                setattr(block, norm_name, nn.Identity())
        if isinstance(block, Bottleneck) and isinstance(block.downsample, nn.Sequential):
            conv, norm = cast(tuple[nn.Conv2d, nn.BatchNorm2d], tuple(block.downsample))
            block.downsample = fuse_conv_bn_eval(conv, norm)
    return trunk

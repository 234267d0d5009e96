"""What several tests share: seeded inputs and trunks, and the same CNN from transformers."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor
from transformers import ResNetConfig, ResNetModel

from pixelbert.model.resnet import BackboneShape, ResNet


def seeded_trunk(shape: BackboneShape, stride_in_1x1: bool, seed: int = 0) -> ResNet:
    """A trunk with random weights and batch norms that do something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ResNet(shape, stride_in_1x1=stride_in_1x1)
        for norm in net.batch_norms():
            torch.nn.init.uniform_(norm.get_buffer("running_mean"), -0.3, 0.3)
            torch.nn.init.uniform_(norm.get_buffer("running_var"), 0.5, 2.0)
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
            torch.nn.init.uniform_(norm.bias, -0.3, 0.3)
    return net.eval()


def transformers_resnet(state: dict[str, Tensor], shape: BackboneShape, stride_in_1x1: bool) -> ResNetModel:
    """transformers' ResNetModel with a torchvision-named state dict; it knows no groups."""
    config = ResNetConfig(
        embedding_size=shape.stem,
        hidden_sizes=[shape.stem * 4 * 2**i for i in range(4)],
        depths=list(shape.layers),
        layer_type="bottleneck",
        downsample_in_bottleneck=stride_in_1x1,
    )
    net = ResNetModel(config).eval()
    renamed = {}
    for name, tensor in state.items():
        module, _, part = name.rpartition(".")
        layer, *rest = module.split(".")
        kind = "convolution" if tensor.ndim == 4 else "normalization"
        if rest:
            block, inner = rest[0], rest[1]
            place = "shortcut" if inner == "downsample" else f"layer.{int(inner[-1]) - 1}"
            module = f"encoder.stages.{int(layer[-1]) - 1}.layers.{block}.{place}"
            if inner == "downsample":
                kind = "convolution" if rest[2] == "0" else "normalization"
            else:
                kind = "convolution" if inner.startswith("conv") else "normalization"
        else:
            module = "embedder.embedder"
            kind = "convolution" if layer == "conv1" else "normalization"
        renamed[f"{module}.{kind}.{part}"] = tensor
    net.load_state_dict(renamed)
    return net


def images(*sides: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    """Random images (3, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *side, generator=generator) for side in sides]


def sentences(*lengths: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens (P, longest) with padding, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 64, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask


class Trap:
    """A pickle of it creates a file when it is read by a reader that trusts it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)

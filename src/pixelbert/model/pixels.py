"""From a CNN's feature map to pixel embeddings (paper section 3.2, eq. 5) and random pixel sampling (section 3.3).

Shapes: I images, P pairs, K pixels of the largest grid, C channels of the trunk, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelbert.model.configuration import PixelBertConfig

REDUCTION = 64  # the trunk's 32, then the 2 x 2 max pool


@dataclass
class PixelFeatures:
    """The pixels of I images, each image's grid flattened row by row.

    Args:
        values: (I, K, C or D); rows beyond an image's own grid are zero and are never read.
        grid: (I, 2) rows and columns of each image's grid.
    """

    values: Tensor
    grid: Tensor

    @property
    def lengths(self) -> Tensor:
        """(I,) number of pixels of each image."""
        return self.grid.prod(1)

    def __len__(self) -> int:
        return self.values.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PixelFeatures:
        """Move to a device."""
        return PixelFeatures(
            self.values.to(device, non_blocking=non_blocking), self.grid.to(device, non_blocking=non_blocking)
        )

    def select(self, images: Tensor) -> PixelFeatures:
        """The features of the images with these indices (n,)."""
        return PixelFeatures(self.values[images], self.grid[images])

    def maps(self) -> list[Tensor]:
        """Each image's grid as a feature map (C, rows, columns)."""
        grids = self.grid.tolist()
        return [
            values[: rows * columns].view(rows, columns, -1).permute(2, 0, 1)
            for values, (rows, columns) in zip(self.values, grids, strict=True)
        ]

    @staticmethod
    def concatenate(parts: Sequence[PixelFeatures]) -> PixelFeatures:
        """All parts, image after image, padded to the largest grid."""
        if len(parts) == 1:
            return parts[0]
        longest = max(p.values.shape[1] for p in parts)
        padded = [nn.functional.pad(p.values, (0, 0, 0, longest - p.values.shape[1])) for p in parts]
        return PixelFeatures(torch.cat(padded), torch.cat([p.grid for p in parts]))


def flatten_grid(feature_map: Tensor) -> PixelFeatures:
    """(I, C, rows, columns) -> pixel features, row by row."""
    n, _, rows, columns = feature_map.shape
    grid = torch.tensor([[rows, columns]], device=feature_map.device).expand(n, 2)
    return PixelFeatures(feature_map.flatten(2).transpose(1, 2), grid)


def grid_features(trunk: nn.Module, pixel_values: Tensor | Sequence[Tensor]) -> PixelFeatures:
    """The CNN and the 2 x 2 max pool: images to grids of C channels, at 1/64 of the sides.

    Args:
        trunk: (I, 3, H, W) -> (I, C, H/32, W/32).
        pixel_values: (I, 3, H, W), normalised, sides multiples of 64; or a list of I images (3, H, W) of any such
            shapes. Images of one shape go through the CNN together; nothing is padded.

    Raises:
        ValueError: sides that are no multiples of 64 (the processor snaps them).
    """
    shapes = [pixel_values.shape[1:]] if isinstance(pixel_values, Tensor) else [x.shape for x in pixel_values]
    for shape in shapes:
        if len(shape) != 3 or shape[0] != 3 or shape[1] % REDUCTION or shape[2] % REDUCTION:
            raise ValueError(
                f"pixel_values has an image of shape {tuple(shape)}: expected (3, height, width) with height and "
                f"width multiples of {REDUCTION}, as PixelBertProcessor makes them"
            )
    if isinstance(pixel_values, Tensor):
        return pooled_grid(trunk(pixel_values))
    return by_shape(lambda images: pooled_grid(trunk(images)), pixel_values)


def pooled_grid(feature_map: Tensor) -> PixelFeatures:
    """The 2 x 2 max pool after stage 5: (I, C, rows, columns) -> pixel features of half as many rows and columns."""
    return flatten_grid(F.max_pool2d(feature_map, 2))


def by_shape(function: Callable[[Tensor], PixelFeatures], images: Sequence[Tensor]) -> PixelFeatures:
    """A function of (n, C, H, W) for images (C, H, W) of any shapes, those of one shape together; in their order."""
    groups: dict[torch.Size, list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(image.shape, []).append(i)
    parts = [function(torch.stack([images[i] for i in group])) for group in groups.values()]
    features = PixelFeatures.concatenate(parts)
    if len(parts) == 1:
        return features
    order = torch.tensor([i for group in groups.values() for i in group], device=features.values.device)
    return features.select(order.argsort())


class PixelEmbedding(nn.Module):
    """Projection to the transformer's width, plus s_v (eq. 5): (I, K, C) -> (I, K, D).

    s_v is the row that tells pixels from words. Options that the paper does not have, all off by default: dropout of
    channels before the projection, LayerNorm after it, and a learned row + column embedding.
    """

    def __init__(self, config: PixelBertConfig, channels: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout1d(config.pixel_dropout_prob)
        self.projection = nn.Linear(channels, config.hidden_size)
        self.semantic = nn.Parameter(torch.zeros(config.hidden_size))
        self.row: nn.Embedding | None = None
        self.column: nn.Embedding | None = None
        if config.pixel_positions:
            self.row = nn.Embedding(config.pixel_positions, config.hidden_size)
            self.column = nn.Embedding(config.pixel_positions, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.pixel_layer_norm else None

    def forward(self, features: PixelFeatures) -> PixelFeatures:
        values = features.values.to(self.projection.weight.dtype)
        if self.training:
            values = self.dropout(values.transpose(1, 2)).transpose(1, 2)
        x = self.projection(values) + self.semantic
        if self.row is not None and self.column is not None:
            limit = self.row.num_embeddings
            if int(features.grid.max()) > limit:
                rows, columns = features.grid.amax(0).tolist()
                raise ValueError(
                    f"a grid of {rows} x {columns} pixels has no positions beyond {limit}; use smaller images "
                    f"or a model with pixel_positions >= {max(rows, columns)}"
                )
            index = torch.arange(x.shape[1], device=x.device)
            columns = features.grid[:, 1:2]
            # Padding rows of small grids point past their last row: clamp, since they are masked out anyway.
            x = x + self.row((index // columns).clamp(max=limit - 1)) + self.column(index % columns)
        if self.norm is not None:
            x = self.norm(x)
        return PixelFeatures(x, features.grid)


def gather_pixels(
    features: PixelFeatures, image_index: Tensor, pixel_index: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The pixels that each pair sees.

    Args:
        features: of I images.
        image_index: (P,) the image of each pair.
        pixel_index: (P, k) sampled pixels of each pair's grid, -1 where a grid had fewer; all pixels if None.

    Returns:
        (P, k, D) pixel embeddings, and (P, k) true where there is a pixel.
    """
    lengths = features.lengths[image_index]
    if pixel_index is None:
        mask = torch.arange(features.values.shape[1], device=lengths.device) < lengths[:, None]
        return features.values[image_index], mask
    mask = pixel_index >= 0
    return features.values[image_index[:, None], pixel_index.clamp(min=0)], mask

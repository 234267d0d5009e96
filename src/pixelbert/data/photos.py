"""The images of a corpus as a model takes them: decoded and resized, or the stored features of a frozen CNN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pixelbert.data.corpus import Corpus
from pixelbert.data.feature_cache import FeatureCache, View
from pixelbert.data.processing import PixelBertImageProcessor
from pixelbert.model.pixels import REDUCTION


@dataclass
class Photos:
    """Images by number.

    Args:
        corpus: whose images they are.
        processor: resizes and normalises.
        cache: stored features of all images of the corpus, used instead of the photos.
        blank: show evenly grey images of the same sizes: the control that has the text alone.
    """

    corpus: Corpus
    processor: PixelBertImageProcessor
    cache: FeatureCache | None = None
    blank: bool = False

    def size(self, image: int) -> tuple[int, int]:
        """The width and height that the image is resized to."""
        return self.processor.size_for(*self.corpus.sizes[image])

    def grid_pixels(self, image: int) -> int:
        """The pixels of its grid."""
        width, height = self.size(image)
        return width * height // REDUCTION**2

    def inputs(self, views: Sequence[View]) -> dict[str, Any]:
        """`pixel_values` or `trunk_features`, the arguments of every model's `forward`, for these images in order."""
        if self.cache is not None:
            return {"trunk_features": self.cache.get(views)}
        return {"pixel_values": [self._load(view) for view in views]}

    def _load(self, view: View) -> Tensor:
        if self.blank:
            width, height = self.size(view.image)
            return torch.zeros(3, height, width)
        photo = self.processor.to_tensor(self.corpus.load_image(view.image))
        return photo.flip(-1) if view.mirrored else photo

"""Stored features of a frozen CNN: without augmentation they never change, so each image is encoded once for good.

One memory-mapped file of bfloat16 grids, image after image: (pixels of all images, C).
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pixelbert.data.corpus import Corpus
from pixelbert.data.processing import PixelBertImageProcessor
from pixelbert.model.modeling import PixelBertModel
from pixelbert.model.pixels import REDUCTION, PixelFeatures, grid_features
from pixelbert.model.resnet import channels_last, folded
from pixelbert.progress import Tracker


class FeatureCache:
    """Trunk features of all images of a corpus, read by image number.

    Args:
        path: the file.
        grids: (I, 2) rows and columns of each image's grid.
        channels: of the trunk.
    """

    def __init__(self, path: Path, grids: np.ndarray, channels: int) -> None:
        self.path, self.grids, self.channels = path, grids, channels
        self.starts = np.concatenate([[0], grids.prod(1).cumsum()])
        self._values: torch.Tensor | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_values": None}  # each loader process maps the file itself

    @property
    def values(self) -> torch.Tensor:
        """(pixels of all images, C), memory-mapped."""
        if self._values is None:
            size = int(self.starts[-1]) * self.channels
            flat = torch.from_file(str(self.path), shared=False, size=size, dtype=torch.bfloat16)
            self._values = flat.view(-1, self.channels)
        return self._values

    def get(self, images: list[int]) -> PixelFeatures:
        """The features of these images: values (I, K, C)."""
        parts = [self.values[self.starts[i] : self.starts[i + 1]] for i in images]
        return PixelFeatures(nn.utils.rnn.pad_sequence(parts, batch_first=True), torch.from_numpy(self.grids[images]))


def fingerprint(model: PixelBertModel, corpus: Corpus, processor: PixelBertImageProcessor) -> str:
    """What the features depend on: the trunk's weights, the image settings and the data."""
    digest = hashlib.sha256()
    for name, tensor in model.backbone.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    settings = {
        **processor.to_dict(),
        "images": corpus.image_checksums,
        "stride_in_1x1": model.config.stride_in_1x1,
    }
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


@torch.inference_mode()
def build_feature_cache(
    model: PixelBertModel,
    corpus: Corpus,
    processor: PixelBertImageProcessor,
    folder: Path,
    *,
    batch: int = 16,
) -> FeatureCache:
    """Encode every image of the corpus once, in bfloat16, or reuse the file in `folder` made from the same things.

    A file's name is the fingerprint of what it depends on, so runs can share a folder. It is written aside and renamed:
    a killed run leaves no half file.
    """
    sizes = [processor.size_for(*size) for size in corpus.sizes.tolist()]
    grids = np.array([(height // REDUCTION, width // REDUCTION) for width, height in sizes], dtype=np.int64)
    path = folder / f"{fingerprint(model, corpus, processor)[:16]}.bf16"
    cache = FeatureCache(path, grids, model.backbone.shape.out_channels)
    if path.exists():
        return cache
    folder.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.partial")  # another run may be making the same file
    total = int(cache.starts[-1]) * cache.channels
    values = torch.from_file(str(aside), shared=True, size=total, dtype=torch.bfloat16).view(-1, cache.channels)
    # Images of one shape together; each image's place in the file is known beforehand.
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    trunk = channels_last(folded(model.backbone).to(model.device, torch.bfloat16))
    with Tracker("encoding images once", len(order)) as tracker:
        for start in range(0, len(order), batch):
            images = order[start : start + batch]
            pixels = [processor.to_tensor(corpus.load_image(i)).to(model.device, torch.bfloat16) for i in images]
            features = grid_features(trunk, pixels)
            for row, image in enumerate(images):
                n = int(grids[image].prod())
                values[cache.starts[image] : cache.starts[image + 1]] = features.values[row, :n].cpu()
            tracker.advance(len(images))
    del values
    aside.replace(path)
    return cache

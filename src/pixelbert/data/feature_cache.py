"""Stored features of a frozen CNN: without augmentation they never change, so each image is encoded once for good.

A memory-mapped file of bfloat16 grids for each data set, image after image: (pixels of all images, C).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from pixelbert.data.corpus import Corpus
from pixelbert.data.processing import PixelBertImageProcessor
from pixelbert.data.store import PreparedDataset
from pixelbert.device import best_precision
from pixelbert.model.inference import trunk_for_inference
from pixelbert.model.modeling import PixelBertModel
from pixelbert.model.pixels import REDUCTION, PixelFeatures, grid_features
from pixelbert.progress import Tracker


class View(NamedTuple):
    """An image as training sees it: its number, and whether it is mirrored left to right."""

    image: int
    mirrored: bool = False


class FeatureCache:
    """Trunk features of all images of a corpus, read by image number.

    Args:
        files: for each data set of the corpus, its file of images as they are and, if training wants it, mirrored.
        grids: (I, 2) rows and columns of each image's grid.
        counts: images of each data set.
        channels: of the trunk.
    """

    def __init__(self, files: list[list[Path]], grids: np.ndarray, counts: list[int], channels: int) -> None:
        self.files, self.grids, self.channels = files, grids, channels
        self.first_images = np.concatenate([[0], np.cumsum(counts)])
        pixels = [grids[a:b].prod(1) for a, b in pairwise(self.first_images)]
        self.starts = [np.concatenate([[0], n.cumsum()]) for n in pixels]
        self._values: dict[tuple[int, bool], torch.Tensor] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_values": {}}  # each loader process maps the files itself

    def _file(self, data_set: int, mirrored: bool) -> torch.Tensor:
        """(pixels of a data set's images, C), memory-mapped."""
        key = (data_set, mirrored)
        if key not in self._values:
            path, pixels = self.files[data_set][mirrored], int(self.starts[data_set][-1])
            self._values[key] = open_values(path, pixels, self.channels)
        return self._values[key]

    def get(self, views: Sequence[View]) -> PixelFeatures:
        """The features of these images: values (I, K, C)."""
        parts = []
        for image, mirrored in views:
            data_set = int(np.searchsorted(self.first_images, image, side="right")) - 1
            row = image - self.first_images[data_set]
            starts = self.starts[data_set]
            parts.append(self._file(data_set, mirrored)[starts[row] : starts[row + 1]])
        grids = torch.from_numpy(self.grids[[image for image, _ in views]])
        return PixelFeatures(nn.utils.rnn.pad_sequence(parts, batch_first=True), grids)


def open_values(path: Path, pixels: int, channels: int, *, write: bool = False) -> torch.Tensor:
    """(pixels, channels) of a file, memory-mapped; made if it is to be written."""
    flat = torch.from_file(str(path), shared=write, size=pixels * channels, dtype=torch.bfloat16)
    return flat.view(-1, channels)


def fingerprint(
    model: PixelBertModel, data: PreparedDataset, processor: PixelBertImageProcessor, *, mirrored: bool
) -> str:
    """What the features depend on: the trunk's weights, the image settings and the data."""
    digest = hashlib.sha256()
    for name, tensor in model.backbone.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    settings = {
        **processor.to_dict(),
        "images": data.image_checksums,
        "stride_in_1x1": model.config.stride_in_1x1,
        "mirrored": mirrored,
    }
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def build_feature_cache(
    model: PixelBertModel,
    corpus: Corpus,
    processor: PixelBertImageProcessor,
    folder: Path,
    *,
    mirror: bool = False,
    batch: int = 16,
) -> FeatureCache:
    """Encode every image of the corpus once, or reuse the files in `folder` made from the same things.

    One file a data set, whose name is the fingerprint of what it depends on: runs over other splits, or over more data
    sets, share what is there.

    Args:
        mirror: store each image mirrored as well.
    """
    sizes = [processor.size_for(*size) for size in corpus.sizes.tolist()]
    grids = np.array([(height // REDUCTION, width // REDUCTION) for width, height in sizes], dtype=np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    files = [
        [encode_once(model, data, processor, folder, mirrored, batch) for mirrored in (False, True)[: 1 + mirror]]
        for data in corpus.datasets
    ]
    counts = [len(data.sizes) for data in corpus.datasets]
    return FeatureCache(files, grids, counts, model.backbone.shape.out_channels)


@torch.inference_mode()
def encode_once(
    model: PixelBertModel,
    data: PreparedDataset,
    processor: PixelBertImageProcessor,
    folder: Path,
    mirrored: bool,
    batch: int,
) -> Path:
    """The file of a data set's features; written aside and renamed, so a killed run leaves no half file."""
    path = folder / f"{fingerprint(model, data, processor, mirrored=mirrored)[:16]}.bf16"
    if path.exists():
        return path
    sizes = [processor.size_for(*size) for size in data.sizes.tolist()]
    pixels = [width * height // REDUCTION**2 for width, height in sizes]
    starts = np.concatenate([[0], np.cumsum(pixels)])
    aside = path.with_suffix(f".{os.getpid()}.partial")  # another run may be making the same file
    values = open_values(aside, int(starts[-1]), model.backbone.shape.out_channels, write=True)
    # Images of one shape together; each image's place in the file is known beforehand.
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    dtype = torch.bfloat16 if best_precision(model.device) == "bf16" else torch.float32  # what is stored is bfloat16
    trunk = trunk_for_inference(model.backbone, dtype)
    name = f"encoding {data.name}{' mirrored' if mirrored else ''} once"
    with Tracker(name, len(order)) as tracker:
        for start in range(0, len(order), batch):
            images = order[start : start + batch]
            photos = [processor.to_tensor(data.load_image(i)) for i in images]
            photos = [photo.flip(-1) for photo in photos] if mirrored else photos
            features = grid_features(trunk, [photo.to(model.device, dtype) for photo in photos])
            for row, image in enumerate(images):
                values[starts[image] : starts[image + 1]] = features.values[row, : pixels[image]].cpu()
            tracker.advance(len(images))
    del values
    aside.replace(path)
    return path

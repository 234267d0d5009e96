"""Stored features of a frozen CNN, or of its frozen stages: they never change, so each image is encoded once for good.

A memory-mapped file of bfloat16 grids for each data set, image after image: (pixels of all images, C). How such a file
is made and checked: `feature_file.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from pixelbert.data.corpus import Corpus
from pixelbert.data.feature_file import BYTES, Encoding, FeatureFile, remove_leftovers
from pixelbert.data.processing import PixelBertImageProcessor
from pixelbert.data.store import PreparedDataset
from pixelbert.device import best_precision
from pixelbert.errors import PixelBertError
from pixelbert.model.inference import trunk_for_inference
from pixelbert.model.modeling import PixelBertModel
from pixelbert.model.pixels import REDUCTION, PixelFeatures, by_shape, flatten_grid, grid_features
from pixelbert.model.resnet import STAGES, ResNet, beginning
from pixelbert.progress import Tracker


class View(NamedTuple):
    """An image as training sees it: its number, and whether it is mirrored left to right."""

    image: int
    mirrored: bool = False


class FeatureCache:
    """Trunk features of all images of a corpus, read by image number.

    Args:
        files: for each data set of the corpus, its file of images as they are and, if training wants it, mirrored.
        grids: (I, 2) rows and columns of each image's stored grid.
        counts: images of each data set.
        channels: of the trunk, or of its last frozen stage.
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


class GreyFeatures(FeatureCache):
    """Evenly grey images' features in place of a corpus's, of the same shapes: see `Photos.blank`.

    Args:
        grids: (I, 2) rows and columns of each image's grid.
        of_shape: the values (K, C) of each grid that there is, by its rows and columns.
    """

    def __init__(self, grids: np.ndarray, of_shape: dict[tuple[int, int], torch.Tensor]) -> None:
        super().__init__([], grids, [len(grids)], next(iter(of_shape.values())).shape[1])
        self.of_shape = of_shape

    def get(self, views: Sequence[View]) -> PixelFeatures:
        """See `FeatureCache.get`."""
        grids = self.grids[[image for image, _ in views]]
        parts = [self.of_shape[rows, columns] for rows, columns in grids.tolist()]
        return PixelFeatures(nn.utils.rnn.pad_sequence(parts, batch_first=True), torch.from_numpy(grids))


def open_values(path: Path, pixels: int, channels: int) -> torch.Tensor:
    """(pixels, channels) of a file, memory-mapped for reading.

    Raises:
        PixelBertError: it is gone or was cut short since it was checked.
    """
    if not path.exists() or path.stat().st_size != pixels * channels * BYTES:
        raise PixelBertError(f"{path} is gone or was cut short meanwhile: the same command encodes its photos again")
    flat = torch.from_file(str(path), shared=False, size=pixels * channels, dtype=torch.bfloat16)
    return flat.view(-1, channels)


def fingerprint(
    trunk: ResNet,
    model: PixelBertModel,
    data: PreparedDataset,
    processor: PixelBertImageProcessor,
    *,
    mirrored: bool,
) -> str:
    """What the features depend on: the weights of the trunk or its beginning, the image settings and the data."""
    digest = hashlib.sha256()
    for name, tensor in trunk.state_dict().items():
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
    after: str | None = None,
    batch: int = 16,
) -> FeatureCache:
    """Encode every image of the corpus once, or reuse the files in `folder` made from the same things.

    One file a data set, whose name is the fingerprint of what it depends on: runs over other splits, or over more data
    sets, share what is there.

    Args:
        mirror: store each image mirrored as well.
        after: the CNN's last frozen stage, whose output is stored; that of the whole, pooled, if None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    grids = [grids_of(data, processor, after) for data in corpus.datasets]
    files = [
        [
            encode_once(model, data, processor, of_data, folder, mirrored, after, batch)
            for mirrored in (False, True)[: 1 + mirror]
        ]
        for data, of_data in zip(corpus.datasets, grids, strict=True)
    ]
    counts = list(map(len, grids))
    channels = model.backbone.shape.channels_after(after or STAGES[-1])
    return FeatureCache(files, np.concatenate(grids), counts, channels)


@torch.inference_mode()
def encode_grey(
    model: PixelBertModel, corpus: Corpus, processor: PixelBertImageProcessor, *, after: str | None = None
) -> GreyFeatures:
    """What `build_feature_cache` gives, for images that are evenly grey: one of each shape is encoded."""
    bare = beginning(model.backbone, after) if after else model.backbone
    trunk = trunk_for_inference(bare, torch.float32)
    grids = np.concatenate([grids_of(data, processor, after) for data in corpus.datasets])
    sizes = {processor.size_for(*size) for data in corpus.datasets for size in data.sizes.tolist()}
    of_shape = {}
    for width, height in sorted(sizes):
        grey = [torch.zeros(3, height, width, device=model.device)]
        features = by_shape(lambda x: flatten_grid(trunk(x)), grey) if after else grid_features(trunk, grey)
        of_shape[tuple(features.grid[0].tolist())] = features.values[0].to("cpu", torch.bfloat16)
    return GreyFeatures(grids, of_shape)


def grids_of(data: PreparedDataset, processor: PixelBertImageProcessor, after: str | None) -> np.ndarray:
    """(I, 2) rows and columns of what is stored of each image."""
    smaller = REDUCTION if after is None else 4 * 2 ** STAGES.index(after)
    sizes = [processor.size_for(*size) for size in data.sizes.tolist()]
    return np.array([(height // smaller, width // smaller) for width, height in sizes], dtype=np.int64)


def encode_once(
    model: PixelBertModel,
    data: PreparedDataset,
    processor: PixelBertImageProcessor,
    grids: np.ndarray,
    folder: Path,
    mirrored: bool,
    after: str | None,
    batch: int,
) -> Path:
    """The file of a data set's features: one that is there and sound, or made now. Of several processes that want the
    same file one makes it, and the others wait."""
    bare = beginning(model.backbone, after) if after else model.backbone
    path = folder / f"{fingerprint(bare, model, data, processor, mirrored=mirrored)[:16]}.bf16"
    starts = np.concatenate([[0], np.cumsum(grids.prod(1))])
    file = FeatureFile(path, starts, bare.shape.channels_after(after or STAGES[-1]))
    if not file.is_known():
        with file.in_turn():
            if not file.is_known() and not file.is_sound():
                encode(file, model, bare, data, processor, mirrored, after, batch)
    seen = data.photo_stamps()
    if file.record().get("photos") != seen:
        with file.in_turn():
            data.check_photos()
            file.note(photos=seen)
    return path


@torch.inference_mode()
def encode(
    file: FeatureFile,
    model: PixelBertModel,
    bare: ResNet,
    data: PreparedDataset,
    processor: PixelBertImageProcessor,
    mirrored: bool,
    after: str | None,
    batch: int,
) -> None:
    """Make a file of features, or go on with it where a killed process left it: to the bit what it would have been."""
    pixels, seen = np.diff(file.starts), data.photo_stamps()
    # Images of one shape together; each image's place in the file is known beforehand.
    sizes = [processor.size_for(*size) for size in data.sizes.tolist()]
    order = sorted(range(len(sizes)), key=lambda i: sizes[i][::-1])
    name = f"encoding {data.name}{' mirrored' if mirrored else ''} once"
    with (
        Encoding(file, order, best_precision(model.device)) as encoding,
        Tracker(name, len(order), done=encoding.done) as tracker,
    ):
        dtype = torch.bfloat16 if encoding.precision == "bf16" else torch.float32  # what is stored is bfloat16
        trunk = trunk_for_inference(bare, dtype)
        photos_seen = None if encoding.done else seen  # those that an earlier process saw may have changed since
        while encoding.done < len(order):
            images = order[encoding.done : (encoding.done // batch + 1) * batch]
            photos = [processor.to_tensor(data.load_image(i)) for i in images]
            photos = [photo.flip(-1) for photo in photos] if mirrored else photos
            photos = [photo.to(model.device, dtype) for photo in photos]
            features = by_shape(lambda x: flatten_grid(trunk(x)), photos) if after else grid_features(trunk, photos)
            encoding.add([features.values[row, : pixels[image]] for row, image in enumerate(images)])
            tracker.advance(len(images))
        encoding.finish(data=data.name, images=len(order), mirrored=mirrored, after=after, photos=photos_seen)

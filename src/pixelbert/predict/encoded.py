"""Photos as people hand them over, and the features of those seen lately, so that each is encoded once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from pixelbert.data.images import image_of_array, open_image
from pixelbert.data.inputs import ImageInput, given_images
from pixelbert.model.pixels import PixelFeatures


class Photo(NamedTuple):
    """An image to encode, and what tells it from others: equal keys mean equal pixels."""

    key: Hashable
    image: ImageInput


def as_photos(images: ImageInput | Iterable[ImageInput]) -> list[Photo]:
    """One or several images with their keys: a file's path, size and time of change; a digest of anything else.

    Raises:
        PixelBertError: something that is no image, or a file that cannot be read (when it is read, if it is there).
    """
    return [as_photo(image) for image in given_images(images)]


def as_photo(image: ImageInput) -> Photo:
    """See `as_photos`."""
    if isinstance(image, str | Path):
        try:
            path = Path(image).absolute()
            status = path.stat()
        except (OSError, ValueError):  # not there: the error of opening it says what to do
            return Photo(("file", str(image)), open_image(image))
        return Photo(("file", str(path), status.st_size, status.st_mtime_ns), image)
    if isinstance(image, bytes):
        return Photo(("bytes", digest(image)), image)
    decoded = decode(image)
    return Photo(("pixels", decoded.size, digest(decoded.tobytes())), decoded)


def decode(image: ImageInput) -> PIL.Image.Image:
    """The upright RGB photo that the model sees before it is scaled, in a size of its own.

    Raises:
        ImageError: see `open_image`; or an array that is no photo.
    """
    if isinstance(image, np.ndarray):
        return open_image(image_of_array(image))
    return open_image(image)


def digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=20).digest()


class RecentFeatures:
    """The features of the images used last, at most `capacity` of them (one image each, without padding)."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._features: OrderedDict[Hashable, PixelFeatures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._features)

    def get(self, key: Hashable) -> PixelFeatures | None:
        """What is kept under this key, which is now the newest; None if nothing is."""
        if key in self._features:
            self._features.move_to_end(key)
        return self._features.get(key)

    def put(self, key: Hashable, features: PixelFeatures) -> None:
        """Keep it, and let go of the oldest beyond the capacity."""
        self._features[key] = features
        self._features.move_to_end(key)
        while len(self._features) > self.capacity:
            self._features.popitem(last=False)

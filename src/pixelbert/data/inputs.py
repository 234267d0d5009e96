"""What people hand over, one or several: sentences and photos, in a list, a pandas Series, an array, a generator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from pixelbert.data.images import ImageError
from pixelbert.errors import PixelBertError

ImageInput = str | Path | bytes | PIL.Image.Image | np.ndarray
SEVERAL = "or several in a list, tuple, array of one dimension or pandas Series"


def given_sentences(text: str | Iterable[str]) -> list[str]:
    """One or several sentences as a list.

    Raises:
        PixelBertError: something that is no text; says which it is.
    """
    sentences: list[Any] = items(text)
    for number, sentence in enumerate(sentences, start=1):
        if not isinstance(sentence, str):
            where = place(number, len(sentences), "sentence")
            raise PixelBertError(f"{kind(sentence)} is no text{where}: expected a sentence, {SEVERAL}")
    return sentences


def given_images(images: ImageInput | Iterable[ImageInput]) -> list[ImageInput]:
    """One or several photos as a list; an array of numbers is one photo.

    Raises:
        ImageError: something that is no photo; says which it is. Whether a file or an array is one, opening it tells.
    """
    photos: list[Any] = [images] if isinstance(images, np.ndarray) and is_photo(images) else items(images)
    for number, photo in enumerate(photos, start=1):
        if not is_photo(photo):
            where = place(number, len(photos), "image")
            raise ImageError(
                f"{kind(photo)} is no photo{where}: expected a path, bytes, a Pillow image or an array, {SEVERAL}"
            )
    return photos


def is_photo(image: Any) -> bool:
    """Whether it may be one; an array of text or objects holds several."""
    return isinstance(image, ImageInput) and not (isinstance(image, np.ndarray) and image.dtype.kind in "OU")


def items(given: Any) -> list[Any]:
    """The items of a sequence of any kind, or what was given alone. What has no order, or rows and columns, is none."""
    alone = isinstance(given, str | bytes | PIL.Image.Image | Mapping | Set) or not isinstance(given, Iterable)
    return [given] if alone or getattr(given, "ndim", 1) != 1 else list(given)


def kind(value: object) -> str:
    """What it is, for people: None, an int, a DataFrame."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def place(number: int, count: int, what: str) -> str:
    """Which of several it is."""
    return f" ({what} {number} of {count})" if count > 1 else ""

"""What a request may ask for. Whatever is beyond it gets an HTTP status and one clear sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.exceptions import HTTPException

from pixelbert.data.images import stored_size
from pixelbert.errors import PixelBertError


class PhotoFile(bytes):
    """The bytes of an image file.

    Attributes:
        pixels: that they decode to, by its header.
    """

    pixels: int = 0


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Args:
        upload_mb: megabytes of a request, its photos and texts together.
        pixels: of a photo once it is decoded, which is what a decompression bomb spends; and of all photos that are
            decoded together.
        characters: of a sentence, question or statement.
        sentences: to score in one request.
        seconds: from the end of a request's headers to its answer.
        head_seconds: from the opening of a connection, or the last answer on it, to the end of a request's headers.
        waiting: requests in the queue for the model; those that come then are asked to come back later.
        connections: requests that are being received, waited for or answered at one time. Twice as many connections
            may be open.
    """

    upload_mb: float = 20
    pixels: int = 50_000_000
    characters: int = 2000
    sentences: int = 100
    seconds: float = 60
    head_seconds: float = 10
    waiting: int = 64
    connections: int = 256

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise PixelBertError(f"the limit {name} is {value}; expected more than 0")

    @property
    def upload(self) -> int:
        """Bytes of a request."""
        return int(self.upload_mb * 1_000_000)

    def text(self, text: str, what: str = "text") -> str:
        """The text, if it is one and not too long."""
        if not text.strip():
            raise HTTPException(422, f"the {what} is empty: write a sentence")
        if len(text) > self.characters:
            raise HTTPException(422, f"the {what} has {len(text):,} characters; at most {self.characters:,} are read")
        return text

    def texts(self, texts: Sequence[str]) -> list[str]:
        """The sentences, if they are such and not too many."""
        if len(texts) > self.sentences:
            raise HTTPException(422, f"{len(texts):,} sentences at once; at most {self.sentences:,} are scored")
        return [self.text(text, f"sentence {i}" if len(texts) > 1 else "sentence") for i, text in enumerate(texts, 1)]

    def photo(self, data: bytes) -> PhotoFile:
        """The bytes of an image file, if its header reads well. Blocking; pixels are decoded by the model's thread."""
        width, height = stored_size(data, "the photo")
        if width * height > self.pixels:
            raise HTTPException(413, f"the photo is {width} x {height}; at most {self.pixels:,} pixels are decoded")
        file = PhotoFile(data)
        file.pixels = width * height
        return file

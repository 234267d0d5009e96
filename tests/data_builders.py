"""Small real files for the data tests: photos made with Pillow, and raw data sets around them."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

from PIL import Image


def photo(shade: int = 120, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """An RGB image whose left half and right half differ, so that a turned one is noticed."""
    image = Image.new("RGB", size, (shade, 90, 60))
    image.paste((20, shade, 200), (0, 0, size[0] // 2, size[1]))
    return image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def karpathy_data(count: int, sentences: int = 2) -> dict[str, Any]:
    """Karpathy's JSON for images 0.jpg, 1.jpg and so on; every tenth is in val, every eleventh in test."""
    images = []
    for number in range(count):
        split = "val" if number % 10 == 5 else "test" if number % 11 == 7 else "train"
        texts = [
            {"raw": f"Photo {number}, seen {k} times .", "sentid": number * sentences + k} for k in range(sentences)
        ]
        images.append({"filename": f"{number}.jpg", "imgid": number, "split": split, "sentences": texts})
    return {"dataset": "tiny", "images": images}


def write_photos(folder: Path, count: int) -> Path:
    """Writes the photos that `karpathy_data` speaks of."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(encoded(photo(number % 250), "JPEG"))
    return folder


def write_json(path: Path, data: Any) -> Path:
    """Writes JSON and returns the path."""
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

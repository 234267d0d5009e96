"""Opening photos: whatever the file holds, an upright 8-bit RGB image comes out, or one clear `ImageError`.

The paper's input (section 3.2) is raw pixels, so what stands here decides what the network sees: EXIF
rotation is applied, transparency is laid on white, the first frame stands for an animation.

The range of the pixels is what the file's header says: 8, 12 or 16 bits, of which 12 and 16 are scaled to 8. Where
nothing says it (32-bit and floating-point pixels), or where it makes the photo nearly black (12-bit values in a file of
16 bits), the image is refused: any guess could be wrong, and would be for each photo of a set in another way.
"""

import io
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from pixelbert.errors import PixelBertError

try:  # the extra `heif`
    import pillow_heif
except ImportError:
    HEIF = False
else:
    HEIF = True
    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)

ImageSource = Path | str | bytes | Image.Image

MIN_SIDE = 16  # pixels; anything smaller is a tracking pixel or a failed download, not a photo
MAX_PIXELS = 100_000_000  # 400 MB once decoded; up to 1.5 GB on the way there, where transparency is laid on white
MAX_ASPECT = 20  # long side over short side; beyond it a resize leaves nothing to see

# Named so that Pillow never tries formats that start other programs (EPS runs Ghostscript).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", *(["HEIF"] if HEIF else []))

NEARLY_BLACK = 16  # no pixel of a photo of more than 8 bits is as bright as one part in so many of its range

_ORIENTATION_TAG, _BITS_TAG, _SAMPLE_FORMAT_TAG, _PHOTOMETRIC_TAG = 0x0112, 258, 339, 262
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(PixelBertError):
    """A file is not a photo that can be used; the message names it, says why and what to do."""


class MissingImageError(ImageError):
    """There is no file of that name."""


def open_image(source: ImageSource, where: str = "") -> Image.Image:
    """Opens a photo as an upright 8-bit RGB image, fully decoded.

    Args:
        source: a path, the bytes of an image file, or a Pillow image (which is left as it was).
        where: what to call the image in an error message; a path's own name otherwise.

    Returns:
        An image of mode RGB without metadata, so that nobody rotates it a second time.

    Raises:
        ImageError: unreadable, cut short, not an image, or outside `MIN_SIDE`, `MAX_PIXELS` and `MAX_ASPECT`.
    """
    name = _name(source, where)
    with _quiet_pillow(), _header(source, name) as image, _pillow_errors(name):
        range_ = _Range.of(image)
        image.load()
        orientation = _orientation(image)
        upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
        rgb = _to_rgb(upright, range_, name)
        if rgb is source or rgb is image:
            rgb = image.copy()  # a plain image, without the file behind it
        rgb.info.clear()
        return rgb


def stored_size(source: ImageSource, where: str = "") -> tuple[int, int]:
    """Width and height as they are stored, before the image is turned upright: from the header alone, and so cheap for
    every format (a PNG tells how it is turned only once it is decoded).

    Raises:
        ImageError: as `open_image`, as far as the header tells.
    """
    with _quiet_pillow(), _header(source, _name(source, where)) as image:
        return image.size


def check_image(source: ImageSource, where: str = "") -> tuple[int, int]:
    """Width and height of the upright image after decoding all of it: `open_image` will not fail afterwards.

    Raises:
        ImageError: as `open_image`.
    """
    return open_image(source, where).size


def image_of_array(array: np.ndarray) -> Image.Image:
    """A Pillow image of the pixels in an array: 8 bits, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); or black and white
    as booleans.

    Raises:
        ImageError: it is of another type or shape. Nothing in an array says which range its numbers have, so none is
            guessed; the message says how to make it 8 bits.
    """
    shape = " x ".join(map(str, array.shape)) or "a single number"
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        raise ImageError(f"the array is {shape}, colours first: give array.transpose(1, 2, 0)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"the array is {shape}: give height x width, or height x width x 3, one photo an array")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype != np.uint8:
        raise ImageError(f"the array has numbers of type {array.dtype}, of no agreed range. {_to_8_bits(array)}")
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _to_8_bits(array: np.ndarray) -> str:
    """How to make an array of other numbers one of 8 bits."""
    if array.dtype.kind not in "iuf" or not array.size:
        return "Give 8 bits (uint8)"
    least, most = array.min(), array.max()
    if array.dtype.kind == "f" and least >= 0 and most <= 1:
        return f"They are from {least:.3g} to {most:.3g}: if 1 is white, give (array * 255).round().astype('uint8')"
    if least >= 0 and most <= 255:
        return f"They are from {least:.3g} to {most:.3g}: if 255 is white, give array.round().astype('uint8')"
    return (
        f"They are from {least} to {most}: bring them from the range that they really have to 0..255, then give "
        "array.round().astype('uint8')"
    )


def _name(source: ImageSource, where: str) -> str:
    if where:
        return where
    return str(source) if isinstance(source, Path | str) else "the image"


@contextmanager
def _header(source: ImageSource, name: str) -> Iterator[Image.Image]:
    """Yields the image with its header read and its size within the limits, its pixels not decoded yet."""
    if isinstance(source, Image.Image):
        _check_size(source.size, name)
        yield source
        return
    if isinstance(source, bytes):
        if not source:
            raise ImageError(f"{name} is empty (0 bytes): copy or download it again, or leave it out")
        stream: IO[bytes] = io.BytesIO(source)
    else:
        stream = _open_file(source, name)
    with stream:
        try:
            image = Image.open(stream, formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageError(f"{name} has too many pixels ({error}): make it smaller, or leave it out") from None
        except Exception as error:
            raise ImageError(_not_an_image(stream, name)) from error
        _check_size(image.size, name)
        yield image


def _open_file(path: Path | str, name: str) -> io.BufferedReader:
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would block for ever
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ImageError(f"{name} is {what}: give the path of an image file")
        if status.st_size == 0:
            raise ImageError(f"{name} is empty (0 bytes): copy or download it again, or leave it out")
        return Path(path).open("rb")
    except (FileNotFoundError, NotADirectoryError):
        raise MissingImageError(f"{name} does not exist: check the path, or download the image again") from None
    except TypeError:
        raise ImageError(
            f"{name} is of type {type(path).__name__}: give a path, the bytes of a file or a Pillow image"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ImageError(f"{name} cannot be read ({reason}): check the path and its permissions") from error


def _not_an_image(stream: IO[bytes], name: str) -> str:
    try:
        stream.seek(0)
        start = stream.read(256).lstrip().lower()
    except OSError:
        start = b""
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return f"{name} is a web page or SVG, not a photo: download the image again, or leave it out"
    if start[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc") and not HEIF:
        return f"{name} is a HEIC or HEIF photo: `pip install 'pixelbert[heif]'` to read it, or save it as JPEG"
    known = ", ".join(FORMATS)
    return f"{name} is not an image of a known format ({known}), or is cut short: download it again, or leave it out"


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} is {width} x {height}: more than {MAX_PIXELS:,} pixels. Make it smaller, or leave it out"
        )
    if min(size) < MIN_SIDE:
        raise ImageError(
            f"{name} is {width} x {height}: each side needs at least {MIN_SIDE} pixels. Leave it out, or "
            f"find the original"
        )
    if max(size) > MAX_ASPECT * min(size):
        raise ImageError(
            f"{name} is {width} x {height}: longer than {MAX_ASPECT} times its short side. Crop it, or leave it out"
        )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; broken EXIF counts as upright, since the photo itself may be sound."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


class _Range(NamedTuple):
    """The range of an image's pixels, as its header says it.

    Attributes:
        bits: of a grey value or colour; None if nothing says them.
        inverted: the least value is white, which Pillow leaves to others where there are more than 8 bits.
    """

    bits: int | None
    inverted: bool = False

    @classmethod
    def of(cls, image: Image.Image) -> "_Range":
        """What is known before the pixels are decoded."""
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            bits, kinds = (image.tag_v2.get(tag) for tag in (_BITS_TAG, _SAMPLE_FORMAT_TAG))
            unsigned = kinds is None or set(kinds) == {1}
            return cls(max(bits) if bits and unsigned else None, image.tag_v2.get(_PHOTOMETRIC_TAG) == 0)
        if image.mode == "I" and image.format not in ("PNG", "PPM"):  # where it holds 16 bits, always
            return cls(None)
        tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
        rows = [tile.args if isinstance(tile.args, tuple) else (tile.args,) for tile in tiles]
        # A name such as "RGB;16B" in most formats; in PPM the greatest value.
        deep = any(
            ";16" in str(row[0]) or (image.format == "PPM" and isinstance(row[-1], int) and row[-1] > 255)
            for row in rows
            if row
        )
        return cls(16 if deep or image.mode.startswith("I") else 8)


def _to_rgb(image: Image.Image, depth: _Range, name: str) -> Image.Image:
    mode = image.mode
    save = "Save it as 8-bit, from black to white as it should be seen, or leave it out"
    if mode == "F":
        raise ImageError(f"{name} has floating-point pixels of no agreed range. {save}")
    if mode.startswith("I"):
        if depth.bits not in (12, 16):
            raise ImageError(f"{name} has 32-bit or signed pixels of no agreed range. {save}")
        most = 2**depth.bits - 1
        values = np.asarray(image).astype(np.uint32)
        _check_bright(int(values.max()), most, depth.bits, name, save)
        values = most - values if depth.inverted else values
        return Image.fromarray(((values * 255 + most // 2) // most).astype(np.uint8)).convert("RGB")
    if mode == "La":
        image = image.convert("LA")
    rgb = image.convert("RGB")
    if depth.bits == 16:  # of which Pillow has kept the upper eight
        _check_bright(int(np.asarray(rgb).max()), 255, 16, name, save)
    if image.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in image.info:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")
    return rgb


def _check_bright(brightest: int, most: int, bits: int, name: str, save: str) -> None:
    """Refuses an image of more than 8 bits that is nearly black; all black it may be."""
    if 0 < brightest * NEARLY_BLACK <= most + NEARLY_BLACK:  # what 4,095 of 65,535 are when they are rounded, too
        raise ImageError(
            f"{name} is of {bits} bits and would be nearly black: its brightest pixel has {brightest / most:.1%} of "
            f"the range. It may hold fewer bits, such as 12 in a file of 16. {save}"
        )


@contextmanager
def _pillow_errors(name: str) -> Iterator[None]:
    """Turns what Pillow's decoders raise on damaged bytes, almost anything, into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ImageError(
            f"{name} cannot be decoded, damaged or cut short ({reason}): download it again, or leave it out"
        ) from error


class _Quiet:
    """Silences warnings that Pillow raises while any thread is inside.

    `warnings.catch_warnings` swaps a global list, so two threads that overlap could leave it swapped for
    good: here the first thread in opens it and the last one out closes it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._catch: warnings.catch_warnings | None = None

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._catch = warnings.catch_warnings()
                self._catch.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.|pixelbert\.data\.images")
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._catch is not None:
                self._catch.__exit__(None, None, None)
                self._catch = None


_quiet = _Quiet()


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    _quiet.enter()
    try:
        yield
    finally:
        _quiet.leave()

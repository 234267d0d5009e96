"""Opening photos: odd kinds come out right, broken ones as an ImageError, Pillow's state is untouched."""

import os
import struct
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from data_builders import encoded, photo, png_header
from pixelbert.data.images import MIN_SIDE, ImageError, check_image, image_of_array, open_image, stored_size
from pixelbert.data.processing import PixelBertImageProcessor


def pixel(image: Image.Image, x: int = 3, y: int = 3) -> tuple[int, ...]:
    value = image.getpixel((x, y))
    assert isinstance(value, tuple)
    return value


def close(found: tuple[int, ...], expected: tuple[int, ...], by: int = 6) -> bool:
    return all(abs(a - b) <= by for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF"])
def test_formats_from_path_bytes_and_image(tmp_path: Path, kind: str) -> None:
    data = encoded(photo(200), kind)
    path = tmp_path / "photo"
    path.write_bytes(data)
    for source in (path, str(path), data, Image.open(path)):
        image = open_image(source)
        assert image.mode == "RGB"
        assert image.size == stored_size(source) == check_image(source) == (40, 32)
        assert close(pixel(image), (20, 200, 200), 12)


def test_cmyk_becomes_the_colour_it_prints() -> None:
    cmyk = Image.new("CMYK", (20, 20), (0, 255, 255, 0))
    assert close(pixel(open_image(encoded(cmyk, "JPEG", quality=95))), (255, 0, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(("value", "expected"), [(0, 0), (32768, 128), (40_092, 156), (65535, 255)])
def test_16_bit_grey_is_scaled_not_clipped(kind: str, value: int, expected: int) -> None:
    grey = Image.fromarray(np.full((20, 20), value, np.uint16))
    assert pixel(open_image(encoded(grey, kind))) == (expected,) * 3


def test_16_bit_pgm_is_scaled() -> None:
    data = b"P5 20 20 65535\n" + (32768).to_bytes(2, "big") * 400
    assert pixel(open_image(data)) == (128,) * 3


def deep_png(colour_type: int, *samples: int) -> bytes:
    """A PNG of 20 x 20 pixels, all with these samples of 16 bits; colour type 2 is RGB, 4 grey with transparency."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = (b"\0" + struct.pack(f">{len(samples)}H", *samples) * 20) * 20
    header = struct.pack(">IIBBBBB", 20, 20, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def grey_tiff(bits: int, data: bytes, white: int = 1, kind: int = 1) -> bytes:
    """An uncompressed TIFF of 20 x 20 grey pixels; `white` is 0 where the least value is, `kind` 2 for signed ones."""
    tags = {256: 20, 257: 20, 258: bits, 259: 1, 262: white, 277: 1, 278: 20, 279: len(data), 339: kind}
    tags[273] = 8 + 2 + 12 * (len(tags) + 1) + 4  # where the pixels begin
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4 + data


def grey(value: int, kind: type = np.uint16) -> bytes:
    return np.full((20, 20), value, kind).tobytes()


def test_a_depth_that_the_header_tells_is_used() -> None:
    twelve = bytes([2048 >> 4, (2048 & 15) << 4 | 2048 >> 8, 2048 & 255]) * 200  # two pixels in three bytes
    assert pixel(open_image(grey_tiff(12, twelve))) == (128,) * 3
    assert pixel(open_image(b"P5 20 20 4095\n" + (2048).to_bytes(2, "big") * 400)) == (128,) * 3
    assert pixel(open_image(grey_tiff(16, grey(65_535), white=0))) == (0,) * 3
    assert pixel(open_image(grey_tiff(16, grey(0), white=0))) == (255,) * 3
    assert pixel(open_image(deep_png(2, 65_535, 32_768, 0))) == (255, 128, 0)


NEARLY_BLACK = {
    "grey PNG": encoded(Image.fromarray(np.full((20, 20), 4095, np.uint16)), "PNG"),
    "grey TIFF": grey_tiff(16, grey(4095)),
    "8 bits in 16": grey_tiff(16, grey(255)),
    "colour PNG": deep_png(2, 4095, 3000, 2000),
    "transparent PNG": deep_png(4, 4095, 40_000),
    "PGM": b"P5 20 20 65535\n" + (4095).to_bytes(2, "big") * 400,
    "PPM": b"P6 20 20 65535\n" + (4095).to_bytes(2, "big") * 1200,
}


@pytest.mark.parametrize("name", NEARLY_BLACK)
def test_12_bits_in_16_are_refused_and_not_shown_nearly_black(name: str) -> None:
    with pytest.raises(ImageError, match=r"scan 3 is of 16 bits and would be nearly black.*6\.[0-9]%|0\.4%|5\.9%"):
        open_image(NEARLY_BLACK[name], "scan 3")


def test_8_bit_photos_may_be_dark_and_all_black_is_black() -> None:
    assert pixel(open_image(encoded(Image.new("RGB", (20, 20), (9, 9, 9)), "PNG"))) == (9, 9, 9)
    assert pixel(open_image(encoded(Image.fromarray(np.zeros((20, 20), np.uint16)), "PNG"))) == (0, 0, 0)


@pytest.mark.parametrize("value", [-5, 200, 40_000, 70_000])
def test_32_bit_grey_without_an_agreed_range_is_refused(value: int) -> None:
    image = Image.fromarray(np.full((20, 20), value, np.int32))
    for source in (image, encoded(image, "TIFF")):
        with pytest.raises(ImageError, match=r"32-bit or signed pixels of no agreed range\. Save it as 8-bit"):
            open_image(source, "deep.tif")
    with pytest.raises(ImageError, match="signed"):
        open_image(grey_tiff(16, grey(20_000), kind=2))
    with pytest.raises(ImageError, match="floating-point"):
        open_image(encoded(Image.new("F", (20, 20), 0.5), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    if mode == "P":
        image = Image.new("P", (20, 20), 7)
        image.putpalette([0, 0, 0] * 256)
        data = encoded(image, "PNG", transparency=7)
    elif mode in ("RGB", "L"):
        colour = (0, 0, 0) if mode == "RGB" else 0
        data = encoded(Image.new(mode, (20, 20), colour), "PNG", transparency=colour)
    else:
        data = encoded(Image.new(mode, (20, 20), 0), "PNG")
    assert pixel(open_image(data)) == (255, 255, 255)
    half = Image.new("RGBA", (20, 20), (0, 0, 0, 128))
    assert close(pixel(open_image(half)), (127, 127, 127), 1)


def test_palette_and_bilevel() -> None:
    palette = photo(200).quantize(8)
    assert close(pixel(open_image(encoded(palette, "PNG"))), (20, 200, 200), 10)
    assert pixel(open_image(encoded(Image.new("1", (20, 20), 1), "PNG"))) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ((250, 0, 0), (0, 0, 250), (0, 250, 0))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert close(pixel(open_image(data)), (250, 0, 0), 10)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(kind: str, orientation: int) -> None:
    upright = Image.new("RGB", (48, 32), "black")
    upright.paste((250, 250, 250), (0, 0, 24, 16))  # the top left quarter is light
    turn = Image.Transpose
    undo = {2: turn.FLIP_LEFT_RIGHT, 3: turn.ROTATE_180, 4: turn.FLIP_TOP_BOTTOM, 5: turn.TRANSPOSE}
    undo |= {6: turn.ROTATE_90, 7: turn.TRANSVERSE, 8: turn.ROTATE_270}
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, kind, exif=exif)
    image = open_image(data)
    assert image.size == check_image(data) == (48, 32)
    assert [pixel(image, x, y)[0] > 128 for x, y in ((4, 4), (44, 4), (4, 28), (44, 28))] == [
        True,
        False,
        False,
        False,
    ]
    assert not image.getexif()  # or the next reader would turn it again
    assert open_image(image).tobytes() == image.tobytes()


def test_broken_exif_does_not_cost_the_photo() -> None:
    assert open_image(encoded(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")).size == (40, 32)


def test_a_given_image_is_left_as_it_was() -> None:
    image = Image.new("RGB", (20, 20), "red")
    image.info["note"] = "mine"
    result = open_image(image)
    result.paste("blue", (0, 0, 20, 20))
    assert pixel(image) == (255, 0, 0)
    assert image.info == {"note": "mine"}


def truncated(kind: str) -> bytes:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    data = encoded(noise, kind)
    return data[: len(data) // 2]


REFUSED = {
    "zero bytes": (b"", "empty"),
    "cut JPEG": (truncated("JPEG"), "cut short"),
    "cut PNG": (truncated("PNG"), "cut short"),
    "cut WebP": (truncated("WEBP"), "cut short"),
    "cut TIFF": (truncated("TIFF"), "cut short"),
    "text": (b"this is no image\n" * 20, "not an image"),
    "web page": (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
    "PostScript": (encoded(photo(), "EPS"), "not an image"),
    "one pixel": (encoded(Image.new("RGB", (1, 1)), "PNG"), "1 x 1"),
    "below the least side": (encoded(Image.new("RGB", (MIN_SIDE - 1, 100)), "PNG"), "at least 16"),
    "30,000 x 1": (encoded(Image.new("RGB", (30_000, 1)), "PNG"), "30000 x 1"),
    "too long": (encoded(Image.new("RGB", (16 * 20 + 1, 16)), "PNG"), "20 times"),
    "30,000 x 30,000": (png_header(30_000, 30_000), "pixels"),
    "120 million pixels": (png_header(12_000, 10_000), "pixels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_file_and_what_to_do(tmp_path: Path, name: str) -> None:
    data, message = REFUSED[name]
    path = tmp_path / "broken.jpg"
    path.write_bytes(data)
    for source, called in ((path, str(path)), (data, "picture 7")):
        with pytest.raises(ImageError, match=message) as caught:
            open_image(source, "" if source is path else called)
        assert called in str(caught.value)
        assert any(word in str(caught.value) for word in ("download", "leave it out", "Leave it out"))


def test_limits_themselves_are_accepted() -> None:
    assert open_image(encoded(Image.new("RGB", (320, 16)), "PNG")).size == (320, 16)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"x")
    for path, message in (
        (tmp_path, "folder"),
        (tmp_path / "pipe", "regular"),
        (tmp_path / "gone.jpg", "does not exist"),
        (tmp_path / "file" / "below.jpg", "does not exist"),
        (tmp_path / "nul\0.jpg", "cannot be read"),
        (tmp_path / ("long" * 100), "cannot be read"),
    ):
        with pytest.raises(ImageError, match=message):
            open_image(path)


def test_a_huge_image_is_refused_from_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    tracemalloc.start()
    for size in ((30_000, 30_000), (12_000, 10_000)):
        for function in (open_image, stored_size, check_image):
            with pytest.raises(ImageError, match=r"too many pixels|more than"):
                function(png_header(*size))
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_stored_size_takes_the_header_only() -> None:
    # 94.5 million pixels: allowed, though Pillow would warn of a decompression bomb.
    big = encoded(Image.new("1", (9_000, 10_500)), "BMP")[:200]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert stored_size(big) == (9_000, 10_500)
        with pytest.raises(ImageError, match="cut short"):
            open_image(truncated("BMP"))


def test_no_warning_leaks_and_global_state_stays() -> None:
    before = (
        Image.MAX_IMAGE_PIXELS,
        ImageFile.LOAD_TRUNCATED_IMAGES,
        list(warnings.filters),
        warnings.showwarning,
    )
    palette = Image.new("P", (20, 20), 1)
    sources = [encoded(palette, "PNG", transparency=bytes([0] * 3)), *(data for data, _ in REFUSED.values())]

    def attempt(data: bytes) -> None:
        with suppress(ImageError):
            open_image(data)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(attempt, sources * 10))
    assert not caught
    for data in sources:
        attempt(data)
    after = (
        Image.MAX_IMAGE_PIXELS,
        ImageFile.LOAD_TRUNCATED_IMAGES,
        list(warnings.filters),
        warnings.showwarning,
    )
    assert after == before


def test_arrays_of_8_bits_are_read_as_files_are() -> None:
    colours = np.asarray(photo(200))
    assert image_of_array(colours).tobytes() == photo(200).tobytes()
    grey_values = np.full((20, 30), 77, np.uint8)
    for array in (grey_values, grey_values[:, :, None]):
        assert pixel(open_image(image_of_array(array))) == (77,) * 3
    assert image_of_array(grey_values).size == (30, 20)
    half = np.dstack([np.zeros((20, 20, 3), np.uint8), np.full((20, 20), 128, np.uint8)])
    assert close(pixel(open_image(image_of_array(half))), (127, 127, 127), 1)  # laid on white
    assert pixel(open_image(image_of_array(np.ones((20, 20), bool)))) == (255,) * 3


ARRAYS = {
    "float in 0..1": (np.full((20, 20, 3), 0.5), r"float64.*if 1 is white, give \(array \* 255\)"),
    "float in 0..255": (np.full((20, 20, 3), 99, np.float32), r"float32.*if 255 is white, give array\.round"),
    "NaN": (np.full((20, 20, 3), np.nan), "from nan to nan: bring them from the range that they really have"),
    "int in 0..255": (np.full((20, 20, 3), 99), "int64.*if 255 is white"),
    "uint16": (np.full((20, 20), 4000, np.uint16), "uint16.*from 4000 to 4000: bring them"),
    "colours first": (np.zeros((3, 20, 20), np.uint8), r"3 x 20 x 20, colours first: give array\.transpose\(1, 2, 0\)"),
    "two channels": (np.zeros((20, 20, 2), np.uint8), "20 x 20 x 2: give height x width x 3|height x width, or"),
    "several photos": (np.zeros((2, 20, 20, 3), np.uint8), "2 x 20 x 20 x 3: .*one photo an array"),
    "words": (np.full((20, 20), "x"), r"Give 8 bits \(uint8\)"),
    "nothing": (np.zeros((0, 0), np.float32), r"Give 8 bits \(uint8\)"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_whose_range_or_shape_is_not_clear_are_refused(name: str) -> None:
    array, message = ARRAYS[name]
    with pytest.raises(ImageError, match=message):
        image_of_array(array)
    with pytest.raises(ImageError, match="expected a path" if name == "words" else message):
        PixelBertImageProcessor(64, 64)(array)


def test_what_is_no_image_at_all_is_told() -> None:
    for thing, kind in ((None, "NoneType"), (5, "int")):
        with pytest.raises(ImageError, match=f"is of type {kind}: give a path, the bytes of a file or a Pillow image"):
            open_image(thing)  # type: ignore[arg-type]

"""Attention drawn over photos (paper Fig. 3): one map, all layers and heads of a word, a page of all words."""

from __future__ import annotations

import base64
import io
from html import escape
from string import Template

import matplotlib
import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFont

from pixelbert.predict.attention import Attention, WordMap

FULL = 3.0  # times even attention at which the colour scale ends
TILE = 112  # pixels of the longer side of a tile of a contact sheet
THUMBNAIL = 176  # pixels of the longer side of a picture in the report


def overlay(photo: PIL.Image.Image, weights: np.ndarray, full: float = FULL) -> PIL.Image.Image:
    """Attention in colour over the photo in grey, at the photo's own size.

    The grid covers the whole photo (the processor scales, and crops nothing), so the map is scaled up to all of it.

    Args:
        photo: of any size.
        weights: (rows, columns) that sum to 1.
        full: the end of the colour scale, in times even attention.
    """
    times = PIL.Image.fromarray((weights * weights.size).astype(np.float32))
    smooth = np.asarray(times.resize(photo.size, PIL.Image.Resampling.BILINEAR))
    level = np.clip(smooth / full, 0, 1)
    colour = PIL.Image.fromarray((255 * level).round().astype(np.uint8)).convert("P")
    colour.putpalette((255 * matplotlib.colormaps["inferno"](np.arange(256))[:, :3]).round().astype(np.uint8).tobytes())
    strength = PIL.Image.fromarray((255 * (0.35 + 0.35 * level)).astype(np.uint8))  # the photo stays visible throughout
    return PIL.Image.composite(colour.convert("RGB"), photo.convert("L").convert("RGB"), strength)


def contact_sheet(photo: PIL.Image.Image, attention: Attention, token: str) -> PIL.Image.Image:
    """What one word looks at in every layer (a row each) and head (a column each), the mean over the heads last.

    Raises:
        PixelBertError: no such word; lists those there are.
    """
    tile = shrunk(photo, TILE)
    (width, height), gap, left, top = tile.size, 4, 58, 42
    columns: list[int | None] = [*range(attention.heads), None]
    size = (left + len(columns) * (width + gap), top + attention.layers * (height + gap))
    sheet = PIL.Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    word = attention.words[attention.find(token)]
    draw.text((4, 4), f"“{word}”, layers and heads from 0", "black", font)
    for column, head in enumerate(columns):
        x = left + column * (width + gap)
        draw.text((x, top - 18), "mean" if head is None else f"head {head}", "black", font)
        for layer in range(attention.layers):
            y = top + layer * (height + gap)
            sheet.paste(overlay(tile, attention.maps(token, layer, head)[0].map), (x, y))
    for layer in range(attention.layers):
        draw.text((4, top + layer * (height + gap) + height // 2 - 8), f"layer {layer}", "black", font)
    return sheet


def report(photo: PIL.Image.Image, attention: Attention, text: str) -> str:
    """A web page that needs nothing else: every word of the text, in each layer (mean over heads) and rolled out."""
    small = shrunk(photo, THUMBNAIL)
    head = "".join(f"<th>layer {layer}</th>" for layer in range(attention.layers))
    columns = [attention.maps(layer=layer) for layer in range(attention.layers)] + [attention.maps(rollout=True)]
    rows = "".join(
        f"<tr><th>{escape(maps[0].word)}</th>{''.join(cell(small, found) for found in maps)}</tr>\n"
        for maps in zip(*columns, strict=True)
    )
    grid = "{} x {}".format(*attention.grid)
    return PAGE.substitute(
        text=escape(text), photo=inlined(photo, 3 * THUMBNAIL), grid=grid, full=f"{FULL:g}", head=head, rows=rows
    )


def cell(photo: PIL.Image.Image, found: WordMap) -> str:
    """One map of the report: the picture, how much falls on the photo, and how high it rises."""
    return (
        f'<td><img alt="attention of {escape(found.word)}" src="{inlined(overlay(photo, found.map), THUMBNAIL)}">'
        f"<br>{found.share:.0%} on the photo, peak {found.map.max() * found.map.size:.1f}</td>"
    )


def shrunk(image: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """Scaled so that the longer side has so many pixels, in its own shape."""
    scale = side / max(image.size)
    width, height = (max(round(x * scale), 1) for x in image.size)
    return image.convert("RGB").resize((width, height), PIL.Image.Resampling.BICUBIC)


def inlined(image: PIL.Image.Image, side: int) -> str:
    """An image as a data: address, its longer side scaled to `side` pixels."""
    buffer = io.BytesIO()
    shrunk(image, side).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>What each word looks at</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #1c1c1c; background: #fff; }
h1 { font-size: 1.4rem; max-width: 60rem; }
p { max-width: 60rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; }
th { text-align: left; padding: 4px 10px 4px 0; }
th:first-child { position: sticky; left: 0; background: #fff; }
td { padding: 4px; font-size: 12px; color: #555; white-space: nowrap; }
</style>
<h1>$text</h1>
<img alt="the photo" src="$photo">
<p>Each picture shows which pixels a word attends to, as the mean over the heads of a layer; the paper shows the first,
layer 0. Roll-out follows attention through all layers. The grid of pixels is $grid. The brightest colour stands for
$full times what an even spread would give, or more; the peak is counted in the same measure.</p>
<div class="scroll"><table><tr><th></th>$head<th>roll-out</th></tr>
$rows</table></div>
</html>
""")

"""Whether words look at what they speak of, on photos, with no masks: two photos side by side, and a caption of one.

Each of the shipped photos is joined with the next in a picture of twice the width, once on the left and once on the
right. The share of a word's attention over pixels that falls on the half that the caption is of says where it looks:
0.5 if it looks evenly. The control is the caption of a third photo, for which the two halves are alike. The network has
no positions of pixels (paper section 3.2), so a half is known by what is seen in it alone.

    python benchmarks/pointing.py --json docs/results/shipped/pointing.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import PIL.Image
from rich.table import Table
from transformers.utils import logging

from pixelbert import PixelBert
from pixelbert.demo.report import naming_words
from pixelbert.demo.sample import shipped_photos
from pixelbert.files import write_json
from pixelbert.loading import SHIPPED
from pixelbert.progress import console, track


def side_by_side(left: PIL.Image.Image, right: PIL.Image.Image) -> PIL.Image.Image:
    """Two photos of one size in one picture."""
    both = PIL.Image.new("RGB", (2 * left.width, left.height))
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return both


def left_share(model: PixelBert, picture: PIL.Image.Image, caption: str) -> np.ndarray:
    """(words, layers + 1): each naming word's attention on the left half, layer by layer, and by roll-out at last."""
    attention = model.attention(picture, caption)
    found = [naming_words(attention.maps(layer=layer)) for layer in range(attention.layers)]
    found.append(naming_words(attention.maps(rollout=True)))
    half = attention.grid[1] // 2
    return np.array([[word.map[:, :half].sum() for word in words] for words in found]).T


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", default=SHIPPED, help="the shipped one if left out")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    logging.disable_progress_bar()
    model, photos = PixelBert.from_pretrained(args.checkpoint), shipped_photos()
    own: list[np.ndarray] = []
    third: list[np.ndarray] = []
    for i in track(range(len(photos)), "pairs of photos"):
        this, other, absent = (photos[(i + n) % len(photos)] for n in range(3))
        pictures = [photo.open() for photo in (this, other)]
        ways = [side_by_side(*pictures), side_by_side(*pictures[::-1])]
        for caption, shares in ((this.held_out, own), (absent.held_out, third)):
            on_left, on_right = (left_share(model, picture, caption) for picture in ways)
            shares.append((on_left + 1 - on_right) / 2)  # on `this`, whichever half it is

    layers = [*(f"layer {n + 1}" for n in range(model.model.config.num_hidden_layers)), "roll-out"]
    table = Table("share of attention on the caption's photo", "mean", "standard error", "above 0.5", "a third photo's")
    result: dict[str, object] = {"photos": len(photos), "words": sum(map(len, own)), "even": 0.5}
    for column, name in enumerate(layers):
        # Words of one caption are no independent draws: the error is of captions.
        of_captions = np.array([shares[:, column].mean() for shares in own])
        words = np.concatenate([shares[:, column] for shares in own])
        control = float(np.mean([shares[:, column].mean() for shares in third]))
        figures = {
            "mean": float(of_captions.mean()),
            "standard_error": float(of_captions.std(ddof=1) / len(of_captions) ** 0.5),
            "words_above_half": float((words > 0.5).mean()),
            "control": control,
        }
        result[name] = figures
        table.add_row(name, *(f"{value:.3f}" for value in figures.values()))
    console.print(table)
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()

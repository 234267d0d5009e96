"""Draw which pixels the words of a caption look at (paper Fig. 3), for shipped photos.

    python examples/attention_figure.py CHECKPOINT docs/attention.png [PREPARED_COCO:SPLITS]

Photos and words are chosen by rule, not by hand: the first photos in order of their file names, the first caption of
each, and the caption's first words of four letters or more. Photos of COCO splits that the model has learned from are
left out, if those are named (prepared/coco:restval, say): most of the shipped photos are COCO's restval.
"""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from transformers.utils import logging

import pixelbert.demo
from pixelbert.data.corpus import Corpus
from pixelbert.predict import PixelBert
from pixelbert.predict.maps import overlay

PHOTOS, WORDS, LAYER = 3, 3, 0


def main(checkpoint: str, output: str, learned: str | None = None) -> None:
    logging.disable_progress_bar()
    folder = Path(pixelbert.demo.__file__).parent / "photos"
    model = PixelBert.from_pretrained(checkpoint)
    captions = {p["file_name"]: p["captions"] for p in json.loads((folder / "attribution.json").read_text())}
    seen: set[str] = set()
    if learned is not None:
        corpus = Corpus([learned])
        seen = {corpus.image_id(int(image)) for image in set(corpus.image_of.tolist())}
    unseen = [name for name in sorted(captions) if f"coco:{int(Path(name).stem.rpartition('_')[2])}" not in seen]
    figure = Figure(figsize=(2.3 * (WORDS + 1), 2.5 * PHOTOS), layout="constrained")
    axes = figure.subplots(PHOTOS, WORDS + 1)
    for row, name in zip(axes, unseen[:PHOTOS], strict=True):
        photo = Image.open(folder / name)
        caption = captions[name][0]
        others = [c[0] for n, c in captions.items() if n != name]
        scores = model.match(photo, [caption, *others])[0]
        row[0].imshow(photo)
        row[0].set_title(
            f"“{wrapped(caption)}”\np = {scores[0]:.2f}, place {1 + sum(s >= scores[0] for s in scores[1:])}"
            f" of {len(scores)}",
            fontsize=7,
        )
        words = [found for found in model.attend(photo, caption, layer=LAYER) if len(found.word) >= 4][:WORDS]
        for ax, found in zip(row[1:], words, strict=False):
            ax.imshow(overlay(photo, found.map))
            ax.set_title(found.word, fontsize=9)
        for ax in row:
            ax.axis("off")
    figure.savefig(output, dpi=90)


def wrapped(text: str, width: int = 34) -> str:
    """Break a caption into lines."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + len(word) >= width:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return "\n".join([*lines, line])


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])

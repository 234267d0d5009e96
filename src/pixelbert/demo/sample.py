"""The 64 photos that ship with the project (CC BY 2.0), and their captions as two prepared data sets.

Four captions of each photo are for training and the fifth is held out: the same photos, sentences never seen. With 64
photos and a network that starts at random, photos never seen would measure nothing but luck.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from pixelbert.data.images import open_image
from pixelbert.data.prepare import prepare
from pixelbert.data.sources.folder import Folder
from pixelbert.errors import PixelBertError

PHOTOS = Path(__file__).parent / "photos"
TRAINED = 4  # captions of each photo that training sees; the next one is held out


@dataclass(frozen=True)
class Photo:
    """One shipped photo, its captions, questions with their answers, and what its licence asks to be said of it.

    The questions are people's, each with a yes or a no, and then those that its captions answer (open_questions.csv).
    """

    path: Path
    captions: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]
    licence: str
    source: str
    changes: str

    @property
    def held_out(self) -> str:
        """The caption that training does not see."""
        return self.captions[TRAINED]

    def open(self) -> PIL.Image.Image:
        """The picture."""
        return open_image(self.path)


def shipped_photos(folder: Path = PHOTOS) -> list[Photo]:
    """All photos in the order of their file names.

    Raises:
        PixelBertError: the photos were not installed with the package.
    """
    try:
        items = json.loads((folder / "attribution.json").read_text(encoding="utf-8"))
        with (folder / "open_questions.csv").open(newline="", encoding="utf-8") as file:
            asked = list(csv.DictReader(file))
    except FileNotFoundError:
        raise PixelBertError(
            f"{folder} does not hold the demonstration's photos: install the project from its repository"
        ) from None
    photos = [
        Photo(
            folder / item["file_name"],
            tuple(item["captions"]),
            tuple(
                (row["question"], row["answer"])
                for row in [*item["questions"], *(row for row in asked if row["image"] == item["file_name"])]
                if row.get("answer")
            ),
            item["license"],
            item["flickr_url"],
            item["changes"],
        )
        for item in items
    ]
    return sorted(photos, key=lambda photo: photo.path.name)


def prepare_photos(photos: list[Photo], output: Path) -> tuple[str, str]:
    """Prepare the photos with the captions to train on and with those held out.

    They are two data sets, and not two splits of one, because `prepare` rightly refuses one image in two splits.

    Returns:
        The two sources for a recipe or an evaluation, as DIR:SPLIT.
    """
    output.mkdir(parents=True, exist_ok=True)
    sources = []
    for split, first, end in (("train", 0, TRAINED), ("heldout", TRAINED, TRAINED + 1)):
        table = output / f"photos-{split}.csv"
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("image", "text", "split"))
            for photo in photos:
                writer.writerows((photo.path.name, text, split) for text in photo.captions[first:end])
        folder = Folder(images=photos[0].path.parent, captions=table, name="photos")
        prepare(folder, output / f"photos-{split}", embed_images=True, overwrite=True)
        sources.append(f"{output / f'photos-{split}'}:{split}")
    return sources[0], sources[1]

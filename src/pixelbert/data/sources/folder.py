"""A folder of photos with a table of captions: anybody's own image-text pairs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pixelbert.bounds import SEED, SHARE
from pixelbert.data.sources.common import ImageRecord, Reading, Sentence, Skip, check_name, short
from pixelbert.data.sources.tables import Form, HashSplit, ImageRows, Row, first_value, read_table
from pixelbert.data.sources.words import is_missing
from pixelbert.errors import PixelBertError

TEXT_COLUMNS = ("text", "caption")
FORM = Form("a table with the columns image, text (or caption) and, if you like, split", (("image",), TEXT_COLUMNS))


@dataclass(kw_only=True)
class Folder:
    """A folder of photos with captions.csv, captions.tsv or captions.jsonl: image, text (or caption), perhaps split.

    Without a split column every image is put into train, val or test by a hash of its name, all its captions
    with it; so an image keeps its place when others are added.

    Attributes:
        images: the folder of the photos; the column `image` holds paths relative to it.
        captions: the table, .csv, .tsv or .jsonl; captions.csv, .tsv or .jsonl in the folder if left out.
        val: share of the images that go to the split "val".
        test: share of the images that go to the split "test".
        seed: another number gives another random split.
        name: the data set's name.
    """

    images: Path
    captions: Path | None = None
    val: Annotated[float, SHARE] = 0.05
    test: Annotated[float, SHARE] = 0.05
    seed: Annotated[int, SEED] = 0
    name: str = "folder"

    def files(self) -> list[Path]:
        """The table of captions."""
        return [self._table()]

    def read(self) -> Reading:
        """Opens the table; see `Source`."""
        split_of = HashSplit(self.val, self.test, self.seed)
        name = check_name(self.name)
        notes: list[str] = []
        rows = read_table(self._table(), FORM, notes)
        return Reading(name, self._records(ImageRows(name, FORM, split_of), rows, notes), notes=notes)

    def _table(self) -> Path:
        if self.captions is None:
            for table in ("captions.csv", "captions.tsv", "captions.jsonl"):
                if (Path(self.images) / table).is_file():
                    return Path(self.images) / table
            raise PixelBertError(
                f"{self.images} holds no captions.csv, captions.tsv or captions.jsonl: name the table with --captions"
            )
        return Path(self.captions)

    def _records(self, images: ImageRows, rows: list[Row], notes: list[str]) -> Iterator[ImageRecord | Skip]:
        for where, row in rows:
            record = images.place(where, row)
            if isinstance(record, Skip):
                yield record
                continue
            assert isinstance(row, dict)
            text = first_value(row, TEXT_COLUMNS)
            if is_missing(text):
                yield Skip("sentence", "no caption", f"{short(text)} marks a missing value", where, bad=False)
                continue
            sentence_id = f"{record.images[0].image_id}#{len(record.sentences)}"
            record.sentences.append(Sentence(sentence_id, text, where))
        notes += images.notes()
        yield from images.records.values()

"""A folder of photos with a table of captions: anybody's own image-text pairs."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pixelbert.data.sources.common import (
    ImageRecord,
    Reading,
    Sentence,
    Skip,
    Where,
    as_id,
    check_name,
    read_text,
    short,
)
from pixelbert.errors import PixelBertError

FORMAT = "a table with the columns image, text (or caption) and, if you like, split"
TEXT_COLUMNS = ("text", "caption")

Row = tuple[Where, dict[str, object] | str]  # a row's fields, or what is wrong with it


@dataclass(kw_only=True)
class Folder:
    """A folder of photos with captions.csv or captions.jsonl: image, text (or caption), perhaps split.

    Without a split column every image is put into train, val or test by a hash of its name, all its captions
    with it; so an image keeps its place when others are added.

    Attributes:
        images: the folder of the photos; the column `image` holds paths relative to it.
        captions: the table, .csv or .jsonl; captions.csv or captions.jsonl in the folder if left out.
        val: share of the images that go to the split "val".
        test: share of the images that go to the split "test".
        seed: another number gives another random split.
        name: the data set's name.
    """

    images: Path
    captions: Path | None = None
    val: float = 0.05
    test: float = 0.05
    seed: int = 0
    name: str = "folder"

    def files(self) -> list[Path]:
        """The table of captions."""
        return [self._table()]

    def read(self) -> Reading:
        """Opens the table; see `Source`."""
        if self.val < 0 or self.test < 0 or self.val + self.test >= 1:
            raise PixelBertError(f"val {self.val} and test {self.test} are shares of the images, together less than 1")
        path, name = self._table(), check_name(self.name)
        text = read_text(path)
        rows = list(_csv_rows(path, text) if path.suffix.lower() == ".csv" else _jsonl_rows(path, text))
        if not rows:
            raise PixelBertError(f"{path} has no rows: expected {FORMAT}")
        return Reading(name, self._records(name, rows))

    def _table(self) -> Path:
        if self.captions is None:
            for table in ("captions.csv", "captions.jsonl"):
                if (Path(self.images) / table).is_file():
                    return Path(self.images) / table
            raise PixelBertError(
                f"{self.images} holds no captions.csv or captions.jsonl: name the table with --captions"
            )
        if Path(self.captions).suffix.lower() not in (".csv", ".jsonl"):
            raise PixelBertError(f"{self.captions} is neither .csv nor .jsonl: expected {FORMAT}")
        return Path(self.captions)

    def _records(self, name: str, rows: list[Row]) -> Iterator[ImageRecord | Skip]:
        records: dict[str, ImageRecord] = {}
        for where, row in rows:
            problem = row if isinstance(row, str) else _row_problem(row)
            if isinstance(row, str) or problem:
                yield Skip("sentence", "malformed row", problem, where)
                continue
            path = str(row["image"])
            key = str(PurePosixPath(path))  # a/b.jpg for ./a//b.jpg
            image_id = f"{name}:{key}"
            split = str(row["split"]) if row.get("split") else self._split(key)
            record = records.setdefault(key, ImageRecord(image_id, path, split, where))
            if record.split != split:
                reason = f"the image is in {record.split!r} ({record.where.place}) and may not be in {split!r} too"
                yield Skip("sentence", "image in two splits", reason, where)
                continue
            text = next((row[column] for column in TEXT_COLUMNS if column in row), None)
            record.sentences.append(Sentence(f"{image_id}#{len(record.sentences)}", text, where))
        yield from records.values()

    def _split(self, key: str) -> str:
        digest = hashlib.sha256(f"{self.seed}:{key}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64  # uniform in [0, 1)
        if place < self.test:
            return "test"
        return "val" if place < self.test + self.val else "train"


def _row_problem(row: dict[str, object]) -> str:
    if "image" not in row:
        return "'image' is missing"
    if not isinstance(row["image"], str) or as_id(row["image"]) is None:
        return f"'image' is {short(row['image'])}, not a path"
    if not any(column in row for column in TEXT_COLUMNS):
        return "'text' is missing"
    if not isinstance(row.get("split") or "", str):
        return f"'split' is {short(row['split'])}, not text"
    return ""


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip().lower() for column in next(reader)]
        if "image" not in header or not any(column in header for column in TEXT_COLUMNS):
            tail = next((f" Use commas, not {mark!r}." for mark in ";\t|" if mark in ",".join(header)), "")
            raise PixelBertError(f"{path}, line 1: expected {FORMAT}; found the columns {', '.join(header)}.{tail}")
        if len(set(header)) < len(header):
            raise PixelBertError(f"{path}, line 1: a column's name stands twice: {', '.join(header)}")
        while True:
            where = Where(path, f"line {reader.line_num + 1}")
            fields = next(reader, None)
            if fields is None:
                return
            if len(fields) == len(header):
                yield where, dict(zip(header, fields, strict=True))
            elif fields:  # an empty line is no row
                yield (
                    where,
                    f"{len(fields)} fields where the header has {len(header)}: quote a text that has commas",
                )
    except csv.Error as error:
        raise PixelBertError(
            f"{path}, line {reader.line_num}: not CSV ({error}). Quote a text that has commas or line "
            f"breaks, and double "
            "the quotes inside it"
        ) from None


def _jsonl_rows(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = Where(path, f"line {number}")
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            yield where, f"not JSON ({error.msg}, column {error.colno}): the line may have been cut short"
            continue
        except (ValueError, RecursionError) as error:
            yield where, f"not JSON ({error})"
            continue
        yield where, row if isinstance(row, dict) else f"expected an object, found {short(row)}"

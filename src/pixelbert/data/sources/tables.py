"""Tables of a user's own, CSV or JSON lines, and their split by image."""

import csv
import hashlib
import io
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pixelbert.data.sources.common import ImageFile, ImageRecord, Skip, Where, as_id, read_text, short
from pixelbert.errors import PixelBertError

Row = tuple[Where, dict[str, object] | str]  # a row's fields, or what is wrong with it


@dataclass(frozen=True)
class Form:
    """What a table has to look like.

    Attributes:
        expected: the same in words, for the messages.
        columns: of each tuple one column has to be there; the first names it in messages.
    """

    expected: str
    columns: tuple[tuple[str, ...], ...]

    def absent(self, header: Collection[str]) -> str:
        """The first column that is not there; nothing if all are."""
        return next((names[0] for names in self.columns if not any(name in header for name in names)), "")


@dataclass(frozen=True)
class HashSplit:
    """Puts an image into train, val or test by a hash of its name: it keeps its place when others are added."""

    val: float
    test: float
    seed: int

    def __post_init__(self) -> None:
        if self.val < 0 or self.test < 0 or self.val + self.test >= 1:
            raise PixelBertError(f"val {self.val} and test {self.test} are shares of the images, together less than 1")

    def __call__(self, key: str) -> str:
        digest = hashlib.sha256(f"{self.seed}:{key}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64  # uniform in [0, 1)
        if place < self.test:
            return "test"
        return "val" if place < self.test + self.val else "train"


def read_table(path: Path, form: Form) -> list[Row]:
    """The rows of a .csv or .jsonl file; a row that cannot be read comes as what is wrong with it.

    Raises:
        PixelBertError: the file as a whole is not such a table, or has no rows.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".csv", ".jsonl"):
        raise PixelBertError(f"{path} is neither .csv nor .jsonl: expected {form.expected}")
    text = read_text(path)
    rows = list(_csv_rows(path, text, form) if kind == ".csv" else jsonl_rows(path, text))
    if not rows:
        raise PixelBertError(f"{path} has no rows: expected {form.expected}")
    return rows


class ImageRows:
    """The rows of tables gathered by image: all of an image's rows in one split, wherever they stand.

    Attributes:
        records: by image path, in order of first appearance.
    """

    def __init__(self, name: str, form: Form, split_of: HashSplit) -> None:
        self.name, self.form, self.split_of = name, form, split_of
        self.records: dict[str, ImageRecord] = {}

    def place(self, where: Where, row: dict[str, object] | str, split: str | None = None) -> ImageRecord | Skip:
        """The record that a row belongs to, or why it belongs to none. `split` holds against the row's own."""
        problem = row if isinstance(row, str) else self._problem(row)
        if isinstance(row, str) or problem:
            return Skip("sentence", "malformed row", problem, where)
        path = str(row["image"])
        key = str(PurePosixPath(path))  # a/b.jpg for ./a//b.jpg
        split = split or (str(row["split"]) if row.get("split") else self.split_of(key))
        image = ImageFile(f"{self.name}:{key}", path)
        record = self.records.setdefault(key, ImageRecord((image,), split, where))
        if record.split != split:
            reason = f"the image is in {record.split!r} ({record.where.place}) and may not be in {split!r} too"
            return Skip("sentence", "image in two splits", reason, where)
        return record

    def _problem(self, row: dict[str, object]) -> str:
        if "image" not in row:
            return "'image' is missing"
        if not isinstance(row["image"], str) or as_id(row["image"]) is None:
            return f"'image' is {short(row['image'])}, not a path"
        absent = self.form.absent(row)
        if absent:
            return f"{absent!r} is missing"
        if not isinstance(row.get("split") or "", str):
            return f"'split' is {short(row['split'])}, not text"
        return ""


def _csv_rows(path: Path, text: str, form: Form) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip().lower() for column in next(reader)]
        if form.absent(header):
            tail = next((f" Use commas, not {mark!r}." for mark in ";\t|" if mark in ",".join(header)), "")
            raise PixelBertError(
                f"{path}, line 1: expected {form.expected}; found the columns {', '.join(header)}.{tail}"
            )
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


def jsonl_rows(path: Path, text: str) -> Iterator[Row]:
    """The rows of JSON lines; a line that is not an object comes as what is wrong with it."""
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

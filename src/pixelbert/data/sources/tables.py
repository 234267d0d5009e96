"""Tables of a user's own, CSV or JSON lines, and their split by image."""

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pixelbert.data.sources.common import ImageFile, ImageRecord, Skip, Where, as_id, read_text, short
from pixelbert.data.sources.words import is_missing, meant_split
from pixelbert.errors import PixelBertError
from pixelbert.files import DuplicateKey, unique_keys

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # a spreadsheet writes either, by its country
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


def read_table(path: Path, form: Form, notes: list[str]) -> list[Row]:
    """The rows of a .csv, .tsv or .jsonl file; a row that cannot be read comes as what is wrong with it.

    Args:
        notes: where to put what a reader should know of how it was read.

    Raises:
        PixelBertError: the file as a whole is not such a table, or has no rows.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".jsonl"):
        raise PixelBertError(f"{path} is none of .csv, .tsv and .jsonl: expected {form.expected}")
    text = read_text(path)
    rows = list(jsonl_rows(path, text) if kind == ".jsonl" else _csv_rows(path, text, form, notes))
    if not rows:
        raise PixelBertError(f"{path} has no rows: expected {form.expected}")
    return rows


def first_value(
    row: dict[str, object], columns: Iterable[str], missing: Callable[[object], bool] = is_missing
) -> object:
    """What stands in the first of these columns that has a value; of none, what stands in the first that is there."""
    there = [row[column] for column in columns if column in row]
    return next((value for value in there if not missing(value)), there[0] if there else None)


class ImageRows:
    """The rows of tables gathered by image: all of an image's rows in one split, wherever they stand.

    Attributes:
        records: by image path, in order of first appearance.
    """

    def __init__(self, name: str, form: Form, split_of: HashSplit) -> None:
        self.name, self.form, self.split_of = name, form, split_of
        self.records: dict[str, ImageRecord] = {}
        self._meant: Counter[tuple[str, str]] = Counter()  # a split as written and as taken, where they differ
        self._without_split: set[str] = set()
        self._with_split = False

    def place(self, where: Where, row: dict[str, object] | str, split: str | None = None) -> ImageRecord | Skip:
        """The record that a row belongs to, or why it belongs to none. `split` holds against the row's own."""
        problem = row if isinstance(row, str) else self._problem(row)
        if isinstance(row, str) or problem:
            return Skip("sentence", "malformed row", problem, where)
        path = str(row["image"])
        key = str(PurePosixPath(path))  # a/b.jpg for ./a//b.jpg
        split = split or self._split(key, row.get("split"))
        image = ImageFile(f"{self.name}:{key}", path)
        record = self.records.setdefault(key, ImageRecord((image,), split, where))
        if record.split != split:
            reason = f"the image is in {record.split!r} ({record.where.place}) and may not be in {split!r} too"
            return Skip("sentence", "image in two splits", reason, where)
        return record

    def notes(self) -> list[str]:
        """What became of the splits that the rows say."""
        notes = [
            f"split: {written!r} taken for {taken} (rows: {count:,})" for (written, taken), count in self._meant.items()
        ]
        if self._with_split and self._without_split:
            notes.append(f"split: none given for {len(self._without_split):,} photos, which were put by their names")
        return notes

    def _split(self, key: str, written: object) -> str:
        if is_missing(written):
            self._without_split.add(key)
            return self.split_of(key)
        self._with_split = True
        taken = meant_split(str(written))
        if taken != written:
            self._meant[str(written), taken] += 1
        return taken

    def _problem(self, row: dict[str, object]) -> str:
        if "image" not in row:
            return "'image' is missing"
        if is_missing(row["image"]):
            return f"'image' is {short(row['image'])}: the path is missing"
        if not isinstance(row["image"], str) or as_id(row["image"]) is None:
            return f"'image' is {short(row['image'])}, not a path"
        absent = self.form.absent(row)
        if absent:
            return f"{absent!r} is missing"
        if not isinstance(row.get("split"), str) and not is_missing(row.get("split")):
            return f"'split' is {short(row['split'])}, not text"
        return ""


def _csv_rows(path: Path, text: str, form: Form, notes: list[str]) -> Iterator[Row]:
    stream = io.StringIO(text, newline="")
    said = re.match(r"sep=(.)\r?\n", text)  # a first line of Excel's
    if said:
        stream.readline()
    start = stream.tell()
    delimiter = said[1] if said else _delimiter(stream.readline(), form)
    stream.seek(start)
    above = 1 if said else 0  # lines over those that the reader counts
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    empty = 0
    try:
        header = [column.strip().lower() for column in next(reader, [])]
        named = [name for name in header if name]
        if form.absent(header):
            raise PixelBertError(
                f"{path}, line {1 + above}: expected {form.expected}; found the columns {', '.join(named) or 'none'}. "
                f"Put their names in this line, between {' or '.join(DELIMITERS.values())}"
            )
        if len(set(named)) < len(named):
            raise PixelBertError(f"{path}, line {1 + above}: a column's name stands twice: {', '.join(named)}")
        nameless = 0  # values under no name
        while True:
            where = Where(path, f"line {reader.line_num + 1 + above}")
            fields = next(reader, None)
            if fields is None:
                break
            if not any(map(str.strip, fields)):
                empty += bool(fields)  # a line with nothing at all is no row
                continue
            while len(fields) > len(header) and not fields[-1].strip():
                fields.pop()
            if len(fields) == len(header):
                nameless += any(value.strip() for name, value in zip(header, fields, strict=True) if not name)
                yield where, {name: value for name, value in zip(header, fields, strict=True) if name}
            else:
                yield (
                    where,
                    f"{len(fields)} fields where the header has {len(header)}: quote a text that has "
                    f"{DELIMITERS.get(delimiter, repr(delimiter))}",
                )
    except csv.Error as error:
        raise PixelBertError(
            f"{path}, line {reader.line_num + above}: not CSV ({error}). Quote a text that has "
            f"{DELIMITERS.get(delimiter, repr(delimiter))} or line breaks, and double the quotes inside it"
        ) from None
    if delimiter != ",":
        notes.append(f"{path.name}: read with {DELIMITERS.get(delimiter, repr(delimiter))} between the fields")
    if empty:
        notes.append(f"{path.name}: {empty:,} rows of empty fields, passed over")
    if nameless:
        notes.append(f"{path.name}: {nameless:,} rows with values in a column without a name, which were not read")


def _delimiter(header: str, form: Form) -> str:
    """What stands between the fields: the mark that makes the columns out of the header line; a comma if none does."""
    for mark in DELIMITERS:
        with suppress(csv.Error):
            columns = next(csv.reader([header], delimiter=mark), [])
            if not form.absent([column.strip().lower() for column in columns]):
                return mark
    return ","


def jsonl_rows(path: Path, text: str) -> Iterator[Row]:
    """The rows of JSON lines; a line that is not an object comes as what is wrong with it."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = Where(path, f"line {number}")
        try:
            row = json.loads(line, object_pairs_hook=unique_keys)
        except json.JSONDecodeError as error:
            yield where, f"not JSON ({error.msg}, column {error.colno}): the line may have been cut short"
            continue
        except DuplicateKey as error:
            yield where, f"{error}: keep one"
            continue
        except (ValueError, RecursionError) as error:
            yield where, f"not JSON ({error})"
            continue
        yield where, row if isinstance(row, dict) else f"expected an object, found {short(row)}"

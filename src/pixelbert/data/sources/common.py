"""What every source of data shares: its records, and reading JSON with errors that name the place."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from pixelbert.data.store import CAPTIONS
from pixelbert.errors import PixelBertError
from pixelbert.files import read_json as read_json
from pixelbert.files import read_text as read_text
from pixelbert.metrics.vqa import AnswerRule


class Where(NamedTuple):
    """Where an item stands in the raw files: a file, and a line, row or key in it."""

    file: Path
    place: str

    def __str__(self) -> str:
        return f"{self.file}: {self.place}"


@dataclass(frozen=True)
class Sentence:
    """One sentence as the source has it; `text` is whatever stood there, checked by `prepare`.

    `targets` are the task's further columns (`store.TARGETS`), such as the answers to a question.
    """

    sentence_id: str
    text: Any
    where: Where
    targets: dict[str, Any] = field(default_factory=dict)


class ImageFile(NamedTuple):
    """An image's id, and its path relative to the source's image folder, which is not checked yet."""

    image_id: str
    path: str


@dataclass(frozen=True)
class ImageRecord:
    """One image, or several that belong together (NLVR2's left and right), with the sentences about them."""

    images: tuple[ImageFile, ...]
    split: str
    where: Where
    sentences: list[Sentence] = field(default_factory=list)


@dataclass(frozen=True)
class Skip:
    """An item that the source itself cannot make a record of, or leaves out on purpose.

    Attributes:
        item: "image" or "sentence".
        problem: a few words that are the same for all items of the kind; the summary counts by them.
        reason: the full story of this one.
        bad: false for an item that is sound and left out by choice, such as a leak.
    """

    item: str
    problem: str
    reason: str
    where: Where
    bad: bool = True


@dataclass
class Reading:
    """A source that has been opened: whole-file errors are behind us, records come one at a time.

    Attributes:
        name: the data set's name, which also begins every id.
        records: images and skips, in the order of the file.
        total: how many records there will be, if that is known.
        task: what the sentences are for, a key of `store.TARGETS`.
        answers: for question answering, the answers that a model is to choose from.
        answer_rule: by which the annotators' answers are compared with these.
        left_out: items that are left out on purpose and are too many to list each, counted by reason while
            the records are read.
        notes: what else a person should know of how the files were read; complete when the records are read.
    """

    name: str
    records: Iterator[ImageRecord | Skip]
    total: int | None = None
    task: str = CAPTIONS
    answers: list[str] | None = None
    answer_rule: AnswerRule = "official"
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


class Source(Protocol):
    """Raw files in one official format. Its fields are the options of `pixelbert prepare FORMAT`."""

    @property
    def images(self) -> Path:
        """The folder that image paths start from; no image outside it is read."""

    def files(self) -> list[Path]:
        """The files whose checksums are written down."""

    def read(self) -> Reading:
        """Opens the files; raises PixelBertError when one as a whole is not what it should be."""


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
ID_LENGTH = 500  # characters
UNFIT = re.compile("[\0\ud800-\udfff]")  # what no file's name and no UTF-8 has


def as_id(value: object) -> str | None:
    """The text of an id, a whole number or a short string; None for anything else.

    It may have any character that files' names have: it is escaped where it is printed.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    if isinstance(value, int):
        return str(value) if abs(value) < 10**30 else None
    return value if value and len(value) <= ID_LENGTH and not UNFIT.search(value) else None


def unsafe_path(path: object) -> str | None:
    """Why a path may not be followed below the image folder, by its words alone; None if it may."""
    if not isinstance(path, str) or not path.strip():
        return f"the image path is {short(path)}, not text"
    if UNFIT.search(path) or len(path) > 1000:
        return f"the image path {short(path)} has characters that no path has, or is too long"
    parts = PurePosixPath(path.replace("\\", "/")).parts
    if path.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", path):
        return f"the image path {short(path)} is absolute: it has to be relative to the image folder"
    if ".." in parts:
        return f"the image path {short(path)} leaves the image folder"
    return None


def short(value: object, length: int = 60) -> str:
    """A value as it may stand in a message: quoted, on one line, cut if it is long."""
    text = repr(value) if not isinstance(value, dict | list) else f"a {type(value).__name__} of {len(value)}"
    return text if len(text) <= length else f"{text[: length - 1]}…"


def check_name(name: str, file: Path | None = None) -> str:
    """The name of a data set, if it can begin an id. A file may have said it."""
    if not NAME.fullmatch(name):
        said = f"{file}: " if file else ""
        raise PixelBertError(f"{said}{short(name)} cannot name a data set: use letters, digits, - and _ (--name)")
    return name


def require(data: Any, path: Path, kind: type, keys: dict[str, type], expected: str) -> None:
    """Checks the top level of a JSON file.

    Raises:
        PixelBertError: says what was expected and, if the file is recognisably of another format, which
            command is for it.
    """
    hint = _other_format(data)
    tail = f" This looks like {hint}" if hint and hint[0] != expected else ""
    fits: bool = isinstance(data, kind)
    if not fits:
        names: dict[type, str] = {dict: "an object", list: "an array"}
        found = names.get(type(data), type(data).__name__)
        raise PixelBertError(f"{path}: expected {expected}, {names[kind]} at the top, and found {found}.{tail}")
    for key, wanted in keys.items():
        if key not in data:
            raise PixelBertError(f"{path}: expected {expected}, and the key {key!r} is missing at the top.{tail}")
        if not isinstance(data[key], wanted):
            found = type(data[key]).__name__
            raise PixelBertError(
                f"{path}: expected {expected}; {key!r} is of type {found}, not {wanted.__name__}.{tail}"
            )


def _other_format(data: Any) -> str:
    """Names the format that some JSON looks like, and the command for it; empty if it looks like none."""
    if isinstance(data, dict):
        images = data.get("images")
        first = images[0] if isinstance(images, list) and images and isinstance(images[0], dict) else {}
        if "sentences" in first:
            return "Karpathy's JSON: use `pixelbert prepare karpathy`"
        if isinstance(data.get("annotations"), list) and isinstance(images, list):
            return "COCO captions JSON: use `pixelbert prepare coco-captions`"
        if "questions" in data:
            return "VQA questions: use `pixelbert prepare vqa2`"
    if isinstance(data, list) and data and isinstance(data[0], dict):
        if "regions" in data[0]:
            return "Visual Genome's region_descriptions.json: use `pixelbert prepare visual-genome`"
        if "coco_id" in data[0]:
            return "Visual Genome's image_data.json: --image-data of `pixelbert prepare visual-genome`"
    return ""

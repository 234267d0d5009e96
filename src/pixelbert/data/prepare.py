"""The one road from raw files to a prepared data set: every image decoded, every sentence looked at.

Bad items are left out and listed with their reasons; too many of them, and nothing is written.
"""

import json
import os
import unicodedata
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, cast

import pyarrow as pa
from transformers import AutoTokenizer

from pixelbert.bounds import COUNT, SHARE, bounded, check_fields
from pixelbert.data.images import ImageError, MissingImageError, check_image
from pixelbert.data.photo_folder import PhotoFolder
from pixelbert.data.processing import PixelBertProcessor
from pixelbert.data.reading import Sample
from pixelbert.data.sources.answers import Coverage
from pixelbert.data.sources.common import (
    ImageFile,
    ImageRecord,
    Reading,
    Sentence,
    Skip,
    Source,
    Where,
    short,
    unsafe_path,
)
from pixelbert.data.store import CAPTIONS, QUESTION_ANSWERING, SKIPPED, TARGETS, is_split_name
from pixelbert.data.table1 import beside_table1
from pixelbert.data.writer import DatasetWriter, check_output
from pixelbert.errors import PixelBertError
from pixelbert.files import file_sha256
from pixelbert.progress import track
from pixelbert.terminal import printable

BERT_TOKENIZER = Path(__file__).parents[1] / "shipped"
MAX_WORDS = 300  # the network reads 512 tokens at most; a longer "sentence" is a page that slipped in
MAX_CHARACTERS = 5000
PART_OF = {"test_dev": "test"}  # VQA v2 tests on some of the test questions first: the same images, the same ids


@dataclass
class Summary:
    """What `prepare` did.

    Attributes:
        output: the prepared data set's folder.
        name: the data set's name.
        splits: images and examples of each split.
        seen: how many images and sentences the source had.
        skipped: bad items by problem.
        left_out: sound items that were left out on purpose, by reason.
        task: what the examples are for.
        notes: what else a reader should know: how the files were read, the answers, the counts beside the paper's.
    """

    output: Path
    name: str
    task: str = CAPTIONS
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [(split, f"{n['images']:,}", f"{n['examples']:,}") for split, n in self.splits.items()]
        texts = "questions" if self.task == QUESTION_ANSWERING else "sentences"
        rows = [("split", "images", texts), *rows]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [f"{self.name} -> {self.output}"]
        lines += [f"  {a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
        for title, counts in (("skipped", self.skipped), ("left out", self.left_out)):
            lines += [f"  {title}: {number:,} x {reason}" for reason, number in sorted(counts.items())]
        if self.skipped or self.left_out:
            lines.append(f"  each is listed in {self.output / SKIPPED}")
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


@bounded
def prepare(
    source: Source,
    output: Path,
    *,
    strict: bool = False,
    embed_images: bool = False,
    max_bad: Annotated[float, SHARE] = 0.01,
    limit: Annotated[int, COUNT] | None = None,
    overwrite: bool = False,
) -> Summary:
    """Reads a data set's official files, checks everything in them and writes the prepared form.

    Args:
        source: the raw files.
        output: the folder to write; new or empty.
        strict: fail on the first bad item.
        embed_images: put the images' bytes into the data set; their paths otherwise.
        max_bad: the share of images, or of sentences, that may be bad before all is refused.
        limit: stop after this many images, for a trial.
        overwrite: replace a prepared data set in `output`.

    Returns:
        The counts, which are also printed.

    Raises:
        PixelBertError: a file as a whole is not what it should be, too much is bad, or `output` cannot be
            written.
    """
    check_fields(source)
    output = Path(output).resolve()
    report = output.with_name(f"{output.name}.skipped.jsonl")
    check_output(output, overwrite=overwrite)
    folder = Path(source.images).absolute()
    if not folder.is_dir():
        raise PixelBertError(f"{folder} is not a folder: --images names the one that holds the photos")
    reading = source.read()
    with DatasetWriter(output, name=reading.name, task=reading.task, overwrite=overwrite) as writer:
        run = _Run(writer, folder, Summary(output, reading.name, reading.task), strict, embed_images)
        run.take(reading, limit)
        run.summary.splits = writer.counts["splits"]
        run.judge(max_bad, report)
        options = {key: _plain(value) for key, value in asdict(cast(Any, source)).items()}
        options |= {"embed_images": embed_images, "max_bad": max_bad, "limit": limit}
        writer.manifest = {
            "sources": [
                {"file": str(path), "bytes": path.stat().st_size, "sha256": file_sha256(path)}
                for path in source.files()
            ],
            "options": {"format": type(source).__name__} | options,
            "skipped": dict(sorted(run.summary.skipped.items())),
            "left_out": dict(sorted(run.summary.left_out.items())),
            "pixelbert": _version(),
        }
        if run.coverage is not None:
            run.coverage.check()
            writer.manifest |= run.coverage.manifest
            run.summary.notes += run.coverage.notes()
        writer.manifest["notes"] = list(run.summary.notes)
        run.summary.notes += beside_table1(reading.name, run.summary.splits)
        run.summary.notes += how_it_is_read(run.sample)
    report.unlink(missing_ok=True)  # what an earlier attempt had left there
    print(printable(str(run.summary)))
    return run.summary


def how_it_is_read(sample: Sample) -> list[str]:
    """A note: what share of the sentences is cut, or has unknown words, with BERT's tokenizer and as recipes have it.

    The tokenizer is that of the model that ships; none is said if it does not.
    """
    if not BERT_TOKENIZER.is_dir():
        return []
    processor = PixelBertProcessor(tokenizer=AutoTokenizer.from_pretrained(BERT_TOKENIZER, trust_remote_code=False))
    shares = processor.unread(sample.sentences).shares(sample.seen, processor.max_length - 2)
    return [f"{shares} (BERT's English WordPiece, and max_length {processor.max_length}, which a recipe can change)"]


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


class _Run:
    """The state of one preparation: what was seen, and what was made of it."""

    def __init__(self, writer: DatasetWriter, folder: Path, summary: Summary, strict: bool, embed_images: bool) -> None:
        self.writer, self.folder, self.summary = writer, PhotoFolder(folder), summary
        self.strict, self.embed_images = strict, embed_images
        self.bad: Counter[str] = Counter()  # by item: image, sentence
        self.listed: list[dict[str, Any]] = []
        self.missing = self.missing_by_spelling = 0
        self.other_form: set[str] = set()  # ids of images that were found under another Unicode form of their names
        self.images: dict[str, tuple[str, str]] = {}  # image id -> path, split
        self.owner: dict[str, str] = {}  # path -> image id
        self.sentences: set[tuple[str, str]] = set()  # id, and the split if it is a part of another
        self.coverage: Coverage | None = None
        self.sample = Sample()

    def take(self, reading: Reading, limit: int | None) -> None:
        """Handles the records in order while a few images ahead are being decoded."""
        self.coverage = None if reading.answers is None else Coverage(reading.answers, reading.answer_rule)
        workers = min(8, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            waiting: deque[tuple[ImageRecord | Skip, list[_Photo]]] = deque()
            try:
                for record in track(reading.records, f"Preparing {reading.name}", reading.total):
                    files = [] if isinstance(record, Skip) else list(map(self._stored, record.images))
                    waiting.append((record, [(image, self._submit(pool, image)) for image in files]))
                    if len(waiting) >= 4 * workers:
                        self._handle(*waiting.popleft())
                    if limit is not None and len(self.images) >= limit:
                        break
                while waiting and (limit is None or len(self.images) < limit):
                    self._handle(*waiting.popleft())
            finally:
                pool.shutdown(cancel_futures=True)
        self.summary.left_out.update(reading.left_out)
        self.summary.notes += reading.notes
        found = len(self.other_form & self.images.keys())
        if found:
            self.summary.notes.append(f"photos found under another Unicode form of their names (NFC, NFD): {found:,}")

    def _stored(self, image: ImageFile) -> ImageFile:
        """The image under the path that the folder has it under."""
        if unsafe_path(image.path):
            return image
        path = self.folder.stored(image.path)
        if path != image.path:
            self.other_form.add(image.image_id)
        return image._replace(path=path)

    def _submit(self, pool: ThreadPoolExecutor, image: ImageFile) -> "Future[_Facts] | None":
        if unsafe_path(image.path):
            return None
        return pool.submit(_facts, self.folder.folder / image.path, self.embed_images)

    def _handle(self, record: ImageRecord | Skip, photos: "list[_Photo]") -> None:
        if isinstance(record, Skip):
            self.summary.seen[record.item] += 1
            self.skip(record)
            return
        self.summary.seen["image"] += len(record.images)
        self.summary.seen["sentence"] += len(record.sentences)
        problems = [self._image_problem(record, image, facts) for image, facts in photos]
        if any(problems):
            self._leave_out(record, problems)
            return
        sentences = [(found, text) for found in record.sentences if (text := self._text(found, record.split))]
        new = [(image, facts) for image, facts in photos if image.image_id not in self.images]
        if not sentences and new:
            for image, _ in new:
                nothing = "no sentence is left for it"
                self.skip(Skip("image", "image without a sentence", nothing, record.where, bad=False), *image)
            return
        for image, facts in new:
            assert facts is not None
            width, height, data, sha256 = facts.result()
            path = image.path if self.embed_images else str(self.folder.folder / image.path)
            self.writer.add_image(image.image_id, path=path, data=data, width=width, height=height, sha256=sha256)
            file = str(PurePosixPath(image.path))
            self.images[image.image_id] = (file, record.split)
            self.owner[file] = image.image_id
        image_ids = [image.image_id for image in record.images]
        for sentence, text in sentences:
            self.writer.add_example(record.split, sentence.sentence_id, image_ids, text, **sentence.targets)
            self.sample.add(text)
            if self.coverage is not None:
                self.coverage.add(record.split, sentence.targets["answers"])

    def _leave_out(self, record: ImageRecord, problems: list[tuple[str, str] | None]) -> None:
        """Notes a record of which at least one image cannot be used."""
        for image, problem in zip(record.images, problems, strict=True):
            if problem:
                self.skip(Skip("image", *problem, record.where), *image)
            elif image.image_id not in self.images:
                self.summary.left_out["image that belongs to a bad one"] += 1
        lost = len(record.sentences)
        if lost:
            self.summary.left_out["sentence of a bad image"] += lost

    def _image_problem(
        self, record: ImageRecord, image: ImageFile, facts: "Future[_Facts] | None"
    ) -> tuple[str, str] | None:
        """The problem and the full reason why an image cannot be used; None if it can."""
        if not is_split_name(record.split):
            reason = f"the split is {short(record.split)}: use letters, digits and underscores, and not 'images'"
            return "bad split name", reason
        reason = unsafe_path(image.path) or ""
        if facts is None:
            return "path outside the image folder", reason
        file = str(PurePosixPath(image.path))  # a/b.jpg for ./a//b.jpg
        path, split = self.images.get(image.image_id, (file, record.split))
        if path != file:
            return "duplicate image id", f"the id {image.image_id} already belongs to {path}"
        if PART_OF.get(split, split) != PART_OF.get(record.split, record.split):
            return (
                "image in two splits",
                f"the image is in {split!r} already and may not be in {record.split!r} too",
            )
        owner = self.owner.get(file, image.image_id)
        if owner != image.image_id:
            return "duplicate image file", f"the file {image.path} already belongs to image {owner}"
        try:
            facts.result()
        except MissingImageError as error:
            self.missing += 1
            advice = self.folder.advice(image.path)
            self.missing_by_spelling += bool(advice)
            return "missing image file", advice or str(error)
        except ImageError as error:
            return "unusable image", str(error)
        return None

    def _text(self, sentence: Sentence, split: str) -> str:
        """A sentence's text on one line; nothing, and noted, if the sentence cannot be used."""
        key = (sentence.sentence_id, split if split in PART_OF else "")
        problem = sentence_problem(sentence.text) or targets_problem(self.summary.task, sentence.targets)
        if problem is None and key in self.sentences:
            problem = ("duplicate sentence id", f"the id {sentence.sentence_id} was there before")
        if problem:
            self.skip(Skip("sentence", *problem, sentence.where), sentence.sentence_id)
            return ""
        self.sentences.add(key)
        return " ".join(sentence.text.split())

    def skip(self, skip: Skip, key: str | None = None, path: str | None = None) -> None:
        """Notes an item that is left out; under `strict` the first bad one ends it all."""
        if skip.bad and self.strict:
            raise PixelBertError(f"{skip.where}: {skip.problem}: {skip.reason}. Nothing was written (--strict)")
        entry: dict[str, Any] = {"item": skip.item, "file": str(skip.where.file), "where": skip.where.place}
        entry |= {name: value for name, value in (("id", key), ("image", path)) if value is not None}
        entry |= {"problem": skip.problem, "reason": skip.reason, "bad": skip.bad}
        self.writer.add_skipped(entry)
        self.listed.append(entry)
        (self.summary.skipped if skip.bad else self.summary.left_out)[skip.problem] += 1
        self.bad[skip.item] += skip.bad

    def judge(self, max_bad: float, report: Path) -> None:
        """Refuses a data set of which too much is bad or nothing is left; the list lies beside the output."""
        seen = self.summary.seen
        if not self.images and self.missing and self.missing == self.bad["image"]:
            what = "read below what is wrong with the paths" if self.missing_by_spelling else "check --images"
            complaint = f"none of the {self.missing:,} images is in {self.folder.folder}: {what}"
        elif any(bad / seen[item] > max_bad for item, bad in self.bad.items() if bad):
            shares = " and ".join(
                f"{self.bad[item]:,} of {seen[item]:,} {item}s ({self.bad[item] / seen[item]:.1%})"
                for item in ("image", "sentence")
                if self.bad[item]
            )
            complaint = (
                f"{shares} are bad, and {max_bad:.2%} of either may be: "
                "put them right, or allow more with --max-bad (a share, such as 0.05)"
            )
        elif not self.images:
            complaint = "no image with a sentence is left"
        else:
            return
        with report.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in self.listed)
        bad = [entry for entry in self.listed if entry["bad"]] or self.listed
        first = "\n".join(f"  {Where(e['file'], e['where'])}: {e['problem']}: {e['reason']}" for e in bad[:5])
        raise PixelBertError(f"{complaint}. Nothing was written. All are listed in {report}; the first:\n{first}")


_Facts = tuple[int, int, bytes | None, str | None]  # width, height, bytes if they are to be embedded, else checksum
_Photo = tuple[ImageFile, Future[_Facts] | None]


def _facts(path: Path, embed: bool) -> _Facts:
    data = None
    if embed:
        with suppress(OSError, ValueError):  # check_image tells it better
            data = path.read_bytes() if path.is_file() else None
    width, height = check_image(path if data is None else data, str(path))
    return width, height, data, file_sha256(path) if data is None else None


def sentence_problem(text: object) -> tuple[str, str] | None:
    """The problem and the full reason why a text cannot be a sentence; None if it can."""
    if not isinstance(text, str):
        return "sentence is not text", f"expected text, found {short(text)}"
    if not any(character.isalnum() for character in text):
        return "empty sentence", f"no letter or digit in {short(text)}"
    words = len(text.split())
    if words > MAX_WORDS or len(text) > MAX_CHARACTERS:
        limit = f"{MAX_WORDS} words and {MAX_CHARACTERS:,} characters are allowed"
        return "sentence too long", f"{words:,} words, {len(text):,} characters, where {limit}"
    return _character_problem(text)


def targets_problem(task: str, targets: dict[str, Any]) -> tuple[str, str] | None:
    """The problem and the full reason why a task's columns cannot be written; None if they can."""
    for column in TARGETS[task]:
        value = targets.get(column.name)
        if value is None and column.nullable:
            continue
        if not _fits(value, column.type):
            return f"malformed {column.name}", f"{column.name!r} is {short(value)}, not {column.type}"
        for text in value if isinstance(value, list | tuple) else [value]:
            problem = _character_problem(text) if isinstance(text, str) else None
            if problem:
                return f"{problem[0]} in {column.name}", problem[1]
    return None


def _fits(value: Any, kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return isinstance(value, list | tuple) and all(_fits(item, kind.value_type) for item in value)
    if pa.types.is_boolean(kind):
        return isinstance(value, bool)
    return isinstance(value, str) and len(value) <= MAX_CHARACTERS


def _character_problem(text: str) -> tuple[str, str] | None:
    if text.isprintable():  # quick, and true of nearly all
        return None
    for place, character in enumerate(text):
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n\r":
            return "control character", f"U+{ord(character):04X} at character {place + 1} of {short(text)}"
    return None


def _version() -> str:
    try:
        return metadata.version("pixelbert")
    except metadata.PackageNotFoundError:  # run from a checkout that was not installed
        return "unknown"

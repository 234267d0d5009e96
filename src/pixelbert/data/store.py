"""A prepared data set on disk, and reading it through Hugging Face `datasets`.

    DIR/images-00000.parquet    image_id, path or bytes, width, height (upright, in pixels), sha256 of the photo's file
    DIR/{split}-00000.parquet   example_id, image_ids, text, and the columns of the task
    DIR/dataset.json            name, task, version, counts, sources, options, each file's size and checksum;
                                for question answering also `answers`, the answers that a model chooses from, and
                                `answer_rule`, how answers are compared (the official rule if it is not there)
    DIR/skipped.jsonl           one JSON object for every item that was left out

The task says what an example's sentence is, and which columns it has beside the first three:

    captions             a sentence about its image
    question-answering   a question; answers (the annotators' own words, in order; none where they are not known),
                         answer_type and question_type (null where they are not known)
    reasoning            a statement about its images, left then right; label (null where it is hidden)

An image stands once, however many sentences refer to it. `writer.py` writes this form.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from pixelbert.data.derived_file import DerivedFile
from pixelbert.data.images import ImageError, open_image
from pixelbert.errors import PixelBertError
from pixelbert.files import file_sha256
from pixelbert.metrics.vqa import ANSWER_RULES, AnswerRule

VERSION = 1
MANIFEST = "dataset.json"
SKIPPED = "skipped.jsonl"
IMAGES = "images"

IMAGE_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("path", pa.string()),
        pa.field("bytes", pa.binary()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("sha256", pa.string()),
    ]
)
ADDED_LATER = {"sha256"}  # columns that data sets of earlier versions lack
CAPTIONS, QUESTION_ANSWERING, REASONING = "captions", "question-answering", "reasoning"
TARGETS: dict[str, list[pa.Field]] = {
    CAPTIONS: [],
    QUESTION_ANSWERING: [
        pa.field("answers", pa.list_(pa.string()), nullable=False),
        pa.field("answer_type", pa.string()),
        pa.field("question_type", pa.string()),
    ],
    REASONING: [pa.field("label", pa.bool_())],
}
EXAMPLE_SCHEMAS: dict[str, pa.Schema] = {
    task: pa.schema(
        [
            pa.field("example_id", pa.string(), nullable=False),
            pa.field("image_ids", pa.list_(pa.string()), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            *targets,
        ]
    )
    for task, targets in TARGETS.items()
}

ROWS_AT_ONCE = 64  # few, since a small file can unpack to rows of megabytes
UNPACKED = 1000  # times its size on disk that a table may take; more is made to fill memory
TABLE_FILE = re.compile(r"[A-Za-z0-9_]+-\d{5}\.parquet")
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]{0,63}")


def is_split_name(name: object) -> bool:
    """Whether a split may be called so: letters, digits and underscores, and not "images"."""
    return isinstance(name, str) and _SPLIT_NAME.fullmatch(name) is not None and name.lower() != IMAGES


class PreparedDataset:
    """A prepared data set, opened for reading: tables memory-mapped, images decoded when asked for.

    Parquet is turned into Arrow once, in Hugging Face's cache folder (`HF_DATASETS_CACHE`), under a name
    that depends on the content: DIR itself may be read-only, and a data set that was prepared anew is never
    served stale.

    Attributes:
        folder: where it lies.
        manifest: what dataset.json says.
        images: the image table; columns image_id, path, bytes, width, height, and sha256 where it was recorded.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self._examples: dict[str, datasets.Dataset] = {}
        self.images = self._table(IMAGES, IMAGE_SCHEMA)

    @classmethod
    def open(cls, folder: Path | str) -> "PreparedDataset":
        """Opens the data set in `folder`.

        Raises:
            PixelBertError: it is not one, is of a newer version, or its files are not those that were
                written.
        """
        folder = Path(folder).absolute()
        path = folder / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            hint = "does not exist" if not folder.exists() else f"is not a prepared data set (no {MANIFEST})"
            raise PixelBertError(f"{folder} {hint}: make one with `pixelbert prepare`") from None
        except (OSError, ValueError, RecursionError) as error:
            raise PixelBertError(f"{path} cannot be read ({error}): prepare the data set again") from error
        _check_manifest(folder, manifest)
        return cls(folder, manifest)

    @property
    def name(self) -> str:
        """The data set's name."""
        return str(self.manifest["name"])

    @property
    def task(self) -> str:
        """What its examples are for: "captions", "question-answering" or "reasoning"."""
        return str(self.manifest["task"])

    @property
    def answers(self) -> list[str]:
        """The answers that a model chooses from, normalised; an answer's place is its class (paper 4.2).

        Raises:
            PixelBertError: the data set is not for question answering.
        """
        if self.task != QUESTION_ANSWERING:
            raise PixelBertError(
                f"{self.folder} has no answers, for its task is {self.task}: prepare one for question answering "
                "with `pixelbert prepare vqa2` or `vqa-csv`"
            )
        return list(self.manifest["answers"])

    @property
    def answer_rule(self) -> AnswerRule:
        """By which rule answers are compared, in training and in measuring. Data sets that don't say it are older than
        the others and go by the official one."""
        rule: AnswerRule = self.manifest.get("answer_rule", "official")
        return rule

    @property
    def splits(self) -> list[str]:
        """The names of the splits."""
        return list(self.manifest["counts"]["splits"])

    @cached_property
    def image_row(self) -> dict[str, int]:
        """The row in `images` of each image id."""
        return {image_id: row for row, image_id in enumerate(self.images.data.column("image_id").to_pylist())}

    @cached_property
    def sizes(self) -> np.ndarray:
        """Upright sizes in pixels, int32 of shape (n_images, 2): width, height."""
        columns = [self.images.data.column(side).to_numpy() for side in ("width", "height")]
        return np.stack(columns, axis=1).astype(np.int32)

    @property
    def photo_files(self) -> list[str | None]:
        """The file of each image; None where the table holds its bytes."""
        paths, held = (self.images.data.column(name) for name in ("path", "bytes"))
        inside = held.is_valid().to_pylist()
        return [
            None if embedded else os.path.normpath(self.folder / path)
            for path, embedded in zip(paths.to_pylist(), inside, strict=True)
        ]

    @property
    def recorded_checksums(self) -> list[str | None] | None:
        """The SHA-256 of each image's file at preparation; None if an earlier version prepared, which kept none."""
        if "sha256" not in self.images.data.column_names:
            return None
        return self.images.data.column("sha256").to_pylist()

    @property
    def photo_checksums(self) -> list[str | None]:
        """The SHA-256 of each image's file, as recorded or of the bytes in the table; None where neither is there."""
        if (recorded := self.recorded_checksums) is not None:
            return recorded
        held = self.images.data.column("bytes")
        return [hashlib.sha256(data.as_buffer()).hexdigest() if data.is_valid else None for data in held]

    @property
    def image_checksums(self) -> list[str]:
        """What the images' pixels depend on, whatever the splits: their checksums; where they were not recorded, those
        of the tables that list the images."""
        if (recorded := self.recorded_checksums) is not None and None not in recorded:
            return [str(checksum) for checksum in recorded]
        files = sorted(self.manifest["files"].items())
        return [facts["sha256"] for name, facts in files if name.startswith(f"{IMAGES}-")]

    def examples(self, split: str) -> datasets.Dataset:
        """The examples of one split; columns example_id, image_ids, text and those of the task.

        Raises:
            PixelBertError: there is no such split; the message names those that there are.
        """
        if split not in self.splits:
            raise PixelBertError(f"{self.folder} has no split {split!r}: it has {', '.join(self.splits) or 'none'}")
        if split not in self._examples:
            self._examples[split] = self._table(split, EXAMPLE_SCHEMAS[self.task])
        return self._examples[split]

    def load_image(self, row: int) -> Image.Image:
        """Decodes the image of a row in `images`, RGB and upright.

        Raises:
            ImageError: it is gone, damaged, or not what it was at preparation.
        """
        record = self.images[row]
        image_id, path = record["image_id"], record["path"]
        name = f"image {image_id} of {self.folder}"
        if record["bytes"] is not None:
            image, found = open_image(record["bytes"], name), hashlib.sha256(record["bytes"]).hexdigest()
        else:
            try:
                image = open_image(self.folder / path, f"{name} ({path})")
            except ImageError as error:
                raise ImageError(f"{error}. If the photos were moved, prepare the data set again") from error
            found = file_sha256(self.folder / path)
        if record.get("sha256") not in (None, found):
            raise ImageError(self._replaced(row))
        recorded = (record["width"], record["height"])
        if image.size != recorded:
            found = "{} x {}".format(*image.size)
            raise ImageError(
                f"{name} ({path}) is {found} but was {recorded[0]} x {recorded[1]} when the data set was "
                f"prepared: "
                "prepare it again"
            )
        return image

    def _recorded_files(self) -> dict[int, tuple[Path, str]]:
        """The file and the checksum of each image that is in a file and whose checksum was recorded."""
        checksums = self.recorded_checksums
        if checksums is None:
            return {}
        pairs = enumerate(zip(self.photo_files, checksums, strict=True))
        return {row: (Path(file), checksum) for row, (file, checksum) in pairs if file and checksum}

    def photo_stamps(self) -> str | None:
        """What changes when the file of a photo does, without reading it; None if no file has a checksum on record."""
        files = self._recorded_files()
        digest = hashlib.sha256()
        for file, _ in files.values():
            try:
                status = file.stat()
                digest.update(f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n".encode())
            except OSError:
                digest.update(b"gone\n")
        return digest.hexdigest() if files else None

    def check_photos(self) -> None:
        """Checks that the photos' files are those of preparation, where it recorded them and they are still there.

        Raises:
            ImageError: one was replaced.
        """
        for row, (file, checksum) in self._recorded_files().items():
            if file.is_file() and file_sha256(file) != checksum:
                raise ImageError(self._replaced(row))

    def _replaced(self, row: int) -> str:
        record = self.images[row]
        held = record["path"] if record["bytes"] is None else "its bytes in the table"
        return (
            f"image {record['image_id']} of {self.folder} ({held}) was replaced since the data set was prepared: what "
            "is said of it may not be true of it any more. Put the former photo back, or prepare the data set again"
        )

    def _table(self, name: str, schema: pa.Schema) -> datasets.Dataset:
        paths = [self.folder / file for file in sorted(self.manifest["files"]) if file.rsplit("-", 1)[0] == name]
        if not paths:
            raise PixelBertError(f"{self.folder} lists no file for {name!r} in {MANIFEST}: prepare it again")
        try:
            for path in paths:
                _check_columns(path, schema)
            checksums = [self.manifest["files"][path.name]["sha256"] for path in paths]
            return datasets.Dataset.from_file(str(_arrow_copy(name, paths, checksums, schema)))
        except (OSError, ValueError, pa.ArrowException) as error:
            raise PixelBertError(
                f"{self.folder} cannot be opened ({error}). If it is damaged, prepare it again; if the cache "
                f"{datasets.config.HF_DATASETS_CACHE} cannot be written, set HF_DATASETS_CACHE to a folder "
                f"that can"
            ) from error


def _check_manifest(folder: Path, manifest: Any) -> None:
    again = "prepare the data set again"
    if not isinstance(manifest, dict) or not isinstance(manifest.get("version"), int):
        raise PixelBertError(f"{folder / MANIFEST} is not a pixelbert data set's: {again}")
    if manifest["version"] > VERSION:
        raise PixelBertError(
            f"{folder} is of version {manifest['version']}, and this pixelbert reads up to {VERSION}: "
            "update pixelbert, or prepare it with this one"
        )
    for key, kind in (("name", str), ("counts", dict), ("files", dict)):
        if not isinstance(manifest.get(key), kind):
            raise PixelBertError(f"{folder / MANIFEST} lacks {key!r}, or it is of another type: {again}")
    splits = manifest["counts"].get("splits")
    if not isinstance(splits, dict) or not all(map(is_split_name, splits)):  # which become names of files
        raise PixelBertError(f"{folder / MANIFEST} lacks its splits, or one has a name that is none: {again}")
    manifest.setdefault("task", CAPTIONS)
    if not isinstance(manifest["task"], str) or manifest["task"] not in EXAMPLE_SCHEMAS:
        raise PixelBertError(
            f"{folder} is for the task {manifest['task']!r}, and this pixelbert knows {', '.join(EXAMPLE_SCHEMAS)}: "
            f"update pixelbert, or {again} with this one"
        )
    if manifest["task"] == QUESTION_ANSWERING:
        answers = manifest.get("answers")
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            raise PixelBertError(f"{folder / MANIFEST} lacks 'answers', the list that a model chooses from: {again}")
        rule = manifest.get("answer_rule", "official")
        if rule not in tuple(ANSWER_RULES):
            raise PixelBertError(
                f"{folder} compares answers by the rule {rule!r}, and this pixelbert knows {', '.join(ANSWER_RULES)}: "
                f"update pixelbert, or {again} with this one"
            )
    for file, facts in manifest["files"].items():
        path = folder / file
        if not TABLE_FILE.fullmatch(file) or not isinstance(facts, dict) or not isinstance(facts.get("sha256"), str):
            raise PixelBertError(f"{folder / MANIFEST} lists {file!r}, which is no table with its checksum: {again}")
        if not path.is_file():
            raise PixelBertError(f"{path} is missing: copy the whole folder again, or {again}")
        if path.stat().st_size != facts.get("bytes"):
            raise PixelBertError(
                f"{path} has {path.stat().st_size} bytes where {MANIFEST} says {facts.get('bytes')}: "
                f"copy the whole folder again, or {again}"
            )


def _check_columns(path: Path, schema: pa.Schema) -> None:
    found = pq.read_schema(path)
    for field in schema:
        if field.name in ADDED_LATER - set(found.names):
            continue
        if field.name not in found.names:
            raise PixelBertError(f"{path} lacks the column {field.name!r}: prepare the data set again")
        if found.field(field.name).type != field.type:
            raise PixelBertError(
                f"{path}: column {field.name!r} is {found.field(field.name).type} where {field.type} is "
                f"expected: "
                "prepare the data set again"
            )


def _check_rows(path: Path, rows: pa.RecordBatch, schema: pa.Schema) -> None:
    """Looks whether some rows hold what `prepare` writes: a table may come from anywhere."""
    rows.validate(full=True)
    problem = next((f"a row without {f.name!r}" for f in schema if not f.nullable and rows[f.name].null_count), None)
    if "image_ids" in schema.names:
        for field in schema:
            if pa.types.is_list(field.type) and rows[field.name].flatten().null_count:
                problem = problem or f"nothing where one of {field.name!r} should be"
        odd = set(pc.list_value_length(rows["image_ids"]).to_pylist()) - {2 if "label" in schema.names else 1}
        if odd:
            problem = problem or f"an example of {odd.pop()} images"
    elif rows.num_rows:
        if pc.any(pc.and_(pc.is_null(rows["path"]), pc.is_null(rows["bytes"]))).as_py():
            problem = problem or "an image without 'path' and 'bytes'"
        if pc.min(rows["width"]).as_py() < 1 or pc.min(rows["height"]).as_py() < 1:
            problem = problem or "an image without width or height"
    if problem:
        raise PixelBertError(f"{path} has {problem}: prepare the data set again")


def _arrow_copy(name: str, paths: list[Path], checksums: list[str], schema: pa.Schema) -> Path:
    """The Arrow form of parquet files in the cache, made if need be. Safe with many processes at once.

    What is made is checked first, once: later nobody looks at each row. A copy that is damaged is made again.
    """
    key = hashlib.sha256()
    for path, checksum in zip(paths, checksums, strict=True):
        # The time as well, for a file that somebody changed without a new dataset.json.
        key.update(f"{checksum} {path.stat().st_mtime_ns}\n".encode())
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "pixelbert"
    arrow = DerivedFile(cache / f"{name}-{key.hexdigest()[:24]}.arrow")
    if not arrow.is_known():
        cache.mkdir(parents=True, exist_ok=True)
        with arrow.in_turn():
            if not arrow.is_known() and not arrow.is_as_recorded():
                _write_arrow(arrow, paths, checksums, schema)
    return arrow.path


def _write_arrow(arrow: DerivedFile, paths: list[Path], checksums: list[str], schema: pa.Schema) -> None:
    partial = arrow.beside(".partial")
    try:
        written = pq.read_schema(paths[0]).remove_metadata()
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, written) as stream:
            for path, checksum in zip(paths, checksums, strict=True):
                if file_sha256(path) != checksum:
                    raise PixelBertError(f"{path} is not as it was written: copy the whole folder again")
                for batch in _batches(path):
                    _check_rows(path, batch, schema)
                    stream.write_batch(batch.cast(written))
        arrow.vouch(partial)
        partial.replace(arrow.path)
    finally:
        partial.unlink(missing_ok=True)


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The rows of a parquet file.

    Raises:
        PixelBertError: it unpacks to far more than its size.
    """
    most = UNPACKED * path.stat().st_size + (64 << 20)
    large = PixelBertError(f"{path} unpacks to more than {UNPACKED} times its size: leave it out")
    table = pq.ParquetFile(path)
    groups = range(table.metadata.num_row_groups)
    if sum(table.metadata.row_group(i).total_byte_size for i in groups) > most:
        raise large  # before a page of gigabytes is unpacked for its first rows
    for batch in table.iter_batches(batch_size=ROWS_AT_ONCE):
        most -= batch.nbytes
        if most < 0:
            raise large
        yield batch

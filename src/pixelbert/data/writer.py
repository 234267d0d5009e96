"""Writing a prepared data set: whole or not at all. The form on disk is described in `store.py`."""

import hashlib
import json
import re
import shutil
import signal
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pixelbert.data.store import (
    CAPTIONS,
    EXAMPLE_SCHEMAS,
    IMAGE_SCHEMA,
    IMAGES,
    MANIFEST,
    SKIPPED,
    VERSION,
    is_split_name,
)
from pixelbert.errors import PixelBertError
from pixelbert.files import exclusive, file_sha256, flush

_OUR_FILES = re.compile(r"[A-Za-z0-9_]+-\d{5}\.parquet|dataset\.json|skipped\.jsonl")
_SPLIT_ORDER = ("train", "restval", "val", "dev", "test", "test_dev", "test1", "test2")


class _Table:
    """One table as parquet shards of bounded size, rows buffered up to a row group."""

    GROUP_BYTES = 64 << 20
    GROUP_ROWS = 50_000
    SHARD_BYTES = 512 << 20
    SHARD_ROWS = 1_000_000

    def __init__(self, folder: Path, name: str, schema: pa.Schema) -> None:
        self.folder, self.name, self.schema = folder, name, schema
        self.rows = 0
        self._buffer: list[dict[str, Any]] = []
        self._buffer_bytes = 0
        self._shard: pq.ParquetWriter | None = None
        self._shards = self._shard_rows = self._shard_bytes = 0

    def add(self, row: dict[str, Any], size: int = 0) -> None:
        self._buffer.append(row)
        self._buffer_bytes += size
        self.rows += 1
        if len(self._buffer) >= self.GROUP_ROWS or self._buffer_bytes >= self.GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._shard is None:
            path = self.folder / f"{self.name}-{self._shards:05d}.parquet"
            self._shard = pq.ParquetWriter(path, self.schema, compression="zstd")
            self._shards += 1
        self._shard.write_table(pa.Table.from_pylist(self._buffer, schema=self.schema))
        self._shard_rows += len(self._buffer)
        self._shard_bytes += self._buffer_bytes
        self._buffer, self._buffer_bytes = [], 0
        if self._shard_rows >= self.SHARD_ROWS or self._shard_bytes >= self.SHARD_BYTES:
            self.close()

    def finish(self) -> None:
        if self._buffer or self._shards == 0:
            self._flush()
        self.close()

    def close(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None
            self._shard_rows = self._shard_bytes = 0


class DatasetWriter:
    """Writes a prepared data set under a temporary name beside `output` and renames it when all is done.

    Used as a context manager. On any exception, Ctrl-C included, nothing is left; what a kill -9 leaves (a hidden
    folder and a lock that nobody holds) is cleared by the next writer to the same output.

    Args:
        output: the folder to make. It may be empty; it may be a prepared data set if `overwrite`.
        name: the data set's name, such as "coco".
        task: what its examples are for, a key of `store.EXAMPLE_SCHEMAS`.
        overwrite: replace a prepared data set that is there already. Nothing else is ever replaced.

    Raises:
        PixelBertError: on entry, when the output is taken or cannot be written.
    """

    def __init__(self, output: Path, *, name: str, task: str = CAPTIONS, overwrite: bool = False) -> None:
        self.output = Path(output).resolve()
        self.name, self.task, self.overwrite = name, task, overwrite
        self.manifest: dict[str, Any] = {}  # further entries for dataset.json, to be filled in before leaving
        self._folder = self.output.with_name(f".{self.output.name}.partial")
        self._old = self.output.with_name(f".{self.output.name}.old")  # the data set that is being replaced
        self._lock = self.output.with_name(f".{self.output.name}.lock")
        self._held = ExitStack()  # what is undone at the end
        self._made_parents: list[Path] = []
        self._caught_termination = False

    def __enter__(self) -> "DatasetWriter":
        check_output(self.output, overwrite=self.overwrite)
        self._catch_termination()
        try:
            self._make_parents()
            self._claim()
        except OSError as error:
            self._discard()
            raise PixelBertError(_cannot_write(self.output, error)) from error
        except BaseException:
            self._discard()
            raise
        self._images = _Table(self._folder, IMAGES, IMAGE_SCHEMA)
        self._splits: dict[str, _Table] = {}
        self._images_of: dict[str, set[str]] = {}
        self._skipped = (self._folder / SKIPPED).open("w", encoding="utf-8")
        return self

    def add_image(
        self,
        image_id: str,
        *,
        path: str | None = None,
        data: bytes | None = None,
        width: int,
        height: int,
        sha256: str | None = None,
    ) -> None:
        """Adds one image: its absolute path and what its file's checksum is, or its bytes (then the path is only a
        name)."""
        if data is not None:
            sha256 = hashlib.sha256(data).hexdigest()
        row = {"image_id": image_id, "path": path, "bytes": data, "width": width, "height": height, "sha256": sha256}
        self._images.add(row, len(data or b""))

    def add_example(self, split: str, example_id: str, image_ids: list[str], text: str, **targets: Any) -> None:
        """Adds one example; its images must have been added, or will be. `targets` are the task's columns."""
        if not is_split_name(split):
            raise PixelBertError(f"a split cannot be called {split!r}: use letters, digits and underscores")
        if split not in self._splits:
            self._splits[split] = _Table(self._folder, split, EXAMPLE_SCHEMAS[self.task])
            self._images_of[split] = set()
        row = {"example_id": example_id, "image_ids": image_ids, "text": text} | targets
        foreign = row.keys() - set(EXAMPLE_SCHEMAS[self.task].names)
        if foreign:
            raise TypeError(f"examples for {self.task} have no column {', '.join(sorted(foreign))}")
        self._splits[split].add(row, len(text))
        self._images_of[split].update(image_ids)

    def add_skipped(self, item: dict[str, Any]) -> None:
        """Adds one line to skipped.jsonl."""
        self._skipped.write(json.dumps(item) + "\n")

    @property
    def counts(self) -> dict[str, Any]:
        """Images in all; images and examples of each split: train, restval, val, test and so on, then others."""
        rank = {name: place for place, name in enumerate(_SPLIT_ORDER)}
        names = sorted(self._splits, key=lambda name: (rank.get(name, len(rank)), name))
        splits = {n: {"images": len(self._images_of[n]), "examples": self._splits[n].rows} for n in names}
        return {"images": self._images.rows, "splits": splits}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._commit()
        except OSError as failure:
            raise PixelBertError(_cannot_write(self.output, failure)) from failure
        finally:
            self._discard()
        if isinstance(error, OSError):  # the disk was full, say
            raise PixelBertError(_cannot_write(self.output, error)) from error

    def _catch_termination(self) -> None:
        """Makes a plain `kill` unwind like Ctrl-C, unless somebody else handles it."""
        in_main = threading.current_thread() is threading.main_thread()  # signals can be set only there
        if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
            self._caught_termination = True

    def _make_parents(self) -> None:
        missing = self.output.parent
        while not missing.exists():
            self._made_parents.append(missing)
            missing = missing.parent
        self.output.parent.mkdir(parents=True, exist_ok=True)

    def _claim(self) -> None:
        """Locks the output and makes the temporary folder; if there is one already, its writer is dead."""
        busy = f"{self.output} is being written by another process: wait, or stop that one"
        self._held.enter_context(exclusive(self._lock, busy))
        self._held.callback(self._clear)
        if self._old.exists():  # of a writer that was killed between its two renames
            if self.output.exists():
                shutil.rmtree(self._old)
            else:
                self._old.rename(self.output)
                check_output(self.output, overwrite=self.overwrite)
        if self._folder.exists():
            shutil.rmtree(self._folder)
        self._folder.mkdir()

    def _clear(self) -> None:
        """Removes what is beside the output, while it is locked; the folder is gone already after a commit."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(OSError):  # Windows removes no file that is open: there it goes with the lock
            self._lock.unlink()

    def _commit(self) -> None:
        tables = [self._images, *self._splits.values()]
        for table in tables:
            table.finish()
        self._skipped.close()
        files = {}
        for path in sorted(self._folder.glob("*.parquet")):
            files[path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        manifest = {"name": self.name, "task": self.task, "version": VERSION, "counts": self.counts}
        manifest |= self.manifest | {"files": files}
        (self._folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        for path in [*self._folder.iterdir(), self._folder]:
            flush(path)
        check_output(self.output, overwrite=self.overwrite)  # much may have happened since
        if self.output.exists() and any(self.output.iterdir()):
            self.output.rename(self._old)
        try:
            self._folder.rename(self.output)
        finally:
            if self._old.exists() and self.output.exists():
                shutil.rmtree(self._old, ignore_errors=True)
            elif self._old.exists():
                self._old.rename(self.output)
        self._made_parents = []
        flush(self.output.parent)

    def _discard(self) -> None:
        """Closes everything and removes what was not committed."""
        if hasattr(self, "_skipped"):
            self._skipped.close()
            for table in [self._images, *self._splits.values()]:
                table.close()
        self._held.close()
        if self._caught_termination:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for parent in self._made_parents:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuses an output folder that holds anything but, with `overwrite`, a prepared data set.

    Raises:
        PixelBertError: says what is there and what to do.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise PixelBertError(f"{output} is a file: give --output a folder that is new or empty")
    inside = [] if not output.exists() else sorted(path.name for path in output.iterdir())
    if not inside:
        return
    if MANIFEST not in inside:
        raise PixelBertError(
            f"{output} is not empty and not a prepared data set (it holds {inside[0]}): give --output another folder"
        )
    foreign = [name for name in inside if not _OUR_FILES.fullmatch(name)]
    if foreign:
        raise PixelBertError(f"{output} also holds {foreign[0]}, which prepare did not write: move it away first")
    if not overwrite:
        raise PixelBertError(f"{output} already holds a prepared data set: add --overwrite to replace it")


def _cannot_write(output: Path, error: OSError) -> str:
    reason = error.strerror or error
    return f"{output} cannot be written ({reason}): check free space and permissions. Nothing was kept"

"""`photos.sqlite`, the truth of a search index: each photo's name, what it was when it was read, its pixel embeddings
and its vector.

SQLite keeps it whole by a rollback journal: those who search need no right to write, see what was committed last, and
are in the way of a commit for milliseconds only.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path, PurePath
from typing import Any

import safetensors.torch
import torch

from pixelbert.errors import PixelBertError
from pixelbert.terminal import one_line

VERSION = "1"
DATABASE = "photos.sqlite"
WAIT = 60.0  # seconds for another process to end its commit
KEPT_AS = (torch.float32, torch.bfloat16, torch.float16)
SAYS = ("version", "photos", "checkpoint", "fingerprint")  # what every index has in `about`
SCHEMA = """
BEGIN;
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS photos (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice: a number stands for one photo as it was read once
    name TEXT UNIQUE NOT NULL,             -- below the folder of the photos; bytes, if they are no UTF-8
    size INTEGER NOT NULL, changed INTEGER NOT NULL,
    rows INTEGER, columns INTEGER, pixels BLOB, vector BLOB,
    problem TEXT                           -- why it can't be used, in place of the others
);
COMMIT;
"""
AGAIN = "then give the same command again: what the index held is still there"
CAUSES = {
    sqlite3.SQLITE_FULL: "cannot grow: the disk, or what you may use of it, is full. Make room, " + AGAIN,
    sqlite3.SQLITE_BUSY: "is in use by another process, and stayed so for a minute: try again when that has ended",
    sqlite3.SQLITE_LOCKED: "is in use by another process: try again when that has ended",
    sqlite3.SQLITE_IOERR: "cannot be read or written ({error}): look after the disk, the connection to it, or a limit "
    "on the size of files (`ulimit -f`), " + AGAIN,
    sqlite3.SQLITE_READONLY: "may not be written: look after the permissions of {folder} and the files in it",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: look after the permissions of {folder} and the files in it",
    sqlite3.SQLITE_PERM: "cannot be opened: look after the permissions of {folder} and the files in it",
    sqlite3.SQLITE_NOMEM: "needs more memory than there is: free some, " + AGAIN,
    sqlite3.SQLITE_READONLY_ROLLBACK: "was being written when that run was killed, and the half of it has to be taken "
    "back: search it once as somebody who may write to {folder}, or search a copy of it",
    sqlite3.SQLITE_CORRUPT: "is damaged ({error}): {remedy}",
    sqlite3.SQLITE_NOTADB: "is damaged, or no database ({error}): {remedy}",
}


def remedy(folder: Path) -> str:
    """What to do about a damaged index."""
    return f"move {folder} away and make the index again; the photos themselves are untouched"


def damaged(folder: Path, why: object) -> PixelBertError:
    return PixelBertError(f"{folder / DATABASE} is damaged ({why}): {remedy(folder)}")


@contextmanager
def telling(folder: Path) -> Iterator[None]:
    """Tells each of SQLite's errors as what it is, and what to do about it."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        said = None if code is None else CAUSES.get(code) or CAUSES.get(code & 0xFF)  # the low byte is the kind
        if said is None:  # such as a table that lacks a column
            raise damaged(folder, error) from error
        what = said.format(error=error, folder=folder, remedy=remedy(folder))
        raise PixelBertError(f"{folder / DATABASE} {what}") from error


class PhotoStore:
    """A connection to the database of an index, for whichever thread uses it, one at a time.

    Args:
        writable: whether it may be written, and is made if need be.

    Raises:
        PixelBertError: it can't be opened; says why.
    """

    def __init__(self, folder: Path, writable: bool = False) -> None:
        self.folder = folder
        self.database = self._connect("rwc" if writable else "ro")
        if writable:
            self.is_ours()
            with telling(folder):
                self.database.executescript(SCHEMA)

    def _connect(self, mode: str) -> sqlite3.Connection:
        address = f"{(self.folder / DATABASE).absolute().as_uri()}?mode={mode}"
        with telling(self.folder):
            database = sqlite3.connect(address, uri=True, timeout=WAIT, check_same_thread=False)
        # Never fails, so that one odd name fails no query.
        database.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        return database

    def close(self) -> None:
        self.database.close()

    def rows(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        """What a query gives, at one state of the index."""
        with telling(self.folder):
            try:
                return self.database.execute(query, values).fetchall()
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_READONLY_ROLLBACK:
                    raise
            # A run was killed while it committed. Whoever may write takes it back by reading.
            with closing(self._connect("rw")) as writable:
                writable.execute("SELECT count(*) FROM sqlite_master").fetchall()
            return self.database.execute(query, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is written inside is kept, or nothing."""
        with telling(self.folder), self.database:
            yield self.database

    def state(self) -> int:
        """Another number whenever another process has committed."""
        return int(self.rows("PRAGMA data_version")[0][0])

    def is_ours(self) -> bool:
        """Whether it has our tables; it has none yet if not.

        Raises:
            PixelBertError: it has others.
        """
        tables = self.rows("SELECT name, type FROM sqlite_master WHERE name NOT LIKE 'sqlite%'")
        if tables and not {("about", "table"), ("photos", "table")} <= set(tables):  # a view could compute for ever
            raise damaged(self.folder, "it lacks our tables")
        return bool(tables)

    def about(self) -> dict[str, str]:
        """What the index says of itself; nothing before the first photo.

        Raises:
            PixelBertError: it doesn't say all that it should, or is of another version.
        """
        if not self.is_ours():
            return {}
        about = {str(name): text_of(value) for name, value in self.rows("SELECT name, value FROM about")}
        if not about and not self.rows("SELECT 1 FROM photos LIMIT 1"):
            return {}
        if missing := [name for name in SAYS if not about.get(name)]:
            raise damaged(self.folder, f"it does not say its {', '.join(missing)}")
        if about["version"] != VERSION:
            raise PixelBertError(
                f"{self.folder} is an index of version {one_line(about['version'])}, not {VERSION}: "
                + remedy(self.folder)
            )
        return about


def to_stored(name: str) -> str | bytes:
    """A file's name or path as the database takes it: text, or its bytes if they are no UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name)
    return name


def text_of(stored: object) -> str:
    """What `to_stored` was given."""
    return os.fsdecode(stored) if isinstance(stored, bytes) else str(stored)


def check_name(name: str) -> None:
    """Photos are shown, so none is taken from outside the folder of the photos.

    Raises:
        ValueError: the name leads there.
    """
    path = PurePath(name)
    if not name or "\0" in name or path.anchor or ".." in path.parts:
        raise ValueError("its name leads out of the folder of the photos")


def kept_pixels(rows: int, columns: int, pixels: bytes, width: int) -> torch.Tensor:
    """The pixel embeddings (K, D) of a grid, from their bytes.

    Raises:
        Exception: of several kinds, if they are not what was written.
    """
    found = safetensors.torch.load(pixels)["pixels"]
    if found.ndim != 2 or found.dtype not in KEPT_AS or min(rows, columns) < 1 or rows * columns != len(found):
        raise ValueError(f"pixels of shape {tuple(found.shape)} for {rows} x {columns}")
    if found.shape[1] != width:
        raise ValueError(f"pixels of width {found.shape[1]}, where the model has {width}")
    if not found.isfinite().all():
        raise ValueError("pixels that are no numbers")
    return found

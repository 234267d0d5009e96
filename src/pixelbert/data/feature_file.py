"""One file of a feature cache: room for it is taken first, a killed encoding goes on, and what is read is checked.

KEY.bf16      the values, image after image: (pixels of all images, C)
KEY.json      its size and checksum, when it was last changed as they were compared, and what it was made of
KEY.partial   the values while they are encoded, of full size from the start
KEY.log       a line for each stretch of images that is safe in KEY.partial, in the order of encoding
KEY.lock      held by whoever encodes or checks
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelbert.data.derived_file import DerivedFile
from pixelbert.device import Precision
from pixelbert.errors import PixelBertError
from pixelbert.files import append_line, flush, read_log
from pixelbert.progress import console

SECONDS_BETWEEN_FLUSHES = 5.0  # what a kill may cost
BYTES = torch.bfloat16.itemsize
FORMER_PARTIAL = re.compile(r"[0-9a-f]{16}\.(\d+)\.partial")  # of earlier versions: the number of its process
UNTOUCHED = 3600.0  # seconds after which nobody is writing any more, on another machine either


@dataclass(frozen=True)
class FeatureFile(DerivedFile):
    """Where the features of a data set's images lie.

    Args:
        path: of the values.
        starts: (I + 1,) the first pixel of each image, and the end.
        channels: of a pixel.
    """

    starts: np.ndarray
    channels: int

    @property
    def size(self) -> int:
        """Bytes of the whole."""
        return int(self.starts[-1]) * self.channels * BYTES

    def is_known(self) -> bool:
        """See `DerivedFile.is_known`."""
        return super().is_known() and self.path.stat().st_size == self.size

    def is_sound(self) -> bool:
        """Whether it is there and is what was encoded, by all its bytes; says what it finds. For the lock's holder."""
        if not self.path.exists():
            return False
        found = self.path.stat().st_size
        if found != self.size:
            problem = f"has {found:,} bytes where its images take {self.size:,}"
        elif "sha256" not in self.record():
            if not self._has_blank_images():
                console.print(
                    f"{self.path} has no checksum on record (an earlier version made it, or its .json is lost), so "
                    "whether it is damaged cannot be told. It is used, and its checksum kept from now on; "
                    "remove it to have the photos encoded again"
                )
                self.vouch(self.path)
                return True
            problem = "holds nothing for some of its images"
        else:
            console.print(f"{self.path} was copied or changed: comparing its checksum")
            if self.is_as_recorded():
                return True
            problem = "is not what was written: its checksum differs"
        console.print(f"{self.path} {problem}. It is damaged, and its photos are encoded again")
        return False

    def _has_blank_images(self) -> bool:
        """Whether all is zero where some image's features should be, as in a file that was never filled."""
        values = np.memmap(self.path, np.int16, "r").reshape(-1, self.channels)
        return not np.logical_or.reduceat(values.any(axis=1), self.starts[:-1]).all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Tell of a full disk, or of another reason why it cannot be written, as what it is."""
        try:
            yield
        except OSError as error:
            free = shutil.disk_usage(self.path.parent).free
            raise PixelBertError(
                f"{self.path.parent} cannot be written ({error.strerror or error}): these features take "
                f"{self.size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free there. Make room and give the same "
                "command again, which goes on from what is encoded, or choose another folder for the feature cache"
            ) from error


class Encoding:
    """The values of a feature file while they are made; what an earlier process left is gone on with.

    Used as a context manager, by who holds the lock.

    Args:
        file: what is to be made.
        order: the images in the order in which they are encoded.
        precision: what the CNN computes in. What another process began goes on in its own.

    Attributes:
        done: images of the order that are encoded.

    Raises:
        PixelBertError: there is not the room for it.
    """

    def __init__(self, file: FeatureFile, order: Sequence[int], precision: Precision) -> None:
        self.file, self.order, self.precision = file, order, precision
        self.path, self.log = file.beside(".partial"), file.beside(".log")
        self.done = self._kept = 0
        self._digest = hashlib.sha256()
        self._flushed = time.monotonic()

    def __enter__(self) -> Encoding:
        began = self.path.exists()
        with self.file.writing():
            self._stream = self.path.open("r+b" if began else "w+b", buffering=0)
            try:
                reserve(self._stream, self.file.size)
            except OSError:
                self._stream.close()
                if not began:
                    self.path.unlink()
                raise
            self.done = self._kept = self._go_on()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not self._stream.closed:  # it ends by an error or Ctrl-C
            with self._stream, suppress(OSError):
                self._keep()

    def add(self, values: Sequence[Tensor]) -> None:
        """Take the features (pixels, C) of the next images of the order."""
        with self.file.writing():
            for value in values:
                image = self.order[self.done]
                data = value.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
                self._stream.seek(int(self.file.starts[image]) * self.file.channels * BYTES)
                write(self._stream, data)
                self._digest.update(data)
                self.done += 1
            if time.monotonic() - self._flushed > SECONDS_BETWEEN_FLUSHES:
                self._keep()

    def finish(self, **made_of: Any) -> None:
        """All images are there: the file gets its record and its name."""
        with self.file.writing():
            self._keep()
            self._stream.close()
            self.file.vouch(self.path, precision=self.precision, **made_of)
            self.path.replace(self.file.path)
            flush(self.file.path.parent)
            self.log.unlink()

    def _keep(self) -> None:
        """Have what was added survive whatever comes; only then the log says so."""
        if self.done > self._kept:
            os.fsync(self._stream.fileno())
            stretch = {"images": self.done, "sha256": self._digest.hexdigest(), "precision": self.precision}
            append_line(self.log, stretch)
            flush(self.log)
        self._kept, self._digest, self._flushed = self.done, hashlib.sha256(), time.monotonic()

    def _go_on(self) -> int:
        """How many images of the order are safe: as far as the log goes and what it says is true."""
        log, done, whole = read_log(self.log, is_stretch), 0, 0
        for row in log.rows:
            stretch = self.order[done : row["images"]]
            if not stretch or self._checksum(stretch) != row["sha256"]:
                break
            done, whole, self.precision = row["images"], whole + 1, row["precision"]
        if whole < len(log.rows) or log.damaged:
            console.print(f"{self.path}: what was encoded after {done:,} photos is damaged, and is encoded again")
        self.log.unlink(missing_ok=True)
        for row in log.rows[:whole]:
            append_line(self.log, row)
        if done:
            console.print(f"{self.path}: going on after {done:,} of {len(self.order):,} photos")
        return done

    def _checksum(self, images: Sequence[int]) -> str:
        digest, wide = hashlib.sha256(), self.file.channels * BYTES
        for image in images:
            first, end = (int(pixel) * wide for pixel in self.file.starts[image : image + 2])
            self._stream.seek(first)
            digest.update(self._stream.read(end - first))
        return digest.hexdigest()


def is_stretch(row: dict[str, Any]) -> bool:
    """Whether a row of a log is one that `Encoding` writes."""
    kept = isinstance(row.get("images"), int) and isinstance(row.get("sha256"), str)
    return kept and row.get("precision") in ("bf16", "fp32")


def reserve(stream: io.FileIO, size: int) -> None:
    """Take the room on disk for so many bytes, and leave what is there; a full disk is an OSError now, not later."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):  # which some file systems cannot
                raise
    there = stream.seek(0, os.SEEK_END)
    while there < size:
        there += stream.write(bytes(min(size - there, 1 << 24)))


def write(stream: io.FileIO, data: bytes) -> None:
    """Write all of it."""
    left = memoryview(data)
    while left:
        left = left[stream.write(left) :]


def remove_leftovers(folder: Path) -> None:
    """Remove what killed encodings of earlier versions left, of full size each, and never went on with."""
    for path in folder.glob("*.partial"):
        former = FORMER_PARTIAL.fullmatch(path.name)
        if former and not is_running(int(former[1])) and time.time() - path.stat().st_mtime > UNTOUCHED:
            size = path.stat().st_size
            path.unlink(missing_ok=True)
            console.print(f"removed {path}, {size / 1e6:,.1f} MB that a killed encoding of an earlier version had left")


def is_running(process: int) -> bool:
    """Whether there is a process of this number on this machine. (Earlier versions ran on POSIX systems alone.)"""
    if os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True

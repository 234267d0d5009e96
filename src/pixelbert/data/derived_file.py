"""A file that was made from others and can be made again: read only if it is, byte for byte, what was written.

NAME.EXT     the file
NAME.json    its size and checksum, and when it was last changed as they were compared
NAME.lock    held by whoever makes it or compares it
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelbert.errors import PixelBertError
from pixelbert.files import exclusive, file_sha256, read_json, write_json
from pixelbert.progress import console

SECONDS_BETWEEN_TRIES = 1.0


@dataclass(frozen=True)
class DerivedFile:
    """One such file.

    Args:
        path: where it lies, or will.
    """

    path: Path

    def beside(self, suffix: str) -> Path:
        """One of the files that belong to it."""
        return self.path.with_suffix(suffix)

    def record(self) -> dict[str, Any]:
        """What NAME.json says; nothing if it is not there or not whole."""
        with suppress(PixelBertError):
            found = read_json(self.beside(".json"))
            return found if isinstance(found, dict) else {}
        return {}

    def note(self, **facts: Any) -> None:
        """Put more into NAME.json. For the lock's holder."""
        write_json(self.beside(".json"), self.record() | facts)

    def vouch(self, file: Path, **facts: Any) -> None:
        """Record the size and the checksum of `file`, which is or becomes this one, as right. For the lock's holder."""
        status = file.stat()
        self.note(bytes=status.st_size, sha256=file_sha256(file), changed_ns=status.st_mtime_ns, **facts)

    def is_known(self) -> bool:
        """Whether it is as it was when its checksum was last compared: to read many gigabytes at each start would be
        too slow."""
        if not self.path.exists():
            return False
        status, record = self.path.stat(), self.record()
        return (status.st_size, status.st_mtime_ns) == (record.get("bytes"), record.get("changed_ns"))

    def is_as_recorded(self) -> bool:
        """Whether all of its bytes are what was written; if so, it is known from now on. For the lock's holder."""
        if not self.path.exists() or file_sha256(self.path) != self.record().get("sha256"):
            return False
        self.note(changed_ns=self.path.stat().st_mtime_ns)
        return True

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Hold the lock; while another process holds it, say so and wait."""
        busy = f"{self.path} is being made or checked by another process: waiting for it"
        waiting = False
        with ExitStack() as held:
            while True:
                try:
                    held.enter_context(exclusive(self.beside(".lock"), busy))
                    break
                except PixelBertError as error:
                    if str(error) != busy:
                        raise
                if not waiting:
                    console.print(busy)
                waiting = True
                time.sleep(SECONDS_BETWEEN_TRIES)
            yield

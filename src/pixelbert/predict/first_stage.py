"""The first stage of a search: the two-tower head's vectors of all photos, and those nearest to a sentence's.

`vectors.usearch` is made from the database and can be made from it again. Shapes: E width of the two-tower head.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from usearch.index import Index

from pixelbert.files import file_sha256
from pixelbert.predict.index_store import PhotoStore, text_of
from pixelbert.terminal import one_line

VECTORS = "vectors.usearch"
EXACT_UP_TO = 100_000  # vectors; below, comparing with all of them is no slower than following the graph, and exact
LOOKED_AT = 400  # vectors of the graph; near ones are missed with less
READ_AT_ONCE = 1000


class Vectors:
    """The vectors of an index, as they were stored, until `follow`.

    Args:
        folder: of the index.
        width: of the model's two-tower head.
        checksum: of the file, as the database has it. A file with another is not read: usearch trusts what it reads,
            and damage would end the process.
    """

    def __init__(self, folder: Path, width: int, checksum: str) -> None:
        file = folder / VECTORS
        self.width = width
        whole = file.is_file() and file_sha256(file) == checksum
        index = Index.restore(file, expansion_search=LOOKED_AT) if whole else None
        if index is None or index.ndim != width:
            index = Index(ndim=width, metric="ip", dtype="f32", expansion_search=LOOKED_AT)
        self._index = index

    def follow(self, store: PhotoStore) -> dict[int, str]:
        """Take in and out what was added and removed in the database.

        Returns:
            The photos whose vectors are damaged, and how. They are not among those that `nearest` finds.
        """
        known = {int(key) for key in self._index.keys}
        current = {row[0] for row in store.rows("SELECT id FROM photos WHERE problem IS NULL")}
        gone, new = sorted(known - current), sorted(current - known)
        if gone:
            self._index.remove(np.array(gone))
        bad: dict[int, str] = {}
        for start in range(0, len(new), READ_AT_ONCE):
            some = new[start : start + READ_AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = store.rows(f"SELECT id, name, vector FROM photos WHERE id IN ({marks})", some)
            whole = {photo: vector for photo, _, kept in rows if (vector := self._vector(kept)) is not None}
            bad |= {photo: f"{one_line(text_of(name))} (its vector)" for photo, name, _ in rows if photo not in whole}
            if whole:
                self._index.add(np.array(list(whole)), np.stack(list(whole.values())))
        return bad

    def _vector(self, kept: object) -> np.ndarray | None:
        """A vector (E,) from its bytes; None if they are not what was written."""
        if not isinstance(kept, bytes) or len(kept) != 4 * self.width:
            return None
        vector = np.frombuffer(kept, np.float32)
        return vector if np.isfinite(vector).all() else None

    def nearest(self, vector: np.ndarray, count: int | None) -> list[int]:
        """The photos whose vectors are nearest to this one (E,), nearest first. All of them if `count` is None."""
        exact = count is None or len(self._index) <= EXACT_UP_TO
        count = len(self._index) if count is None else min(count, len(self._index))
        return [int(key) for key in self._index.search(vector, count, exact=exact).keys] if count else []

    def save(self, aside: Path) -> str:
        """Write the file, and give its checksum.

        Raises:
            OSError: the disk is full, say.
        """
        with aside.open("wb") as file:
            file.write(self._index.save() or b"")  # by ourselves, so that a full disk is an error of its own
            file.flush()
            os.fsync(file.fileno())
        return file_sha256(aside)

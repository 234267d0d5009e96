"""Search over a folder of photos in two stages: a short list by the two-tower head, then the joint score of each, which
together rank it.

An index is a folder of two files. `photos.sqlite` is the truth: each photo's name, what it was when it was read, its
pixel embeddings and its vector. `vectors.usearch` is made from it, for the first stage.

Shapes: I images, K pixels, D hidden, E width of the two-tower head.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from usearch.index import Index

from pixelbert.data.images import ImageError, open_image
from pixelbert.data.sources.common import unsafe_path
from pixelbert.errors import PixelBertError
from pixelbert.files import file_sha256
from pixelbert.loading import SHIPPED, SHIPPED_FOLDER, checkpoint_fingerprint
from pixelbert.model.pixels import PixelFeatures
from pixelbert.progress import Tracker

if TYPE_CHECKING:
    from pixelbert.predict.pixelbert import PixelBert

VERSION = "1"
DATABASE, VECTORS = "photos.sqlite", "vectors.usearch"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif"}
IMAGES_AT_ONCE = 8  # encoded, then kept: what a killed run has to do again
SCORED_AT_ONCE = 64
SHORTLIST = 100
EXACT_UP_TO = 100_000  # vectors; below, comparing with all of them is no slower than following the graph, and exact
KEPT_AS = (torch.float32, torch.bfloat16, torch.float16)
ODD_VALUES: tuple[type[Exception], ...] = (
    SafetensorError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
)  # what they raise where we read them
SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS photos (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice, so a vector can't outlive its photo unseen
    name TEXT UNIQUE NOT NULL,             -- below the folder of the photos
    size INTEGER NOT NULL, changed INTEGER NOT NULL,
    rows INTEGER, columns INTEGER, pixels BLOB, vector BLOB,
    problem TEXT                           -- why it can't be used, in place of the others
);
"""


class Found(NamedTuple):
    """A photo that a search found: its path, and the probability that the sentence belongs to it (as of `match`). It is
    ranked by that and by the two-tower head."""

    image: str
    score: float


class Indexed(NamedTuple):
    """What an indexing run did: photos in the index, those added and removed, and what is wrong with others."""

    photos: int
    added: int
    removed: int
    skipped: dict[str, str]


class SearchIndex:
    """An index that was made by `index_photos`; see `open`."""

    def __init__(self, folder: Path, database: sqlite3.Connection) -> None:
        self.folder, self._database = folder, database
        about = described(database, folder)
        self.photos, self.checkpoint, self.fingerprint = (
            about.get(name, "") for name in ("photos", "checkpoint", "fingerprint")
        )
        self._sum = about.get("vectors", "")
        self._vectors: Index | None = None

    @classmethod
    def open(cls, folder: str | Path) -> SearchIndex:
        """Open an index for searching; nothing is written.

        Raises:
            PixelBertError: there is none, or it is broken or of another version.
        """
        file = Path(folder) / DATABASE
        if not file.is_file():
            raise PixelBertError(f"{folder} is no index: make one with `pixelbert index PHOTOS --out {folder}`")
        # One connection for whichever thread searches, one at a time.
        database = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
        version = described(database, Path(folder)).get("version")
        if version != VERSION:
            raise PixelBertError(f"{folder} is an index of version {version}, not {VERSION}: make it again")
        return cls(Path(folder), database)

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[Any]:
        with readable(self.folder):
            return self._database.execute(query, values).fetchall()

    def __len__(self) -> int:
        return int(self._rows("SELECT count(*) FROM photos WHERE problem IS NULL")[0][0])

    def path(self, photo: int) -> Path:
        """Where the photo of this number is.

        Raises:
            PixelBertError: there is no such photo.
        """
        rows = self._rows("SELECT name FROM photos WHERE id = ? AND problem IS NULL", (photo,))
        if not rows:
            raise PixelBertError(f"{self.folder} has no photo {photo}")
        if problem := unsafe_path(rows[0][0]):  # photos are shown, so none is taken from elsewhere
            raise PixelBertError(f"{self.folder / DATABASE}: {problem}: delete {self.folder} and make the index again")
        return Path(self.photos) / rows[0][0]

    def ids(self) -> list[int]:
        """The numbers of all photos, in the order of their names."""
        return [row[0] for row in self._rows("SELECT id FROM photos WHERE problem IS NULL ORDER BY name")]

    def features(self, photos: Sequence[int]) -> PixelFeatures:
        """The pixel embeddings of these photos (I, K, D)."""
        marks = ",".join("?" * len(photos))
        rows = self._rows(f"SELECT id, rows, columns, pixels FROM photos WHERE id IN ({marks})", photos)
        with readable(self.folder, *ODD_VALUES):
            found = {photo: ([r, c], kept_pixels(r, c, pixels)) for photo, r, c, pixels in rows}
            return PixelFeatures.concatenate(
                [PixelFeatures(found[p][1][None], torch.tensor([found[p][0]], dtype=torch.long)) for p in photos]
            )

    def nearest(self, vector: np.ndarray, count: int | None) -> list[int]:
        """The photos whose vectors are nearest to this one (E,), nearest first: the first stage of a search. All of
        them if `count` is None."""
        if self._vectors is None:
            self._vectors = self._up_to_date_vectors(len(vector))
        exact = count is None or len(self._vectors) <= EXACT_UP_TO
        count = len(self._vectors) if count is None else min(count, len(self._vectors))
        found = self._vectors.search(vector, count, exact=exact)
        return [int(key) for key in found.keys]

    def _up_to_date_vectors(self, width: int) -> Index:
        """The stored vectors, with those added and removed since they were stored."""
        file = self.folder / VECTORS
        far = 4 * SHORTLIST  # how many vectors of the graph are looked at; near ones are missed with less
        index = None
        if file.is_file() and file_sha256(file) == self._sum:  # usearch trusts what it reads: damage would kill us
            index = Index.restore(file, expansion_search=far)
        if index is None or index.ndim != width:
            index = Index(ndim=width, metric="ip", dtype="f32", expansion_search=far)
        known = {int(key) for key in index.keys}
        current = {row[0] for row in self._rows("SELECT id FROM photos WHERE vector IS NOT NULL")}
        gone, new = sorted(known - current), sorted(current - known)
        if gone:
            index.remove(np.array(gone))
        for start in range(0, len(new), 1000):
            some = new[start : start + 1000]
            rows = self._rows(f"SELECT id, vector FROM photos WHERE id IN ({','.join('?' * len(some))})", some)
            with readable(self.folder, *ODD_VALUES):
                vectors = np.stack([np.frombuffer(vector, np.float32) for _, vector in rows])
                if vectors.shape[1] != width:
                    raise ValueError(f"vectors of {vectors.shape[1]} numbers, where the model has {width}")
            index.add(np.array([photo for photo, _ in rows]), vectors)
        return index


@contextmanager
def readable(folder: Path, *others: type[Exception]) -> Iterator[None]:
    """Tells of a database that is damaged; `others` are raised by values that are not what we wrote."""
    told: tuple[type[Exception], ...] = (sqlite3.Error, *others)
    try:
        yield
    except told as error:
        raise PixelBertError(
            f"{folder / DATABASE} is damaged ({error}): delete {folder} and make the index again"
        ) from error


def described(database: sqlite3.Connection, folder: Path) -> dict[str, str]:
    """What an index says of itself.

    Raises:
        PixelBertError: it is damaged, or none of ours.
    """
    with readable(folder, ValueError):
        kinds = database.execute("SELECT type FROM sqlite_master WHERE name IN ('about', 'photos')").fetchall()
        if kinds != [("table",)] * 2:  # a view could compute for ever
            raise ValueError("it lacks our tables")
        about = dict(database.execute("SELECT name, value FROM about"))
        if not all(isinstance(text, str) for text in (*about, *about.values())):
            raise ValueError("it says what is no text")
    return about


def kept_pixels(rows: int, columns: int, pixels: bytes) -> torch.Tensor:
    """The pixel embeddings (K, D) of a grid, from their bytes."""
    found = safetensors.torch.load(pixels)["pixels"]
    if found.ndim != 2 or found.dtype not in KEPT_AS or min(rows, columns) < 1 or rows * columns != len(found):
        raise ValueError(f"pixels of shape {tuple(found.shape)} for {rows} x {columns}")
    return found


def index_photos(model: PixelBert, photos: str | Path, out: str | Path) -> Indexed:
    """Encode every photo below a folder once; those that are in the index already, unchanged, are left alone.

    Photos are added, replaced and removed as the folder says. What a killed run has encoded is kept.

    Args:
        model: pre-trained or fine-tuned for retrieval. With a two-tower head (`task.contrast` or `task.towers` in its
            recipe) searches can short-list; without one they score every photo.
        photos: the folder.
        out: folder of the index; new, or an index to bring up to date.

    Raises:
        PixelBertError: no photos there; or `out` is the index of another checkpoint, or something else.
    """
    root, folder = Path(photos).absolute(), Path(out)
    files = dict(photo_files(root, folder.absolute()))
    if not files:
        raise PixelBertError(f"{photos} has no photos ({', '.join(sorted(SUFFIXES))}): check the path")
    if folder.exists() and any(folder.iterdir()) and not (folder / DATABASE).is_file():
        raise PixelBertError(f"{folder} holds something that is no index: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with readable(folder), sqlite3.connect(folder / DATABASE) as database:
        fingerprint = checkpoint_fingerprint(model.source)
        before = claim(database, folder, fingerprint)
        # The shipped one by its name: where a package is installed may change.
        source = SHIPPED if model.source == str(SHIPPED_FOLDER) else model.source
        about = {"version": VERSION, "photos": str(root), "checkpoint": source, "fingerprint": fingerprint}
        known = described(database, folder).get("precision", "").split(", ")
        about["precision"] = ", ".join(sorted({model.precision, *known} - {""}))  # of its vectors
        database.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", list(about.items()))
        gone = [name for name, state in before.items() if files.get(name) != state]
        database.executemany("DELETE FROM photos WHERE name = ?", [(name,) for name in gone])
        database.commit()
        new = sorted(name for name, state in files.items() if before.get(name) != state)
        with Tracker("indexing", len(files), done=len(files) - len(new)) as tracker:
            for start in range(0, len(new), IMAGES_AT_ONCE):
                some = new[start : start + IMAGES_AT_ONCE]
                database.executemany(
                    "INSERT OR REPLACE INTO photos (name, size, changed, rows, columns, pixels, vector, problem) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    [(name, *files[name], *row) for name, row in encoded(model, root, some)],
                )
                database.commit()
                tracker.advance(len(some))
        index = SearchIndex(folder, database)
        count = len(index)
        skipped = dict(database.execute("SELECT name, problem FROM photos WHERE problem IS NOT NULL ORDER BY name"))
        if model.model.pixelbert.towers is not None:
            aside = folder / (VECTORS + ".partial")
            index._up_to_date_vectors(model.model.config.tower_size).save(aside)
            database.execute("INSERT OR REPLACE INTO about VALUES ('vectors', ?)", (file_sha256(aside),))
            aside.replace(folder / VECTORS)
    database.close()
    added = len(new) - sum(name in skipped for name in new)
    return Indexed(count, added, sum(name not in files for name in gone), skipped)


def photo_files(root: Path, index: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """The name, size and time of change of every photo below a folder; hidden ones and the index's own are left out."""
    for place, folders, files in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".") and Path(place, f) != index]
        for file in files:
            path = Path(place, file)
            if path.suffix.lower() in SUFFIXES and not file.startswith(".") and path.is_file():
                status = path.stat()
                yield path.relative_to(root).as_posix(), (status.st_size, status.st_mtime_ns)


def claim(database: sqlite3.Connection, folder: Path, fingerprint: str) -> dict[str, tuple[int, int]]:
    """The photos of an index and what they were, if it is this checkpoint's."""
    database.executescript(SCHEMA)
    about = described(database, folder)
    rows = database.execute("SELECT name, size, changed FROM photos").fetchall()
    if about and (about.get("version"), about.get("fingerprint")) != (VERSION, fingerprint):
        raise PixelBertError(
            f"{folder} was made with another checkpoint, {about.get('checkpoint')}: choose another --out, or delete it"
        )
    return {name: (size, changed) for name, size, changed in rows}


def encoded(model: PixelBert, root: Path, names: Sequence[str]) -> Iterator[tuple[str, tuple]]:
    """For each photo: its grid, pixel embeddings and vector, or what is wrong with it."""
    images = {}
    for name in names:
        try:
            images[name] = open_image(root / name)
        except ImageError as error:
            yield name, (None, None, None, None, str(error))
    if not images:
        return
    features = model.encode(list(images.values()))
    vectors = model.embed_images(features)
    for i, name in enumerate(images):
        rows, columns = features.grid[i].tolist()
        pixels = safetensors.torch.save({"pixels": features.values[i, : rows * columns].contiguous().cpu()})
        yield name, (rows, columns, pixels, None if vectors is None else vectors[i].tobytes(), None)


def search(
    model: PixelBert, index: SearchIndex, text: str, top: int = 10, shortlist: int | None = SHORTLIST
) -> list[Found]:
    """See `PixelBert.search`."""
    if index.fingerprint != checkpoint_fingerprint(model.source):
        raise PixelBertError(
            f"{index.folder} was made with another checkpoint: {index.checkpoint}; search with that one"
        )
    vector = model.embed_text(text)
    if vector is None:
        photos = index.ids()
    else:
        photos = index.nearest(vector, None if shortlist is None else max(top, shortlist))
    logits: list[float] = []
    with Tracker("scoring photos", len(photos)) as tracker:
        for start in range(0, len(photos), SCORED_AT_ONCE):
            some = photos[start : start + SCORED_AT_ONCE]
            features, width = index.features(some), model.model.config.hidden_size
            if features.values.shape[-1] != width:
                raise PixelBertError(
                    f"{index.folder} has pixels of another width than the model's {width}: make it again"
                )
            logits += model.logits_of(features, text).tolist()
            tracker.advance(len(some))
    best = sorted(range(len(photos)), key=lambda i: -logits[i])[:top]
    scores = torch.tensor(logits).sigmoid().tolist()
    return [Found(str(index.path(photos[i])), scores[i]) for i in best]


def results_page(text: str, found: Sequence[Found]) -> str:
    """A web page that needs nothing else: the photos that were found, best first."""
    from pixelbert.predict.maps import inlined  # and so matplotlib, for this alone

    figures = "".join(
        f'<figure><img alt="" src="{inlined(open_image(image), 320)}">'
        f"<figcaption>{number}. {score:.3f}<br>{escape(Path(image).name)}</figcaption></figure>\n"
        for number, (image, score) in enumerate(found, start=1)
    )
    return PAGE.substitute(text=escape(text), figures=figures)


PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$text</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }
  main { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.5rem }
  figure { margin: 0 }
  img { width: 100%; height: 15rem; object-fit: cover; border-radius: 6px }
  figcaption { color: #555; overflow-wrap: anywhere }
</style>
<h1>$text</h1>
<main>
$figures</main>
</html>
""")

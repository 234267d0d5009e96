"""Search over a folder of photos in two stages: a short list by the two-tower head, then the joint score of each, which
together rank it.

An index is a folder of two files: `photos.sqlite` is the truth (`index_store`), and `vectors.usearch` is made from it,
for the first stage (`first_stage`). `indexing` makes both.

Shapes: I images, K pixels, D hidden, E width of the two-tower head.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from pixelbert.data.images import ImageError, open_image
from pixelbert.errors import PixelBertError
from pixelbert.loading import checkpoint_fingerprint
from pixelbert.model.pixels import PixelFeatures
from pixelbert.predict.first_stage import Vectors
from pixelbert.predict.index_store import DATABASE, PhotoStore, check_name, damaged, kept_pixels, text_of
from pixelbert.predict.indexing import Indexed as Indexed
from pixelbert.predict.indexing import index_photos as index_photos
from pixelbert.progress import Tracker
from pixelbert.terminal import one_line

if TYPE_CHECKING:
    from pixelbert.predict.pixelbert import PixelBert

SCORED_AT_ONCE = 64
SHORTLIST = 100
log = logging.getLogger("pixelbert.search")


class Found(NamedTuple):
    """A photo that a search found. It is ranked by the score and by the two-tower head.

    Attributes:
        image: its path.
        score: the probability that the sentence belongs to it (as of `match`).
        changed: the file is another than when it was indexed: the score is the old one's.
        missing: there is no such file any more.
    """

    image: str
    score: float
    changed: bool = False
    missing: bool = False


class Kept(NamedTuple):
    """A photo of the index: its name below the folder of the photos, and what the file was when it was read."""

    name: str
    size: int
    changed: int


class SearchIndex:
    """An index that was made by `index_photos`; see `open`.

    It follows what `index_photos` does beside it: each search is of what was committed last.

    Attributes:
        left_out: photos whose rows are damaged and that no search finds, by number, with the reason.
        made: what tells it from an index made anew in its place, whose photos have other numbers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.left_out: dict[int, str] = {}
        self._open()

    @classmethod
    def open(cls, folder: str | Path) -> SearchIndex:
        """Open an index for searching. (Nothing is written, but what a killed run left half done is taken back.)

        Raises:
            PixelBertError: there is none, or it is broken or of another version.
        """
        return cls(Path(folder))

    def _open(self) -> None:
        make = f"make one with `pixelbert index PHOTOS --out {self.folder}`"
        file = self.folder / DATABASE
        if not file.is_file():
            raise PixelBertError(f"{self.folder} is no index: {make}")
        store, identity = PhotoStore(self.folder), identity_of(file)
        state, about = store.state(), store.about()
        if not about:
            store.close()
            raise PixelBertError(f"{self.folder} has no photos yet, as its first run was stopped: {make}")
        self._store, self.made, self._state = store, identity, state
        self._vectors: Vectors | None = None
        self._describe(about)

    def _describe(self, about: dict[str, str]) -> None:
        if not about:
            raise damaged(self.folder, "it says no longer whose it is")
        self.photos, self.checkpoint, self.fingerprint = (about[n] for n in ("photos", "checkpoint", "fingerprint"))
        self._checksum = about.get("vectors", "")

    def refresh(self) -> None:
        """Take in what another process has committed, or an index that was made anew in the place of this one."""
        if identity_of(self.folder / DATABASE) not in (None, self.made):
            before = self._store
            with suppress(PixelBertError):  # it may be in the making: the one before is searched until then
                self._open()
                before.close()
                self.left_out = {}
                return
        state = self._store.state()
        if state == self._state:
            return
        self._describe(self._store.about())
        self._state = state
        if self.left_out:
            there = set(self.ids())
            self.left_out = {photo: reason for photo, reason in self.left_out.items() if photo in there}
        if self._vectors is not None:
            self._leave_out(self._vectors.follow(self._store))

    def _leave_out(self, photos: dict[int, str]) -> None:
        """Say once of each photo that its row is damaged."""
        new = {photo: reason for photo, reason in photos.items() if photo not in self.left_out}
        if new:
            self.left_out |= new
            log.warning(
                "%s: %d of its photos left out, as what is kept of them is damaged: %s. `touch` them and index again.",
                self.folder, len(new), "; ".join(list(new.values())[:3]),
            )  # fmt: skip

    def __len__(self) -> int:
        return int(self._store.rows("SELECT count(*) FROM photos WHERE problem IS NULL")[0][0])

    def must_have_photos(self) -> None:
        """Raises:
        PixelBertError: there is nothing to search.
        """
        if not len(self):
            raise PixelBertError(f"{self.folder} has no photos that could be used: `pixelbert index` says why of each")

    def path(self, photo: int) -> Path:
        """Where the photo of this number is.

        Raises:
            PixelBertError: there is no such photo.
        """
        rows = self._store.rows("SELECT name FROM photos WHERE id = ? AND problem IS NULL", (photo,))
        if not rows:
            raise PixelBertError(f"{self.folder} has no photo {photo}")
        name = text_of(rows[0][0])
        try:
            check_name(name)
        except ValueError as error:
            raise damaged(self.folder, error) from error
        return Path(self.photos) / name

    def ids(self) -> list[int]:
        """The numbers of all photos, in the order of their names."""
        return [row[0] for row in self._store.rows("SELECT id FROM photos WHERE problem IS NULL ORDER BY name")]

    def read(self, photos: Sequence[int], width: int) -> tuple[dict[int, Kept], PixelFeatures | None]:
        """What is kept of these photos, in their order, without those that are damaged or were removed meanwhile.

        Args:
            width: D, of the model.

        Returns:
            The photos by number; and their pixel embeddings (I, K, D), None if none is left.
        """
        marks = ",".join("?" * len(photos))
        query = f"SELECT id, name, size, changed, rows, columns, pixels FROM photos WHERE id IN ({marks})"
        kept: dict[int, Kept] = {}
        features: dict[int, PixelFeatures] = {}
        bad: dict[int, str] = {}
        for photo, stored, size, changed, rows, columns, pixels in self._store.rows(query, photos):
            name = text_of(stored)
            try:
                check_name(name)
                values = kept_pixels(rows, columns, pixels, width)
            except Exception as error:  # whatever is raised by bytes that we did not write
                bad[photo] = f"{one_line(name)} ({one_line(str(error))})"
            else:
                kept[photo] = Kept(name, size, changed)
                features[photo] = PixelFeatures(values[None], torch.tensor([[rows, columns]]))
        self._leave_out(bad)
        order = [photo for photo in photos if photo in kept]
        together = PixelFeatures.concatenate([features[photo] for photo in order]) if order else None
        return {photo: kept[photo] for photo in order}, together

    def nearest(self, vector: np.ndarray, count: int | None) -> list[int]:
        """The photos whose vectors are nearest to this one (E,), nearest first: the first stage of a search. All of
        them if `count` is None."""
        if self._vectors is None:
            self._vectors = Vectors(self.folder, len(vector), self._checksum)
            self._leave_out(self._vectors.follow(self._store))
        return self._vectors.nearest(vector, count)

    def found(self, photo: Kept, score: float) -> Found:
        """A photo with its score, and whether it is still the one that was indexed."""
        path = Path(self.photos) / photo.name
        try:
            status = path.stat()
        except OSError:
            return Found(str(path), score, missing=True)
        return Found(str(path), score, changed=(status.st_size, status.st_mtime_ns) != (photo.size, photo.changed))


def identity_of(file: Path) -> tuple[int, int] | None:
    """What tells a file from another that was put in its place; None if there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def search(
    model: PixelBert, index: SearchIndex, text: str, top: int = 10, shortlist: int | None = SHORTLIST
) -> list[Found]:
    """See `PixelBert.search`."""
    vector, fingerprint = model.embed_text(text), checkpoint_fingerprint(model.source)
    count = None if shortlist is None else max(top, shortlist)
    kept: dict[int, Kept] = {}
    logits: dict[int, float] = {}
    index.refresh()
    while True:
        if index.fingerprint != fingerprint:
            made_by = one_line(index.checkpoint)
            raise PixelBertError(f"{index.folder} was made with another checkpoint: {made_by}; search with that one")
        made, photos = index.made, index.ids() if vector is None else index.nearest(vector, count)
        new = [photo for photo in photos if photo not in logits and photo not in index.left_out]
        with Tracker("scoring photos", len(new)) as tracker:
            for start in range(0, len(new), SCORED_AT_ONCE):
                some = new[start : start + SCORED_AT_ONCE]
                there, features = index.read(some, model.model.config.hidden_size)
                if features is not None:
                    logits |= dict(zip(there, model.logits_of(features, text).tolist(), strict=True))
                    kept |= there
                tracker.advance(len(some))
        if all(photo in logits or photo in index.left_out for photo in new):
            break
        # Some were removed while others were scored. What is found belongs to one state of the index, so once more
        # with the present one, most of which is scored already.
        index.refresh()
        if index.made != made:
            kept, logits = {}, {}
    photos = [photo for photo in photos if photo in logits]
    if index.left_out and not photos:
        raise damaged(index.folder, f"no photo is left: {next(iter(index.left_out.values()))}")
    best = sorted(photos, key=lambda photo: -logits[photo])[:top]
    scores = torch.tensor([logits[photo] for photo in best]).sigmoid().tolist()
    return [index.found(kept[photo], score) for photo, score in zip(best, scores, strict=True)]


def results_page(text: str, found: Sequence[Found]) -> str:
    """A web page that needs nothing else: the photos that were found, best first."""
    figures = "".join(
        f"<figure>{picture(one.image)}<figcaption>{number}. {one.score:.3f}{escape(remark(one))}"
        f"<br>{escape(one_line(Path(one.image).name))}</figcaption></figure>\n"
        for number, one in enumerate(found, start=1)
    )
    return PAGE.substitute(text=escape(text), figures=figures)


def picture(image: str) -> str:
    """A photo for the page, or why it can't be shown."""
    from pixelbert.predict.maps import inlined  # and so matplotlib, for this alone

    try:
        return f'<img alt="" src="{inlined(open_image(image), 320)}">'
    except ImageError as error:
        return f"<p>{escape(one_line(str(error)))}</p>"


def remark(found: Found) -> str:
    """What is to be said of a photo that is not as it was indexed."""
    if found.missing:
        return "  (no longer there)"
    return "  (changed since it was indexed)" if found.changed else ""


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

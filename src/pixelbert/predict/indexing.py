"""Making an index of a folder of photos, and bringing it up to date: see `search` for what it is for.

Photos are added, replaced and removed as the folder says, a few in a commit; what a killed run has committed stays.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import safetensors.torch

from pixelbert.data.images import HEIF, ImageError, open_image
from pixelbert.errors import PixelBertError
from pixelbert.files import exclusive
from pixelbert.loading import SHIPPED, SHIPPED_FOLDER, checkpoint_fingerprint
from pixelbert.predict.first_stage import VECTORS, Vectors
from pixelbert.predict.index_store import DATABASE, VERSION, PhotoStore, text_of, to_stored
from pixelbert.progress import Tracker
from pixelbert.terminal import one_line

if TYPE_CHECKING:
    from pixelbert.predict.pixelbert import PixelBert

LOCK = "index.lock"
IMAGES_AT_ONCE = 8  # encoded, then kept: what a killed run has to do again
HEIF_SUFFIXES = {".heic", ".heif"}
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif"}
SUFFIXES |= HEIF_SUFFIXES if HEIF else set()
NAMED = 3  # files of a kind that were passed over, for people
ADVICE = "to read {kind}, `pip install 'pixelbert[heif]'` and give the same command again"

State = tuple[int, int]  # a file's size, and its time of change in nanoseconds


class Indexed(NamedTuple):
    """What an indexing run did.

    Attributes:
        photos: in the index now.
        added: of them, new or changed.
        removed: no longer in the folder.
        skipped: photos, and folders, that can't be read, with the reason.
        passed_over: files whose names aren't those of photos, by their suffix; hidden files and folders; links to
            folders, which aren't followed.
    """

    photos: int
    added: int
    removed: int
    skipped: dict[str, str]
    passed_over: dict[str, list[str]]


class Listing(NamedTuple):
    """What is below a folder: photos, what was passed over by kind, and what can't be looked at and why."""

    photos: dict[str, State]
    passed_over: dict[str, list[str]]
    unseen: dict[str, str]

    def hides(self, name: str) -> bool:
        """Whether a photo of this name may still be there, out of sight."""
        return any(name == place or name.startswith(place + "/") for place in self.unseen)


def index_photos(model: PixelBert, photos: str | Path, out: str | Path) -> Indexed:
    """Encode every photo below a folder once; those that are in the index already, unchanged, are left alone.

    Photos are added, replaced and removed as the folder says. What a killed run has encoded is kept.

    Args:
        model: pre-trained or fine-tuned for retrieval. With a two-tower head (`task.contrast` or `task.towers` in its
            recipe) searches can short-list; without one they score every photo.
        photos: the folder.
        out: folder of the index; new, or an index to bring up to date.

    Raises:
        PixelBertError: no photos there; `out` is the index of another checkpoint, or something else; another process
            writes it; it can't be written.
    """
    with reserved(out):
        return bring_up_to_date(model, photos, out)


@contextmanager
def reserved(out: str | Path) -> Iterator[None]:
    """Make the folder of an index, if need be, and keep other processes from writing it.

    Raises:
        PixelBertError: one does; or it is something else.
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise PixelBertError(f"{folder} is no folder: choose another --out")
    there = {file.name for file in folder.iterdir()} if folder.exists() else set()
    if there - {LOCK} and DATABASE not in there:
        raise PixelBertError(f"{folder} holds something that is no index: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / LOCK, f"another process writes the index {folder}: wait until it has ended"):
        yield


def bring_up_to_date(model: PixelBert, photos: str | Path, out: str | Path) -> Indexed:
    """As `index_photos`, in a folder that is `reserved`."""
    root, folder = Path(photos).absolute(), Path(out)
    listing = list_photos(root, folder.absolute())
    files, skipped = listing.photos, dict(listing.unseen)
    if not files:
        raise PixelBertError("; ".join([f"{photos} has no photos ({', '.join(sorted(SUFFIXES))})", *why_none(listing)]))
    with closing(PhotoStore(folder, writable=True)) as store:
        claim(store, root, model)
        before: dict[str, State] = {}
        gone: list[tuple[int]] = []
        for number, stored, *state, problem in store.rows("SELECT id, name, size, changed, problem FROM photos"):
            name = text_of(stored)
            if name in files or listing.hides(name):
                if not problem:  # the others are tried again: permissions and decoders change
                    before[name] = (state[0], state[1])
            else:
                gone.append((number,))
        if gone:
            with store.transaction() as database:
                database.executemany("DELETE FROM photos WHERE id = ?", gone)
        new = sorted(name for name, state in files.items() if before.get(name) != state)
        with Tracker("indexing", len(files), done=len(files) - len(new)) as tracker:
            for start in range(0, len(new), IMAGES_AT_ONCE):
                some = new[start : start + IMAGES_AT_ONCE]
                rows = [(to_stored(name), *files[name], *row) for name, row in encoded(model, root, some)]
                skipped |= {text_of(row[0]): row[-1] for row in rows if row[-1]}
                with store.transaction() as database:
                    database.executemany(
                        "INSERT OR REPLACE INTO photos (name, size, changed, rows, columns, pixels, vector, problem) "
                        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                        rows,
                    )
                tracker.advance(len(some))
        if model.model.pixelbert.towers is not None:
            store_vectors(store, model.model.config.tower_size)
        (count,) = store.rows("SELECT count(*) FROM photos WHERE problem IS NULL")[0]
    added = len(new) - sum(name in skipped for name in new)
    return Indexed(count, added, len(gone), dict(sorted(skipped.items())), listing.passed_over)


def claim(store: PhotoStore, root: Path, model: PixelBert) -> None:
    """Write down whose index it is, if it is nobody else's.

    Raises:
        PixelBertError: it is another checkpoint's.
    """
    fingerprint = checkpoint_fingerprint(model.source)
    about = store.about()
    if about and about["fingerprint"] != fingerprint:
        made_by = one_line(about["checkpoint"])
        raise PixelBertError(
            f"{store.folder} was made with another checkpoint: go on with `--checkpoint {made_by}`, or choose another "
            "--out"
        )
    # A folder by its whole path, or from elsewhere it would be a name on the hub. The shipped one by its name: where a
    # package is installed may change.
    source = str(Path(model.source).absolute()) if Path(model.source).is_dir() else model.source
    source = SHIPPED if source == str(SHIPPED_FOLDER) else source
    says = {"version": VERSION, "photos": str(root), "checkpoint": source, "fingerprint": fingerprint}
    known = about.get("precision", "").split(", ")
    says["precision"] = ", ".join(sorted({model.precision, *known} - {""}))  # of its vectors
    if says != {name: about.get(name) for name in says}:
        with store.transaction() as database:
            rows = [(name, to_stored(value)) for name, value in says.items()]
            database.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", rows)


def store_vectors(store: PhotoStore, width: int) -> None:
    """Write the file of vectors anew. Searches make up for one that is old or missing, so it may fail to no harm.

    Raises:
        PixelBertError: the disk is full, say.
    """
    vectors = Vectors(store.folder, width, store.about().get("vectors", ""))
    vectors.follow(store)
    aside = store.folder / (VECTORS + ".partial")
    try:
        checksum = vectors.save(aside)
        with store.transaction() as database:
            database.execute("INSERT OR REPLACE INTO about VALUES ('vectors', ?)", (checksum,))
        aside.replace(store.folder / VECTORS)
    except OSError as error:
        raise PixelBertError(
            f"{aside} cannot be written ({error.strerror or error}). All photos are in the index and can be searched, "
            "each time with a slower start; make room and give the same command again"
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def list_photos(root: Path, index: Path) -> Listing:
    """The photos below a folder with what tells that one has changed, and what else is there.

    Left out are the folder `index`, hidden files and folders, and links to folders.
    """
    found = Listing({}, {}, {})

    def passed_over(path: Path, kind: str) -> None:
        found.passed_over.setdefault(kind, []).append(path.relative_to(root).as_posix())

    def unseen(error: OSError) -> None:
        name = Path(error.filename).relative_to(root).as_posix()
        shown = one_line(str(error.filename))
        found.unseen[name] = f"{shown} cannot be looked at ({error.strerror}): check the path and its permissions"

    for place, folders, files in os.walk(root, onerror=unseen):
        paths = [Path(place, folder) for folder in sorted(folders)]
        for path in paths:
            if path.name.startswith("."):
                passed_over(path, "hidden")
            elif path.is_symlink():
                passed_over(path, "link to a folder")
        folders[:] = [p.name for p in paths if not (p.name.startswith(".") or p.is_symlink() or p == index)]
        for path in (Path(place, file) for file in sorted(files)):
            if path.name.startswith("."):
                passed_over(path, "hidden")
            elif path.suffix.lower() not in SUFFIXES:
                passed_over(path, path.suffix.lower() or "no suffix")
            else:
                try:
                    status = path.stat()
                except FileNotFoundError:
                    passed_over(path, "link to nothing")
                except OSError as error:
                    unseen(error)
                else:
                    if stat.S_ISREG(status.st_mode):
                        found.photos[path.relative_to(root).as_posix()] = (status.st_size, status.st_mtime_ns)
                    else:
                        passed_over(path, "no regular file")
    return found


def why_none(listing: Listing) -> list[str]:
    """What is there instead of photos, in words."""
    seen = [*listing.unseen.values(), *passed_over_lines(listing.passed_over)]
    return seen or ["check the path"]


def passed_over_lines(kinds: dict[str, list[str]]) -> list[str]:
    """What was passed over: a count for each kind, a few names, and what to do about it."""
    lines = []
    for kind, names in sorted(kinds.items(), key=lambda item: -len(item[1])):
        named = ", ".join(one_line(name) for name in names[:NAMED]) + (", ..." if len(names) > NAMED else "")
        advice = f": {ADVICE.format(kind=kind)}" if kind in HEIF_SUFFIXES else ""
        lines.append(f"{len(names):,} passed over, {one_line(kind)} ({named}){advice}")
    return lines


def encoded(model: PixelBert, root: Path, names: Sequence[str]) -> Iterator[tuple[str, tuple]]:
    """For each photo: its grid, pixel embeddings and vector, or what is wrong with it."""
    images = {}
    for name in names:
        try:
            images[name] = open_image(root / name, one_line(str(root / name)))
        except ImageError as error:
            yield name, (None, None, None, None, one_line(str(error)))
    if not images:
        return
    features = model.encode(list(images.values()))
    vectors = model.embed_images(features)
    for i, name in enumerate(images):
        rows, columns = features.grid[i].tolist()
        pixels = safetensors.torch.save({"pixels": features.values[i, : rows * columns].contiguous().cpu()})
        yield name, (rows, columns, pixels, None if vectors is None else vectors[i].tobytes(), None)

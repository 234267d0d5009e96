"""`--exclude`: photos that are left out of a data set, for they are to be shown or measured later."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from pixelbert.data.corpus import split_source
from pixelbert.data.sources.common import Skip, Where
from pixelbert.data.store import PreparedDataset
from pixelbert.errors import PixelBertError


class Exclusion:
    """The photos to leave out, known by their file names.

    Args:
        entries: folders of photos, and splits of prepared data sets as "DIR:SPLIT,SPLIT".

    Raises:
        PixelBertError: an entry is neither.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        self._files = {entry: _files_in(entry) for entry in entries}
        self._unmatched = set(entries)

    def skip(self, photo: str, where: Where) -> Skip | None:
        """The photo at this path as one that is left out; None if it stays."""
        entries = [entry for entry, files in self._files.items() if file_name(photo) in files]
        if not entries:
            return None
        self._unmatched.difference_update(entries)
        reason = f"{photo} is in {' and '.join(entries)}"
        return Skip("image", "image left out by --exclude", reason, where, bad=False)

    def check(self, *raw_files: Path) -> None:
        """Called when all photos of the raw files were seen.

        Raises:
            PixelBertError: an entry has left none of them out.
        """
        if self._unmatched:
            raise PixelBertError(
                f"{', '.join(sorted(self._unmatched))}: no photo of {', '.join(map(str, raw_files))} has the name of a "
                "file there, so --exclude leaves nothing out; check the folder, or the splits (DIR:SPLIT,SPLIT)"
            )


def file_name(path: str) -> str:
    """A photo's file name, the same in every Unicode form."""
    return unicodedata.normalize("NFC", Path(path).name)


def files_of(source: str) -> set[str]:
    """The file names of the photos in splits of a prepared data set, given as DIR:SPLIT,SPLIT."""
    folder, splits = split_source(source)
    data = PreparedDataset.open(folder)
    ids = {image for split in splits for row in data.examples(split)["image_ids"] for image in row}
    names, paths = (data.images.data.column(column).to_pylist() for column in ("image_id", "path"))
    return {file_name(path) for name, path in zip(names, paths, strict=True) if name in ids and path}


def _files_in(entry: str) -> set[str]:
    if ":" in entry and not Path(entry).is_dir():
        return files_of(entry)
    files = {file_name(file.name) for file in Path(entry).rglob("*") if file.is_file()}
    if not files:
        raise PixelBertError(
            f"{entry} is no folder with files: --exclude takes folders of photos, and splits of prepared data sets "
            "(DIR:SPLIT,SPLIT)"
        )
    return files

"""Where a photo is in the folder that paths start from, and what is wrong with a path that leads nowhere."""

import os
import re
import unicodedata
from functools import cache
from pathlib import Path, PurePosixPath


class PhotoFolder:
    """The folder of a data set's photos.

    Args:
        folder: its path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._other_forms = cache(_other_forms)

    def stored(self, path: str) -> str:
        """The path as the folder has it: itself, or the same letters in another Unicode form.

        A Mac writes "é" in file names as a letter and an accent (NFD), tables mostly have one character (NFC).
        """
        if path.isascii() or (self.folder / path).exists():
            return path
        found = PurePosixPath()
        for part in PurePosixPath(path).parts:
            here = self.folder / found
            name = part if (here / part).exists() else self._other_forms(here).get(unicodedata.normalize("NFC", part))
            if name is None:
                return path
            found /= name
        return str(found)

    def advice(self, path: str) -> str:
        """What is wrong with how a path is written that leads to no file, and what to write; nothing if it is fine."""
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path):
            return f"{path} is a web address: download the photo, and give its path below the image folder"
        faults = []
        if path != path.strip():
            faults.append("begins or ends with a space")
        if "\\" in path and os.sep == "/":
            faults.append("has \\ where / separates folders")
        if not faults:
            return ""
        mended = path.strip().replace("\\", "/")
        there = (self.folder / self.stored(mended)).is_file()
        what = f"write {mended!r}, which is there" if there else f"nor is there a {mended!r}"
        return f"The path {path!r} {' and '.join(faults)}: {what}"


def _other_forms(folder: Path) -> dict[str, str]:
    """Of a folder's names that are not plain ASCII, NFC form -> name; without those of which two have one form."""
    found: dict[str, str | None] = {}
    try:
        names = [path.name for path in folder.iterdir() if not path.name.isascii()]
    except OSError:
        return {}
    for name in names:
        form = unicodedata.normalize("NFC", name)
        found[form] = None if form in found else name
    return {form: name for form, name in found.items() if name is not None}

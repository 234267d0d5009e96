"""NLVR2 from its official JSON lines: statements about two photos, true or false (paper 4.2, Table 3)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelbert.data.sources.common import (
    ImageFile,
    ImageRecord,
    Reading,
    Sentence,
    Skip,
    as_id,
    read_text,
    short,
)
from pixelbert.data.sources.tables import jsonl_rows
from pixelbert.data.store import REASONING
from pixelbert.errors import PixelBertError
from pixelbert.metrics.nlvr2 import truth_of

IDENTIFIER = re.compile(r"((train|dev|test1|test2)-\d+-\d+)-\d+")  # split, set of photos, pair, sentence
HIDDEN = "test2"  # its labels were not public before 2022


@dataclass(kw_only=True)
class Nlvr2:
    """NLVR2 as downloaded: statements about a left and a right photo; train, dev, test1, test2.

    Attributes:
        json: train.json, dev.json, test1.json, or those of them that you have; test2.json too if you have it.
        images: the folder that holds train, dev, test1 (and test2), each with its photos or folders of them.
    """

    json: list[Path]
    images: Path

    def files(self) -> list[Path]:
        """The JSON files."""
        return [Path(path) for path in self.json]

    def read(self) -> Reading:
        """Opens the JSON lines; see `Source`. The photos need not be there yet."""
        if not self.json:
            raise PixelBertError("no file: name NLVR2's files with --json '[train.json, dev.json, test1.json]'")
        pairs: dict[str, ImageRecord] = {}
        skips: list[Skip] = []
        for path in self.files():
            before = len(pairs)
            skips += self._gather(path, pairs)
            if len(pairs) == before:
                raise PixelBertError(
                    f"{path}: expected NLVR2's JSON lines, each an object with identifier, sentence and label, and "
                    f"found none of a new pair of photos. {_first(skips, path)}"
                )
        return Reading("nlvr2", iter([*skips, *pairs.values()]), len(skips) + len(pairs), task=REASONING)

    def _gather(self, path: Path, pairs: dict[str, ImageRecord]) -> Iterator[Skip]:
        """Adds a file's statements to their pairs of photos; yields the lines that cannot be used."""
        for where, row in jsonl_rows(path, read_text(path)):
            problem = ("malformed row", row) if isinstance(row, str) else _problem(row)
            if isinstance(row, str) or problem:
                yield Skip("sentence", *(problem or ("malformed row", "")), where)
                continue
            identifier = str(row["identifier"])
            found = IDENTIFIER.fullmatch(identifier)
            assert found is not None
            pair, split = found.groups()
            if pair not in pairs:
                folder = self._folder(pair, split, row.get("directory"))
                names = (f"{pair}-img0", f"{pair}-img1")  # left, right
                files = tuple(ImageFile(f"nlvr2:{name}", f"{folder}/{name}.png") for name in names)
                pairs[pair] = ImageRecord(files, split, where)
            targets = {"label": truth_of(row.get("label"))}
            sentence = Sentence(f"nlvr2:{identifier}", row.get("sentence"), where, targets)
            pairs[pair].sentences.append(sentence)

    def _folder(self, pair: str, split: str, directory: Any) -> str:
        """Where a pair's photos are, below `images`: those of train lie in numbered folders as distributed."""
        number = as_id(directory)
        folders = ([f"{split}/{number}"] if number else []) + [split]
        here = (f for f in folders if (Path(self.images) / f / f"{pair}-img0.png").is_file())
        return next(here, folders[0])


def _problem(row: dict[str, object]) -> tuple[str, str] | None:
    identifier = row.get("identifier")
    if not isinstance(identifier, str) or not IDENTIFIER.fullmatch(identifier):
        return "malformed row", f"'identifier' is {short(identifier)}, where one such as 'dev-850-0-0' is expected"
    if "sentence" not in row:
        return "malformed row", f"'sentence' is missing ({identifier})"
    label = row.get("label")
    if label is None:
        if identifier.startswith(HIDDEN):
            return None
        return "no label", f"{identifier} has no label, and only {HIDDEN} may lack it"
    if truth_of(label) is None:
        return "label neither True nor False", f"the label of {identifier} is {short(label)}"
    return None


def _first(skips: list[Skip], path: Path) -> str:
    skip = next((skip for skip in skips if skip.where.file == path), None)
    return f"{skip.where.place}: {skip.reason}" if skip else ""

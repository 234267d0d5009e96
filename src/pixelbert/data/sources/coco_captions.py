"""COCO's official captions JSON (captions_train2017.json, say), and other data sets of the same form."""

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
    Where,
    as_id,
    check_name,
    read_json,
    require,
    short,
)
from pixelbert.data.sources.words import is_missing, split_in_name
from pixelbert.errors import PixelBertError

FORMAT = "COCO captions JSON"


@dataclass(kw_only=True)
class CocoCaptions:
    """COCO captions in the official JSON, one split a file.

    Attributes:
        json: captions_val2014.json or another of its form.
        images: the folder that the file names in the JSON start from, such as val2014.
        split: what to call the split; if left out, what a whole word of the file's name says: train, val or test.
        name: the data set's name, for data of the same form that is not COCO.
    """

    json: Path
    images: Path
    split: str | None = None
    name: str = "coco"

    def files(self) -> list[Path]:
        """The JSON file."""
        return [Path(self.json)]

    def read(self) -> Reading:
        """Opens the JSON; see `Source`."""
        path = Path(self.json)
        name, split = check_name(self.name), self.split or split_in_name(path)
        notes = [] if self.split else [f"split: {split}, after the name of {path.name} (--split says another)"]
        data = read_json(path)
        require(data, path, dict, {"images": list, "annotations": list}, FORMAT)
        for key in ("images", "annotations"):
            if not data[key]:
                raise PixelBertError(f"{path}: {key!r} is an empty array: download the file again")
        total = len(data["images"])
        return Reading(name, self._records(name, split, data["images"], data["annotations"]), total, notes=notes)

    def _records(
        self, name: str, split: str, images: list[Any], annotations: list[Any]
    ) -> Iterator[ImageRecord | Skip]:
        path = Path(self.json)
        sentences: dict[str, list[Sentence]] = {}
        for row, item in enumerate(annotations):
            where = Where(path, f"annotations[{row}]")
            problem = _problem(item, ("id", "image_id"), ("caption",))
            if problem:
                yield Skip("sentence", "malformed sentence entry", problem, where)
                continue
            if is_missing(item["caption"]):
                reason = f"{short(item['caption'])} marks a missing value"
                yield Skip("sentence", "no caption", reason, where, bad=False)
                continue
            sentence = Sentence(f"{name}:{as_id(item['id'])}", item["caption"], where)
            sentences.setdefault(str(as_id(item["image_id"])), []).append(sentence)
        for row, item in enumerate(images):
            where = Where(path, f"images[{row}]")
            problem = _problem(item, ("id",), ("file_name",))
            if problem:
                yield Skip("image", "malformed image entry", problem, where)
                continue
            number = str(as_id(item["id"]))
            image = ImageFile(f"{name}:{number}", item["file_name"])
            yield ImageRecord((image,), split, where, sentences.pop(number, []))
        for number, orphans in sentences.items():
            for sentence in orphans:
                reason = f"image_id {number} is not among the file's images"
                yield Skip("sentence", "sentence of an unknown image", reason, sentence.where)


def _problem(item: Any, ids: tuple[str, ...], others: tuple[str, ...]) -> str:
    if not isinstance(item, dict):
        return f"expected an object, found {short(item)}"
    for key in (*ids, *others):
        if key not in item:
            return f"the key {key!r} is missing"
    for key in ids:
        if as_id(item[key]) is None:
            return f"{key!r} is {short(item[key])}, not a number or short text"
    return ""

"""Karpathy's JSON for Flickr8k, Flickr30K and COCO: the splits that papers report on."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

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
from pixelbert.data.sources.exclusion import Exclusion
from pixelbert.data.sources.words import is_missing
from pixelbert.errors import PixelBertError

FORMAT = "Karpathy's captions JSON"


@dataclass(kw_only=True)
class Karpathy:
    """Flickr8k, Flickr30K or COCO in the JSON of Karpathy's splits.

    Attributes:
        json: dataset_flickr8k.json, dataset_flickr30k.json or dataset_coco.json.
        images: the folder of the photos; for COCO the one that holds train2014 and val2014.
        restval: the split that COCO's "restval" images go to; "train" merges them as most papers do.
        name: the data set's name; what the file says if left out.
        exclude: folders of photos, and splits of prepared data sets ("DIR:SPLIT,SPLIT"), that are left out here, known
            by their file names: those that are to be shown or measured later.
    """

    json: Path
    images: Path
    restval: str = "restval"
    name: str | None = None
    exclude: list[str] = field(default_factory=list)

    expected: ClassVar[str | None] = None  # what the file has to say that it is

    def files(self) -> list[Path]:
        """The JSON file."""
        return [Path(self.json)]

    def read(self) -> Reading:
        """Opens the JSON; see `Source`."""
        path = Path(self.json)
        data = read_json(path)
        require(data, path, dict, {"images": list} | ({} if self.name else {"dataset": str}), FORMAT)
        name = check_name(self.name or data["dataset"], path)
        said = data.get("dataset", self.expected)
        if self.expected and said != self.expected:
            raise PixelBertError(
                f"{path}: the file says it is {short(said)}, not {self.expected!r}: use `pixelbert prepare karpathy`"
            )
        if not data["images"]:
            raise PixelBertError(f"{path}: 'images' is an empty array: download the file again")
        return Reading(name, self._records(name, data["images"], Exclusion(self.exclude)), len(data["images"]))

    def _records(self, name: str, images: list[Any], exclusion: Exclusion) -> Iterator[ImageRecord | Skip]:
        for row, item in enumerate(images):
            where = Where(Path(self.json), f"images[{row}]")
            problem = _image_problem(item)
            if problem:
                yield Skip("image", "malformed image entry", problem, where)
                continue
            left_out = exclusion.skip(item["filename"], where)
            if left_out:
                yield left_out
                continue
            # COCO has ids that hold beyond this file; elsewhere the number in the file is all there is.
            number = as_id(item["cocoid"] if "cocoid" in item else item["imgid"])
            split = self.restval if item["split"] == "restval" else item["split"]
            folder = item.get("filepath") or ""
            path = f"{folder}/{item['filename']}" if folder else item["filename"]
            record = ImageRecord((ImageFile(f"{name}:{number}", path),), split, where)
            for index, sentence in enumerate(item["sentences"]):
                here = Where(Path(self.json), f"images[{row}].sentences[{index}]")
                problem = _sentence_problem(sentence)
                if problem:
                    yield Skip("sentence", "malformed sentence entry", problem, here)
                elif str(sentence["raw"] or "").strip() and is_missing(sentence["raw"]):  # nothing at all is a fault
                    reason = f"{short(sentence['raw'])} marks a missing value"
                    yield Skip("sentence", "no caption", reason, here, bad=False)
                else:
                    sentence_id = f"{name}:{as_id(sentence['sentid'])}"
                    record.sentences.append(Sentence(sentence_id, sentence["raw"], here))
            yield record
        exclusion.check(Path(self.json))


@dataclass(kw_only=True)
class Flickr30k(Karpathy):
    """Flickr30K in Karpathy's splits: 29,000 photos for train, 1,014 for val, 1,000 for test, five captions each.

    Attributes:
        json: dataset_flickr30k.json.
        images: the folder of the photos.
    """

    name: str | None = "flickr30k"
    expected: ClassVar[str | None] = "flickr30k"


@dataclass(kw_only=True)
class Coco(Karpathy):
    """COCO captions in Karpathy's splits: train, restval, and 5,000 photos each for val and test.

    The test images keep the file's order: the five folds of 1K are images 0 to 999, 1,000 to 1,999 and so on.

    Attributes:
        json: dataset_coco.json.
        images: the folder that holds train2014 and val2014.
    """

    name: str | None = "coco"
    expected: ClassVar[str | None] = "coco"


def _image_problem(item: Any) -> str:
    if not isinstance(item, dict):
        return f"expected an object, found {short(item)}"
    for key in ("filename", "split", "sentences"):
        if key not in item:
            return f"the key {key!r} is missing"
    if "imgid" not in item and "cocoid" not in item:
        return "the key 'imgid' is missing"
    key = "cocoid" if "cocoid" in item else "imgid"
    if as_id(item[key]) is None:
        return f"{key!r} is {short(item[key])}, not a number or short text"
    for key in ("filename", "split", "filepath"):
        if not isinstance(item.get(key, ""), str):
            return f"{key!r} is {short(item[key])}, not text"
    if not isinstance(item["sentences"], list):
        return f"'sentences' is {short(item['sentences'])}, not an array"
    return ""


def _sentence_problem(sentence: Any) -> str:
    if not isinstance(sentence, dict):
        return f"expected an object, found {short(sentence)}"
    for key in ("raw", "sentid"):
        if key not in sentence:
            return f"the key {key!r} is missing"
    if as_id(sentence["sentid"]) is None:
        return f"'sentid' is {short(sentence['sentid'])}, not a number or short text"
    return ""

"""Which images must stay out of pre-training because somebody will be tested on them.

Visual Genome shares about half of its images with COCO, and some with Flickr30K; its image_data.json says
which.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixelbert.data.sources.common import as_id, read_json
from pixelbert.data.store import PreparedDataset
from pixelbert.errors import PixelBertError

TRAINING_SPLITS = ("train", "restval")


@dataclass
class TestedImages:
    """Images of evaluation splits, by the number that each has at COCO and at Flickr."""

    coco: set[str] = field(default_factory=set)
    flickr: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.coco) + len(self.flickr)


def tested_images(paths: list[Path]) -> TestedImages:
    """Collects the images that evaluation splits use.

    Args:
        paths: prepared data sets and Karpathy JSON, of which every split but train and restval counts; COCO
            captions and VQA JSON, which count whole.

    Raises:
        PixelBertError: one of them is none of these, or has no image whose number is known.
    """
    found = TestedImages()
    for path in map(Path, paths):
        before = len(found)
        if path.is_dir():
            _from_prepared(PreparedDataset.open(path), found)
        else:
            _from_json(read_json(path), found)
        if len(found) == before:
            raise PixelBertError(
                f"{path}: no evaluation image with a COCO or Flickr number was found in it. --exclude takes "
                f"prepared "
                "data sets and Karpathy, COCO captions or VQA JSON that hold evaluation splits"
            )
    return found


def flickr_number(file_name: str) -> str | None:
    """The Flickr photo number in a file name of Flickr8k or Flickr30K: before the `_` or the suffix."""
    found = re.match(r"(\d+)[_.]", Path(file_name).name)
    return found.group(1) if found else None


def _from_prepared(data: PreparedDataset, found: TestedImages) -> None:
    for split in data.splits:
        if split in TRAINING_SPLITS:
            continue
        for image_ids in data.examples(split).data.column("image_ids").to_pylist():
            for image_id in image_ids:
                dataset, _, number = image_id.partition(":")
                if dataset == "coco":
                    found.coco.add(number)
                elif dataset.startswith("flickr"):
                    path = data.images.data.column("path")[data.image_row[image_id]].as_py()
                    _add(found.flickr, flickr_number(path))


def _from_json(data: Any, found: TestedImages) -> None:
    if not isinstance(data, dict):
        return
    flickr = str(data.get("dataset", "")).startswith("flickr")
    for item in _objects(data.get("images")):
        if item.get("split") in TRAINING_SPLITS:
            continue
        if "cocoid" in item or "split" not in item:
            _add(found.coco, as_id(item.get("cocoid", item.get("id"))))
        elif flickr:
            _add(found.flickr, flickr_number(str(item.get("filename"))))
    for key in ("questions", "annotations"):
        for item in _objects(data.get(key)):
            _add(found.coco, as_id(item.get("image_id")))


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _add(numbers: set[str], number: str | None) -> None:
    if number is not None:
        numbers.add(number)

"""Visual Genome's region descriptions: about 50 phrases an image, for pre-training (paper 4.1)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixelbert.data.sources.common import (
    ImageRecord,
    Reading,
    Sentence,
    Skip,
    Where,
    as_id,
    read_json,
    require,
    short,
)
from pixelbert.data.sources.leaks import TestedImages, tested_images
from pixelbert.data.sources.streaming import iter_json_array
from pixelbert.errors import PixelBertError

REGIONS = "Visual Genome's region_descriptions.json"
IMAGE_DATA = "Visual Genome's image_data.json"
FOLDERS = ("VG_100K", "VG_100K_2")


@dataclass(kw_only=True)
class VisualGenome:
    """Visual Genome's region descriptions, all in the split "train".

    Images that evaluation splits of other data sets use are left out. The region file (about 700 MB) is read
    one image at a time; image_data.json takes about 200 MB of memory.

    Attributes:
        regions: region_descriptions.json, unpacked.
        image_data: image_data.json, unpacked; tells which images are COCO's and Flickr's.
        images: the folder that holds VG_100K and VG_100K_2.
        exclude: evaluation sets whose images are left out: prepared data sets, or Karpathy, COCO captions or
            VQA JSON.
        allow_leaks: keep the images that are in evaluation sets too.
    """

    regions: Path
    image_data: Path
    images: Path
    exclude: list[Path] = field(default_factory=list)
    allow_leaks: bool = False

    def files(self) -> list[Path]:
        """The two JSON files, and those among `exclude` that are files."""
        return [
            Path(self.regions),
            Path(self.image_data),
            *(p for p in map(Path, self.exclude) if p.is_file()),
        ]

    def read(self) -> Reading:
        """Opens the JSON; see `Source`."""
        if not self.exclude and not self.allow_leaks:
            raise PixelBertError(
                "Visual Genome shares about half of its images with COCO, and some with Flickr30K: a model "
                "pre-trained "
                "on them has seen the test photos of COCO, VQA and Flickr30K. Name the evaluation sets with "
                "--exclude "
                "(prepared data sets, or Karpathy, COCO captions or VQA JSON), or say --allow-leaks"
            )
        if self.exclude and self.allow_leaks:
            raise PixelBertError("--exclude and --allow-leaks contradict each other: give one of them")
        tested = tested_images(self.exclude)
        path = Path(self.image_data)
        rows = read_json(path)
        require(rows, path, list, {}, IMAGE_DATA)
        facts = {str(as_id(row.get("image_id"))): row for row in rows if isinstance(row, dict)}
        if not any("coco_id" in row for row in facts.values()):
            raise PixelBertError(f"{path}: expected {IMAGE_DATA}, an array of objects with image_id and coco_id")
        return Reading("vg", self._records(facts, tested), len(facts))

    def _records(self, facts: dict[str, dict[str, Any]], tested: TestedImages) -> Iterator[ImageRecord | Skip]:
        path = Path(self.regions)
        for row, item in enumerate(iter_json_array(path, REGIONS)):
            if row == 0:
                require([item], path, list, {}, REGIONS)
                if not isinstance(item, dict) or "regions" not in item:
                    raise PixelBertError(f"{path}: expected {REGIONS}, an array of objects with id and regions")
            where = Where(path, f"[{row}]")
            problem = _image_problem(item, facts)
            if problem:
                yield Skip("image", "malformed image entry", problem, where)
                continue
            number = str(as_id(item["id"]))
            leak = _leak(facts[number], tested)
            if leak:
                yield Skip("image", "image of an evaluation set", f"vg:{number} is {leak}", where, bad=False)
                continue
            record = ImageRecord(f"vg:{number}", self._path(number, facts[number]), "train", where)
            for index, region in enumerate(item["regions"]):
                here = Where(path, f"[{row}].regions[{index}]")
                problem = _region_problem(region)
                if problem:
                    yield Skip("sentence", "malformed sentence entry", problem, here)
                else:
                    record.sentences.append(Sentence(f"vg:{as_id(region['region_id'])}", region["phrase"], here))
            yield record

    def _path(self, number: str, facts: dict[str, Any]) -> str:
        """The photo's path below `images`: in the folder that its address names, or else in the other."""
        named = re.search(r"/(VG_100K(?:_2)?)/", str(facts.get("url", "")))
        folders = sorted(FOLDERS, key=lambda folder: named is None or folder != named.group(1))
        paths = [f"{folder}/{number}.jpg" for folder in folders]
        return next((path for path in paths if (Path(self.images) / path).is_file()), paths[0])


def _leak(facts: dict[str, Any], tested: TestedImages) -> str:
    coco, flickr = as_id(facts.get("coco_id")), as_id(facts.get("flickr_id"))
    if coco in tested.coco:
        return f"COCO's image {coco}"
    return f"Flickr's photo {flickr}" if flickr in tested.flickr else ""


def _image_problem(item: Any, facts: dict[str, dict[str, Any]]) -> str:
    if not isinstance(item, dict):
        return f"expected an object, found {short(item)}"
    for key in ("id", "regions"):
        if key not in item:
            return f"the key {key!r} is missing"
    number = as_id(item["id"])
    if number is None or not number.isdigit():
        return f"'id' is {short(item['id'])}, not a number"
    if number not in facts:
        return f"image {number} is not in image_data.json, so nobody can tell whether it is in an evaluation set"
    if not isinstance(item["regions"], list):
        return f"'regions' is {short(item['regions'])}, not an array"
    return ""


def _region_problem(region: Any) -> str:
    if not isinstance(region, dict):
        return f"expected an object, found {short(region)}"
    for key in ("region_id", "phrase"):
        if key not in region:
            return f"the key {key!r} is missing"
    if as_id(region["region_id"]) is None:
        return f"'region_id' is {short(region['region_id'])}, not a number or short text"
    return ""

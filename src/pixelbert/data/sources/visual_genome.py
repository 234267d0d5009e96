"""Visual Genome: region descriptions, about 50 an image, for pre-training (paper 4.1); questions and answers."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixelbert.data.sources.answers import list_rule, read_answers
from pixelbert.data.sources.common import (
    ImageFile,
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
from pixelbert.data.store import QUESTION_ANSWERING
from pixelbert.errors import PixelBertError
from pixelbert.metrics.vqa import ANSWER_RULES, AnswerRule

REGIONS = "Visual Genome's region_descriptions.json"
QUESTION_ANSWERS = "Visual Genome's question_answers.json"
IMAGE_DATA = "Visual Genome's image_data.json"
FOLDERS = ("VG_100K", "VG_100K_2")


@dataclass(kw_only=True)
class _Genome:
    """What every part of Visual Genome needs: its images, without those that evaluation sets use.

    Attributes:
        image_data: image_data.json, unpacked; tells which images are COCO's and Flickr's.
        images: the folder that holds VG_100K and VG_100K_2.
        exclude: evaluation sets whose images are left out: prepared data sets, or Karpathy, COCO captions or
            VQA JSON.
        allow_leaks: keep the images that are in evaluation sets too.
    """

    image_data: Path
    images: Path
    exclude: list[Path] = field(default_factory=list)
    allow_leaks: bool = False

    def _files(self, *first: Path) -> list[Path]:
        return [*map(Path, first), Path(self.image_data), *(p for p in map(Path, self.exclude) if p.is_file())]

    def _tested(self) -> TestedImages:
        """The images that are to be left out; raises PixelBertError if nobody has said which."""
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
        return tested_images(self.exclude)

    def _facts(self) -> dict[str, dict[str, Any]]:
        """What image_data.json says of each image."""
        path = Path(self.image_data)
        rows = read_json(path)
        require(rows, path, list, {}, IMAGE_DATA)
        # Version 1.0 has `id` where later ones have `image_id`.
        facts = {str(as_id(row.get("image_id", row.get("id")))): row for row in rows if isinstance(row, dict)}
        facts.pop("None", None)
        if not any("coco_id" in row for row in facts.values()):
            raise PixelBertError(f"{path}: expected {IMAGE_DATA}, an array of objects with image_id and coco_id")
        return facts

    def _entries(
        self, path: Path, key: str, expected: str, facts: dict[str, dict[str, Any]], tested: TestedImages
    ) -> Iterator[Skip | tuple[ImageRecord, list[Any]]]:
        """Each image's record without sentences, and what the file has under `key` to make them of."""
        for row, item in enumerate(iter_json_array(path, expected)):
            if row == 0:
                require([item], path, list, {}, expected)
                if not isinstance(item, dict) or key not in item:
                    raise PixelBertError(f"{path}: expected {expected}, an array of objects with id and {key}")
            where = Where(path, f"[{row}]")
            problem = _image_problem(item, key, facts)
            if problem:
                yield Skip("image", "malformed image entry", problem, where)
                continue
            number = str(as_id(item["id"]))
            leak = _leak(facts[number], tested)
            if leak:
                yield Skip("image", "image of an evaluation set", f"vg:{number} is {leak}", where, bad=False)
                continue
            image = ImageFile(f"vg:{number}", self._path(number, facts[number]))
            yield ImageRecord((image,), "train", where), item[key]

    def _path(self, number: str, facts: dict[str, Any]) -> str:
        """The photo's path below `images`: in the folder that its address names, or else in the other."""
        named = re.search(r"/(VG_100K(?:_2)?)/", str(facts.get("url", "")))
        folders = sorted(FOLDERS, key=lambda folder: named is None or folder != named.group(1))
        paths = [f"{folder}/{number}.jpg" for folder in folders]
        return next((path for path in paths if (Path(self.images) / path).is_file()), paths[0])


@dataclass(kw_only=True)
class VisualGenome(_Genome):
    """Visual Genome's region descriptions, all in the split "train".

    Images that evaluation splits of other data sets use are left out. The region file (about 700 MB) is read
    one image at a time; image_data.json takes about 200 MB of memory.

    Attributes:
        regions: region_descriptions.json, unpacked.
    """

    regions: Path

    def files(self) -> list[Path]:
        """The two JSON files, and those among `exclude` that are files."""
        return self._files(self.regions)

    def read(self) -> Reading:
        """Opens the JSON; see `Source`."""
        tested, facts = self._tested(), self._facts()
        return Reading("vg", self._records(facts, tested), len(facts))

    def _records(self, facts: dict[str, dict[str, Any]], tested: TestedImages) -> Iterator[ImageRecord | Skip]:
        for entry in self._entries(Path(self.regions), "regions", REGIONS, facts, tested):
            if isinstance(entry, Skip):
                yield entry
                continue
            record, regions = entry
            for index, region in enumerate(regions):
                here = Where(record.where.file, f"{record.where.place}.regions[{index}]")
                problem = _entry_problem(region, "region_id", "phrase")
                if problem:
                    yield Skip("sentence", "malformed sentence entry", problem, here)
                else:
                    number = as_id(region[_id_key(region, "region_id")])
                    record.sentences.append(Sentence(f"vg:{number}", region["phrase"], here))
            yield record


@dataclass(kw_only=True)
class VisualGenomeQa(_Genome):
    """Visual Genome's questions and answers, all in the split "train": more to train question answering on.

    Each has one answer. Kept are those whose normalised answer is among the answers that the model chooses from,
    compared by VQA's rule, or by that of the prepared data set which they are taken from.
    Images that evaluation splits of other data sets use are left out.

    Attributes:
        question_answers: question_answers.json, unpacked.
        answers: the answers that the model chooses from: the prepared VQA v2 data set, or a JSON list.
    """

    question_answers: Path
    answers: Path

    def files(self) -> list[Path]:
        """The two JSON files, that of the answers, and those among `exclude` that are files."""
        return self._files(self.question_answers, *(p for p in (Path(self.answers),) if p.is_file()))

    def read(self) -> Reading:
        """Opens the JSON; see `Source`."""
        rule = list_rule(self.answers) or "official"
        answers = read_answers(self.answers, rule)
        tested, facts = self._tested(), self._facts()
        left_out: Counter[str] = Counter()
        records = self._records(facts, tested, frozenset(answers), rule, left_out)
        return Reading("vg-qa", records, len(facts), QUESTION_ANSWERING, answers, rule, left_out)

    def _records(
        self,
        facts: dict[str, dict[str, Any]],
        tested: TestedImages,
        known: frozenset[str],
        rule: AnswerRule,
        left_out: Counter[str],
    ) -> Iterator[ImageRecord | Skip]:
        for entry in self._entries(Path(self.question_answers), "qas", QUESTION_ANSWERS, facts, tested):
            if isinstance(entry, Skip):
                yield entry
                continue
            record, pairs = entry
            for index, pair in enumerate(pairs):
                here = Where(record.where.file, f"{record.where.place}.qas[{index}]")
                problem = _entry_problem(pair, "qa_id", "question", "answer")
                if not problem and not isinstance(pair["answer"], str):
                    problem = f"'answer' is {short(pair['answer'])}, not text"
                if problem:
                    yield Skip("sentence", "malformed sentence entry", problem, here)
                elif ANSWER_RULES[rule](pair["answer"]) not in known:
                    left_out["question whose answer is not among the answers"] += 1
                else:
                    targets = {"answers": [pair["answer"]]}
                    number = as_id(pair[_id_key(pair, "qa_id")])
                    record.sentences.append(Sentence(f"vg-qa:{number}", pair["question"], here, targets))
            yield record


def _leak(facts: dict[str, Any], tested: TestedImages) -> str:
    coco, flickr = as_id(facts.get("coco_id")), as_id(facts.get("flickr_id"))
    if coco in tested.coco:
        return f"COCO's image {coco}"
    return f"Flickr's photo {flickr}" if flickr in tested.flickr else ""


def _image_problem(item: Any, entries: str, facts: dict[str, dict[str, Any]]) -> str:
    if not isinstance(item, dict):
        return f"expected an object, found {short(item)}"
    for key in ("id", entries):
        if key not in item:
            return f"the key {key!r} is missing"
    number = as_id(item["id"])
    if number is None or not number.isdigit():
        return f"'id' is {short(item['id'])}, not a number"
    if number not in facts:
        return f"image {number} is not in image_data.json, so nobody can tell whether it is in an evaluation set"
    if not isinstance(item[entries], list):
        return f"{entries!r} is {short(item[entries])}, not an array"
    return ""


def _id_key(entry: dict[str, Any], key: str) -> str:
    """Where a region or question has its number: version 1.0 calls it `id`."""
    return "id" if key not in entry and "id" in entry else key


def _entry_problem(entry: Any, id_key: str, *others: str) -> str:
    if not isinstance(entry, dict):
        return f"expected an object, found {short(entry)}"
    id_key = _id_key(entry, id_key)
    for key in (id_key, *others):
        if key not in entry:
            return f"the key {key!r} is missing"
    if as_id(entry[id_key]) is None:
        return f"{id_key!r} is {short(entry[id_key])}, not a number or short text"
    return ""

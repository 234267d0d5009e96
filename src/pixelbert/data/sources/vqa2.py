"""VQA v2 from its official files: questions, the ten answers of each, and COCO's photos (paper 4.2, Table 2).

The files are read one entry at a time, since the annotations of train alone would take gigabytes as objects.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern
from typing import Annotated, Any, NamedTuple

from pixelbert.bounds import COUNT
from pixelbert.data.sources.answers import common_answers, read_answers
from pixelbert.data.sources.common import (
    ImageFile,
    ImageRecord,
    Reading,
    Sentence,
    Skip,
    Where,
    check_name,
    short,
)
from pixelbert.data.sources.exclusion import Exclusion
from pixelbert.data.sources.streaming import iter_json_array
from pixelbert.data.store import QUESTION_ANSWERING
from pixelbert.errors import PixelBertError
from pixelbert.metrics.vqa import ANNOTATORS

QUESTIONS = "VQA v2 questions, such as v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "VQA v2 annotations, such as v2_mscoco_train2014_annotations.json"
# The subset that an official file says it is of: our split, and COCO's folder and file names.
SUBSETS = {
    "train2014": ("train", "train2014"),
    "val2014": ("val", "val2014"),
    "test2015": ("test", "test2015"),
    "test-dev2015": ("test_dev", "test2015"),
}
ANNOTATED = ("train", "val")


class _Question(NamedTuple):
    row: int
    question_id: int
    text: Any


class _Annotation(NamedTuple):
    row: int
    image_id: Any
    answers: tuple[str, ...]
    common: str
    answer_type: Any
    question_type: Any


class _BadAnnotation(NamedTuple):
    row: int
    problem: str
    reason: str


@dataclass
class _Annotations:
    """One annotations file, by question."""

    path: Path
    of: dict[int, _Annotation | _BadAnnotation] = field(default_factory=dict)
    skips: list[Skip] = field(default_factory=list)
    without_common: int = 0  # annotations that don't say the most common answer

    def commons(self) -> Iterator[str]:
        """The most common answer of each question.

        Raises:
            PixelBertError: no annotation can be used; says why the first cannot.
        """
        bad = next((note for note in self.of.values() if isinstance(note, _BadAnnotation)), None)
        if bad is not None and not any(isinstance(note, _Annotation) for note in self.of.values()):
            raise PixelBertError(f"{self.path}: no annotation can be used; annotations[{bad.row}]: {bad.reason}")
        return (note.common for note in self.of.values() if isinstance(note, _Annotation))


@dataclass
class _Questions:
    """One questions file: its split, COCO's folder, and the questions of each image in order of appearance."""

    path: Path
    split: str
    folder: str
    of: dict[int, list[_Question]] = field(default_factory=dict)
    skips: list[Skip] = field(default_factory=list)

    def photo(self, image_id: int) -> str:
        """Where COCO has an image of these questions."""
        return f"{self.folder}/COCO_{self.folder}_{image_id:012d}.jpg"

    def where(self, image_id: int) -> Where:
        """Where an image is first asked about."""
        return Where(self.path, f"questions[{self.of[image_id][0].row}] (image_id {image_id})")


@dataclass(kw_only=True)
class Vqa2:
    """VQA v2 as downloaded: train, val, test and test-dev, each if its questions are given.

    The answers that a model chooses from are those that at least `min_count` questions of train and val have as
    their most common one (3,129 of the whole VQA v2). A question without any of them stays, and counts as wrong.

    Attributes:
        questions: the questions of each split, v2_OpenEnded_mscoco_train2014_questions.json and so on.
        annotations: the answers of train and val, v2_mscoco_train2014_annotations.json and so on.
        images: the folder that holds COCO's train2014, val2014 and test2015.
        answers: the answers that a model chooses from: a JSON list, or a prepared data set to take them from.
            Collected from the annotations if left out.
        min_count: an answer that fewer questions have is not among the answers collected.
        exclude: folders of photos, and splits of prepared data sets ("DIR:SPLIT,SPLIT"), that are left out here with
            all their questions and annotations, known by their file names (COCO_val2014_000000000872.jpg): those that
            are to be shown or measured later.
        name: the data set's name. `evaluate` tells splits that were learned from by it, so parts that are made with
            `exclude` need names of their own.
    """

    questions: list[Path]
    annotations: list[Path] = field(default_factory=list)
    images: Path
    answers: Path | None = None
    min_count: Annotated[int, COUNT] = 9
    name: str = "vqa2"
    exclude: list[str] = field(default_factory=list)

    def files(self) -> list[Path]:
        """The JSON files, that of the answers too."""
        answers = [self.answers] if self.answers is not None and Path(self.answers).is_file() else []
        return [Path(path) for path in (*self.questions, *self.annotations, *answers)]

    def read(self) -> Reading:
        """Opens the JSON; see `Source`."""
        if not self.questions:
            raise PixelBertError(f"no questions: name the files with --questions '[...]', {QUESTIONS}")
        annotations: dict[str, _Annotations] = {}
        for path in map(Path, self.annotations):
            split, read = _read_annotations(path)
            if split in annotations:
                raise PixelBertError(f"{path} and {annotations[split].path} are both annotations of {split}: give one")
            annotations[split] = read
        questions = [_read_questions(path) for path in map(Path, self.questions)]
        _check_splits(questions, annotations)
        exclusion = Exclusion(self.exclude)
        for file in questions:
            _leave_out(exclusion, file, annotations.get(file.split))
        exclusion.check(*(file.path for file in questions))
        if self.answers is not None:
            answers = read_answers(self.answers)
        else:
            given = (common for notes in annotations.values() for common in notes.commons())
            answers = common_answers(given, self.min_count, self.questions[0])
        notes = [
            f"{read.path.name}: {read.without_common:,} annotations without 'multiple_choice_answer': the most "
            "frequent of the ten is taken"
            for read in annotations.values()
            if read.without_common
        ]
        records = self._records(questions, annotations)
        total = sum(len(file.of) for file in questions)
        return Reading(check_name(self.name), records, total, task=QUESTION_ANSWERING, answers=answers, notes=notes)

    def _records(
        self, questions: list[_Questions], annotations: dict[str, _Annotations]
    ) -> Iterator[ImageRecord | Skip]:
        for file in questions:
            notes = annotations.get(file.split)
            yield from file.skips
            yield from notes.skips if notes else ()
            for image_id, asked in file.of.items():
                image = ImageFile(f"coco:{image_id}", file.photo(image_id))
                record = ImageRecord((image,), file.split, file.where(image_id))
                for question in asked:
                    here = Where(file.path, f"questions[{question.row}]")
                    sentence = _sentence(question, image_id, here, notes)
                    if isinstance(sentence, Skip):
                        yield sentence
                    else:
                        record.sentences.append(sentence)
                yield record
            if notes:
                known = {question.question_id for asked in file.of.values() for question in asked}
                for question_id, note in notes.of.items():
                    if question_id not in known:
                        reason = f"question_id {question_id} is not in {file.path}"
                        where = Where(notes.path, f"annotations[{note.row}]")
                        yield Skip("sentence", "annotation without question", reason, where)


def _leave_out(exclusion: Exclusion, file: _Questions, annotations: _Annotations | None) -> None:
    """Takes away the images that are left out, with their questions and these questions' annotations."""
    for image_id in list(file.of):
        skip = exclusion.skip(file.photo(image_id), file.where(image_id))
        if skip:
            file.skips.append(skip)
            for question in file.of.pop(image_id):
                if annotations is not None:
                    annotations.of.pop(question.question_id, None)


def _sentence(question: _Question, image_id: int, where: Where, annotations: _Annotations | None) -> Sentence | Skip:
    """A question with its answers, if its split has answers."""
    name = f"question_id {question.question_id}"
    if annotations is None:
        return Sentence(f"vqa2:{question.question_id}", question.text, where, {"answers": []})
    note = annotations.of.get(question.question_id)
    if note is None:
        return Skip("sentence", "question without annotation", f"{name} is not in {annotations.path}", where)
    place = Where(annotations.path, f"annotations[{note.row}]")
    if isinstance(note, _BadAnnotation):
        return Skip("sentence", note.problem, note.reason, place)
    if note.image_id != image_id:
        reason = f"{name} is about image_id {image_id}, and its annotation about {short(note.image_id)}"
        return Skip("sentence", "annotation of another image", reason, place)
    targets = {
        "answers": list(note.answers),
        "answer_type": note.answer_type,
        "question_type": note.question_type,
    }
    return Sentence(f"vqa2:{question.question_id}", question.text, where, targets)


def _check_splits(questions: list[_Questions], annotations: dict[str, _Annotations]) -> None:
    paths: dict[str, Path] = {}
    for file in questions:
        if file.split in paths:
            raise PixelBertError(f"{file.path} and {paths[file.split]} are both questions of {file.split}: give one")
        paths[file.split] = file.path
        if file.split in ANNOTATED and file.split not in annotations:
            raise PixelBertError(f"{file.path}: the questions of {file.split} need their answers: add --annotations")
    for split, notes in annotations.items():
        if split not in paths:
            raise PixelBertError(f"{notes.path}: annotations of {split}, of which no questions were given")


def _read_questions(path: Path) -> _Questions:
    head: dict[str, Any] = {}
    read = _Questions(path, "", "")
    for row, item in enumerate(iter_json_array(path, QUESTIONS, "questions", head)):
        problem = _problem(item, ("question_id", "image_id"), ("question",))
        if problem:
            read.skips.append(Skip("sentence", "malformed question entry", problem, Where(path, f"questions[{row}]")))
            continue
        read.of.setdefault(item["image_id"], []).append(_Question(row, item["question_id"], item["question"]))
    read.split, read.folder = SUBSETS[_subset(path, head)]
    return read


def _read_annotations(path: Path) -> tuple[str, _Annotations]:
    head: dict[str, Any] = {}
    read = _Annotations(path)
    for row, item in enumerate(iter_json_array(path, ANNOTATIONS, "annotations", head)):
        problem = _problem(item, ("question_id",), ())
        if problem:
            where = Where(path, f"annotations[{row}]")
            read.skips.append(Skip("sentence", "malformed annotation", problem, where))
            continue
        number = item["question_id"]
        if number in read.of:
            reason = f"question_id {number} was annotated in annotations[{read.of[number].row}] already"
            where = Where(path, f"annotations[{row}]")
            read.skips.append(Skip("sentence", "duplicate annotation", reason, where))
            continue
        read.of[number] = note = _annotation(row, item)
        read.without_common += isinstance(note, _Annotation) and "multiple_choice_answer" not in item
    return SUBSETS[_subset(path, head)][0], read


def _annotation(row: int, item: dict[str, Any]) -> _Annotation | _BadAnnotation:
    """An annotation in little memory: there are few different answers, and each is kept once."""
    name = f"question_id {item['question_id']}"
    answers = item.get("answers")
    common = item.get("multiple_choice_answer", "")  # which OK-VQA does not have
    if not isinstance(common, str):
        reason = f"{name}: 'multiple_choice_answer' is {short(common)}, not text"
        return _BadAnnotation(row, "malformed annotation", reason)
    if not isinstance(answers, list):
        return _BadAnnotation(row, "malformed annotation", f"{name}: 'answers' is {short(answers)}, not an array")
    if len(answers) != ANNOTATORS:
        return _BadAnnotation(
            row, "answers are not ten", f"{name} has {len(answers)} answers, where VQA v2 has {ANNOTATORS}"
        )
    texts = [answer.get("answer") if isinstance(answer, dict) else None for answer in answers]
    odd = next((place for place, text in enumerate(texts) if not isinstance(text, str)), None)
    if odd is not None:
        reason = f"{name}: answers[{odd}] is {short(answers[odd])}, without text under 'answer'"
        return _BadAnnotation(row, "malformed annotation", reason)
    if "multiple_choice_answer" not in item:
        common = str(Counter(texts).most_common(1)[0][0])  # of several as frequent, the first
    kinds = [item.get(key) for key in ("answer_type", "question_type")]
    return _Annotation(
        row,
        item.get("image_id"),
        tuple(intern(text) for text in texts if isinstance(text, str)),
        intern(common),
        *(intern(kind) if isinstance(kind, str) else kind for kind in kinds),
    )


def _problem(item: Any, numbers: tuple[str, ...], others: tuple[str, ...]) -> str:
    if not isinstance(item, dict):
        return f"expected an object, found {short(item)}"
    name = f" (question_id {short(item['question_id'])})" if "question_id" in item else ""
    for key in (*numbers, *others):
        if key not in item:
            return f"the key {key!r} is missing{name}"
    for key in numbers:
        number = item[key]
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 10**12:
            return f"{key!r} is {short(number)}, not a number of VQA v2{name}"
    return ""


def _subset(path: Path, head: dict[str, Any]) -> str:
    """Which part of VQA v2 a file is of: what it says itself, or else its name."""
    said = head.get("data_subtype")
    if said is None:
        found = set(re.findall(r"(?<![A-Za-z])(?:(?:train|val)2014|test(?:-dev)?2015)(?![0-9])", path.name))
        said = found.pop() if len(found) == 1 else None
    if not isinstance(said, str) or said not in SUBSETS:
        what = "neither 'data_subtype' nor its name tells" if said is None else f"'data_subtype' is {short(said)}:"
        raise PixelBertError(
            f"{path}: {what} which part of VQA v2 this is; expected {', '.join(SUBSETS)}. For data of your own use "
            "`pixelbert prepare vqa-csv`"
        )
    return said

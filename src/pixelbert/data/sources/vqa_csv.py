"""A user's own questions and answers about photos, in a plain table."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pixelbert.data.sources.answers import common_answers, read_answers
from pixelbert.data.sources.common import ImageRecord, Reading, Sentence, Skip, check_name, short
from pixelbert.data.sources.exclusion import Exclusion
from pixelbert.data.sources.tables import Form, HashSplit, ImageRows, read_table
from pixelbert.data.store import QUESTION_ANSWERING
from pixelbert.metrics.vqa import normalise_answer

FORM = Form(
    "a table with the columns image, question and, if you like, answer (or answers) and split",
    (("image",), ("question",)),
)


@dataclass(kw_only=True)
class VqaCsv:
    """Your own questions about photos: a CSV or JSONL table of image, question, answer (or answers), perhaps split.

    Several answers to a question stand in one CSV field with | between them, and in JSONL in a list. Without a
    split every image is put into train, val or test by a hash of its name, all its questions with it.

    Attributes:
        questions: the table; or one table a split, '{train: train.jsonl, test: test.jsonl}'.
        images: the folder that the column `image` starts from.
        answers: the answers that a model chooses from: a JSON list, or a prepared data set to take them from.
            Collected from the questions if left out.
        min_count: an answer that fewer questions have is not among the answers collected.
        answers_from: the splits whose answers are collected.
        val: share of the images that go to the split "val", where nothing says a split.
        test: share of the images that go to the split "test", where nothing says a split.
        seed: another number gives another random split.
        name: the data set's name.
        exclude: folders of photos, and splits of prepared data sets ("DIR:SPLIT,SPLIT"), that are left out here with
            all their questions, known by their file names: those that are to be shown or measured later.
    """

    questions: dict[str, Path] | Path
    images: Path
    answers: Path | None = None
    min_count: int = 1
    answers_from: list[str] = field(default_factory=lambda: ["train"])
    val: float = 0.05
    test: float = 0.05
    seed: int = 0
    name: str = "vqa"
    exclude: list[str] = field(default_factory=list)

    def files(self) -> list[Path]:
        """The tables, and the file of answers."""
        tables = [path for _, path in self._tables()]
        return [*tables, *(p for p in (self.answers,) if p is not None and Path(p).is_file())]

    def read(self) -> Reading:
        """Opens the tables; see `Source`."""
        name = check_name(self.name)
        images = ImageRows(name, FORM, HashSplit(self.val, self.test, self.seed))
        exclusion, left_out = Exclusion(self.exclude), dict[PurePosixPath, Skip]()
        skips = [skip for split, path in self._tables() for skip in _gather(images, path, split, exclusion, left_out)]
        exclusion.check(*(path for _, path in self._tables()))
        records = list(images.records.values())
        if self.answers is not None:
            answers = read_answers(self.answers)
        else:
            answers = common_answers(self._collected(records), self.min_count, self._tables()[0][1])
        return Reading(name, iter([*skips, *left_out.values(), *records]), task=QUESTION_ANSWERING, answers=answers)

    def _tables(self) -> list[tuple[str | None, Path]]:
        if isinstance(self.questions, dict):
            return [(split, Path(path)) for split, path in self.questions.items()]
        return [(None, Path(self.questions))]

    def _collected(self, records: list[ImageRecord]) -> Iterator[str]:
        """Each question's different answers, of the splits that answers are collected from."""
        for record in records:
            if record.split in self.answers_from:
                for sentence in record.sentences:
                    yield from dict.fromkeys(map(normalise_answer, sentence.targets["answers"]))


def _gather(
    images: ImageRows, path: Path, split: str | None, exclusion: Exclusion, left_out: dict[PurePosixPath, Skip]
) -> Iterator[Skip]:
    """Adds a table's questions to the images' records, and photos to those left out, whatever their rows are like;
    yields the rows that cannot be used."""
    for where, row in read_table(path, FORM):
        photo = row.get("image") if isinstance(row, dict) else None
        if isinstance(photo, str) and (skip := exclusion.skip(photo, where)):
            left_out.setdefault(PurePosixPath(photo), skip)  # once, however many questions it has
            continue
        record = images.place(where, row, split)
        if isinstance(record, Skip):
            yield record
            continue
        assert isinstance(row, dict)
        try:
            answers = _answers(row, several=path.suffix.lower() == ".csv")
        except ValueError as error:
            yield Skip("sentence", "malformed answer", str(error), where)
            continue
        sentence_id = f"{record.images[0].image_id}#{len(record.sentences)}"
        record.sentences.append(Sentence(sentence_id, row["question"], where, {"answers": answers}))


def _answers(row: dict[str, object], several: bool) -> list[str]:
    """A row's answers; `several` may stand in one field with | between them. None at all where the field is empty."""
    value = row.get("answers", row.get("answer"))
    if isinstance(value, str):
        value = value.split("|") if several else [value]
    elif value is None or (isinstance(value, int) and not isinstance(value, bool)):
        value = [] if value is None else [value]
    if not isinstance(value, list) or not all(isinstance(v, str | int) and not isinstance(v, bool) for v in value):
        raise ValueError(f"the answer is {short(value)}: expected text, a number, or a list of these")
    return [str(answer).strip() for answer in value if str(answer).strip()]

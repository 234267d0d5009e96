"""A user's own questions and answers about photos, in a plain table."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated

from pixelbert.bounds import COUNT, SEED, SHARE
from pixelbert.data.sources.answers import common_answers, list_rule, read_answers
from pixelbert.data.sources.common import ImageRecord, Reading, Sentence, Skip, check_name, short
from pixelbert.data.sources.exclusion import Exclusion
from pixelbert.data.sources.tables import Form, HashSplit, ImageRows, Row, first_value, read_table
from pixelbert.data.sources.words import is_missing, is_missing_answer
from pixelbert.data.store import QUESTION_ANSWERING
from pixelbert.metrics.vqa import ANSWER_RULES, AnswerRule

FORM = Form(
    "a table with the columns image, question and, if you like, answer (or answers) and split",
    (("image",), ("question",)),
)


@dataclass(kw_only=True)
class VqaCsv:
    """Your own questions about photos: a table (CSV, TSV, JSONL) of image, question, answer (or answers), split.

    Several answers to a question stand in one CSV field with | between them, and in JSONL in a list. Without a
    split every image is put into train, val or test by a hash of its name, all its questions with it.

    Attributes:
        questions: the table; or one table a split, '{train: train.jsonl, test: test.jsonl}'.
        images: the folder that the column `image` starts from.
        answers: the answers that a model chooses from: a JSON list, or a prepared data set to take them from.
            Collected from the questions if left out.
        answer_rule: how answers are compared, when they are collected, learned and measured. mild: capitals and spaces
            don't count; official: VQA's rules, by which "two" is "2", "a cat" is "cat", and "-5" is "5"; exact: as they
            are written. If null, as the prepared data set in `answers` does, or else mild.
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
    answer_rule: AnswerRule | None = None
    min_count: Annotated[int, COUNT] = 1
    answers_from: list[str] = field(default_factory=lambda: ["train"])
    val: Annotated[float, SHARE] = 0.05
    test: Annotated[float, SHARE] = 0.05
    seed: Annotated[int, SEED] = 0
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
        exclusion, excluded = Exclusion(self.exclude), dict[PurePosixPath, Skip]()
        notes: list[str] = []
        left_out: Counter[str] = Counter()
        skips: list[Skip] = []
        for split, path in self._tables():
            rows = read_table(path, FORM, notes)
            skips += _gather(images, rows, path.suffix.lower() != ".jsonl", split, exclusion, excluded, left_out)
        notes += images.notes()
        exclusion.check(*(path for _, path in self._tables()))
        rule = self.answer_rule or list_rule(self.answers) or "mild"
        records = list(images.records.values())
        if self.answers is not None:
            answers = read_answers(self.answers, rule)
        else:
            answers = common_answers(self._collected(records, rule), self.min_count, self._tables()[0][1], rule)
        return Reading(
            name,
            iter([*skips, *excluded.values(), *records]),
            task=QUESTION_ANSWERING,
            answers=answers,
            answer_rule=rule,
            left_out=left_out,
            notes=notes,
        )

    def _tables(self) -> list[tuple[str | None, Path]]:
        if isinstance(self.questions, dict):
            return [(split, Path(path)) for split, path in self.questions.items()]
        return [(None, Path(self.questions))]

    def _collected(self, records: list[ImageRecord], rule: AnswerRule) -> Iterator[str]:
        """Each question's different answers, of the splits that answers are collected from. Nothing is no answer."""
        for record in records:
            if record.split in self.answers_from:
                for sentence in record.sentences:
                    yield from filter(None, dict.fromkeys(map(ANSWER_RULES[rule], sentence.targets["answers"])))


def _gather(
    images: ImageRows,
    rows: list[Row],
    several: bool,
    split: str | None,
    exclusion: Exclusion,
    excluded: dict[PurePosixPath, Skip],
    left_out: Counter[str],
) -> Iterator[Skip]:
    """Adds a table's questions to the images' records, and photos to those excluded, whatever their rows are like;
    yields the rows that cannot be used, and counts the answers that are none."""
    for where, row in rows:
        photo = row.get("image") if isinstance(row, dict) else None
        if isinstance(photo, str) and (skip := exclusion.skip(photo, where)):
            excluded.setdefault(PurePosixPath(photo), skip)  # once, however many questions it has
            continue
        record = images.place(where, row, split)
        if isinstance(record, Skip):
            yield record
            continue
        assert isinstance(row, dict)
        if is_missing(row["question"]):
            yield Skip("sentence", "no question", f"{short(row['question'])} marks a missing value", where, bad=False)
            continue
        try:
            written = _answers(row, several)
        except ValueError as error:
            yield Skip("sentence", "malformed answer", str(error), where)
            continue
        answers = [answer for answer in written if not is_missing_answer(answer)]
        marked = sum(bool(answer) for answer in written) - len(answers)
        if marked:
            left_out["answer that marks a missing value"] += marked
        sentence_id = f"{record.images[0].image_id}#{len(record.sentences)}"
        record.sentences.append(Sentence(sentence_id, row["question"], where, {"answers": answers}))


def _answers(row: dict[str, object], several: bool) -> list[str]:
    """A row's answers; `several` may stand in one field with | between them. None at all where nobody knows."""
    value = first_value(row, ("answers", "answer"), is_missing_answer)
    if value is None or isinstance(value, float):
        if not is_missing_answer(value):
            raise ValueError(f"the answer is {short(value)}: expected text, a whole number, or a list of these")
        return []
    if isinstance(value, str):
        value = value.split("|") if several else [value]
    elif isinstance(value, int) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(v, str | int) and not isinstance(v, bool) for v in value):
        raise ValueError(f"the answer is {short(value)}: expected text, a whole number, or a list of these")
    return [str(answer).strip() for answer in value]

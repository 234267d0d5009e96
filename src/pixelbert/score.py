"""`pixelbert score`: any system's prediction files against the official ones, with no model."""

from __future__ import annotations

import io
import json as json_module
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from pixelbert.bounds import ZERO_OR_MORE, bounded
from pixelbert.errors import PixelBertError
from pixelbert.files import DuplicateKey, read_array, read_json, read_text, unique_keys, write_json
from pixelbert.metrics.nlvr2 import nlvr2_scores, sentence_group, truth_of
from pixelbert.metrics.retrieval import fold_recall, recall_at_k
from pixelbert.metrics.vqa import ANNOTATORS, vqa_scores

Id = TypeVar("Id", bound=Hashable)


def score_vqa(questions: Path, annotations: Path, predictions: Path, json: Path | None = None) -> dict[str, Any]:
    """Score answers to VQA questions as the official evaluator does: overall, by answer type, by question type.

    Args:
        questions: the official questions, such as v2_OpenEnded_mscoco_val2014_questions.json.
        annotations: the official annotations of the same questions, ten answers each.
        predictions: the official result format, [{"question_id": 1, "answer": "yes"}, ...], one for every question.
        json: file to write overall, per_answer_type, per_question_type and per_question to, in percent.

    Returns:
        What is written; see `vqa_scores`.

    Raises:
        PixelBertError: a file can't be read or is of another format, or the files don't agree on the questions.
    """
    asked = dict(by_question(questions, "questions"))
    annotated = dict(by_question(annotations, "annotations"))
    problems = []
    if stray := annotated.keys() - asked.keys():
        problems.append(f"question_id {listed(stray)} not in {questions}")
    if silent := asked.keys() - annotated.keys():
        problems.append(f"no annotation for question_id {listed(silent)}, which {questions} asks")
    if problems:
        raise PixelBertError(
            f"{annotations}: {'; '.join(problems)}. Give the two files of the same split. (A test split, whose "
            "annotations are secret, only the official server can score)"
        )
    answers = {i: annotators_answers(annotations, i, annotation) for i, annotation in annotated.items()}
    predicted = {i: text_of(predictions, i, row, "answer") for i, row in by_question(predictions, None)}
    same_items(predictions, predicted, asked, questions, "question_id")
    types = [
        {i: text_of(annotations, i, a, key) for i, a in annotated.items() if key in a}
        for key in ("answer_type", "question_type")
    ]
    result = vqa_scores(predicted, {i: answers[i] for i in asked}, *types)
    shown = {"overall": result["overall"]} | result["per_answer_type"]
    show(f"VQA accuracy over {len(asked):,} questions, in percent", shown)
    if json is not None:
        write_json(json, result)
    return result


def score_nlvr2(data: Path, predictions: Path, json: Path | None = None) -> dict[str, float]:
    """Score NLVR2 predictions as the official script does: accuracy over examples, consistency over sentences.

    Args:
        data: the official examples, one JSON object a line, such as dev.json or test1.json.
        predictions: CSV rows of identifier,True or identifier,False, with no header, one for every example.
        json: file to write accuracy and consistency to, in percent.

    Returns:
        What is written; see `nlvr2_scores`.

    Raises:
        PixelBertError: a file can't be read or is of another format, or an example has no prediction.
    """
    labels = unique(data, labelled_examples(data), "identifier")
    predicted = unique(predictions, judged_examples(predictions), "identifier")
    same_items(predictions, predicted, labels, data, "identifier")
    result = nlvr2_scores(predicted, labels)
    sentences = len({sentence_group(identifier) for identifier in labels})
    show(f"NLVR2 over {len(labels):,} examples of {sentences:,} sentences, in percent", result)
    if json is not None:
        write_json(json, result)
    return result


@bounded
def score_retrieval(
    scores: Path,
    image_ids: Path,
    columns: Path | None = None,
    folds: Annotated[int, ZERO_OR_MORE] = 0,
    json: Path | None = None,
) -> dict[str, Any]:
    """Recall at 1, 5 and 10, both ways, from any system's matrix of scores. Ties are broken against the system.

    Args:
        scores: .npy, a row for each caption and a column for each image; higher is better. It is read in blocks.
        image_ids: the image that each row's caption belongs to: a .json list, a .npy array, or text (.txt, .csv) with
            an id a line.
        columns: the image of each column, likewise; if null, the ids of image_ids in order of first appearance.
        folds: also the mean over so many equal folds of the columns, 5 for COCO's "1K test" of 5 x 1,000; 0 for none.
        json: file to write text_to_image_r1, ..., image_to_text_r10 to, in percent; with folds, fold_mean has the same.

    Returns:
        What is written.

    Raises:
        PixelBertError: a file can't be read, or shapes and ids don't fit.
    """
    matrix = read_matrix(scores)
    rows = read_ids(image_ids)
    names = list(dict.fromkeys(rows)) if columns is None else read_ids(columns)
    column = {name: i for i, name in enumerate(names)}
    whose = columns or image_ids
    if len(column) < len(names):
        twice = next(name for i, name in enumerate(names) if column[name] != i)
        raise PixelBertError(f"{whose}: image id {twice!r} stands there twice; a column is one image")
    if matrix.shape != (len(rows), len(names)):
        advice = "" if columns else f" ({image_ids} has {len(names):,} different ids; --columns names others)"
        raise PixelBertError(
            f"{scores} has {matrix.shape[0]:,} rows and {matrix.shape[1]:,} columns; expected {len(rows):,} rows, "
            f"a caption each, and {len(names):,} columns, an image each{advice}"
        )
    for row, name in enumerate(rows, 1):
        if name not in column:
            raise PixelBertError(f"{image_ids}, row {row}: image id {name!r} is not among the columns of {whose}")
    if captionless := set(names) - set(rows):
        raise PixelBertError(f"{whose}: no caption for image id {listed(captionless)}. Leave such columns out")
    if folds and len(names) % folds:
        raise PixelBertError(f"{scores}: {len(names):,} images do not divide into {folds} equal folds")
    owner = np.array([column[name] for name in rows])
    try:
        result: dict[str, Any] = percent(recall_at_k(matrix.T, owner))
        if folds:
            result["fold_mean"] = percent(fold_recall(matrix.T, owner, folds))
    except ValueError as error:  # such as NaN
        raise PixelBertError(f"{scores}: {error}") from error
    flat = {name: value for name, value in result.items() if name != "fold_mean"}
    show(f"Retrieval, {len(names):,} images and {len(rows):,} captions, in percent", flat)
    if folds:
        show(f"The same, mean of {folds} folds of {len(names) // folds:,} images", result["fold_mean"])
    if json is not None:
        write_json(json, result)
    return result


def by_question(file: Path, key: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of an official VQA file by question id; `key` is where the list stands, null if it is the file."""
    data = read_json(file)
    place = f"{key!r} at the top, a list" if key else "a list at the top"
    rows = data.get(key) if isinstance(data, dict) and key else data
    if not isinstance(rows, list):
        raise PixelBertError(f"{file}: expected {place} of objects with 'question_id'. Is it another file?")
    seen = set()
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or "question_id" not in row:
            raise PixelBertError(f"{file}, item {number} of the list: expected an object with 'question_id'")
        question_id = row["question_id"]
        if not isinstance(question_id, int) or isinstance(question_id, bool):
            raise PixelBertError(
                f"{file}, item {number} of the list: question_id {question_id!r} is not a whole number"
            )
        if question_id in seen:
            raise PixelBertError(f"{file}: question_id {question_id} stands there twice")
        seen.add(question_id)
        yield question_id, row
    if not rows:
        raise PixelBertError(f"{file}: the list is empty")


def annotators_answers(file: Path, question_id: int, annotation: dict[str, Any]) -> list[str]:
    """The ten answers of one annotation."""
    answers = annotation.get("answers")
    if not isinstance(answers, list) or len(answers) != ANNOTATORS:
        found = len(answers) if isinstance(answers, list) else "no"
        raise PixelBertError(f"{file}: question_id {question_id} has {found} answers, expected {ANNOTATORS}")
    return [text_of(file, question_id, a if isinstance(a, dict) else {}, "answer") for a in answers]


def text_of(file: Path, question_id: int, row: dict[str, Any], key: str) -> str:
    """The text under a key."""
    if not isinstance(row.get(key), str):
        found = f"is {row[key]!r}" if key in row else "is missing"
        raise PixelBertError(f"{file}: question_id {question_id}: {key!r} {found}, expected text")
    return str(row[key])


def labelled_examples(file: Path) -> Iterator[tuple[str, bool]]:
    """Identifier and label of each of NLVR2's examples."""
    for number, line in lines(file):
        try:
            example = json_module.loads(line, object_pairs_hook=unique_keys)
        except DuplicateKey as error:
            raise PixelBertError(f"{file}, line {number}: {error}: keep one") from None
        except (ValueError, RecursionError) as error:
            raise PixelBertError(
                f"{file}, line {number}: expected a JSON object ({error}). Was the file cut short? Copy or download "
                "it again"
            ) from None
        identifier = example.get("identifier") if isinstance(example, dict) else None
        if not isinstance(identifier, str):
            raise PixelBertError(
                f"{file}, line {number}: expected a JSON object with 'identifier', as in NLVR2's files"
            )
        try:
            sentence_group(identifier)
        except ValueError as error:
            raise PixelBertError(f"{file}, line {number}: identifier {error}") from None
        yield identifier, truth(file, number, identifier, example.get("label"))


def judged_examples(file: Path) -> Iterator[tuple[str, bool]]:
    """Identifier and prediction of each row of a CSV file; the official script, too, ignores further columns."""
    for number, line in lines(file):
        identifier, comma, rest = line.strip().partition(",")
        if not comma:
            raise PixelBertError(f"{file}, line {number}: expected identifier,True or identifier,False, found {line!r}")
        yield identifier, truth(file, number, identifier, rest.partition(",")[0])


def truth(file: Path, number: int, identifier: str, label: object) -> bool:
    """What a label says; see `truth_of`."""
    known = truth_of(label)
    if known is None:
        raise PixelBertError(f"{file}, line {number}: identifier {identifier!r} has {label!r}, expected True or False")
    return known


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    return ((number, line) for number, line in enumerate(io.StringIO(read_text(file)), 1) if line.strip())


def unique(file: Path, items: Iterable[tuple[str, bool]], what: str) -> dict[str, bool]:
    """Items as a dict, each once."""
    result: dict[str, bool] = {}
    for name, value in items:
        if name in result:
            raise PixelBertError(f"{file}: {what} {name!r} stands there twice")
        result[name] = value
    return result


def same_items(file: Path, given: Mapping[Id, object], wanted: Mapping[Id, object], source: Path, what: str) -> None:
    """Checks that predictions are of exactly the items that are scored."""
    problems = []
    if missing := wanted.keys() - given.keys():
        problems.append(f"{len(missing):,} of {len(wanted):,} have no prediction: {what} {listed(missing)}")
    if unknown := given.keys() - wanted.keys():
        problems.append(f"{what} {listed(unknown)} not in {source}")
    if problems:
        raise PixelBertError(f"{file}: {'; '.join(problems)}. Give one prediction for each in {source}, and no others")


def listed(items: Collection[Any], most: int = 5) -> str:
    """The first few items, and how many more there are."""
    few = ", ".join(str(item) for item in sorted(items)[:most])
    return few if len(items) <= most else f"{few} and {len(items) - most:,} more"


def read_matrix(file: Path) -> np.ndarray:
    """A matrix of numbers, mapped from disk."""
    matrix = read_array(file)
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise PixelBertError(f"{file}: expected a matrix of numbers, found shape {matrix.shape} of {matrix.dtype}")
    return matrix


def read_ids(file: Path) -> list[str]:
    """The ids in a file, as text, so that 7 in one file is "7" in another."""
    suffix = file.suffix.lower()
    if suffix == ".npy":
        array = read_array(file)
        if array.ndim != 1 or array.dtype.kind not in "iuU":
            raise PixelBertError(f"{file}: expected a list of ids, found shape {array.shape} of {array.dtype}")
        ids = array.tolist()
    elif suffix == ".json":
        ids = read_json(file)
        if not isinstance(ids, list):
            raise PixelBertError(f"{file}: expected a list of ids at the top")
    elif suffix in (".txt", ".csv"):
        ids = read_text(file).rstrip().split("\n")
    else:
        raise PixelBertError(f"{file}: expected ids as .json, .npy, .txt or .csv")
    for number, item in enumerate(ids, 1):
        if isinstance(item, bool) or not isinstance(item, int | str) or not str(item).strip():
            raise PixelBertError(f"{file}, row {number}: {item!r} is not an id, text or a whole number")
    return [str(item).strip() for item in ids]


def percent(recall: Mapping[str, float]) -> dict[str, float]:
    """Shares of 1 in percent."""
    return {name: 100 * value for name, value in recall.items()}


def show(title: str, figures: Mapping[str, float]) -> None:
    """A table on standard output."""
    table = Table("metric", "%")
    for name, value in figures.items():
        table.add_row(name.encode(errors="backslashreplace").decode(), f"{value:.2f}")
    console = Console(highlight=False, markup=False)
    console.print(title, table, sep="\n", soft_wrap=True)

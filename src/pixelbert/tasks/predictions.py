"""Predictions on disk while they are being made: an evaluation that is stopped goes on where it was.

DIR/evaluation.json     what is being evaluated; another evaluation on the same folder is refused
DIR/NAME.jsonl          one prediction a line; those of further processes in NAME-1.jsonl, ...
DIR/scores.npy          retrieval: (captions, images) float32, NaN where still to be done
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pixelbert.errors import PixelBertError
from pixelbert.files import read_array, read_json, write_atomically


def claim(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make the folder this evaluation's, or check that it is already.

    Raises:
        PixelBertError: it belongs to another evaluation, or holds other things.
    """
    file = folder / "evaluation.json"
    if file.exists():
        there = read_json(file)
        if not isinstance(there, dict):
            raise PixelBertError(f"{file} is not an evaluation's: choose another --output, or remove {folder}")
        different = [key for key in identity if there.get(key) != identity[key]]
        if different:
            shown = "\n".join(f"  {key}: there {there.get(key)!r}, here {identity[key]!r}" for key in different)
            raise PixelBertError(
                f"{folder} belongs to another evaluation:\n{shown}\nChoose another --output, or remove it"
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PixelBertError(f"{folder} exists and holds no evaluation; choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(identity, indent=2) + "\n")


def read_predictions(file: Path, kind: type) -> tuple[dict[str, Any], int]:
    """Predictions by example id, and how many bytes of the file they are.

    They end before a line that a kill cut short, or that is not ours: from there all is predicted again.

    Args:
        kind: what a prediction is: str or bool.
    """
    done: dict[str, Any] = {}
    whole = 0
    for line in file.read_bytes().splitlines(keepends=True) if file.exists() else []:
        try:
            row = json.loads(line)
            example_id, prediction = row["id"], row["prediction"]
        except (ValueError, TypeError, KeyError, RecursionError):
            break
        if not isinstance(example_id, str) or not isinstance(prediction, kind):
            break
        done[example_id] = prediction
        whole += len(line)
    return done, whole


class PredictionLog:
    """Predictions by example id, on disk as they come. Used as a context manager.

    Args:
        kind: what a prediction is: str or bool.

    Attributes:
        done: what is in the file, from earlier runs too.
    """

    def __init__(self, file: Path, kind: type) -> None:
        self.done, whole = read_predictions(file, kind)
        self._stream = file.open("ab")
        self._stream.truncate(whole)

    def add(self, example_id: str, prediction: Any) -> None:
        """Note one prediction."""
        self.done[example_id] = prediction
        self._stream.write(json.dumps({"id": example_id, "prediction": prediction}).encode() + b"\n")

    def __enter__(self) -> PredictionLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()


def open_scores(file: Path, captions: int, images: int) -> np.memmap:
    """(captions, images) scores on disk, NaN where still to be done."""
    if file.exists():
        found = read_array(file)  # for reading first: a file that is too short for its header would be made longer
        if found.shape != (captions, images) or found.dtype != np.float32:
            raise PixelBertError(
                f"{file} has {found.dtype} scores of shape {found.shape}, not float32 of {(captions, images)}; "
                "remove it"
            )
        return np.load(file, mmap_mode="r+")
    aside = file.with_name(file.name + ".partial")
    scores = np.lib.format.open_memmap(aside, mode="w+", dtype=np.float32, shape=(captions, images))
    scores[:] = np.nan
    scores.flush()
    aside.replace(file)
    return np.load(file, mmap_mode="r+")


def write_vqa_results(file: Path, predictions: Mapping[str, str]) -> None:
    """The JSON that VQA's evaluation server takes: a list of question_id and answer.

    Args:
        predictions: the answer to each question, by example id: the official number after the data set's name.
    """
    rows = [
        {"question_id": int(number) if (number := key.rpartition(":")[2]).isdigit() else number, "answer": answer}
        for key, answer in predictions.items()
    ]
    write_atomically(file, json.dumps(rows) + "\n")


def write_nlvr2_predictions(file: Path, predictions: Mapping[str, bool]) -> None:
    """The CSV that NLVR2's official script takes: identifier,True|False."""
    lines = [f"{key.rpartition(':')[2]},{bool(value)}\n" for key, value in predictions.items()]
    write_atomically(file, "".join(lines))


def write_run(
    file: Path, scores: np.ndarray, queries: list[str], items: list[str], *, depth: int = 100, tag: str = "pixelbert"
) -> None:
    """A ranking in the six columns of TREC's run files: query, Q0, item, place from 1, score, tag.

    Args:
        scores: (queries, items), higher is better.
        depth: how many items of each query are written.
    """
    aside = file.with_name(file.name + ".partial")
    with aside.open("w") as stream:
        for query, row in zip(queries, scores, strict=True):
            for place, item in enumerate(np.argsort(-row, kind="stable")[:depth], start=1):
                stream.write(f"{query} Q0 {items[item]} {place} {row[item]:.6f} {tag}\n")
    aside.replace(file)

"""Predictions on disk while they are being made: an evaluation that is stopped goes on where it was.

DIR/evaluation.json     what is being evaluated; another evaluation on the same folder is refused
DIR/.lock               held while an evaluation is at work there; a second one is refused
DIR/NAME.jsonl          one prediction a line; those of further processes in NAME-1.jsonl, ...
DIR/scores.npy          retrieval: (captions, images) float32, NaN where still to be done
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import numpy as np

from pixelbert.device import Share
from pixelbert.errors import PixelBertError
from pixelbert.files import exclusive, log_lines, naming, read_array, read_json, write_atomically
from pixelbert.progress import console

LOCK = ".lock"
SPACE = re.compile(r"\s")


@contextmanager
def claimed(folder: Path, identity: Mapping[str, Any] | None, share: Share) -> Iterator[None]:
    """Have the folder for this evaluation alone, while it works there; of several processes the first has it for all.

    Args:
        identity: see `claim`. None for an evaluation that keeps no predictions and may write into any folder but
            another evaluation's.

    Raises:
        PixelBertError: another evaluation is at work there, or see `claim`.
    """
    if not share.first:
        share.wait()
        yield
        return
    if identity is not None:
        must_be_free(folder)
    elif (folder / "evaluation.json").exists():
        raise PixelBertError(f"{folder} belongs to an evaluation of another task: choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"another evaluation is at work in {folder}: wait for its end, or choose another --output"
    with exclusive(folder / LOCK, busy):
        if identity is not None:
            claim(folder, identity)
        share.wait()
        yield


def must_be_free(folder: Path) -> None:
    """Check that the folder is an evaluation's, empty or not there.

    Raises:
        PixelBertError: it holds other things.
    """
    if (folder / "evaluation.json").exists() or not folder.exists():
        return
    if not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir()):
        raise PixelBertError(f"{folder} exists and holds no evaluation; choose another --output")


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
    must_be_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(identity, indent=2) + "\n")


def read_predictions(file: Path, kind: type) -> tuple[dict[str, Any], list[int]]:
    """Predictions by example id, and the numbers of the lines that are damaged. A last line without a line break,
    which a kill leaves, is left out: even if its JSON is whole, the next one would be glued on.

    Args:
        kind: what a prediction is: str or bool.
    """
    done: dict[str, Any] = {}
    damaged = []

    def is_prediction(row: dict[str, Any]) -> bool:
        return isinstance(row.get("id"), str) and isinstance(row.get("prediction"), kind)

    for number, _, row in log_lines(file, is_prediction) if file.exists() else ():
        if row is None:
            damaged.append(number)
        else:
            done[row["id"]] = row["prediction"]
    return done, damaged


def recover(file: Path, kind: type) -> dict[str, Any]:
    """Predictions of an earlier start by example id. What is damaged is told and taken out of the file.

    Each line stands for itself, so those behind a damaged one are kept.
    """
    done, damaged = read_predictions(file, kind)
    sound = "".join(prediction_line(*item) for item in done.items())
    if damaged:
        lines = f"line{'s' if len(damaged) > 1 else ''} {', '.join(map(str, damaged[:10]))}"
        more = f" and {len(damaged) - 10:,} more" if len(damaged) > 10 else ""
        console.print(f"{file}: {lines}{more} damaged; taken out, and predicted again if it is asked for")
    if file.exists() and file.read_bytes() != sound.encode():
        write_atomically(file, sound)
    return done


def prediction_line(example_id: str, prediction: Any) -> str:
    """One prediction as it stands in the file."""
    return json.dumps({"id": example_id, "prediction": prediction}) + "\n"


class PredictionLog:
    """Predictions by example id, on disk as they come. Used as a context manager.

    Args:
        kind: what a prediction is: str or bool.

    Attributes:
        done: what is in the file, from earlier runs too.
    """

    def __init__(self, file: Path, kind: type) -> None:
        self.done = recover(file, kind)
        self.file, self._stream = file, file.open("ab")

    def add(self, example_id: str, prediction: Any) -> None:
        """Note one prediction."""
        self.done[example_id] = prediction
        with naming(self.file):
            self._stream.write(prediction_line(example_id, prediction).encode())
            self._stream.flush()

    def __enter__(self) -> PredictionLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with naming(self.file):
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
    write_unknown(file, captions, images)
    return np.load(file, mmap_mode="r+")


def write_unknown(file: Path, captions: int, images: int) -> None:
    """A file of (captions, images) NaN, written out: a disk that is full is an error here, and not the end of the
    process when a page of the mapped file finds no room.
    """
    aside = file.with_name(file.name + ".partial")
    row = np.full(images, np.nan, dtype=np.float32).tobytes()
    header = {"descr": "<f4", "fortran_order": False, "shape": (captions, images)}
    try:
        with aside.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for _ in range(captions):
                stream.write(row)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(file)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise PixelBertError(
            f"{file} cannot be written ({error.strerror or error}): it takes {captions * len(row):,} bytes; make "
            "room, or choose another --output"
        ) from error


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

    Spaces part the columns: those in a name, such as an image file's, are written as %20, which is said.

    Args:
        scores: (queries, items), higher is better.
        depth: how many items of each query are written.
    """
    if spaced := sum(SPACE.search(name) is not None for name in (*queries, *items)):
        console.print(f"{file.name}: {spaced:,} names have spaces, which are written as %20")
        queries, items = ([SPACE.sub(lambda space: quote(space[0]), name) for name in of] for of in (queries, items))
    aside = file.with_name(file.name + ".partial")
    with naming(aside), aside.open("w", encoding="utf-8") as stream:
        for query, row in zip(queries, scores, strict=True):
            for place, item in enumerate(np.argsort(-row, kind="stable")[:depth], start=1):
                stream.write(f"{query} Q0 {items[item]} {place} {row[item]:.6f} {tag}\n")
    aside.replace(file)

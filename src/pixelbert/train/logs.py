"""What a run logs: DIR/metrics.jsonl and DIR/validation.jsonl, one JSON object with its `step` a line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pixelbert.errors import PixelBertError
from pixelbert.files import read_log, write_atomically
from pixelbert.progress import console
from pixelbert.train.run_folder import VALIDATION


def is_row(row: dict[str, Any]) -> bool:
    """Whether this is of a run's log."""
    return type(row.get("step")) is int


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The sound rows of a run's log, none if it is not there. Where others are damaged, it is said."""
    log = read_log(file, is_row)
    if log.damaged:
        console.print(f"{file}, line {log.damaged} is damaged: what cannot be read of this log is left out.")
    return log.rows + log.behind


def cut_back(file: Path, step: int) -> None:
    """Drop the rows of later steps, which will be written again, and a last line that a kill cut short.

    A log with a line that is damaged otherwise is kept whole under another name, and its sound rows go on.
    """
    if not file.exists():
        return
    log = read_log(file, is_row)
    if log.damaged:
        aside = set_aside(file)
        console.print(
            f"{file}, line {log.damaged} is damaged. The file is kept as {aside.name}; the log goes on with "
            f"{len(log.rows)} rows before that line and {len(log.behind)} behind it that are sound."
        )
    kept = [row for row in log.rows + log.behind if row["step"] <= step]
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in kept))


def set_aside(file: Path) -> Path:
    """Give a file a name under which nobody looks for it: metrics.jsonl.damaged, metrics.jsonl.damaged-2, ..."""
    aside, number = file.with_name(f"{file.name}.damaged"), 1
    while aside.exists():
        number += 1
        aside = file.with_name(f"{file.name}.damaged-{number}")
    return file.rename(aside)


def is_best(output: Path, name: str, row: dict[str, float]) -> bool:
    """Whether a measurement is better than those before it by one of its figures.

    Raises:
        PixelBertError: it has no such figure.
    """
    if name not in row:
        raise PixelBertError(f"keep_best is {name!r}; the validation split is measured by {', '.join(row)}")
    if not math.isfinite(row[name]):
        return False
    before = [value for row in read_rows(output / VALIDATION) if isinstance(value := row.get(name), int | float)]
    before = [value for value in before if math.isfinite(value)]
    sign = -1 if name.endswith("_loss") else 1
    return not before or sign * row[name] > max(sign * value for value in before)

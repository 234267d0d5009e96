"""A run's folder: whose it is, and who may write in it.

DIR/recipe.yaml        the whole recipe; another recipe on the same folder is refused
DIR/inputs.json        checksums of all that the recipe points at (inputs.py)
DIR/precision.json     in what it computes, where the recipe leaves that open (precision.py)
DIR/sentences.json     how many of its sentences are cut or have unknown words
DIR/tokenizer          the vocabulary, where the run learned one
DIR/trained_on.json    what the run has learned from, earlier parts of it included
DIR/metrics.jsonl      one JSON object a logged step (logs.py)
DIR/validation.jsonl   one a measurement on the validation split
DIR/checkpoints        what to go on from (checkpoint.py); checkpoints.jsonl tells which were written
DIR/curves.png         both logs, drawn when the run is finished
DIR/best               the model that did best on the validation split, where `keep_best` names a figure
DIR/final              the finished model, for from_pretrained
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from pixelbert.errors import PixelBertError
from pixelbert.files import exclusive, read_yaml, write_atomically
from pixelbert.loading import TRAINED_ON

# Where the recipe may differ when a run goes on: how it is run and reported, not what it computes.
FREE_TO_CHANGE = (
    *("micro_batch_size", "checkpoint_every", "keep_checkpoints", "skip_limit", "trackers"),
    *("data.workers", "model.activation_checkpointing"),
)
RECIPE, TOKENIZER, INPUTS, LOCK = "recipe.yaml", "tokenizer", "inputs.json", ".lock"
METRICS, VALIDATION, SAVED = "metrics.jsonl", "validation.jsonl", "checkpoints.jsonl"


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@contextmanager
def claimed(output: Path, recipe: dict[str, Any], defaults: dict[str, Any] | None = None) -> Iterator[None]:
    """While this is open, the folder is this run's, and nobody else's. It is made if need be.

    Nothing in it is read or written before it is locked.

    Args:
        output: the folder.
        recipe: all fields of this run's.
        defaults: what a field is in a run that was begun by an earlier version, which did not have it.

    Raises:
        PixelBertError: somebody trains there; the folder belongs to another run, or holds other things.
    """
    refuse_other_things(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PixelBertError(f"{output} cannot be made ({error.strerror or error}); choose another --output") from error
    with exclusive(output / LOCK, f"another process is training in {output}: wait for it, or choose another --output"):
        claim(output, recipe, defaults)
        yield


def refuse_other_things(output: Path) -> None:
    """Look whether a folder is new, or a run's; not into its files, which a run may be writing.

    Raises:
        PixelBertError: it is neither.
    """
    if not output.exists():
        return
    names = {path.name for path in output.iterdir()} if output.is_dir() else {output.name}
    beginnings = {LOCK, f"{RECIPE}.partial"}  # of a run that begins right now, or was killed when it began
    if RECIPE not in names and names - beginnings:
        raise PixelBertError(f"{output} exists and is not the folder of a run; choose another --output")


def claim(output: Path, recipe: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
    """Make a locked folder this run's, or check that it is already; see `claimed`."""
    file = output / RECIPE
    if file.exists():
        mine = {k: v for k, v in flatten(recipe).items() if k != "output" and k not in FREE_TO_CHANGE}
        theirs = flatten(defaults or {}) | flatten(read_yaml(file))
        different = [k for k in mine if theirs.get(k) != mine[k]]
        if not different:
            return
        if has_begun(output):
            shown = "\n".join(f"  {k}: there {theirs.get(k)!r}, here {mine[k]!r}" for k in different[:10])
            raise PixelBertError(
                f"{output} belongs to another run, whose recipe differs:\n{shown}\n"
                "Choose another --output, or give the recipe of that run to go on with it."
            )
        forget(output)
    write_atomically(file, yaml.safe_dump(recipe, sort_keys=False))


def has_begun(output: Path) -> bool:
    """Whether there is something to lose: a logged step, or a model. (A run may have stopped before its first one, over
    a mistake in its recipe, say.)"""
    logs = (output / name for name in (METRICS, VALIDATION, SAVED))
    logged = any(file.exists() and file.stat().st_size for file in logs)
    return (
        logged
        or any((output / "checkpoints").glob("step-*"))
        or any((output / name).exists() for name in ("best", "final"))
    )


def forget(output: Path) -> None:
    """Remove what a run that has not begun derived from its recipe and its data."""
    shutil.rmtree(output / TOKENIZER, ignore_errors=True)
    for name in (INPUTS, TRAINED_ON):
        (output / name).unlink(missing_ok=True)

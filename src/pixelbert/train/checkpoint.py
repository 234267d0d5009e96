"""A run's folder: which run it belongs to, its checkpoints, what was logged.

DIR/recipe.yaml               the whole recipe; another recipe on the same folder is refused
DIR/metrics.jsonl             one JSON object a logged step
DIR/validation.jsonl          one a measurement on the validation split
DIR/curves.png                both, drawn when the run is finished
DIR/checkpoints/step-00000100 accelerate's state (weights in safetensors, optimisers, schedules) and progress.json
DIR/final                     the finished model, for from_pretrained
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from pixelbert.errors import PixelBertError
from pixelbert.files import write_atomically

# Where the recipe may differ when a run goes on: how it is run and reported, not what it computes.
FREE_TO_CHANGE = ("micro_batch_size", "keep_checkpoints", "checkpoint_every", "trackers", "data.workers")


@dataclass
class Progress:
    """What a resumed run needs beside accelerate's state.

    Args:
        step: steps done.
        window: sums of the losses since the last logged step.
    """

    step: int = 0
    window: dict[str, float] = field(default_factory=dict)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def claim(output: Path, recipe: dict[str, Any]) -> None:
    """Make the folder this run's, or check that it is already.

    Raises:
        PixelBertError: the folder belongs to another run, or holds other things.
    """
    file = output / "recipe.yaml"
    mine = {k: v for k, v in flatten(recipe).items() if k != "output" and k not in FREE_TO_CHANGE}
    if file.exists():
        theirs = flatten(yaml.safe_load(file.read_text()))
        different = [k for k in mine if theirs.get(k) != mine[k]]
        if different and not (output / "metrics.jsonl").exists() and not checkpoints(output):
            # It stopped before its first step, over a mistake in the recipe, say: there is nothing to lose.
            shutil.rmtree(output / "tokenizer", ignore_errors=True)
            write_atomically(file, yaml.safe_dump(recipe, sort_keys=False))
        elif different:
            shown = "\n".join(f"  {k}: there {theirs.get(k)!r}, here {mine[k]!r}" for k in different[:10])
            raise PixelBertError(
                f"{output} belongs to another run, whose recipe differs:\n{shown}\n"
                "Choose another --output, or give the recipe of that run to go on with it."
            )
        return
    leftover = {file.with_name(file.name + ".partial")}  # of a run that was killed right here
    if output.exists() and (not output.is_dir() or set(output.iterdir()) - leftover):
        raise PixelBertError(f"{output} exists and is not the folder of a run; choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(file, yaml.safe_dump(recipe, sort_keys=False))


def checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in (output / "checkpoints").glob("step-*") if not p.name.endswith(".partial"))


def save(accelerator: Accelerator, output: Path, progress: Progress, keep: int) -> None:
    """Write a checkpoint aside and rename it, then drop all but the newest `keep`."""
    target = output / "checkpoints" / f"step-{progress.step:08d}"
    aside = target.with_name(target.name + ".partial")
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(aside))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_atomically(aside / "progress.json", json.dumps(vars(progress)))
        for file in aside.iterdir():
            with file.open("rb") as f:
                os.fsync(f.fileno())
        if target.exists():  # left by a run that was killed before it logged on; this one is the same
            shutil.rmtree(target)
        aside.rename(target)
        for old in checkpoints(output)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def restore(accelerator: Accelerator, output: Path) -> Progress:
    """Load the newest checkpoint, if there is one, and cut the logs back to it."""
    found = checkpoints(output)
    progress = Progress()
    if found:
        accelerator.load_state(str(found[-1]))
        progress = Progress(**json.loads((found[-1] / "progress.json").read_text()))
    if accelerator.is_main_process:
        for name in ("metrics.jsonl", "validation.jsonl"):
            cut_log(output / name, progress.step)
        for partial in (output / "checkpoints").glob("*.partial"):
            shutil.rmtree(partial)
    accelerator.wait_for_everyone()
    return progress


def cut_log(file: Path, step: int) -> None:
    """Drop the lines of later steps (they will be written again), and a last line that a kill cut short."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            break
    write_atomically(file, "".join(kept))


def append_line(file: Path, row: dict[str, Any]) -> None:
    """Add one JSON object to a log."""
    with file.open("a") as f:
        f.write(json.dumps(row) + "\n")

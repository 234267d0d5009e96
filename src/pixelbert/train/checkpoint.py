"""A run's folder: which run it belongs to, its checkpoints, what was logged.

DIR/recipe.yaml               the whole recipe; another recipe on the same folder is refused
DIR/metrics.jsonl             one JSON object a logged step
DIR/validation.jsonl          one a measurement on the validation split
DIR/curves.png                both, drawn when the run is finished
DIR/checkpoints/step-00000100 accelerate's state (weights in safetensors, optimisers, schedules), progress.json, and
                              SHA256SUMS of them all (`sha256sum -c SHA256SUMS` checks it, and so does who goes on)
DIR/best                      the model that did best on the validation split, where `keep_best` names a figure
DIR/final                     the finished model, for from_pretrained
"""

from __future__ import annotations

import fcntl
import json
import math
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from pixelbert.errors import PixelBertError
from pixelbert.files import file_sha256, publish, read_yaml, write_atomically
from pixelbert.model.load_report import first_line
from pixelbert.progress import console
from pixelbert.train.processes import tells_of_death
from pixelbert.train.sharded import is_sharded, load_shards, save_shards

# Where the recipe may differ when a run goes on: how it is run and reported, not what it computes.
FREE_TO_CHANGE = (
    *("micro_batch_size", "checkpoint_every", "keep_checkpoints", "keep_best", "skip_limit", "trackers"),
    *("data.workers", "model.activation_checkpointing"),
)
SUMS = "SHA256SUMS"
LOCK = ".lock"
DAMAGED = ".damaged"  # what a checkpoint that cannot be trusted is renamed to


@dataclass
class Progress:
    """What a resumed run needs beside accelerate's state.

    Args:
        step: steps done.
        skipped: steps that changed nothing, because a loss or the gradient was not a finite number.
        counted: steps since the last logged one, without those.
        window: sums over them of each loss.
        highest: and the largest loss and norm of the gradient.
    """

    step: int = 0
    skipped: int = 0
    counted: int = 0
    window: dict[str, float] = field(default_factory=dict)
    highest: dict[str, float] = field(default_factory=dict)

    def add(self, losses: dict[str, float], norm: float) -> None:
        """One more step."""
        self.counted += 1
        for name, value in losses.items():
            self.window[name] = self.window.get(name, 0.0) + value
        loss = sum(value for name, value in losses.items() if name.endswith("_loss"))
        for name, value in (("loss_max", loss), ("grad_norm_max", norm)):
            self.highest[name] = max(self.highest.get(name, value), value)

    def logged(self) -> dict[str, float]:
        """Means since the last time, and a new window."""
        means = {name: total / self.counted for name, total in self.window.items()}
        loss = sum(value for name, value in means.items() if name.endswith("_loss"))
        row = {"loss": loss, **means, **self.highest} | ({"skipped": self.skipped} if self.skipped else {})
        self.counted, self.window, self.highest = 0, {}, {}
        return row


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def claim(output: Path, recipe: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
    """Make the folder this run's, or check that it is already.

    Args:
        output: the folder.
        recipe: all fields of this run's.
        defaults: what a field is in a run that was begun by an earlier version, which did not have it.

    Raises:
        PixelBertError: the folder belongs to another run, or holds other things.
    """
    file = output / "recipe.yaml"
    mine = {k: v for k, v in flatten(recipe).items() if k != "output" and k not in FREE_TO_CHANGE}
    if file.exists():
        theirs = flatten(defaults or {}) | flatten(read_yaml(file))
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
    leftover = {file.with_name(file.name + ".partial"), output / LOCK}  # of a run that was killed right here
    if output.exists() and (not output.is_dir() or set(output.iterdir()) - leftover):
        raise PixelBertError(f"{output} exists and is not the folder of a run; choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(file, yaml.safe_dump(recipe, sort_keys=False))


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep others from training in this folder. The lock ends with the process, however it ends; those that load data
    for it, which may live on for a moment, have no part in it.

    Raises:
        PixelBertError: somebody trains there.
    """
    with (output / LOCK).open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PixelBertError(
                f"another process is training in {output}: wait for it, or choose another --output"
            ) from None
        yield


def checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in (output / "checkpoints").glob("step-*") if p.suffix not in (".partial", DAMAGED))


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, if something is: each of its files must be there as it was written."""
    try:
        lines = (folder / SUMS).read_text().splitlines()
        for sha, name in (line.split("  ", 1) for line in lines):
            if file_sha256(folder / name) != sha:
                return f"{name} is not as it was written"
        read_progress(folder)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, TypeError, RecursionError) as error:
        return f"it cannot be read: {error}"
    return None


def read_progress(folder: Path) -> Progress:
    """What a checkpoint says of its run.

    Raises:
        OSError, ValueError, TypeError, RecursionError: it cannot be read, or says something else.
    """
    progress = Progress(**json.loads((folder / "progress.json").read_text()))
    steps, sums = (progress.step, progress.skipped, progress.counted), (progress.window, progress.highest)
    if not all(type(number) is int and 0 <= number < 2**63 for number in steps):
        raise TypeError(f"progress.json has {steps} for numbers of steps")
    if not all(isinstance(of, dict) and all(type(value) in (int, float) for value in of.values()) for of in sums):
        raise TypeError("progress.json has a loss that is no number")
    return progress


def newest_intact(output: Path) -> Path | None:
    """The checkpoint to go on from; damaged ones are named and set aside.

    Raises:
        PixelBertError: there are checkpoints, and all are damaged.
    """
    found = checkpoints(output)
    for folder in reversed(found):
        problem = damage(folder)
        if problem is None:
            return folder
        aside = folder.with_suffix(DAMAGED)
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        console.print(f"{folder} is damaged ({problem}). It is now {aside.name}; the one before it is used.")
    if found:
        raise PixelBertError(
            f"every checkpoint in {found[0].parent} is damaged, so there is nothing to go on from: "
            f"delete {output} and begin again"
        )
    return None


class Saver:
    """Writes a run's checkpoints, each aside until it is whole. Used as a context manager.

    Training waits until a checkpoint's files are written; their sums and the flush to disk, which take longer, happen
    while it goes on.

    Args:
        keep: how many of the newest stay.
    """

    def __init__(self, accelerator: Accelerator, output: Path, keep: int) -> None:
        self.accelerator, self.output, self.keep = accelerator, output, keep
        self._beside = ThreadPoolExecutor(1, "checkpoint")
        self._step = 0
        self._publishing: Future[None] | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except PixelBertError:
            if kind is None:
                raise
        self._beside.shutdown()

    def save(self, progress: Progress) -> None:
        """Write a checkpoint.

        Raises:
            PixelBertError: it, or the one before it, cannot be written. Those before are as they were.
        """
        self.wait()
        self._step = progress.step
        target = self.output / "checkpoints" / f"step-{progress.step:08d}"
        aside = target.with_name(target.name + ".partial")
        main = self.accelerator.is_main_process
        if main:
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with self._failing(aside):
            if is_sharded(self.accelerator):
                save_shards(self.accelerator, aside)
            else:
                self.accelerator.save_state(str(aside))
            self.accelerator.wait_for_everyone()
            if main:
                write_atomically(aside / "progress.json", json.dumps(vars(progress)))
                self._publishing = self._beside.submit(self._publish, aside, target)

    def wait(self) -> None:
        """Have the newest checkpoint whole on disk.

        Raises:
            PixelBertError: it cannot be written.
        """
        if self._publishing is not None:
            publishing, self._publishing = self._publishing, None
            publishing.result()

    def _publish(self, aside: Path, target: Path) -> None:
        with self._failing(aside):
            files = sorted(file for file in aside.rglob("*") if file.is_file())
            sums = [f"{file_sha256(file)}  {file.relative_to(aside)}\n" for file in files]
            write_atomically(aside / SUMS, "".join(sums))
            if target.exists():  # left by a run that was killed before it logged on; this one is the same
                shutil.rmtree(target)
            publish(aside, target)
            for old in checkpoints(self.output)[: -self.keep]:
                shutil.rmtree(old)

    @contextmanager
    def _failing(self, aside: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:  # torch.save raises RuntimeError at a full disk
            if tells_of_death(error):
                raise
            shutil.rmtree(aside, ignore_errors=True)
            before = checkpoints(self.output)
            stands = f"{before[-1]} is as it was" if before else "there is none before it"
            raise PixelBertError(
                f"the checkpoint of step {self._step} cannot be written ({first_line(error)}): {stands}. "
                "Make room, and give the same command again to go on"
            ) from error


def restore(accelerator: Accelerator, output: Path) -> Progress:
    """Load the newest checkpoint that is intact, if there is one, and cut the logs back to it."""
    chosen = [newest_intact(output) if accelerator.is_main_process else None]
    broadcast_object_list(chosen)
    progress = Progress()
    if chosen[0] is not None:
        try:
            if is_sharded(accelerator):
                load_shards(accelerator, chosen[0])
            else:
                accelerator.load_state(str(chosen[0]))
        except Exception as error:  # torch, safetensors and accelerate each raise their own
            raise PixelBertError(
                f"{chosen[0]} is whole and cannot be read ({error}): it is of another network, or was not written by "
                "this run. Remove it to go on from the one before it"
            ) from error
        progress = read_progress(chosen[0])
    if accelerator.is_main_process:
        for name in ("metrics.jsonl", "validation.jsonl"):
            cut_log(output / name, progress.step)
        for partial in (output / "checkpoints").glob("*.partial"):
            shutil.rmtree(partial)
    accelerator.wait_for_everyone()
    return progress


def is_best(output: Path, name: str, row: dict[str, float]) -> bool:
    """Whether a measurement is better than those before it by one of its figures.

    Raises:
        PixelBertError: it has no such figure.
    """
    if name not in row:
        raise PixelBertError(f"keep_best is {name!r}; the validation split is measured by {', '.join(row)}")
    if not math.isfinite(row[name]):
        return False
    before = [value for row in logged(output / "validation.jsonl") if isinstance(value := row.get(name), int | float)]
    before = [value for value in before if math.isfinite(value)]
    sign = -1 if name.endswith("_loss") else 1
    return not before or sign * row[name] > max(sign * value for value in before)


def cut_log(file: Path, step: int) -> None:
    """Drop the lines of later steps (they will be written again), and a last line that a kill cut short."""
    if not file.exists():
        return
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in logged(file) if row["step"] <= step))


def logged(file: Path) -> list[dict[str, Any]]:
    """The rows of a log, up to a line that a kill cut short, or that is none of ours."""
    rows: list[dict[str, Any]] = []
    for line in file.read_bytes().splitlines() if file.exists() else []:
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                break
        except (ValueError, TypeError, KeyError, RecursionError):
            break
        rows.append(row)
    return rows


def append_line(file: Path, row: dict[str, Any]) -> None:
    """Add one JSON object to a log."""
    with file.open("a") as f:
        f.write(json.dumps(row) + "\n")

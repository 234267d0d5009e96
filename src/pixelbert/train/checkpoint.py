"""A run's checkpoints: what it goes on from.

DIR/checkpoints/step-00000100 accelerate's state (weights in safetensors, optimisers, schedules), progress.json, and
                              SHA256SUMS of them all (`sha256sum -c SHA256SUMS` checks it, and so does who goes on)
DIR/checkpoints.jsonl         the step of each that was written: where one was, no run begins again unasked
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from pixelbert.errors import PixelBertError
from pixelbert.files import append_line, publish, sums_problem, write_atomically, write_sums
from pixelbert.model.load_report import first_line
from pixelbert.progress import console
from pixelbert.train.logs import cut_back, read_rows
from pixelbert.train.processes import tells_of_death
from pixelbert.train.run_folder import METRICS, SAVED, VALIDATION
from pixelbert.train.sharded import is_sharded, load_shards, save_shards

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


def checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in (output / "checkpoints").glob("step-*") if p.name[5:].isdigit() and p.is_dir())


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, if something is: its files must be there as they were written, and no others."""
    if problem := sums_problem(folder):
        return problem
    try:
        read_progress(folder)
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
    """The checkpoint to go on from; damaged ones that are newer are named and set aside.

    Raises:
        PixelBertError: there were checkpoints, and none of them is left that can be trusted.
    """
    damaged: dict[Path, str] = {}
    for folder in reversed(checkpoints(output)):
        problem = damage(folder)
        if problem is None:
            for each, of_it in damaged.items():
                aside = each.with_suffix(DAMAGED)
                shutil.rmtree(aside, ignore_errors=True)
                each.rename(aside)
                console.print(f"{each} is damaged ({of_it}). It is now {aside.name}; the one before it is used.")
            return folder
        damaged[folder] = problem
    begin = "choose another --output"
    if (output / "best").exists():
        begin += f". ({output / 'best'} is a whole model, which `model.checkpoint` of a new run may name)"
    if damaged:
        listed = "\n".join(f"  {folder.name}: {problem}" for folder, problem in damaged.items())
        raise PixelBertError(
            f"every checkpoint in {output / 'checkpoints'} is damaged, so there is nothing to go on from:\n{listed}\n"
            f"Nothing was changed. Put a sound copy of one in its place, or {begin}"
        )
    if saved := read_rows(output / SAVED):
        raise PixelBertError(
            f"{output} has no checkpoint, though that of step {saved[-1]['step']:,} was written: put it back; or "
            f"remove {output / SAVED} to have the run begin again in this folder; or {begin}"
        )
    if read_rows(output / METRICS):
        console.print(f"{output} has no checkpoint yet: the steps that it logged are done again.")
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
            write_sums(aside)
            if target.exists():  # left by a run that was killed before it logged on; this one is the same
                shutil.rmtree(target)
            publish(aside, target)
            append_line(self.output / SAVED, {"step": self._step})
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
                "this run. Move it elsewhere to go on from the one before it"
            ) from error
        progress = read_progress(chosen[0])
    if accelerator.is_main_process:
        for name in (METRICS, VALIDATION, SAVED):
            cut_back(output / name, progress.step)
        for partial in (output / "checkpoints").glob("*.partial"):
            shutil.rmtree(partial)
    accelerator.wait_for_everyone()
    return progress

"""Progress of long work: a bar with rate and time left on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pixelbert.terminal import printable

T = TypeVar("T")


class _Console(Console):
    """On standard error. Names of files may have brackets, and characters that would steer the terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(o) if isinstance(o, str) else o for o in objects), **options)

    def on_broken_pipe(self) -> None:
        raise  # for `terminal.program`: nobody reads this any more


console = _Console(stderr=True, highlight=False, markup=False)
SECONDS_BETWEEN_LINES = 15.0


class RateColumn(ProgressColumn):
    """Items a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="progress.data.speed")


def progress_bar() -> Progress:
    """A rich progress bar with count, rate and time left, shown on standard error."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


class Tracker:
    """One piece of long work. `advance` moves it on; `note` stands behind the time left (a loss, say).

    Args:
        description: what is being done.
        total: number of items, if it is known.
        done: items that an earlier run finished already.
        show: false on all processes but the first.
    """

    def __init__(self, description: str, total: int | None = None, *, done: int = 0, show: bool = True) -> None:
        self.description, self.total, self.done, self.start_at, self.show = (
            description,
            total,
            done,
            done,
            show,
        )
        self.started = self.last_line = time.monotonic()
        self.bar: Progress | None = None
        self.note = ""
        if show and console.is_terminal:
            self.bar = progress_bar()
            self.task = self.bar.add_task(description, total=total, completed=done, note="")

    def __enter__(self) -> Tracker:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()
        elif self.show and self.last_line > self.started:
            self._line()  # a log that was opened is also closed

    def advance(self, n: int = 1, note: str | None = None) -> None:
        """Count `n` more items as done; a note stays until the next one."""
        self.done += n
        self.note = self.note if note is None else note
        if self.bar:
            self.bar.update(self.task, advance=n, note=self.note)
        elif self.show and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self) -> None:
        self.last_line = time.monotonic()
        seconds = self.last_line - self.started
        rate = (self.done - self.start_at) / max(seconds, 1e-9)
        left = ""
        if self.total is not None and rate > 0:
            left = f", {time.strftime('%H:%M:%S', time.gmtime((self.total - self.done) / rate))} left"
        of = f"/{self.total}" if self.total is not None else ""
        print(
            printable(f"{self.description}: {self.done}{of}, {rate:.1f}/s{left} {self.note}".rstrip()),
            file=sys.stderr,
            flush=True,
        )


def track(items: Iterable[T], description: str, total: int | None = None, *, show: bool = True) -> Iterator[T]:
    """Yield `items` and show how far it is, how fast, and how long it will take."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Tracker(description, total, show=show) as tracker:
        for item in items:
            yield item
            tracker.advance()

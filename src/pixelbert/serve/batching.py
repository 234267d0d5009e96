"""One thread owns the model; requests wait for it in a queue, and those that wait together are computed together.

The features that `PixelBert` remembers have no lock, and a device does one thing at a time anyway. So the thread takes
what waits, puts all its photos through the CNN together, and scores all pairs of photos and sentences in one pass. A
score never depends on its batch, so nobody can tell in whose company a request was. Photos are decoded one after
another; of large ones few are taken at once, so that a request with a small one does not wait for all of them.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from pixelbert.data.reading import Unread
from pixelbert.predict.pixelbert import PixelBert
from pixelbert.serve.limits import Limits, PhotoFile
from pixelbert.serve.metrics import Metrics

REQUESTS_TOGETHER = 16  # at most two photos each: fewer than the model remembers
T = TypeVar("T")


class BusyError(Exception):
    """The queue is full, or the server is stopping: come back later."""


@dataclass(eq=False)
class Job:
    """What waits: photos with either sentences to score against the one photo, or something else to call."""

    images: Sequence[bytes]
    texts: Sequence[str] = ()
    call: Callable[[], Any] | None = None
    future: Future[Any] = field(default_factory=Future)

    @property
    def pixels(self) -> int:
        """What is to be decoded, as far as it is known."""
        return sum(image.pixels for image in self.images if isinstance(image, PhotoFile))


class ModelThread:
    """The thread and its queue.

    Args:
        model: used by nobody else from here on.
        waiting: jobs that the queue holds; one more raises `BusyError`.
        pixels: of the photos of jobs that are taken together. A job that has more alone is taken alone.
    """

    def __init__(self, model: PixelBert, waiting: int, metrics: Metrics, pixels: int = Limits.pixels) -> None:
        self.model, self.waiting, self.metrics, self.pixels = model, waiting, metrics, pixels
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        metrics.watch_queue(lambda: len(self._queue))
        embedding: torch.nn.Module = model.model.pixelbert.pixel_embedding  # which each image passes once
        self._hook = embedding.register_forward_hook(lambda _, args, __: metrics.images.inc(len(args[0])))
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    async def match(self, image: bytes, texts: Sequence[str]) -> tuple[list[float], Unread]:
        """As `PixelBert.match` of one image, together with whoever else waits; and what was not read of the texts."""
        scores, unread = await self._done(Job([image], texts))
        return scores.tolist(), unread

    async def run(self, call: Callable[[], T], images: Sequence[bytes] = ()) -> T:
        """Call this in the model's thread, after the images, which the call will use, were encoded with others."""
        return await self._done(Job(images, call=call))

    def close(self, seconds: float = 10) -> None:
        """Stop after what is being computed; what still waits is refused."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)
        self._hook.remove()

    async def _done(self, job: Job) -> Any:
        with self._changed:
            if self._closed:
                raise BusyError("the server is stopping")
            if len(self._queue) >= self.waiting:
                raise BusyError(f"{self.waiting} requests wait for the model already: try again in a moment")
            self._queue.append(job)
            self._changed.notify()
        return await asyncio.wrap_future(job.future)  # cancelled with the request, and then never computed

    def _work(self) -> None:
        while jobs := self._take():
            self.metrics.together.observe(len(jobs))
            self._compute(jobs)

    def _take(self) -> list[Job]:
        """Some of the jobs that wait, as soon as there is one; none when the thread is to end."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    for job in self._queue:
                        if job.future.set_running_or_notify_cancel():
                            job.future.set_exception(BusyError("the server is stopping"))
                    self._queue.clear()
                    return []
                if wanted := self._first_that_fit():
                    return wanted

    def _first_that_fit(self) -> list[Job]:
        """Take the first job that is still wanted, and those behind it that fit beside."""
        taken: list[Job] = []
        left: deque[Job] = deque()
        pixels = 0
        for job in self._queue:
            if len(taken) == REQUESTS_TOGETHER or (taken and pixels + job.pixels > self.pixels):
                left.append(job)
            elif job.future.set_running_or_notify_cancel():
                taken.append(job)
                pixels += job.pixels
        self._queue = left
        return taken

    def _alone(self, job: Job) -> tuple[Any, Unread]:
        return self.model.match(job.images[0], job.texts)[0], self.model.processor.unread(job.texts)

    def _compute(self, jobs: Sequence[Job]) -> None:
        # What goes wrong with all at once, for one bad photo, goes right for the others alone.
        with suppress(Exception):
            self.model.encode([image for job in jobs for image in job.images])
        others = [job for job in jobs if job.call is not None]
        if matches := [job for job in jobs if job.call is None]:
            try:
                scores = self.model.match_each([(job.images[0], job.texts) for job in matches])
            except Exception:
                others = list(jobs)
            else:
                for job, found in zip(matches, scores, strict=True):
                    job.future.set_result((found, self.model.processor.unread(job.texts)))
        for job in others:
            try:
                job.future.set_result(job.call() if job.call else self._alone(job))
            except Exception as error:
                job.future.set_exception(error)

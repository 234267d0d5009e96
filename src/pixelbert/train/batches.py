"""The batches of a run, from the processes that load them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

from pixelbert.errors import PixelBertError
from pixelbert.tasks.steps import StepBatch, StepData, batch_keys
from pixelbert.train.processes import death
from pixelbert.train.signals import ignore_requests, requests_held


def data_loader(data: StepData, first_step: int, steps: int, workers: int) -> DataLoader:
    """Batches of the rest of the run, in order."""
    return DataLoader(
        data,
        batch_size=None,
        sampler=batch_keys(data, first_step, steps),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=as_it_is,  # type: ignore[arg-type]
        worker_init_fn=ignore_requests,
        prefetch_factor=2 if workers else None,
        persistent_workers=False,
    )


@contextmanager
def loaded_batches(data: StepData, first_step: int, steps: int, workers: int) -> Iterator[Iterator[Any]]:
    """Batches of the rest of the run; the processes that load them end when this is closed, however that comes about.

    They ignore the signal by which Python, where it ends with an error, would end them, and wait for it: so they are
    told to end here.
    """
    with requests_held():
        batches = iter(data_loader(data, first_step, steps, workers))
    try:
        yield batches
    finally:
        if workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]


def as_it_is(batch: StepBatch) -> StepBatch:
    """The data set makes whole batches already."""
    return batch


def next_batch(batches: Iterator[StepBatch | PixelBertError]) -> StepBatch:
    """The next one.

    Raises:
        PixelBertError: a photo or sentence cannot be read, or a process that loads data has died.
    """
    try:
        loaded = next(batches)
    except (ConnectionError, EOFError) as error:  # it died while it sent a batch
        raise death(error) from error
    if isinstance(loaded, PixelBertError):
        raise loaded
    return loaded

"""The batches of a training run, whatever the task: every process derives the same plan of a step and takes its share.

A step's plan is a list of rows (an example with its sentence, or sentences); a micro-batch is a slice of it. Plans
depend on (seed, step) alone, so any step can be made without the ones before it, on any number of devices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pixelbert.data.corpus import Corpus
from pixelbert.data.feature_cache import View
from pixelbert.data.photos import Photos
from pixelbert.data.processing import PixelBertProcessor
from pixelbert.data.sampler import Draw, ExampleOrder, keyed_rng, remember, share
from pixelbert.errors import PixelBertError
from pixelbert.model.modeling import Contrast
from pixelbert.model.pixels import PixelFeatures

MIRRORING = 1 << 20  # keys the generator of mirroring, apart from those of the tasks


class Row(Protocol):
    """One row of a plan."""

    @property
    def example(self) -> int:
        """Its example, for messages."""

    @property
    def view(self) -> View:
        """The image that it stands by."""

    @property
    def length(self) -> int:
        """Tokens of its longest sentence."""


R = TypeVar("R", bound=Row)


@dataclass
class StepBatch:
    """One forward pass of training.

    Args:
        inputs: the arguments of the model's `forward`.
        examples: the number of each row's example, for messages.
        in_step: what the losses are normalised by: counts over the whole step and all devices.
    """

    inputs: dict[str, Any]
    examples: list[int]
    in_step: dict[str, int]

    def to(self, device: torch.device) -> StepBatch:
        """Move all tensors."""
        return StepBatch(move(self.inputs, device), self.examples, self.in_step)


def move(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A model's arguments on a device: tensors, lists of tensors, pixel features; other values as they are."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(x) for x in value]
        if isinstance(value, Contrast):
            return Contrast(*map(moved, value))
        return value.to(device, non_blocking=True) if isinstance(value, Tensor | PixelFeatures) else value

    return {key: moved(value) for key, value in inputs.items()}


class StepLoss(NamedTuple):
    """The share of a batch in its step's loss, and what to log of it (sums that add up over batches and devices)."""

    loss: Tensor
    parts: dict[str, Tensor]


@dataclass
class StepData(Dataset, ABC, Generic[R]):
    """All batches of a run, each had by (step, micro-batch) and by nothing else.

    Args:
        photos: the images, and the corpus of training examples.
        processor: cuts words.
        order: the stream of examples.
        rank, world: this process and how many there are.
        micro_batch: pairs that one forward pass takes on one device.
        mirror: half of the time, show an image mirrored, unless its sentence names a side.
    """

    photos: Photos
    processor: PixelBertProcessor
    order: ExampleOrder
    rank: int = 0
    world: int = 1
    micro_batch: int = 64
    mirror: bool = False
    _plans: dict[int, list[R]] = field(default_factory=dict, repr=False)

    rows_per_example = 1
    pairs_per_row = 1
    rows_together = 1  # of a plan, from its beginning: one micro-batch holds them all

    @property
    def corpus(self) -> Corpus:
        """The training examples."""
        return self.photos.corpus

    @abstractmethod
    def rows(self, draws: Sequence[Draw]) -> list[R]:
        """The rows of these draws, example by example: texts and random choices, no photos yet."""

    @abstractmethod
    def collate(self, rows: Sequence[R]) -> dict[str, Any]:
        """Rows to the arguments of the model."""

    def in_step(self, rows: Sequence[R]) -> dict[str, int]:
        """What the losses of a step are normalised by."""
        return {"rows": len(rows)}

    @property
    def pairs_in_step(self) -> int:
        """Pairs of an image and a sentence that one step scores, over all devices."""
        return self.order.size * self.rows_per_example * self.pairs_per_row

    @property
    def _rows_per_batch(self) -> int:
        return max(self.micro_batch // (self.pairs_per_row * self.rows_together), 1) * self.rows_together

    def _mine(self) -> slice:
        """This process's rows of a plan."""
        n = self.rows_together
        mine = share(self.order.size * self.rows_per_example // n, self.rank, self.world)
        return slice(mine.start * n, mine.stop * n)

    def micro_batches(self) -> int:
        """Forward passes that this process makes a step."""
        mine = self._mine()
        return -(-(mine.stop - mine.start) // self._rows_per_batch)

    def plan(self, step: int) -> list[R]:
        """All rows of a step, over all devices.

        Every process makes the whole plan, so what losses are normalised by is known without communication.
        """
        return remember(self._plans, step, self._plan, keep=1)

    def _plan(self, step: int) -> list[R]:
        return sorted(self.rows(self.order.step(step)), key=self._place)

    def _place(self, row: R) -> tuple[int, ...]:
        """What stands together in a micro-batch: with stored features only padding costs, so sentences of one length;
        else images of one shape, and the sentences of one image."""
        if self.photos.cache is not None:
            return (row.length,)
        return (*self.photos.size(row.view.image), *row.view)

    def view(self, draw: Draw, image: int, *, one_sided: bool) -> View:
        """The image as this example sees it: mirrored half of the time if that is wanted and does no harm."""
        if not self.mirror or one_sided:
            return View(image)
        return View(image, bool(keyed_rng(self.order.seed, *draw, MIRRORING).integers(2)))

    def __getitem__(self, key: tuple[int, int]) -> StepBatch | PixelBertError:
        """The batch, or what is wrong with its data: raised in a loader process, that would become a traceback."""
        try:
            return self.batch(*key)
        except PixelBertError as error:
            return error

    def batch(self, step: int, micro: int) -> StepBatch:
        """The micro-batch of a step that this process takes at this place."""
        plan = self.plan(step)
        mine = plan[self._mine()]
        rows = mine[micro * self._rows_per_batch : (micro + 1) * self._rows_per_batch]
        return StepBatch(self.collate(rows), [row.example for row in rows], self.in_step(plan))

    def tokens(self, sentences: Sequence[str]) -> list[np.ndarray]:
        """Each sentence's tokens, [CLS] and [SEP] included, cut to the longest that is allowed."""
        return self.processor.tokens(sentences)

    def images(self, views: Sequence[Sequence[View]]) -> dict[str, Any]:
        """The images of a batch, each once, and `image_index` into them: (rows,), or (rows, n) of several a row."""
        distinct = list(dict.fromkeys(view for row in views for view in row))
        place = {view: i for i, view in enumerate(distinct)}
        index = torch.tensor([[place[view] for view in row] for row in views])
        return self.photos.inputs(distinct) | {"image_index": index.squeeze(1) if index.shape[1] == 1 else index}


def pad(rows: Sequence[np.ndarray], value: int) -> Tensor:
    """(rows, longest row) filled up with `value`."""
    padded = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)


def text_inputs(ids: Sequence[np.ndarray], pad_token_id: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, padded to the longest sentence."""
    return {"input_ids": pad(ids, pad_token_id), "attention_mask": pad([np.ones_like(x) for x in ids], 0)}


def batch_keys(data: StepData, first_step: int, steps: int) -> Iterator[tuple[int, int]]:
    """(step, micro-batch) of the rest of a run, in order."""
    for step in range(first_step, steps):
        for micro in range(data.micro_batches()):
            yield step, micro

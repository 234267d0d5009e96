"""The order of training: images grouped, sentences packed, the same on any number of devices.

The training data is one endless stream: epoch after epoch, each a seeded permutation of the examples in which up to
`sentences_per_image` sentences of one image stand together. A step takes the next `size` examples of the stream,
whatever the devices; ranks and micro-batches are slices of a step. So the order is a pure function of (seed, step): any
step can be had without the ones before it, which is what makes a resumed run exact.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

import numpy as np

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Draw(NamedTuple):
    """One use of an example: its number, and the epoch in which it is used."""

    epoch: int
    example: int


class ExampleOrder:
    """The stream of examples.

    Args:
        image_of: (N,) the image of each example.
        size: examples a step, over all devices.
        sentences_per_image: how many sentences of an image stand together, so that the CNN's work is shared; 1 is the
            paper's own sampling.
        seed: of the recipe.
    """

    def __init__(self, image_of: np.ndarray, size: int, sentences_per_image: int, seed: int) -> None:
        self.image_of = image_of
        self.size = size
        self.sentences_per_image = sentences_per_image
        self.seed = seed
        self._permutations: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.image_of)

    def steps(self, epochs: float) -> int:
        """Whole steps in so many epochs, at least one."""
        return max(int(epochs * len(self) / self.size), 1)

    def epoch_of(self, step: int) -> float:
        """Epochs passed when `step` steps are done."""
        return step * self.size / len(self)

    def permutation(self, epoch: int) -> np.ndarray:
        """(N,) the order of one epoch."""
        # A step may reach over the end of an epoch, so two are kept.
        return remember(self._permutations, epoch, self._permutation, keep=2)

    def _permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self))
        order = order[np.argsort(self.image_of[order], kind="stable")]  # by image, shuffled within each
        images = self.image_of[order]
        first = np.flatnonzero(np.r_[True, images[1:] != images[:-1]])
        rank = np.arange(len(order)) - np.repeat(first, np.diff(np.r_[first, len(order)]))
        starts_group = (rank % self.sentences_per_image) == 0
        group = np.cumsum(starts_group) - 1
        shuffled = rng.permutation(group[-1] + 1)
        return order[np.argsort(shuffled[group], kind="stable")]

    def step(self, step: int) -> list[Draw]:
        """The examples of step 0, 1, 2, ... of the run."""
        draws = []
        position, end = step * self.size, (step + 1) * self.size
        while position < end:
            epoch, offset = divmod(position, len(self))
            taken = self.permutation(epoch)[offset : offset + end - position]
            draws += [Draw(epoch, int(example)) for example in taken]
            position += len(taken)
        return draws


def remember(cache: dict[K, V], key: K, make: Callable[[K], V], keep: int) -> V:
    """`make(key)`, kept for the next time with the last few others. (Unlike functools' caches it can be pickled, which
    loader processes need where they are spawned.)"""
    if key not in cache:
        while len(cache) >= keep:
            del cache[next(iter(cache))]
        cache[key] = make(key)
    return cache[key]


def share(total: int, part: int, parts: int) -> slice:
    """The slice of `total` things that falls to `part` of `parts`; sizes differ by one at most."""
    return slice(total * part // parts, total * (part + 1) // parts)


def keyed_rng(*key: int) -> np.random.Generator:
    """A generator for one random choice, keyed by (seed, epoch, example, ...), never by process or clock."""
    return np.random.default_rng(key)

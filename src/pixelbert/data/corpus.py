"""Several prepared data sets read as one: examples and images numbered through, texts and photos by number."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa

from pixelbert.data.store import PreparedDataset
from pixelbert.errors import PixelBertError
from pixelbert.metrics.vqa import AnswerRule


class Corpus:
    """The examples of chosen splits of one or more prepared data sets, and the images they are about.

    Args:
        sources: folders that `pixelbert prepare` wrote, each with its splits: `["DIR:train", "DIR2:train,restval"]`.

    Attributes:
        images_of: (N, n) the images of each example: one, or two for reasoning over two photos.
        sizes: (I, 2) width and height of each image on disk.
        datasets: the data set of each source; images are numbered through them in this order.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        if not sources:
            raise PixelBertError("no data given: name at least one prepared data set, as DIR:SPLIT")
        self.sources = list(sources)
        self.datasets: list[PreparedDataset] = []
        self._texts: list[pa.ChunkedArray] = []  # memory-mapped, one a (data set, split)
        self._ids: list[pa.ChunkedArray] = []
        self._splits: list[tuple[PreparedDataset, str]] = []  # one a (data set, split), as texts and ids
        starts, images_of, sizes = [0], [], []
        self._image_starts = [0]
        for source in sources:
            folder, splits = split_source(source)
            data = PreparedDataset.open(folder)
            offset = self._image_starts[-1]
            for split in splits:
                examples = data.examples(split)
                try:
                    rows = [[data.image_row[i] for i in ids] for ids in examples["image_ids"]]
                except KeyError as error:
                    raise PixelBertError(
                        f"{folder}: {split} has an example of the image {error}, which is not in the data set: "
                        "prepare it again"
                    ) from None
                if rows:
                    images_of.append(np.array(rows, dtype=np.int64) + offset)
                self._splits.append((data, split))
                self._texts.append(examples.data.column("text"))
                self._ids.append(examples.data.column("example_id"))
                starts.append(starts[-1] + len(examples))
            self.datasets.append(data)
            sizes.append(np.asarray(data.sizes))
            self._image_starts.append(offset + len(data.sizes))
        self._starts = np.array(starts)
        if len({data.task for data in self.datasets}) > 1:
            kinds = ", ".join(f"{data.folder} {data.task}" for data in self.datasets)
            raise PixelBertError(f"data of different kinds can't be learned from together: {kinds}")
        self.images_of = np.concatenate(images_of) if images_of else np.zeros((0, 1), dtype=np.int64)
        self.sizes = np.concatenate(sizes)
        if not len(self):
            raise PixelBertError(f"{', '.join(sources)}: no examples")

    def __len__(self) -> int:
        return len(self.images_of)

    @property
    def image_of(self) -> np.ndarray:
        """(N,) the first image of each example."""
        return self.images_of[:, 0]

    @cached_property
    def photos(self) -> np.ndarray:
        """(I,) the photo that each image is: the number of the first image that is the same file or has the same
        content. An image may stand twice: in a data set that is given twice, in two made of the same photos, or as a
        copy. What compares images as right and wrong compares these."""
        files = [path for data in self.datasets for path in data.photo_files]
        contents = [checksum for data in self.datasets for checksum in data.photo_checksums]
        return alike(files, contents)

    @property
    def photo_digest(self) -> str | None:
        """A checksum of all photos' contents; None if those of a data set were not recorded."""
        contents = [data.recorded_checksums for data in self.datasets]
        return None if None in contents else hashlib.sha256(json.dumps(contents).encode()).hexdigest()

    @cached_property
    def photo_of(self) -> np.ndarray:
        """(N,) the photo (see `photos`) of each example's first image."""
        return self.photos[self.image_of]

    @cached_property
    def _examples_of_photos(self) -> dict[int, list[int]]:
        groups = defaultdict(list)
        for example, photo in enumerate(self.photo_of.tolist()):
            groups[photo].append(example)
        return groups

    def own_texts(self, example: int) -> set[str]:
        """All that is said of an example's photo."""
        return {self.text(e) for e in self._examples_of_photos[int(self.photo_of[example])]}

    @property
    def task(self) -> str:
        """What the examples are for: "captions", "question-answering" or "reasoning"."""
        return self.datasets[0].task

    def require(self, task: str) -> None:
        """Check that the examples are for this task.

        Raises:
            PixelBertError: they are for another; says which.
        """
        if self.task != task:
            raise PixelBertError(f"{', '.join(self.sources)}: holds {self.task}, where {task} is needed")

    @property
    def answers(self) -> list[str]:
        """The answer vocabulary of question answering: those of all data sets, in order of first appearance."""
        return list(dict.fromkeys(answer for data in self.datasets for answer in data.answers))

    def answer_rule(self, example: int) -> AnswerRule:
        """By which rule the answers to an example are compared: that of its data set."""
        part, _ = self._locate(example)
        return self._splits[part][0].answer_rule

    def target(self, example: int, column: str) -> Any:
        """What the task asks of an example: its `answers`, its `label`, ... (see `store.py`)."""
        part, row = self._locate(example)
        data, split = self._splits[part]
        return data.examples(split).data.column(column)[row].as_py()

    def provenance(self) -> list[dict[str, Any]]:
        """Each split's data set, name and files' checksums: what a checkpoint remembers of its training.

        A data set that was made from others has theirs too (`derived_from` in its manifest): whoever learns from it
        learns from them. One that is given several times, so as to count more, stands once.
        """
        own = [
            {
                "data": data.name,
                "split": split,
                "sha256": [
                    facts["sha256"]
                    for name, facts in sorted(data.manifest["files"].items())
                    if name.rsplit("-", 1)[0] == split
                ],
            }
            for data, split in self._splits
        ]
        all_of_them = own + [source for data in self.datasets for source in data.manifest.get("derived_from", [])]
        return [source for i, source in enumerate(all_of_them) if source not in all_of_them[:i]]

    def _locate(self, example: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._starts, example, side="right")) - 1
        return part, int(example - self._starts[part])

    def text(self, example: int) -> str:
        """The sentence of an example."""
        part, row = self._locate(example)
        return self._texts[part][row].as_py()

    def example_id(self, example: int) -> str:
        """The name of an example on disk."""
        part, row = self._locate(example)
        return self._ids[part][row].as_py()

    def image_id(self, image: int) -> str:
        """The name of an image on disk."""
        part = int(np.searchsorted(self._image_starts, image, side="right")) - 1
        row = int(image - self._image_starts[part])
        return self.datasets[part].images.data.column("image_id")[row].as_py()

    def same_split(self, example: int) -> range:
        """The examples of the data set and split that an example is of."""
        part, _ = self._locate(example)
        return range(int(self._starts[part]), int(self._starts[part + 1]))

    def load_image(self, image: int) -> PIL.Image.Image:
        """The photo with this number, RGB and upright."""
        part = int(np.searchsorted(self._image_starts, image, side="right")) - 1
        return self.datasets[part].load_image(int(image - self._image_starts[part]))

    def examples_of_images(self, limit: int | None = None) -> dict[int, list[int]]:
        """The examples of each image, images in the order of their first example; the first `limit` images."""
        groups: dict[int, list[int]] = {}
        for example, image in enumerate(self.image_of.tolist()):
            if image in groups or limit is None or len(groups) < limit:
                groups.setdefault(image, []).append(example)
        return groups


def alike(*keys: Sequence[Hashable | None]) -> np.ndarray:
    """(n,) for each of n things the first that is the same, where those are the same that share a key.

    Args:
        keys: of the things, one list a kind of key; None where a thing has none. Who shares a key of one kind with the
            second and of another kind with the third is the same as both.
    """
    same = np.arange(len(keys[0]))
    firsts = []
    for kind in keys:
        seen: dict[Hashable, int] = {}
        first = np.array([i if key is None else seen.setdefault(key, i) for i, key in enumerate(kind)], dtype=np.int64)
        if (first != same).any():  # seldom
            firsts.append(first)
    while True:
        before = same
        for first in firsts:
            lowest = same.copy()
            np.minimum.at(lowest, first, same)
            same = lowest[first]
        if (same == before).all():
            return same


def split_source(source: str) -> tuple[Path, list[str]]:
    """`DIR:split,split` to its parts."""
    folder, colon, splits = source.rpartition(":")
    if not colon or not folder or not splits:
        raise PixelBertError(
            f"data {source!r}: expected DIR:SPLIT (or DIR:SPLIT,SPLIT), such as prepared/flickr8k:train"
        )
    return Path(folder), splits.split(",")

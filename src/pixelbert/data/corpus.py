"""Several prepared data sets read as one: examples and images numbered through, texts and photos by number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa

from pixelbert.data.store import PreparedDataset
from pixelbert.errors import PixelBertError


class Corpus:
    """The examples of chosen splits of one or more prepared data sets, and the images they are about.

    Args:
        sources: folders that `pixelbert prepare` wrote, each with its splits: `["DIR:train", "DIR2:train,restval"]`.

    Attributes:
        image_of: (N,) the image number of each example.
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
        starts, image_of, sizes = [0], [], []
        self._image_starts = [0]
        for source in sources:
            folder, splits = split_source(source)
            data = PreparedDataset.open(folder)
            offset = self._image_starts[-1]
            for split in splits:
                examples = data.examples(split)
                images = [ids[0] for ids in examples["image_ids"]]
                image_of.append(np.array([data.image_row[i] for i in images], dtype=np.int64) + offset)
                self._texts.append(examples.data.column("text"))
                self._ids.append(examples.data.column("example_id"))
                starts.append(starts[-1] + len(examples))
            self.datasets.append(data)
            sizes.append(np.asarray(data.sizes))
            self._image_starts.append(offset + len(data.sizes))
        self._starts = np.array(starts)
        self.image_of = np.concatenate(image_of)
        self.sizes = np.concatenate(sizes)
        if not len(self.image_of):
            raise PixelBertError(f"{', '.join(sources)}: no examples")

    def __len__(self) -> int:
        return len(self.image_of)

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


def split_source(source: str) -> tuple[Path, list[str]]:
    """`DIR:split,split` to its parts."""
    folder, colon, splits = source.rpartition(":")
    if not colon or not folder or not splits:
        raise PixelBertError(
            f"data {source!r}: expected DIR:SPLIT (or DIR:SPLIT,SPLIT), such as prepared/flickr8k:train"
        )
    return Path(folder), splits.split(",")

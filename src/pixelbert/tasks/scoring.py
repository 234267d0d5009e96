"""Running a model over many images and sentences in bounded memory: each image encoded once, like lengths together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pixelbert.data.corpus import Corpus
from pixelbert.data.feature_cache import View
from pixelbert.data.photos import Photos
from pixelbert.data.processing import PixelBertProcessor
from pixelbert.model.pixels import PixelFeatures
from pixelbert.progress import Tracker
from pixelbert.tasks.steps import move, text_inputs

IMAGES_AT_ONCE = 16
SENTENCES_AT_ONCE = 256


@torch.inference_mode()
def encode_images(
    model: Any, photos: Photos, images: Sequence[int], *, batch: int = IMAGES_AT_ONCE, show: bool = True
) -> PixelFeatures:
    """Pixel embeddings of these images (I, K, D), each encoded once; from stored features if `photos` has them."""
    parts: list[PixelFeatures] = []
    with Tracker("encoding images", len(images), show=show) as tracker:
        for start in range(0, len(images), batch):
            views = [View(int(i)) for i in images[start : start + batch]]
            inputs = move(photos.inputs(views), model.device)
            if "trunk_features" in inputs:
                parts.append(model.pixelbert.embed_stored(inputs["trunk_features"]))
            else:
                parts.append(model.encode_images(inputs["pixel_values"]))
            tracker.advance(len(views))
    return PixelFeatures.concatenate(parts)


@torch.inference_mode()
def encode_blank(model: Any, photos: Photos, images: Sequence[int]) -> PixelFeatures:
    """Pixel embeddings of an evenly grey image in place of each of these, of the same size."""
    sizes = [photos.size(i) for i in images]
    distinct = list(dict.fromkeys(sizes))
    grey = [torch.zeros(3, height, width, device=model.device) for width, height in distinct]
    which = torch.tensor([distinct.index(size) for size in sizes], device=model.device)
    return model.encode_images(grey).select(which)


class Scored(NamedTuple):
    """Examples and the model's output for them: logits (examples, ...), float32 on the CPU."""

    examples: list[int]
    logits: Tensor


@torch.inference_mode()
def score_examples(
    model: Any,
    processor: PixelBertProcessor,
    photos: Photos,
    examples: Sequence[int],
    *,
    images_of: np.ndarray | None = None,
    blank: bool = False,
    images_at_once: int = 64,
    precision: str = "bf16",
    description: str = "scoring",
    show: bool = True,
) -> Iterator[Scored]:
    """The model's logits for these examples, in pieces: image by image, so memory does not grow with their number.

    Args:
        images_of: (N, n) images to show with each example of the corpus, in place of its own: the control that shuffles
            photos.
        blank: show evenly grey images: the control that takes the pixels away.
        images_at_once: images whose features are held at a time.
    """
    corpus, was_training = photos.corpus, model.training
    model.eval()
    images_of = corpus.images_of if images_of is None else images_of
    by_image = sorted(examples, key=lambda e: (*photos.size(images_of[e, 0]), images_of[e, 0]))
    with Tracker(description, len(by_image), show=show) as tracker:
        for chunk in pieces(by_image, images_of, images_at_once):
            images = sorted({int(image) for e in chunk for image in images_of[e]})
            place = np.full(len(corpus.sizes), -1)
            place[images] = np.arange(len(images))
            with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                encode = encode_blank if blank else partial(encode_images, show=False)
                features = encode(model, photos, images)
                sentences = processor.tokens([corpus.text(e) for e in chunk])
                order = sorted(range(len(chunk)), key=lambda i: len(sentences[i]))
                for start in range(0, len(order), SENTENCES_AT_ONCE):
                    rows = order[start : start + SENTENCES_AT_ONCE]
                    inputs = text_inputs([sentences[i] for i in rows], processor.tokenizer.pad_token_id)
                    index = torch.from_numpy(place[images_of[[chunk[i] for i in rows]]])
                    inputs["image_index"] = index.squeeze(1) if index.shape[1] == 1 else index
                    logits = model(features, **move(inputs, model.device)).logits
                    yield Scored([chunk[i] for i in rows], logits.float().cpu())
                    tracker.advance(len(rows))
    model.train(was_training)


def pieces(examples: Sequence[int], images_of: np.ndarray, images: int) -> Iterator[list[int]]:
    """Examples cut so that each piece needs about so many images at most."""
    piece: list[int] = []
    seen: set[int] = set()
    for example in examples:
        own = {int(i) for i in images_of[example]}
        if piece and len(seen | own) > images:
            yield piece
            piece, seen = [], set()
        piece.append(example)
        seen |= own
    if piece:
        yield piece


def shuffled_images(corpus: Corpus, examples: Sequence[int], seed: int = 0) -> np.ndarray:
    """(N, n) each example with the photos of an example of other photos, drawn without replacement over the photos.

    The photos of these examples are put in a random circle, and each photo's sentences get the next photo.
    """
    rng = np.random.default_rng(seed)
    photos_of = corpus.photos[corpus.images_of]
    groups = np.unique(photos_of[np.asarray(examples)], axis=0)
    circle = rng.permutation(len(groups))
    following = {tuple(groups[a]): groups[b] for a, b in zip(circle, np.roll(circle, -1), strict=True)}
    result = corpus.images_of.copy()
    for example in examples:
        result[example] = following[tuple(photos_of[example])]
    return result

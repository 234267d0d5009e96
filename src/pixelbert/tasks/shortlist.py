"""The first stage of a search: images and sentences compared by the two-tower head, without the joint transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pixelbert.data.photos import Photos
from pixelbert.data.processing import PixelBertProcessor
from pixelbert.device import Precision
from pixelbert.metrics.retrieval import recall_at_k, shortlist_recall
from pixelbert.model.pixels import PixelFeatures
from pixelbert.tasks.scoring import IMAGES_AT_ONCE, SENTENCES_AT_ONCE, encode_images
from pixelbert.tasks.steps import move, text_inputs

SIZES = (20, 50, 100, 200)  # of short lists that are reported


@torch.inference_mode()
def tower_scores(
    model: Any,
    processor: PixelBertProcessor,
    photos: Photos,
    captions: Sequence[int],
    images: Sequence[int],
    *,
    features: PixelFeatures | None = None,
    precision: Precision = "bf16",
) -> np.ndarray:
    """The two-tower head's cosine of every caption with every image: (captions, images) float32, from -1 to 1.

    Args:
        captions: examples, the rows.
        images: image numbers, the columns.
        features: their pixel embeddings, if they are encoded already.
    """
    was_training = model.training
    model.eval()
    tokens = processor.tokens([photos.corpus.text(e) for e in captions])
    by_length = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        parts = (
            [features]
            if features is not None
            else (  # a few at a time: vectors are small, pixels are not
                encode_images(model, photos, images[i : i + IMAGES_AT_ONCE], show=False)
                for i in range(0, len(images), IMAGES_AT_ONCE)
            )
        )
        of_images = torch.cat([model.pixelbert.embed_images(part) for part in parts])
        scores = np.empty((len(captions), len(images)), dtype=np.float32)
        for start in range(0, len(by_length), SENTENCES_AT_ONCE):
            rows = by_length[start : start + SENTENCES_AT_ONCE]
            text = text_inputs([tokens[i] for i in rows], processor.tokenizer.pad_token_id)
            of_texts = model.pixelbert.embed_texts(**move(text, model.device))
            with torch.autocast(model.device.type, enabled=False):  # rounded products would tie
                scores[rows] = (of_texts @ of_images.T).cpu().numpy()
    model.train(was_training)
    return scores


def tower_recall(
    model: Any, processor: PixelBertProcessor, photos: Photos, *, images: int, precision: Precision
) -> dict[str, float]:
    """Recall both ways by the two-tower head alone, among the first `images` of a split, one caption each."""
    groups = photos.corpus.examples_of_images(images)
    captions = [examples[0] for examples in groups.values()]
    scores = tower_scores(model, processor, photos, captions, list(groups), precision=precision)
    found = recall_at_k(scores.T, np.arange(len(captions)), photo=photos.corpus.photos[list(groups)])
    return {"tower_images": len(groups)} | {f"tower_{name}": value for name, value in found.items()}


def kept_by_shortlist(scores: np.ndarray, first_stage: np.ndarray, way: str) -> dict[str, float]:
    """`shortlist_recall` as metrics: text_to_image_top5_kept_by_50, ... for short lists of `SIZES`.

    Args:
        scores, first_stage: (queries, items).
        way: with which the names begin.
    """
    kept = shortlist_recall(scores, first_stage, [size for size in SIZES if size < scores.shape[1]])
    return {f"{way}_top{k}_kept_by_{size}": share for size, of in kept.items() for k, share in of.items()}


def shortlisted(first_stage: np.ndarray, size: int) -> np.ndarray:
    """(queries, items) true at each query's `size` highest."""
    chosen = np.zeros(first_stage.shape, dtype=bool)
    highest = np.argpartition(-first_stage, min(size, first_stage.shape[1]) - 1, axis=1)[:, :size]
    np.put_along_axis(chosen, highest, True, axis=1)
    return chosen


def two_stage(scores: np.ndarray, first_stage: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(queries, items): the short list by its exact scores, and behind it the rest by the first stage's."""
    below = np.nanmin(scores) - 2.0  # the first stage's are cosines: at most 1 above 0
    return np.where(chosen, scores, below + first_stage).astype(np.float32)

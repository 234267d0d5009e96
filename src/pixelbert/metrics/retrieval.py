"""Recall at k (paper section 4.2, Tables 4 and 5) from a matrix of scores, as a pure function."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def recall_at_k(scores: np.ndarray, caption_image: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall of text-to-image and image-to-text retrieval.

    A query is answered at k if one of its right items is among the k best. A right item's place counts all wrong items
    with a score at least as high, so ties are broken against the model and a constant score gets chance, not 1.

    Args:
        scores: (images, captions), higher is better.
        caption_image: (captions,) the row of each caption's own image; every image has at least one caption.

    Returns:
        text_to_image_r1, ..., image_to_text_r1, ... in [0, 1].
    """
    if scores.ndim != 2 or scores.shape[1] != len(caption_image):
        raise ValueError(f"scores {scores.shape} and {len(caption_image)} captions: expected (images, captions)")
    if np.isnan(scores).any():
        raise ValueError("scores contain NaN, which has no place in a ranking")
    captions = np.arange(scores.shape[1])
    own = np.zeros(scores.shape, dtype=bool)
    own[caption_image, captions] = True
    if not own.any(axis=1).all():
        raise ValueError("an image without captions can't be retrieved by any; leave it out")
    text_rank = places(scores.T, own.T)
    image_rank = places(scores, own)
    recall = {f"text_to_image_r{k}": float((text_rank < k).mean()) for k in ks}
    return recall | {f"image_to_text_r{k}": float((image_rank < k).mean()) for k in ks}


def places(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(queries,) the place, from 0, of each query's best right item; `scores` and `right` are (queries, items)."""
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    return ((scores >= best) & ~right).sum(axis=1)

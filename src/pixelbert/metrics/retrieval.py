"""Recall at k (paper section 4.2, Tables 4 and 5) from a matrix of scores, as a pure function."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

BLOCK = 1 << 22  # scores in memory at once


def recall_at_k(
    scores: np.ndarray, caption_image: np.ndarray, ks: Sequence[int] = (1, 5, 10), *, photo: np.ndarray | None = None
) -> dict[str, float]:
    """Recall of text-to-image and image-to-text retrieval.

    A query is answered at k if one of its right items is among the k best. A right item's place counts all wrong items
    with a score at least as high, so ties are broken against the model and a constant score gets chance, not 1.

    Args:
        scores: (images, captions), higher is better. It is read a block at a time, so it may be mapped from disk.
        caption_image: (captions,) the row of each caption's own image; every image has at least one caption.
        photo: (images,) a number for each, the same where two are the same photo: such stand in the ranking as one,
            whose captions are those of both. All are different if None.

    Returns:
        text_to_image_r1, ..., image_to_text_r1, ... in [0, 1].

    Raises:
        ValueError: shapes that do not fit, NaN, an image without captions.
    """
    check(scores, caption_image)
    if photo is not None:
        scores, caption_image = each_photo_once(scores, caption_image, photo)
    own = np.asarray(scores[caption_image, np.arange(scores.shape[1])])  # (captions,) of each with its own image
    refuse_nan(own)
    best = np.full(scores.shape[0], own.min(), dtype=own.dtype)  # (images,) of each with its best own caption
    np.maximum.at(best, caption_image, own)

    # How many items score at least as high as the right one, and then without the right ones themselves: every caption
    # has one right image, and an image has as many as share its best score.
    text_rank = np.full(scores.shape[1], -1)
    image_rank = -np.bincount(caption_image[own == best[caption_image]], minlength=scores.shape[0])
    for images, captions in blocks(scores):
        block = scores[images, captions]
        refuse_nan(block)
        text_rank[captions] += (block >= own[captions]).sum(axis=0)
        image_rank[images] += (block >= best[images, None]).sum(axis=1)
    recall = {f"text_to_image_r{k}": float((text_rank < k).mean()) for k in ks}
    return recall | {f"image_to_text_r{k}": float((image_rank < k).mean()) for k in ks}


def fold_recall(
    scores: np.ndarray,
    caption_image: np.ndarray,
    folds: int = 5,
    ks: Sequence[int] = (1, 5, 10),
    *,
    photo: np.ndarray | None = None,
) -> dict[str, float]:
    """The mean of the recalls within equal folds: COCO's "1K test" is five folds of its 5,000 test images.

    The images are cut into folds in their order, and each takes its own captions along.

    Args:
        scores: (images, captions), as in `recall_at_k`.
        caption_image: (captions,) the row of each caption's own image.
        folds: how many; the images must divide into them.
        photo: (images,) as in `recall_at_k`.

    Returns:
        As `recall_at_k`.

    Raises:
        ValueError: as `recall_at_k`, or the images do not divide.
    """
    check(scores, caption_image)
    if folds < 1 or scores.shape[0] % folds:
        raise ValueError(f"{scores.shape[0]} images do not divide into {folds} equal folds")
    size = scores.shape[0] // folds
    results = []
    for start in range(0, scores.shape[0], size):
        captions = np.flatnonzero((caption_image >= start) & (caption_image < start + size))
        rows = slice(start, start + size)
        alike = None if photo is None else photo[rows]
        results.append(recall_at_k(scores[rows, captions], caption_image[captions] - start, ks, photo=alike))
    return {name: sum(result[name] for result in results) / folds for name in results[0]}


def query_recall(scores: np.ndarray, right: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Recall at k of one way, for some of the queries: an estimate where all pairs are too dear to score.

    Args:
        scores: (queries, items), higher is better; all items, or it is another task.
        right: (queries, items) true where an item is right; ties count against the model as in `recall_at_k`.

    Returns:
        k -> recall in [0, 1].
    """
    refuse_nan(scores)
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    place = ((scores >= best) & ~right).sum(axis=1)
    return {k: float((place < k).mean()) for k in ks}


def shortlist_recall(
    scores: np.ndarray, first_stage: np.ndarray, sizes: Sequence[int], ks: Sequence[int] = (1, 5, 10)
) -> dict[int, dict[int, float]]:
    """How much of what the exact scores rank highest a short list keeps.

    Args:
        scores: (queries, items), the exact ones.
        first_stage: (queries, items), those that the short list is drawn by.
        sizes: of the short list.

    Returns:
        size -> k -> the share of each query's k best items by `scores` that are on its list, mean over queries.
    """
    refuse_nan(scores)
    best = np.argsort(-scores, axis=1, kind="stable")[:, : max(ks)]
    place = np.empty(first_stage.shape, dtype=np.int64)  # in the first stage's ranking
    order = np.argsort(-first_stage, axis=1, kind="stable")
    np.put_along_axis(place, order, np.arange(order.shape[1])[None], axis=1)
    of_best = np.take_along_axis(place, best, axis=1)
    return {size: {k: float((of_best[:, :k] < size).mean()) for k in ks} for size in sizes}


def each_photo_once(scores: np.ndarray, caption_image: np.ndarray, photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and `caption_image` with the first row alone of those that are one photo."""
    _, first, row = np.unique(photo, return_index=True, return_inverse=True)
    return (scores, caption_image) if len(first) == len(photo) else (scores[first], row[caption_image])


def check(scores: np.ndarray, caption_image: np.ndarray) -> None:
    if scores.ndim != 2 or scores.shape[1] != len(caption_image) or not scores.size:
        raise ValueError(f"scores {scores.shape} and {len(caption_image)} captions: expected (images, captions)")
    if caption_image.min() < 0 or caption_image.max() >= scores.shape[0]:
        raise ValueError(f"a caption's image is not one of the {scores.shape[0]} rows")
    if len(np.unique(caption_image)) < scores.shape[0]:
        raise ValueError("an image without captions can't be retrieved by any; leave it out")


def refuse_nan(scores: np.ndarray) -> None:
    if np.isnan(scores).any():
        raise ValueError("scores contain NaN, which has no place in a ranking")


def blocks(scores: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Rectangles that cover the matrix, each in one piece of memory or file where the matrix is."""
    images, captions = scores.shape
    if scores.strides[0] >= scores.strides[1]:
        step = max(1, BLOCK // captions)
        yield from ((slice(i, i + step), slice(None)) for i in range(0, images, step))
    else:
        step = max(1, BLOCK // images)
        yield from ((slice(None), slice(c, c + step)) for c in range(0, captions, step))

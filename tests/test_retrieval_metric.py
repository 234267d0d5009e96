"""Recall at k against hand-computed values and against sorting, with ties broken pessimistically."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelbert.metrics.retrieval import recall_at_k


def test_by_hand() -> None:
    # Images 0 and 1; captions 0 and 1 belong to image 0, caption 2 to image 1.
    scores = np.array([[0.9, 0.1, 0.8], [0.2, 0.3, 0.7]])
    result = recall_at_k(scores, np.array([0, 0, 1]), ks=(1, 2))
    # Image 0 ranks caption 0 first; image 1 ranks caption 2 first.
    assert result["image_to_text_r1"] == 1.0
    # Caption 0 finds image 0; caption 1 prefers image 1 (0.3 > 0.1); caption 2 prefers image 0 (0.8 > 0.7).
    assert result["text_to_image_r1"] == pytest.approx(1 / 3)
    assert result["text_to_image_r2"] == 1.0


def test_a_constant_score_finds_nothing() -> None:
    result = recall_at_k(np.zeros((20, 20)), np.arange(20))
    assert result["text_to_image_r1"] == result["image_to_text_r10"] == 0.0


def test_the_diagonal_is_perfect() -> None:
    result = recall_at_k(np.eye(12), np.arange(12))
    assert set(result.values()) == {1.0}


@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(1, 3))
def test_equals_sorting_when_no_scores_tie(seed: int, images: int, captions_each: int) -> None:
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(images), captions_each)
    scores = rng.permutation(images * len(owner)).reshape(images, len(owner)).astype(float)
    result = recall_at_k(scores, owner, ks=(1, 2))
    for k in (1, 2):
        texts = [any(owner[c] == i for c in np.argsort(-scores[i])[:k]) for i in range(images)]
        photos = [owner[c] in np.argsort(-scores[:, c])[:k] for c in range(len(owner))]
        assert result[f"image_to_text_r{k}"] == pytest.approx(np.mean(texts))
        assert result[f"text_to_image_r{k}"] == pytest.approx(np.mean(photos))


@pytest.mark.parametrize(
    ("scores", "owner", "message"),
    [
        (np.zeros((2, 3)), np.zeros(2, int), "expected"),
        (np.array([[np.nan, 1.0]]), np.zeros(2, int), "NaN"),
        (np.zeros((2, 2)), np.zeros(2, int), "without captions"),
    ],
)
def test_refuses_what_can_not_be_ranked(scores: np.ndarray, owner: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recall_at_k(scores, owner)

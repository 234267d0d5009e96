"""Recall at k against hand-computed values and against sorting, with ties broken pessimistically."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelbert.metrics import retrieval
from pixelbert.metrics.retrieval import fold_recall, query_recall, recall_at_k, shortlist_recall
from pixelbert.tasks.shortlist import shortlisted, two_stage


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


def test_ties_by_hand() -> None:
    # Image 0 has captions 0 and 1, image 1 has caption 2.
    scores = np.array([[0.5, 0.5, 0.5], [0.1, 0.5, 0.6]])
    result = recall_at_k(scores, np.array([0, 0, 1]), ks=(1, 2))
    # Image 0: its own two captions tie, which is no harm, but so does the wrong one: place 1. Image 1: place 0.
    assert (result["image_to_text_r1"], result["image_to_text_r2"]) == (0.5, 1.0)
    # Caption 0 finds image 0 (0.5 > 0.1); caption 1 ties; caption 2 finds image 1 (0.6 > 0.5).
    assert result["text_to_image_r1"] == pytest.approx(2 / 3)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 4), st.integers(1, 60), st.booleans())
def test_places_count_every_wrong_item_that_scores_as_high(
    seed: int, images: int, captions_each: int, block: int, transposed: bool
) -> None:
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.repeat(np.arange(images), captions_each))
    scores = rng.integers(0, 4, (images, len(owner))).astype(np.float32)  # ties abound
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "BLOCK", block)
        result = recall_at_k(np.asfortranarray(scores) if transposed else scores, owner, ks=(1, 2, 3))
    photo_place = [
        sum(scores[i, c] >= scores[owner[c], c] for i in range(images) if i != owner[c]) for c in range(len(owner))
    ]
    text_place = [
        sum(scores[i, c] >= scores[i, owner == i].max() for c in range(len(owner)) if owner[c] != i)
        for i in range(images)
    ]
    for k in (1, 2, 3):
        assert result[f"text_to_image_r{k}"] == pytest.approx(np.mean([place < k for place in photo_place]))
        assert result[f"image_to_text_r{k}"] == pytest.approx(np.mean([place < k for place in text_place]))


def test_a_matrix_on_disk_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scores, owner = rng.normal(size=(60, 20)).astype(np.float32), np.repeat(np.arange(20), 3)
    np.save(tmp_path / "scores.npy", scores)
    expected = recall_at_k(scores.T.copy(), owner)
    monkeypatch.setattr(retrieval, "BLOCK", 100)
    rectangles = []
    monkeypatch.setattr(np, "isnan", lambda block, isnan=np.isnan: rectangles.append(block.shape) or isnan(block))
    mapped = np.load(tmp_path / "scores.npy", mmap_mode="r")
    assert recall_at_k(mapped.T, owner) == expected
    assert rectangles[1:] == [(20, 5)] * 12  # five captions with all images are together on disk


def test_folds_by_hand() -> None:
    # Four images with a caption each. Each caption prefers an image of the other half, which its fold has not.
    scores = np.eye(4) + 2 * np.eye(4)[[2, 3, 0, 1]]
    scores[0, 1] = 1.5  # within the first fold: caption 1 prefers image 0, and so image 0 prefers caption 1
    assert recall_at_k(scores, np.arange(4), ks=(1,))["text_to_image_r1"] == 0
    # Fold 1: caption 0 finds image 0, caption 1 does not find image 1. Fold 2: both. Mean 0.75; likewise the other way.
    expected = {"text_to_image_r1": 0.75, "image_to_text_r1": 0.75}
    assert fold_recall(scores, np.arange(4), folds=2, ks=(1,)) == expected
    assert fold_recall(scores, np.arange(4), folds=1, ks=(1,)) == recall_at_k(scores, np.arange(4), ks=(1,))


def test_folds_take_their_own_captions_along() -> None:
    rng = np.random.default_rng(0)
    owner = rng.permutation(np.repeat(np.arange(6), 2))
    scores = rng.normal(size=(6, 12))
    halves = []
    for images in (range(3), range(3, 6)):
        captions = [c for c in range(12) if owner[c] in images]
        halves.append(recall_at_k(scores[np.ix_(images, captions)], owner[captions] - images[0], ks=(1, 5)))
    result = fold_recall(scores, owner, folds=2, ks=(1, 5))
    assert result == {name: pytest.approx((halves[0][name] + halves[1][name]) / 2) for name in halves[0]}
    with pytest.raises(ValueError, match="6 images do not divide into 4"):
        fold_recall(scores, owner, folds=4)


@pytest.mark.parametrize(
    ("scores", "owner", "message"),
    [
        (np.zeros((2, 3)), np.zeros(2, int), "expected"),
        (np.array([[np.nan, 1.0]]), np.zeros(2, int), "NaN"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), np.arange(2), "NaN"),  # in a wrong pair
        (np.zeros((2, 2)), np.zeros(2, int), "without captions"),
        (np.zeros((2, 2)), np.array([0, 2]), "not one of the 2 rows"),
        (np.zeros((2, 2)), np.array([0, -1]), "not one of the 2 rows"),
        (np.zeros((0, 0)), np.zeros(0, int), "expected"),
    ],
)
def test_refuses_what_can_not_be_ranked(scores: np.ndarray, owner: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recall_at_k(scores, owner)


def test_some_queries_alone_rank_as_they_do_among_all() -> None:
    rng = np.random.default_rng(4)
    scores, owner = rng.integers(0, 5, (8, 24)).astype(float), np.repeat(np.arange(8), 3)
    right = owner == np.arange(8)[:, None]
    whole = recall_at_k(scores, owner)
    for k in (1, 5, 10):
        assert query_recall(scores, right)[k] == whole[f"image_to_text_r{k}"]
        assert query_recall(scores.T, right.T)[k] == whole[f"text_to_image_r{k}"]
    assert query_recall(np.zeros((2, 9)), np.eye(2, 9, dtype=bool))[5] == 0  # ties count against the model


class TestShortList:
    def test_by_hand(self) -> None:
        exact = np.array([[0.9, 0.8, 0.1, 0.2], [0.1, 0.2, 0.3, 0.4]])
        first = np.array([[0.1, 0.9, 0.5, 0.4], [0.1, 0.2, 0.3, 0.4]])
        kept = shortlist_recall(exact, first, sizes=(1, 2, 4), ks=(1, 2))
        # The first query's best, item 0, is the first stage's last; its second best is the first stage's first.
        assert kept == {1: {1: 0.5, 2: 0.5}, 2: {1: 0.5, 2: 0.75}, 4: {1: 1.0, 2: 1.0}}

    @given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 12))
    def test_a_list_of_everything_keeps_everything_and_longer_ones_more(
        self, seed: int, queries: int, items: int
    ) -> None:
        rng = np.random.default_rng(seed)
        exact, first = rng.normal(size=(2, queries, items))
        kept = shortlist_recall(exact, first, sizes=range(1, items + 1), ks=(1,))
        shares = [kept[size][1] for size in range(1, items + 1)]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        same = shortlist_recall(exact, exact, sizes=(1,), ks=(1,))
        assert same[1][1] == 1.0

    @given(st.integers(0, 2**32 - 1), st.integers(1, 12))
    def test_the_list_stands_before_the_rest(self, seed: int, size: int) -> None:
        rng = np.random.default_rng(seed)
        exact, first = rng.normal(size=(4, 10)) * 10, rng.uniform(-1, 1, size=(4, 10))
        chosen = shortlisted(first, size)
        assert (chosen.sum(1) == min(size, 10)).all()
        scores = two_stage(np.where(chosen, exact, np.nan), first, chosen)
        for row in range(4):
            order = np.argsort(-scores[row])
            inside = [i for i in np.argsort(-exact[row]) if chosen[row, i]]
            outside = [i for i in np.argsort(-first[row]) if not chosen[row, i]]
            assert order.tolist() == inside + outside

"""NLVR2 accuracy and consistency, by hand from the official script's definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelbert.metrics.nlvr2 import nlvr2_scores, sentence_group

LABELS = {
    "dev-850-0-0": False,
    "dev-850-2-0": True,  # the same sentence with another pair of photos
    "dev-850-0-1": True,  # another sentence about the first pair
    "dev-18-0-0": True,  # another set
}


def test_by_hand() -> None:
    predictions = LABELS | {"dev-850-2-0": False}
    # Three of four are right; of the three sentences (850-0, 850-1, 18-0) the first is not right throughout.
    assert nlvr2_scores(predictions, LABELS) == pytest.approx({"accuracy": 75, "consistency": 200 / 3}, abs=1e-12)
    assert nlvr2_scores(LABELS, LABELS) == {"accuracy": 100, "consistency": 100}
    wrong = {identifier: not label for identifier, label in LABELS.items()}
    assert nlvr2_scores(wrong, LABELS) == {"accuracy": 0, "consistency": 0}


def test_consistency_does_not_depend_on_the_order() -> None:
    first_wrong, last_wrong = LABELS | {"dev-850-0-0": True}, LABELS | {"dev-850-2-0": False}
    assert nlvr2_scores(first_wrong, LABELS) == nlvr2_scores(last_wrong, LABELS)


def test_the_group_is_all_but_the_pair() -> None:
    assert sentence_group("dev-850-0-0") == sentence_group("dev-850-3-0")
    different = ["dev-850-0-0", "dev-850-0-1", "dev-85-0-0", "test1-850-0-0"]
    assert len({sentence_group(identifier) for identifier in different}) == 4
    with pytest.raises(ValueError, match="'850' is not of the form"):
        sentence_group("850")


@given(st.dictionaries(st.tuples(*[st.integers(0, 3)] * 3), st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_a_sentence_counts_if_all_its_examples_are_right(examples: dict) -> None:
    labels = {"dev-{}-{}-{}".format(*key): label for key, (label, _) in examples.items()}
    predictions = {"dev-{}-{}-{}".format(*key): predicted for key, (_, predicted) in examples.items()}
    sentences = {(s, n) for s, _, n in examples}
    consistent = [all(a == b for (s, _, n), (a, b) in examples.items() if (s, n) == which) for which in sentences]
    result = nlvr2_scores(predictions, labels)
    assert result["consistency"] == pytest.approx(100 * sum(consistent) / len(sentences))
    assert result["accuracy"] == pytest.approx(100 * sum(a == b for a, b in examples.values()) / len(examples))


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="'dev-18-0-0' is in one only"):
        nlvr2_scores({i: True for i in LABELS if i != "dev-18-0-0"}, LABELS)
    with pytest.raises(ValueError, match="no examples"):
        nlvr2_scores({}, {})

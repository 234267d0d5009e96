"""VQA accuracy. Expected values are written by hand from the official evaluator's definition, which is public."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelbert.metrics.vqa import answer_accuracy, normalise_answer, soft_targets, vqa_accuracy, vqa_scores

OTHERS = [f"other {letter}" for letter in "bcdefghijk"]


def ten(answer: str, count: int) -> list[str]:
    """Ten answers: this one so many times, then different ones."""
    return [answer] * count + OTHERS[: 10 - count]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # articles, as words only, wherever they stand
        ("a cat", "cat"),
        ("The cat and an owl", "cat and owl"),
        ("the", ""),
        ("theater", "theater"),
        ("A", ""),
        # number words up to ten, as words only; "none" is 0
        ("two dogs", "2 dogs"),
        ("TEN", "10"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("someone", "someone"),
        ("twenty one", "twenty 1"),
        ("7", "7"),
        # contractions get the apostrophe that is missing; the right ones stay
        ("dont know", "don't know"),
        ("don't know", "don't know"),
        ("Its", "its"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yalld've", "yalld've"),
        ("y'alld've", "y'all'd've"),
        ("ow's'at", "'ow's'at"),
        ("somebody'd", "somebodyd"),
        ("im", "im"),
        ("lets", "lets"),
        ("don\u2019t", "don\u2019t"),
        # a mark within a word becomes a space, beside a space nothing
        ("t-shirt", "t shirt"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("black/ white", "black white"),
        ("black and-white /grey", "black and white grey"),
        ("a/b/ c", "ab c"),
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("yes!", "yes"),
        ("why?", "why"),
        ('"stop"', "stop"),
        ("(c) [d] {e} <f>", "c d e f"),
        ("rock&roll", "rock&roll"),
        ("10:30", "10:30"),
        ("50%", "50%"),
        ("$5", "$5"),
        ("it's", "it's"),
        # a comma between two digits takes all marks away, in the whole answer
        ("1,000", "1000"),
        ("1,000,000", "1000000"),
        ("1,000 t-shirts", "1000 tshirts"),
        ("1, 000", "1 000"),
        # a period goes unless a digit follows it
        ("yes.", "yes"),
        ("u.s.a.", "usa"),
        ("1.5", "1.5"),
        (".5", ".5"),
        ("5.", "5"),
        ("no. 5", "no 5"),
        ("x.5", "x.5"),
        ("3.50.", "3.50"),
        ("x" + 40 * ".", "x" + 8 * "."),  # 32 of them at most: the evaluator hands a flag where the count stands
        # case and space
        ("New York", "new york"),
        ("  spaced   out  ", "spaced out"),
        ("line\nbreak", "line break"),
        ("tab\there", "tab here"),
        ("CAFÉ", "café"),
        ("", ""),
        (" \n\t", ""),
        ("?", ""),
        # order: marks, periods, lower case, number words, articles, contractions
        ("The. Two-Dogs", "2 dogs"),
        ("a.", ""),
        ("one,two", "1 2"),
        ("d-o-n-t", "d o n t"),
        ("do_nt", "do nt"),
        ("don`t", "don t"),
    ],
)
def test_normalisation(answer: str, expected: str) -> None:
    assert normalise_answer(answer) == expected


@pytest.mark.parametrize(("count", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)])
def test_ten_choose_nine(count: int, expected: float) -> None:
    # One annotator at a time is left out, n of the ten times one who gave this answer:
    # (n min(1, (n - 1) / 3) + (10 - n) min(1, n / 3)) / 10.
    prediction = "cat" if count else "dog"
    assert vqa_accuracy(prediction, ten("cat", count)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        # All ten different: each is worth one annotator, once normalised.
        ("2", ["two", *OTHERS[:9]], 0.3),
        ("the 2.", ["two", "2", "Two", *OTHERS[:7]], 0.9),
        ("other b", OTHERS, 0.3),
        ("OTHER  B!", OTHERS, 0.3),
        ("dont", ["don't", "Dont", *OTHERS[:8]], 0.6),
        ("1000", ["1,000", *OTHERS[:9]], 0.3),
        # Answers that become the same only by normalisation still count together.
        ("t shirt", ["t-shirt"] * 9 + ["t shirt"], 1.0),
        ("", ["a"] * 5 + ["the"] * 5, 1.0),
        # All ten the same: nothing is normalised but the space around, line breaks and tabs.
        ("yes", ["yes"] * 10, 1.0),
        ("Yes", ["yes"] * 10, 0.0),
        ("yes.", ["yes"] * 10, 0.0),
        ("t shirt", ["t-shirt"] * 10, 0.0),
        ("t-shirt", ["t-shirt"] * 10, 1.0),
        ("2", ["two"] * 10, 0.0),
        ("cat", ["a cat"] * 10, 0.0),
        (" yes\n", ["yes"] * 10, 1.0),
        ("yes", ["yes", " yes", "yes\n", "\tyes"] + ["yes "] * 6, 1.0),
        ("no\tway", ["no\nway"] * 10, 1.0),
        # One differs, be it by a capital letter: all are normalised.
        ("YES.", ["yes"] * 9 + ["Yes"], 1.0),
    ],
)
def test_when_answers_are_normalised(prediction: str, answers: list[str], expected: float) -> None:
    assert vqa_accuracy(prediction, answers) == pytest.approx(expected, abs=1e-12)
    assert answer_accuracy(prediction, answers) == vqa_accuracy(prediction, answers)


MARKS = "".join(set(string.punctuation) & set(';/[]"{}()=+\\_-><@`,?!'))
answers = st.lists(
    st.sampled_from(["a", "The", "two", "1,000", "1.5", "dont", "-", ",", ".", " ", "\n", "é", "Yes", "/", "?"]),
    max_size=6,
).map("".join) | st.text(max_size=8)


@given(answers)
def test_what_a_normalised_answer_looks_like(answer: str) -> None:
    normalised = normalise_answer(answer)
    assert not set(normalised) & set(MARKS)
    assert normalised == " ".join(normalised.split())
    assert normalise_answer(f"\n{answer}\t ") == normalised
    assert not {"a", "an", "the", "none", "two"} & set(normalised.split())


@given(answers, st.lists(answers, min_size=10, max_size=10))
def test_leaving_one_out_by_hand(prediction: str, ten_answers: list[str]) -> None:
    if len({a.replace("\n", " ").replace("\t", " ").strip() for a in ten_answers}) > 1:
        given_, said = [normalise_answer(a) for a in ten_answers], normalise_answer(prediction)
    else:
        given_, said = [a.strip() for a in ten_answers], prediction.strip()
    each = [min(1, sum(a == said for a in given_[:i] + given_[i + 1 :]) / 3) for i in range(10)]
    assert vqa_accuracy(prediction, ten_answers) == pytest.approx(sum(each) / 10, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("The cat.", ["cat"], 1.0),
        ("dog", ["cat"], 0.0),
        ("cat", ["cat", "dog"], 0.5),
        ("cat", ["cat", "A cat"], 1.0),
        ("cat", ["cat", "dog", "cow"], 1 / 3),
        ("cat", ["cat", "cat", "cow", "cow", "cow"], 2 / 3),
        ("cow", ["cat", "cow", "cow", "cow", "cow"], 1.0),
        ("cat", ["cat", *OTHERS], 1 / 3),  # eleven
    ],
)
def test_another_number_of_answers(prediction: str, answers: list[str], expected: float) -> None:
    assert answer_accuracy(prediction, answers) == pytest.approx(expected, abs=1e-12)


def test_how_many_answers_there_must_be() -> None:
    with pytest.raises(ValueError, match="not 9"):
        vqa_accuracy("yes", ["yes"] * 9)
    with pytest.raises(ValueError, match="without answers"):
        answer_accuracy("yes", [])


def test_soft_targets() -> None:
    vocabulary = {"cat": 7, "2": 0, "dog": 1, "t shirt": 3, "cow": 5}
    answers = ["Cat", "the cat", "two", "2", "dog.", "t-shirt", "t-shirt", "t shirt", "T-Shirt", "not listed"]
    expected = {7: 0.6, 0: 0.6, 1: 0.3, 3: 1.0}
    assert soft_targets(answers, vocabulary) == pytest.approx(expected, abs=1e-12)
    assert soft_targets(["cat"] * 3 + OTHERS[:7], vocabulary) == pytest.approx({7: 0.9}, abs=1e-12)
    assert soft_targets(["A cat"] * 10, vocabulary) == {7: 1.0}  # where the metric itself would not normalise
    assert soft_targets(["A cat"], vocabulary) == {7: 1.0}
    assert soft_targets(["cat", "dog", "dog", "dog"], vocabulary) == pytest.approx({7: 1 / 3, 1: 1.0})
    assert soft_targets(OTHERS, vocabulary) == {}


@given(st.lists(st.sampled_from(["A cat", "cat", "two", "2.", "dog", "cow", "x-y"]), min_size=10, max_size=10))
def test_a_target_is_what_the_answer_would_score(ten_answers: list[str]) -> None:
    vocabulary = {"cat": 0, "2": 1, "dog": 2, "cow": 3, "x y": 4}
    targets = soft_targets(ten_answers, vocabulary)
    if len(set(ten_answers)) > 1:
        for answer, place in vocabulary.items():
            assert targets.get(place, 0.0) == pytest.approx(vqa_accuracy(answer, ten_answers), abs=1e-12)


def test_scores_of_many_questions() -> None:
    given_ = {1: ten("cat", 1), 2: ten("two", 3), 3: ["yes"] * 10, 4: ["no"] * 10}
    said = {3: "yes", 1: "cat", 2: "2", 4: "No"}
    result = vqa_scores(said, given_, {1: "other", 2: "number", 3: "yes/no", 4: "yes/no"}, {1: "what", 3: "is"})
    assert result["per_question"] == pytest.approx({1: 30, 2: 90, 3: 100, 4: 0}, abs=1e-9)
    assert list(result["per_question"]) == [1, 2, 3, 4]
    assert result["overall"] == pytest.approx(55, abs=1e-9)
    assert result["per_answer_type"] == pytest.approx({"other": 30, "number": 90, "yes/no": 50}, abs=1e-9)
    assert result["per_question_type"] == pytest.approx({"what": 30, "is": 100}, abs=1e-9)
    assert set(vqa_scores(said, given_)) == {"overall", "per_question"}


def test_scores_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="2 is in one only"):
        vqa_scores({1: "yes"}, {1: ["yes"], 2: ["no"]})
    with pytest.raises(ValueError, match="no questions"):
        vqa_scores({}, {})

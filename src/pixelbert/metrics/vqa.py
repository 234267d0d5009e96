"""VQA accuracy (paper section 4.2, Table 2), equal to the official evaluator, as pure functions over plain answers.

The definition is the official evaluation code's, github.com/GT-Vision-Lab/VQA, `PythonEvaluationTools/vqaEvaluation/
vqaEval.py` (commit a013f00 of 2021), described at visualqa.org/evaluation.html. Ten people answered each question. A
prediction is compared with every nine of the ten: it scores min(1, n / 3), where n of these nine gave it, and the ten
scores are averaged. Answers are normalised first, but only if the ten are not all the same: ten times "The cat" is
matched by "The cat" alone, neither by "cat" nor by "the cat".

Here the evaluator's rules stand as Python 3 runs them: its "digit" is any digit of Unicode.

These rules are made for VQA's answers. Of others they lose what matters: "-5" becomes "5", "C++" becomes "c", "A"
becomes nothing. So a data set says by which of `ANSWER_RULES` its answers are compared; a user's own have a mild one.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeVar

Id = TypeVar("Id", bound=Hashable)

ANNOTATORS = 10
ENOUGH = 3  # as many annotators as agree for a full score

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBER_WITH_COMMA = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
PERIODS_AT_MOST = 32  # the evaluator hands re.UNICODE, which is 32, to `sub` where its count stands

ARTICLES = frozenset({"a", "an", "the"})
UP_TO_TEN = "zero one two three four five six seven eight nine ten"
NUMBER_WORDS = {word: str(number) for number, word in enumerate(UP_TO_TEN.split())} | {"none": "0"}
# The evaluator's right spellings. It mends those from which one apostrophe is missing: "couldnt" and "couldn'tve", but
# not "couldntve". (It lists some with a capital I too, which never come to pass: its words are in lower case by then.)
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word
    for word in CONTRACTED.split()
    for i, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}  # the wrong way round, in the evaluator too


@lru_cache(maxsize=1 << 16)  # the answers to hundreds of thousands of questions are mostly the same few
def normalise_answer(answer: str) -> str:
    """An answer as the official evaluator compares it: "The  Two-Dogs." -> "2 dogs".

    Punctuation goes: a mark becomes a space; or nothing, if the answer has it beside a space, or has a comma between
    two digits anywhere. A period goes unless a digit follows. Then all is in lower case, number words up to ten are
    digits, articles are gone, contractions have their apostrophes and single spaces stand between words.
    """
    text = clean(answer)
    in_number = NUMBER_WITH_COMMA.search(text) is not None
    fates = {
        ord(mark): "" if in_number or f"{mark} " in text or f" {mark}" in text else " "
        for mark in PUNCTUATION
        if mark in text
    }
    text = PERIOD.sub("", text.translate(fates), count=PERIODS_AT_MOST)
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def clean(answer: str) -> str:
    """What the evaluator does to every answer, normalised or not: no line breaks, no tabs, no spaces around it."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)
def mild_answer(answer: str) -> str:
    """An answer in lower case, with single spaces and none around it: "  Two  Dogs" -> "two dogs", "-5" -> "-5"."""
    return " ".join(unicodedata.normalize("NFC", answer).lower().split())


AnswerRule = Literal["official", "mild", "exact"]
ANSWER_RULES: dict[AnswerRule, Callable[[str], str]] = {
    "official": normalise_answer,  # VQA's evaluator
    "mild": mild_answer,  # capitals and spaces don't count
    "exact": clean,  # as it is written
}


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The official accuracy of one prediction.

    Args:
        prediction: any text.
        answers: of the ten annotators, as the annotation file has them.

    Returns:
        In [0, 1]: 0, 0.3, 0.6, 0.9 or 1 for a prediction that 0, 1, 2, 3 or more of the ten gave.

    Raises:
        ValueError: not ten answers; `answer_accuracy` takes any number.
    """
    if len(answers) != ANNOTATORS:
        raise ValueError(f"VQA accuracy is defined on {ANNOTATORS} answers, not {len(answers)}")
    prediction, answers = clean(prediction), [clean(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalise_answer(prediction), [normalise_answer(answer) for answer in answers]
    return agreement(answers.count(prediction), ANNOTATORS)


def answer_accuracy(prediction: str, answers: Sequence[str], rule: AnswerRule = "official") -> float:
    """The accuracy of one prediction where a data set has its own number of answers a question, or its own rule.

    With ten answers and the official rule this is `vqa_accuracy`. Otherwise all are normalised, and an answer scores as
    in `agreement`: with a single annotator by exact match after normalisation.

    Args:
        rule: by which answers are compared.

    Raises:
        ValueError: no answers.
    """
    if rule == "official" and len(answers) == ANNOTATORS:
        return vqa_accuracy(prediction, answers)
    normalise = ANSWER_RULES[rule]
    return agreement([normalise(answer) for answer in answers].count(normalise(prediction)), len(answers))


def soft_targets(
    answers: Sequence[str], vocabulary_index: Mapping[str, int], rule: AnswerRule = "official"
) -> dict[int, float]:
    """What each answer of a vocabulary would score on one question: the targets of binary cross-entropy.

    Unlike the metric, this always normalises: where ten people say "A cat", "cat" is the answer to learn.

    Args:
        answers: of the annotators, ten or any other number.
        vocabulary_index: normalised answer -> its place.
        rule: by which answers are normalised.

    Returns:
        Place -> score in (0, 1], of the vocabulary's answers that an annotator gave; all others have 0.
    """
    counts = Counter(map(ANSWER_RULES[rule], answers))
    return {
        vocabulary_index[answer]: agreement(count, len(answers))
        for answer, count in counts.items()
        if answer in vocabulary_index
    }


def agreement(count: int, annotators: int) -> float:
    """The score of an answer that `count` of so many annotators gave: of ten the official one; of n others the share
    that they are of min(3, n), at most 1."""
    if annotators < 1:
        raise ValueError("a question without answers has no score")
    if annotators != ANNOTATORS:
        return min(1.0, count / min(ENOUGH, annotators))
    # Each annotator is left out once: those who gave this answer find one fewer among the other nine.
    with_it, without_it = min(1.0, (count - 1) / ENOUGH), min(1.0, count / ENOUGH)
    return (count * with_it + (annotators - count) * without_it) / annotators


def vqa_scores(
    predictions: Mapping[Id, str],
    answers: Mapping[Id, Sequence[str]],
    answer_types: Mapping[Id, str] | None = None,
    question_types: Mapping[Id, str] | None = None,
) -> dict[str, Any]:
    """Accuracy over many questions, as the evaluator averages it.

    Args:
        predictions: question id -> answer; exactly the questions of `answers`.
        answers: question id -> the annotators' answers. With ten each this is the official accuracy, otherwise that of
            `answer_accuracy`.
        answer_types: question id -> such as "yes/no", "number", "other". A question that has none counts overall alone.
        question_types: question id -> such as "what color is the", likewise.

    Returns:
        In percent, unrounded (the evaluator rounds to two digits): "overall"; "per_answer_type" and
        "per_question_type", {type: accuracy}, where types are given; "per_question", {id: accuracy} in the order of
        `answers`.

    Raises:
        ValueError: no questions, or predictions and answers are not of the same ones.
    """
    if not answers:
        raise ValueError("there are no questions to score")
    if different := predictions.keys() ^ answers.keys():
        raise ValueError(
            f"predictions and answers must be of the same questions; {next(iter(different))!r} is in one only"
        )
    per_question = {i: 100 * answer_accuracy(predictions[i], given) for i, given in answers.items()}
    result: dict[str, Any] = {"overall": mean(per_question.values())}
    for name, types in (("per_answer_type", answer_types), ("per_question_type", question_types)):
        if types is not None:
            of_type = defaultdict(list)
            for i, score in per_question.items():
                if i in types:
                    of_type[types[i]].append(score)
            result[name] = {kind: mean(scores) for kind, scores in sorted(of_type.items())}
    return result | {"per_question": per_question}


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)

"""The answers that a question answering model chooses from (paper 4.2): how they are found and what they cover.

The usual 3,129 answers of VQA v2 are the normalised most common answers (`multiple_choice_answer`) that at least 9
questions of train and val have, as hengyuan-hu/bottom-up-attention-vqa counts them (tools/compute_softscore.py).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from pixelbert.data.sources.common import read_json
from pixelbert.data.store import PreparedDataset
from pixelbert.errors import PixelBertError
from pixelbert.metrics.vqa import normalise_answer


def common_answers(answers: Iterable[str], min_count: int, where: object = "the answers") -> list[str]:
    """The normalised answers that stand there at least `min_count` times: most frequent first, ties by alphabet.

    Args:
        where: they come from, for the error.

    Raises:
        PixelBertError: there are none.
    """
    if min_count < 1:
        raise PixelBertError(f"min_count is {min_count}: it is a number of questions, 1 or more")
    counts = Counter(map(normalise_answer, answers))
    kept = [answer for answer, count in counts.items() if count >= min_count]
    if not kept:
        found = f"the most frequent one has {max(counts.values())}" if counts else "there is none at all"
        raise PixelBertError(
            f"{where}: no answer is that of {min_count} questions or more ({found}): lower --min-count, or name the "
            "answers with --answers"
        )
    return sorted(kept, key=lambda answer: (-counts[answer], answer))


def read_answers(path: Path) -> list[str]:
    """The answers in a JSON list, or those of a prepared data set, in their order.

    Raises:
        PixelBertError: it is neither, is empty, or has an answer twice.
    """
    path = Path(path)
    if path.is_dir():
        return PreparedDataset.open(path).answers
    answers = read_json(path)
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise PixelBertError(f'{path}: expected a JSON list of answers, such as ["yes", "no", "2"]')
    twice = [answer for answer, count in Counter(answers).items() if count > 1]
    if twice:
        raise PixelBertError(f"{path}: the answer {twice[0]!r} stands there twice, so its class is not clear")
    return answers


class Coverage:
    """How many questions have an answer at all, and how many one that a model can give.

    A question of which no answer is in the list stays in the data set and counts as wrong.

    Attributes:
        answers: the list.
        counts: of each split: `annotated` questions, and those `covered` by the list.
    """

    def __init__(self, answers: list[str]) -> None:
        self.answers = answers
        self.counts: dict[str, dict[str, int]] = {}
        self._known = frozenset(answers)

    def add(self, split: str, answers: Sequence[str]) -> None:
        """Takes one question's answers."""
        counts = self.counts.setdefault(split, {"annotated": 0, "covered": 0})
        if answers:
            counts["annotated"] += 1
            counts["covered"] += any(normalise_answer(answer) in self._known for answer in answers)

    def __str__(self) -> str:
        shares = [
            f"{split} {n['covered']:,} of {n['annotated']:,} ({n['covered'] / n['annotated']:.1%})"
            for split, n in self.counts.items()
            if n["annotated"]
        ]
        line = f"answers: {len(self.answers):,}"
        if shares:
            line += f"; annotated questions with at least one of them: {', '.join(shares)}"
        return line

"""The answers that a question answering model chooses from (paper 4.2): how they are found and what they cover.

The usual 3,129 answers of VQA v2 are the normalised most common answers (`multiple_choice_answer`) that at least 9
questions of train and val have, as hengyuan-hu/bottom-up-attention-vqa counts them (tools/compute_softscore.py).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pixelbert.data.sources.common import read_json, short
from pixelbert.data.store import PreparedDataset
from pixelbert.errors import PixelBertError
from pixelbert.metrics.vqa import ANSWER_RULES, AnswerRule

LOW_COVERAGE = 0.5  # of a split's questions
LISTED = 1000  # answers of which dataset.json lists how they were written


def common_answers(
    answers: Iterable[str], min_count: int, where: object = "the answers", rule: AnswerRule = "official"
) -> list[str]:
    """The normalised answers that stand there at least `min_count` times: most frequent first, ties by alphabet.

    Args:
        where: they come from, for the error.
        rule: by which they are normalised.

    Raises:
        PixelBertError: there are none.
    """
    if min_count < 1:
        raise PixelBertError(f"min_count is {min_count}: it is a number of questions, 1 or more")
    counts = Counter(map(ANSWER_RULES[rule], answers))
    kept = [answer for answer, count in counts.items() if count >= min_count]
    if not counts:
        raise PixelBertError(f"{where}: there is no answer at all to choose from: name the answers with --answers")
    if not kept:
        raise PixelBertError(
            f"{where}: no answer is that of {min_count} questions or more (the most frequent one has "
            f"{max(counts.values())}): lower --min-count, or name the answers with --answers"
        )
    return sorted(kept, key=lambda answer: (-counts[answer], answer))


def list_rule(path: Path | None) -> AnswerRule | None:
    """The rule by which a prepared data set's answers are compared; None if the path is no such folder."""
    return PreparedDataset.open(path).answer_rule if path is not None and Path(path).is_dir() else None


def read_answers(path: Path, rule: AnswerRule = "official") -> list[str]:
    """The answers in a JSON list, or those of a prepared data set, normalised, in their order.

    Raises:
        PixelBertError: it is neither, is empty, or has two that are the same by the rule, or one of which nothing is
            left.
    """
    path = Path(path)
    written = PreparedDataset.open(path).answers if path.is_dir() else read_json(path)
    if not isinstance(written, list) or not written or not all(isinstance(answer, str) for answer in written):
        raise PixelBertError(f'{path}: expected a JSON list of answers, such as ["yes", "no", "2"]')
    found: dict[str, str] = {}
    for answer in written:
        normal = ANSWER_RULES[rule](answer)
        if normal in found:
            both = (
                "stands there twice" if answer == found[normal] else f"and {found[normal]!r} are one by the rule {rule}"
            )
            raise PixelBertError(f"{path}: the answer {answer!r} {both}, so its class is not clear: keep one")
        if answer and not normal:
            raise PixelBertError(
                f"{path}: nothing is left of the answer {answer!r} by the rule {rule}: leave it out, or compare by "
                "another rule (--answer-rule of vqa-csv)"
            )
        found[normal] = answer
    return list(found)


class Coverage:
    """How many questions have an answer at all, how many one that a model can give, and what answers were written.

    A question of which no answer is in the list stays in the data set and counts as wrong.

    Attributes:
        answers: the list.
        rule: by which answers are compared with it.
        counts: of each split: `annotated` questions, and those `covered` by the list.
    """

    def __init__(self, answers: list[str], rule: AnswerRule) -> None:
        self.answers, self.rule = answers, rule
        self.counts: dict[str, dict[str, int]] = {}
        self._written: dict[str, dict[str, None]] = {answer: {} for answer in answers}  # each one's forms, in order
        self._emptied: Counter[str] = Counter()

    def add(self, split: str, answers: Sequence[str]) -> None:
        """Takes one question's answers."""
        counts = self.counts.setdefault(split, {"annotated": 0, "covered": 0})
        normal = [ANSWER_RULES[self.rule](answer) for answer in answers]
        counts["annotated"] += bool(answers)
        counts["covered"] += any(answer in self._written for answer in normal)
        for written, answer in zip(answers, normal, strict=True):
            if not answer:
                self._emptied[written] += 1
            elif answer in self._written:
                self._written[answer][written] = None

    def check(self) -> None:
        """Called when all questions were seen.

        Raises:
            PixelBertError: there are answers, and none of them is in the list.
        """
        annotated = sum(counts["annotated"] for counts in self.counts.values())
        if annotated and not any(counts["covered"] for counts in self.counts.values()):
            raise PixelBertError(
                f"none of the {annotated:,} questions with answers has one of the {len(self.answers):,} to choose from "
                f"({', '.join(map(short, self.answers[:5]))}), compared by the rule {self.rule}: check --answers"
            )

    @property
    def manifest(self) -> dict[str, Any]:
        """What dataset.json says of it: the list, the rule, the counts; how the answers with several forms were
        written, and the answers of which the rule leaves nothing, the first `LISTED` of each."""
        facts: dict[str, Any] = {"answers": self.answers, "answer_rule": self.rule, "annotated": self.counts}
        merged = self._merged()
        if merged:
            facts["merged_answers"] = {"count": len(merged), "written": dict(list(merged.items())[:LISTED])}
        if self._emptied:
            facts["emptied_answers"] = {"count": self._emptied.total(), "written": list(self._emptied)[:LISTED]}
        return facts

    def notes(self) -> list[str]:
        """The same in lines for people."""
        lines = [f"answers: {len(self.answers):,}, compared by the rule {self.rule}{self._shares()}"]
        for split, n in self.counts.items():
            if n["annotated"] and n["covered"] < LOW_COVERAGE * n["annotated"]:
                lines.append(
                    f"warning: {1 - n['covered'] / n['annotated']:.1%} of the questions of {split} have no answer that "
                    "a model can give, and count as wrong: are --answers those of this data?"
                )
        merged = self._merged()
        if merged:
            some = "; ".join(f"{a!r} from {', '.join(map(repr, forms))}" for a, forms in list(merged.items())[:5])
            lines.append(f"answers that were written in several ways: {len(merged):,}, such as {some}"[:500])
        if self._emptied:
            some = ", ".join(map(repr, list(self._emptied)[:10]))
            lines.append(
                f"answers of which the rule {self.rule} leaves nothing: {self._emptied.total():,} ({some})"[:500]
            )
        return lines

    def _merged(self) -> dict[str, list[str]]:
        return {answer: list(forms) for answer, forms in self._written.items() if len(forms) > 1}

    def _shares(self) -> str:
        shares = [
            f"{split} {n['covered']:,} of {n['annotated']:,} ({n['covered'] / n['annotated']:.1%})"
            for split, n in self.counts.items()
            if n["annotated"]
        ]
        return f"; annotated questions with at least one of them: {', '.join(shares)}" if shares else ""

"""Which options of `pixelbert evaluate` mean something where. Whatever would be ignored is refused, with what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pixelbert.errors import PixelBertError

Kind = Literal["pretraining", "question-answering", "reasoning", "retrieval"]


@dataclass(frozen=True)
class Options:
    """What `evaluate` may be told of how to measure; see there. The defaults stand for options that are not given."""

    examples: int | None = None
    controls: bool = True
    retrieval_images: int | None = None
    captions_per_image: int | None = None
    folds: int = 0
    queries: int = 0
    shortlist: int = 0
    questions: Path | None = None
    seed: int = 0

    @property
    def given(self) -> dict[str, Any]:
        """Those that differ from their defaults."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {field.name: values[field.name] for field in fields(self) if values[field.name] != field.default}

    def check(self, kind: Kind) -> None:
        """Check that each option that is given means something in this task, beside the others.

        Raises:
            PixelBertError: names the first that does not, or that is below the least value.
        """
        for name, value in self.given.items():
            use, option = USES[name], flag(name)
            if kind not in use.tasks:
                raise PixelBertError(
                    f"{option} does nothing when {kind} is measured, only with {' or '.join(use.tasks)}: leave it out"
                    + (f" ({use.instead[kind]})" if kind in use.instead else "")
                )
            least = use.tasks[kind]
            if least is not None and value < least:
                raise PixelBertError(f"{option} is {value}: expected {least} or more")
            needed = use.beside.get(kind)
            if needed and getattr(self, needed) in (0, False):
                raise PixelBertError(f"{option} does nothing {SWITCHED_OFF[needed]}: leave it out")
            for other in use.without:
                if other in self.given:
                    raise PixelBertError(f"{option} does not go with {flag(other)}: leave out one of them")


class Use(NamedTuple):
    """Where an option means something.

    Args:
        tasks: in which, with the least value that it may have there; None for what is no number.
        beside: of a task, another option without which it does nothing there.
        without: options beside which it would be ignored.
        instead: of a task in which it means nothing, what does.
    """

    tasks: Mapping[str, int | None]
    beside: Mapping[str, str] = {}
    without: tuple[str, ...] = ()
    instead: Mapping[str, str] = {}


RANKED = "--retrieval-images and --captions-per-image say how much is ranked"
USES = {
    "examples": Use(
        {"pretraining": 1, "question-answering": 1, "reasoning": 1},
        instead={"retrieval": RANKED},
    ),
    "controls": Use(
        {"question-answering": None, "reasoning": None},
        instead={"pretraining": "its controls are always measured", "retrieval": "chance is its control"},
    ),
    "retrieval_images": Use({"pretraining": 0, "retrieval": 1}),  # 0: no retrieval
    "captions_per_image": Use({"pretraining": 0, "retrieval": 0}, beside={"pretraining": "retrieval_images"}),
    "folds": Use({"retrieval": 1}, without=("queries", "shortlist"), instead={"pretraining": "see --task retrieval"}),
    "queries": Use({"retrieval": 1}, without=("shortlist",), instead={"pretraining": "see --task retrieval"}),
    "shortlist": Use({"retrieval": 1}, instead={"pretraining": "see --task retrieval"}),
    "questions": Use({"question-answering": None}, without=("examples",)),
    "seed": Use(
        {"pretraining": 0, "question-answering": 0, "reasoning": 0, "retrieval": 0},
        beside={"question-answering": "controls", "reasoning": "controls", "retrieval": "queries"},
    ),
}
SWITCHED_OFF = {
    "controls": "with --controls false",
    "queries": "where all pairs are scored, without --queries",
    "retrieval_images": "with --retrieval-images 0",
}


def flag(name: str) -> str:
    """An option as people write it."""
    return "--" + name.replace("_", "-")

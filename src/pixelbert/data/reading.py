"""What the model does not read of sentences: what lies beyond the processor's `max_length`, and words that it does not
know.

Tokens are counted without [CLS] and [SEP].
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tokenizers import Encoding

from pixelbert.errors import UnreadWarning

SHOWN = 40  # characters of a sentence in a message
WORDS = 5  # that are unknown, in a message
SAMPLE = 4000  # sentences that are looked at where there are many
INSIDE = ("pixelbert.", "torch.", "contextlib")  # modules that a warning does not point at


class Cut(NamedTuple):
    """A sentence that is longer than what the model reads.

    Args:
        text: the sentence.
        tokens: that it has.
        read: of these, from the first.
        until: the end of what is read, in characters.
    """

    text: str
    tokens: int
    read: int
    until: int


class Unknown(NamedTuple):
    """A sentence with words that the vocabulary lacks, each of which becomes [UNK].

    Args:
        text: the sentence.
        words: those that are unknown, each once.
        tokens: that are read.
        unknown: of these.
    """

    text: str
    words: list[str]
    tokens: int
    unknown: int


@dataclass(frozen=True)
class Unread:
    """What is not read of some sentences.

    Attributes:
        sentences: how many were looked at.
        cut: those that are too long.
        unknown: those with unknown words.
        empty: those of which nothing is left, such as a lone zero-width space.
    """

    sentences: int
    cut: list[Cut]
    unknown: list[Unknown]
    empty: list[str]

    @classmethod
    def of(cls, texts: Sequence[str], encodings: Sequence[Encoding], unknown_id: int | None) -> Unread:
        """Look at sentences and what the tokenizer made of them."""
        cut, unknown, empty = [], [], []
        for text, encoding in zip(texts, encodings, strict=True):
            own = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
            if not own:
                empty.append(text)
            if beyond := sum(part.special_tokens_mask.count(0) for part in encoding.overflowing):
                cut.append(Cut(text, len(own) + beyond, len(own), encoding.offsets[own[-1]][1]))
            if unknown_id in encoding.ids:
                spans = [encoding.offsets[i] for i in own if encoding.ids[i] == unknown_id]
                words = list(dict.fromkeys(text[start:end] for start, end in spans))
                unknown.append(Unknown(text, words, len(own), len(spans)))
        return cls(len(texts), cut, unknown, empty)

    def lines(self) -> list[str]:
        """What to tell people, a sentence for each of the two, with counts and the first case."""
        said = []
        if self.cut:
            first = self.cut[0]
            several = "more tokens than are read; the first has " if len(self.cut) > 1 else ""
            said.append(
                f"{self._how_many(self.cut)} {several}{first.tokens} tokens, of which the first {first.read} are read: "
                f"what follows {ending(first.text[: first.until])} is ignored"
            )
        if self.unknown:
            one = self.unknown[0]
            words = ", ".join(map(repr, one.words[:WORDS])) + (", ..." if len(one.words) > WORDS else "")
            said.append(
                f"{self._how_many(self.unknown)} words that the model does not know: {words} in {beginning(one.text)} "
                f"({one.unknown} of {one.tokens} tokens)"
            )
        return said

    def _how_many(self, found: Sequence[Any]) -> str:
        if self.sentences == 1:
            return "the sentence has"
        return f"{len(found):,} of {self.sentences:,} sentences {'has' if len(found) == 1 else 'have'}"

    def fields(self) -> dict[str, list[dict[str, Any]]]:
        """`cut` and `unknown` for JSON, a row for each such sentence; empty lists where all is read."""
        return {
            "cut": [{"text": c.text, "tokens": c.tokens, "read": c.read} for c in self.cut],
            "unknown": [one._asdict() for one in self.unknown],
        }

    def counts(self) -> dict[str, int]:
        """For metrics, of many sentences."""
        return {
            "sentences": self.sentences,
            "sentences_cut": len(self.cut),
            "sentences_with_unknown_words": len(self.unknown),
        }

    def shares(self, sentences: int, longest: int) -> str:
        """For people, of a sample of so many sentences (or of all): what share is cut to so many tokens, ..."""
        cut, unknown = (len(found) / max(self.sentences, 1) for found in (self.cut, self.unknown))
        whole = f"{sentences:,} sentences"
        of = whole if self.sentences == sentences else f"{self.sentences:,} of {whole}, a sample,"
        return (
            f"of {of} {cut:.2%} are longer than {longest} tokens and are cut there; {unknown:.2%} have words that the "
            "tokenizer does not know"
        )

    def warn(self) -> None:
        """One `UnreadWarning` for all, if there is something to tell, at the line outside that called."""
        if said := "; ".join(self.lines()):
            frame, level = sys._getframe(1), 2
            while frame.f_back and f"{frame.f_globals.get('__name__')}.".startswith(INSIDE):
                frame, level = frame.f_back, level + 1
            warnings.warn(said, UnreadWarning, stacklevel=level)


class Sample:
    """Sentences of a stream of unknown length, evenly spread, between `SAMPLE` and twice as many (or all there are)."""

    def __init__(self) -> None:
        self.seen, self.every = 0, 1
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """The next one of the stream."""
        if self.seen % self.every == 0:
            self.sentences.append(sentence)
        self.seen += 1
        if len(self.sentences) == 2 * SAMPLE:
            self.sentences = self.sentences[::2]
            self.every *= 2


def ending(text: str) -> str:
    """The last words of a text, quoted."""
    return repr(text if len(text) <= SHOWN else "..." + text[-SHOWN:].partition(" ")[2])


def beginning(text: str) -> str:
    """The first words of a text, quoted."""
    return repr(text if len(text) <= SHOWN else text[:SHOWN].rpartition(" ")[0] + "...")

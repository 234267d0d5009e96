"""Which pixels each word looks at (paper section 4.4, Fig. 3): attention as numbers; `maps` draws it.

Shapes: N layers, A heads, L word tokens, K pixels, S = L + K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding

from pixelbert.errors import PixelBertError


class WordMap(NamedTuple):
    """What one word looks at.

    Args:
        word: as it stands in the text.
        map: (rows, columns) of the image's grid, which covers the whole photo; sums to 1.
        share: how much of the word's attention falls on the photo; the rest falls on words.
    """

    word: str
    map: np.ndarray
    share: float


@dataclass(frozen=True)
class Attention:
    """All attention of one pair of an image and a text.

    Args:
        weights: (N, A, S, S) from the row's token or pixel to the column's; each row sums to 1.
        words: of the text, in order.
        pieces: the tokens of each word.
        grid: rows and columns of the image's grid.
    """

    weights: np.ndarray
    words: list[str]
    pieces: list[list[int]]
    grid: tuple[int, int]

    @property
    def layers(self) -> int:
        """N."""
        return self.weights.shape[0]

    @property
    def heads(self) -> int:
        """A."""
        return self.weights.shape[1]

    def maps(
        self, token: str | None = None, layer: int | None = None, head: int | None = None, rollout: bool = False
    ) -> list[WordMap]:
        """What the words look at. A word of several WordPieces has the mean of their attention.

        Args:
            token: the word to look up, in upper or lower case (the first, if it stands there twice); all if None.
            layer: of the transformer, from 0, or from the end if negative. The first if None, which is what the paper
                shows; with `rollout` the last.
            head: from 0; the mean over the heads if None.
            rollout: follow attention through all layers up to `layer`; see `roll_out`.

        Raises:
            PixelBertError: no such word (the message lists those there are), layer or head.
        """
        layer = self._number("layer", (self.layers - 1 if rollout else 0) if layer is None else layer, self.layers)
        if rollout and head is not None:
            raise PixelBertError("roll-out follows the mean over the heads: leave the head out, or the roll-out")
        if rollout:
            rows = roll_out(self.weights[: layer + 1])
        elif head is None:
            rows = self.weights[layer].mean(0)
        else:
            rows = self.weights[layer, self._number("head", head, self.heads)]
        chosen = range(len(self.words)) if token is None else [self.find(token)]
        return [self._map(word, rows) for word in chosen]

    def find(self, token: str) -> int:
        """The number of the first word that reads so, in upper or lower case.

        Raises:
            PixelBertError: there is none; lists those there are.
        """
        folded = [word.casefold() for word in self.words]
        if token.strip().casefold() not in folded:
            raise PixelBertError(f"the text has no word {token!r}; it has: {', '.join(self.words) or 'none'}")
        return folded.index(token.strip().casefold())

    def _map(self, word: int, rows: np.ndarray) -> WordMap:
        pixels = rows[self.pieces[word], -self.grid[0] * self.grid[1] :].mean(0)  # (K,)
        share = float(pixels.sum())
        return WordMap(self.words[word], (pixels / max(share, 1e-12)).reshape(self.grid), share)

    @staticmethod
    def _number(what: str, number: int, count: int) -> int:
        if not -count <= number < count:
            raise PixelBertError(f"there is no {what} {number}: the model has {what}s 0 to {count - 1}")
        return number % count


def roll_out(weights: np.ndarray) -> np.ndarray:
    """Attention roll-out (Abnar and Zuidema 2020): how much of each input reaches each place of the last layer.

    Each layer passes on half of what was there (the residual connection) and half of what its heads attend to.

    Args:
        weights: (N, A, S, S).

    Returns:
        (S, S), each row summing to 1.
    """
    size = weights.shape[-1]
    flow = np.eye(size, dtype=weights.dtype)
    for layer in weights.mean(1):
        flow = (0.5 * layer + 0.5 * np.eye(size, dtype=weights.dtype)) @ flow
    return flow


def words_of(text: str, encoding: Encoding) -> tuple[list[str], list[list[int]]]:
    """The words of a text as they are written in it, and the tokens of each: WordPieces joined, no [CLS] and [SEP].

    Args:
        encoding: of this text.
    """
    spans: list[tuple[int, int]] = []
    pieces: list[list[int]] = []
    rows = zip(encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True)
    for i, (token, (start, end), special) in enumerate(rows):
        if special:
            continue
        if token.startswith("##") and pieces:
            spans[-1] = (spans[-1][0], end)
            pieces[-1].append(i)
        else:
            spans.append((start, end))
            pieces.append([i])
    return [text[start:end] for start, end in spans], pieces

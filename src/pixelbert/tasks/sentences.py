"""Random choices about sentences: which words are masked, which sentence of another image stands as a wrong one."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from pixelbert.data.corpus import Corpus
from pixelbert.errors import PixelBertError
from pixelbert.model.modeling import IGNORE

SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


def names_a_side(sentence: str) -> bool:
    """Whether a sentence says left or right, and so is no longer true of a mirrored image."""
    return SIDES.search(sentence) is not None


def mask_tokens(
    ids: np.ndarray, tokenizer: PreTrainedTokenizerBase, probability: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """BERT's masking of one sentence: 80 % [MASK], 10 % a random word, 10 % unchanged.

    Args:
        ids: (L,) tokens, special ones included, which are never masked.
        probability: of each token; if no token is drawn, one is chosen, so every sentence teaches something.

    Returns:
        The tokens shown, and the labels: the true token where one was drawn, -100 elsewhere.
    """
    candidates = np.flatnonzero(~np.isin(ids, tokenizer.all_special_ids))
    shown, labels = ids.copy(), np.full_like(ids, IGNORE)
    if not len(candidates):
        return shown, labels
    chosen = candidates[rng.random(len(candidates)) < probability]
    if not len(chosen):
        chosen = rng.choice(candidates, 1)
    labels[chosen] = ids[chosen]
    how = rng.random(len(chosen))
    shown[chosen[how < 0.8]] = tokenizer.mask_token_id
    randomised = chosen[how >= 0.9]
    words = ordinary_tokens(tokenizer)
    shown[randomised] = words[rng.integers(len(words), size=len(randomised))]
    return shown, labels


@lru_cache(maxsize=4)
def ordinary_tokens(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """All tokens but the special ones."""
    return np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)


def mismatched_example(
    corpus: Corpus, example: int, own: set[str], rng: np.random.Generator, *, same_split: bool = False
) -> int:
    """An example of another photo, drawn evenly, whose sentence is none of `own` (this photo's sentences)."""
    among = corpus.same_split(example) if same_split else range(len(corpus))
    for _ in range(1000):
        other = int(rng.integers(among.start, among.stop))
        if corpus.photo_of[other] != corpus.photo_of[example] and corpus.text(other) not in own:
            return other
    raise PixelBertError(
        f"{', '.join(corpus.sources)}: no sentence of another image was found for example "
        f"{corpus.example_id(example)!r} in 1000 draws; image-text matching "
        "needs several images with sentences of their own"
    )

"""Pre-training (paper section 3.3): masked language modelling, image-text matching, random pixel sampling.

A batch is a set of images and a list of pairs that index into it. Each example gives a matched pair and, for image-text
matching, a mismatched one: the same image with a sentence of another image, masked in just the same way, so that
nothing in how the texts are made gives the label away.

Shapes: I images, P pairs, L word tokens, k sampled pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from pixelbert.data.corpus import Corpus
from pixelbert.data.feature_cache import FeatureCache, View
from pixelbert.data.processing import PixelBertProcessor
from pixelbert.data.sampler import Draw, ExampleOrder, keyed_rng, remember, share
from pixelbert.errors import PixelBertError
from pixelbert.model.modeling import IGNORE
from pixelbert.model.pixels import REDUCTION, PixelFeatures

SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)  # what is no longer true of a mirrored photo


@dataclass
class Pretraining:
    """What is learned (paper section 3.3). The defaults are the paper's.

    Args:
        mlm: masked language modelling (eq. 7).
        itm: image-text matching (eq. 8), with as many mismatched pairs as matched.
        pixels: pixels sampled at random for every pair; all of them if null.
        mask_probability: share of tokens that MLM predicts; at least one a sentence.
        mlm_on_mismatched: predict masked words of mismatched pairs too. Equation 7 draws (w, I) from the data, so the
            default is off.
        mismatched_from_same_split: draw the mismatched sentence from the data set and split that the image is of, and
            not from all training data as the paper does. With kinds of data that a glance tells apart (photos and
            drawings), most other sentences would be mismatches of the kind, and little else would be learned.
    """

    mlm: bool = True
    itm: bool = True
    pixels: int | None = 100
    mask_probability: float = 0.15
    mlm_on_mismatched: bool = False
    mismatched_from_same_split: bool = False

    def __post_init__(self) -> None:
        if not (self.mlm or self.itm):
            raise PixelBertError("task: mlm and itm are both false, so there is nothing to learn; turn one on")
        if not 0 < self.mask_probability < 1:
            raise PixelBertError(f"task.mask_probability is {self.mask_probability}; expected between 0 and 1")
        if self.pixels is not None and self.pixels < 1:
            raise PixelBertError(f"task.pixels is {self.pixels}; expected a positive number, or null for all pixels")

    @property
    def pairs_per_example(self) -> int:
        """An example is one matched pair, and with ITM one mismatched pair beside it."""
        return 2 if self.itm else 1


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


def sample_pixels(grid_pixels: int, pixels: int | None, rng: np.random.Generator) -> np.ndarray | None:
    """Indices of `pixels` of a grid's pixels, without replacement (paper section 3.3); None to keep them all."""
    if pixels is None or grid_pixels <= pixels:
        return None
    return np.sort(rng.choice(grid_pixels, pixels, replace=False))


def mismatched_example(
    corpus: Corpus, example: int, own: set[str], rng: np.random.Generator, *, same_split: bool = False
) -> int:
    """An example of another image, drawn evenly, whose sentence is none of `own` (this image's sentences)."""
    among = corpus.same_split(example) if same_split else range(len(corpus))
    for _ in range(1000):
        other = int(rng.integers(among.start, among.stop))
        if corpus.image_of[other] != corpus.image_of[example] and corpus.text(other) not in own:
            return other
    raise PixelBertError(
        f"{', '.join(corpus.sources)}: no sentence of another image was found for example "
        f"{corpus.example_id(example)!r} in 1000 draws; image-text matching "
        "needs several images with sentences of their own"
    )


class Pair(NamedTuple):
    """One row of a batch before collation.

    Args:
        example: whose image this is.
        view: its image.
        matched: whether the sentence is the example's own.
        ids: (L,) tokens shown.
        labels: (L,) true tokens where masked, -100 elsewhere.
        pixels: (k,) sampled pixels, None for all.
    """

    example: int
    view: View
    matched: bool
    ids: np.ndarray
    labels: np.ndarray
    pixels: np.ndarray | None


@dataclass
class PretrainingBatch:
    """One forward pass.

    Args:
        inputs: the arguments of `PixelBertForPreTraining.forward`.
        examples: the number of each pair's example, for messages.
        masked_in_step: masked tokens with a label in the whole step, over all devices; what MLM is normalised by.
        pairs_in_step: likewise, pairs of ITM.
    """

    inputs: dict[str, Tensor | list[Tensor] | PixelFeatures]
    examples: list[int]
    masked_in_step: int
    pairs_in_step: int

    def to(self, device: torch.device) -> PretrainingBatch:
        """Move all tensors."""
        move = {
            key: [x.to(device, non_blocking=True) for x in value]
            if isinstance(value, list)
            else value.to(device, non_blocking=True)
            for key, value in self.inputs.items()
        }
        return PretrainingBatch(move, self.examples, self.masked_in_step, self.pairs_in_step)


@dataclass
class PretrainingData(Dataset):
    """All batches of a run, each had by (step, micro-batch) and by nothing else.

    Args:
        task: what is learned.
        corpus: training examples.
        processor: resizes photos and cuts words.
        order: the stream of examples.
        rank, world: this process and how many there are.
        micro_batch: pairs that one forward pass takes on one device.
        cache: stored features of a frozen CNN, used instead of the photos.
        mirror: half of the time, show an image mirrored, unless its sentence names a side.
    """

    task: Pretraining
    corpus: Corpus
    processor: PixelBertProcessor
    order: ExampleOrder
    rank: int
    world: int
    micro_batch: int
    cache: FeatureCache | None = None
    mirror: bool = False
    _sentences: dict[int, list[int]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._sentences = self.corpus.examples_of_images()
        self._plans: dict[int, list[Pair]] = {}

    def micro_batches(self) -> int:
        """Forward passes that this process makes a step."""
        mine = share(self.order.size * self.task.pairs_per_example, self.rank, self.world)
        return -(-(mine.stop - mine.start) // self.micro_batch)

    def plan(self, step: int) -> list[Pair]:
        """All pairs of a step, over all devices, example by example: texts and draws, no photos yet.

        Every process makes the whole plan, so the number of masked tokens in the step is known without communication.
        """
        return remember(self._plans, step, self._plan, keep=1)

    def _plan(self, step: int) -> list[Pair]:
        draws = self.order.step(step)
        # Role 0 is the matched pair of an example, role 1 the mismatched one.
        roles = [(draw, role) for draw in draws for role in range(self.task.pairs_per_example)]
        generators = [keyed_rng(self.order.seed, *draw, role) for draw, role in roles]
        sentences = [
            self.corpus.text(self._sentence_for(draw.example, role, rng))
            for (draw, role), rng in zip(roles, generators, strict=True)
        ]
        tokens = self.processor.tokenizer(sentences, truncation=True, max_length=self.processor.max_length)
        pairs = [
            self._pair(draw, role, np.array(ids), rng)
            for (draw, role), ids, rng in zip(roles, tokens["input_ids"], generators, strict=True)
        ]
        return sorted(pairs, key=self._place)

    def _place(self, pair: Pair) -> tuple[int, ...]:
        """What stands together in a micro-batch: with stored features only padding costs, so sentences of one length;
        else images of one shape, and the sentences of one image."""
        if self.cache is not None:
            return (len(pair.ids),)
        return (*self.processor.image_processor.size_for(*self.corpus.sizes[pair.view.image]), *pair.view)

    def _sentence_for(self, example: int, role: int, rng: np.random.Generator) -> int:
        if role == 0:
            return example
        own = {self.corpus.text(e) for e in self._sentences[int(self.corpus.image_of[example])]}
        same_split = self.task.mismatched_from_same_split
        return mismatched_example(self.corpus, example, own, rng, same_split=same_split)

    def _pair(self, draw: Draw, role: int, ids: np.ndarray, rng: np.random.Generator) -> Pair:
        labels = np.full_like(ids, IGNORE)
        if self.task.mlm:
            ids, labels = mask_tokens(ids, self.processor.tokenizer, self.task.mask_probability, rng)
            if role == 1 and not self.task.mlm_on_mismatched:
                labels[:] = IGNORE
        image = int(self.corpus.image_of[draw.example])
        pixels = sample_pixels(self._grid_pixels(image), self.task.pixels, rng)
        return Pair(draw.example, View(image, self._mirrored(draw)), role == 0, ids, labels, pixels)

    def _mirrored(self, draw: Draw) -> bool:
        """The same for both pairs of an example, so that the mirroring tells nothing about the match."""
        if not self.mirror or SIDES.search(self.corpus.text(draw.example)):
            return False
        return bool(keyed_rng(self.order.seed, *draw, 2).integers(2))

    def _grid_pixels(self, image: int) -> int:
        width, height = self.processor.image_processor.size_for(*self.corpus.sizes[image])
        return width * height // REDUCTION**2

    def __getitem__(self, key: tuple[int, int]) -> PretrainingBatch | PixelBertError:
        """The batch, or what is wrong with its data: raised in a loader process, that would become a traceback."""
        try:
            return self.batch(*key)
        except PixelBertError as error:
            return error

    def batch(self, step: int, micro: int) -> PretrainingBatch:
        """The micro-batch of a step that this process takes at this place."""
        plan = self.plan(step)
        mine = plan[share(len(plan), self.rank, self.world)]
        pairs = mine[micro * self.micro_batch : (micro + 1) * self.micro_batch]
        return PretrainingBatch(
            inputs=self.collate(pairs),
            examples=[pair.example for pair in pairs],
            masked_in_step=sum(int((pair.labels != IGNORE).sum()) for pair in plan),
            pairs_in_step=len(plan),
        )

    def collate(self, pairs: list[Pair]) -> dict[str, Tensor | list[Tensor] | PixelFeatures]:
        """Pairs to the arguments of the model: each photo once, words padded to the longest sentence."""
        views = list(dict.fromkeys(pair.view for pair in pairs))
        position = {view: i for i, view in enumerate(views)}
        length = max(len(pair.ids) for pair in pairs)
        ids = np.full((len(pairs), length), self.processor.tokenizer.pad_token_id)
        labels = np.full((len(pairs), length), IGNORE)
        mask = np.zeros((len(pairs), length), dtype=np.int64)
        for i, pair in enumerate(pairs):
            n = len(pair.ids)
            ids[i, :n], labels[i, :n], mask[i, :n] = pair.ids, pair.labels, 1
        inputs: dict[str, Tensor | list[Tensor] | PixelFeatures] = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "image_index": torch.tensor([position[pair.view] for pair in pairs]),
        }
        if self.task.mlm:
            inputs["token_labels"] = torch.from_numpy(labels)
        if self.task.itm:
            inputs["match_labels"] = torch.tensor([float(pair.matched) for pair in pairs])
        if self.cache is not None:
            inputs["trunk_features"] = self.cache.get(views)
        else:
            photos = [self.processor.image_processor.to_tensor(self.corpus.load_image(view.image)) for view in views]
            inputs["pixel_values"] = [
                photo.flip(-1) if view.mirrored else photo for photo, view in zip(photos, views, strict=True)
            ]
        if any(pair.pixels is not None for pair in pairs):
            inputs["pixel_index"] = self._pixel_index(pairs)
        return inputs

    def _pixel_index(self, pairs: list[Pair]) -> Tensor:
        """(P, k): each pair's sampled pixels; an image with fewer keeps all, then -1."""
        assert self.task.pixels is not None
        index = torch.full((len(pairs), self.task.pixels), -1)
        for i, pair in enumerate(pairs):
            chosen = pair.pixels
            if chosen is None:
                chosen = np.arange(self._grid_pixels(pair.view.image))
            index[i, : len(chosen)] = torch.from_numpy(chosen)
        return index


class StepLoss(NamedTuple):
    """The share of a batch in its step's loss, and what to log of it (sums that add up over batches and devices)."""

    loss: Tensor
    parts: dict[str, Tensor]


def pretraining_loss(model: nn.Module, batch: PretrainingBatch) -> StepLoss:
    """Forward pass and loss of one batch, normalised over the whole step: parts of all batches and devices add up."""
    output = model(**batch.inputs)
    parts: dict[str, Tensor] = {}
    if output.mlm_loss is not None:
        parts["mlm_loss"] = output.mlm_loss / max(batch.masked_in_step, 1)
    if output.itm_loss is not None:
        parts["itm_loss"] = output.itm_loss / batch.pairs_in_step
    loss = torch.stack(list(parts.values())).sum()
    logged = {name: value.detach() for name, value in parts.items()}
    if output.itm_loss is not None:
        right = (output.match_logits.detach() > 0) == (batch.inputs["match_labels"] > 0.5)  # type: ignore[operator]
        logged["itm_accuracy"] = right.sum() / batch.pairs_in_step
    return StepLoss(loss, logged)


def batch_keys(data: PretrainingData, first_step: int, steps: int) -> Iterator[tuple[int, int]]:
    """(step, micro-batch) of the rest of a run, in order."""
    for step in range(first_step, steps):
        for micro in range(data.micro_batches()):
            yield step, micro

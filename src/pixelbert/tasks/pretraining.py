"""Pre-training (paper section 3.3): masked language modelling, image-text matching, random pixel sampling.

A batch is a set of images and a list of pairs that index into it. Each example gives a matched pair and, for image-text
matching, a mismatched one: the same image with a sentence of another image, masked in just the same way, so that
nothing in how the texts are made gives the label away.

Shapes: I images, P pairs, L word tokens, k sampled pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pixelbert.bounds import SHARE, Bound, check_fields
from pixelbert.data.feature_cache import View
from pixelbert.data.photos import Photos
from pixelbert.data.processing import PixelBertProcessor
from pixelbert.data.sampler import Draw, keyed_rng
from pixelbert.device import Precision
from pixelbert.errors import PixelBertError
from pixelbert.model.modeling import IGNORE, Contrast, PixelBertForPreTraining
from pixelbert.tasks.pretraining_evaluation import evaluate_pretraining
from pixelbert.tasks.sentences import mask_tokens, mismatched_example, names_a_side
from pixelbert.tasks.shortlist import tower_recall
from pixelbert.tasks.steps import StepBatch, StepData, StepLoss, pad, text_inputs
from pixelbert.tasks.task import Task


@dataclass
class Pretraining(Task):
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
        contrast: teach a two-tower head too (not in the paper), by which a search short-lists: each sentence finds its
            image among those of so many matched pairs, and the reverse. 0 to leave it out. A group is never divided, so
            `batch_size` and `micro_batch_size` hold whole ones.
        hard_negatives: the mismatched sentences of a contrastive group are not drawn at random but its own, handed to
            images that the two-tower head finds them near (not in the paper; after ALBEF, arXiv:2107.07651). None is
            mismatched more than once, so that only the image tells. For ranking.
        tower_size: width of the two-tower head's vectors.
        joint_share: what the matching head counts in a pair's score beside the two-tower head, from 0 to 1. It changes
            nothing that is learned: the less of the two has learned, the less should it count.
    """

    kind: Literal["pretraining"] = "pretraining"
    mlm: bool = True
    itm: bool = True
    pixels: Annotated[int, Bound(ge=1, le=1_000_000)] | None = 100
    mask_probability: Annotated[float, Bound(gt=0, lt=1)] = 0.15
    mlm_on_mismatched: bool = False
    mismatched_from_same_split: bool = False
    contrast: Annotated[int, Bound(ge=0, le=1_000_000)] = 0
    hard_negatives: bool = False
    tower_size: Annotated[int, Bound(ge=1, le=100_000)] = 256
    joint_share: Annotated[float, SHARE] = 0.5

    reads: ClassVar[str] = "captions"
    model_class: ClassVar[type] = PixelBertForPreTraining

    def __post_init__(self) -> None:
        check_fields(self, "task")
        if not (self.mlm or self.itm or self.contrast):
            raise PixelBertError("task: mlm and itm are both false, so there is nothing to learn; turn one on")
        if self.contrast == 1:
            raise PixelBertError("task.contrast is 1; expected a group of 2 or more pairs, or 0 for none")
        other_mismatches = self.mlm_on_mismatched or self.mismatched_from_same_split
        if self.hard_negatives and (not self.contrast or not self.itm or other_mismatches):
            raise PixelBertError(
                "task.hard_negatives takes mismatched sentences from contrastive groups: it needs task.contrast and "
                "task.itm, without task.mlm_on_mismatched and task.mismatched_from_same_split"
            )

    @property
    def counts_per_example(self) -> int:
        """An example is one matched pair, and with ITM one mismatched pair beside it."""
        return 2 if self.itm else 1

    @property
    def indivisible(self) -> int:
        """A contrastive group; without, one pair."""
        return self.contrast * self.counts_per_example or 1

    def freeze_unused(self, model: PixelBertForPreTraining) -> None:  # type: ignore[override]
        """A head that no loss reaches is not trained; distributed training insists on knowing."""
        model.mlm_head.requires_grad_(self.mlm)
        model.itm_head.requires_grad_(self.itm)
        model.pixelbert.pooler.requires_grad_(self.itm)

    @property
    def has_towers(self) -> bool:
        """See `Task.has_towers`."""
        return self.contrast > 0

    def data(self, *args: Any, **options: Any) -> PretrainingData:
        """See `Task.data`."""
        return PretrainingData(*args, task=self, **options)  # type: ignore[misc]

    def loss(self, model: nn.Module, batch: StepBatch) -> StepLoss:
        """Forward pass and loss of one batch, normalised over the whole step: all batches and devices add up."""
        output = model(**batch.inputs)
        parts: dict[str, Tensor] = {}
        if output.mlm_loss is not None:
            parts["mlm_loss"] = output.mlm_loss / max(batch.in_step["masked"], 1)
        if output.itm_loss is not None:
            parts["itm_loss"] = output.itm_loss / batch.in_step["rows"]
        if output.contrastive_loss is not None:
            parts["contrastive_loss"] = output.contrastive_loss / batch.in_step["matched"]
        loss = torch.stack(list(parts.values())).sum()
        logged = {name: value.detach() for name, value in parts.items()}
        if output.itm_loss is not None:
            right = (output.match_logits.detach() > 0) == (batch.inputs["match_labels"] > 0.5)
            logged["itm_accuracy"] = right.sum() / batch.in_step["rows"]
        return StepLoss(loss, logged)

    def validate(
        self, model: Any, processor: PixelBertProcessor, photos: Photos, examples: int, precision: Precision
    ) -> dict[str, float]:
        """See `evaluate_pretraining` and `tower_recall`; only what is learned."""
        found: dict[str, float] = {}
        if self.mlm or self.itm:
            found |= evaluate_pretraining(model, processor, photos, examples=examples, precision=precision, show=False)
        if self.contrast:
            found |= tower_recall(model, processor, photos, images=examples, precision=precision)
        return found

    def summary(self, row: dict[str, float]) -> str:
        """The figures that matter, beside their controls, in one line."""
        said = []
        if self.mlm or self.itm:
            said.append(
                f"ITM accuracy {row['itm_accuracy']:.3f} (blank photos {row['itm_accuracy_blank']:.3f}), "
                f"MLM loss {row['mlm_loss']:.3f} (another photo {row['mlm_loss_other_photo']:.3f})"
            )
        if self.contrast:
            said.append(
                f"two towers R@1 text to image {row['tower_text_to_image_r1']:.3f}, image to text "
                f"{row['tower_image_to_text_r1']:.3f} among {row['tower_images']:.0f}"
            )
        return ", ".join(said)


def sample_pixels(grid_pixels: int, pixels: int | None, rng: np.random.Generator) -> np.ndarray | None:
    """Indices of `pixels` of a grid's pixels, without replacement (paper section 3.3); None to keep them all."""
    if pixels is None or grid_pixels <= pixels:
        return None
    return np.sort(rng.choice(grid_pixels, pixels, replace=False))


class Pair(NamedTuple):
    """One row of a batch before collation.

    Args:
        example: whose image this is.
        view: its image.
        matched: whether the sentence is the example's own.
        ids: (L,) tokens shown.
        labels: (L,) true tokens where masked, -100 elsewhere.
        whole: (L,) tokens before any were masked.
        pixels: (k,) sampled pixels, None for all.
        priority: by which the images of a contrastive group choose hard negatives, the lowest first.
    """

    example: int
    view: View
    matched: bool
    ids: np.ndarray
    labels: np.ndarray
    whole: np.ndarray
    pixels: np.ndarray | None
    priority: float

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.ids)


@dataclass
class PretrainingData(StepData[Pair]):
    """The batches of pre-training; see `StepData`."""

    task: Pretraining = field(default_factory=Pretraining)

    def __post_init__(self) -> None:
        self.corpus.own_texts(0)  # collected here, once, and not by each process that loads data
        n = self.rows_together
        if (self.order.size * self.rows_per_example) % n or self.micro_batch % n:
            raise PixelBertError(
                f"task.contrast {self.task.contrast} makes groups of {n} pairs; expected batch_size and "
                f"micro_batch_size to be multiples of {n}"
            )

    @property
    def rows_per_example(self) -> int:  # type: ignore[override]
        """Pairs."""
        return self.task.counts_per_example

    @property
    def rows_together(self) -> int:  # type: ignore[override]
        """The pairs of a contrastive group."""
        return self.task.indivisible

    def _plan(self, step: int) -> list[Pair]:
        if not self.task.contrast:
            return super()._plan(step)
        rows, n = self.rows(self.order.step(step)), self.rows_per_example  # an example's pairs stay in one group
        examples = [rows[i : i + n] for i in range(0, len(rows), n)]
        return [row for example in sorted(examples, key=lambda e: max(map(self._place, e))) for row in example]

    def rows(self, draws: Sequence[Draw]) -> list[Pair]:
        """See `StepData.rows`."""
        # Role 0 is the matched pair of an example, role 1 the mismatched one.
        roles = [(draw, role) for draw in draws for role in range(self.task.counts_per_example)]
        generators = [keyed_rng(self.order.seed, *draw, role) for draw, role in roles]
        sentences = [
            self.corpus.text(self._sentence_for(draw.example, role, rng))
            for (draw, role), rng in zip(roles, generators, strict=True)
        ]
        return [
            self._pair(draw, role, ids, rng)
            for (draw, role), ids, rng in zip(roles, self.tokens(sentences), generators, strict=True)
        ]

    def _sentence_for(self, example: int, role: int, rng: np.random.Generator) -> int:
        if role == 0:
            return example
        own = self.corpus.own_texts(example)
        same_split = self.task.mismatched_from_same_split
        return mismatched_example(self.corpus, example, own, rng, same_split=same_split)

    def _pair(self, draw: Draw, role: int, ids: np.ndarray, rng: np.random.Generator) -> Pair:
        labels, whole = np.full_like(ids, IGNORE), ids
        if self.task.mlm:
            ids, labels = mask_tokens(ids, self.processor.tokenizer, self.task.mask_probability, rng)
            if role == 1 and not self.task.mlm_on_mismatched:
                labels[:] = IGNORE
        image = int(self.corpus.image_of[draw.example])
        # Both pairs of an example are mirrored or neither, so that the mirroring tells nothing about the match.
        view = self.view(draw, image, one_sided=names_a_side(self.corpus.text(draw.example)))
        pixels = sample_pixels(self.photos.grid_pixels(image), self.task.pixels, rng)
        return Pair(draw.example, view, role == 0, ids, labels, whole, pixels, rng.random())

    def in_step(self, rows: Sequence[Pair]) -> dict[str, int]:
        """Pairs, masked tokens with a label, and matched pairs."""
        masked = sum(int((pair.labels != IGNORE).sum()) for pair in rows)
        return {"rows": len(rows), "masked": masked, "matched": sum(pair.matched for pair in rows)}

    def collate(self, rows: Sequence[Pair]) -> dict[str, Any]:
        """Pairs to the arguments of the model: each photo once, words padded to the longest sentence."""
        inputs: dict[str, Any] = self.images([[pair.view] for pair in rows])
        if self.task.contrast:
            inputs["contrast"] = self._contrast(rows, inputs["image_index"])
        if not (self.task.mlm or self.task.itm):
            return inputs
        inputs |= text_inputs([pair.ids for pair in rows], self.processor.tokenizer.pad_token_id)
        if self.task.mlm:
            inputs["token_labels"] = pad([pair.labels for pair in rows], IGNORE)
        if self.task.itm:
            inputs["match_labels"] = torch.tensor([float(pair.matched) for pair in rows])
        if any(pair.pixels is not None for pair in rows):
            inputs["pixel_index"] = self._pixel_index(rows)
        return inputs

    def _contrast(self, rows: Sequence[Pair], image_index: Tensor) -> Contrast:
        """The matched sentences as they are, for the two-tower head."""
        matched = [i for i, pair in enumerate(rows) if pair.matched]
        text = text_inputs([rows[i].whole for i in matched], self.processor.tokenizer.pad_token_id)
        negatives = self._negatives([rows[i] for i in matched]) if self.task.hard_negatives else {}
        photo = torch.from_numpy(self.corpus.photo_of[[rows[i].example for i in matched]])
        return Contrast(**text, image_index=image_index[matched], photo=photo, group=self.task.contrast, **negatives)

    def _negatives(self, rows: Sequence[Pair]) -> dict[str, Tensor]:
        """`wrong` and `order` of `assign_hard_negatives`: what reads as one of the image's sentences is not wrong, and
        the order is that of a number drawn for each pair."""
        texts = [self.corpus.text(row.example) for row in rows]
        own = [self.corpus.own_texts(row.example) for row in rows]
        n = self.task.contrast
        wrong = [
            [[texts[t] not in own[i] for i in range(first, first + n)] for t in range(first, first + n)]
            for first in range(0, len(rows), n)
        ]
        drawn = torch.tensor([row.priority for row in rows])
        return {"wrong": torch.tensor(wrong), "order": drawn.view(-1, n).argsort(1)}

    def _pixel_index(self, rows: Sequence[Pair]) -> Tensor:
        """(P, k): each pair's sampled pixels; an image with fewer keeps all, then -1."""
        assert self.task.pixels is not None
        index = torch.full((len(rows), self.task.pixels), -1)
        for i, pair in enumerate(rows):
            chosen = pair.pixels
            if chosen is None:
                chosen = np.arange(self.photos.grid_pixels(pair.view.image))
            index[i, : len(chosen)] = torch.from_numpy(chosen)
        return index

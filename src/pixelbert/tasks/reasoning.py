"""Reasoning over two photos, NLVR2 (paper section 4.2): is the sentence true of the left and the right image?

Two passes, one an image; their [CLS]s are concatenated and classified by cross-entropy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from pixelbert.data.feature_cache import View
from pixelbert.data.photos import Photos
from pixelbert.data.processing import PixelBertProcessor
from pixelbert.data.sampler import Draw
from pixelbert.device import Precision
from pixelbert.errors import PixelBertError
from pixelbert.model.fine_tuning import PixelBertForImagesAndTextClassification
from pixelbert.tasks.scoring import score_examples, shuffled_images
from pixelbert.tasks.sentences import names_a_side
from pixelbert.tasks.steps import StepBatch, StepData, StepLoss, text_inputs
from pixelbert.tasks.task import Task


@dataclass
class Reasoning(Task):
    """Natural language for visual reasoning, the "pair" form.

    Args:
        kind: the task's name.
    """

    kind: Literal["reasoning"] = "reasoning"

    reads: ClassVar[str] = "reasoning"
    model_class: ClassVar[type] = PixelBertForImagesAndTextClassification

    def data(self, *args: Any, **options: Any) -> StatementData:
        """See `Task.data`."""
        return StatementData(*args, **options)

    def loss(self, model: nn.Module, batch: StepBatch) -> StepLoss:
        """Cross-entropy, mean over the sentences of the step."""
        output = model(**batch.inputs)
        loss = output.loss / batch.in_step["rows"]
        right = output.logits.detach().argmax(1) == batch.inputs["labels"]
        return StepLoss(
            loss, {"reasoning_loss": loss.detach(), "reasoning_accuracy": right.sum() / batch.in_step["rows"]}
        )

    def validate(
        self, model: Any, processor: PixelBertProcessor, photos: Photos, examples: int, precision: Precision
    ) -> dict[str, float]:
        """Accuracy, and with photos shuffled."""
        chosen = range(len(photos.corpus))[:examples]
        judge = partial(judge_statements, model, processor, photos, chosen, precision=precision, show=False)
        labels = {e: photos.corpus.target(e, "label") for e in chosen}
        result: dict[str, float] = {"examples": len(chosen)}
        for name, images_of in (
            ("accuracy", None),
            ("accuracy_shuffled", shuffled_images(photos.corpus, chosen)),
        ):
            result[name] = float(np.mean([true == labels[e] for e, true in judge(images_of=images_of)]))
        return result

    def summary(self, row: dict[str, float]) -> str:
        """The figures that matter, beside their controls, in one line."""
        return f"accuracy {row['accuracy']:.3f} (photos shuffled {row['accuracy_shuffled']:.3f})"


class Statement(NamedTuple):
    """One row of a batch: a sentence about two images.

    Args:
        example: its number.
        left, right: its images.
        ids: (L,) tokens.
        label: whether it is true.
    """

    example: int
    left: View
    right: View
    ids: np.ndarray
    label: bool

    @property
    def view(self) -> View:
        """The first image."""
        return self.left

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.ids)


@dataclass
class StatementData(StepData[Statement]):
    """The batches of reasoning; see `StepData`."""

    pairs_per_row = 2

    def rows(self, draws: Sequence[Draw]) -> list[Statement]:
        """See `StepData.rows`."""
        texts = [self.corpus.text(draw.example) for draw in draws]
        rows = []
        for draw, text, ids in zip(draws, texts, self.tokens(texts), strict=True):
            label = self.corpus.target(draw.example, "label")
            if label is None:
                raise PixelBertError(f"example {self.corpus.example_id(draw.example)!r} has no label to learn from")
            one_sided = names_a_side(text)
            left, right = (
                self.view(draw, int(image), one_sided=one_sided) for image in self.corpus.images_of[draw.example]
            )
            rows.append(Statement(draw.example, left, right, ids, label))
        return rows

    def collate(self, rows: Sequence[Statement]) -> dict[str, Any]:
        """Statements to the arguments of the model."""
        text = text_inputs([row.ids for row in rows], self.processor.tokenizer.pad_token_id)
        labels = torch.tensor([int(row.label) for row in rows])
        return text | self.images([[row.left, row.right] for row in rows]) | {"labels": labels}


def judge_statements(model: Any, *args: Any, **options: Any) -> Iterator[tuple[int, bool]]:
    """Whether the model holds each sentence true, as (example, judgement); arguments as of `score_examples`."""
    for scored in score_examples(model, *args, **options):
        for example, label in zip(scored.examples, scored.logits.argmax(1).tolist(), strict=True):
            yield example, bool(label)

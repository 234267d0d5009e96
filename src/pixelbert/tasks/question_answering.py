"""Visual question answering (paper section 4.2): an image and a question in, one of the known answers out.

A perceptron on [CLS], binary cross-entropy against the accuracy that each answer would get.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from pixelbert.bounds import SHARE, Bound, check_fields
from pixelbert.data.corpus import Corpus
from pixelbert.data.feature_cache import View
from pixelbert.data.photos import Photos
from pixelbert.data.processing import PixelBertProcessor
from pixelbert.data.sampler import Draw
from pixelbert.device import Precision
from pixelbert.errors import PixelBertError
from pixelbert.loading import load_checkpoint
from pixelbert.metrics.vqa import ANSWER_RULES, answer_accuracy, soft_targets
from pixelbert.model.fine_tuning import PixelBertForQuestionAnswering
from pixelbert.tasks.scoring import score_examples, shuffled_images
from pixelbert.tasks.sentences import names_a_side
from pixelbert.tasks.steps import StepBatch, StepData, StepLoss, text_inputs
from pixelbert.tasks.task import Task


@dataclass
class QuestionAnswering(Task):
    """Visual question answering. The answers are those of the training data's vocabulary.

    Args:
        kind: the task's name.
        towers: answer from a two-tower head's vectors too (not in the paper). For little data, from a checkpoint that
            has that head: the vectors are learned sooner than the joint transformer (docs/results/fine_tuning.md).
        tower_size: width of these vectors; that of the checkpoint's head, if it is to be kept.
        joint_share: what the perceptron on [CLS] counts in an answer, beside that on the vectors, from 0 to 1. With 0
            the vectors answer alone, and words and pixels never meet in the transformer: several times faster.
    """

    kind: Literal["question-answering"] = "question-answering"
    towers: bool = False
    tower_size: Annotated[int, Bound(ge=1, le=100_000)] = 256
    joint_share: Annotated[float, SHARE] = 0.5

    reads: ClassVar[str] = "question-answering"
    model_class: ClassVar[type] = PixelBertForQuestionAnswering

    def __post_init__(self) -> None:
        check_fields(self, "task")

    @property
    def has_towers(self) -> bool:
        """See `Task.has_towers`."""
        return self.towers

    def head_config(self, corpus: Corpus) -> dict[str, Any]:
        """The answers, as the configuration keeps them."""
        if not corpus.answers:
            raise PixelBertError(f"{corpus.sources[0]}: its answer vocabulary is empty; prepare it with its answers")
        answers = {
            "id2label": dict(enumerate(corpus.answers)),
            "label2id": {a: i for i, a in enumerate(corpus.answers)},
        }
        return super().head_config(corpus) | answers

    def adapt_head(self, model: PixelBertForQuestionAnswering, checkpoint: str) -> None:
        """A model that knows other answers keeps what it knows of those that are also in the data; the rest is new."""
        before, _, _ = load_checkpoint(checkpoint, "cpu")
        if not isinstance(before, PixelBertForQuestionAnswering) or before.answers == model.answers:
            return
        place = {answer: i for i, answer in enumerate(before.answers)}
        for name in before.classifiers.keys() & model.classifiers.keys():
            old, new = before.classifiers[name].out, model.classifiers[name].out
            with torch.no_grad():
                nn.init.normal_(new.weight, std=model.config.initializer_range)
                nn.init.constant_(new.bias, new.first_bias)
                for i, answer in enumerate(model.answers):
                    if answer in place:
                        new.weight[i], new.bias[i] = old.weight[place[answer]], old.bias[place[answer]]

    def freeze_unused(self, model: PixelBertForQuestionAnswering) -> None:  # type: ignore[override]
        """What no answer depends on: the matching logits of the two-tower head, and what [CLS] alone goes through."""
        if model.pixelbert.towers is not None:
            for scale in model.pixelbert.towers.of_logits():
                scale.requires_grad_(False)
            model.pixelbert.pooler.requires_grad_(self.joint_share > 0)

    def data(self, *args: Any, **options: Any) -> QuestionData:
        """See `Task.data`."""
        return QuestionData(*args, **options)

    def loss(self, model: nn.Module, batch: StepBatch) -> StepLoss:
        """Binary cross-entropy, summed over the answers, mean over the questions of the step."""
        output = model(**batch.inputs)
        loss = output.loss / batch.in_step["rows"]
        chosen = output.logits.detach().argmax(1, keepdim=True)
        accuracy = batch.inputs["answer_targets"].gather(1, chosen).sum() / batch.in_step["rows"]
        return StepLoss(loss, {"vqa_loss": loss.detach(), "vqa_accuracy": accuracy})

    def validate(
        self, model: Any, processor: PixelBertProcessor, photos: Photos, examples: int, precision: Precision
    ) -> dict[str, float]:
        """Accuracy, and with photos shuffled."""
        chosen = range(len(photos.corpus))[:examples]
        answer = partial(answer_questions, model, processor, photos, chosen, precision=precision, show=False)
        other = shuffled_images(photos.corpus, chosen)
        found = measure_answers(photos.corpus, dict(answer()), shuffled=dict(answer(images_of=other)))
        return {"examples": len(chosen)} | found

    def summary(self, row: dict[str, float]) -> str:
        """The figures that matter, beside their controls, in one line."""
        return f"accuracy {row['accuracy']:.3f} (photos shuffled {row['accuracy_shuffled']:.3f})"


class Question(NamedTuple):
    """One row of a batch.

    Args:
        example: its number.
        view: its image.
        ids: (L,) tokens of the question.
        targets: the accuracy that each answer gets, by its place in the vocabulary; others get none.
    """

    example: int
    view: View
    ids: np.ndarray
    targets: dict[int, float]

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.ids)


@dataclass
class QuestionData(StepData[Question]):
    """The batches of question answering; see `StepData`."""

    _index: dict[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._index = {answer: i for i, answer in enumerate(self.corpus.answers)}

    def rows(self, draws: Sequence[Draw]) -> list[Question]:
        """See `StepData.rows`."""
        questions = [self.corpus.text(draw.example) for draw in draws]
        rows = []
        for draw, question, ids in zip(draws, questions, self.tokens(questions), strict=True):
            answers, rule = self.corpus.target(draw.example, "answers"), self.corpus.answer_rule(draw.example)
            one_sided = any(map(names_a_side, [question, *answers]))
            view = self.view(draw, int(self.corpus.image_of[draw.example]), one_sided=one_sided)
            rows.append(Question(draw.example, view, ids, soft_targets(answers, self._index, rule)))
        return rows

    def collate(self, rows: Sequence[Question]) -> dict[str, Any]:
        """Questions to the arguments of the model."""
        targets = torch.zeros(len(rows), len(self._index))
        for i, row in enumerate(rows):
            for answer, accuracy in row.targets.items():
                targets[i, answer] = accuracy
        text = text_inputs([row.ids for row in rows], self.processor.tokenizer.pad_token_id)
        return text | self.images([[row.view] for row in rows]) | {"answer_targets": targets}


def answer_questions(model: PixelBertForQuestionAnswering, *args: Any, **options: Any) -> Iterator[tuple[int, str]]:
    """The model's answer to each question, as (example, answer); arguments as of `score_examples`."""
    answers = model.answers
    for scored in score_examples(model, *args, **options):
        for example, best in zip(scored.examples, scored.logits.argmax(1).tolist(), strict=True):
            yield example, answers[best]


def measure_answers(corpus: Corpus, predicted: dict[int, str], **controls: dict[int, str]) -> dict[str, float]:
    """Mean accuracy in [0, 1], overall and by answer type, and the controls' overall.

    Questions whose answer is not in the vocabulary count as wrong; none is left out.
    """
    types = {e: corpus.target(e, "answer_type") for e in predicted}
    scores = answer_scores(corpus, predicted)
    result = {"accuracy": float(np.mean(list(scores.values())))}
    for name, answers in controls.items():
        result[f"accuracy_{name}"] = float(np.mean(list(answer_scores(corpus, answers).values())))
    for kind in sorted({kind for kind in types.values() if kind}):
        name = kind.replace("/", "_").replace(" ", "_")
        result[f"accuracy_{name}"] = float(np.mean([scores[e] for e, its_kind in types.items() if its_kind == kind]))
    return result


def answer_scores(corpus: Corpus, predicted: dict[int, str]) -> dict[int, float]:
    """The accuracy of each answer, compared with those of the example by the rule of its data set."""
    return {
        e: answer_accuracy(answer, corpus.target(e, "answers"), corpus.answer_rule(e))
        for e, answer in predicted.items()
    }


def answerable(corpus: Corpus, examples: Sequence[int], answers: Sequence[str]) -> float:
    """The share of questions of which one of a model's answers is right, by the rules of their data sets."""
    known = {rule: frozenset(map(normalise, answers)) for rule, normalise in ANSWER_RULES.items()}
    right = [
        any(ANSWER_RULES[rule](answer) in known[rule] for answer in corpus.target(e, "answers"))
        for e in examples
        for rule in [corpus.answer_rule(e)]
    ]
    return float(np.mean(right))

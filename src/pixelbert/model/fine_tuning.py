"""Pixel-BERT with the heads of the downstream tasks (paper section 4.2).

Shapes: P pairs of an image and a sentence, E examples, A answers, L word tokens, D hidden; the inputs of every
`forward` are those of `PixelBertModel.forward`. Losses are sums, since only the trainer knows the global batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForVisualQuestionAnswering
from transformers.modeling_outputs import ModelOutput

from pixelbert.model.configuration import PixelBertConfig
from pixelbert.model.heads import ClassificationHead, ImageTextMatchingHead
from pixelbert.model.modeling import PixelBertModel, PixelBertOutput, PixelBertPreTrainedModel
from pixelbert.model.pixels import PixelFeatures

CLS_ALONE: dict[str, Any] = {"positions": 1}  # of the last layer, all that these heads read


@dataclass
class TaskOutput(ModelOutput):
    """Output of a model with a task's head.

    Args:
        loss: sum over the examples, if there were labels.
        logits: question answering (P, A); reasoning (E, 2), false then true; retrieval (P,).
        contrastive_loss: of the two-tower head, if it learns (retrieval): sum over the right pairs.
        attentions: for each layer (pairs, heads, S, S), if asked for.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    contrastive_loss: Tensor | None = None
    attentions: tuple[Tensor, ...] | None = None


class PixelBertForQuestionAnswering(PixelBertPreTrainedModel):
    """A question about an image as a choice among known answers: a perceptron on [CLS] (paper section 4.2, VQA).

    The answers stand in the configuration, as `id2label`. With `tower_size` there too (not in the paper), a second
    perceptron answers from what the two-tower head's vectors of question and image have in common; each is taught by
    itself, and the answer is their mean, weighted by `joint_share`, as the score of a pair is. With a share of 0 the
    vectors answer alone, and there is no perceptron on [CLS].
    """

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__(config)
        self.pixelbert = PixelBertModel(config)
        answers = len(config.id2label or ())
        first_bias = -math.log(max(answers, 1))
        self.classifier: ClassificationHead | None = None
        self.tower_classifier: ClassificationHead | None = None
        if config.joint_share or not config.tower_size:
            self.classifier = ClassificationHead(config, config.hidden_size, answers, first_bias)
        if config.tower_size:
            self.tower_classifier = ClassificationHead(config, 2 * config.tower_size, answers, first_bias)
        self.post_init()

    @property
    def answers(self) -> list[str]:
        """(A,) the answers that the logits are about."""
        return list((self.config.id2label or {}).values())

    @property
    def classifiers(self) -> dict[str, ClassificationHead]:
        """The perceptrons that there are, on [CLS] and on the two-tower head's vectors, by their names here."""
        both = {"classifier": self.classifier, "tower_classifier": self.tower_classifier}
        return {name: head for name, head in both.items() if head is not None}

    def forward(
        self,
        features: PixelFeatures | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        *,
        pixel_values: Tensor | Sequence[Tensor] | None = None,
        trunk_features: PixelFeatures | None = None,
        answer_targets: Tensor | None = None,
        output_attentions: bool = False,
    ) -> TaskOutput:
        """Score every answer for each question.

        Args:
            answer_targets: (P, A) in [0, 1], the accuracy that each answer would get; gives `loss`, the binary
                cross-entropy summed over answers and questions, and with a two-tower head over both perceptrons.
        """
        features = self.pixelbert.given_features(features, pixel_values, trunk_features)
        share, attentions = self.config.joint_share, None
        logits: list[Tensor] = []
        if self.classifier is not None or output_attentions:
            output: PixelBertOutput = self.pixelbert(
                features, input_ids, attention_mask, image_index, output_attentions=output_attentions, **CLS_ALONE
            )
            attentions = output.attentions
            if self.classifier is not None:
                logits = [self.classifier(output.pooler_output)]
        if self.tower_classifier is not None and features is not None and input_ids is not None:
            compared = self.pixelbert.compare(features, input_ids, attention_mask, image_index)
            logits.append(self.tower_classifier(compared))
        if not logits:
            raise ValueError("this network answers from the vectors of photo and question: it needs both")
        loss = None
        if answer_targets is not None:
            truth = answer_targets.float()
            loss = torch.stack([F.binary_cross_entropy_with_logits(x, truth, reduction="sum") for x in logits]).sum()
        mixed = logits[0] if len(logits) == 1 else share * logits[0] + (1 - share) * logits[1]
        return TaskOutput(loss=loss, logits=mixed, attentions=attentions)


class PixelBertForImagesAndTextClassification(PixelBertPreTrainedModel):
    """Is the sentence true of these two images? Two passes, [CLS]s concatenated (paper section 4.2, NLVR2)."""

    IMAGES = 2

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__(config)
        self.pixelbert = PixelBertModel(config)
        self.classifier = ClassificationHead(config, self.IMAGES * config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        features: PixelFeatures | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        **inputs: Any,
    ) -> TaskOutput:
        """Judge each sentence.

        Args:
            input_ids: (E, L).
            attention_mask: (E, L).
            image_index: (E, 2) the left and the right image of each sentence.
            labels: (E,) 1 where the sentence is true, 0 where not; gives `loss`, the cross-entropy.
        """
        if input_ids is None or image_index is None or image_index.shape != (input_ids.shape[0], self.IMAGES):
            raise ValueError("expected input_ids (E, tokens) and image_index (E, 2): two images for each sentence")
        mask = None if attention_mask is None else attention_mask.repeat_interleave(self.IMAGES, 0)
        ids = input_ids.repeat_interleave(self.IMAGES, 0)
        output: PixelBertOutput = self.pixelbert(features, ids, mask, image_index.flatten(), **CLS_ALONE | inputs)
        logits = self.classifier(output.pooler_output.unflatten(0, (-1, self.IMAGES)).flatten(1))  # type: ignore[union-attr]
        loss = None if labels is None else F.cross_entropy(logits, labels.long(), reduction="sum")
        return TaskOutput(loss=loss, logits=logits, attentions=output.attentions)


class PixelBertForImageAndTextRetrieval(PixelBertPreTrainedModel):
    """Scores that rank sentences for an image, and images for a sentence (paper section 4.2, retrieval).

    The scoring layer has the name and shape of pre-training's matching head, and starts from it.
    """

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__(config)
        self.pixelbert = PixelBertModel(config)
        self.itm_head = ImageTextMatchingHead(config)
        self.post_init()

    def forward(
        self,
        features: PixelFeatures | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        *,
        candidates: int | None = None,
        hardest: int | None = None,
        towers: bool = False,
        pixel_values: Tensor | Sequence[Tensor] | None = None,
        trunk_features: PixelFeatures | None = None,
        text_vectors: Tensor | None = None,
        output_attentions: bool = False,
    ) -> TaskOutput:
        """Score each pair, and with `candidates` learn to rank.

        Args:
            candidates: pairs stand in groups of so many, the right one first: the paper's 1 + 20. Gives `loss`, the
                softmax cross-entropy of each group.
            hardest: wrong candidates of each group that the gradient goes through, those with the highest scores; all
                if None. The others count in the softmax, as constants: a second pass runs over the right and the
                hardest alone.
            towers: also teach the two-tower head to rank the candidates; gives `contrastive_loss`.
            text_vectors: (P, E) of `embed_texts`, where the sentences' are known; without `candidates`, the two-tower
                head's logit is a part of the scores: see `PixelBertModel.match`.
        """
        features = self.pixelbert.given_features(features, pixel_values, trunk_features)
        if input_ids is None or image_index is None:
            raise ValueError("expected input_ids (P, tokens) and image_index (P,): the image of each sentence")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if candidates is None:
            pairs = (features, input_ids, attention_mask, image_index)
            found = self._score(*pairs, output_attentions=output_attentions)
            found.logits = self.pixelbert.match(found.logits, *pairs, text_vectors)
            return found
        if hardest is None or hardest >= candidates - 1:
            logits = self._score(features, input_ids, attention_mask, image_index).logits
        else:
            with torch.no_grad():
                logits = self._score(features, input_ids, attention_mask, image_index).logits
            groups = logits.view(-1, candidates)
            wrong = groups[:, 1:].topk(hardest, dim=1).indices + 1
            first = torch.arange(0, len(logits), candidates, device=logits.device)[:, None]
            rows = (first + F.pad(wrong, (1, 0))).flatten()  # the right one, place 0, and the hardest
            learned = self._score(features, input_ids[rows], attention_mask[rows], image_index[rows]).logits
            logits = logits.index_copy(0, rows, learned)
        groups = logits.view(-1, candidates)
        right = torch.zeros(len(groups), dtype=torch.long, device=groups.device)
        result = TaskOutput(loss=F.cross_entropy(groups, right, reduction="sum"), logits=logits)
        if towers and features is not None and self.pixelbert.towers is not None:
            apart = self.pixelbert.tower_logits(features, input_ids, attention_mask, image_index).view(-1, candidates)
            truth = F.one_hot(right, candidates).bool()
            loss = F.cross_entropy(apart, right, reduction="sum")
            result.contrastive_loss = loss + self.pixelbert.towers.calibration(apart, truth)
        return result

    def _score(
        self,
        features: PixelFeatures | None,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_index: Tensor,
        **inputs: Any,
    ) -> Any:
        output: PixelBertOutput = self.pixelbert(features, input_ids, attention_mask, image_index, **CLS_ALONE | inputs)
        return TaskOutput(logits=self.itm_head(output.pooler_output), attentions=output.attentions)


AutoModelForVisualQuestionAnswering.register(PixelBertConfig, PixelBertForQuestionAnswering)

"""Heads on the transformer's outputs: of pre-training (paper section 3.3) under the names of transformers'
BertForPreTraining, of the tasks (section 4.2), and of the first stage of a search (not in the paper)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from pixelbert.model.configuration import PixelBertConfig


class MaskedLanguageModelHead(nn.Module):
    """Token vectors -> scores over the vocabulary (eq. 7), with the word embeddings as the last layer's weights."""

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Tensor, word_embeddings: Tensor) -> Tensor:
        """(n, D) and (V, D) -> (n, V)"""
        return F.linear(self.LayerNorm(self.activation(self.dense(x))), word_embeddings, self.bias)


class ImageTextMatchingHead(nn.Linear):
    """Joint embedding -> the logit of S(w, I), the probability that sentence and image belong together (eq. 8)."""

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__(config.hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(P, D) -> (P,), in float32 whatever the precision around it: rounded logits would tie in a ranking."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float(), self.bias.float()).squeeze(-1)


class BiasedLinear(nn.Linear):
    """A linear layer whose biases start at `first_bias`."""

    def __init__(self, inputs: int, outputs: int, first_bias: float) -> None:
        super().__init__(inputs, outputs)
        self.first_bias = first_bias


class ClassificationHead(nn.Module):
    """The multi-layer perceptron on the joint embedding (paper section 4.2): (P, inputs) -> (P, classes).

    The paper gives no sizes; these are LXMERT's and UNITER's: twice the transformer's width, GELU, LayerNorm.

    Args:
        inputs: width of the joint embedding, or of several.
        classes: how many are scored.
        first_bias: of the scores before training. With a sigmoid over thousands of answers, of which one is right, an
            untrained head at 0.5 for each spends its first epochs on learning that most are wrong.
    """

    def __init__(self, config: PixelBertConfig, inputs: int, classes: int, first_bias: float = 0.0) -> None:
        super().__init__()
        width = 2 * config.hidden_size
        self.dense = nn.Linear(inputs, width)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.out = BiasedLinear(width, classes, first_bias)

    def forward(self, x: Tensor) -> Tensor:
        """In float32 at the end, whatever the precision around it: rounded scores would tie."""
        x = self.LayerNorm(self.activation(self.dense(x.to(self.dense.weight.dtype))))  # vectors come in float32
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.out.weight.float(), self.out.bias.float())


class TwoTowerHead(nn.Module):
    """Vectors of images and of sentences, made apart from each other; their inner products tell what belongs together.

    The joint transformer has to run once for every pair. A sentence's vector is made once, by the transformer; an
    image's needs none, only its pixel embeddings (measured in docs/results/shipped.md). So a search compares a
    sentence with all images at the cost of a matrix product, and leaves a short list to the transformer. Trained by
    contrast, each right pair against the others of its group (as in CLIP, arXiv:2103.00020).

    What contrast teaches ranks; `match` makes it the logit of a match, by a slope and a threshold that `calibration`
    teaches. The score of a pair is a mean of that logit and the matching head's: see `PixelBertModel.match`.
    """

    FIRST_SCALE = 1 / 0.07  # of CLIP's logits, which is learned from there
    LARGEST_SCALE = 100.0
    FIRST_THRESHOLD = 0.2  # near where the cosines of right and wrong pairs part once they are learned

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__()
        self.text = nn.Linear(config.hidden_size, config.tower_size)
        self.pixel_weight = nn.Linear(config.hidden_size, 1)
        self.image_dense = nn.Linear(config.hidden_size, config.hidden_size // 2)
        self.image_out = nn.Linear(config.hidden_size // 2, config.hidden_size)
        self.image = nn.Linear(config.hidden_size, config.tower_size)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.log_scale = nn.Parameter(torch.tensor(math.log(self.FIRST_SCALE)))
        self.log_slope = nn.Parameter(torch.tensor(0.0))
        self.threshold = nn.Parameter(torch.tensor(self.FIRST_THRESHOLD))

    def embed_text(self, words: Tensor, mask: Tensor) -> Tensor:
        """A sentence that stood alone: its tokens (P, L, D), those in the mask (P, L) -> (P, E), of length 1.

        Their mean, as sentence encoders take it; [CLS] was slower to learn from it (docs/results/search.md).
        """
        return F.normalize(self.text(masked_mean(words, mask)).float(), dim=-1)

    def embed_image(self, pixels: Tensor, mask: Tensor) -> Tensor:
        """An image's pixel embeddings (I, K, D), those in the mask (I, K) -> (I, E), of length 1.

        Each pixel says how much it counts, and what they say is softened into shares: an image is what stands out in it
        (measured against their plain mean in docs/results/shipped.md). A perceptron adds to that mean what a linear map
        alone would miss.
        """
        weights = self.pixel_weight(pixels).float().squeeze(-1).masked_fill(~mask, -torch.inf).softmax(1)
        x = self.dropout((pixels.float() * weights[..., None]).sum(1).to(pixels.dtype))
        x = x + self.image_out(self.dropout(self.activation(self.image_dense(x))))
        return F.normalize(self.image(x).float(), dim=-1)

    def rivals(self, text: Tensor, image: Tensor, image_index: Tensor, photo: Tensor, group: int) -> Tensor:
        """What each sentence of a group scores with the image of each; other sentences of one photo are no rivals.

        Args:
            text: (P, E) vectors of sentences, group after group of `group` each.
            image: (I, E) vectors of images.
            image_index: (P,) the image of each sentence.
            photo: (P,) the photo of each sentence, of which several images may be views: as it is, and mirrored.

        Returns:
            (groups, texts, images) logits, minus infinity for another sentence of the same photo.
        """
        own, photo = image_index.view(-1, group), photo.view(-1, group)
        with torch.autocast(own.device.type, enabled=False):  # rounded products would tie
            logits = self.scale() * text.view(-1, group, text.shape[1]) @ image[own].transpose(1, 2)
        same_photo = (photo[:, :, None] == photo[:, None, :]) & ~torch.eye(group, dtype=torch.bool, device=own.device)
        return logits.masked_fill(same_photo, -torch.inf)

    @staticmethod
    def contrast(logits: Tensor) -> Tensor:
        """Each sentence finds its image among those of its group, and each image its sentence.

        Args:
            logits: of `rivals`.

        Returns:
            The cross-entropies of both directions, their mean summed over sentences.
        """
        right = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
        of_texts = F.cross_entropy(logits.transpose(1, 2), right, reduction="sum")  # classes stand second
        of_images = F.cross_entropy(logits, right, reduction="sum")
        return (of_texts + of_images) / 2

    def match(self, logits: Tensor) -> Tensor:
        """Contrastive logits (inner products, scaled) to logits of "these belong together"."""
        return self.log_slope.exp() * (logits - self.threshold * self.scale().detach())

    @torch.no_grad()
    def match_cosines(self, cosines: np.ndarray) -> np.ndarray:
        """`match` of inner products that aren't scaled yet."""
        return self.match(self.scale() * torch.from_numpy(cosines).to(self.threshold.device)).float().cpu().numpy()

    def calibration(self, logits: Tensor, right: Tensor) -> Tensor:
        """Teaches `match` alone: right pairs and wrong ones, which count as much as the right ones together.

        Args:
            logits: contrastive ones, of any shape; minus infinity where a pair is neither.
            right: of that shape, true at right pairs.

        Returns:
            The binary cross-entropies, summed, so that each right pair adds about 1 before it is learned.
        """
        known = logits.isfinite()
        found, truth = self.match(logits.detach()[known]), right[known]
        losses = F.binary_cross_entropy_with_logits(found, truth.float(), reduction="none")
        wrong = losses[~truth]
        return (losses[truth].sum() + wrong.sum() * (truth.sum() / max(wrong.numel(), 1))) / 2

    def of_logits(self) -> list[nn.Parameter]:
        """The numbers that turn inner products into logits, which the vectors themselves don't depend on."""
        return [self.log_scale, self.log_slope, self.threshold]

    def scale(self) -> Tensor:
        """What inner products are multiplied by to be logits."""
        return self.log_scale.exp().clamp(max=self.LARGEST_SCALE)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean over a sequence (n, L, D) of what is in the mask (n, L) -> (n, D)."""
    weights = mask.float()[..., None]
    return ((x.float() * weights).sum(1) / weights.sum(1)).to(x.dtype)


def assign_hard_negatives(logits: Tensor, wrong: Tensor, order: Tensor) -> Tensor:
    """The sentences of each group, handed to images that they are wrong for but near.

    One image after another, in a random order, takes the sentence that scores highest with it among those still left.
    So none is mismatched more often than once, as often as it is matched: that it lies near many images says nothing.

    Args:
        logits: (groups, texts, images) of `TwoTowerHead.rivals`.
        wrong: (groups, texts, images) true where the sentence is none of the image's.
        order: (groups, images) the order in which images choose.

    Returns:
        (groups, images) the sentence of each; its own number for an image that finds none left.
    """
    scores = logits.detach().float().masked_fill(~wrong, -torch.inf)
    table, turns = scores.cpu().numpy(), order.cpu().numpy()
    taken = np.tile(np.arange(table.shape[2]), (len(table), 1))
    for group, images in enumerate(turns):
        for image in images:
            best = int(table[group, :, image].argmax())
            if np.isfinite(table[group, best, image]):
                taken[group, image] = best
                table[group, best] = -np.inf
    return torch.from_numpy(taken).to(logits.device)

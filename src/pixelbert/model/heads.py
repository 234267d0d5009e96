"""Heads of pre-training (paper section 3.3), under the names of transformers' BertForPreTraining."""

from __future__ import annotations

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
        x = self.LayerNorm(self.activation(self.dense(x)))
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.out.weight.float(), self.out.bias.float())

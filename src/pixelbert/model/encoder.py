"""Words to vectors (paper eq. 4) and the transformer (paper section 3.1), under the names of transformers' BertModel.

Shapes: P pairs, L word tokens, S = L + pixels of a sequence, T vectors of all sequences, D hidden, A attention heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from pixelbert.model.configuration import PixelBertConfig


def dropout(x: Tensor, p: float) -> Tensor:
    """`F.dropout` in training. On a CPU the random numbers take its time: here 64 bits at once decide about four values
    (p to the nearest of 65,536 parts), which is faster (`pixelbert bench choices`)."""
    if x.device.type != "cpu" or p == 0:
        return F.dropout(x, p)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    keep = bits[: x.numel()].view(x.shape) >= round(p * 2**16) - 2**15
    return x * (keep.to(x.dtype) * (1 / (1 - p)))


class Dropout(nn.Dropout):
    """See `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x


class TextEmbeddings(nn.Module):
    """LayerNorm(word + position), eq. 4 with s_w omitted: (P, L) -> (P, L, D)."""

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        if length > self.position_embeddings.num_embeddings:
            raise ValueError(
                f"a sentence of {length} tokens is longer than the {self.position_embeddings.num_embeddings} positions "
                "of this model; truncate it (the processor does by default)"
            )
        return self.dropout(self.LayerNorm(self.word_embeddings(input_ids) + self.position_embeddings.weight[:length]))


@dataclass(frozen=True)
class Layout:
    """Where the T vectors of P sequences stand.

    Attention alone needs to know which sequence a vector belongs to. All else is done to each vector by itself: on a
    CPU to sequences packed one after another in (T, D), so that padding costs nothing there.

    Args:
        size: P and S.
        mask: (P, 1, 1, S), true where there is something to attend to; None if it is everywhere.
        index: (T,) where the packed vectors stand among the P x S; None if all of those are kept, padding too.
    """

    size: tuple[int, int]
    mask: Tensor | None = None
    index: Tensor | None = None

    # Above this share of vectors that aren't padding, moving them takes longer (`pixelbert bench choices`).
    WORTHWHILE = 0.95

    @classmethod
    def of(cls, x: Tensor, mask: Tensor | None) -> Layout:
        """Of sequences (P, S, D), of which what is in the mask (P, S) counts."""
        size = (x.shape[0], x.shape[1])
        # An exported graph's shapes can't depend on values; and a GPU would have to wait for them. (What it would gain
        # has not been measured.)
        if mask is None or torch.compiler.is_compiling() or x.device.type != "cpu":
            return cls(size, None if mask is None else mask[:, None, None])
        index = mask.flatten().nonzero().squeeze(1)
        if len(index) == mask.numel():
            return cls(size)
        packed = len(index) < cls.WORTHWHILE * mask.numel()
        return cls(size, mask[:, None, None], index if packed else None)

    def first(self, positions: int, device: torch.device) -> tuple[Layout, Tensor]:
        """The layout of each sequence's first so many vectors, and which of the T vectors those are."""
        pairs, length = self.size
        size = (pairs, positions)
        if self.index is None:
            starts = torch.arange(pairs, device=device)[:, None] * length
            return Layout(size), (starts + torch.arange(positions, device=device)).flatten()
        chosen = (self.index % length < positions).nonzero().squeeze(1)
        index = self.index[chosen]
        return Layout(size, index=index // length * positions + index % length), chosen

    def pack(self, x: Tensor) -> Tensor:
        """(P, S, D) -> (T, D)"""
        x = x.flatten(0, 1)
        return x if self.index is None else x[self.index]

    def unpack(self, x: Tensor) -> Tensor:
        """(T, D) -> (P, S, D), padding zero if it was left out."""
        if self.index is not None:
            x = x.new_zeros(self.size[0] * self.size[1], x.shape[1]).index_copy(0, self.index, x)
        return x.unflatten(0, self.size)


def softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension, computed in float32 inside and returned in the precision of `scores`."""
    with torch.autocast(scores.device.type, enabled=False):  # which would return, and keep for backward, float32
        return scores.softmax(-1)


def written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float = 0.0) -> tuple[Tensor, Tensor]:
    """Attention of (P, A, S, D/A) in plain operations: what it found, and its weights (P, A, S, S)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    attention = softmax(scores)
    return (dropout(attention, dropout_p) if dropout_p else attention) @ v, attention


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float = 0.0) -> Tensor:
    """The same through torch's fused kernels, which don't give the weights away."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p)


def is_written_out(device: torch.device, dtype: torch.dtype, training: bool) -> bool:
    """Where plain operations are the faster: on CPUs in training, and in bfloat16 (`pixelbert bench choices`)."""
    return device.type == "cpu" and (training or dtype == torch.bfloat16)


class SelfAttention(nn.Module):
    """Multi-head attention (eqs. 1 and 2) through torch's fused kernels."""

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout_p = config.attention_probs_dropout_prob

    def forward(
        self, x: Tensor, layout: Layout, queries: Tensor, query_layout: Layout, weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        q, k, v = (
            where.unpack(layer(y)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y, where in ((self.query, queries, query_layout), (self.key, x, layout), (self.value, x, layout))
        )  # each (P, A, S, D/A)
        attention, p = None, self.dropout_p if self.training else 0.0
        if weights or is_written_out(x.device, q.dtype, self.training):
            context, attention = written_out(q, k, v, layout.mask, p)
        else:
            context = fused(q, k, v, layout.mask, p)
        return query_layout.pack(context.transpose(1, 2).flatten(2)), attention


class ResidualOutput(nn.Module):
    """Linear, dropout, then LayerNorm over the sum with the layer's input."""

    def __init__(self, config: PixelBertConfig, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Attention(nn.Module):
    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = ResidualOutput(config, config.hidden_size)

    def forward(
        self, x: Tensor, layout: Layout, queries: Tensor, query_layout: Layout, weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        context, attention = self.self(x, layout, queries, query_layout, weights)
        return self.output(context, queries), attention


class Intermediate(nn.Module):
    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.dense(x))


class Layer(GradientCheckpointingLayer):
    """Attention, then the feed-forward network (eq. 3)."""

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config, config.intermediate_size)

    def forward(
        self, x: Tensor, layout: Layout, queries: Tensor, query_layout: Layout, weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Vectors x (T, D) of a layout -> (T', D): new ones for `queries`, all of x or some, which have theirs."""
        x, attention = self.attention(x, layout, queries, query_layout, weights)
        return self.output(self.intermediate(x), x), attention


class Encoder(nn.Module):
    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        positions: int | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Run all layers.

        Args:
            x: (P, S, D).
            mask: (P, S), true where there is something to attend to; None if it is everywhere.
            positions: how many of the last layer's outputs are wanted, from the first; all if None. The others are not
                computed: a head on [CLS] needs one, and masked words need no pixels. Attention weights, if asked for,
                come from all.
            output_attentions: also return each layer's (P, A, S, S) attention weights.

        Returns:
            (P, S, D), or the first `positions` of it, zero or meaningless outside the mask; and the weights.
        """
        attentions: list[Tensor] = []
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # or every sum of the residual stream is in float32
        layout = Layout.of(x, mask)
        x = layout.pack(x)
        query_layout = layout
        for layer in self.layer:
            queries = x
            if layer is self.layer[-1] and positions is not None and not output_attentions:
                query_layout, rows = layout.first(min(positions, layout.size[1]), x.device)
                queries = x[rows]
            x, attention = layer(x, layout, queries, query_layout, output_attentions)
            if output_attentions:
                attentions.append(attention)
        return query_layout.unpack(x), tuple(attentions) if output_attentions else None


class Pooler(nn.Module):
    """tanh(Linear([CLS])): the joint embedding of a pair, (P, S, D) -> (P, D)."""

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x[:, 0]))

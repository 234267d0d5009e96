"""What ours is compared with: the plain way to write Pixel-BERT, and ViLT, both of transformers' own modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel, ViltConfig, ViltModel
from transformers.models.bert.modeling_bert import BertOnlyMLMHead


class PlainPixelBert(nn.Module):
    """transformers' ResNet-50 and BERT-base put together, one pass of the CNN for each pair of an image and a sentence.

    The same mathematics as ours, frozen batch norm and sampled pixels included: with our weights it has our losses and
    gradients (tests/test_bench.py). Images of a batch have one shape, so that its padding costs it nothing here.

    Args:
        answers: of a head for question answering; 0 for the heads of pre-training.
        attention: transformers' implementation of it, eager or sdpa.
        cnn: another size of CNN.
        bert: another size of transformer.
    """

    def __init__(
        self,
        answers: int = 0,
        attention: str = "sdpa",
        cnn: ResNetConfig | None = None,
        bert: BertConfig | None = None,
    ) -> None:
        super().__init__()
        cnn_config: Any = cnn or ResNetConfig()
        bert = bert or BertConfig()
        bert._attn_implementation = attention
        width = bert.hidden_size
        self.cnn = ResNetModel(cnn_config)
        self.bert: Any = BertModel(bert)
        self.projection = nn.Linear(cnn_config.hidden_sizes[-1], width)
        self.mlm: Any = None if answers else BertOnlyMLMHead(bert)
        self.head: nn.Module = nn.Linear(width, 1)
        if answers:
            layers = nn.Linear(width, 2 * width), nn.GELU(), nn.LayerNorm(2 * width, eps=bert.layer_norm_eps)
            self.head = nn.Sequential(*layers, nn.Linear(2 * width, answers))

    def train(self, mode: bool = True) -> PlainPixelBert:
        super().train(mode)
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eval().requires_grad_(False)
        return self

    def loss(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        targets: Tensor,
        token_labels: Tensor | None = None,
        pixel_index: Tensor | None = None,
    ) -> Tensor:
        """Images (P, 3, H, W) and sentences (P, L), pair by pair.

        Args:
            targets: (P, A) of answers, or (P, 1) whether image and sentence belong together.
            token_labels: (P, L) true tokens, -100 where they don't count: the loss of pre-training. Without, that of
                question answering.
            pixel_index: (P, k) the sampled pixels of each pair; all if None.
        """
        x = F.max_pool2d(self.cnn(pixel_values).last_hidden_state, 2).flatten(2).transpose(1, 2)
        if pixel_index is not None:
            x = x.gather(1, pixel_index[..., None].expand(-1, -1, x.shape[2]))
        words = self.bert.embeddings(input_ids)
        sequence = torch.cat([words, self.projection(x).to(words.dtype)], 1)
        seen = torch.cat([attention_mask, attention_mask.new_ones(x.shape[:2])], 1)
        mask = torch.zeros_like(seen, dtype=sequence.dtype).masked_fill_(seen == 0, torch.finfo(sequence.dtype).min)
        states = self.bert.encoder(sequence, attention_mask=mask[:, None, None, :]).last_hidden_state
        logits = self.head(self.bert.pooler(states)).float()
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        if token_labels is not None:
            scores = self.mlm(states[:, : input_ids.shape[1]]).float()
            loss = loss + F.cross_entropy(scores.flatten(0, 1), token_labels.flatten(), reduction="sum")
        return loss


def vilt() -> ViltModel:
    """ViLT-B/32 (random weights: the time is the same)."""
    return ViltModel(ViltConfig(max_image_length=-1)).eval()

"""Pixel-BERT (paper section 3): a CNN and BERT in one transformer, and its pre-training form.

Shapes: I images, P pairs of an image and a sentence, L word tokens, K pixels, S = L + K, D hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from pixelbert.model.configuration import PixelBertConfig
from pixelbert.model.encoder import Encoder, Pooler, TextEmbeddings
from pixelbert.model.heads import (
    BiasedLinear,
    ImageTextMatchingHead,
    MaskedLanguageModelHead,
    TwoTowerHead,
    assign_hard_negatives,
)
from pixelbert.model.pixels import (
    PixelEmbedding,
    PixelFeatures,
    by_shape,
    gather_pixels,
    grid_features,
    pooled_grid,
)
from pixelbert.model.resnet import BACKBONES, STAGES, ResNet

IGNORE = -100  # a label that counts for nothing, as in torch's cross-entropy


@dataclass
class PixelBertOutput(ModelOutput):
    """Output of `PixelBertModel`.

    Args:
        last_hidden_state: (P, S, D), words first, then pixels; fewer if `positions` was given.
        pooler_output: (P, D), the joint embedding of each pair from [CLS].
        attentions: for each layer (P, A, S, S), if asked for.
        pixel_mask: (P, K), true where a pair has a pixel; None without images.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    attentions: tuple[Tensor, ...] | None = None
    pixel_mask: Tensor | None = None


class Contrast(NamedTuple):
    """Sentences that the two-tower head tells apart, group after group.

    Args:
        input_ids: (P, L) tokens, nothing masked.
        attention_mask: (P, L).
        image_index: (P,) the image of each sentence.
        photo: (P,) a number for the photo that it is of. An image that is mirrored, or stands twice, is another image
            and the same photo.
        group: sentences in a group.
        wrong, order: of hard negatives, which take the place of the mismatched pairs' sentences, see
            `assign_hard_negatives`; None to leave those as they are.
    """

    input_ids: Tensor
    attention_mask: Tensor
    image_index: Tensor
    photo: Tensor
    group: int
    wrong: Tensor | None = None
    order: Tensor | None = None


@dataclass
class PixelBertForPreTrainingOutput(ModelOutput):
    """Output of `PixelBertForPreTraining`. Losses are sums, since only the trainer knows the global batch.

    Args:
        match_logits: (P,) logit of "this sentence belongs to this image".
        token_logits: (n, V) scores at the n positions with a label, or at all P x L without labels.
        mlm_loss: sum of the cross-entropies at masked tokens (eq. 7).
        itm_loss: sum of the binary cross-entropies of pairs (eq. 8).
        contrastive_loss: sum of the two-tower head's cross-entropies, the mean of both directions, and its calibration.
        attentions: for each layer (P, A, S, S), if asked for.
    """

    match_logits: Tensor | None = None
    token_logits: Tensor | None = None
    mlm_loss: Tensor | None = None
    itm_loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    attentions: tuple[Tensor, ...] | None = None


class PixelBertPreTrainedModel(PreTrainedModel):
    """Initialisation, saving and loading, shared by all PixelBert models."""

    config_class = PixelBertConfig
    base_model_prefix = "pixelbert"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True  # of the transformer's layers and the CNN's blocks

    def encode_images(self, pixel_values: Tensor | Sequence[Tensor]) -> PixelFeatures:
        """Images to pixel embeddings (eq. 5); see `PixelBertModel.encode_images`."""
        return cast(PixelBertModel, self.base_model).encode_images(pixel_values)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.constant_(module.bias, module.first_bias if isinstance(module, BiasedLinear) else 0.0)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
            if module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            for name, buffer in module.named_buffers():  # a batch norm's statistics
                nn.init.constant_(buffer, float(name == "running_var"))
        elif isinstance(module, PixelEmbedding):
            nn.init.normal_(module.semantic, std=std)
        elif isinstance(module, MaskedLanguageModelHead):
            nn.init.zeros_(module.bias)
        elif isinstance(module, TwoTowerHead):
            nn.init.constant_(module.log_scale, math.log(module.FIRST_SCALE))
            nn.init.zeros_(module.log_slope)
            nn.init.constant_(module.threshold, module.FIRST_THRESHOLD)


class PixelBertModel(PixelBertPreTrainedModel):
    """The trunk of all tasks: images and sentences to one sequence of vectors a pair.

    The unit of work is a set of images and a list of pairs that index into it, so that the CNN runs once an image:

        features = model.encode_images(pixel_values)
        output = model(features, input_ids, attention_mask, image_index)
    """

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__(config)
        shape = BACKBONES[config.backbone]
        self.backbone = ResNet(
            shape, stride_in_1x1=config.stride_in_1x1, frozen_batch_norm=config.batch_norm == "frozen"
        )
        self.pixel_embedding = PixelEmbedding(config, shape.out_channels)
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config)
        self.towers = TwoTowerHead(config) if config.tower_size else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = cast(nn.Embedding, value)

    def trunk_features(self, pixel_values: Tensor | Sequence[Tensor]) -> PixelFeatures:
        """The CNN and the 2 x 2 max pool; see `grid_features`."""
        return grid_features(self.backbone, pixel_values)

    def encode_images(self, pixel_values: Tensor | Sequence[Tensor]) -> PixelFeatures:
        """Images to pixel embeddings (eq. 5), once an image, for as many sentences as follow.

        Args:
            pixel_values: see `grid_features`.

        Returns:
            PixelFeatures with values (I, K, D).
        """
        return self.pixel_embedding(self.trunk_features(pixel_values))

    def embed_stored(self, stored: PixelFeatures) -> PixelFeatures:
        """Pixel embeddings of what a feature cache holds.

        Args:
            stored: the output of `trunk_features`; or, where only the CNN's first stages are frozen, that of the last
                frozen stage (values (I, pixels, C), rows x columns of its own feature map), from where the CNN goes on.
        """
        channels = stored.values.shape[2]
        for stage in STAGES[:-1]:
            if channels == self.backbone.shape.channels_after(stage):
                dtype = self.backbone.conv1.weight.dtype
                maps = [x.to(dtype) for x in stored.maps()]
                stored = by_shape(lambda x: pooled_grid(self.backbone.go_on(x, stage)), maps)  # noqa: B023
                break
        return self.pixel_embedding(stored)

    def given_features(
        self,
        features: PixelFeatures | None,
        pixel_values: Tensor | Sequence[Tensor] | None,
        trunk_features: PixelFeatures | None,
    ) -> PixelFeatures | None:
        """Pixel embeddings, from whichever of the three ways of giving images was taken; None of text alone."""
        if pixel_values is not None:
            return self.encode_images(pixel_values)
        return features if trunk_features is None else self.embed_stored(trunk_features)

    def embed_images(self, features: PixelFeatures) -> Tensor:
        """Images alone, by the two-tower head: pixel embeddings (I, K, D) -> (I, E)."""
        mask = torch.arange(features.values.shape[1], device=features.grid.device) < features.lengths[:, None]
        return self._towers().embed_image(features.values.to(self.dtype), mask)

    def embed_texts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Sentences alone, through the transformer and the two-tower head: (P, L) -> (P, E)."""
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        words, _ = self.encoder(self.embeddings(input_ids), mask)
        return self._towers().embed_text(words, mask)

    def rivals(self, features: PixelFeatures | None, given: Contrast) -> Tensor:
        """(groups, texts, images) what the two-tower head makes of each group; see `TwoTowerHead.rivals`."""
        if features is None:
            raise ValueError("contrast needs images")
        texts = self.embed_texts(given.input_ids, given.attention_mask)
        return self._towers().rivals(texts, self.embed_images(features), given.image_index, given.photo, given.group)

    def contrast(self, rivals: Tensor) -> Tensor:
        """The two-tower head's loss, of what `rivals` gave, summed over sentences."""
        towers = self._towers()
        right = torch.eye(rivals.shape[1], dtype=torch.bool, device=rivals.device).expand_as(rivals)
        return towers.contrast(rivals) + towers.calibration(rivals, right)

    def tower_logits(
        self, features: PixelFeatures, input_ids: Tensor, attention_mask: Tensor, image_index: Tensor
    ) -> Tensor:
        """(P,) the two-tower head's score of each sentence with its image."""
        return self._of_vectors(self.embed_texts(input_ids, attention_mask), features, image_index)

    def compare(
        self,
        features: PixelFeatures,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        image_index: Tensor | None,
    ) -> Tensor:
        """(P, 2 E) what the two-tower head's vectors of each sentence and its image have in common, component by
        component, and the sentence's own beside it; components are about 1, as those of the transformer."""
        texts = self.embed_texts(input_ids, attention_mask)
        images = self.embed_images(features)
        if image_index is not None:
            images = images[image_index]
        return math.sqrt(texts.shape[1]) * torch.cat([math.sqrt(texts.shape[1]) * texts * images, texts], dim=1)

    def _of_vectors(self, texts: Tensor, features: PixelFeatures, image_index: Tensor) -> Tensor:
        with torch.autocast(texts.device.type, enabled=False):  # rounded products would tie
            return self._towers().scale() * (texts * self.embed_images(features)[image_index]).sum(-1)

    def match(
        self,
        joint: Tensor,
        features: PixelFeatures | None,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        image_index: Tensor | None,
        text_vectors: Tensor | None = None,
    ) -> Tensor:
        """(P,) the score of each pair: with a two-tower head the mean of its logit and the matching head's, weighted by
        `joint_share`.

        The two err on different pairs, so their mean is right more often than either (docs/results/shipped.md). Each is
        taught by itself: a joint logit that learned what the other leaves would learn little, since on training images
        the other leaves little.

        Args:
            joint: (P,) of the matching head.
            text_vectors: (P, E) of `embed_texts`, if they are known.
        """
        if self.towers is None or features is None:
            return joint
        if text_vectors is None:
            text_vectors = self.embed_texts(input_ids, attention_mask)
        if image_index is None:
            image_index = torch.arange(len(input_ids), device=input_ids.device)
        apart = self.towers.match(self._of_vectors(text_vectors, features, image_index))
        return self.config.joint_share * joint + (1 - self.config.joint_share) * apart

    def _towers(self) -> TwoTowerHead:
        if self.towers is None:
            raise ValueError("this network has no two-tower head: its configuration's tower_size is 0")
        return self.towers

    def forward(
        self,
        features: PixelFeatures | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        *,
        pixel_index: Tensor | None = None,
        pixel_values: Tensor | Sequence[Tensor] | None = None,
        trunk_features: PixelFeatures | None = None,
        positions: int | None = None,
        output_attentions: bool = False,
    ) -> PixelBertOutput:
        """One sequence {[CLS], w, [SEP], v} a pair (eq. 6) through the transformer.

        Args:
            features: what `encode_images` returned; or give `pixel_values`, or `trunk_features` (the stored output
                of a frozen CNN or of its frozen stages, see `embed_stored`); without any of them, text alone.
            input_ids: (P, L) tokens, [CLS] and [SEP] included.
            attention_mask: (P, L), 1 at tokens and 0 at padding; all tokens if None.
            image_index: (P,) the image of each pair; one sentence an image, in order, if None.
            pixel_index: (P, k) pixels sampled for each pair (see `gather_pixels`); all if None.
            positions: compute only the first so many of the last layer's outputs; all if None.
            output_attentions: return attention weights (slower: not from the fused kernels).
        """
        if input_ids is None:
            raise ValueError("input_ids is missing: (pairs, tokens), as PixelBertProcessor(text=...) makes them")
        features = self.given_features(features, pixel_values, trunk_features)
        x = self.embeddings(input_ids)
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        pixel_mask = None
        if features is not None:
            if image_index is None:
                if len(features) != len(input_ids):
                    raise ValueError(
                        f"{len(features)} images and {len(input_ids)} sentences: pass image_index (one number a "
                        "sentence) to say which image each sentence is about"
                    )
                image_index = torch.arange(len(features), device=input_ids.device)
            pixels, pixel_mask = gather_pixels(features, image_index, pixel_index)
            x = torch.cat([x, pixels.to(x.dtype)], dim=1)
            mask = torch.cat([mask, pixel_mask], dim=1)
        x, attentions = self.encoder(x, mask, positions=positions, output_attentions=output_attentions)
        return PixelBertOutput(
            last_hidden_state=x, pooler_output=self.pooler(x), attentions=attentions, pixel_mask=pixel_mask
        )


class PixelBertForPreTraining(PixelBertPreTrainedModel):
    """Pixel-BERT with the two heads of pre-training (paper section 3.3): masked words and image-text matching.

    With `tower_size` in its configuration it also has the two-tower head, for searching.
    """

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__(config)
        self.pixelbert = PixelBertModel(config)
        self.mlm_head = MaskedLanguageModelHead(config)
        self.itm_head = ImageTextMatchingHead(config)
        self.post_init()

    def forward(
        self,
        features: PixelFeatures | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        *,
        pixel_index: Tensor | None = None,
        pixel_values: Tensor | Sequence[Tensor] | None = None,
        trunk_features: PixelFeatures | None = None,
        token_labels: Tensor | None = None,
        match_labels: Tensor | None = None,
        contrast: Contrast | None = None,
        text_vectors: Tensor | None = None,
        output_attentions: bool = False,
        output_token_logits: bool = False,
    ) -> PixelBertForPreTrainingOutput:
        """The whole step in one call, images and sentences, so that the distributed engine's hooks see it.

        Args:
            token_labels: (P, L) the true token at masked positions, -100 elsewhere; gives `mlm_loss`.
            match_labels: (P,) 1 where sentence and image belong together, 0 where not; gives `itm_loss`. The loss and
                `match_logits` are then of the matching head alone; without labels see `PixelBertModel.match`.
            contrast: sentences that stand alone, for the two-tower head; gives `contrastive_loss`. Without `input_ids`,
                nothing else is computed.
            text_vectors: (P, E) of `embed_texts`, where the sentences' are known: the two-tower head's logit is a part
                of `match_logits`, and a sentence's vector need not be made again for every pair.
            output_token_logits: without labels, return scores for every word position.

        The others: see `PixelBertModel.forward`.
        """
        features = self.pixelbert.given_features(features, pixel_values, trunk_features)
        contrastive_loss = None
        if contrast is not None:
            rivals = self.pixelbert.rivals(features, contrast)
            contrastive_loss = self.pixelbert.contrast(rivals)
            if input_ids is None:
                return PixelBertForPreTrainingOutput(contrastive_loss=contrastive_loss)
            if contrast.wrong is not None and contrast.order is not None and match_labels is not None:
                chosen = assign_hard_negatives(rivals, contrast.wrong, contrast.order)
                rows = rows_with_hard_negatives(chosen, match_labels)
                input_ids = input_ids[rows]
                attention_mask = None if attention_mask is None else attention_mask[rows]
        words_read = token_labels is not None or output_token_logits
        output = self.pixelbert(
            features,
            input_ids,
            attention_mask,
            image_index,
            pixel_index=pixel_index,
            positions=input_ids.shape[1] if words_read and input_ids is not None else 1,  # the heads read no pixels
            output_attentions=output_attentions,
        )
        match_logits = self.itm_head(output.pooler_output)
        if match_labels is None and input_ids is not None:
            given = (features, input_ids, attention_mask, image_index)
            match_logits = self.pixelbert.match(match_logits, *given, text_vectors)
        result = PixelBertForPreTrainingOutput(
            match_logits=match_logits, contrastive_loss=contrastive_loss, attentions=output.attentions
        )
        words = self.pixelbert.get_input_embeddings().weight
        if token_labels is not None:
            masked = token_labels != IGNORE  # scores over the vocabulary are dear: only where they are needed
            x = output.last_hidden_state[:, : token_labels.shape[1]][masked]
            result.token_logits = self.mlm_head(x, words).float()
            result.mlm_loss = F.cross_entropy(result.token_logits, token_labels[masked], reduction="sum")
        elif output_token_logits:
            x = output.last_hidden_state[:, : input_ids.shape[1]]  # type: ignore[union-attr]
            result.token_logits = self.mlm_head(x, words).float()
        if match_labels is not None:
            result.itm_loss = F.binary_cross_entropy_with_logits(match_logits, match_labels.float(), reduction="sum")
        return result


def rows_with_hard_negatives(sentences: Tensor, match_labels: Tensor) -> Tensor:
    """Which row's sentence each row of a batch gets, where mismatched pairs take those of matched ones.

    Args:
        sentences: (groups, group) of `assign_hard_negatives`, of the matched pairs in their order.
        match_labels: (P,) 1 at matched pairs and 0 at mismatched ones, of which the n-th is of the n-th matched one's
            image.

    Returns:
        (P,) indices.
    """
    rows = torch.arange(len(match_labels), device=match_labels.device)
    matched, mismatched = rows[match_labels > 0.5], rows[match_labels <= 0.5]
    groups, group = sentences.shape
    first = torch.arange(groups, device=rows.device)[:, None] * group
    own = torch.arange(group, device=rows.device)
    found = matched[(first + sentences).flatten()]
    rows[mismatched] = torch.where(
        (sentences == own).flatten(), mismatched, found
    )  # who found none keeps the random one
    return rows


AutoConfig.register("pixelbert", PixelBertConfig)
AutoModel.register(PixelBertConfig, PixelBertModel)
AutoModelForPreTraining.register(PixelBertConfig, PixelBertForPreTraining)

"""From a recipe to what trains: tokenizer, network with its first weights, optimisers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pixelbert.data.corpus import Corpus
from pixelbert.data.processing import PixelBertImageProcessor, PixelBertProcessor, learn_tokenizer
from pixelbert.errors import PixelBertError
from pixelbert.files import publish
from pixelbert.loading import load_checkpoint, located, of_trunk
from pixelbert.model.configuration import PixelBertConfig
from pixelbert.model.importing import LoadReport, bert_shape, load_backbone, load_bert
from pixelbert.model.pixels import REDUCTION
from pixelbert.train.recipe import ModelRecipe, Recipe

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def build_tokenizer(recipe: ModelRecipe, corpus: Corpus, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that the recipe names, or one learned from the training sentences.

    A learned one is kept in `folder`, so that every process and a resumed run have the very same.
    """
    source = recipe.checkpoint or recipe.tokenizer or recipe.text_init
    if source is None:
        if not folder.exists():
            aside = folder.with_name(folder.name + ".partial")
            learn_tokenizer((corpus.text(i) for i in range(len(corpus))), recipe.vocab_size).save_pretrained(aside)
            publish(aside, folder)
        source = str(folder)
    try:
        return AutoTokenizer.from_pretrained(located(source), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise PixelBertError(
            f"{source}: no tokenizer can be read there ({error}); model.tokenizer takes a folder or a hub name of a "
            "BERT tokenizer"
        ) from error


def build_processor(recipe: Recipe, corpus: Corpus, folder: Path) -> PixelBertProcessor:
    """The tokenizer (see `build_tokenizer`) and the image sizes of the recipe."""
    tokenizer = build_tokenizer(recipe.model, corpus, folder)
    try:
        images = PixelBertImageProcessor(recipe.data.shortest_edge, recipe.data.longest_edge)
    except ValueError as error:
        raise PixelBertError(f"data: {error}") from error
    return PixelBertProcessor(images, tokenizer, recipe.data.max_length)


def build_config(recipe: ModelRecipe, tokenizer: PreTrainedTokenizerBase) -> PixelBertConfig:
    """The network's shape: what the recipe says, then what the BERT checkpoint says, then BERT-base."""
    options: dict[str, Any] = {
        "backbone": recipe.backbone,
        "stride_in_1x1": recipe.stride_in_1x1,
        "batch_norm": recipe.batch_norm,
        "pixel_layer_norm": recipe.pixel_layer_norm,
        "pixel_positions": recipe.pixel_positions,
        "initializer_range": recipe.initializer_range,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
    }
    if recipe.text_init:
        options |= bert_shape(recipe.text_init)
    options |= {name: value for name in SIZES if (value := getattr(recipe, name)) is not None}
    return PixelBertConfig(**options | dropout(recipe))


def dropout(recipe: ModelRecipe) -> dict[str, float]:
    """The configuration fields that `dropout` and `pixel_dropout` set."""
    return {
        "hidden_dropout_prob": recipe.dropout,
        "attention_probs_dropout_prob": recipe.dropout,
        "pixel_dropout_prob": recipe.pixel_dropout,
    }


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, corpus: Corpus) -> tuple[Any, list[LoadReport]]:
    """The network of the recipe's task with its first weights, and what was loaded.

    Args:
        corpus: the training data, from which a head may take its shape: the answers of question answering.
    """
    reports = []
    head = recipe.task.head_config(corpus)
    if recipe.model.checkpoint:
        loaded = load_checkpoint(
            recipe.model.checkpoint, "cpu", recipe.task.model_class, new_head=True, **dropout(recipe.model) | head
        )
        model = loaded.model.float()
        recipe.task.adapt_head(model, recipe.model.checkpoint)
        kept = [name for name in model.state_dict() if name not in loaded.missing]
        reports.append(LoadReport(recipe.model.checkpoint, tuple(kept), missing=tuple(loaded.missing)))
    else:
        try:
            config = build_config(recipe.model, tokenizer)
            config.update(head)
            model = recipe.task.model_class(config)
        except ValueError as error:
            raise PixelBertError(f"model: {error}") from error
    if len(tokenizer) > model.config.vocab_size:
        raise PixelBertError(
            f"the tokenizer has {len(tokenizer)} tokens and the network {model.config.vocab_size}; leave "
            "model.tokenizer null to take the one that belongs to the weights"
        )
    if not 3 <= recipe.data.max_length <= model.config.max_position_embeddings:
        raise PixelBertError(
            f"data.max_length is {recipe.data.max_length}; expected 3 to {model.config.max_position_embeddings}, the "
            "positions of the network"
        )
    side, positions = recipe.data.longest_edge // REDUCTION, model.config.pixel_positions
    if 0 < positions < side:
        raise PixelBertError(
            f"model.pixel_positions is {positions}, and data.longest_edge {recipe.data.longest_edge} gives grids of up "
            f"to {side} pixels a side; expected {side} or more, or 0 for none"
        )
    if recipe.model.text_init:
        reports.append(load_bert(model, recipe.model.text_init))
    if recipe.model.backbone_init:
        reports.append(load_backbone(model, Path(recipe.model.backbone_init)))
    backbone = model.pixelbert.backbone
    backbone.requires_grad_(recipe.model.freeze_backbone is not True)
    if recipe.model.last_frozen_stage:
        for part in backbone.frozen_part(recipe.model.last_frozen_stage):
            part.requires_grad_(False)
    if model.config.batch_norm == "frozen":
        for norm in backbone.batch_norms():
            norm.requires_grad_(False)
    if recipe.optimizer.encoder_lr == 0:
        model.pixelbert.embeddings.requires_grad_(False)
        model.pixelbert.encoder.requires_grad_(False)
    if recipe.model.freeze_trunk:
        for name, weight in model.named_parameters():
            if of_trunk(name):
                weight.requires_grad_(False)
    recipe.task.freeze_unused(model)
    if recipe.model.activation_checkpointing:
        if model.config.batch_norm == "train":
            raise PixelBertError(
                "model.activation_checkpointing computes the CNN twice, and the statistics of a batch norm that is "
                "trained would count each batch twice: leave it out, or take a network whose batch norm is frozen"
            )
        before_5_23 = model.gradient_checkpointing_enable  # its name in earlier versions of transformers
        getattr(model, "activation_checkpointing_enable", before_5_23)({"use_reentrant": False})
    return model, reports

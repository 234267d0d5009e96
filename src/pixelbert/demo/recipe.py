"""What the demonstration trains: a small Pixel-BERT from random weights, on generated scenes and the shipped photos."""

from __future__ import annotations

from pathlib import Path

from pixelbert.tasks.pretraining import Pretraining
from pixelbert.train.recipe import DataRecipe, ModelRecipe, OptimizerRecipe, Recipe

TRAINING_SCENES = "scenes:0-1500"
HELD_OUT_SCENES = "scenes:100000-100100"
REPEATS = 24  # of the photos, so that a little over half of the sentences are theirs


def demo_recipe(output: Path, photos: str) -> Recipe:
    """The demonstration's run: 76,000 pairs, in minutes on two CPU cores.

    Args:
        output: folder of the run.
        photos: the prepared photos, as DIR:SPLIT.
    """
    width = 128
    return Recipe(
        output=str(output),
        # So small a grid has nothing to sample from; and photos must be told from photos, scenes from scenes.
        task=Pretraining(pixels=None, mismatched_from_same_split=True),
        model=ModelRecipe(
            backbone="resnet14_small",
            batch_norm="train",
            pixel_layer_norm=True,
            vocab_size=1000,
            hidden_size=width,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=4 * width,
            dropout=0.0,
            initializer_range=width**-0.5,
        ),
        data=DataRecipe(
            train=[TRAINING_SCENES] + REPEATS * [photos],
            validation=[HELD_OUT_SCENES],
            shortest_edge=256,
            longest_edge=256,
            max_length=32,
            sentences_per_image=4,
            workers=0,
        ),
        optimizer=OptimizerRecipe(cnn_lr=0.05, lr=1e-3, milestones=[2.9], warmup_steps=50),
        epochs=3.4,
        batch_size=64,
        micro_batch_size=64,
        precision="fp32",
        log_every=20,
        evaluate_every=250,
        evaluate_examples=100,
        checkpoint_every=200,
    )

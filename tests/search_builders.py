"""Photos and a checkpoint for the tests of searching."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from pixelbert import PixelBertProcessor
from pixelbert.data.processing import PixelBertImageProcessor, learn_tokenizer

TEXT = "two dogs on a red beach"


def write_photo(path: Path, seed: int) -> Path:
    """Patches of random colours, of one of three shapes; the format is PNG where the suffix says none."""
    rng = np.random.default_rng(seed)
    size = [(140, 140), (200, 130), (130, 200)][seed % 3]
    path.parent.mkdir(parents=True, exist_ok=True)
    small = PIL.Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    known = path.suffix.lower() in PIL.Image.registered_extensions()
    small.resize(size, PIL.Image.Resampling.NEAREST).save(path, None if known else "PNG")
    return path


def save_checkpoint(folder: Path, tiny_model: Callable[..., Any]) -> Path:
    """A tiny model with a two-tower head, and its processor."""
    tokenizer = learn_tokenizer(["a dog and a cat on the red beach by the sea", "two dogs"], 64)
    tiny_model(tower_size=16, max_position_embeddings=24).save_pretrained(folder)
    PixelBertProcessor(PixelBertImageProcessor(128, 192), tokenizer, max_length=20).save_pretrained(folder)
    return folder

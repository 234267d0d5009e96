"""The high-level class: photos and sentences in, plain numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pixelbert.data.processing import ImageInput, PixelBertProcessor
from pixelbert.loading import load_checkpoint
from pixelbert.model.modeling import PixelBertForPreTraining


class PixelBert:
    """A pre-trained model with its processor.

    Args:
        model: the network, which is put in evaluation mode.
        processor: resizes photos and cuts words.
    """

    def __init__(self, model: PixelBertForPreTraining, processor: PixelBertProcessor) -> None:
        self.model, self.processor = model.eval(), processor

    @classmethod
    def from_pretrained(cls, checkpoint: str | Path, device: str | None = None) -> PixelBert:
        """Load a checkpoint from a folder or a hub.

        Args:
            checkpoint: a run's `final` folder, or a hub name.
            device: cuda, mps or cpu; the best there is if None.
        """
        if device is None:
            device = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
        model, processor, _ = load_checkpoint(checkpoint, device, PixelBertForPreTraining)
        return cls(model, processor)

    @torch.inference_mode()
    def match(self, image: ImageInput, sentences: Sequence[str]) -> list[float]:
        """The probability of each sentence that it belongs to the image (S of eq. 8)."""
        features = self.model.encode_images(self.processor(images=image)["pixel_values"].to(self.model.device))
        text = self.processor(text=list(sentences)).to(self.model.device)
        index = torch.zeros(len(sentences), dtype=torch.long, device=self.model.device)
        return self.model(features, **text, image_index=index).match_logits.sigmoid().tolist()

    @torch.inference_mode()
    def attend(self, image: ImageInput, sentence: str, layer: int = 0) -> list[tuple[str, np.ndarray]]:
        """What each word of the sentence looks at (paper section 4.4, Fig. 3).

        Args:
            layer: of the transformer; the paper shows the first, 0.

        Returns:
            For each token, special ones left out, its text and a (rows, columns) map: attention from the token to each
            pixel of the grid, mean over heads, scaled to sum 1.
        """
        features = self.model.encode_images(self.processor(images=image)["pixel_values"].to(self.model.device))
        text = self.processor(text=sentence).to(self.model.device)
        output = self.model(features, **text, output_attentions=True)
        length = text["input_ids"].shape[1]
        weights = output.attentions[layer][0].float().mean(0)[:length, length:]  # (L, K)
        maps = (weights / weights.sum(-1, keepdim=True)).reshape(length, *features.grid[0].tolist()).cpu().numpy()
        tokens = self.processor.tokenizer.convert_ids_to_tokens(text["input_ids"][0])
        special = set(self.processor.tokenizer.all_special_tokens)
        return [(token, grid) for token, grid in zip(tokens, maps, strict=True) if token not in special]

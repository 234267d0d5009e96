"""Using a trained model: score a sentence against a photo, see which pixels a word looks at."""

from pixelbert.predict.pixelbert import PixelBert

__all__ = ["PixelBert"]

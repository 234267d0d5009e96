"""Using a trained model: score sentences, answer, fill in, judge, see which pixels a word looks at."""

from pixelbert.predict.attention import Attention, WordMap
from pixelbert.predict.pixelbert import Answer, Fill, Judgement, PixelBert

__all__ = ["Answer", "Attention", "Fill", "Judgement", "PixelBert", "WordMap"]

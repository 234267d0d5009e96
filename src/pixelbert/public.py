"""The public names, which `pixelbert` offers as its own. Importing them registers the models with transformers."""

from pixelbert.data.processing import PixelBertProcessor
from pixelbert.errors import PixelBertError
from pixelbert.model.configuration import PixelBertConfig
from pixelbert.model.modeling import PixelBertForPreTraining, PixelBertModel
from pixelbert.model.pixels import PixelFeatures
from pixelbert.predict.pixelbert import PixelBert

__all__ = [
    "PixelBert",
    "PixelBertConfig",
    "PixelBertError",
    "PixelBertForPreTraining",
    "PixelBertModel",
    "PixelBertProcessor",
    "PixelFeatures",
]

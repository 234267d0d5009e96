"""pixelbert: Pixel-BERT, one transformer over image pixels and sentences, with no object detector."""

from pixelbert.data.processing import PixelBertProcessor
from pixelbert.errors import PixelBertError
from pixelbert.model.configuration import PixelBertConfig
from pixelbert.model.fine_tuning import (
    PixelBertForImageAndTextRetrieval,
    PixelBertForImagesAndTextClassification,
    PixelBertForQuestionAnswering,
)
from pixelbert.model.modeling import PixelBertForPreTraining, PixelBertModel
from pixelbert.model.pixels import PixelFeatures
from pixelbert.predict.pixelbert import PixelBert

__version__ = "0.1.0"
__all__ = [
    "PixelBert",
    "PixelBertConfig",
    "PixelBertError",
    "PixelBertForImageAndTextRetrieval",
    "PixelBertForImagesAndTextClassification",
    "PixelBertForPreTraining",
    "PixelBertForQuestionAnswering",
    "PixelBertModel",
    "PixelBertProcessor",
    "PixelFeatures",
]

"""pixelbert: Pixel-BERT, one transformer over image pixels and sentences, with no object detector."""

import os

# ONNX Runtime reports its use to its makers unless told not to, from the moment that it is imported, and the client of
# the hub tells it more than it needs. Both read these when they are first imported; what is set already is left so.
for _silence in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_silence, "1")

# ruff: noqa: E402
from pixelbert.data.processing import PixelBertProcessor
from pixelbert.errors import PixelBertError, UnreadWarning
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
    "UnreadWarning",
]

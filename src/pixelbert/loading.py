"""A trained model from its folder: network, processor, and what it was trained on."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from pixelbert.data.processing import PixelBertProcessor
from pixelbert.errors import PixelBertError
from pixelbert.model.configuration import PixelBertConfig
from pixelbert.model.fine_tuning import (
    PixelBertForImageAndTextRetrieval,
    PixelBertForImagesAndTextClassification,
    PixelBertForQuestionAnswering,
)
from pixelbert.model.modeling import PixelBertForPreTraining

MODELS: dict[str, type] = {
    model.__name__: model
    for model in (
        PixelBertForPreTraining,
        PixelBertForQuestionAnswering,
        PixelBertForImagesAndTextClassification,
        PixelBertForImageAndTextRetrieval,
    )
}
TOWERS = "pixelbert.towers."  # a head, though every network may have it
TRAINED_ON = "trained_on.json"  # in a checkpoint: the splits it has learned from


class Loaded(NamedTuple):
    """A model, its processor, and the names of tensors that the checkpoint did not have."""

    model: Any
    processor: PixelBertProcessor
    missing: list[str]


def load_checkpoint(
    checkpoint: str | Path, device: str, model_class: type | None = None, *, new_head: bool = False, **config: Any
) -> Loaded:
    """A trained model and its processor, or an error that says what is missing.

    Args:
        checkpoint: a run's `final` folder, or a hub name.
        model_class: the network to make of it; the one that was saved if None.
        new_head: whether parts other than the trunk may be missing, to start a new task from it.
        config: fields of the configuration to change, such as dropout.
    """
    try:
        processor = PixelBertProcessor.from_pretrained(checkpoint)
        if model_class is None:
            names = PixelBertConfig.from_pretrained(checkpoint).architectures or [PixelBertForPreTraining.__name__]
            model_class = MODELS[names[0]]
        loaded: Any = model_class.from_pretrained(  # type: ignore[attr-defined]
            checkpoint, output_loading_info=True, ignore_mismatched_sizes=new_head, **config
        )
    except Exception as error:  # transformers, safetensors and tokenizers each raise their own
        raise PixelBertError(
            f"{checkpoint}: no Pixel-BERT checkpoint can be read there ({error}). Give the `final` folder of a run "
            "that has finished."
        ) from error
    model, info = loaded  # which transformers' types don't know
    mismatched = {entry[0] for entry in info.get("mismatched_keys", ())}
    missing = sorted({*info["missing_keys"], *mismatched})
    trunk = [name for name in missing if name.startswith("pixelbert.") and not name.startswith(TOWERS)]
    needed = trunk if new_head else missing
    if needed:
        raise PixelBertError(f"{checkpoint} lacks {', '.join(needed[:5])}: it is no trained {model_class.__name__}")
    return Loaded(model.to(device), processor, missing)


def trained_on(checkpoint: str | Path) -> list[dict[str, Any]]:
    """The splits that a checkpoint has learned from, pre-training included: data set, split and checksums."""
    file = cached_file(str(checkpoint), TRAINED_ON, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(file).read_text()) if file else []


@functools.cache
def checkpoint_fingerprint(checkpoint: str) -> str:
    """What tells a checkpoint's weights from others: the checksum of their file.

    Raises:
        PixelBertError: there is no such file.
    """
    file = (
        cached_file(checkpoint, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False) if checkpoint else None
    )
    if file is None:
        raise PixelBertError(
            f"{checkpoint or 'this model'} has no {SAFE_WEIGHTS_NAME}: save it with save_pretrained first"
        )
    with Path(file).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()

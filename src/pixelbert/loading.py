"""A trained model from its folder: network, processor, and what it was trained on."""

from __future__ import annotations

import functools
import hashlib
import json
from functools import partial
from logging import CRITICAL
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from tokenizers import Tokenizer
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME, cached_file, logging

from pixelbert.data.processing import PixelBertProcessor
from pixelbert.errors import PixelBertError
from pixelbert.files import folder_or_hub_name, read_json
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
TOKENIZER = "tokenizer.json"
CHECKPOINT_FILES = {
    CONFIG_NAME: "the shape of the network",
    SAFE_WEIGHTS_NAME: "its weights",
    "preprocessor_config.json": "how photos are resized",
    TOKENIZER: "its vocabulary",
}
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

    Raises:
        PixelBertError: there is no such folder; or says which file is missing or
            damaged, or which tensor doesn't fit.
    """
    if Path(folder_or_hub_name(checkpoint)).is_dir():
        check_folder(Path(checkpoint))
    verbosity = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)  # transformers' report of what doesn't fit: the error says it
    try:
        processor = PixelBertProcessor.from_pretrained(checkpoint)
        if model_class is None:
            names = PixelBertConfig.from_pretrained(checkpoint).architectures or [PixelBertForPreTraining.__name__]
            model_class = MODELS[names[0]]
        loaded: Any = model_class.from_pretrained(  # type: ignore[attr-defined]
            checkpoint, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True, **config
        )
    except Exception as error:  # transformers, safetensors and tokenizers each raise their own
        raise PixelBertError(
            f"{checkpoint}: no Pixel-BERT checkpoint can be read there ({error}). Give the `final` folder of a run "
            "that has finished."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    model, info = loaded  # which transformers' types don't know
    mismatched = {name: (tuple(found), tuple(wanted)) for name, found, wanted in info.get("mismatched_keys", ())}
    for name, (found, wanted) in sorted(mismatched.items()):
        if not new_head or of_trunk(name):
            raise PixelBertError(
                f"{checkpoint}: {name} has the shape {found}, and its config.json makes it {wanted}: the two files "
                "don't belong together"
            )
    missing = sorted({*info["missing_keys"], *mismatched})
    needed = [name for name in missing if of_trunk(name)] if new_head else missing
    if needed:
        more = f" and {len(needed) - 3} more" if len(needed) > 3 else ""
        raise PixelBertError(
            f"{checkpoint} lacks {', '.join(needed[:3])}{more}: it is no trained {model_class.__name__}"
        )
    return Loaded(model.to(device), processor, missing)


def of_trunk(name: str) -> bool:
    """Whether a tensor is of the trunk that all tasks share, and not of a head."""
    return name.startswith("pixelbert.") and not name.startswith(TOWERS)


def check_folder(folder: Path) -> None:
    """Look whether a folder is a whole checkpoint, before anything is made of it.

    Nothing in it is run: weights are read from safetensors, and from nothing else.

    Raises:
        PixelBertError: names the file that is missing or wrong.
    """
    weights = folder / SAFE_WEIGHTS_NAME
    if not weights.exists() and (folder / WEIGHTS_NAME).exists():
        raise PixelBertError(
            f"{folder} has its weights in {WEIGHTS_NAME}, a pickle, which may run code when it is read: save the model "
            f"with save_pretrained, which writes {SAFE_WEIGHTS_NAME}"
        )
    missing = [name for name in CHECKPOINT_FILES if not (folder / name).is_file()]
    if missing:
        said = ", ".join(f"{name} ({CHECKPOINT_FILES[name]})" for name in missing)
        raise PixelBertError(
            f"{folder} is no Pixel-BERT checkpoint: it lacks {said}. Give the `final` folder of a finished run"
        )
    config = read_json(folder / CONFIG_NAME)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != PixelBertConfig.model_type:
        raise PixelBertError(f"{folder / CONFIG_NAME} is of a {kind!r}, not of a {PixelBertConfig.model_type!r}")
    for name in config.get("architectures") or ():
        if name not in MODELS:
            raise PixelBertError(f"{folder / CONFIG_NAME} names {name!r}; this version knows {', '.join(MODELS)}")
    for file, opened in ((weights, partial(safe_open, framework="pt")), (folder / TOKENIZER, Tokenizer.from_file)):
        try:
            opened(str(file))
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise PixelBertError(f"{file} is damaged ({error}): copy or download it again") from error


def trained_on(checkpoint: str | Path) -> list[dict[str, Any]]:
    """The splits that a checkpoint has learned from, pre-training included: data set, split and checksums."""
    file = cached_file(folder_or_hub_name(checkpoint), TRAINED_ON, _raise_exceptions_for_missing_entries=False)
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

"""A trained model from its folder: network, processor, and what it was trained on."""

from __future__ import annotations

import functools
import math
import os
from functools import partial
from logging import CRITICAL
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME, cached_file, logging

from pixelbert.data.processing import PixelBertProcessor
from pixelbert.errors import PixelBertError
from pixelbert.files import SUMS, file_sha256, folder_or_hub_name, read_json, sums_problem
from pixelbert.model.configuration import PixelBertConfig
from pixelbert.model.fine_tuning import (
    PixelBertForImageAndTextRetrieval,
    PixelBertForImagesAndTextClassification,
    PixelBertForQuestionAnswering,
)
from pixelbert.model.inference import cast
from pixelbert.model.modeling import PixelBertForPreTraining, PixelBertModel

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
FLOATS = ("F32", "F16", "BF16", "F64")  # how weights may be stored, by safetensors' names
COUNTERS = ("I64",)  # the batches that a norm has seen
TOKENIZER_FILES = (*(TOKENIZER, "tokenizer_config.json", "vocab.txt", "special_tokens_map.json", "added_tokens.json"),)
SHIPPED = "shipped"  # names the checkpoint that is installed with the package
SHIPPED_FOLDER = Path(__file__).parent / SHIPPED
ANSWERING = "answering"  # in a checkpoint: heads that answer questions with its trunk, a folder of their own
TRAINED_ON = "trained_on.json"  # in a checkpoint: the splits it has learned from
SUMMED = frozenset(
    (*CHECKPOINT_FILES, *TOKENIZER_FILES, TRAINED_ON)
)  # what is read of it: SHA256SUMS has to name these


class Loaded(NamedTuple):
    """A model, its processor, and the names of tensors that the checkpoint did not have."""

    model: Any
    processor: PixelBertProcessor
    missing: list[str]


def located(checkpoint: str | Path) -> str:
    """Where a checkpoint is: a folder, or a name on the hub.

    Raises:
        PixelBertError: there is no such folder.
    """
    if checkpoint != SHIPPED:
        return folder_or_hub_name(checkpoint)
    if Path(SHIPPED).exists():
        raise PixelBertError(
            f"{SHIPPED!r} names the model that ships with the project: write ./{SHIPPED} for yours here"
        )
    if not SHIPPED_FOLDER.is_dir():
        raise PixelBertError(f"{SHIPPED_FOLDER} is not there: install the project from its repository")
    return str(SHIPPED_FOLDER)


def load_checkpoint(
    checkpoint: str | Path, device: str, model_class: type | None = None, *, new_head: bool = False, **config: Any
) -> Loaded:
    """A trained model and its processor, or an error that says what is missing.

    Args:
        checkpoint: a run's `final` folder, a hub name, or `SHIPPED`.
        model_class: the network to make of it; the one that was saved if None.
        new_head: whether parts other than the trunk may be missing, to start a new task from it.
        config: fields of the configuration to change, such as dropout.

    Raises:
        PixelBertError: there is no such folder; or says which file is missing or
            damaged, or which tensor doesn't fit.
    """
    checkpoint = located(checkpoint)
    if Path(checkpoint).is_dir():
        check_folder(Path(checkpoint))
    verbosity = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)  # transformers' report of what doesn't fit: the error says it
    try:
        shape = PixelBertConfig.from_pretrained(checkpoint)  # whose numbers others then read unseen
        processor = PixelBertProcessor.from_pretrained(checkpoint)
        if model_class is None:
            model_class = MODELS[(shape.architectures or [PixelBertForPreTraining.__name__])[0]]
        check_weights(checkpoint, shape, model_class)
        loaded: Any = model_class.from_pretrained(  # type: ignore[attr-defined]
            checkpoint,
            dtype=torch.float32,  # whatever it is stored in
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            **config,
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
    for name, values in model.state_dict().items():
        if not torch.isfinite(values).all():
            raise PixelBertError(f"{checkpoint}: {name} is not finite, so this model can tell nothing: train it again")
    check_processor(checkpoint, model.config, processor)
    return Loaded(model.to(device), processor, missing)


def of_trunk(name: str) -> bool:
    """Whether a tensor is of the trunk that all tasks share, and not of a head."""
    return name.startswith("pixelbert.") and not name.startswith(TOWERS)


def load_answering(checkpoint: str | Path, trunk: PixelBertModel) -> PixelBertForQuestionAnswering | None:
    """The network that answers questions with the trunk of a checkpoint, if the checkpoint has heads for it.

    Heads that learned on a frozen trunk (`model.freeze_trunk`) need no second copy of it: `ANSWERING` holds their
    weights, the configuration with the answers, and what they learned from.

    Args:
        trunk: of the checkpoint, as it was trained or made ready for inference. It is shared, but for the two-tower
            head, of which answering has its own.

    Raises:
        PixelBertError: heads that are damaged, or of another network.
    """
    files = [
        cached_file(located(checkpoint), name, subfolder=ANSWERING, _raise_exceptions_for_missing_entries=False)
        for name in (CONFIG_NAME, SAFE_WEIGHTS_NAME, TRAINED_ON)  # all, where they come from a hub
    ]
    if files[0] is None:
        return None
    folder = Path(files[0]).parent
    check_sums(folder)
    try:
        with torch.device("meta"):  # no weights but those that are given
            model = PixelBertForQuestionAnswering(PixelBertConfig.from_pretrained(folder))
        for name, part in trunk.named_children():
            if name != "towers":
                setattr(model.pixelbert, name, part)
        state = {name: x.float() for name, x in load_file(folder / SAFE_WEIGHTS_NAME).items()}
        wrong = model.load_state_dict(state, strict=False, assign=True)
        if lacking := [name for name in wrong.missing_keys if not of_trunk(name)] + wrong.unexpected_keys:
            raise ValueError(f"{', '.join(lacking)}: missing, or of no head")
        sizes = [(c.hidden_size, c.vocab_size) for c in (model.config, trunk.config)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"the heads are of a network with the sizes {sizes[0]}, and this one has {sizes[1]}")
    except Exception as error:  # transformers, safetensors and torch each raise their own
        raise PixelBertError(f"{folder}: no heads for answering can be read there ({error}): copy it again") from error
    dtype = trunk.dtype
    for head in [model.pixelbert.towers, *model.classifiers.values()]:
        if head is not None:
            cast(head.to(trunk.device), dtype)
    model.name_or_path = str(folder)
    return model.eval()


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
    check_sums(folder)
    config = read_json(folder / CONFIG_NAME)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != PixelBertConfig.model_type:
        raise PixelBertError(f"{folder / CONFIG_NAME} is of a {kind!r}, not of a {PixelBertConfig.model_type!r}")
    names = config.get("architectures") or []
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or name not in MODELS:
            raise PixelBertError(f"{folder / CONFIG_NAME} names {name!r}; this version knows {', '.join(MODELS)}")
    for file, opened in ((weights, partial(safe_open, framework="pt")), (folder / TOKENIZER, Tokenizer.from_file)):
        try:
            opened(str(file))
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise PixelBertError(f"{file} is damaged ({error}): copy or download it again") from error


def check_sums(folder: Path) -> None:
    """Look whether the files of a checkpoint are as they were written, if it has checksums of them.

    Raises:
        PixelBertError: they are not; names one.
    """
    if os.path.lexists(folder / SUMS) and (problem := sums_problem(folder, SUMMED)):
        raise PixelBertError(
            f"{folder} is damaged ({problem}): copy or download it again. If you changed it on purpose, remove its "
            f"{SUMS}"
        )


def check_weights(checkpoint: str | Path, config: PixelBertConfig, model_class: type) -> None:
    """Look whether a network is as large as its weights, before memory is spent on it, and whether they are weights.

    Raises:
        ValueError: it is far larger, or one is of another type: its bytes would be read as other numbers.
    """
    weights = cached_file(str(checkpoint), SAFE_WEIGHTS_NAME)
    with safe_open(weights, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        for name, part in slices.items():
            expected = COUNTERS if name.endswith("num_batches_tracked") else FLOATS
            if part.get_dtype() not in expected:
                raise ValueError(f"{name} is stored as {part.get_dtype()}; expected {' or '.join(expected)}")
        stored = sum(math.prod(part.get_shape()) for part in slices.values())
    with torch.device("meta"):  # shapes alone
        described = sum(p.numel() for p in model_class(config).parameters())
    if described > 2 * stored + 10_000_000:  # a new head has no weights yet
        raise ValueError(
            f"{CONFIG_NAME} describes a network of {described:,} weights, and {SAFE_WEIGHTS_NAME} has {stored:,}"
        )


def check_processor(checkpoint: str | Path, config: PixelBertConfig, processor: PixelBertProcessor) -> None:
    """Look whether the network knows what the processor gives it.

    Raises:
        PixelBertError: it does not.
    """
    try:
        (ids,) = processor.tokens(["a photo of a dog"])
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise PixelBertError(f"{checkpoint}: its tokenizer reads no sentence ({error}): copy it again") from error
    if processor.tokenizer.pad_token_id is None:
        raise PixelBertError(f"{checkpoint}: its tokenizer has no [PAD]: copy it again")
    tokens = max(len(processor.tokenizer), int(ids.max()) + 1)
    if tokens > config.vocab_size or processor.max_length > config.max_position_embeddings:
        raise PixelBertError(
            f"{checkpoint}: its tokenizer has {tokens:,} tokens and reads {processor.max_length:,} of a sentence, "
            f"where the network knows {config.vocab_size:,} and {config.max_position_embeddings:,}: they don't belong "
            "together"
        )


def trained_on(checkpoint: str | Path) -> list[dict[str, Any]]:
    """The splits that a checkpoint has learned from, pre-training included: data set, split and checksums."""
    file = cached_file(located(checkpoint), TRAINED_ON, _raise_exceptions_for_missing_entries=False)
    if not file:
        return []
    rows = read_json(Path(file))
    if not isinstance(rows, list) or not all(map(is_provenance, rows)):
        raise PixelBertError(
            f"{file}: expected a list of data sets with 'data', 'split' and 'sha256': copy it again. It says what the "
            "model has seen, so that no split of it is measured unmarked"
        )
    return rows


def is_provenance(row: Any) -> bool:
    """Whether this is a row as `Corpus.provenance` makes it."""
    if not isinstance(row, dict) or not isinstance(row.get("sha256"), list):
        return False
    return all(isinstance(text, str) for text in (row.get("data"), row.get("split"), *row["sha256"]))


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
    return file_sha256(Path(file))

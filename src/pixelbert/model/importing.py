"""Start from public weights (paper section 4.1): a BERT for words and encoder, an ImageNet CNN for pixels.

Nothing is loaded by halves: every tensor is checked before the first is copied, and the report says which
were loaded, which of the file's were left out, and which of the model's the file does not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, BertForPreTraining, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from pixelbert.errors import PixelBertError
from pixelbert.files import folder_or_hub_name
from pixelbert.model.load_report import LoadReport, compact_names, copy_checked, first_line
from pixelbert.model.modeling import PixelBertPreTrainedModel
from pixelbert.model.resnet import BACKBONES

# The fields of PixelBertConfig that a BERT checkpoint settles, under the names that both share.
BERT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "pad_token_id",
    "max_position_embeddings",
)


# --- BERT ---


def bert_shape(source: str | Path) -> dict[str, Any]:
    """The fields that a BERT checkpoint implies, for `PixelBertConfig(**bert_shape(source))`.

    Args:
        source: a folder with a transformers BERT, or its name on the hub.

    Raises:
        PixelBertError: there is no such checkpoint, or it is no BERT.
    """
    config = _bert_config(source)
    return {field: getattr(config, field) for field in BERT_FIELDS}


def load_bert(model: PixelBertPreTrainedModel, source: str | Path) -> LoadReport:
    """Load any transformers BERT: embeddings, encoder, and pooler and MLM head where both have them.

    Token type 0 is folded into the positions, since eq. 4 omits s_w: LayerNorm(word + position) is then what
    BERT computes for one sentence. The next-sentence head has no counterpart; matching is learned anew.

    Args:
        model: a `PixelBertModel`, or one with heads.
        source: a folder with a transformers BERT (BertModel, BertForMaskedLM, BertForPreTraining;
            safetensors or .bin), or its name on the hub.

    Raises:
        PixelBertError: no such checkpoint, no BERT, another shape than the model's, or tensors missing.
    """
    config = _bert_config(source)
    for field in BERT_FIELDS[:-2]:  # the padding token has no part in what the network computes
        theirs, ours = getattr(config, field), getattr(model.config, field)
        if theirs != ours:
            raise PixelBertError(
                f"{source}: {field} is {theirs!r} in this BERT and {ours!r} in the model; set {field}: "
                f"{theirs!r} in the recipe's model section or in PixelBertConfig, or choose a BERT of the "
                "model's shape"
            )
    positions = model.config.max_position_embeddings
    if positions > config.max_position_embeddings:
        raise PixelBertError(
            f"{source}: this BERT has {config.max_position_embeddings} positions and the model {positions}; "
            f"set max_position_embeddings: {config.max_position_embeddings} or fewer in the recipe's model "
            "section (PixelBertConfig)"
        )
    theirs_state, absent, left_out = _read_bert(source, config)

    base = model.base_model
    prefix = "" if base is model else f"{model.base_model_prefix}."
    target = dict(model.state_dict())
    state: dict[str, Tensor] = {}
    missing: list[str] = []
    used: set[str] = set()
    for name in target:
        origin = _bert_name(name, prefix)
        if origin is None:
            continue
        if origin in absent:
            if origin.startswith(("bert.pooler.", "cls.")):
                missing.append(name)
                continue
            raise PixelBertError(
                f"{source}: the tensor {origin} is missing, so this is not a whole BERT; fetch or save it again"
            )
        used.add(origin)
        state[name] = theirs_state[origin]
    token_type = "bert.embeddings.token_type_embeddings.weight"
    if token_type in absent:
        raise PixelBertError(f"{source}: the tensor {token_type} is missing, so this is not a whole BERT")
    folded = f"{prefix}embeddings.position_embeddings.weight"
    state[folded] = state[folded][:positions] + theirs_state[token_type][0]
    unused = [n for n in theirs_state if n not in used | absent | {token_type} and ".decoder." not in n]
    return copy_checked(source, target, state, [*unused, *left_out], missing)


def _bert_name(name: str, prefix: str) -> str | None:
    """What transformers calls one of our tensors, or None where BERT has nothing like it."""
    if name.startswith("mlm_head."):
        head, part = "cls.predictions.", name.removeprefix("mlm_head.")
        return head + part if part == "bias" else f"{head}transform.{part}"
    inner = name.removeprefix(prefix)
    if name.startswith(prefix) and inner.startswith(("embeddings.", "encoder.", "pooler.")):
        return "bert." + inner
    return None


def _bert_config(source: str | Path) -> PreTrainedConfig:
    advice = "give a folder with config.json and model.safetensors (or pytorch_model.bin), or a name on the hub"
    try:
        config = AutoConfig.from_pretrained(folder_or_hub_name(source), trust_remote_code=False)
    except Exception as error:  # broken files fail in any way at all
        raise PixelBertError(f"{source}: no BERT could be read there ({first_line(error)}); {advice}") from error
    if config.model_type != "bert":
        raise PixelBertError(f"{source}: a {config.model_type!r} model, where a 'bert' is needed; {advice}")
    positions = getattr(config, "position_embedding_type", "absolute")
    if positions != "absolute":
        raise PixelBertError(f"{source}: its positions are {positions!r} and Pixel-BERT's 'absolute'; take another")
    return config


def _read_bert(source: str | Path, config: PreTrainedConfig) -> tuple[dict[str, Tensor], set[str], list[str]]:
    """The tensors as in BertForPreTraining, which of them the file lacks, and what it has besides them."""
    try:
        # What the file lacks is drawn at random and then not used; the caller's draws stay as they were.
        with torch.random.fork_rng(devices=[]), _quiet():
            result: Any = BertForPreTraining.from_pretrained(
                str(source), config=config, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # broken files fail in any way at all
        raise PixelBertError(
            f"{source}: the weights could not be read ({first_line(error)}); fetch or save the checkpoint again"
        ) from error
    bert, info = result
    state: dict[str, Tensor] = bert.state_dict()
    absent = set(info["missing_keys"])
    left_out = sorted(k for k in info["unexpected_keys"] if not k.endswith("position_ids"))
    words, decoder = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    untied = not config.tie_word_embeddings and decoder not in absent
    if untied and not torch.equal(state[words], state[decoder]):
        # Our MLM head shares the word embeddings; one trained apart from them would give nonsense.
        head = {k for k in state if k.startswith("cls.predictions.")}
        absent |= head
        left_out += sorted(head)
    return state, absent, left_out


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own table and bar: the report says the same, and about our names."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


# --- CNN ---


def load_backbone(model: PixelBertPreTrainedModel, path: str | Path) -> LoadReport:
    """Load a torchvision or timm ResNet or ResNeXt into the CNN trunk.

    Args:
        model: a `PixelBertModel`, or one with heads.
        path: a state dict as .safetensors, or as .pth, .pt or .bin, also inside {"state_dict": ...} or
            {"model": ...} and with names that start with `module.`.

    Raises:
        PixelBertError: unreadable, another network, tensors missing or to spare, or the stride in another
            place than `config.stride_in_1x1` says, as far as the file states it.
    """
    path = Path(path)
    theirs, metadata = read_state_dict(path)
    notes = _check_stride(path, metadata.get("stride_in_1x1"), model.config.stride_in_1x1)
    backbone = model.base_model.get_submodule("backbone")
    prefix = "backbone." if model.base_model is model else f"{model.base_model_prefix}.backbone."
    target = {f"{prefix}{k}": v for k, v in backbone.state_dict().items() if not k.endswith("num_batches_tracked")}
    wanted = {name: name.removeprefix(prefix) for name in target}

    left_out = [k for k in theirs if k.startswith("fc.") or k.endswith("num_batches_tracked")]
    lacking = [k for k in wanted.values() if k not in theirs]
    foreign = [k for k in theirs if k not in left_out and k not in set(wanted.values())]
    if lacking or foreign:
        found = _describe(theirs)
        shape = BACKBONES[model.config.backbone]
        raise PixelBertError(
            f"{path}: not a {model.config.backbone} ({'-'.join(map(str, shape.layers))} blocks, "
            "torchvision's names)"
            + (f"; the file has {found} blocks" if found else "")
            + (f"; missing: {compact_names(lacking)}" if lacking else "")
            + (f"; unknown: {compact_names(foreign)}" if foreign else "")
            + ". Nothing was loaded. Set backbone in the recipe's model section to the one the file is made "
            "for"
        )
    state = {name: theirs[k] for name, k in wanted.items()}
    return copy_checked(path, target, state, left_out, [], notes)


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a .safetensors or torch file, without wrapper and `module.`, and the file's metadata.

    No code runs from the file: torch files are read with weights_only.
    """
    metadata: dict[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                found: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise PixelBertError(f"{path}: no such file; give the path of the CNN's weights") from error
    except Exception as error:  # broken files fail in any way at all
        raise PixelBertError(
            f"{path}: no weights could be read from it ({first_line(error)}); expected a .safetensors file, "
            "or a .pth file that holds tensors alone (Detectron's .pkl: `pixelbert convert` first)"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise PixelBertError(
            f"{path}: expected a state dict (name -> tensor), alone or under 'state_dict' or 'model'; save "
            "it with torch.save(network.state_dict(), path)"
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in found.items()}, metadata


def _check_stride(path: Path, stated: str | None, configured: bool) -> list[str]:
    if stated is None:
        return [
            "the file does not say where the stride of 2 is; the model has stride_in_1x1: "
            f"{str(configured).lower()} (torchvision and timm: false; the original ResNet and caffe: true)"
        ]
    if (stated == "true") != configured:
        raise PixelBertError(
            f"{path}: these weights have stride_in_1x1: {stated} and the model {str(configured).lower()}; "
            f"loaded like that they run and are wrong. Set stride_in_1x1: {stated} in the recipe's model "
            "section (PixelBertConfig)"
        )
    return []


def _describe(state: Mapping[str, Tensor]) -> str:
    """Blocks a stage of a torchvision-named ResNet, such as 3-4-23-3; empty if it is none."""
    blocks = [{found[1] for k in state if (found := re.match(rf"layer{i}\.(\d+)\.", k))} for i in range(1, 5)]
    return "-".join(str(len(b)) for b in blocks) if all(blocks) else ""

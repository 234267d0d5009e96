"""Detectron's ImageNet trunks (.pkl, caffe2 names) to ours.

X-152-32x8d-IN5k of its model zoo has the shape of the paper's larger CNN (section 4.1). What such a file
is, as Detectron's own configurations and loaders have it:
- names: `conv1_w` with `res_conv1_bn_s/_b`; `res{2..5}_{block}_branch2{a,b,c}_w` with `..._bn_s/_b`, and
  `_branch1` for the shortcut; alone or under "blobs".
- an affine scale and shift in place of batch norm: its statistics are folded in already.
- input: BGR, 0 to 255, minus the caffe pixel means, no division by a standard deviation.
- the stride of 2: on the 3x3 convolution in the ResNeXts, on the first 1x1 in MSRA's ResNets
  (RESNETS.STRIDE_1X1).

Ours takes RGB in [0, 1] with the ImageNet mean and deviation taken out. The difference is folded into the
first convolution and the mean of its batch norm. That is exact except where the first convolution looks
over the image's edge: it sees zeros there, which stand for the caffe means in Detectron and for the
ImageNet means here. They are less than one grey level of 255 apart.
"""

from __future__ import annotations

import codecs
import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from pixelbert.errors import PixelBertError
from pixelbert.model.load_report import LoadReport
from pixelbert.model.resnet import BACKBONES, BackboneShape, ResNet

CAFFE_MEAN_BGR = (102.9801, 115.9465, 122.7717)  # Detectron's PIXEL_MEANS, of 255
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of 1
IMAGENET_STD = (0.229, 0.224, 0.225)
EPS = 1e-5  # of our batch norms
# The classifier, the trainer's state, and conv1_b: some files carry it, and Detectron, whose first
# convolution has no bias, never reads it.
NOT_OF_THE_TRUNK = re.compile(r"(pred|fc\d+)_[wb]|conv1_b|.*_momentum|lr|model_iter")


def convert_detectron(source: str | Path, out: str | Path) -> LoadReport:
    """Convert a Detectron ImageNet trunk to a .safetensors file for `load_backbone`.

    Args:
        source: the .pkl as downloaded; which trunk it is, its tensors tell. It is read as data: numpy
            arrays alone are admitted, and no code runs.
        out: the .safetensors file to write; it appears whole or not at all. Its metadata state the backbone
            and the place of the stride.

    Returns:
        what was converted (under our names), and what was left out (under theirs).

    Raises:
        PixelBertError: unreadable, not such a file, or of a network that the project does not have.
    """
    source, out = Path(source), Path(out)
    if out.suffix != ".safetensors":
        raise PixelBertError(f"{out}: the converted weights are a .safetensors file; end the name so")
    blobs = read_blobs(source)
    name, shape = _recognise(source, blobs)
    with torch.device("meta"):
        expected = ResNet(shape).state_dict()
    state: dict[str, Tensor] = {}
    used: set[str] = set()
    for key, like in expected.items():
        if key.endswith(".running_mean"):
            state[key] = torch.zeros(like.shape)
        elif key.endswith(".running_var"):
            state[key] = torch.full(like.shape, 1 - EPS)
        elif not key.endswith("num_batches_tracked"):
            blob = caffe_name(key)
            if blob not in blobs:
                raise PixelBertError(f"{source}: {blob} is missing ({name}'s {key}); download the file again")
            state[key] = torch.tensor(blobs[blob], dtype=torch.float32)
            if state[key].shape != like.shape:
                raise PixelBertError(
                    f"{source}: {blob} is {tuple(state[key].shape)}, and {tuple(like.shape)} in a {name}, so "
                    "this is another network; give Detectron's own file"
                )
            used.add(blob)
    unknown = [b for b in blobs if b not in used and not NOT_OF_THE_TRUNK.fullmatch(b)]
    if unknown:
        raise PixelBertError(
            f"{source}: a {name} has no place for "
            f"{', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}; give an ImageNet model as "
            "Detectron publishes it, not a detector"
        )
    _take_normalised_rgb(state)
    stride_in_1x1 = shape.groups == 1
    metadata = {"format": "pt", "backbone": name, "stride_in_1x1": str(stride_in_1x1).lower()}
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".part")
    try:
        save_file(state, partial, metadata=metadata)
        partial.chmod(0o644)  # save_file lets nobody but its owner read
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    left_out = tuple(b for b in blobs if b not in used)
    note = f"written to {out}; use it with backbone: {name}, stride_in_1x1: {metadata['stride_in_1x1']}"
    return LoadReport(str(source), tuple(state), left_out, notes=(note,))


def caffe_name(key: str) -> str:
    """`layer1.0.conv1.weight` -> `res2_0_branch2a_w`, `layer1.0.bn1.bias` -> `res2_0_branch2a_bn_b`."""
    if key == "conv1.weight":
        return "conv1_w"
    end = {"weight": "s", "bias": "b"}[key.rpartition(".")[2]]
    if key.startswith("bn1."):
        return f"res_conv1_bn_{end}"
    layer, block, module = key.split(".", 2)
    module = module.rpartition(".")[0]
    stage = layer.removeprefix("layer")
    stem = f"res{int(stage) + 1}_{block}_branch"
    if module.startswith("downsample"):
        return f"{stem}1_w" if module.endswith("0") else f"{stem}1_bn_{end}"
    branch = f"{stem}2{'abc'[int(module[-1]) - 1]}"
    return f"{branch}_w" if module.startswith("conv") else f"{branch}_bn_{end}"


def _take_normalised_rgb(state: dict[str, Tensor]) -> None:
    """Fold the difference of the inputs into the first layer, in place.

    Theirs is s W (255 (std z + mean) - caffe mean) + b for our normalised input z: the factor of z goes
    into W, the rest, negated, into the mean that batch norm subtracts.
    """
    weight = state["conv1.weight"].double().flip(1)  # (C, 3, 7, 7), now RGB
    mean, std = (torch.tensor(x, dtype=torch.float64).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    caffe = torch.tensor(CAFFE_MEAN_BGR[::-1], dtype=torch.float64).view(3, 1, 1)
    state["conv1.weight"] = (weight * 255 * std).float().contiguous()
    state["bn1.running_mean"] = -(weight * (255 * mean - caffe)).sum((1, 2, 3)).float()


def _recognise(source: Path, blobs: Mapping[str, np.ndarray]) -> tuple[str, BackboneShape]:
    """Which of our backbones the blobs are: blocks a stage, groups and widths."""
    if any(b.endswith(("_bn_rm", "_bn_riv")) for b in blobs):
        raise PixelBertError(
            f"{source}: has batch norm's statistics (*_bn_rm), so it is detectron2's conversion with another "
            "input scaling; give Detectron's own file (X-152-32x8d-IN5k.pkl of its model zoo)"
        )
    layers = tuple(
        len({m[1] for b in blobs if (m := re.match(rf"res{stage}_(\d+)_branch2a_w$", b))}) for stage in range(2, 6)
    )
    stem, middle = (blobs[b].shape if b in blobs else () for b in ("conv1_w", "res2_0_branch2b_w"))
    for name, shape in BACKBONES.items():
        width = shape.stem * shape.width_per_group // 64 * shape.groups
        if (layers, stem[:1], middle[:2]) == (shape.layers, (shape.stem,), (width, width // shape.groups)):
            return name, shape
    raise PixelBertError(
        f"{source}: {'-'.join(map(str, layers))} blocks a stage after a first convolution of shape {stem}, "
        f"which is none of {', '.join(BACKBONES)}; the paper's larger CNN is Detectron's X-152-32x8d-IN5k.pkl"
    )


# --- reading the pickle ---


def read_blobs(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a Detectron .pkl by name.

    Raises:
        PixelBertError: no such file, or anything in it besides containers, strings, numbers and numpy arrays.
    """
    try:
        # latin1: these files were written by Python 2, whose str holds the arrays' bytes.
        data = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except FileNotFoundError as error:
        raise PixelBertError(f"{path}: no such file; give Detectron's .pkl as downloaded") from error
    except Exception as error:  # a broken pickle fails in any way at all
        reason = str(error) or type(error).__name__
        raise PixelBertError(f"{path}: not a pickle of arrays ({reason}); download the file again") from error
    blobs = data.get("blobs", data) if isinstance(data, dict) else None
    if not isinstance(blobs, dict) or not blobs:
        raise PixelBertError(f"{path}: expected a dict of arrays, alone or under 'blobs', as Detectron publishes")
    arrays = {str(k): v for k, v in blobs.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"}
    others = [str(k) for k in blobs if str(k) not in arrays and not NOT_OF_THE_TRUNK.fullmatch(str(k))]
    if others:
        raise PixelBertError(f"{path}: no array of floats under {', '.join(others[:5])}; download the file again")
    return arrays


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How pickles of protocol 2 spell bytes; of the codecs, only the one that they use."""
    if codecs.lookup(encoding).name != "iso8859-1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Admits what numpy arrays are made of, and refuses to import anything else."""

    ADMITTED: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encode,
    } | {
        (f"numpy.{core}.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0]  # type: ignore[index]
        for core in ("core", "_core")
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only numpy arrays are admitted")
        return self.ADMITTED[module, name]

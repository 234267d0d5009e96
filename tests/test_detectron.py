"""Detectron's pickled trunks: the same features from our kind of input, and no code from data."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pixelbert import PixelBertError, PixelBertForPreTraining
from pixelbert.model import detectron
from pixelbert.model.detectron import caffe_name, convert_detectron
from pixelbert.model.importing import load_backbone
from pixelbert.model.resnet import BACKBONES, BackboneShape, ResNet
from references import Trap, seeded_trunk

MakeModel = Callable[..., PixelBertForPreTraining]
SMALL = BACKBONES["resnet14_small"]
GROUPED = BackboneShape((1, 2, 1, 1), groups=4, width_per_group=16, stem=16)


@pytest.fixture
def _grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "resnext_test", GROUPED)


def caffe_trunk(shape: BackboneShape, stride_in_1x1: bool) -> ResNet:
    """What Detectron would run: affine channels, and weights for BGR of 0..255 minus the means."""
    net = seeded_trunk(shape, stride_in_1x1, seed=4)
    for norm in net.batch_norms():
        torch.nn.init.zeros_(norm.running_mean)
        torch.nn.init.constant_(norm.running_var, 1 - norm.eps)
    net.conv1.weight.data /= 60
    return net


def write_pkl(net: ResNet, path: Path, wrap: bool = True, extra: dict | None = None) -> dict:
    """The net's weights under caffe2's names, as Detectron pickles them (protocol 2)."""
    state = {k: v for k, v in net.state_dict().items() if "running" not in k and "num_batches" not in k}
    blobs = {caffe_name(k): v.numpy() for k, v in state.items()}
    blobs |= {"pred_w": np.zeros((10, 512), np.float32), "pred_b": np.zeros(10, np.float32)} | (extra or {})
    path.write_bytes(pickle.dumps({"blobs": blobs, "cfg": "NUM_GPUS: 8"} if wrap else blobs, protocol=2))
    return blobs


def test_the_names_are_caffe2s() -> None:
    with torch.device("meta"):
        names = {k for k in ResNet(BACKBONES["resnext152_32x8d"]).state_dict() if k.endswith(("weight", "bias"))}
    blobs = {caffe_name(k) for k in names}
    assert len(blobs) == len(names)
    expected = "conv1_w res_conv1_bn_s res_conv1_bn_b res2_0_branch1_w res2_0_branch1_bn_s res2_0_branch2a_w"
    assert blobs >= {*expected.split(), "res4_35_branch2c_bn_b", "res5_2_branch2b_w", "res3_7_branch2b_bn_s"}
    assert caffe_name("layer3.35.bn3.bias") == "res4_35_branch2c_bn_b"
    assert caffe_name("layer1.0.downsample.1.weight") == "res2_0_branch1_bn_s"


@pytest.mark.usefixtures("_grouped")
@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("backbone", ["resnext_test", "resnet14_small"])
def test_a_detectron_trunk_gives_the_same_features(
    backbone: str, wrap: bool, tiny_model: MakeModel, tmp_path: Path
) -> None:
    shape = BACKBONES[backbone]
    stride_in_1x1 = shape.groups == 1  # MSRA's ResNets have it there, Detectron's ResNeXts on the 3x3
    theirs = caffe_trunk(shape, stride_in_1x1)
    write_pkl(theirs, tmp_path / "net.pkl", wrap)
    report = convert_detectron(tmp_path / "net.pkl", tmp_path / "out" / "net.safetensors")
    assert f"backbone: {backbone}, stride_in_1x1: {str(stride_in_1x1).lower()}" in str(report)
    assert set(report.left_out) == {"pred_w", "pred_b"}
    model = tiny_model(backbone=backbone, stride_in_1x1=stride_in_1x1)
    load_backbone(model, tmp_path / "out" / "net.safetensors")

    rgb = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(6))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = (rgb - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    caffe_mean = torch.tensor([102.9801, 115.9465, 122.7717])
    bgr = 255 * rgb.flip(1) - caffe_mean.view(3, 1, 1)
    with torch.no_grad():
        ours = model.pixelbert.backbone(normalised)
        stem = model.pixelbert.backbone.bn1(model.pixelbert.backbone.conv1(normalised))
        expected_stem = theirs.bn1(theirs.conv1(bgr))
        near = theirs(bgr)
        # With the border that ours stands for (the ImageNet mean) it is the same network to the last layer.
        border = (255 * mean.flip(0) - caffe_mean).view(1, 3, 1, 1)
        theirs.conv1.padding = (0, 0)
        expected = theirs(F.pad(bgr - border, (3, 3, 3, 3)) + border)
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    scale = expected.abs().max()
    assert (stem - expected_stem)[inside].abs().max() <= 1e-4 * expected_stem.abs().max()
    assert (ours - expected).abs().max() <= 1e-4 * scale
    assert (ours - near).abs().max() <= 0.05 * scale


def test_detectrons_pixel_means_are_bgr() -> None:
    assert detectron.CAFFE_MEAN_BGR == (102.9801, 115.9465, 122.7717)


def test_arrays_as_python_2_pickled_them_are_read(tmp_path: Path) -> None:
    """The published files are of Python 2: bytes are text there."""
    raw = np.arange(3, dtype="<f4").tobytes()
    dtype = b"cnumpy\ndtype\n(U\x02f4I0\nI1\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I3\nt" + dtype
    array += b"I00\nU" + bytes([len(raw)]) + raw + b"tb"
    (tmp_path / "net.pkl").write_bytes(b"\x80\x02}U\x05blobs}U\x07conv1_w" + array + b"ss.")
    (blob,) = detectron.read_blobs(tmp_path / "net.pkl").values()
    assert blob.dtype == np.float32
    assert blob.tolist() == [0, 1, 2]


class Codec:
    """Asks for a codec that would expand or transform, which no array needs."""

    def __reduce__(self) -> tuple:
        import _codecs

        return _codecs.encode, ("x", "rot13")


def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    for content, asked in ((Trap(tmp_path / "sprung"), r"mkdir"), (Codec(), "rot13")):
        (tmp_path / "net.pkl").write_bytes(pickle.dumps({"conv1_w": content}, protocol=2))
        with pytest.raises(PixelBertError, match=asked):
            convert_detectron(tmp_path / "net.pkl", tmp_path / "net.safetensors")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "res2_0_branch2a_bn_s is missing"),
        ("detector", "has no place for rpn_cls_w"),
        ("running", "detectron2's conversion"),
        ("another", r"0-0-0-0 blocks a stage.*X-152-32x8d-IN5k"),
        ("shape", r"res2_0_branch2a_bn_s is \(3,\), and \(16,\)"),
        ("strings", "no array of floats under note"),
        ("empty", "expected a dict of arrays"),
        ("cut", "not a pickle of arrays"),
        ("none", "no such file"),
    ],
)
def test_a_pickle_that_is_no_trunk_is_refused(change: str, message: str, tmp_path: Path) -> None:
    file, out = tmp_path / "net.pkl", tmp_path / "net.safetensors"
    blobs = write_pkl(caffe_trunk(SMALL, True), file, wrap=False)
    one = np.zeros(3, np.float32)
    if change == "missing":
        del blobs["res2_0_branch2a_bn_s"]
    blobs |= {
        "detector": {"rpn_cls_w": one},
        "running": {"res_conv1_bn_rm": one},
        "shape": {"res2_0_branch2a_bn_s": one},
        "strings": {"note": "text"},
    }.get(change, {})
    blobs = {"another": {"w": one}, "empty": {}}.get(change, blobs)
    content = pickle.dumps(blobs, protocol=2)
    file.write_bytes(content[:-50] if change == "cut" else content)
    if change == "none":
        file.unlink()
    with pytest.raises(PixelBertError, match=message):
        convert_detectron(file, out)
    assert {p.name for p in tmp_path.iterdir()} <= {"net.pkl"}


def test_the_converted_file_must_be_safetensors(tmp_path: Path) -> None:
    with pytest.raises(PixelBertError, match=r"\.safetensors file"):
        convert_detectron(tmp_path / "net.pkl", tmp_path / "net.pth")

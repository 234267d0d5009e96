"""With published weights: the network computes what theirs does, and ImageNet's sees what photos show."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertModel

import pixelbert
from pixelbert import PixelBertConfig, PixelBertModel
from pixelbert.model.importing import bert_shape, load_backbone, load_bert
from pixelbert.model.resnet import BACKBONES
from references import transformers_resnet

pytestmark = pytest.mark.weights
PHOTOS = Path(pixelbert.__file__).parent / "demo" / "photos"

# Photo: what it shows, and the ImageNet classes that name it.
CLASSES: dict[str, dict[int, str]] = {
    "000000064499": {340: "zebra"},
    "000000110211": {340: "zebra"},
    "000000096549": {404: "airliner"},
    "000000127476": {963: "pizza"},
    "000000160012": {963: "pizza"},
    "000000167902": {96: "toucan"},
    "000000127135": {338: "guinea pig"},
    "000000176037": {874: "trolleybus"},
    "000000213605": {874: "trolleybus"},
    "000000186624": {820: "steam locomotive"},
    "000000203931": {981: "ballplayer"},
    "000000000872": {981: "ballplayer"},
    "000000000885": {752: "racket", 852: "tennis ball"},
    "000000085772": {752: "racket", 852: "tennis ball"},
    "000000206025": {906: "Windsor tie", 834: "suit"},
    "000000066635": {526: "desk", 527: "desktop computer", 664: "monitor", 782: "screen"},
}


@pytest.fixture(scope="module", autouse=True)
def _all_cores() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def resnet_state(weights: Path) -> dict[str, torch.Tensor]:
    return load_file(weights / "resnet50_imagenet.safetensors")


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    """(n, 3, 224, 224), normalised."""
    arrays = [np.asarray(Image.open(PHOTOS / f"COCO_val2014_{name}.jpg").convert("RGB")) for name in CLASSES]
    x = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def resnet50(weights: Path, stride_in_1x1: bool = True) -> PixelBertModel:
    config = PixelBertConfig(
        stride_in_1x1=stride_in_1x1,
        num_hidden_layers=1,
        hidden_size=32,
        num_attention_heads=1,
        intermediate_size=32,
    )
    return PixelBertModel(config).eval()


def test_imagenet_weights_name_what_the_photos_show(
    weights: Path, resnet_state: dict[str, torch.Tensor], photos: torch.Tensor
) -> None:
    model = resnet50(weights)
    report = load_backbone(model, weights / "resnet50_imagenet.safetensors")
    assert len(report.loaded) == 265
    assert set(report.left_out) == {"fc.weight", "fc.bias"}
    with torch.no_grad():
        features = model.backbone(photos).mean((2, 3))  # (n, 2048)
    best = (features @ resnet_state["fc.weight"].T + resnet_state["fc.bias"]).argmax(1).tolist()
    wrong = {name: k for (name, classes), k in zip(CLASSES.items(), best, strict=True) if k not in classes}
    assert not wrong


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_resnet50_is_transformers_resnet(
    stride_in_1x1: bool, weights: Path, resnet_state: dict[str, torch.Tensor], photos: torch.Tensor
) -> None:
    trunk = resnet50(weights, stride_in_1x1).backbone
    state = {k: v for k, v in resnet_state.items() if not k.startswith("fc.")}
    trunk.load_state_dict(state, strict=False)
    reference = transformers_resnet(state, BACKBONES["resnet50"], stride_in_1x1)
    with torch.no_grad():
        expected = reference(photos[:2]).last_hidden_state
        output = trunk(photos[:2])
    assert expected.abs().max() > 1
    assert (output - expected).abs().max() <= 1e-4


def test_text_alone_is_minilm(weights: Path) -> None:
    folder = weights / "minilm"
    model = PixelBertModel(PixelBertConfig(backbone="resnet14_small", **bert_shape(folder))).eval()
    report = load_bert(model, folder)
    assert not report.missing
    assert len(report.loaded) == 4 + 6 * 16 + 2
    bert = BertModel.from_pretrained(folder).eval()
    texts = [
        "A dog jumps to catch a frisbee in a yard.",
        "zebras",
        "Two women sit in two train cars; one is red!",
    ]
    batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = bert(**batch)
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    real = batch["attention_mask"].bool()
    assert (output.last_hidden_state - expected.last_hidden_state)[real].abs().max() <= 1e-5
    assert (output.pooler_output - expected.pooler_output).abs().max() <= 1e-5

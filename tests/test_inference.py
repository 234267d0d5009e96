"""Networks made ready for inference: the same results, and the network itself as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pixelbert import (
    PixelBertForImageAndTextRetrieval,
    PixelBertForImagesAndTextClassification,
    PixelBertForPreTraining,
    PixelBertForQuestionAnswering,
)
from pixelbert.model import inference
from pixelbert.model.inference import for_inference
from references import images, sentences

MakeModel = Callable[..., Any]
NETWORKS: list[Any] = [
    PixelBertForPreTraining,
    PixelBertForQuestionAnswering,
    PixelBertForImagesAndTextClassification,
    PixelBertForImageAndTextRetrieval,
]
SIDES = [(64, 64), (128, 192), (192, 64), (64, 320), (128, 192)]
LENGTHS = (3, 11, 20, 5)


@torch.no_grad()
def outputs(model: Any) -> dict[str, Tensor]:
    """Pixel features of images of several shapes, and the scores of sentences of several lengths, each in float32."""
    ids, mask = sentences(*LENGTHS)
    index = torch.tensor([[4, 0], [1, 3], [3, 2], [2, 1]])
    features = model.encode_images(images(*SIDES))
    of_pairs = index if isinstance(model, PixelBertForImagesAndTextClassification) else index[:, 0]
    found = model(features, ids, mask, of_pairs)
    result = {"features": features.values, "scores": found.get("match_logits", found.get("logits"))}
    if isinstance(model, PixelBertForPreTraining):
        output = model(features, ids, mask, of_pairs, output_token_logits=True)
        result["token_logits"] = output.token_logits[mask.bool()]
    return {name: value.float() for name, value in result.items()}


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("fused", [True, False], ids=["fused kernels", "torch's own"])
@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])  # the last is none that is fused
@pytest.mark.parametrize("kind", NETWORKS)
def test_float32_gives_the_same(
    kind: Any, activation: str, fused: bool, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fused:
        monkeypatch.setattr(inference, "has_avx512", lambda: True)  # fused linear layers in float32 too
    else:
        monkeypatch.setattr(inference, "has_fused_kernels", lambda dtype: False)
    model = tiny_model(kind, tower_size=16, hidden_act=activation, id2label={i: str(i) for i in range(7)})
    expected, found = outputs(model), outputs(for_inference(model, "fp32"))
    for name, value in expected.items():
        assert value.std() > 0.05, f"{name} hardly varies, so that being near it says nothing"
        assert (found[name] - value).abs().max() <= 1e-4, name


@pytest.mark.parametrize("fused", [True, False], ids=["fused kernels", "torch's own"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_bfloat16_is_near(kind: Any, fused: bool, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fused:
        monkeypatch.setattr(inference, "has_fused_kernels", lambda dtype: False)
    model = tiny_model(kind, tower_size=16, id2label={i: str(i) for i in range(7)})
    expected, found = outputs(model), outputs(for_inference(model, "bf16"))
    for name, value in expected.items():
        assert 0 < relative(found[name], value) <= 2e-2, name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_network_stays_as_it_is(kind: Any, precision: str, tiny_model: MakeModel) -> None:
    model = tiny_model(kind, tower_size=16, id2label={i: str(i) for i in range(7)})
    modules = [type(module) for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = [p.requires_grad for p in model.parameters()]
    before = outputs(model)
    model.train()
    outputs(for_inference(model, precision))
    assert model.training
    model.eval()
    assert [type(module) for module in model.modules()] == modules
    assert [p.requires_grad for p in model.parameters()] == wanted
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], value) and after[name].dtype == value.dtype for name, value in state.items())
    assert all(torch.equal(value, before[name]) for name, value in outputs(model).items())


def test_a_score_does_not_depend_on_its_batch(tiny_model: MakeModel) -> None:
    model = for_inference(tiny_model(PixelBertForPreTraining), "fp32")
    ids, mask = sentences(*LENGTHS)
    pictures = images(*SIDES)
    with torch.no_grad():
        together = model(model.encode_images(pictures), ids, mask, torch.arange(4)).match_logits
        for p, length in enumerate(LENGTHS):
            alone = model(model.encode_images([pictures[p]]), ids[p : p + 1, :length])
            assert (alone.match_logits - together[p]).abs().max() <= 1e-5


@pytest.mark.parametrize("fused", [True, False], ids=["fused kernels", "torch's own"])
def test_blocks_of_pairs_give_what_one_block_does(
    fused: bool, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "has_avx512", lambda: fused)
    model = tiny_model(PixelBertForPreTraining)
    fast = for_inference(model, "fp32")
    ids, mask = sentences(*LENGTHS)
    with torch.no_grad():
        features = model.encode_images(images(*SIDES))
        index = torch.tensor([1, 3, 0, 2])
        expected = model(features, ids, mask, index, output_attentions=True)
        for rows in (1, 60, 10**6):  # a pair, two pairs, all
            monkeypatch.setattr(inference, "ROWS_AT_ONCE", rows)
            found = fast(features, ids, mask, index, output_attentions=True)
            assert (found.match_logits - expected.match_logits).abs().max() <= 1e-5
            assert [a.shape for a in found.attentions] == [a.shape for a in expected.attentions]
            for a, b in zip(found.attentions, expected.attentions, strict=True):
                assert (a - b).abs().max() <= 1e-5
            alone = fast(None, ids)  # without images
            assert (alone.match_logits - model(None, ids).match_logits).abs().max() <= 1e-5

"""Weight import: any transformers BERT, any torchvision or timm ResNet; whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertModel, GPT2Config

from pixelbert import PixelBertConfig, PixelBertError, PixelBertForPreTraining, PixelBertModel
from pixelbert.model.importing import LoadReport, bert_shape, load_backbone, load_bert
from pixelbert.model.resnet import BACKBONES, BackboneShape, ResNet
from references import Trap, seeded_trunk, transformers_resnet

MakeModel = Callable[..., PixelBertForPreTraining]
SMALL = BACKBONES["resnet14_small"]
BERT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
    "initializer_range": 0.15,
}


def save_bert(folder: Path, kind: type = BertForPreTraining, **changes: Any) -> Any:
    """A seeded random BERT, whose zeros (biases, the padding token) are something else, saved in `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        bert = kind(BertConfig(**BERT | changes)).eval()
        for p in bert.parameters():
            p.data += 0.05 * torch.randn_like(p)
    bert.save_pretrained(folder)
    return bert


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 64, (3, 9), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(9) < torch.tensor([9, 4, 6])[:, None]).long()
    return ids * mask, mask


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def unchanged(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# --- BERT ---


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM, BertForPreTraining])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_text_alone_is_bert(kind: type, suffix: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    bert = save_bert(tmp_path, kind)
    if suffix == ".bin":
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    model = tiny_model()
    report = load_bert(model, tmp_path)
    ids, mask = tokens()
    encoder = bert if kind is BertModel else bert.bert
    with torch.no_grad():
        expected = encoder(ids, mask)
        output = model.pixelbert(input_ids=ids, attention_mask=mask)
        real = mask.bool()
        assert (output.last_hidden_state - expected.last_hidden_state)[real].abs().max() <= 1e-5
        if kind is not BertForMaskedLM:
            assert (output.pooler_output - expected.pooler_output).abs().max() <= 1e-5
        if kind is not BertModel:
            scores = bert(ids, mask)[0]
            ours = model(input_ids=ids, attention_mask=mask, output_token_logits=True).token_logits
            assert (ours - scores)[real].abs().max() <= 1e-5
    missing = {
        BertModel: {f"mlm_head.{n}" for n, _ in model.mlm_head.named_parameters()},
        BertForMaskedLM: {"pixelbert.pooler.dense.weight", "pixelbert.pooler.dense.bias"},
        BertForPreTraining: set(),
    }[kind]
    text = {n for n in model.state_dict() if not n.startswith(("pixelbert.backbone", "pixelbert.pixel", "itm"))}
    assert set(report.missing) == missing
    assert set(report.loaded) == text - missing
    assert [n for n in report.left_out if "seq_relationship" not in n] == []
    assert len(report.left_out) == (2 if kind is BertForPreTraining else 0)


def test_the_report_names_tensors_in_a_few_words(tiny_model: MakeModel, tmp_path: Path) -> None:
    save_bert(tmp_path, BertForMaskedLM)
    said = str(load_bert(tiny_model(), tmp_path))
    assert said.startswith(f"{tmp_path}: 41 tensors loaded: ")
    assert "pixelbert.encoder.layer.0-1.* (32)" in said
    assert "not in the file, so as initialised: pixelbert.pooler.dense.* (2)" in said
    assert len(said.splitlines()) == 2


def test_a_report_of_one_tensor_names_it() -> None:
    report = LoadReport("x", ("a.0.w", "a.3.w", "b"), ("fc.bias", "bn.num_batches_tracked"), notes=("mind",))
    assert str(report) == "\n".join(
        (
            "x: 3 tensors loaded: a.0-3.* (2), b",
            "  left out of the model: fc.bias, bn.num_batches_tracked",
            "  mind",
        )
    )


def test_a_recipe_can_take_its_shape_from_bert(tmp_path: Path) -> None:
    save_bert(tmp_path, max_position_embeddings=40, layer_norm_eps=1e-7, hidden_act="relu")
    shape = bert_shape(tmp_path)
    assert shape == {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "hidden_act": "relu",
        "layer_norm_eps": 1e-7,
        "pad_token_id": 0,
        "max_position_embeddings": 40,
    }
    assert not load_bert(PixelBertModel(PixelBertConfig(backbone="resnet14_small", **shape)), tmp_path).missing[1:]


@pytest.mark.parametrize(
    ("field", "theirs"),
    [
        ("vocab_size", 60),
        ("hidden_size", 16),
        ("num_hidden_layers", 3),
        ("num_attention_heads", 2),
        ("intermediate_size", 48),
        ("hidden_act", "relu"),
        ("layer_norm_eps", 1e-5),
    ],
)
def test_a_bert_of_another_shape_is_refused(field: str, theirs: object, tiny_model: MakeModel, tmp_path: Path) -> None:
    save_bert(tmp_path, **{field: theirs})
    model = tiny_model()
    before = snapshot(model)
    ours = getattr(model.config, field)
    with pytest.raises(PixelBertError, match=f"{field} is {theirs!r} in this BERT and {ours!r}.*{field}: {theirs!r}"):
        load_bert(model, tmp_path)
    assert unchanged(model, before)


def test_fewer_positions_are_sliced_and_more_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    bert = save_bert(tmp_path, BertModel, max_position_embeddings=30).embeddings
    model = tiny_model()
    load_bert(model, tmp_path)
    expected = bert.position_embeddings.weight[:24] + bert.token_type_embeddings.weight[0]
    assert torch.equal(model.pixelbert.embeddings.position_embeddings.weight, expected)
    with pytest.raises(PixelBertError, match=r"30 positions and the model 31.*max_position_embeddings: 30"):
        load_bert(tiny_model(max_position_embeddings=31), tmp_path)


def test_a_bert_with_a_tensor_missing_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    save_bert(tmp_path, BertModel)
    state = load_file(tmp_path / "model.safetensors")
    del state["encoder.layer.1.attention.self.key.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = tiny_model()
    before = snapshot(model)
    with pytest.raises(PixelBertError, match=r"layer\.1\.attention\.self\.key\.weight is missing"):
        load_bert(model, tmp_path)
    assert unchanged(model, before)


def test_an_mlm_head_with_its_own_output_words_is_left_out(tiny_model: MakeModel, tmp_path: Path) -> None:
    bert = save_bert(tmp_path, BertForMaskedLM, tie_word_embeddings=False)
    assert not torch.equal(bert.cls.predictions.decoder.weight, bert.bert.embeddings.word_embeddings.weight)
    model = tiny_model()
    before = snapshot(model.mlm_head)
    report = load_bert(model, tmp_path)
    assert unchanged(model.mlm_head, before)
    assert "cls.predictions.decoder.weight" in report.left_out
    assert "mlm_head.dense.weight" in report.missing


def test_what_is_no_bert_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(PixelBertError, match=r"no BERT could be read there.*config\.json"):
        load_bert(tiny_model(), tmp_path / "nowhere")
    GPT2Config().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(PixelBertError, match="'gpt2' model, where a 'bert' is needed"):
        bert_shape(tmp_path / "gpt2")
    save_bert(tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(PixelBertError, match="weights could not be read"):
        load_bert(tiny_model(), tmp_path / "cut")
    save_bert(tmp_path / "relative", position_embedding_type="relative_key")
    with pytest.raises(PixelBertError, match=r"'relative_key'.*'absolute'"):
        load_bert(tiny_model(), tmp_path / "relative")


def test_import_leaves_the_random_draws_alone(tiny_model: MakeModel, tmp_path: Path) -> None:
    save_bert(tmp_path, BertModel)
    model = tiny_model()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_bert(model, tmp_path)
    assert torch.equal(torch.rand(3), expected)


# --- CNN ---


@pytest.mark.parametrize("stride_in_1x1", [False, True])
@pytest.mark.parametrize("shape", [SMALL, BackboneShape((2, 1, 3, 1), stem=16)], ids=["small", "deeper"])
def test_the_trunk_is_transformers_resnet(shape: BackboneShape, stride_in_1x1: bool) -> None:
    net = seeded_trunk(shape, stride_in_1x1)
    reference = transformers_resnet(net.state_dict(), shape, stride_in_1x1)
    x = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = reference(x).last_hidden_state
        output = net(x)
        other = ResNet(shape, stride_in_1x1=not stride_in_1x1).eval()
        other.load_state_dict(net.state_dict())
        wrong = other(x)
    scale = expected.abs().max()
    assert output.shape == (2, 512, 3, 2)
    assert (output - expected).abs().max() <= 1e-4 * scale
    assert (wrong - expected).abs().max() > 1e-2 * scale  # the place of the stride matters


def torchvision_state(stride_in_1x1: bool = False) -> dict[str, torch.Tensor]:
    """What torchvision would save: the trunk and a classifier."""
    state = dict(seeded_trunk(SMALL, stride_in_1x1).state_dict())
    return state | {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("base", [False, True])
def test_torch_files_are_loaded_whole(
    wrapper: str | None, prefix: str, base: bool, tiny_model: MakeModel, tmp_path: Path
) -> None:
    state = torchvision_state()
    saved = {prefix + k: v for k, v in state.items()}
    torch.save(saved if wrapper is None else {wrapper: saved, "epoch": 90}, tmp_path / "net.pth")
    model = tiny_model().pixelbert if base else tiny_model()
    report = load_backbone(model, tmp_path / "net.pth")
    for name, tensor in model.base_model.backbone.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert len(report.loaded) == 85
    assert sorted(n for n in report.left_out if "num_batches" not in n) == ["fc.bias", "fc.weight"]
    assert len(report.left_out) == 2 + 17
    assert not report.missing
    assert "does not say where the stride of 2 is" in str(report)


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_a_file_that_states_its_stride_is_held_to_it(
    stride_in_1x1: bool, tiny_model: MakeModel, tmp_path: Path
) -> None:
    stated = str(stride_in_1x1).lower()
    save_file(torchvision_state(), tmp_path / "net.safetensors", metadata={"stride_in_1x1": stated})
    report = load_backbone(tiny_model(stride_in_1x1=stride_in_1x1), tmp_path / "net.safetensors")
    assert not report.notes
    model = tiny_model(stride_in_1x1=not stride_in_1x1)
    before = snapshot(model)
    with pytest.raises(PixelBertError, match=f"run and are wrong. Set stride_in_1x1: {stated}"):
        load_backbone(model, tmp_path / "net.safetensors")
    assert unchanged(model, before)


def broken(change: str) -> dict[str, torch.Tensor]:
    state = torchvision_state()
    if change == "missing":
        del state["layer2.0.bn2.running_var"]
    elif change == "foreign":
        state["layer2.1.conv1.weight"] = torch.zeros(1)
    elif change == "shape":
        state["layer2.0.conv2.weight"] = torch.zeros(2, 2)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"1-1-1-1 blocks.*missing: layer2\.0\.bn2\.running_var.*Nothing was loaded"),
        ("foreign", r"the file has 1-2-1-1 blocks; unknown: layer2\.1\.conv1\.weight"),
        ("shape", r"layer2\.0\.conv2\.weight is \(2, 2\) in the file and \(32, 32, 3, 3\) in the model"),
    ],
)
def test_a_partial_load_is_refused(change: str, message: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    torch.save(broken(change), tmp_path / "net.pth")
    model = tiny_model()
    before = snapshot(model)
    with pytest.raises(PixelBertError, match=message):
        load_backbone(model, tmp_path / "net.pth")
    assert unchanged(model, before)


def test_files_that_hold_no_weights_are_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(PixelBertError, match="no such file"):
        load_backbone(model, tmp_path / "none.pth")
    with pytest.raises(PixelBertError, match="no such file"):
        load_backbone(model, tmp_path / "none.safetensors")
    for name in ("cut.pth", "cut.safetensors"):
        (tmp_path / name).write_bytes(b"\x80\x02}q")
        with pytest.raises(PixelBertError, match="no weights could be read"):
            load_backbone(model, tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(PixelBertError, match="expected a state dict"):
        load_backbone(model, tmp_path / "list.pth")
    torch.save(Trap(tmp_path / "sprung"), tmp_path / "trap.pth")
    with pytest.raises(PixelBertError, match="no weights could be read"):
        load_backbone(model, tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()

"""Loading a checkpoint: no code of it runs, and a broken one is told exactly."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pixelbert import PixelBertError, PixelBertForPreTraining, PixelBertProcessor
from pixelbert.data.processing import PixelBertImageProcessor, learn_tokenizer
from pixelbert.loading import load_checkpoint


@pytest.fixture(scope="module")
def whole(tiny_model: Callable[..., PixelBertForPreTraining], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    tiny_model().save_pretrained(folder)
    tokenizer = learn_tokenizer(["a dog and a cat", "two dogs"], 64)
    PixelBertProcessor(PixelBertImageProcessor(128, 192), tokenizer, 20).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


class Opens:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return open, (str(self.file), "w")


def test_code_in_a_checkpoint_is_not_run(folder: Path, tmp_path: Path) -> None:
    """Neither what its configurations name as their classes, nor what a pickle beside the weights asks for."""
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    classes = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoImageProcessor": "evil.Evil"}
    classes |= {"AutoModelForPreTraining": "evil.Evil", "AutoProcessor": "evil.Evil"}
    for file in folder.glob("*config.json"):
        change(file, auto_map=classes | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    torch.save({"itm_head.bias": Opens(tmp_path / "ran")}, folder / "pytorch_model.bin")
    assert isinstance(load_checkpoint(folder, "cpu").model, PixelBertForPreTraining)
    (folder / "model.safetensors").unlink()
    with pytest.raises(PixelBertError, match=r"pytorch_model\.bin, a pickle, which may run code"):
        load_checkpoint(folder, "cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"])
def test_a_file_is_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(PixelBertError, match=rf"lacks {re.escape(name)} \("):
        load_checkpoint(folder, "cpu")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "junk"])
def test_a_file_is_damaged(folder: Path, name: str, damage: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-100] if damage == "cut" else b"no such thing" * 100)
    with pytest.raises(PixelBertError, match=re.escape(str(folder / name))):
        load_checkpoint(folder, "cpu")


def test_weights_that_are_not_finite(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["itm_head.bias"][0] = float("nan")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(PixelBertError, match=r"itm_head\.bias is not finite"):
        load_checkpoint(folder, "cpu")


def test_weights_of_another_type(folder: Path) -> None:
    """Whole numbers of as many bytes would be read as other weights."""
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data.replace(b'"dtype":"F32"', b'"dtype":"I32"', 1))
    with pytest.raises(PixelBertError, match="is stored as I32; expected F32"):
        load_checkpoint(folder, "cpu")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "bert"}, "is of a 'bert', not of a 'pixelbert'"),
        ({"architectures": ["PixelBertForSinging"]}, "names 'PixelBertForSinging'"),
        ({"backbone": "vgg"}, "backbone 'vgg' is unknown"),
        ({"vocab_size": 30}, r"mlm_head.bias has the shape \(64,\), and its config.json makes it \(30,\)"),
        ({"num_hidden_layers": 3}, r"lacks pixelbert.encoder.layer.2.*and 13 more"),
    ],
)
def test_the_shape_is_another(folder: Path, fields: dict, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    change(folder / "config.json", **fields)
    with pytest.raises(PixelBertError, match=said):
        load_checkpoint(folder, "cpu")
    assert "MISMATCH" not in "".join(capfd.readouterr())  # one message, not a library's report as well

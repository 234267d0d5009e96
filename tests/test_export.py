"""Export: the graphs' results are PyTorch's, for every head, shape and length; the example needs neither of ours."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

from pixelbert import (
    PixelBert,
    PixelBertError,
    PixelBertForImageAndTextRetrieval,
    PixelBertForImagesAndTextClassification,
    PixelBertForPreTraining,
    PixelBertForQuestionAnswering,
    PixelBertProcessor,
    cli,
    export,
)
from pixelbert.data.processing import PixelBertImageProcessor, learn_tokenizer

onnxruntime = pytest.importorskip("onnxruntime")
EXAMPLE = Path(__file__).parents[1] / "examples" / "onnx_match.py"
SENTENCES = ["a dog", "two dogs and a cat on a red beach, and a skateboard by the sea", "Skate!", "café by the sea"]
SEPARATE = """
import runpy, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "pixelbert", "safetensors", "onnx"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained model with the options that the paper does not use."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = learn_tokenizer(["a dog and a cat on the red beach by the sea", "two dogs", "skate", "aboard"], 80)
    model = tiny_model(
        vocab_size=len(tokenizer),
        num_hidden_layers=1,
        pixel_positions=4,
        pixel_layer_norm=True,
        batch_norm="train",
        tower_size=8,
    )
    model.save_pretrained(folder)
    PixelBertProcessor(PixelBertImageProcessor(128, 192), tokenizer, max_length=20).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "exported"
    cli.main(["export", "--checkpoint", str(checkpoint), "--format", "onnx", "--out", str(folder)])
    return folder


def photo(width: int, height: int, folder: Path) -> Path:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 4), dtype=np.uint8)
    file = folder / f"{width}x{height}.png"
    PIL.Image.fromarray(pixels).save(file)  # in part transparent
    return file


def test_the_example_runs_without_pytorch_and_agrees(exported: Path, checkpoint: Path, tmp_path: Path) -> None:
    model = PixelBert.from_pretrained(checkpoint, device="cpu", precision="fp32")
    for size in ((140, 170), (260, 120)):
        file = photo(*size, tmp_path)
        done = subprocess.run(
            [sys.executable, "-c", SEPARATE, str(EXAMPLE), str(exported), str(file), *SENTENCES],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        lines = [line.split("  ", 1) for line in done.stdout.splitlines()]
        assert [text for _, text in lines] == SENTENCES
        scores = model.match(file, SENTENCES)[0]
        assert np.ptp(scores) > 0.01
        np.testing.assert_allclose([float(score) for score, _ in lines], scores, atol=1e-4)


def test_images_of_several_grids_and_counts_of_pixels(exported: Path, checkpoint: Path) -> None:
    model = PixelBert.from_pretrained(checkpoint, device="cpu", precision="fp32").model
    images, pairs = (onnxruntime.InferenceSession(exported / name) for name in ("images.onnx", "pairs.onnx"))
    photos = [torch.randn(3, h, w, generator=torch.Generator().manual_seed(h)) for h, w in ((64, 64), (192, 128))]
    small, large = (images.run(None, {"pixel_values": p[None].numpy()})[0] for p in photos)
    padded = np.full((2, 6, 32), 1e3, dtype=np.float32)  # what pads is never read
    padded[0, :1], padded[1] = small[0], large[0]
    index = np.array([1, 0, 1])
    ids = np.array([[2, 9, 3], [2, 11, 3], [2, 12, 0]])
    (found,) = pairs.run(
        None,
        {
            "pixel_embeddings": padded,
            "pixel_counts": np.array([1, 6]),
            "input_ids": ids,
            "attention_mask": (ids != 0).astype(np.int64),
            "image_index": index,
        },
    )
    with torch.inference_mode():
        features = model.encode_images(photos)
        right = model(features, torch.tensor(ids), torch.tensor(ids != 0), torch.tensor(index)).match_logits
    np.testing.assert_allclose(found, right, atol=1e-4)


def test_what_lies_beside_the_graphs(exported: Path, checkpoint: Path) -> None:
    facts = json.loads((exported / "export.json").read_text())
    assert facts["task"] == "matching"
    assert facts["max_length"] == 20
    assert max(facts["largest_difference"].values()) <= export.TOLERANCE
    for name, graph in facts["graphs"].items():
        session = onnxruntime.InferenceSession(exported / name)
        assert [i.name for i in session.get_inputs()] == list(graph["inputs"])
        assert [len(i.shape) for i in session.get_inputs()] == [len(i["shape"]) for i in graph["inputs"].values()]
        assert [o.name for o in session.get_outputs()] == list(graph["outputs"])
    operators = (exported / "images.onnx").read_bytes()
    assert b"BatchNormalization" not in operators
    assert PixelBertProcessor.from_pretrained(exported).max_length == 20
    assert not list(exported.parent.glob("*.partial"))


@pytest.mark.parametrize(
    ("kind", "towers"),
    [
        (PixelBertForQuestionAnswering, 0),
        (PixelBertForQuestionAnswering, 16),
        (PixelBertForImagesAndTextClassification, 0),
    ],
)
def test_other_heads(
    kind: type, towers: int, tiny_config: Callable[..., Any], exported: Path, checkpoint: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model: Any = kind(tiny_config(num_hidden_layers=1, num_labels=5, tower_size=towers)).eval()
    trunk = PixelBertForPreTraining.from_pretrained(checkpoint).eval()
    # The image encoder of the module's export, so that only what differs between heads is traced again.
    model.pixelbert.backbone = trunk.pixelbert.backbone
    model.pixelbert.pixel_embedding = trunk.pixelbert.pixel_embedding
    (tmp_path / "images.onnx").symlink_to(exported / "images.onnx")
    graph = export.pair_graph(model, tmp_path)
    export.write_graph(graph, model.config)
    worst = export.largest_differences(model, tmp_path)
    assert max(worst.values()) <= export.TOLERANCE
    with torch.no_grad():
        model.pixelbert.pooler.dense.bias.add_(0.1)
    assert export.largest_differences(model, tmp_path)["scores"] > export.TOLERANCE
    described = export.description(model, PixelBertProcessor.from_pretrained(checkpoint), [graph], worst)
    assert described.get("answers") == getattr(model, "answers", None)
    head = onnxruntime.InferenceSession(tmp_path / "pairs.onnx").get_outputs()[0]
    assert [head.name] == list(graph.outputs)
    assert head.shape == graph.outputs[head.name]


def test_a_retrieval_model_is_compared_as_its_own_forward(exported: Path, checkpoint: Path) -> None:
    model: Any = PixelBertForImageAndTextRetrieval.from_pretrained(checkpoint)  # of the same weights, so the same graph
    assert export.largest_differences(model.eval(), exported)["scores"] <= export.TOLERANCE
    assert list(export.pair_graph(model, exported).outputs) == ["retrieval_logits"]


def test_a_difference_fails_and_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "write_graph", lambda *args: None)
    monkeypatch.setattr(export, "largest_differences", lambda *args: {"pixel_embeddings": 0.0, "scores": 2e-4})
    with pytest.raises(PixelBertError, match=r"differ from PyTorch's by 2.0e-04"):
        export.export(str(checkpoint), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_not_a_number_is_a_difference() -> None:
    assert export.difference(np.array([1.0]), torch.tensor([1.5])) == 0.5
    assert export.difference(np.array([np.nan]), torch.tensor([1.0])) == np.inf
    assert export.difference(np.ones((2, 1)), torch.ones(2)) == np.inf


def test_a_folder_that_holds_something_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(PixelBertError, match="is not empty"):
        export.export(str(checkpoint), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_one_that_was_killed_is_done_again(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pixelbert", "export", "--checkpoint", str(checkpoint), "--out"]
    process = subprocess.Popen([*command, str(tmp_path / "out")], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "out.partial").exists():
        assert process.poll() is None
        time.sleep(0.01)
    with pytest.raises(PixelBertError, match="another export is writing"):
        export.export(str(checkpoint), tmp_path / "out")
    process.kill()
    process.communicate()
    assert not (tmp_path / "out").exists()
    export.export(str(checkpoint), tmp_path / "out")
    assert (tmp_path / "out" / "pairs.onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_model_of_nan(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "spoilt")
    file = tmp_path / "spoilt" / "model.safetensors"
    weights = load_file(file)
    weights["pixelbert.pixel_embedding.semantic"][0] = torch.nan
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(PixelBertError, match=r"pixel_embedding\.semantic is not finite"):
        export.export(str(tmp_path / "spoilt"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["spoilt"]


def test_into_the_folder_that_one_is_in(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PixelBertError, match="is the folder that you are in"):
        export.export(str(checkpoint), Path())


def test_where_no_open_file_can_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, of the lock."""
    removed = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == "out.lock":
            raise PermissionError(13, "it is open")
        removed(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    monkeypatch.setattr(export, "write_export", lambda *_: {"scores": 0.0})
    assert export.export("a checkpoint", tmp_path / "out") == {"scores": 0.0}
    assert (tmp_path / "out").is_dir()


def test_without_the_extra_it_says_what_to_install(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(SystemExit) as exit:
        cli.main(["export", "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")])
    assert exit.value.code == 2
    assert "export needs the extra [onnx] of pixelbert: pip install onnxscript" in capsys.readouterr().err

"""Conventions of the Hugging Face hub: saving and loading, the Auto classes, the model card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from huggingface_hub import HfApi
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
)

from pixelbert import (
    PixelBert,
    PixelBertConfig,
    PixelBertError,
    PixelBertForImageAndTextRetrieval,
    PixelBertForImagesAndTextClassification,
    PixelBertForPreTraining,
    PixelBertForQuestionAnswering,
    PixelBertModel,
    PixelBertProcessor,
)
from pixelbert.data.processing import PixelBertImageProcessor, learn_tokenizer
from pixelbert.loading import load_checkpoint
from pixelbert.model_card import KINDS, last_validation, model_card
from pixelbert.train.loop import write_model

FOUR = [
    PixelBertForPreTraining,
    PixelBertForQuestionAnswering,
    PixelBertForImagesAndTextClassification,
    PixelBertForImageAndTextRetrieval,
]
AUTO = {
    PixelBertForPreTraining: AutoModelForPreTraining,
    PixelBertForQuestionAnswering: AutoModelForVisualQuestionAnswering,
}


@pytest.fixture(scope="module")
def processor() -> PixelBertProcessor:
    tokenizer = learn_tokenizer(["a dog and a cat on the red beach by the sea", "two dogs"], 64)
    return PixelBertProcessor(PixelBertImageProcessor(128, 192), tokenizer, max_length=12)


@pytest.fixture(scope="module")
def make(tiny_config: Callable[..., PixelBertConfig], processor: PixelBertProcessor) -> Callable[[type], Any]:
    def made(kind: type) -> Any:
        torch.manual_seed(0)
        return kind(tiny_config(vocab_size=len(processor.tokenizer), id2label={0: "yes", 1: "a dog", 2: "two"})).eval()

    return made


def result(model: Any, processor: PixelBertProcessor) -> torch.Tensor:
    """What a model makes of two photos and a sentence, its first output."""
    photos = [np.full((128, 128, 3), shade, dtype=np.uint8) for shade in (40, 200)]
    two = isinstance(model, PixelBertForImagesAndTextClassification)
    with torch.inference_mode():
        inputs = processor(images=photos, text="two dogs on a beach")
        output = model(**inputs, image_index=torch.tensor([[0, 1]] if two else [1]))
    return next(value for value in output.values() if value is not None)


@pytest.mark.parametrize("kind", FOUR)
def test_all_four_come_back_as_they_were(
    kind: type, make: Callable[[type], Any], processor: PixelBertProcessor, tmp_path: Path
) -> None:
    model = make(kind)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    expected = result(model, processor)
    classes: list[Any] = [kind] + ([AUTO[kind]] if kind in AUTO else [])
    for made_by in classes:
        again = made_by.from_pretrained(tmp_path)
        assert type(again) is kind
        assert not again.training
        torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(result(again, AutoProcessor.from_pretrained(tmp_path)), expected)
    assert type(load_checkpoint(tmp_path, "cpu").model) is kind
    trunk = AutoModel.from_pretrained(tmp_path)
    assert type(trunk) is PixelBertModel
    torch.testing.assert_close(result(trunk, processor), result(model.pixelbert, processor))


def test_the_auto_classes_know_configuration_and_processors(
    make: Callable[[type], Any], processor: PixelBertProcessor, tmp_path: Path
) -> None:
    make(PixelBertForQuestionAnswering).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is PixelBertConfig
    assert list(config.id2label.values()) == ["yes", "a dog", "two"]
    both = AutoProcessor.from_pretrained(tmp_path)
    images = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(both) is PixelBertProcessor
    assert type(images) is PixelBertImageProcessor
    assert both.max_length == 12
    photo = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8))
    expected = processor(images=photo, text="a dog")
    assert expected["pixel_values"].shape == (1, 3, 128, 192)
    torch.testing.assert_close(dict(both(images=photo, text="a dog")), dict(expected))
    torch.testing.assert_close(images(photo)["pixel_values"], expected["pixel_values"])
    torch.testing.assert_close(images.preprocess(photo)["pixel_values"], expected["pixel_values"])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run just before its end."""
    folder = tmp_path / "dogs"
    folder.mkdir()
    row = {"step": 20, "loss": 1.5, "itm_loss": 1.5}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    rows = [{"step": 10, "examples": 1000, "accuracy": 0.25}, {"step": 20, "examples": 1000, "accuracy": 0.5}]
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("kind", FOUR)
def test_a_finished_run_has_a_card(
    kind: type, make: Callable[[type], Any], processor: PixelBertProcessor, run: Path
) -> None:
    learned = [{"data": "mine", "split": "train", "sha256": ["0123456789abcdef" * 4]}]
    write_model(make(kind), processor, learned, run, "final", last_validation(run))
    text = (run / "final" / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["library_name"] == "pixelbert"
    assert head["license"] == "unknown"
    assert {"pixel-bert", KINDS[kind.__name__].tag} <= set(head["tags"])
    assert "- mine, split train (sha256 0123456789ab)" in body
    assert "after step 20" in body
    assert "| accuracy | 0.5000 |" in body
    assert "| examples | 1,000 |" in body
    assert "0.25" not in body
    assert "cut to 12 tokens" in body
    assert ("3 answers" in body) == (kind is PixelBertForQuestionAnswering)


@pytest.mark.parametrize("kind", FOUR)
def test_the_python_of_a_card_runs(
    kind: type, make: Callable[[type], Any], processor: PixelBertProcessor, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(make(kind), processor, [], run, "final", None)
    final = run / "final"
    code = (final / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    for name in ("photo", "left", "right", "beach", "kitchen"):
        PIL.Image.new("RGB", (128, 128), "red").save(run / f"{name}.jpg")
    final.rename(run / run.name)  # which the card calls it
    monkeypatch.chdir(run)
    found: list[Any] = []
    for method in ("match", "answer", "reason"):
        original = getattr(PixelBert, method)
        monkeypatch.setattr(PixelBert, method, lambda *a, _o=original, **k: found.append(_o(*a, **k)))
    exec(code, {})
    assert len(found) == 1


def test_a_card_without_validation_says_so(
    make: Callable[[type], Any], processor: PixelBertProcessor, tmp_path: Path
) -> None:
    assert last_validation(tmp_path) is None
    text = model_card(make(PixelBertForPreTraining), processor, [], None, "dogs")
    assert "no validation data, so nothing is known" in text
    assert "- not recorded" in text


def test_a_checkpoint_is_uploaded_with_its_card(
    make: Callable[[type], Any], processor: PixelBertProcessor, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no hub here: what would be sent to it is looked at."""
    write_model(make(PixelBertForPreTraining), processor, [], run, "final", None)
    sent: dict[str, Any] = {}

    def create_repo(hub: HfApi, repo_id: str, **options: Any) -> str:
        sent.update(options, token=hub.token)
        return f"https://hub.example/{repo_id}"

    def upload_folder(hub: HfApi, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        sent.update(to=repo_id, files={file.name for file in folder_path.iterdir()})

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    model = PixelBert.from_pretrained(run / "final", "cpu", "fp32")
    assert model.push_to_hub("me/dogs", private=True, token="secret") == "https://hub.example/me/dogs"
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", "trained_on.json"} <= sent["files"]
    assert (sent["to"], sent["private"], sent["token"], sent["exist_ok"]) == ("me/dogs", True, "secret", True)
    with pytest.raises(PixelBertError, match="no folder to upload"):
        PixelBert(make(PixelBertForPreTraining), processor).push_to_hub("me/dogs")

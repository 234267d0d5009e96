"""Heads that learn to answer questions on a frozen trunk, and go beside a pre-trained checkpoint in their own files."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from data_builders import photo, script
from learned import Margins
from pixelbert import PixelBert, PixelBertError, PixelBertForPreTraining, cli
from pixelbert.data.processing import PixelBertImageProcessor, PixelBertProcessor, learn_tokenizer
from pixelbert.files import SUMS
from pixelbert.loading import ANSWERING, TRAINED_ON, of_trunk
from pixelbert.train.recipe import ModelRecipe

ship = script("tools/ship.py")
QUESTIONS = ["is it red", "what is it", "is it a dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("heads")


@pytest.fixture(scope="module")
def start(folder: Path, tiny_model: Callable[..., Any]) -> Path:
    """A pre-trained checkpoint with a two-tower head."""
    tokenizer = learn_tokenizer(QUESTIONS, 60)
    processor = PixelBertProcessor(PixelBertImageProcessor(64, 128), tokenizer, max_length=12)
    tiny_model(vocab_size=len(tokenizer), tower_size=16).save_pretrained(folder / "start")
    processor.save_pretrained(folder / "start")
    (folder / "start" / TRAINED_ON).write_text("[]")
    return folder / "start"


@pytest.fixture(scope="module")
def questions(folder: Path) -> Path:
    rows = []
    for i in range(24):
        photo(i).save(folder / f"{i}.png")
        split = "train" if i < 16 else "test"
        rows += [(f"{i}.png", asked, ["yes", "no", "dog"][(i + q) % 3], split) for q, asked in enumerate(QUESTIONS)]
    with (folder / "questions.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "question", "answer", "split"), *rows])
    command = ["prepare", "vqa-csv", "--questions", str(folder / "questions.csv"), "--images", str(folder)]
    cli.main([*command, "--output", str(folder / "prepared")])
    return folder / "prepared"


@pytest.fixture(scope="module")
def run(folder: Path, start: Path, questions: Path, learned_seed: int, learned_precision: str) -> Path:
    """Heads that learned on its trunk."""
    recipe = {
        "task": {"kind": "question-answering", "towers": True, "tower_size": 16, "joint_share": 0},
        "model": {"checkpoint": str(start), "freeze_backbone": True, "freeze_trunk": True, "dropout": 0.0},
        "data": {"train": [f"{questions}:train"], "shortest_edge": 64, "longest_edge": 128, "max_length": 12},
        "optimizer": {"lr": 0.01, "milestones": [], "warmup_steps": 0},
        "epochs": 2,
        "batch_size": 8,
        "micro_batch_size": 8,
        "precision": learned_precision,
        "seed": learned_seed,
        "trackers": [],
    }
    recipe["data"]["workers"] = 0  # type: ignore[index]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    output = folder / f"run-{learned_seed}"
    cli.main(["train", str(folder / "recipe.yaml"), "--output", str(output)])
    return output / "final"


@pytest.fixture(scope="module")
def both(folder: Path, start: Path, run: Path) -> Path:
    """The pre-trained checkpoint with the heads beside it."""
    target = run.parent / "both"
    shutil.copytree(start, target)
    ship.ship_answering(run, target)
    return target


def test_a_frozen_trunk_stays_as_it_is_and_the_heads_learn(start: Path, run: Path) -> None:
    before, after = (load_file(checkpoint / "model.safetensors") for checkpoint in (start, run))
    assert all(torch.equal(x, before[name]) for name, x in after.items() if of_trunk(name))
    assert not torch.equal(after["pixelbert.towers.text.weight"], before["pixelbert.towers.text.weight"])
    assert not [name for name in after if name.startswith("classifier")]  # on [CLS], which nobody asks
    with pytest.raises(PixelBertError, match=r"freeze_trunk needs model\.checkpoint"):
        ModelRecipe(freeze_trunk=True, freeze_backbone=True)


def test_one_model_matches_as_before_and_answers_as_the_run_does(
    start: Path, run: Path, both: Path, folder: Path, margins: Margins
) -> None:
    assert {file.name for file in (both / ANSWERING).iterdir()} == {
        "config.json",
        "model.safetensors",
        TRAINED_ON,
        SUMS,
    }
    assert not [name for name in load_file(both / ANSWERING / "model.safetensors") if of_trunk(name)]
    model, alone, answerer = (PixelBert.from_pretrained(x, "cpu", "fp32") for x in (both, start, run))
    assert isinstance(model.model, PixelBertForPreTraining)
    assert model.answering.pixelbert.encoder is model.model.pixelbert.encoder  # one trunk in memory
    assert model.answering.pixelbert.towers is not model.model.pixelbert.towers
    assert alone.answering is None
    halved, in_bf16 = [], []
    rounded = PixelBert.from_pretrained(both, "cpu", "bf16")
    for number in (0, 20):
        image = folder / f"{number}.png"
        assert (model.match(image, QUESTIONS) == alone.match(image, QUESTIONS)).all()
        for asked in QUESTIONS:
            found, bf16, expected = (dict(m.answer(image, asked, top=3)) for m in (model, rounded, answerer))
            assert found.keys() == bf16.keys() == expected.keys()
            halved += [abs(found[answer] - score) for answer, score in expected.items()]
            in_bf16 += [abs(bf16[answer] - score) for answer, score in expected.items()]
    margins.at_most("what half precision of the heads changes in a score", max(halved), 5e-3)
    margins.at_most("what bfloat16 changes in a score", max(in_bf16), 0.1)


def test_it_is_measured_as_the_run_is_and_not_on_what_the_heads_learned_from(
    run: Path, both: Path, questions: Path, folder: Path
) -> None:
    command = ["evaluate", "--data", str(questions), "--precision", "fp32", "--device", "cpu"]
    for name, checkpoint, more in (("one", both, ["--task", "question-answering"]), ("two", run, [])):
        cli.main([*command, str(checkpoint), "--split", "test", "--output", str(folder / name), *more])
    one, two = (json.loads((folder / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert {k: v for k, v in one.items() if k != "checkpoint"} == {k: v for k, v in two.items() if k != "checkpoint"}
    assert (one["answer_rule"], one["answerable"]) == ("mild", 1)
    with pytest.raises(SystemExit):
        cli.main([*command, str(both), "--split", "train", "--task", "question-answering"])
    with pytest.raises(SystemExit):  # it has no heads
        cli.main([*command, str(folder / "start"), "--split", "test", "--task", "question-answering"])


def test_heads_of_another_trunk_or_damaged_ones_are_refused(
    start: Path, run: Path, both: Path, tmp_path: Path, tiny_model: Callable[..., Any]
) -> None:
    other = shutil.copytree(start, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["pixelbert.embeddings.word_embeddings.weight"][5, 5] += 1
    ship.save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="trunk of its own"):
        ship.ship_answering(run, other)
    damaged = shutil.copytree(both, tmp_path / "damaged")
    (damaged / ANSWERING / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(PixelBertError, match=r"damaged \(model.safetensors is not as it was written\)"):
        PixelBert.from_pretrained(damaged)
    (damaged / ANSWERING / SUMS).unlink()
    with pytest.raises(PixelBertError, match="no heads for answering can be read there"):
        PixelBert.from_pretrained(damaged)
    heads = {k: v for k, v in load_file(both / ANSWERING / "model.safetensors").items() if "out" not in k}
    ship.save_file(heads, damaged / ANSWERING / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PixelBertError, match=r"tower_classifier\.out\.weight"):
        PixelBert.from_pretrained(damaged)
    wider = tmp_path / "wider"
    tiny_model(hidden_size=64, tower_size=16).save_pretrained(wider)
    for file in (start / "tokenizer.json", start / "tokenizer_config.json", start / "preprocessor_config.json"):
        shutil.copy(file, wider)
    shutil.copytree(both / ANSWERING, wider / ANSWERING)
    with pytest.raises(PixelBertError, match="heads are of a network with the sizes"):
        PixelBert.from_pretrained(wider)

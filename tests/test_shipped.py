"""The checkpoint that ships with the project: whole, small, loaded by default, and it tells new photos apart."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from learned import Margins
from pixelbert import PixelBert, PixelBertError, PixelBertForPreTraining, loading
from pixelbert.demo.sample import shipped_photos
from pixelbert.demo.shipped import answered
from pixelbert.device import Precision
from pixelbert.files import SUMS, sums_problem
from pixelbert.loading import ANSWERING, SHIPPED, located, of_trunk, trained_on
from pixelbert.predict.search import DATABASE, SearchIndex, index_photos

FOLDER = Path(located(SHIPPED))
PHOTOS = 16


@pytest.fixture(scope="module")
def model() -> PixelBert:
    return PixelBert.from_pretrained(precision="fp32")


def test_it_is_as_it_was_written() -> None:
    for folder in (FOLDER, FOLDER / ANSWERING):
        named = {line.split("  ")[1] for line in (folder / SUMS).read_text().splitlines()}
        assert named == {path.name for path in folder.iterdir() if path.is_file()} - {SUMS, "README.md"}
        assert sums_problem(folder, named) is None


def test_it_is_small_and_in_half_precision() -> None:
    assert (FOLDER / "model.safetensors").stat().st_size <= 95_000_000
    weights = load_file(FOLDER / "model.safetensors")
    kept = {name.rpartition(".")[2] for name, x in weights.items() if x.dtype == torch.float32}
    assert kept == {"running_var"}
    assert all(x.isfinite().all() for x in weights.values())
    assert {x.dtype for x in weights.values()} == {torch.float32, torch.float16, torch.int64}
    heads = load_file(FOLDER / ANSWERING / "model.safetensors")
    assert (FOLDER / ANSWERING / "model.safetensors").stat().st_size <= 3_000_000
    assert {x.dtype for x in heads.values()} == {torch.float16}
    assert not [name for name in heads if of_trunk(name)]


def test_other_ways_of_loading_it_compute_in_single_precision_too() -> None:
    """transformers takes the type that the configuration says; half precision would overflow in the CNN."""
    model = PixelBertForPreTraining.from_pretrained(FOLDER)
    assert {x.dtype for x in model.parameters()} == {torch.float32}
    variances = [x for name, x in model.named_buffers() if name.endswith("running_var")]
    assert max(float(x.max()) for x in variances) > torch.finfo(torch.float16).max


@pytest.fixture(scope="module")
def measured(model: PixelBert, learned_precision: Precision) -> PixelBert:
    """The model in the precision that learned figures are measured in."""
    return model if learned_precision == "fp32" else PixelBert.from_pretrained(precision=learned_precision)


def test_it_computes_in_single_precision(model: PixelBert) -> None:
    assert {x.dtype for x in model.model.parameters()} == {torch.float32}


def test_captions_of_photos_never_seen_are_told_apart(measured: PixelBert, margins: Margins) -> None:
    """Chance is 1 of 16 for each."""
    photos = shipped_photos()[:PHOTOS]
    scores = measured.match([photo.path for photo in photos], [photo.held_out for photo in photos])
    own = np.arange(PHOTOS)
    margins.at_least("captions that find their photo", (scores.argmax(0) == own).sum(), PHOTOS // 2)
    margins.at_least("photos that find their caption", (scores.argmax(1) == own).sum(), PHOTOS // 2)
    ratio = scores[own, own].mean() / scores[~np.eye(PHOTOS, dtype=bool)].mean()
    margins.at_least("mean score of right pairs over that of wrong ones", ratio, 5)


def test_a_masked_word_is_seen_in_the_photo(measured: PixelBert, margins: Margins) -> None:
    """And not guessed from the words, which beside another photo say something else."""
    photos, sentence = shipped_photos(), "a [MASK] catching a frisbee"
    dog, office = photos[5], photos[4]  # in file order
    fills = {fill.token: fill.score for fill in measured.fill_mask(dog.path, sentence, top=50)[0]}
    likeliest_other = max(score for token, score in fills.items() if token != "dog")
    margins.at_least("dog over the next word, beside a dog", fills["dog"] / likeliest_other, 1)
    elsewhere = measured.fill_mask(office.path, sentence, top=50)[0]
    beside_office = next((fill.score for fill in elsewhere if fill.token == "dog"), elsewhere[-1].score)
    margins.at_most("dog over the third word, beside an office", beside_office / elsewhere[2].score, 1)


def test_questions_are_answered_by_looking(measured: PixelBert, margins: Margins) -> None:
    """Open questions are answered rightly more often than beside another photo, or by their commonest answer."""
    figures = answered(measured, shipped_photos()[:PHOTOS])
    right, elsewhere = figures["answers_open"], figures["answers_open_other_photo"]
    margins.at_least("right answers, less twice those beside another photo", right - 2 * elsewhere, 0)
    margins.at_least("right answers, less the commonest", right - figures["answers_open_commonest"], 0)


def test_an_index_made_with_it_names_it_and_no_path(model: PixelBert, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for photo in shipped_photos()[:3]:
        shutil.copy(photo.path, tmp_path / "photos")
    index_photos(model, tmp_path / "photos", tmp_path / "index")
    assert SearchIndex.open(tmp_path / "index").checkpoint == SHIPPED
    with sqlite3.connect(tmp_path / "index" / DATABASE) as database:
        assert dict(database.execute("SELECT name, value FROM about"))["precision"] == "fp32"
    found = model.search(tmp_path / "index", shipped_photos()[2].held_out, top=1)
    assert Path(found[0].image).name == shipped_photos()[2].path.name


def test_a_folder_of_that_name_is_not_taken_for_it(
    model: PixelBert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(SHIPPED).mkdir()
    with pytest.raises(PixelBertError, match=r"write \./shipped"):
        PixelBert.from_pretrained()
    shutil.copy(shipped_photos()[0].path, Path(SHIPPED))
    index_photos(model, Path(SHIPPED), tmp_path / "index")  # which asks for no model of that name


def test_it_says_what_it_learned_from() -> None:
    assert {(row["data"], row["split"]) for row in trained_on(SHIPPED)} == {("flickr8k", "train"), ("coco", "restval")}
    card = (FOLDER / "README.md").read_text()
    for word in ("Flickr8k", "COCO", "research", "shipped_1.yaml", "shipped_3.yaml"):
        assert word in card
    heads = {row["data"] for row in trained_on(FOLDER / ANSWERING)} - {row["data"] for row in trained_on(SHIPPED)}
    assert heads == {"yesno_unshown", "vqa2_learned", "daquar_frequent", "coco_asked", "flickr8k_asked"}
    for word in ("VQA v2", "DAQUAR", "shipped_answers.yaml"):
        assert word in card
    assert json.loads((FOLDER / "config.json").read_text())["architectures"] == ["PixelBertForPreTraining"]


def test_without_it_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "SHIPPED_FOLDER", tmp_path / "gone")
    with pytest.raises(PixelBertError, match="install the project from its repository"):
        PixelBert.from_pretrained()

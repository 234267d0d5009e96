"""A photo is one photo: mirrored, in a data set that is given twice, in two prepared sets, and as a copy of a file.

Nowhere may its own sentences stand as wrong ones.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from data_builders import ROOT, encoded, photo
from pixelbert import cli
from pixelbert.data.corpus import Corpus
from pixelbert.data.sources.scenes import resolve_scenes
from pixelbert.data.writer import DatasetWriter
from pixelbert.files import file_sha256
from pixelbert.metrics.retrieval import fold_recall, query_recall, recall_at_k
from pixelbert.model.modeling import PixelBertModel
from pixelbert.tasks.pretraining import Pretraining
from pixelbert.tasks.retrieval import all_pairs_recall
from pixelbert.tasks.scoring import shuffled_images
from pixelbert.tasks.sentences import mismatched_example

TINY = str(ROOT / "recipes" / "tiny.yaml")
SHORT = {
    "epochs": "2",
    "log_every": "1",
    "evaluate_every": "0",
    "data.validation": "[]",
    "data.sentences_per_image": "2",
}


def scene(corpus: Corpus, example: int) -> str:
    """Which drawing an example is about, by its id: scene:5 of scene:5:1."""
    return corpus.example_id(example).rpartition(":")[0]


def rivals_of_one_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **data: Any) -> tuple[int, int]:
    """Trains, and counts the pairs of sentences of one scene in all contrastive groups, and those that were rivals."""
    found: list[torch.Tensor] = []
    of_group = PixelBertModel.rivals
    of_batch = Pretraining.loss
    counts = [0, 0]

    def spy(self: PixelBertModel, *given: Any) -> torch.Tensor:
        found.append(of_group(self, *given))
        return found[-1]

    def loss(self: Pretraining, model: Any, batch: Any) -> Any:
        result = of_batch(self, model, batch)
        matched = [e for e, label in zip(batch.examples, batch.inputs["match_labels"], strict=True) if label]
        names = np.array([scene(corpus, e) for e in matched]).reshape(-1, 32)
        same = (names[:, :, None] == names[:, None, :]) & ~np.eye(32, dtype=bool)
        counts[0] += int(same.sum())
        counts[1] += int((same & found.pop().isfinite().numpy()).sum())
        return result

    corpus = Corpus(resolve_scenes(data["train"], tmp_path / "run" / "data"))
    shutil.rmtree(tmp_path / "run")
    monkeypatch.setattr(PixelBertModel, "rivals", spy)
    monkeypatch.setattr(Pretraining, "loss", loss)
    options = SHORT | {"task.contrast": "32", "batch_size": "64", "micro_batch_size": "64"}
    options |= {f"data.{name}": json.dumps(value) for name, value in data.items()}
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    cli.main(["train", TINY, *arguments, "--output", str(tmp_path / "run")])
    return counts[0], counts[1]


@pytest.mark.parametrize(
    "data",
    [
        {"train": ["scenes:0-30"], "mirror": True},
        {"train": ["scenes:0-20", "scenes:0-20"]},
        {"train": ["scenes:0-20", "scenes:10-30"]},
    ],
    ids=["mirrored", "given twice", "in two sets"],
)
def test_a_run_takes_no_sentence_of_a_photo_for_its_rival(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, Any]
) -> None:
    same, rivals = rivals_of_one_scene(tmp_path, monkeypatch, **data)
    assert same > 20
    assert rivals == 0


def folder_of(tmp_path: Path, name: str, files: dict[str, Path], checksums: bool = True) -> str:
    """A prepared data set with two captions for each of these files."""
    with DatasetWriter(tmp_path / name, name=name) as writer:
        for image, file in files.items():
            known = {"sha256": file_sha256(file)} if checksums else {}
            writer.add_image(image, path=str(file), width=40, height=32, **known)
            for n in range(2):
                writer.add_example("test", f"{image}#{n}", [image], f"{name} says {n} of {image}")
    return f"{tmp_path / name}:test"


@pytest.fixture
def copies(tmp_path: Path) -> dict[str, Path]:
    """Four photos; the fourth is a copy of the first."""
    files = {name: tmp_path / f"{name}.png" for name in "abcd"}
    for shade, file in enumerate(files.values()):
        file.write_bytes(encoded(photo(50 * (shade % 3)), "PNG"))
    return files


def test_photos_are_known_by_their_content_or_their_file(tmp_path: Path, copies: dict[str, Path]) -> None:
    first = folder_of(tmp_path, "first", copies)
    assert Corpus([first]).photos.tolist() == [0, 1, 2, 0]
    older = folder_of(tmp_path, "older", copies, checksums=False)
    table = tmp_path / "older" / "images-00000.parquet"
    pq.write_table(pq.read_table(table).drop_columns(["sha256"]), table)
    manifest = json.loads((tmp_path / "older" / "dataset.json").read_text())
    manifest["files"][table.name] = {"bytes": table.stat().st_size, "sha256": file_sha256(table)}
    (tmp_path / "older" / "dataset.json").write_text(json.dumps(manifest))
    assert Corpus([older]).photos.tolist() == [0, 1, 2, 3]  # its files are not read for it
    both = Corpus([older, first])  # the first photo and its copy are found out by the newer set
    assert both.photos.tolist() == [0, 1, 2, 0, 0, 1, 2, 0]
    assert both.photo_of.tolist() == np.repeat(both.photos, 2).tolist()
    assert both.own_texts(0) == {f"{name} says {n} of {i}" for name in ("older", "first") for n in (0, 1) for i in "ad"}


def test_wrong_sentences_and_photos_are_of_another_photo(tmp_path: Path, copies: dict[str, Path]) -> None:
    corpus = Corpus([folder_of(tmp_path, "first", copies), folder_of(tmp_path, "second", copies)])
    own = {"a": "ad", "b": "b", "c": "c", "d": "ad"}
    for seed in range(100):
        for example in range(len(corpus)):
            image = corpus.image_id(int(corpus.image_of[example]))
            other = mismatched_example(corpus, example, {corpus.text(example)}, np.random.default_rng(seed))
            assert corpus.image_id(int(corpus.image_of[other])) not in own[image]
            shown = int(shuffled_images(corpus, range(len(corpus)), seed)[example, 0])
            assert corpus.image_id(shown) not in own[image]


def test_a_copy_of_the_right_photo_is_right(tmp_path: Path, copies: dict[str, Path]) -> None:
    corpus = Corpus([folder_of(tmp_path, "first", copies)])
    scores = np.full((8, 4), 0.1)
    for caption, image in enumerate(corpus.image_of):
        scores[caption, corpus.photos == corpus.photos[image]] = 1.0  # a copy scores the very same
    assert set(all_pairs_recall(corpus, range(8), range(4), scores).values()) == {1.0}
    right = corpus.photo_of[:, None] == corpus.photos
    assert query_recall(scores, right, ks=(1,)) == {1: 1.0}
    owner = corpus.image_of
    assert recall_at_k(scores.T, owner, ks=(1,))["text_to_image_r1"] == 0.5  # as if they were different
    pairs = fold_recall(scores.T[[0, 3, 1, 2]][:, [0, 1, 6, 7, 2, 3, 4, 5]], np.repeat(np.arange(4), 2), 2, ks=(1,),
                        photo=corpus.photos[[0, 3, 1, 2]])  # fmt: skip
    assert set(pairs.values()) == {1.0}

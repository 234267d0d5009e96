"""Searching a folder of photos: the index follows the folder, survives a kill, and finds what `match` ranks first."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pixelbert import PixelBert, PixelBertError, PixelBertForPreTraining, cli
from pixelbert.predict import first_stage as module
from pixelbert.predict.search import Found, SearchIndex, index_photos
from search_builders import TEXT, save_checkpoint, write_photo


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Callable[..., PixelBertForPreTraining], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"), tiny_model)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> PixelBert:
    return PixelBert.from_pretrained(checkpoint, "cpu", "fp32")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed in range(20):
        write_photo(tmp_path / "photos" / f"{'deep/er/' * (seed % 2)}{seed:02}.png", seed)
    return tmp_path / "photos"


def names(index: Path) -> list[str]:
    opened = SearchIndex.open(index)
    return [opened.path(i).name for i in opened.ids()]


def alike(found: list[Found], expected: list[Found]) -> bool:
    """Whether these are the same photos with the same scores, as near as scores of another batch are."""
    near = [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)
    return near and [one.image for one in found] == [one.image for one in expected]


def test_without_a_short_list_all_are_ranked_by_match(model: PixelBert, photos: Path, tmp_path: Path) -> None:
    done = index_photos(model, photos, tmp_path / "index")
    assert done == (20, 20, 0, {}, {})
    found = model.search(tmp_path / "index", TEXT, top=20, shortlist=None)
    scores = {image: float(model.match(image, TEXT)[0, 0]) for image, *_ in found}
    assert len(scores) == 20
    assert [one.score for one in found] == pytest.approx(list(scores.values()), abs=1e-5)
    assert (np.diff([one.score for one in found]) <= 0).all()
    assert found[0].score > found[-1].score + 1e-3
    assert alike(model.search(tmp_path / "index", TEXT, top=3, shortlist=None), found[:3])


def test_the_short_list_holds_the_nearest_vectors(model: PixelBert, photos: Path, tmp_path: Path) -> None:
    index_photos(model, photos, tmp_path / "index")
    files = sorted(photos.rglob("*.png"))
    cosines = model.embed_images(model.encode(files)) @ model.embed_text(TEXT)
    nearest = {str(files[i]) for i in np.argsort(-cosines)[:5]}
    found = model.search(tmp_path / "index", TEXT, top=5, shortlist=5)
    assert {one.image for one in found} == nearest
    everywhere = {one.image: one.score for one in model.search(tmp_path / "index", TEXT, top=20, shortlist=None)}
    assert [everywhere[one.image] for one in found] == pytest.approx([one.score for one in found], abs=1e-6)


def test_the_graph_finds_what_comparing_with_all_finds(
    model: PixelBert, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_photos(model, photos, tmp_path / "index")
    whole = model.search(tmp_path / "index", TEXT, top=5, shortlist=5)
    monkeypatch.setattr(module, "EXACT_UP_TO", 0)
    assert alike(model.search(tmp_path / "index", TEXT, top=5, shortlist=5), whole)


def test_without_a_short_list_the_graph_is_not_trusted(
    model: PixelBert, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_photos(model, photos, tmp_path / "index")
    monkeypatch.setattr(module, "EXACT_UP_TO", 0)
    asked: list[bool] = []

    class Watched(module.Index):  # type: ignore[name-defined, misc]
        def search(self, *args: Any, exact: bool, **options: Any) -> Any:
            asked.append(exact)
            return super().search(*args, exact=exact, **options)

    opened = SearchIndex.open(tmp_path / "index")
    monkeypatch.setattr(module, "Index", Watched)
    opened._vectors = None
    monkeypatch.setattr(opened, "_checksum", "")  # made anew, by the class above
    assert len(model.search(opened, TEXT, top=20, shortlist=None)) == 20
    model.search(opened, TEXT, top=5, shortlist=5)
    assert asked == [True, False]


def test_the_index_follows_the_folder(
    model: PixelBert, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    index_photos(model, photos, index)
    encoded: list[int] = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda images: encoded.append(len(images)) or encode(images))
    assert index_photos(model, photos, index) == (20, 0, 0, {}, {})
    assert encoded == []

    write_photo(photos / "new.png", 50)
    (photos / "00.png").unlink()
    write_photo(photos / "02.png", 51)  # another photo of the same name
    os.utime(photos / "02.png", ns=(1, 1))
    assert index_photos(model, photos, index) == (20, 2, 1, {}, {})
    assert sum(encoded) == 2
    assert names(index) == sorted(
        ["new.png", *(f"{i:02}.png" for i in range(1, 20))],
        key=lambda n: f"deep/er/{n}" if n[:2].isdigit() and int(n[:2]) % 2 else n,
    )
    fresh = tmp_path / "fresh"
    index_photos(model, photos, fresh)
    for shortlist in (None, 6):
        assert model.search(index, TEXT, 6, shortlist) == model.search(fresh, TEXT, 6, shortlist)

    moved = photos.rename(tmp_path / "elsewhere")
    assert index_photos(model, moved, index) == (20, 0, 0, {}, {})
    assert all(Path(one.image).is_file() for one in model.search(index, TEXT))


def test_files_that_are_no_photos(model: PixelBert, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    (photos / "notes.txt").write_text("no photo, and not meant as one")
    (photos / ".hidden").mkdir()
    write_photo(photos / ".hidden" / "thumbnail.png", 70)
    done = index_photos(model, photos, photos / "index")  # which lies in the folder itself
    assert (done.photos, done.added, list(done.skipped)) == (20, 20, ["broken.jpg"])
    assert "broken.jpg" in done.skipped["broken.jpg"]
    again = index_photos(model, photos, photos / "index")
    assert (again.photos, again.added, list(again.skipped)) == (20, 0, ["broken.jpg"])
    write_photo(photos / "broken.png", 71)
    (photos / "broken.png").replace(photos / "broken.jpg")
    assert index_photos(model, photos, photos / "index")[:2] == (21, 1)


def test_vectors_that_were_not_stored_in_time_are_made_up_for(model: PixelBert, photos: Path, tmp_path: Path) -> None:
    """As when a run is killed between the last photo and the file of vectors."""
    index = tmp_path / "index"
    index_photos(model, photos, index)
    whole = model.search(index, TEXT, 12, 12)
    stale = shutil.copy(index / "vectors.usearch", tmp_path / "stale")
    for seed in range(3):
        (photos / f"{2 * seed:02}.png").unlink()
    write_photo(photos / "new.png", 50)
    index_photos(model, photos, index)
    now = model.search(index, TEXT, 12, 12)
    assert now != whole
    shutil.copy(stale, index / "vectors.usearch")
    assert model.search(index, TEXT, 12, 12) == now
    for damage in (b"", b"no vectors", (index / "vectors.usearch").read_bytes()[:-40]):
        (index / "vectors.usearch").write_bytes(damage)
        assert model.search(index, TEXT, 12, 12) == now
    (index / "vectors.usearch").unlink()
    assert model.search(index, TEXT, 12, 12) == now


def test_a_killed_run_goes_on(checkpoint: Path, photos: Path, tmp_path: Path, model: PixelBert) -> None:
    for seed in range(100, 400):
        write_photo(photos / f"{seed}.png", seed)
    index = tmp_path / "index"
    arguments = ["index", str(photos), "--out", str(index), "--checkpoint", str(checkpoint), "--precision", "fp32"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pixelbert", *arguments, "--device", "cpu"], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if (index / "photos.sqlite").exists() and len_of(index) > 0:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len_of(index)
    assert 0 < before < 320
    done = index_photos(model, photos, index)
    assert (done.photos, done.added) == (320, 320 - before)


def len_of(index: Path) -> int:
    with sqlite3.connect(index / "photos.sqlite") as database:
        try:
            return int(database.execute("SELECT count(*) FROM photos").fetchone()[0])
        except sqlite3.DatabaseError:  # no table yet
            return 0


def test_a_model_without_the_head_scores_every_photo(
    tiny_model: Callable[..., PixelBertForPreTraining], model: PixelBert, photos: Path, tmp_path: Path
) -> None:
    tiny_model(max_position_embeddings=24).save_pretrained(tmp_path / "plain")
    model.processor.save_pretrained(tmp_path / "plain")
    plain = PixelBert.from_pretrained(tmp_path / "plain", "cpu", "fp32")
    index_photos(plain, photos, tmp_path / "index")
    assert not (tmp_path / "index" / "vectors.usearch").exists()
    found = plain.search(tmp_path / "index", TEXT, top=2, shortlist=2)
    assert found == plain.search(tmp_path / "index", TEXT, top=2, shortlist=None)
    with pytest.raises(PixelBertError, match="another checkpoint"):
        model.search(tmp_path / "index", TEXT)
    with pytest.raises(PixelBertError, match="another checkpoint"):
        index_photos(model, photos, tmp_path / "index")


class TestErrors:
    def test_say_what_to_do(self, model: PixelBert, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(PixelBertError, match=r"no photos"):
            index_photos(model, tmp_path / "empty", tmp_path / "index")
        with pytest.raises(PixelBertError, match=r"no photos"):
            index_photos(model, tmp_path / "nowhere", tmp_path / "index")
        with pytest.raises(PixelBertError, match="no index"):
            index_photos(model, photos, photos)
        with pytest.raises(PixelBertError, match="pixelbert index PHOTOS"):
            model.search(tmp_path / "empty", TEXT)
        index_photos(model, photos, tmp_path / "index")
        with pytest.raises(PixelBertError, match="no text"):
            model.search(tmp_path / "index", " ")

    def test_no_database(self, model: PixelBert, photos: Path, tmp_path: Path) -> None:
        index = tmp_path / "index"
        index.mkdir()
        (index / "photos.sqlite").write_bytes(b"this is no database, whatever its name says" * 40)
        for use in (lambda: SearchIndex.open(index), lambda: index_photos(model, photos, index)):
            with pytest.raises(PixelBertError, match=r"damaged, or no database .*move .* away .*photos .* untouched"):
                use()

    def test_nothing_is_removed_when_the_photos_are_away(self, model: PixelBert, photos: Path, tmp_path: Path) -> None:
        """As with a disk that isn't mounted."""
        index_photos(model, photos, tmp_path / "index")
        shutil.rmtree(photos)
        photos.mkdir()
        with pytest.raises(PixelBertError, match="no photos"):
            index_photos(model, photos, tmp_path / "index")
        assert len(SearchIndex.open(tmp_path / "index")) == 20


class TestCommands:
    def test_index_then_search(
        self, checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: PixelBert
    ) -> None:
        (photos / "broken.jpg").write_bytes(b"")
        index = str(tmp_path / "index")
        cli.main(["index", str(photos), "--out", index, "--checkpoint", str(checkpoint), "--precision", "fp32"])
        said = capsys.readouterr().out
        assert "20 photos" in said
        assert "1 left out" in said
        assert "broken.jpg is empty" in said
        cli.main(["index", str(photos), "--out", index, "--checkpoint", str(checkpoint), "--json"])
        done = json.loads(capsys.readouterr().out)
        assert (done["photos"], done["added"], done["skipped"][0]["image"]) == (20, 0, "broken.jpg")

        page = tmp_path / "found.html"
        options = ["--top", "4", "--exact", "--precision", "fp32", "--json", "--out", str(page)]
        cli.main(["search", index, "<b>two dogs</b>", *options])  # the checkpoint is the index's own
        results = json.loads(capsys.readouterr().out)["results"]
        expected = model.search(index, "<b>two dogs</b>", 4, None)
        assert [(r["image"], r["score"]) for r in results] == [(one.image, one.score) for one in expected]
        html = page.read_text()
        assert html.count("<figure>") == 4
        assert "&lt;b&gt;two dogs" in html
        assert "<b>" not in html

    @pytest.mark.parametrize(
        ("options", "said"),
        [(["--top", "0"], "--top is 0"), (["--shortlist", "0"], "--shortlist is 0"), (["--out", "x.png"], "x.png")],
    )
    def test_options_that_make_no_sense(
        self, options: list[str], said: str, model: PixelBert, photos: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        index_photos(model, photos, tmp_path / "index")
        with pytest.raises(SystemExit) as stopped:
            cli.main(["search", str(tmp_path / "index"), TEXT, *options])
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err


def test_features_are_kept_as_they_were_computed(model: PixelBert, photos: Path, tmp_path: Path) -> None:
    index_photos(model, photos, tmp_path / "index")
    index = SearchIndex.open(tmp_path / "index")
    some = index.ids()[:4]
    _, kept = index.read(some, model.model.config.hidden_size)
    fresh = model.encode([index.path(i) for i in some])
    assert kept is not None
    assert torch.equal(kept.grid, fresh.grid)
    for i, n in enumerate(kept.lengths.tolist()):
        assert (kept.values[i, :n] - fresh.values[i, :n]).abs().max() < 1e-5

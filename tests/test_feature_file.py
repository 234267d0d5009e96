"""Files of stored features: killed, wanted by two at once, damaged, on a full disk, of photos that were replaced."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from data_builders import ROOT, encoded, photo
from pixelbert import PixelBertModel, cli
from pixelbert.data import feature_cache
from pixelbert.data.corpus import Corpus
from pixelbert.data.feature_cache import View, build_feature_cache
from pixelbert.data.processing import PixelBertImageProcessor
from pixelbert.data.sources.scenes import resolve_scenes
from pixelbert.errors import PixelBertError
from pixelbert.files import exclusive

TINY = str(ROOT / "recipes" / "tiny.yaml")
OPTIONS = {"data.validation": "[]", "evaluate_every": "0", "epochs": "0.1", "model.freeze_backbone": "true"}
SLOWLY = """
import sys, time
from pixelbert import cli
from pixelbert.data import feature_cache, feature_file
from pixelbert.data.store import PreparedDataset
feature_file.SECONDS_BETWEEN_FLUSHES = 0.0
load = PreparedDataset.load_image
PreparedDataset.load_image = lambda self, row: (time.sleep(0.01), load(self, row))[1]
cli.main(sys.argv[1:])
"""

Build = Callable[[], feature_cache.FeatureCache]


def arguments(folder: Path, train: str, features: Path) -> list[str]:
    options = OPTIONS | {"data.train": train, "model.feature_cache": str(features), "output": str(folder)}
    return ["train", TINY, *(word for name, value in options.items() for word in (f"--{name}", value))]


def values(folder: Path) -> bytes:
    (file,) = folder.glob("*.bf16")
    return file.read_bytes()


def test_an_encoding_that_is_killed_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two real commands: the first is killed half way."""
    train, features = '["scenes:0-100"]', tmp_path / "features"
    first = arguments(tmp_path / "run", train, features)
    killed = subprocess.Popen([sys.executable, "-c", SLOWLY, *first], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while sum(log.read_text().count("\n") for log in features.glob("*.log")) < 3:
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (partial,) = features.glob("*.partial")
    capfd.readouterr()
    cli.main(first)
    said = capfd.readouterr().err
    done = int(said.split("going on after ")[1].split(" of 100 photos")[0])
    assert done >= 48
    assert done % 16 == 0
    assert not partial.exists()
    cli.main(arguments(tmp_path / "undisturbed", train, tmp_path / "others"))
    assert values(features) == values(tmp_path / "others")
    assert sorted(f.suffix for f in features.iterdir()) == [".bf16", ".json", ".lock"]


@pytest.fixture
def build(tmp_path: Path, tiny_model: Callable) -> Build:
    """Builds the features of twelve photos, four at once."""
    model: PixelBertModel = tiny_model().pixelbert
    corpus = Corpus(resolve_scenes(["scenes:0-12"], tmp_path))
    processor = PixelBertImageProcessor(64, 64)
    return lambda: build_feature_cache(model, corpus, processor, tmp_path / "features", batch=4)


def stop_after(monkeypatch: pytest.MonkeyPatch, photos: int) -> None:
    """Have the next encoding fail after so many photos."""
    original, seen = feature_cache.PreparedDataset.load_image, []

    def load(self: feature_cache.PreparedDataset, row: int) -> Image.Image:
        seen.append(row)
        if len(seen) > photos:
            raise PixelBertError("stopped")
        return original(self, row)

    monkeypatch.setattr(feature_cache.PreparedDataset, "load_image", load)


def test_only_what_is_sound_is_gone_on_with(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    build()
    right = values(tmp_path / "features")
    for file in (tmp_path / "features").iterdir():
        file.unlink()
    for _ in range(2):
        with monkeypatch.context() as patch:
            stop_after(patch, 4)
            with pytest.raises(PixelBertError, match="stopped"):
                build()
    (partial,) = (tmp_path / "features").glob("*.partial")
    assert partial.stat().st_size == len(right)
    with partial.open("r+b") as file:  # of the second stretch
        file.seek(len(right) // 2)
        file.write(bytes(64))
    capfd.readouterr()
    build()
    said = " ".join(capfd.readouterr().err.split())
    assert "what was encoded after 4 photos is damaged" in said
    assert "going on after 4 of 12 photos" in said
    assert values(tmp_path / "features") == right


def test_it_goes_on_in_the_precision_that_it_began_in(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that would choose another."""
    monkeypatch.setattr(feature_cache, "best_precision", lambda device: "fp32")
    build()
    right = values(tmp_path / "features")
    for file in (tmp_path / "features").iterdir():
        file.unlink()
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(PixelBertError, match="stopped"):
            build()
    monkeypatch.setattr(feature_cache, "best_precision", lambda device: "bf16")
    build()
    assert values(tmp_path / "features") == right
    (record,) = (tmp_path / "features").glob("*.json")
    assert json.loads(record.read_text())["precision"] == "fp32"


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("damage", ["half zeroed", "cut short"])
def test_a_damaged_file_is_not_used(
    tmp_path: Path, build: Build, capfd: pytest.CaptureFixture[str], damage: str, recorded: bool
) -> None:
    right = build().get([View(9)]).values
    (file,) = (tmp_path / "features").glob("*.bf16")
    whole = file.read_bytes()
    half = len(whole) // 2
    file.write_bytes(whole[:half] + (bytes(len(whole) - half) if damage == "half zeroed" else b""))
    if not recorded:  # as earlier versions left it
        file.with_suffix(".json").unlink()
    capfd.readouterr()
    assert torch.equal(build().get([View(9)]).values, right)
    assert "is damaged, and its photos are encoded again" in " ".join(capfd.readouterr().err.split())
    assert file.read_bytes() == whole


def test_a_sound_file_is_read_and_its_checksum_compared_once(
    tmp_path: Path, build: Build, capfd: pytest.CaptureFixture[str]
) -> None:
    build()
    (file,) = (tmp_path / "features").glob("*.bf16")
    inode = file.stat().st_ino
    os.utime(file, (1, 1))
    for said in ("comparing its checksum", ""):
        capfd.readouterr()
        build()
        assert said in capfd.readouterr().err
    file.with_suffix(".json").unlink()
    for said in ("no checksum on record", ""):
        capfd.readouterr()
        build()
        assert said in capfd.readouterr().err
    assert file.stat().st_ino == inode
    cache = build()
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(PixelBertError, match="cut short meanwhile"):
        cache.get([View(0)])


def test_who_comes_second_waits_and_says_so(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    build()
    (file,) = (tmp_path / "features").glob("*.bf16")
    hidden = file.rename(tmp_path / "made")
    with contextlib.ExitStack() as other:
        other.enter_context(exclusive(file.with_suffix(".lock"), "taken"))

        def finished(seconds: float) -> None:
            hidden.rename(file)
            other.close()

        monkeypatch.setattr("pixelbert.data.derived_file.time", SimpleNamespace(sleep=finished))
        build()
    assert "waiting for it" in " ".join(capfd.readouterr().err.split())


def test_a_full_disk_is_told_before_anything_is_encoded(tmp_path: Path, build: Build) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # bytes
    try:
        with pytest.raises(PixelBertError, match=r"features cannot be written .*features take .*Make room"):
            build()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [f for f in (tmp_path / "features").iterdir() if f.suffix != ".lock"]
    build()


def test_what_earlier_versions_left_is_removed_once_nobody_writes_it(tmp_path: Path, build: Build) -> None:
    folder = tmp_path / "features"
    folder.mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    files = [folder / f"0123456789abcdef.{number}.partial" for number in (ended.pid, os.getpid())]
    fresh = folder / f"0123456789abcdee.{ended.pid}.partial"
    for file in (*files, fresh):
        file.write_bytes(b"features")
    for file in files:
        os.utime(file, (1, 1))
    build()
    assert [file.exists() for file in (*files, fresh)] == [False, True, True]


def test_a_photo_that_was_replaced_stops_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(8):
        (photos / f"{i}.png").write_bytes(encoded(photo(20 * i), "PNG"))
    (photos / "captions.csv").write_text("image,text\n" + "".join(f"{i}.png,photo number {i}\n" for i in range(8)))
    prepared = tmp_path / "prepared"
    prepare = ["prepare", "folder", "--images", str(photos), "--val", "0", "--test", "0", "--output", str(prepared)]
    cli.main(prepare)
    train = f'["{prepared}:train"]'
    changes = ["--batch_size", "8", "--micro_batch_size", "8", "--epochs", "1"]
    stored = arguments(tmp_path / "run", train, tmp_path / "features")
    cli.main([*stored, *changes])
    former = (photos / "3.png").read_bytes()
    (photos / "3.png").write_bytes(encoded(photo(7), "PNG"))  # of the same size in pixels
    for name, options in (
        ("on features", ["--model.feature_cache", str(tmp_path / "features")]),
        ("on photos", ["--model.feature_cache", "null"]),
    ):
        capfd.readouterr()
        with pytest.raises(SystemExit):
            cli.main([*arguments(tmp_path / name, train, Path()), *changes, *options])
        assert "3.png) was replaced since" in " ".join(capfd.readouterr().err.split())
    with pytest.raises(PixelBertError, match=r"image .*3\.png.* was replaced since the data set was prepared"):
        Corpus([f"{prepared}:train"]).load_image(3)
    (photos / "3.png").write_bytes(former)  # the same again, at another time
    cli.main([*arguments(tmp_path / "again", train, tmp_path / "features"), *changes])
    assert len(list((tmp_path / "features").glob("*.bf16"))) == 1
    cli.main([*prepare, "--overwrite"])
    measure = ["evaluate", str(tmp_path / "run" / "final"), "--data", str(prepared), "--split", "train"]
    measure += ["--task", "retrieval", "--allow-trained", "true", "--output", str(tmp_path / "measured")]
    cli.main(measure)
    (photos / "3.png").unlink()
    cli.main([*arguments(tmp_path / "gone", train, tmp_path / "features"), *changes])  # its features are there
    assert len(list((tmp_path / "features").glob("*.bf16"))) == 1
    (photos / "3.png").write_bytes(encoded(photo(9), "PNG"))
    cli.main([*prepare, "--overwrite"])
    capfd.readouterr()
    with pytest.raises(SystemExit):
        cli.main(measure)  # which has scores of the former photo
    assert "belongs to another evaluation: photos: there" in " ".join(capfd.readouterr().err.split())
    cli.main([*arguments(tmp_path / "new", train, tmp_path / "features"), *changes])
    assert len(list((tmp_path / "features").glob("*.bf16"))) == 2

"""From raw files to a prepared data set: bad items are listed, too many refused, nothing half-done stays."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from data_builders import encoded, karpathy_data, photo, read_lines, write_json, write_photos
from pixelbert.data.prepare import prepare
from pixelbert.data.sources import SOURCES, Karpathy
from pixelbert.data.sources.common import ImageRecord, Reading, Skip
from pixelbert.data.sources.folder import Folder
from pixelbert.data.store import PreparedDataset
from pixelbert.errors import PixelBertError

COUNT = 150  # one bad image of these is below 1 %


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), COUNT)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def karpathy(tmp_path: Path, data: Any, images: Path, **options: Any) -> Karpathy:
    return Karpathy(json=write_json(tmp_path / "raw.json", data), images=images, **options)


def test_a_clean_data_set(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = prepare(karpathy(tmp_path, karpathy_data(COUNT), photos), tmp_path / "set")
    data = PreparedDataset.open(tmp_path / "set")
    assert data.splits == ["train", "val", "test"]
    assert {split: len(data.examples(split)) for split in data.splits} == {
        "train": 246,
        "val": 30,
        "test": 24,
    }
    assert data.examples("val")[0] == {
        "example_id": "tiny:10",
        "image_ids": ["tiny:5"],
        "text": "Photo 5, seen 0 times .",
    }
    assert data.load_image(data.image_row["tiny:5"]).size == (40, 32)
    assert read_lines(tmp_path / "set" / "skipped.jsonl") == []
    assert data.manifest["sources"][0]["sha256"]
    assert data.manifest["options"]["restval"] == "restval"
    assert not summary.skipped
    assert "246" in capsys.readouterr().out


def change_image(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any], Path], None]:
    return lambda data, _: change(data["images"][77])


def put_image(content: bytes) -> Callable[[dict[str, Any], Path], None]:
    def apply(data: dict[str, Any], folder: Path) -> None:
        (folder / "bad.jpg").write_bytes(content)
        data["images"][77]["filename"] = "bad.jpg"

    return apply


def replace_entry(data: dict[str, Any], folder: Path) -> None:
    data["images"][77] = "77.jpg"


BAD_IMAGES = {
    "truncated": (put_image(encoded(photo(size=(300, 300)), "JPEG")[:700]), "unusable image"),
    "zero bytes": (put_image(b""), "unusable image"),
    "text": (put_image(b"not a photo"), "unusable image"),
    "one pixel": (put_image(encoded(Image.new("RGB", (1, 1)), "PNG")), "unusable image"),
    "30,000 pixels long": (put_image(encoded(Image.new("RGB", (30_000, 1)), "PNG")), "unusable image"),
    "missing": (change_image(lambda i: i.update(filename="gone.jpg")), "missing image file"),
    "leaves": (
        change_image(lambda i: i.update(filename="../photos0/1.jpg")),
        "path outside the image folder",
    ),
    "leaves inside": (
        change_image(lambda i: i.update(filepath="a/../../b")),
        "path outside the image folder",
    ),
    "absolute": (change_image(lambda i: i.update(filename="/etc/hosts")), "path outside the image folder"),
    "null": (change_image(lambda i: i.update(filename="a\0.jpg")), "path outside the image folder"),
    "duplicate id": (change_image(lambda i: i.update(imgid=3)), "duplicate image id"),
    "duplicate file": (change_image(lambda i: i.update(filename="./3.jpg")), "duplicate image file"),
    "bad split": (change_image(lambda i: i.update(split="images")), "bad split name"),
    "split as path": (change_image(lambda i: i.update(split="../x")), "bad split name"),
    "no split": (change_image(lambda i: i.pop("split")), "malformed image entry"),
    "no file name": (change_image(lambda i: i.pop("filename")), "malformed image entry"),
    "sentences are text": (change_image(lambda i: i.update(sentences="hello")), "malformed image entry"),
    "id is a list": (change_image(lambda i: i.update(imgid=[1])), "malformed image entry"),
    "no object": (replace_entry, "malformed image entry"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_skipped_with_its_sentences(tmp_path: Path, photos: Path, name: str) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in photos.iterdir():
        os.link(path, folder / path.name)
    spoil, problem = BAD_IMAGES[name]
    data = karpathy_data(COUNT)
    spoil(data, folder)
    summary = prepare(karpathy(tmp_path, data, folder), tmp_path / "set")
    assert dict(summary.skipped) == {problem: 1}
    (entry,) = read_lines(tmp_path / "set" / "skipped.jsonl")
    assert (entry["where"], entry["problem"], entry["item"]) == ("images[77]", problem, "image")
    assert entry["file"] == str(tmp_path / "raw.json")
    prepared = PreparedDataset.open(tmp_path / "set")
    assert len(prepared.images) == COUNT - 1
    assert sum(len(prepared.examples(split)) for split in prepared.splits) == 2 * (COUNT - 1)
    with pytest.raises(PixelBertError, match=r"images\[77\]") as caught:
        prepare(karpathy(tmp_path, data, folder), tmp_path / "strict", strict=True)
    assert problem in str(caught.value)
    assert not list(tmp_path.glob("*strict*"))


BAD_SENTENCES: dict[str, tuple[dict[str, Any], str]] = {
    "empty": ({"raw": ""}, "empty sentence"),
    "white space": ({"raw": " \n\t\u3000"}, "empty sentence"),
    "no word": ({"raw": "... !"}, "empty sentence"),
    "number": ({"raw": 7}, "sentence is not text"),
    "null": ({"raw": None}, "sentence is not text"),
    "10,000 words": ({"raw": "word " * 10_000}, "sentence too long"),
    "one word of 10,000 letters": ({"raw": "a" * 10_000}, "sentence too long"),
    "control character": ({"raw": "a \x00 cat"}, "control character"),
    "lone surrogate": ({"raw": "a \ud800 cat"}, "control character"),
    "duplicate id": ({"sentid": 4}, "duplicate sentence id"),
    "id is null": ({"sentid": None}, "malformed sentence entry"),
}


@pytest.mark.parametrize("name", BAD_SENTENCES)
def test_a_bad_sentence_is_skipped_and_its_image_kept(tmp_path: Path, photos: Path, name: str) -> None:
    data = karpathy_data(COUNT)
    change, problem = BAD_SENTENCES[name]
    data["images"][77]["sentences"][1].update(change)
    summary = prepare(karpathy(tmp_path, data, photos), tmp_path / "set")
    (entry,) = read_lines(tmp_path / "set" / "skipped.jsonl")
    assert (entry["where"], entry["problem"]) == ("images[77].sentences[1]", problem)
    assert dict(summary.skipped) == {problem: 1}
    prepared = PreparedDataset.open(tmp_path / "set")
    assert len(prepared.images) == COUNT
    assert sum(len(prepared.examples(split)) for split in prepared.splits) == 2 * COUNT - 1
    data["images"][77]["sentences"].pop(0)
    summary = prepare(karpathy(tmp_path, data, photos), tmp_path / "none left")
    assert summary.left_out == {"image without a sentence": 1}
    assert len(PreparedDataset.open(tmp_path / "none left").images) == COUNT - 1


def test_odd_photos_are_kept_and_measured_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "0.jpg": encoded(Image.new("CMYK", (40, 32)), "JPEG"),
        "1.jpg": encoded(Image.new("I;16", (40, 32)), "PNG"),
        "2.jpg": encoded(photo().quantize(8), "PNG"),
        "3.jpg": encoded(photo(size=(32, 40)), "JPEG", exif=exif),
        "4.jpg": encoded(photo(), "GIF", save_all=True, append_images=[photo(9)]),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for embed in (False, True):
        out = tmp_path / f"set{embed}"
        assert not prepare(karpathy(tmp_path, karpathy_data(5), tmp_path), out, embed_images=embed).skipped
        data = PreparedDataset.open(out)
        assert data.sizes.tolist() == [[40, 32]] * 5
        assert all(data.load_image(row).size == (40, 32) for row in range(5))
    for name in files:
        (tmp_path / name).unlink()
    assert data.load_image(3).size == (40, 32)  # the embedded one needs no files


def test_text_is_kept_on_one_line(tmp_path: Path, photos: Path) -> None:
    data = karpathy_data(1)
    data["images"][0]["sentences"][0]["raw"] = "  Un café \u00e0\n\tParis 👩‍👩‍👧  "
    prepare(karpathy(tmp_path, data, photos), tmp_path / "set")
    assert PreparedDataset.open(tmp_path / "set").examples("train")[0]["text"] == "Un café à Paris 👩‍👩‍👧"


def test_one_percent_is_allowed_and_more_is_not(tmp_path: Path, photos: Path) -> None:
    data = karpathy_data(100)
    data["images"][7]["filename"] = "gone.jpg"
    prepare(karpathy(tmp_path, data, photos), tmp_path / "fits")
    data["images"][8]["filename"] = "gone too.jpg"
    with pytest.raises(PixelBertError, match=r"2 of 100 images \(2.0%\) are bad") as caught:
        prepare(karpathy(tmp_path, data, photos), tmp_path / "set")
    report = tmp_path / "set.skipped.jsonl"
    assert str(report) in str(caught.value)
    assert "images[7]" in str(caught.value)
    assert [entry["where"] for entry in read_lines(report)] == ["images[7]", "images[8]"]
    assert {path.name for path in tmp_path.iterdir()} == {"raw.json", "fits", "set.skipped.jsonl"}
    prepare(karpathy(tmp_path, data, photos), tmp_path / "set", max_bad=0.02)
    assert not report.exists()


def test_a_wrong_image_folder_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(PixelBertError, match=r"none of the 20 images is in .*check --images"):
        prepare(karpathy(tmp_path, karpathy_data(20), tmp_path), tmp_path / "set")
    with pytest.raises(PixelBertError, match="not a folder"):
        prepare(karpathy(tmp_path, karpathy_data(20), tmp_path / "gone"), tmp_path / "set")


COCO = {
    "images": [{"id": 1, "file_name": "0.jpg"}],
    "annotations": [{"id": 1, "image_id": 1, "caption": "a"}],
}
WHOLE_FILES = {
    "empty": (b"", "is empty"),
    "cut short": (
        json.dumps(karpathy_data(9), indent=1).encode()[:500],
        r"line \d+, column \d+: .*cut short",
    ),
    "cut in a string": (b'{"dataset": "ti', r"line 1, column 13: .*cut short"),
    "not JSON": (b'{"dataset": tiny}\n', r"line 1, column 13: this is not JSON"),
    "not UTF-8": (b'{"dataset":\n "\xff"}', "line 2: byte 15 is not UTF-8"),
    "array": (b"[1]", "an object at the top, and found an array"),
    "no images": (b'{"dataset": "a"}', "key 'images' is missing"),
    "no name": (b'{"images": [{"sentences": []}]}', "key 'dataset' is missing"),
    "images are text": (b'{"dataset": "a", "images": "b"}', "'images' is of type str"),
    "no image": (b'{"dataset": "a", "images": []}', "empty array"),
    "bad name": (b'{"dataset": "../a", "images": [1]}', "cannot name a data set"),
    "COCO's": (
        json.dumps(COCO).encode(),
        "looks like COCO captions JSON: use `pixelbert prepare coco-captions`",
    ),
    "Visual Genome's": (b'[{"id": 1, "regions": []}]', "pixelbert prepare visual-genome"),
    "nested": (b"[" * 100_000, "not the JSON"),
    "huge number": (b'{"a": ' + b"9" * 5000 + b"}", "not the JSON"),
}


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_a_file_that_is_wrong_as_a_whole(tmp_path: Path, name: str) -> None:
    content, message = WHOLE_FILES[name]
    (tmp_path / "raw.json").write_bytes(content)
    with pytest.raises(PixelBertError, match=message) as caught:
        prepare(Karpathy(json=tmp_path / "raw.json", images=tmp_path), tmp_path / "set")
    assert "raw.json" in str(caught.value) or name == "bad name"
    assert [path.name for path in tmp_path.iterdir()] == ["raw.json"]


def test_twice_gives_the_same_bytes(tmp_path: Path, photos: Path) -> None:
    data = karpathy_data(COUNT)
    data["images"][7]["filename"] = "gone.jpg"
    for name in ("one", "two"):
        prepare(karpathy(tmp_path, data, photos), tmp_path / name)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {path.name for path in (tmp_path / "two").iterdir()} > {"dataset.json", "images-00000.parquet"}
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_limit_and_shares_are_checked(tmp_path: Path, photos: Path) -> None:
    source = karpathy(tmp_path, karpathy_data(COUNT), photos)
    prepare(source, tmp_path / "set", limit=12)
    assert len(PreparedDataset.open(tmp_path / "set").images) == 12
    with pytest.raises(PixelBertError, match="limit"):
        prepare(source, tmp_path / "other", limit=0)
    with pytest.raises(PixelBertError, match="max_bad"):
        prepare(source, tmp_path / "other", max_bad=5)


class Interrupted(Karpathy):
    """Yields half of the data set and then does as it is told."""

    def read(self) -> Reading:
        reading = super().read()

        def records() -> Iterator[ImageRecord | Skip]:
            for number, record in enumerate(reading.records):
                if number == 60:
                    raise KeyboardInterrupt
                yield record

        return Reading(reading.name, records(), reading.total)


def test_ctrl_c_leaves_nothing(tmp_path: Path, photos: Path) -> None:
    source = Interrupted(json=write_json(tmp_path / "raw.json", karpathy_data(COUNT)), images=photos)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["raw.json"]


SLOW = """
import sys, time
from pathlib import Path
from pixelbert.data import prepare as module
check = module.check_image
module.check_image = lambda *a: (time.sleep(0.2), check(*a))[1]
from pixelbert.data.sources import Karpathy
module.prepare(Karpathy(json=Path(sys.argv[1]), images=Path(sys.argv[2])), Path(sys.argv[3]))
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_process_leaves_no_data_set(tmp_path: Path, photos: Path, how: signal.Signals) -> None:
    source = karpathy(tmp_path, karpathy_data(COUNT), photos)
    output = tmp_path / "set"
    process = subprocess.Popen([sys.executable, "-c", SLOW, source.json, photos, output], stderr=subprocess.DEVNULL)
    partial = tmp_path / ".set.partial"
    deadline = time.monotonic() + 60
    while not partial.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert partial.exists()
    process.send_signal(how)
    process.wait(30)
    assert not output.exists()
    assert partial.exists() == (how == signal.SIGKILL)  # nobody can tidy up after a kill -9 but the next one
    prepare(source, output)
    assert {path.name for path in tmp_path.iterdir()} == {"raw.json", "set"}


KILLED = """
import os, signal, sys
from pathlib import Path
from pixelbert.data.sources import Karpathy
from pixelbert.data.prepare import prepare
rename = Path.rename
def kill(self, target):  # between the two renames: the old data set is out of the way, the new one not in place
    if str(self).endswith(".partial"):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)
Path.rename = kill
prepare(Karpathy(json=Path(sys.argv[1]), images=Path(sys.argv[2])), Path(sys.argv[3]), overwrite=True)
"""


def test_a_data_set_survives_a_kill_while_it_is_replaced(tmp_path: Path, photos: Path) -> None:
    source = karpathy(tmp_path, karpathy_data(COUNT), photos)
    output = tmp_path / "set"
    prepare(source, output)
    before = (output / "dataset.json").read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, source.json, photos, output], stderr=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL
    assert not output.exists()
    with pytest.raises(PixelBertError, match="already holds a prepared data set"):
        prepare(source, output)  # which puts it back first
    assert (output / "dataset.json").read_bytes() == before
    prepare(source, output, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"raw.json", "set"}


def test_a_name_may_have_any_character_that_files_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """macOS writes a narrow no-break space into the names of screenshots."""
    names = ["Screenshot 10.00.00\u202fAM.png", "a\u00a0b.png", "a\u200db.png", "\u001b[31mred.png"]
    for name in names:
        (tmp_path / name).write_bytes(encoded(photo(), "PNG"))
    rows = "".join(json.dumps({"image": name, "caption": "a photo"}) + "\n" for name in names)
    (tmp_path / "captions.jsonl").write_text(rows)
    prepare(Folder(images=tmp_path, val=0, test=0), tmp_path / "set", embed_images=True)
    assert len(PreparedDataset.open(tmp_path / "set").images) == len(names)
    assert "\x1b" not in capsys.readouterr().out


def test_every_source_is_listed() -> None:
    captions = ["flickr30k", "coco", "karpathy", "coco-captions", "visual-genome", "folder"]
    tasks = ["visual-genome-qa", "vqa2", "vqa-csv", "nlvr2"]
    assert set(SOURCES) == {*captions, *tasks}


def test_restval_stays_apart_or_is_merged(tmp_path: Path, photos: Path) -> None:
    data = karpathy_data(20)
    for item in data["images"][:3]:
        item.update(split="restval", cocoid=item["imgid"] + 1000)
    prepare(karpathy(tmp_path, data, photos), tmp_path / "apart")
    assert PreparedDataset.open(tmp_path / "apart").splits == ["train", "restval", "val", "test"]
    prepare(karpathy(tmp_path, data, photos, restval="train", name="coco"), tmp_path / "merged")
    merged = PreparedDataset.open(tmp_path / "merged")
    assert merged.splits == ["train", "val", "test"]
    assert merged.examples("train")[0]["image_ids"] == ["coco:1000"]

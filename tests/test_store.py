"""The prepared form: written whole or not at all, read quickly, silently and never stale."""

import json
import os
import pickle
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_builders import encoded, photo
from pixelbert.data import writer as writer_module
from pixelbert.data.images import ImageError
from pixelbert.data.store import EXAMPLE_SCHEMAS, PreparedDataset
from pixelbert.data.writer import DatasetWriter
from pixelbert.errors import PixelBertError
from pixelbert.files import file_sha256


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    return cache


def write(folder: Path, count: int = 3, text: str = "photo", overwrite: bool = False, embed: bool = False) -> Path:
    with DatasetWriter(folder, name="tiny", overwrite=overwrite) as writer:
        for number in range(count):
            data = encoded(photo(number), "PNG")
            path = folder.parent / f"{number}.png"
            path.write_bytes(data)
            source = {"data": data} if embed else {"path": str(path)}
            writer.add_image(f"tiny:{number}", width=40, height=32, **source)
            writer.add_example(
                "test" if number == 1 else "train", f"tiny:{number}", [f"tiny:{number}"], f"{text} {number}"
            )
    return folder


@pytest.mark.parametrize("embed", [False, True])
def test_what_is_written_is_read(tmp_path: Path, embed: bool) -> None:
    data = PreparedDataset.open(write(tmp_path / "set", embed=embed))
    assert (data.name, data.splits) == ("tiny", ["train", "test"])
    assert data.manifest["counts"]["splits"] == {
        "train": {"images": 2, "examples": 2},
        "test": {"images": 1, "examples": 1},
    }
    assert data.image_row == {"tiny:0": 0, "tiny:1": 1, "tiny:2": 2}
    assert data.sizes.tolist() == [[40, 32]] * 3
    assert data.sizes.dtype == "int32"
    assert data.examples("test")[0] == {"example_id": "tiny:1", "image_ids": ["tiny:1"], "text": "photo 1"}
    assert data.load_image(2).getpixel((0, 0)) == (20, 2, 200)
    again = pickle.loads(pickle.dumps(data))  # data loader workers get it so
    assert again.load_image(2).tobytes() == data.load_image(2).tobytes()


def test_a_path_may_be_relative_to_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (tmp_path / "photo.png").write_bytes(encoded(photo(9), "PNG"))
    with DatasetWriter(folder, name="tiny") as writer:
        writer.add_image("tiny:0", path="../photo.png", width=40, height=32)
        writer.add_example("val", "tiny:0", ["tiny:0"], "a photo")
    assert PreparedDataset.open(folder).load_image(0).size == (40, 32)


def test_reading_is_quick_silent_and_leaves_the_folder_alone(
    tmp_path: Path, own_cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    folder.chmod(0o555)
    capfd.readouterr()
    started = time.perf_counter()
    data = PreparedDataset.open(folder)
    assert len(data.examples("train")) == 2
    assert time.perf_counter() - started < 1
    assert capfd.readouterr() == ("", "")
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]} == before
    assert len(list(own_cache.rglob("*.arrow"))) == 2
    assert not list(own_cache.rglob("*.partial"))


def test_a_rewritten_folder_is_not_served_stale(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", text="older")
    stamp = {path.name: path.stat() for path in folder.iterdir()}
    assert PreparedDataset.open(folder).examples("train")[0]["text"] == "older 0"
    write(folder, text="newer", overwrite=True)
    for path in folder.iterdir():  # even under the very times of the old one
        os.utime(path, ns=(stamp[path.name].st_atime_ns, stamp[path.name].st_mtime_ns))
    assert PreparedDataset.open(folder).examples("train")[0]["text"] == "newer 0"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("damage", ["half zeroed", "cut short", "from an earlier version"])
def test_a_damaged_copy_in_the_cache_is_made_again(tmp_path: Path, own_cache: Path, damage: str) -> None:
    folder = write(tmp_path / "set", count=40)
    texts = PreparedDataset.open(folder).examples("train")["text"][:]
    (copy,) = own_cache.rglob("train-*.arrow")
    whole = copy.read_bytes()
    half = len(whole) // 2
    if damage == "from an earlier version":
        copy.with_suffix(".json").unlink()
    else:
        copy.unlink()  # by which the one that is mapped stays as it is
        copy.write_bytes(whole[:half] + (bytes(len(whole) - half) if damage == "half zeroed" else b""))
    assert PreparedDataset.open(folder).examples("train")["text"][:] == texts
    assert copy.read_bytes() == whole


def test_large_tables_are_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module._Table, "GROUP_ROWS", 2)
    monkeypatch.setattr(writer_module._Table, "SHARD_ROWS", 4)
    folder = write(tmp_path / "set", count=11)
    assert len(list(folder.glob("images-*.parquet"))) == 3
    data = PreparedDataset.open(folder)
    assert data.images["image_id"][:] == [f"tiny:{number}" for number in range(11)]
    assert len(data.examples("train")) == 10


def test_what_is_no_prepared_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PixelBertError, match="does not exist"):
        PreparedDataset.open(tmp_path / "gone")
    (tmp_path / "other").mkdir()
    with pytest.raises(PixelBertError, match="not a prepared data set"):
        PreparedDataset.open(tmp_path / "other")
    for text, message in (
        ("{", "cannot be read"),
        ("[]", "not a pixelbert"),
        ('{"version": 1}', "lacks 'name'"),
    ):
        (tmp_path / "other" / "dataset.json").write_text(text)
        with pytest.raises(PixelBertError, match=message):
            PreparedDataset.open(tmp_path / "other")


def test_damage_is_found_on_opening(tmp_path: Path) -> None:
    folder = write(tmp_path / "set")
    manifest = json.loads((folder / "dataset.json").read_text())
    shard = folder / "train-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(PixelBertError, match="bytes where"):
        PreparedDataset.open(folder)
    pq.write_table(pa.table({"example_id": ["a"], "image_ids": [["b"]]}), shard)
    manifest["files"][shard.name]["bytes"] = shard.stat().st_size
    (folder / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(PixelBertError, match="lacks the column 'text'"):
        PreparedDataset.open(folder).examples("train")
    shard.unlink()
    with pytest.raises(PixelBertError, match="is missing"):
        PreparedDataset.open(folder)
    (folder / "dataset.json").write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(PixelBertError, match="version 99"):
        PreparedDataset.open(folder)


def test_errors_name_splits_and_images(tmp_path: Path) -> None:
    data = PreparedDataset.open(write(tmp_path / "set"))
    with pytest.raises(PixelBertError, match="no split 'val': it has train, test"):
        data.examples("val")
    (tmp_path / "0.png").unlink()
    with pytest.raises(ImageError, match=r"image tiny:0 of .*0\.png.*does not exist.*prepare the data set again"):
        data.load_image(0)
    (tmp_path / "1.png").write_bytes(encoded(photo(1, (50, 32)), "PNG"))
    with pytest.raises(ImageError, match="is 50 x 32 but was 40 x 32"):
        data.load_image(1)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail_half_way(folder: Path, overwrite: bool) -> None:
        with DatasetWriter(folder, name="tiny", overwrite=overwrite) as writer:
            writer.add_image("tiny:0", path="/x.png", width=40, height=32)
            raise error

    with pytest.raises(error):
        fail_half_way(tmp_path / "new" / "set", False)
    assert list(tmp_path.iterdir()) == []
    folder = write(tmp_path / "set", text="older")
    with pytest.raises(error):
        fail_half_way(folder, True)
    assert PreparedDataset.open(folder).examples("train")[0]["text"] == "older 0"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(PixelBertError, match=r"cannot be written \(No space left"),
        DatasetWriter(tmp_path / "set", name="a"),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_only_a_prepared_data_set_is_replaced(tmp_path: Path) -> None:
    folder = write(tmp_path / "set")
    with pytest.raises(PixelBertError, match="--overwrite"):
        write(folder)
    write(folder, text="newer", overwrite=True)
    (folder / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(PixelBertError, match=r"holiday\.jpg"):
        write(folder, overwrite=True)
    assert (folder / "holiday.jpg").exists()
    other = tmp_path / "other"
    other.mkdir()
    write(other)  # an empty folder is as good as none
    (tmp_path / "third").mkdir()
    (tmp_path / "third" / "note.txt").write_text("mine")
    with pytest.raises(PixelBertError, match="not a prepared data set"):
        write(tmp_path / "third", overwrite=True)
    with pytest.raises(PixelBertError, match="is a file"):
        write(tmp_path / "third" / "note.txt", overwrite=True)


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "set", name="first") as first:
        with (
            pytest.raises(PixelBertError, match="another process"),
            DatasetWriter(tmp_path / "set", name="second"),
        ):
            pass
        first.add_image("first:0", path="/x.png", width=40, height=32)
        first.add_example("train", "first:0", ["first:0"], "a photo")
    assert PreparedDataset.open(tmp_path / "set").name == "first"


@pytest.mark.parametrize("name", ["images", "a-b", "../up", "", "Images", "a b"])
def test_split_names_make_safe_file_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(PixelBertError, match="split"), DatasetWriter(tmp_path / "set", name="tiny") as writer:
        writer.add_example(name, "a", ["b"], "text")


def write_questions(folder: Path) -> Path:
    with DatasetWriter(folder, name="quiz", task="question-answering") as writer:
        writer.manifest = {"answers": ["yes", "no"]}
        writer.add_image("quiz:0", path="/x.png", width=40, height=32)
        writer.add_example("train", "quiz:0", ["quiz:0"], "a dog?", answers=["yes", "Yes"], answer_type="yes/no")
        writer.add_example("test", "quiz:1", ["quiz:0"], "a cat?", answers=[])
    return folder


def test_a_task_has_its_own_columns(tmp_path: Path) -> None:
    data = PreparedDataset.open(write_questions(tmp_path / "quiz"))
    assert (data.task, data.answers) == ("question-answering", ["yes", "no"])
    assert data.examples("train")[0] == {
        "example_id": "quiz:0",
        "image_ids": ["quiz:0"],
        "text": "a dog?",
        "answers": ["yes", "Yes"],
        "answer_type": "yes/no",
        "question_type": None,
    }
    assert data.examples("test")[0]["answers"] == []
    with DatasetWriter(tmp_path / "pairs", name="pairs", task="reasoning") as writer:
        for image_id in ("a", "b"):
            writer.add_image(image_id, path=f"/{image_id}.png", width=40, height=32)
        for number, label in enumerate((True, False, None)):
            writer.add_example("dev", f"pairs:{number}", ["a", "b"], "text", label=label)
        with pytest.raises(TypeError, match="no column answers"):
            writer.add_example("dev", "pairs:3", ["a", "b"], "text", answers=[])
    pairs = PreparedDataset.open(tmp_path / "pairs")
    assert pairs.examples("dev")["label"][:] == [True, False, None]
    with pytest.raises(PixelBertError, match="its task is reasoning: prepare one for question answering"):
        _ = pairs.answers


def test_a_task_that_is_not_known_or_lacks_its_answers_is_refused(tmp_path: Path) -> None:
    path = write_questions(tmp_path / "quiz") / "dataset.json"
    manifest = json.loads(path.read_text())
    for change, message in (
        ({"task": "dancing"}, "for the task 'dancing'.*update pixelbert"),
        ({"answers": None}, "lacks 'answers'"),
        ({"answers": ["yes", 2]}, "lacks 'answers'"),
    ):
        path.write_text(json.dumps(manifest | change))
        with pytest.raises(PixelBertError, match=message):
            PreparedDataset.open(tmp_path / "quiz")
    captions = write(tmp_path / "set") / "dataset.json"
    older = json.loads(captions.read_text())
    del older["task"]
    captions.write_text(json.dumps(older))
    assert PreparedDataset.open(tmp_path / "set").task == "captions"


def test_a_table_that_unpacks_to_gigabytes_is_refused_before_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DatasetWriter(tmp_path / "set", name="t") as writer:
        writer.add_image("t:0", data=b"x", width=40, height=32)
        writer.add_example("train", "t:0", ["t:0"], "a photo")
    path = tmp_path / "set" / "train-00000.parquet"
    schema = pa.schema([pa.field(field.name, field.type) for field in EXAMPLE_SCHEMAS["captions"]])
    rows = {"example_id": [f"t:{n}" for n in range(10)], "image_ids": [["t:0"]] * 10, "text": ["a" * 10**7] * 10}
    # One page, which has to be unpacked whole for its first row.
    options: Any = {"compression": "zstd", "data_page_size": 2**31 - 1, "use_dictionary": False}
    pq.write_table(pa.table(rows, schema=schema), path, **options)
    manifest = json.loads((tmp_path / "set" / "dataset.json").read_text())
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(manifest))
    data = PreparedDataset.open(tmp_path / "set")
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *args, **options: pytest.fail("unpacked"))
    with pytest.raises(PixelBertError, match="unpacks to more than 1000 times its size"):
        data.examples("train")

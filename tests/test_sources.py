"""COCO captions, Visual Genome with its leak filter, a user's own folder: from raw files to what is read."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from data_builders import encoded, karpathy_data, photo, read_lines, write_json, write_photos
from pixelbert import cli
from pixelbert.data.prepare import prepare
from pixelbert.data.sources import CocoCaptions, Folder, Karpathy, VisualGenome
from pixelbert.data.sources import streaming as streaming_module
from pixelbert.data.sources.streaming import iter_json_array
from pixelbert.data.store import PreparedDataset
from pixelbert.errors import PixelBertError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def texts(folder: Path, split: str) -> dict[str, str]:
    """The examples of a split: id -> image and text."""
    examples = PreparedDataset.open(folder).examples(split)
    return {row["example_id"]: f"{row['image_ids'][0]} {row['text']}" for row in examples}


def coco_data(count: int) -> dict[str, Any]:
    images = [{"id": 100 + number, "file_name": f"{number}.jpg"} for number in range(count)]
    order = [*range(count), *range(count)]  # the official file does not keep an image's captions together
    notes = [{"id": k, "image_id": 100 + n, "caption": f"photo {n} {k}"} for k, n in enumerate(order)]
    return {"images": images, "annotations": notes}


def test_coco_captions(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    path = write_json(tmp_path / "captions_val2014.json", coco_data(3))
    prepare(CocoCaptions(json=path, images=photos), tmp_path / "set")
    assert texts(tmp_path / "set", "val") == {
        "coco:0": "coco:100 photo 0 0",
        "coco:3": "coco:100 photo 0 3",
        "coco:1": "coco:101 photo 1 1",
        "coco:4": "coco:101 photo 1 4",
        "coco:2": "coco:102 photo 2 2",
        "coco:5": "coco:102 photo 2 5",
    }


def test_coco_captions_bad_items(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 4)
    data = coco_data(4)
    data["annotations"][0]["image_id"] = 999
    del data["annotations"][1]["caption"]
    data["annotations"][2] = 5
    del data["images"][3]["file_name"]
    source = CocoCaptions(json=write_json(tmp_path / "x.json", data), images=photos, split="test")
    prepare(source, tmp_path / "set", max_bad=1)
    found = {entry["where"]: entry["problem"] for entry in read_lines(tmp_path / "set" / "skipped.jsonl")}
    assert found == {
        "annotations[0]": "sentence of an unknown image",
        "annotations[1]": "malformed sentence entry",
        "annotations[2]": "malformed sentence entry",
        "images[3]": "malformed image entry",
        "annotations[3]": "sentence of an unknown image",
        "annotations[7]": "sentence of an unknown image",
    }
    with pytest.raises(PixelBertError, match="give --split"):
        prepare(CocoCaptions(json=tmp_path / "x.json", images=photos), tmp_path / "other")


def test_each_format_knows_the_others(tmp_path: Path) -> None:
    path = write_json(tmp_path / "captions_val2014.json", karpathy_data(2))
    with pytest.raises(PixelBertError, match="use `pixelbert prepare karpathy`"):
        CocoCaptions(json=path, images=tmp_path).read()
    vg = VisualGenome(regions=path, image_data=path, images=tmp_path, allow_leaks=True)
    with pytest.raises(PixelBertError, match="use `pixelbert prepare karpathy`"):
        vg.read()


def test_photos_in_an_excluded_folder_are_left_out(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    path = write_json(tmp_path / "dataset.json", karpathy_data(3))
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / "1.jpg").touch()
    summary = prepare(Karpathy(json=path, images=photos, exclude=[str(shown)]), tmp_path / "set")
    assert summary.left_out == {"image left out by --exclude": 1}
    assert {"tiny:0", "tiny:2"} == kept(tmp_path / "set")
    with pytest.raises(PixelBertError, match="nowhere is no folder"):
        Karpathy(json=path, images=photos, exclude=[str(tmp_path / "nowhere")]).read()
    (shown / "1.jpg").rename(shown / "9.jpg")
    with pytest.raises(PixelBertError, match="leaves nothing out"):
        prepare(Karpathy(json=path, images=photos, exclude=[str(shown)]), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("embed", [False, True])
def test_photos_of_excluded_splits_are_left_out(tmp_path: Path, embed: bool) -> None:
    photos = write_photos(tmp_path / "photos", 12)  # 5 is in val, 7 in test
    path = write_json(tmp_path / "dataset.json", karpathy_data(12))
    measured, exclude = tmp_path / "measured", [f"{tmp_path}/measured:val,test"]
    prepare(Karpathy(json=path, images=photos), measured, embed_images=embed)
    command = ["prepare", "karpathy", "--json", str(path), "--images", str(photos), "--output", str(tmp_path / "set")]
    cli.main([*command, "--exclude", json.dumps(exclude)])
    assert kept(tmp_path / "set") == {f"tiny:{n}" for n in range(12) if n not in (5, 7)}
    manifest = PreparedDataset.open(tmp_path / "set").manifest
    assert manifest["left_out"] == {"image left out by --exclude": 2}
    assert manifest["options"]["exclude"] == exclude
    entry = read_lines(tmp_path / "set" / "skipped.jsonl")[0]
    assert (entry["where"], entry["reason"], entry["bad"]) == ("images[5]", f"5.jpg is in {exclude[0]}", False)


def test_excluded_splits_that_are_none(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 8)
    path = write_json(tmp_path / "dataset.json", karpathy_data(8))
    prepare(Karpathy(json=path, images=photos), tmp_path / "measured")
    for entry, message in (
        ("measured:vall", r"measured has no split 'vall': it has train, val, test"),
        ("measured:", "expected DIR:SPLIT"),
        ("photos:val", "photos is not a prepared data set"),
        ("gone:val", "gone does not exist"),
        ("gone", "gone is no folder with files"),
    ):
        with pytest.raises(PixelBertError, match=message):
            Karpathy(json=path, images=photos, exclude=[f"{tmp_path}/{entry}"]).read()
    others = write_json(tmp_path / "others.json", {"dataset": "tiny", "images": karpathy_data(5)["images"]})
    exclude = [f"{tmp_path}/measured:{splits}" for splits in ("train", "train,val", "val")]  # the first two overlap
    with pytest.raises(PixelBertError, match=rf"^{exclude[2]}: no photo of {others} has .* leaves nothing out"):
        list(Karpathy(json=others, images=photos, exclude=exclude).read().records)


FACTS: list[dict[str, Any]] = [
    {"image_id": 1, "coco_id": 501, "flickr_id": 11, "url": "https://x/VG_100K_2/1.jpg"},
    {"image_id": 2, "coco_id": None, "flickr_id": 22, "url": "https://x/VG_100K/2.jpg"},
    {"image_id": 3, "coco_id": 503, "flickr_id": None, "url": "https://x/VG_100K/3.jpg"},
    {"image_id": 4, "coco_id": None, "flickr_id": None, "url": "https://x/VG_100K/4.jpg"},
]


def vg_source(folder: Path, **options: Any) -> VisualGenome:
    for place in ("VG_100K_2/1", "VG_100K/2", "VG_100K/3", "VG_100K_2/4"):  # 4 is not where its address says
        path = folder / "vg" / f"{place}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(int(path.stem)), "JPEG"))
    regions = [
        {
            "id": n,
            "regions": [{"region_id": 10 * n + k, "image_id": n, "phrase": f"thing {n} {k}"} for k in range(3)],
        }
        for n in range(1, 5)
    ]
    return VisualGenome(
        regions=write_json(folder / "region_descriptions.json", regions),
        image_data=write_json(folder / "image_data.json", FACTS),
        images=folder / "vg",
        **options,
    )


def kept(folder: Path) -> set[str]:
    return set(PreparedDataset.open(folder).image_row)


def test_visual_genome_without_exclude_is_an_explicit_choice(tmp_path: Path) -> None:
    with pytest.raises(PixelBertError, match=r"--exclude.*--allow-leaks"):
        prepare(vg_source(tmp_path), tmp_path / "set")
    prepare(vg_source(tmp_path, allow_leaks=True), tmp_path / "set")
    assert kept(tmp_path / "set") == {"vg:1", "vg:2", "vg:3", "vg:4"}
    assert texts(tmp_path / "set", "train")["vg:41"] == "vg:4 thing 4 1"
    data = PreparedDataset.open(tmp_path / "set")
    assert [Path(path).parent.name for path in data.images["path"]] == [
        "VG_100K_2",
        "VG_100K",
        "VG_100K",
        "VG_100K_2",
    ]
    both = vg_source(tmp_path, allow_leaks=True, exclude=[tmp_path / "set"])
    with pytest.raises(PixelBertError, match="contradict"):
        both.read()


def test_visual_genome_1_0_calls_every_number_id(tmp_path: Path) -> None:
    source = vg_source(tmp_path, allow_leaks=True)
    facts = [{"id" if key == "image_id" else key: value for key, value in row.items()} for row in FACTS]
    regions = [{"id": n, "regions": [{"id": 10 * n, "image": n, "phrase": f"a thing {n}"}]} for n in range(1, 5)]
    write_json(source.image_data, facts)
    write_json(source.regions, regions)
    prepare(source, tmp_path / "set", strict=True)
    assert texts(tmp_path / "set", "train") == {f"vg:{10 * n}": f"vg:{n} a thing {n}" for n in range(1, 5)}
    exclude = [write_json(tmp_path / "e.json", {"images": [{"id": 503}]})]
    prepare(vg_source(tmp_path, exclude=exclude), tmp_path / "without", overwrite=True)
    write_json(source.image_data, facts)
    assert kept(tmp_path / "without") == {"vg:1", "vg:2", "vg:4"}  # known as COCO's all the same


def coco_karpathy() -> dict[str, Any]:
    data = karpathy_data(3, sentences=1) | {"dataset": "coco"}
    for item, cocoid, split in zip(data["images"], (501, 503, 999), ("test", "restval", "val"), strict=True):
        item.update(cocoid=cocoid, split=split)
    return data


def flickr_karpathy() -> dict[str, Any]:
    data = karpathy_data(2, sentences=1) | {"dataset": "flickr30k"}
    data["images"][0].update(filename="22_abc.jpg", split="val")
    data["images"][1].update(filename="11.jpg", split="train")
    return data


@pytest.mark.parametrize("embed", [None, False, True])
def test_visual_genome_leaves_evaluation_images_out(tmp_path: Path, embed: bool | None) -> None:
    exclude = []
    for name, data in (("coco", coco_karpathy()), ("flickr", flickr_karpathy())):
        path = write_json(tmp_path / f"{name}.json", data)
        if embed is not None:  # a prepared data set instead of the JSON
            photos = write_photos(tmp_path / f"{name}_photos", 3)
            for item in data["images"]:
                (photos / item["filename"]).write_bytes((photos / "0.jpg").read_bytes() + b"\0" * item["imgid"])
            prepare(Karpathy(json=path, images=photos), tmp_path / name, embed_images=embed)
            path = tmp_path / name
        exclude.append(path)
    summary = prepare(vg_source(tmp_path, exclude=exclude), tmp_path / "set")
    assert kept(tmp_path / "set") == {"vg:3", "vg:4"}  # 503 is in restval, and 11 in train
    assert summary.left_out == {"image of an evaluation set": 2}
    assert not summary.skipped
    assert "left out: 2 x image of an evaluation set" in str(summary)
    reasons = [entry["reason"] for entry in read_lines(tmp_path / "set" / "skipped.jsonl")]
    assert reasons == ["vg:1 is COCO's image 501", "vg:2 is Flickr's photo 22"]


@pytest.mark.parametrize(
    "data",
    [
        {"questions": [{"image_id": 503, "question": "?", "question_id": 1}]},
        {"annotations": [{"image_id": 503, "answers": []}]},
        {"images": [{"id": 503, "file_name": "a.jpg"}], "annotations": []},
    ],
)
def test_vqa_and_coco_files_count_whole(tmp_path: Path, data: dict[str, Any]) -> None:
    prepare(vg_source(tmp_path, exclude=[write_json(tmp_path / "e.json", data)]), tmp_path / "set")
    assert kept(tmp_path / "set") == {"vg:1", "vg:2", "vg:4"}


def test_an_exclude_that_excludes_nothing_is_an_error(tmp_path: Path) -> None:
    for data in ({}, [], {"dataset": "coco", "images": [{"cocoid": 1, "split": "train"}]}):
        with pytest.raises(PixelBertError, match="no evaluation image"):
            vg_source(tmp_path, exclude=[write_json(tmp_path / "e.json", data)]).read()


def test_visual_genome_bad_items(tmp_path: Path) -> None:
    source = vg_source(tmp_path, allow_leaks=True)
    regions = json.loads(source.regions.read_text())
    regions[0]["regions"][0]["phrase"] = " "
    del regions[0]["regions"][1]["phrase"]
    regions[1]["id"] = 77
    regions[2] = "x"
    write_json(source.regions, regions)
    prepare(source, tmp_path / "set", max_bad=1)
    found = {entry["where"]: entry["problem"] for entry in read_lines(tmp_path / "set" / "skipped.jsonl")}
    assert found == {
        "[0].regions[0]": "empty sentence",
        "[0].regions[1]": "malformed sentence entry",
        "[1]": "malformed image entry",
        "[2]": "malformed image entry",
    }


STREAMS = {
    "empty": (" \n", "is empty"),
    "object": ('{"a": 1}', "an array at the top, and found an object"),
    "no element": ("[]", "empty array"),
    "cut after an element": ('[{"a": 1},\n {"b": 2}', "line 2, column 10: the file ends too early"),
    "cut in an element": ('[{"a": 1},\n {"b": "xy', "line 2, column .*the file ends too early"),
    "cut after a comma": ('[{"a": 1},', "the file ends too early"),
    "no comma": ('[{"a": 1}\n {"b": 2}]', "line 2, column 2: this is not JSON"),
    "broken": ('[{"a": 1},\n {"b": tru},{"c": 1}]', "line 2, column 8: this is not JSON"),
    "more": ('[{"a": 1}] x', "column 12: this is not JSON"),
    "not UTF-8": (b'[{"a": "\xff"}]', "not UTF-8"),
}


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("name", STREAMS)
def test_streaming_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, chunk: int) -> None:
    monkeypatch.setattr(streaming_module, "_CHUNK", chunk)
    content, message = STREAMS[name]
    path = tmp_path / "regions.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PixelBertError, match=message) as caught:
        list(iter_json_array(path, "regions"))
    assert "regions.json" in str(caught.value)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_streaming_refuses_a_key_that_stands_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(streaming_module, "_CHUNK", chunk)
    path = tmp_path / "regions.json"
    path.write_text('[{"id": 1},\n {"id": 2, "id": 3}]')
    with pytest.raises(PixelBertError, match=r"line 2, column 2: the key 'id' stands twice .*keep one"):
        list(iter_json_array(path, "regions"))
    path.write_text('{"questions": [1], "questions": [2]}')
    with pytest.raises(PixelBertError, match=r"the key 'questions' stands twice at the top"):
        list(iter_json_array(path, "questions", "questions"))


@pytest.mark.parametrize("chunk", [1, 2, 3, 50])
def test_streaming_equals_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(streaming_module, "_CHUNK", chunk)
    data = [{"a": [1, 2.5, 'x]\\"é']}, 123, -4, None, [], "end", 12]
    path = tmp_path / "data.json"
    for indent in (None, 2):
        path.write_text(json.dumps(data, indent=indent) + "\n")
        assert list(iter_json_array(path, "numbers")) == data


def write_table(folder: Path, table: str, name: str = "captions.csv") -> Path:
    write_photos(folder, 3)
    (folder / name).write_text(table, encoding="utf-8")
    return folder


def test_folder_with_a_split_column(tmp_path: Path) -> None:
    table = 'Image,caption,split\n0.jpg,"one, two",train\n1.jpg,"a ""b""",val\n\n0.jpg,"over\ntwo lines",train\n'
    folder = write_table(tmp_path / "mine", table)
    prepare(Folder(images=folder, name="mine"), tmp_path / "set")
    assert texts(tmp_path / "set", "train") == {
        "mine:0.jpg#0": "mine:0.jpg one, two",
        "mine:0.jpg#1": "mine:0.jpg over two lines",
    }
    assert texts(tmp_path / "set", "val") == {"mine:1.jpg#0": 'mine:1.jpg a "b"'}


def test_folder_with_jsonl(tmp_path: Path) -> None:
    rows = [{"image": f"{n}.jpg", "text": f"photo {n}", "split": "test"} for n in range(3)]
    lines = [
        *map(json.dumps, rows),
        "",
        '{"image": "0.jpg", "te',
        "[1]",
        '{"image": 5, "text": "a"}',
        '{"text": "a"}',
    ]
    lines += [
        '{"image": "0.jpg"}',
        '{"image": "1.jpg", "text": "b", "split": "val"}',
        '{"image": "1.jpg", "text": 3, "split": "test"}',
    ]
    folder = write_table(tmp_path / "mine", "\ufeff" + "\n".join(lines), "captions.jsonl")
    prepare(Folder(images=folder), tmp_path / "set", max_bad=1)
    assert len(texts(tmp_path / "set", "test")) == 3
    found = {entry["where"]: entry["problem"] for entry in read_lines(tmp_path / "set" / "skipped.jsonl")}
    assert found == {f"line {n}": "malformed row" for n in range(5, 10)} | {
        "line 10": "image in two splits",
        "line 11": "sentence is not text",
    }


def test_folder_split_is_by_image_and_stays_when_images_are_added(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "mine", 200)

    def split_of(count: int, seed: int) -> dict[str, str]:
        rows = [f"{number}.jpg,photo {number} {k}" for k in range(2) for number in range(count)]
        (folder / "captions.csv").write_text("\n".join(["image,text", *rows]))
        source, out = Folder(images=folder, val=0.2, test=0.2, seed=seed), tmp_path / f"set{count}-{seed}"
        prepare(source, out)
        data = PreparedDataset.open(out)
        assert data.splits == ["train", "val", "test"]
        pairs = [(row["image_ids"][0], split) for split in data.splits for row in data.examples(split)]
        assert len(pairs) == 2 * count
        assert len(set(pairs)) == count  # both captions of an image are in one split
        return dict(pairs)

    few, many = split_of(120, 0), split_of(200, 0)
    assert few.items() <= many.items()
    assert 20 <= sum(split == "val" for split in many.values()) <= 60
    assert split_of(200, 1) != many


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "is empty"),
        ("image,text\n", "has no rows"),
        ("image|text\n0.jpg|a", r"line 1: expected .*found the columns image\|text\. Put .* between commas or semico"),
        ("file,text\n0.jpg,a", "line 1: expected .*found the columns file, text"),
        ("image,text,text\n0.jpg,a,b", "line 1: a column's name stands twice"),
        ('image,text\n0.jpg,"a"b\n', "line 2: not CSV"),
        ('image,text\n0.jpg,a\n1.jpg,"never closed\n', "line 3: not CSV"),
        ("image,text\n0.jpg," + "a" * 200_000, "line 2: not CSV"),
    ],
)
def test_folder_tables_that_are_wrong_as_a_whole(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(PixelBertError, match=message):
        prepare(Folder(images=write_table(tmp_path / "mine", table)), tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_folder_rows_and_files_that_do_not_fit(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "mine", "image,text\n0.jpg,a\n1.jpg,b,c\n../mine/2.jpg,d\n2.jpg\n")
    prepare(Folder(images=folder), tmp_path / "set", max_bad=1)
    found = {entry["where"]: entry["problem"] for entry in read_lines(tmp_path / "set" / "skipped.jsonl")}
    assert found == {
        "line 3": "malformed row",
        "line 4": "path outside the image folder",
        "line 5": "malformed row",
    }
    (folder / "captions.csv").unlink()
    with pytest.raises(PixelBertError, match=r"no captions\.csv"):
        prepare(Folder(images=folder), tmp_path / "other")
    with pytest.raises(PixelBertError, match=r"none of \.csv, \.tsv and \.jsonl"):
        Folder(images=folder, captions=folder / "a.txt").read()
    with pytest.raises(PixelBertError, match="shares"):
        Folder(images=folder, val=0.6, test=0.5).read()


def test_a_link_inside_the_folder_may_lead_out_of_it(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "elsewhere", 3)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "linked").symlink_to(photos)
    (folder / "captions.csv").write_text("image,text\nlinked/0.jpg,a photo\n")
    prepare(Folder(images=folder), tmp_path / "set")
    assert len(PreparedDataset.open(tmp_path / "set").images) == 1

"""Tables as spreadsheets, pandas and people write them: read for what they mean, and whatever was decided is said."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import datasets
import pytest

from data_builders import (
    encoded,
    karpathy_data,
    nlvr2_rows,
    photo,
    read_lines,
    write_json,
    write_lines,
    write_pairs,
    write_photos,
)
from pixelbert.data.corpus import Corpus
from pixelbert.data.prepare import Summary, prepare
from pixelbert.data.sources import CocoCaptions, Folder, Karpathy, Nlvr2, VqaCsv
from pixelbert.data.sources.answers import common_answers, read_answers
from pixelbert.data.sources.exclusion import Exclusion
from pixelbert.data.sources.words import is_missing, is_missing_answer, meant_split, split_in_name
from pixelbert.data.store import PreparedDataset
from pixelbert.errors import PixelBertError
from pixelbert.metrics.vqa import answer_accuracy, soft_targets
from pixelbert.tasks.question_answering import answerable, measure_answers


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def folder_of(tmp_path: Path, table: str, name: str = "captions.csv", photos: int = 5) -> Folder:
    """A folder of photos 0.jpg, 1.jpg, ... and its table, as bytes on disk."""
    folder = write_photos(tmp_path / "photos", photos)
    (tmp_path / name).write_bytes(table.encode())
    return Folder(images=folder, captions=tmp_path / name, val=0, test=0)


def captions(folder: Path) -> dict[str, list[str]]:
    data = PreparedDataset.open(folder)
    return {split: data.examples(split)["text"][:] for split in data.splits}


def reasons(folder: Path) -> list[tuple[str, str]]:
    return [(entry["where"], entry["reason"]) for entry in read_lines(folder / "skipped.jsonl")]


# --- tables as programs write them

BOM = "\ufeff"
SPREADSHEETS = {
    "nameless columns and empty rows": (
        f"{BOM}image,caption,,\n0.jpg,A bus,,\n1.jpg,A dog,,\n,,,\n,,,\n",
        "2 rows of em",
    ),
    "empty rows": (f"{BOM}image,caption\r\n0.jpg,A bus\r\n,\r\n1.jpg,A dog\r\n,\r\n", "2 rows of empty fields"),
    "sep line": ("sep=;\r\nimage;caption\r\n0.jpg;A bus\r\n1.jpg;A dog\r\n", "semicolons between the fields"),
    "semicolons": (
        "image;caption\n0.jpg;A bus\n1.jpg;A dog\n",
        "captions.csv: read with semicolons between the fields",
    ),
    "tabs": ("image\tcaption\n0.jpg\tA bus\n1.jpg\tA dog\n", "captions.csv: read with tabs between the fields"),
    "index column": (",image,caption\n0,0.jpg,A bus\n1,1.jpg,A dog\n", "2 rows with values in a column without a name"),
    "fields beyond the header": ("image,caption\n0.jpg,A bus,,\n1.jpg,A dog\n", ""),
}


@pytest.mark.parametrize("name", SPREADSHEETS)
def test_tables_of_spreadsheets(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    table, note = SPREADSHEETS[name]
    prepare(folder_of(tmp_path, table), tmp_path / "set", strict=True)
    assert captions(tmp_path / "set") == {"train": ["A bus", "A dog"]}
    notes = PreparedDataset.open(tmp_path / "set").manifest["notes"]
    assert note in "".join(notes)
    assert bool(note) == bool(notes)
    assert note in capsys.readouterr().out


def test_a_tsv_and_the_lines_under_a_sep_line(tmp_path: Path) -> None:
    prepare(folder_of(tmp_path, "image\tcaption\n0.jpg\tA bus\n", "t.tsv"), tmp_path / "set")
    assert captions(tmp_path / "set") == {"train": ["A bus"]}
    source = folder_of(tmp_path, "sep=,\nimage,caption\n0.jpg,A bus\n1.jpg,a,b\n")
    prepare(source, tmp_path / "other", max_bad=1)
    assert reasons(tmp_path / "other") == [("line 4", "3 fields where the header has 2: quote a text that has commas")]


# --- values that are missing


def test_markers_of_missing_values_are_no_captions(tmp_path: Path) -> None:
    table = "image,caption\n0.jpg,A bus\n1.jpg,nan\n1.jpg,None of them sits\n2.jpg,NaN\n3.jpg,None\n4.jpg,N/A\n0.jpg,\n"
    summary = prepare(folder_of(tmp_path, table), tmp_path / "set", strict=True)
    assert captions(tmp_path / "set") == {"train": ["A bus", "None of them sits"]}
    assert summary.left_out == {"no caption": 5, "image without a sentence": 3}
    assert not summary.skipped
    assert reasons(tmp_path / "set")[0] == ("line 3", "'nan' marks a missing value")
    assert PreparedDataset.open(tmp_path / "set").manifest["left_out"]["no caption"] == 5


def test_the_same_in_json_of_the_form_of_coco(tmp_path: Path) -> None:
    notes = [{"id": n, "image_id": n, "caption": text} for n, text in enumerate(("A bus", "nan", None, "A dog"))]
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(4)]
    path = write_json(tmp_path / "mine.json", {"images": images, "annotations": notes})
    source = CocoCaptions(json=path, images=write_photos(tmp_path / "photos", 4), split="train")
    summary = prepare(source, tmp_path / "set", strict=True)
    assert captions(tmp_path / "set") == {"train": ["A bus", "A dog"]}
    assert summary.left_out == {"no caption": 2, "image without a sentence": 2}


def test_the_same_in_json_of_the_form_of_karpathy(tmp_path: Path) -> None:
    data = karpathy_data(2)
    data["images"][0]["sentences"][1]["raw"] = "nan"
    data["images"][1]["sentences"][0]["raw"] = "None"
    source = Karpathy(json=write_json(tmp_path / "mine.json", data), images=write_photos(tmp_path / "photos", 2))
    summary = prepare(source, tmp_path / "set", strict=True)
    assert captions(tmp_path / "set") == {"train": ["Photo 0, seen 0 times .", "Photo 1, seen 1 times ."]}
    assert summary.left_out == {"no caption": 2}


@pytest.mark.parametrize("text", ["nan", "NaN", "None", "N/A", "NA", "null", "NULL", "<NA>", "#N/A", "", " nan ", None])
def test_what_is_missing(text: str | None) -> None:
    assert is_missing(text)


def test_answers_may_be_none_and_no() -> None:
    assert not any(map(is_missing_answer, ("none", "None", "no", "N/A", "NA", "0", "nana")))
    assert all(map(is_missing_answer, ("nan", "NaN", "null", "NULL", "<NA>", "#N/A", "", None, float("nan"))))
    assert not is_missing("no")


def test_the_first_column_with_a_value_is_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"image": "0.jpg", "text": None, "caption": "A bus"},
        {"image": "1.jpg", "text": "", "caption": "A dog"},
        {"image": "2.jpg", "text": "A cat", "caption": "A cow"},
        {"image": "3.jpg", "text": float("nan")},
    ]
    folder = write_photos(tmp_path / "photos", 4)
    source = Folder(images=folder, captions=write_lines(tmp_path / "both.jsonl", rows), val=0, test=0)
    prepare(source, tmp_path / "set", strict=True)
    assert captions(tmp_path / "set") == {"train": ["A bus", "A dog", "A cat"]}


def test_missing_questions_answers_and_paths(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    table = tmp_path / "quiz.csv"
    rows = ["0.jpg,How many?,none", "1.jpg,Is it?,nan", "1.jpg,nan,yes", "2.jpg,Is it?,no|null", "NaN,Is it?,yes"]
    table.write_text("\n".join(["image,question,answer", *rows]))
    summary = prepare(VqaCsv(questions=table, images=photos, val=0, test=0), tmp_path / "set", max_bad=1)
    data = PreparedDataset.open(tmp_path / "set")
    assert data.examples("train")["answers"][:] == [["none"], [], ["no"]]
    assert data.answers == ["no", "none"]
    assert summary.left_out == {"no question": 1, "answer that marks a missing value": 2}
    assert summary.skipped == {"malformed row": 1}
    assert ("line 6", "'image' is 'NaN': the path is missing") in reasons(tmp_path / "set")


# --- splits


def test_splits_are_taken_for_what_they_mean(tmp_path: Path) -> None:
    splits = ["train", "Train", "validation", "val ", " train", "dev", "fold_7", "nan"]
    rows = [f"{n}.jpg,a photo,{split}" for n, split in enumerate(splits)]
    source = folder_of(tmp_path, "\n".join(["image,caption,split", *rows]), photos=8)
    summary = prepare(source, tmp_path / "set", strict=True)
    assert {split: len(found) for split, found in captions(tmp_path / "set").items()} == {
        "train": 4,
        "val": 3,
        "fold_7": 1,
    }
    notes = PreparedDataset.open(tmp_path / "set").manifest["notes"]
    assert notes == [
        "split: 'Train' taken for train (rows: 1)",
        "split: 'validation' taken for val (rows: 1)",
        "split: 'val ' taken for val (rows: 1)",
        "split: ' train' taken for train (rows: 1)",
        "split: 'dev' taken for val (rows: 1)",
        "split: none given for 1 photos, which were put by their names",
    ]
    assert all(note in str(summary) for note in notes)
    assert meant_split("Testing") == "test"


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("captions_val2014", "val"),
        ("captions_train2017", "train"),
        ("Captions-Validation", "val"),
        ("dev", "val"),
        ("test2015_captions", "test"),
    ],
)
def test_the_split_is_a_whole_word_of_a_name(name: str, split: str) -> None:
    assert split_in_name(Path(f"{name}.json")) == split


@pytest.mark.parametrize(
    "name",
    [
        "captions_trainval2014",
        "latest_export",
        "my_contest",
        "minival",
        "train_and_val",
        "image_info_test-dev2017",
        "x",
    ],
)
def test_a_name_that_does_not_tell_the_split_is_asked_about(tmp_path: Path, name: str) -> None:
    data = {
        "images": [{"id": 1, "file_name": "0.jpg"}],
        "annotations": [{"id": 5, "image_id": 1, "caption": "A game."}],
    }
    path, photos = write_json(tmp_path / f"{name}.json", data), write_photos(tmp_path / "photos", 1)
    with pytest.raises(PixelBertError, match=rf"{name}\.json: the file's name .*: give --split"):
        prepare(CocoCaptions(json=path, images=photos), tmp_path / "set")
    prepare(CocoCaptions(json=path, images=photos, split="train"), tmp_path / "set")
    assert captions(tmp_path / "set") == {"train": ["A game."]}
    path = path.rename(tmp_path / "captions_val2014.json")
    summary = prepare(CocoCaptions(json=path, images=photos), tmp_path / "other")
    assert "split: val, after the name of captions_val2014.json (--split says another)" in str(summary)


# --- paths

PATHS = {
    "backslashes": ("sub\\0.jpg", r"has \ where / separates folders: write 'sub/0.jpg', which is there"),
    "a space before": (" 0.jpg", "begins or ends with a space: write '0.jpg', which is there"),
    "a space after": ("0.jpg ", "begins or ends with a space: write '0.jpg', which is there"),
    "neither": (" sub\\9.jpg", "nor is there a 'sub/9.jpg'"),
    "address": ("https://example.org/0.jpg", "is a web address: download the photo, and give its path below"),
}


@pytest.mark.parametrize("name", PATHS)
def test_a_path_that_is_written_in_another_way_is_told_how(tmp_path: Path, name: str) -> None:
    path, advice = PATHS[name]
    source = folder_of(tmp_path, f"image,caption\n{path},A bus\n")
    write_photos(source.images / "sub", 1)
    with pytest.raises(PixelBertError, match=r"none of the 1 images is in .*read below what is wrong") as caught:
        prepare(source, tmp_path / "set")
    assert advice in str(caught.value)


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_the_same_letters_in_another_unicode_form_are_found(tmp_path: Path, on_disk: Any, in_table: Any) -> None:
    path = "bäder/müller café.jpg"
    source = folder_of(tmp_path, f"image,caption\n0.jpg,A bus\n{unicodedata.normalize(in_table, path)},A man\n")
    stored = source.images / unicodedata.normalize(on_disk, path)
    stored.parent.mkdir()
    stored.write_bytes(encoded(photo(7), "JPEG"))
    (stored.parent / "ö.jpg").touch()
    summary = prepare(source, tmp_path / "set", strict=True)
    data = PreparedDataset.open(tmp_path / "set")
    assert captions(tmp_path / "set") == {"train": ["A bus", "A man"]}
    assert stored.samefile(data.images[1]["path"])
    assert data.load_image(1).size == (40, 32)
    note = "photos found under another Unicode form of their names (NFC, NFD): 1"
    assert data.manifest["notes"] == [note]
    assert note in str(summary)


def test_photos_are_excluded_in_every_unicode_form(tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / unicodedata.normalize("NFD", "café.jpg")).touch()
    exclusion = Exclusion([str(shown)])
    where: Any = None
    assert exclusion.skip(unicodedata.normalize("NFC", "sub/café.jpg"), where) is not None
    exclusion.check()


# --- answers and the rule by which they are compared

ELEVEN = ["-5", "5", "<10", ">10", "C", "C++", "A", "A+", "A-", "none", "0"]


def quiz(tmp_path: Path, given: list[str], **options: Any) -> VqaCsv:
    photos = write_photos(tmp_path / "photos", len(given))
    rows = [{"image": f"{n}.jpg", "question": "What?", "answer": answer} for n, answer in enumerate(given)]
    table = write_lines(tmp_path / "quiz.jsonl", rows)
    return VqaCsv(questions=table, images=photos, **({"val": 0, "test": 0} | options))


def prepared_quiz(tmp_path: Path, given: list[str], **options: Any) -> tuple[Summary, PreparedDataset]:
    summary = prepare(quiz(tmp_path, given, **options), tmp_path / "set", overwrite=True)
    return summary, PreparedDataset.open(tmp_path / "set")


def test_own_answers_stay_apart(tmp_path: Path) -> None:
    summary, data = prepared_quiz(tmp_path, ELEVEN)
    assert data.answers == sorted(answer.lower() for answer in ELEVEN)
    assert (data.answer_rule, data.manifest["answer_rule"]) == ("mild", "mild")
    assert data.manifest["annotated"] == {"train": {"annotated": 11, "covered": 11}}
    assert "answers: 11, compared by the rule mild" in str(summary)
    assert not {"merged_answers", "emptied_answers"} & data.manifest.keys()
    assert prepared_quiz(tmp_path, list("DCBADCBADCBA"))[1].answers == ["a", "b", "c", "d"]


def test_what_merges_and_what_becomes_empty_is_listed(tmp_path: Path) -> None:
    summary, data = prepared_quiz(tmp_path, ELEVEN, answer_rule="official")
    assert data.answers == ["0", "10", "5", "c"]  # and no empty one
    merged = {"0": ["none", "0"], "10": ["<10", ">10"], "5": ["-5", "5"], "c": ["C", "C++"]}
    assert data.manifest["merged_answers"] == {"count": 4, "written": merged}
    assert data.manifest["emptied_answers"] == {"count": 3, "written": ["A", "A+", "A-"]}
    assert "answers that were written in several ways: 4, such as '0' from 'none', '0'" in str(summary)
    assert "answers of which the rule official leaves nothing: 3 ('A', 'A+', 'A-')" in str(summary)
    _, data = prepared_quiz(tmp_path, ["Yes", "yes", " YES "])
    assert data.answers == ["yes"]
    assert data.manifest["merged_answers"]["written"] == {"yes": ["Yes", "yes", "YES"]}
    assert prepared_quiz(tmp_path, ["mW", "MW", "MW"], answer_rule="exact")[1].answers == ["MW", "mW"]


def test_the_rule_holds_in_training_and_measuring(tmp_path: Path) -> None:
    prepared_quiz(tmp_path, ["-5", "5", "Two  Dogs"])
    corpus = Corpus([f"{tmp_path}/set:train"])
    assert [corpus.answer_rule(e) for e in range(3)] == ["mild"] * 3
    assert corpus.answers == ["-5", "5", "two dogs"]
    index = {answer: i for i, answer in enumerate(corpus.answers)}
    targets = [soft_targets(corpus.target(e, "answers"), index, corpus.answer_rule(e)) for e in range(3)]
    assert targets == [{0: 1.0}, {1: 1.0}, {2: 1.0}]
    assert measure_answers(corpus, {0: "5", 1: "5", 2: "two dogs"})["accuracy"] == pytest.approx(2 / 3)
    assert measure_answers(corpus, {0: "-5", 1: "-5", 2: "2 dogs"})["accuracy"] == pytest.approx(1 / 3)
    assert answerable(corpus, range(3), ["5", "TWO DOGS"]) == pytest.approx(2 / 3)
    assert answer_accuracy("-5", ["5"]) == 1  # as VQA's evaluator has it
    assert answer_accuracy("-5", ["5"], "mild") == 0
    assert answer_accuracy("yes", ["Yes"] * 9 + ["no"], "mild") == 1
    assert answer_accuracy("yes", ["Yes"], "exact") == 0


def test_a_set_without_a_rule_goes_by_the_official_one(tmp_path: Path) -> None:
    prepared_quiz(tmp_path, ["-5", "5"])
    file = tmp_path / "set" / "dataset.json"
    manifest = json.loads(file.read_text())
    del manifest["answer_rule"]
    file.write_text(json.dumps(manifest))
    corpus = Corpus([f"{tmp_path}/set:train"])
    assert measure_answers(corpus, {0: "5", 1: "-5"})["accuracy"] == 1
    file.write_text(json.dumps(manifest | {"answer_rule": "bold"}))
    with pytest.raises(PixelBertError, match="by the rule 'bold', and this pixelbert knows official, mild, exact"):
        PreparedDataset.open(tmp_path / "set")


def test_a_list_of_answers_is_normalised_as_the_questions_are(tmp_path: Path) -> None:
    answers = write_json(tmp_path / "answers.json", ["Yes", "No", "Two dogs"])
    _, data = prepared_quiz(tmp_path, ["Yes", "No", "Two dogs", "yes"], answers=answers)
    assert data.answers == ["yes", "no", "two dogs"]
    assert data.manifest["annotated"] == {"train": {"annotated": 4, "covered": 4}}
    assert prepared_quiz(tmp_path, ["Yes"], answers=answers, answer_rule="exact")[1].answers == [
        "Yes",
        "No",
        "Two dogs",
    ]
    with pytest.raises(PixelBertError, match=r"the answer 'YES' and 'yes' are one by the rule mild.*keep one"):
        read_answers(write_json(tmp_path / "twice.json", ["yes", "YES"]), "mild")
    with pytest.raises(PixelBertError, match=r"nothing is left of the answer 'A' by the rule official"):
        read_answers(write_json(tmp_path / "quiz.json", ["A", "B"]))


def test_a_list_that_covers_nothing_fails_and_one_that_covers_little_warns(tmp_path: Path) -> None:
    answers = write_json(tmp_path / "answers.json", ["maybe"])
    with pytest.raises(PixelBertError, match=r"none of the 3 questions with answers has one of the 1 .*'maybe'"):
        prepared_quiz(tmp_path, ["yes", "no", "yes"], answers=answers)
    assert not (tmp_path / "set").exists()
    summary, data = prepared_quiz(tmp_path, ["yes", "no", "maybe"], answers=answers)
    warning = "warning: 66.7% of the questions of train have no answer that a model can give"
    assert warning in str(summary)
    assert any(warning in note for note in data.manifest["notes"])
    assert "warning" not in str(prepared_quiz(tmp_path, ["yes", "Maybe"], answers=answers)[0])


def test_the_answers_of_a_prepared_set_come_with_their_rule(tmp_path: Path) -> None:
    prepare(quiz(tmp_path, ["Two dogs", "no"], answer_rule="official"), tmp_path / "first")
    _, data = prepared_quiz(tmp_path, ["two dogs", "no"], answers=tmp_path / "first")
    assert (data.answers, data.answer_rule) == (["2 dogs", "no"], "official")
    assert data.manifest["annotated"] == {"train": {"annotated": 2, "covered": 2}}


def test_no_answer_at_all_is_not_blamed_on_the_count() -> None:
    with pytest.raises(PixelBertError, match="there is no answer at all to choose from") as caught:
        common_answers([], 9)
    assert "--min-count" not in str(caught.value)


# --- NLVR2's labels, and keys that stand twice


def test_nlvr2_takes_the_labels_that_its_scoring_takes(tmp_path: Path) -> None:
    rows = nlvr2_rows("dev", 3)
    for row, label in zip(rows, (True, "true", "TRUE", False, "false", "False"), strict=True):
        row.update(label=label, directory=None)
    write_pairs(tmp_path / "images", rows, numbered=False)
    prepare(Nlvr2(json=[write_lines(tmp_path / "dev.json", rows)], images=tmp_path / "images"), tmp_path / "set")
    assert sorted(PreparedDataset.open(tmp_path / "set").examples("dev")["label"][:]) == [False] * 3 + [True] * 3


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "captions_val2014.json"
    path.write_text('{"images": [{"id": 1, "file_name": "0.jpg", "id": 2}], "annotations": []}')
    with pytest.raises(PixelBertError, match=r"the key 'id' stands twice in the object of 'id', 'file_name'.*keep one"):
        CocoCaptions(json=path, images=tmp_path).read()
    lines = '{"image": "0.jpg", "caption": "A bus"}\n{"image": "1.jpg", "caption": "a", "caption": "b"}\n'
    prepare(folder_of(tmp_path, lines, "t.jsonl"), tmp_path / "set", max_bad=1)
    assert reasons(tmp_path / "set") == [
        ("line 2", "the key 'caption' stands twice in the object of 'image', 'caption': keep one")
    ]

"""VQA v2, Visual Genome's questions, a user's own questions, NLVR2: from official files to what is read."""

import json
import tracemalloc
from collections.abc import Callable
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
    vqa_answers,
    vqa_data,
    write_coco_photos,
    write_json,
    write_lines,
    write_pairs,
    write_photos,
)
from pixelbert import cli
from pixelbert.data.prepare import Summary, prepare
from pixelbert.data.sources import Coco, Flickr30k, Folder, Nlvr2, VisualGenomeQa, Vqa2, VqaCsv
from pixelbert.data.sources import streaming as streaming_module
from pixelbert.data.sources.answers import common_answers, read_answers
from pixelbert.data.sources.common import ImageRecord
from pixelbert.data.store import PreparedDataset
from pixelbert.data.table1 import TABLE_1, beside_table1
from pixelbert.errors import PixelBertError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def problems(folder: Path) -> list[tuple[str, str, str, str]]:
    """What was skipped: file, place, problem, reason."""
    return [
        (Path(entry["file"]).name, entry["where"], entry["problem"], entry["reason"])
        for entry in read_lines(folder / "skipped.jsonl")
    ]


# --- VQA v2

TRAIN = [(70, 7, "yes"), (80, 8, "two"), (71, 7, "No"), (81, 8, "a cat"), (82, 8, "yes")]
VAL = [(90, 9, "2"), (91, 9, "no")]


def vqa2(folder: Path, **options: Any) -> Vqa2:
    """All four parts of VQA v2, small: questions of an image do not stand together."""
    images = folder / "coco"
    files: dict[str, list[Path]] = {"questions": [], "annotations": []}
    parts = {
        "train2014": TRAIN,
        "val2014": VAL,
        "test2015": [(50, 5, ""), (60, 6, ""), (51, 5, "")],
        "test-dev2015": [(51, 5, "")],
    }
    for subset, rows in parts.items():
        write_coco_photos(images, subset.replace("-dev", ""), [image for _, image, _ in rows])
        questions, annotations = vqa_data(subset, rows)
        files["questions"].append(write_json(folder / f"v2_OpenEnded_mscoco_{subset}_questions.json", questions))
        if "2014" in subset:
            files["annotations"].append(write_json(folder / f"v2_mscoco_{subset}_annotations.json", annotations))
    return Vqa2(images=images, **{"min_count": 2, **files, **options})


def change_json(path: Path, change: Callable[[Any], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    write_json(path, data)


def test_vqa2(tmp_path: Path) -> None:
    summary = prepare(vqa2(tmp_path), tmp_path / "set")
    data = PreparedDataset.open(tmp_path / "set")
    assert (data.name, data.task, data.splits) == ("vqa2", "question-answering", ["train", "val", "test", "test_dev"])
    # No twice and 2 (from "two") twice, over train and val: ties by alphabet; "cat" only once.
    assert data.answers == ["2", "no", "yes"]
    train = list(data.examples("train"))
    assert [row["example_id"] for row in train] == ["vqa2:70", "vqa2:71", "vqa2:80", "vqa2:81", "vqa2:82"]
    assert train[3] == {
        "example_id": "vqa2:81",
        "image_ids": ["coco:8"],
        "text": "What is number 81?",
        "answers": ["a cat"] * 10,  # not among the answers, and kept
        "answer_type": "other",
        "question_type": "what is",
    }
    assert [(r["example_id"], r["answers"]) for r in data.examples("test")] == [
        ("vqa2:50", []),
        ("vqa2:51", []),
        ("vqa2:60", []),
    ]
    assert [(r["example_id"], r["image_ids"]) for r in data.examples("test_dev")] == [("vqa2:51", ["coco:5"])]
    assert list(data.image_row) == ["coco:7", "coco:8", "coco:9", "coco:5", "coco:6"]
    assert data.images[3]["path"].endswith("test2015/COCO_test2015_000000000005.jpg")
    assert data.manifest["annotated"] == {
        "train": {"annotated": 5, "covered": 4},
        "val": {"annotated": 2, "covered": 2},
        "test": {"annotated": 0, "covered": 0},
        "test_dev": {"annotated": 0, "covered": 0},
    }
    assert not summary.skipped
    assert not summary.left_out
    shares = "train 4 of 5 (80.0%), val 2 of 2"
    assert f"compared by the rule official; annotated questions with at least one of them: {shares}" in str(summary)
    assert "204K images, 1.1M texts; here 5 and 10 (train+val+test)" in str(summary)
    assert "questions" in str(summary).splitlines()[1]


def test_vqa2_with_answers_given(tmp_path: Path) -> None:
    given_answers = write_json(tmp_path / "answers.json", ["Cat", "2", ""])
    prepare(vqa2(tmp_path, answers=given_answers), tmp_path / "set")
    data = PreparedDataset.open(tmp_path / "set")
    assert data.answers == ["cat", "2", ""]
    assert str(given_answers) in [source["file"] for source in data.manifest["sources"]]
    assert read_answers(tmp_path / "set") == ["cat", "2", ""]
    for content, message in (([], "expected a JSON list"), (["a", 1], "expected a JSON list"), (["b", "b"], "twice")):
        with pytest.raises(PixelBertError, match=message):
            read_answers(write_json(tmp_path / "bad.json", content))


def test_ok_vqa_has_no_most_common_answer(tmp_path: Path) -> None:
    """Its annotations are VQA's without `multiple_choice_answer`: the most frequent of the ten stands for it."""
    source = vqa2(tmp_path, min_count=1)
    change_json(source.annotations[0], lambda data: [row.pop("multiple_choice_answer") for row in data["annotations"]])
    change_json(source.annotations[0], lambda data: data["annotations"][0].update(answers=vqa_answers("a", "b", "b")))
    reading = source.read()
    assert set(reading.answers or ()) == {"2", "yes", "no", "b", "cat"}
    summary = prepare(source, tmp_path / "set", strict=True)
    note = "v2_mscoco_train2014_annotations.json: 5 annotations without 'multiple_choice_answer'"
    assert note in str(summary)
    for path in source.annotations:
        change_json(path, lambda data: [row.update(answers=[]) for row in data["annotations"]])
    with pytest.raises(
        PixelBertError, match=r"no annotation can be used; annotations\[0\]: question_id 70 has 0 answers"
    ):
        source.read()


def test_a_part_of_a_word_is_no_part_of_vqa(tmp_path: Path) -> None:
    source = vqa2(tmp_path)
    change_json(source.questions[0], lambda data: data.pop("data_subtype"))
    source.questions[0] = source.questions[0].rename(tmp_path / "trainval2014_questions.json")
    with pytest.raises(PixelBertError, match="neither 'data_subtype' nor its name tells which part of VQA v2"):
        source.read()


def test_vqa2_min_count(tmp_path: Path) -> None:
    assert vqa2(tmp_path, min_count=1).read().answers == ["2", "no", "yes", "cat"]
    with pytest.raises(PixelBertError, match=r"no answer is that of 9 .*the most frequent one has 2.*--min-count"):
        vqa2(tmp_path, min_count=9).read()
    with pytest.raises(PixelBertError, match="min_count is 0"):
        common_answers(["yes"], 0)


def test_vqa2_without_excluded_photos(tmp_path: Path) -> None:
    prepare(vqa2(tmp_path), tmp_path / "measured")
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / "COCO_train2014_000000000008.jpg").touch()
    source = vqa2(tmp_path, exclude=[str(shown), f"{tmp_path}/measured:val"], min_count=1)
    change_json(source.annotations[0], lambda data: data["annotations"][1].update(answers=[]))  # of a left-out photo
    summary = prepare(source, tmp_path / "set", strict=True)
    data = PreparedDataset.open(tmp_path / "set")
    assert list(data.image_row) == ["coco:7", "coco:5", "coco:6"]
    assert data.splits == ["train", "test", "test_dev"]
    assert data.examples("train")["example_id"][:] == ["vqa2:70", "vqa2:71"]
    assert data.answers == ["no", "yes"]  # photo 8's "two" and "cat" and val's 2 are not learned
    assert data.manifest["left_out"] == summary.left_out == {"image left out by --exclude": 2}
    assert data.manifest["skipped"] == {}
    assert problems(tmp_path / "set") == [
        (
            source.questions[0].name,
            "questions[1] (image_id 8)",
            "image left out by --exclude",
            f"train2014/COCO_train2014_000000000008.jpg is in {shown}",
        ),
        (
            source.questions[1].name,
            "questions[0] (image_id 9)",
            "image left out by --exclude",
            f"val2014/COCO_val2014_000000000009.jpg is in {tmp_path}/measured:val",
        ),
    ]
    (shown / "COCO_train2014_000000000008.jpg").rename(shown / "8.jpg")
    with pytest.raises(PixelBertError, match=r"shown: no photo of .*train2014_questions\.json, .* leaves nothing out"):
        source.read()
    with pytest.raises(PixelBertError, match="has no split 'dev': it has train, val, test, test_dev"):
        vqa2(tmp_path, exclude=[f"{tmp_path}/measured:dev"]).read()


def note(change: Callable[[dict[str, Any]], Any]) -> Callable[[list[Any]], Any]:
    return lambda notes: change(notes[1])


BAD_ANNOTATIONS: dict[str, tuple[Callable[[list[Any]], Any], str, str]] = {
    "nine answers": (note(lambda n: n["answers"].pop()), "answers are not ten", "question_id 80 has 9 answers"),
    "no answers": (note(lambda n: n.pop("answers")), "malformed annotation", "question_id 80: 'answers' is None"),
    "an answer is a number": (
        note(lambda n: n["answers"][3].update(answer=2)),
        "malformed annotation",
        "question_id 80: answers[3]",
    ),
    "no common answer": (
        note(lambda n: n.update(multiple_choice_answer=None)),
        "malformed annotation",
        "question_id 80: 'multiple_choice_answer' is None",
    ),
    "odd image id": (
        note(lambda n: n.update(image_id="8")),
        "annotation of another image",
        "question_id 80 is about image_id 8, and its annotation about '8'",
    ),
    "another image": (
        note(lambda n: n.update(image_id=7)),
        "annotation of another image",
        "question_id 80 is about image_id 8, and its annotation about 7",
    ),
    "type is a number": (note(lambda n: n.update(answer_type=3)), "malformed answer_type", "'answer_type' is 3"),
    "control character": (
        note(lambda n: n.update(answers=vqa_answers("a\0b"))),
        "control character in answers",
        "U+0000",
    ),
}


@pytest.mark.parametrize("name", BAD_ANNOTATIONS)
def test_vqa2_a_bad_annotation_costs_its_question(tmp_path: Path, name: str) -> None:
    change, problem, reason = BAD_ANNOTATIONS[name]
    source = vqa2(tmp_path)
    change_json(source.annotations[0], lambda data: change(data["annotations"]))
    prepare(source, tmp_path / "set", max_bad=0.2)
    ((_, where, found, why),) = problems(tmp_path / "set")
    assert where in ("annotations[1]", "questions[1]")
    assert found == problem
    assert reason in why
    data = PreparedDataset.open(tmp_path / "set")
    assert "vqa2:80" not in data.examples("train")["example_id"][:]
    assert len(data.examples("train")) == 4
    with pytest.raises(PixelBertError, match=problem):
        prepare(source, tmp_path / "strict", strict=True)


def test_vqa2_questions_and_annotations_that_do_not_meet(tmp_path: Path) -> None:
    source = vqa2(tmp_path)
    change_json(source.annotations[0], lambda data: data["annotations"][0].update(question_id=777))
    change_json(source.annotations[1], lambda data: data["annotations"].append(data["annotations"][0]))
    prepare(source, tmp_path / "set", max_bad=1)
    train, val = (path.name for path in source.annotations)
    assert problems(tmp_path / "set") == [
        (
            source.questions[0].name,
            "questions[0]",
            "question without annotation",
            f"question_id 70 is not in {source.annotations[0]}",
        ),
        (train, "annotations[0]", "annotation without question", f"question_id 777 is not in {source.questions[0]}"),
        (val, "annotations[2]", "duplicate annotation", "question_id 90 was annotated in annotations[0] already"),
    ]


BAD_QUESTIONS: dict[str, tuple[dict[str, Any], str, str]] = {
    "image id is text": ({"image_id": "8"}, "malformed question entry", "'image_id' is '8', not a number"),
    "image id is negative": ({"image_id": -8}, "malformed question entry", "(question_id 80)"),
    "question id is null": ({"question_id": None}, "malformed question entry", "'question_id' is None"),
    "unknown image": ({"image_id": 888}, "missing image file", "COCO_train2014_000000000888.jpg"),
    "same id": ({"question_id": 70, "image_id": 7}, "duplicate sentence id", "vqa2:70"),
    "no text": ({"question": " ?"}, "empty sentence", "no letter or digit"),
}


@pytest.mark.parametrize("name", BAD_QUESTIONS)
def test_vqa2_bad_questions(tmp_path: Path, name: str) -> None:
    change, problem, reason = BAD_QUESTIONS[name]
    source = vqa2(tmp_path)
    change_json(source.questions[0], lambda data: data["questions"][1].update(change))
    change_json(source.annotations[0], lambda data: data["annotations"][1].update(image_id=change.get("image_id", 8)))
    prepare(source, tmp_path / "set", max_bad=1)
    (found,) = [p for p in problems(tmp_path / "set") if p[2] != "annotation without question"]
    assert found[0] == source.questions[0].name
    assert found[1].startswith("questions[1]")
    assert found[2] == problem
    assert reason in found[3]
    entries = read_lines(tmp_path / "set" / "skipped.jsonl")
    assert any("80" in str(e) or "888" in str(e) or "vqa2:70" in str(e) for e in entries)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def subset(value: Any) -> Callable[[Path], None]:
    return lambda path: change_json(path, lambda data: data.update(data_subtype=value))


WHOLE_FILES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "cut questions": ("questions", cut, r"train2014_questions\.json, line 1, column \d+: .*cut short"),
    "cut annotations": ("annotations", cut, r"train2014_annotations\.json, line 1, column \d+: .*cut short"),
    "annotations as questions": (
        "questions",
        lambda path: write_json(path, vqa_data("train2014", TRAIN)[1]),
        "expected VQA v2 questions.*key 'questions' is missing",
    ),
    "an array": ("questions", lambda path: path.write_text("[1]"), "an object at the top, and found an array"),
    "not an array": (
        "questions",
        lambda path: change_json(path, lambda data: data.update(questions={})),
        "an array at the key 'questions', and found an object",
    ),
    "empty": ("annotations", lambda path: path.write_text(" "), "is empty"),
    "another data set": ("questions", subset("abstract_v002"), "'data_subtype' is 'abstract_v002'.*vqa-csv"),
    "val twice": ("questions", subset("val2014"), "are both questions of val"),
    "val annotated twice": ("annotations", subset("val2014"), "are both annotations of val"),
    "not UTF-8": ("annotations", lambda path: path.write_bytes(b'{"a": "\xff"}'), "not UTF-8"),
    "no colon": ("annotations", lambda path: path.write_text('{"a", 1}'), "this is not JSON .expected ':'"),
    "no key": ("annotations", lambda path: path.write_text("{1: 2}"), "expected a key in quotes"),
}


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_vqa2_files_that_are_wrong_as_a_whole(tmp_path: Path, name: str) -> None:
    which, spoil, message = WHOLE_FILES[name]
    source = vqa2(tmp_path)
    spoil(getattr(source, which)[0])
    with pytest.raises(PixelBertError, match=message):
        prepare(source, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_vqa2_wants_the_right_files_together(tmp_path: Path) -> None:
    source = vqa2(tmp_path)
    for change, message in (
        ({"annotations": source.annotations[:1]}, r"val2014_questions\.json: .*add --annotations"),
        ({"questions": source.questions[1:]}, r"train2014_annotations\.json: annotations of train, of which no quest"),
        ({"questions": []}, "--questions"),
    ):
        with pytest.raises(PixelBertError, match=message):
            vqa2(tmp_path, **change).read()
    for path in (*source.questions, *source.annotations):  # the name tells where the file does not
        change_json(path, lambda data: data.pop("data_subtype"))
    assert prepare(source, tmp_path / "set").splits.keys() == {"train", "val", "test", "test_dev"}
    source.questions[0].rename(tmp_path / "mine.json")
    with pytest.raises(PixelBertError, match=r"mine\.json: neither 'data_subtype' nor its name tells"):
        vqa2(tmp_path, questions=[tmp_path / "mine.json", *source.questions[1:]]).read()


def test_an_image_is_in_test_and_test_dev_only(tmp_path: Path) -> None:
    source = vqa2(tmp_path)
    change_json(source.questions[1], lambda data: data["questions"][0].update(image_id=8, question_id=82))
    change_json(source.annotations[1], lambda data: data["annotations"][0].update(image_id=8, question_id=82))
    prepare(source, tmp_path / "set", max_bad=1)
    ((_, _, problem, reason),) = problems(tmp_path / "set")
    assert problem == "duplicate image id"  # val's photo of that number is another file
    assert "train2014" in reason


def test_vqa2_annotations_take_less_memory_than_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming_module, "_CHUNK", 1 << 16)
    questions, annotations = vqa_data("train2014", [(n, n // 5, f"answer {n % 100}") for n in range(3_000)])
    source = Vqa2(
        questions=[write_json(tmp_path / "q.json", questions)],
        annotations=[write_json(tmp_path / "a.json", annotations)],
        images=tmp_path,
    )
    size = (tmp_path / "a.json").stat().st_size
    del questions, annotations
    tracemalloc.start()
    reading = source.read()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reading.answers is not None
    assert len(reading.answers) == 100
    assert peak < size  # as objects they take five times as much


# --- Visual Genome's questions


def vg_qa(folder: Path, **options: Any) -> VisualGenomeQa:
    facts = [{"image_id": n, "coco_id": 500 + n, "flickr_id": None} for n in (1, 2, 3)]
    pairs = [("What is it?", "A cat."), ("How many?", "Two"), ("Where?", "On the moon")]
    entries = [
        {"id": n, "qas": [{"qa_id": 10 * n + k, "question": q, "answer": a} for k, (q, a) in enumerate(pairs)]}
        for n in (1, 2, 3)
    ]
    entries[2]["qas"][:2] = []  # type: ignore[index]
    write_photos(folder / "vg" / "VG_100K", 4)
    return VisualGenomeQa(
        question_answers=write_json(folder / "question_answers.json", entries),
        image_data=write_json(folder / "image_data.json", facts),
        images=folder / "vg",
        answers=write_json(folder / "answers.json", ["2", "cat"]),
        **options,
    )


def test_visual_genome_questions(tmp_path: Path) -> None:
    exclude = write_json(tmp_path / "e.json", {"questions": [{"image_id": 501}]})
    summary = prepare(vg_qa(tmp_path, exclude=[exclude]), tmp_path / "set")
    data = PreparedDataset.open(tmp_path / "set")
    assert (data.task, data.answers, data.splits) == ("question-answering", ["2", "cat"], ["train"])
    assert [(r["example_id"], r["image_ids"], r["answers"]) for r in data.examples("train")] == [
        ("vg-qa:20", ["vg:2"], ["A cat."]),
        ("vg-qa:21", ["vg:2"], ["Two"]),
    ]
    assert summary.left_out == {
        "image of an evaluation set": 1,
        "question whose answer is not among the answers": 2,
        "image without a sentence": 1,
    }
    assert not summary.skipped
    with pytest.raises(PixelBertError, match=r"--exclude.*--allow-leaks"):
        vg_qa(tmp_path).read()


def test_visual_genome_questions_bad_items(tmp_path: Path) -> None:
    source = vg_qa(tmp_path, allow_leaks=True)

    def spoil(entries: Any) -> None:
        entries[0]["qas"][0]["answer"] = None
        del entries[0]["qas"][1]["question"]
        entries[1]["qas"] = "x"

    change_json(source.question_answers, spoil)
    with pytest.raises(PixelBertError, match=r"'answer' is None"):
        prepare(source, tmp_path / "set", strict=True)
    change_json(source.question_answers, lambda entries: entries[2]["qas"][0].update(answer="2"))
    prepare(source, tmp_path / "set", max_bad=1)
    assert [(where, problem) for _, where, problem, _ in problems(tmp_path / "set")] == [
        ("[0].qas[0]", "malformed sentence entry"),
        ("[0].qas[1]", "malformed sentence entry"),
        ("[0]", "image without a sentence"),
        ("[1]", "malformed image entry"),
    ]


# --- a user's own questions


def test_vqa_csv_with_a_split_column(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    table = tmp_path / "quiz.csv"
    table.write_text(
        "image,question,answer,split\n"
        "0.jpg,What is it?,A cat|the Cat|dog,train\n"
        '1.jpg,"Red, or blue?",red,train\n'
        "0.jpg,How many?,two,train\n"
        "2.jpg,What is it?,horse,val\n"
        "2.jpg,Is it?,,val\n"
    )
    summary = prepare(VqaCsv(questions=table, images=photos, name="quiz"), tmp_path / "set")
    data = PreparedDataset.open(tmp_path / "set")
    assert data.answers == ["a cat", "dog", "red", "the cat", "two"]  # val's horse is not learned
    assert data.examples("train")[0] == {
        "example_id": "quiz:0.jpg#0",
        "image_ids": ["quiz:0.jpg"],
        "text": "What is it?",
        "answers": ["A cat", "the Cat", "dog"],
        "answer_type": None,
        "question_type": None,
    }
    assert [row["answers"] for row in data.examples("val")] == [["horse"], []]
    assert data.manifest["annotated"] == {
        "train": {"annotated": 3, "covered": 3},
        "val": {"annotated": 1, "covered": 0},
    }
    assert "val 0 of 1 (0.0%)" in str(summary)
    more = VqaCsv(questions=table, images=photos, answers_from=["train", "val"], answer_rule="official").read()
    assert more.answers == ["2", "cat", "dog", "horse", "red"]  # "cat" counts once a question


def test_vqa_csv_with_one_table_a_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    train = [
        {"image": "0.jpg", "question": "What is it?", "answer": "a | b"},
        {"image": "1.jpg", "question": "How many?", "answers": ["3", 3, "four"]},
        {"image": "1.jpg", "question": "And now?", "answer": 7},
    ]
    test = [{"image": "2.jpg", "question": "What is it?", "split": "train"}]
    write_lines(tmp_path / "train.jsonl", train)
    write_lines(tmp_path / "test.jsonl", test)
    questions = f"{{train: {tmp_path}/train.jsonl, test: {tmp_path}/test.jsonl}}"
    options = ["--images", str(photos), "--name", "quiz", "--output", str(tmp_path / "set")]
    cli.main(["prepare", "vqa-csv", "--questions", questions, *options])
    data = PreparedDataset.open(tmp_path / "set")
    assert {s: [row["answers"] for row in data.examples(s)] for s in data.splits} == {
        "train": [["a | b"], ["3", "3", "four"], ["7"]],
        "test": [[]],
    }
    assert data.answers == ["3", "7", "a | b", "four"]
    assert data.manifest["options"]["questions"] == {s: f"{tmp_path}/{s}.jsonl" for s in ("train", "test")}
    table = ["--questions", f"{tmp_path}/train.jsonl", "--val", "0", "--test", "0", "--overwrite"]
    cli.main(["prepare", "vqa-csv", *table, *options])
    assert PreparedDataset.open(tmp_path / "set").splits == ["train"]
    assert "answers: 4" in capsys.readouterr().out


def test_vqa_csv_splits_as_captions_do(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 60)
    (photos / "captions.csv").write_text("image,text\n" + "".join(f"{n}.jpg,a photo\n" for n in range(60)))
    rows = [{"image": f"{n}.jpg", "question": "What?", "answer": "yes"} for n in range(60)]
    table = write_lines(tmp_path / "quiz.jsonl", rows)
    captions = Folder(images=photos, val=0.2, test=0.2, seed=3).read()
    questions = VqaCsv(questions=table, images=photos, val=0.2, test=0.2, seed=3).read()
    splits = [
        {r.images[0].path: r.split for r in reading.records if isinstance(r, ImageRecord)}
        for reading in (captions, questions)
    ]
    assert splits[0] == splits[1]
    assert set(splits[0].values()) == {"train", "val", "test"}


def test_vqa_csv_rows_and_tables_that_do_not_fit(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    rows = [
        {"image": "0.jpg", "question": "What?", "answer": "yes", "split": "train"},
        {"image": "0.jpg", "question": "What?", "answer": "yes", "split": "test"},
        {"image": "0.jpg", "answer": "yes", "split": "train"},
        {"image": "0.jpg", "question": "What?", "answer": True, "split": "train"},
        {"image": "0.jpg", "question": "What?", "answers": ["yes", None], "split": "train"},
        {"image": "0.jpg", "question": 5, "answer": "yes", "split": "train"},
        {"image": "gone.jpg", "question": "What?", "answer": "yes", "split": "train"},
    ]
    table = write_lines(tmp_path / "quiz.jsonl", rows)
    prepare(VqaCsv(questions=table, images=photos), tmp_path / "set", max_bad=1)
    assert {where: problem for _, where, problem, _ in problems(tmp_path / "set")} == {
        "line 2": "image in two splits",
        "line 3": "malformed row",
        "line 4": "malformed answer",
        "line 5": "malformed answer",
        "line 6": "sentence is not text",
        "line 7": "missing image file",
    }
    (tmp_path / "a.csv").write_text("image,text\n0.jpg,a\n")
    with pytest.raises(PixelBertError, match="expected a table with the columns image, question"):
        VqaCsv(questions=tmp_path / "a.csv", images=photos).read()
    (tmp_path / "b.csv").write_text("image,question\n0.jpg,a?\n")
    with pytest.raises(PixelBertError, match=r"there is no answer at all to choose from.*--answers"):
        VqaCsv(questions=tmp_path / "b.csv", images=photos, val=0, test=0).read()


def test_vqa_csv_without_excluded_photos(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos" / "kitchen", 5).parent
    rows = [
        {"image": f"kitchen/{n}.jpg", "question": "What?", "answer": answer, "split": split}
        for n, answer, split in [(0, "cat", "train"), (1, "dog", "train"), (2, "cow", "train"), (3, "hen", "val")]
    ]
    table = write_lines(tmp_path / "quiz.jsonl", rows)
    prepare(VqaCsv(questions=table, images=photos), tmp_path / "measured")
    of_left_out = [
        {"image": "kitchen/1.jpg", "question": "And?", "answer": True, "split": "val"},
        {"image": "./kitchen/1.jpg", "answer": "fox"},
    ]
    write_lines(table, [*rows, *of_left_out])
    shown = write_photos(tmp_path / "shown", 1)  # 0.jpg
    (shown / "0.jpg").rename(shown / "1.jpg")
    exclude = [str(shown), f"{tmp_path}/measured:val"]
    options = ["--questions", str(table), "--images", str(photos), "--output", str(tmp_path / "set"), "--strict"]
    cli.main(["prepare", "vqa-csv", *options, "--exclude", json.dumps(exclude), "--answers_from", "[train, val]"])
    data = PreparedDataset.open(tmp_path / "set")
    assert list(data.image_row) == ["vqa:kitchen/0.jpg", "vqa:kitchen/2.jpg"]
    assert data.answers == ["cat", "cow"]
    assert data.manifest["options"]["exclude"] == exclude
    assert data.manifest["left_out"] == {"image left out by --exclude": 2}  # photos, not questions
    assert data.manifest["skipped"] == {}
    assert [(where, reason) for _, where, _, reason in problems(tmp_path / "set")] == [
        ("line 2", f"kitchen/1.jpg is in {shown}"),
        ("line 4", f"kitchen/3.jpg is in {exclude[1]}"),
    ]
    (shown / "1.jpg").rename(shown / "9.jpg")
    with pytest.raises(PixelBertError, match=r"shown: no photo of .*quiz\.jsonl has .* leaves nothing out"):
        VqaCsv(questions=table, images=photos, exclude=exclude).read()
    with pytest.raises(PixelBertError, match="has no split 'test': it has train, val"):
        VqaCsv(questions=table, images=photos, exclude=[f"{tmp_path}/measured:test"]).read()


# --- NLVR2


def nlvr2(folder: Path, rows: dict[str, list[dict[str, Any]]], **options: Any) -> Nlvr2:
    files = [write_lines(folder / f"{split}.json", of_split) for split, of_split in rows.items()]
    for of_split in rows.values():
        write_pairs(folder / "images", of_split, **options)
    return Nlvr2(json=files, images=folder / "images")


def every_split(count: int = 3) -> dict[str, list[dict[str, Any]]]:
    rows = {split: nlvr2_rows(split, count) for split in ("train", "dev", "test1", "test2")}
    for row in rows["test2"]:
        del row["label"]
    return rows


@pytest.mark.parametrize("numbered", [True, False])
def test_nlvr2(tmp_path: Path, numbered: bool) -> None:
    summary = prepare(nlvr2(tmp_path, every_split(), numbered=numbered), tmp_path / "set")
    data = PreparedDataset.open(tmp_path / "set")
    assert (data.name, data.task, data.splits) == ("nlvr2", "reasoning", ["train", "dev", "test1", "test2"])
    assert data.examples("train")[1] == {
        "example_id": "nlvr2:train-0-0-1",
        "image_ids": ["nlvr2:train-0-0-img0", "nlvr2:train-0-0-img1"],
        "text": "Statement 1 on pair 0.",
        "label": False,
    }
    assert data.examples("dev")["label"][:] == [True, False] * 3
    assert data.examples("test2")["label"][:] == [None] * 6
    assert len(data.images) == 4 * 3 * 2  # an image stands once, though two statements are about it
    assert [data.load_image(row).getpixel((0, 0))[1] for row in (0, 1)] == [50, 150]  # left, right
    place = "train/1" if numbered else "train"
    assert data.images[2]["path"].endswith(f"images/{place}/train-1-0-img0.png")
    assert "214K images, 107K texts; here 24 and 24" in str(summary)
    assert not summary.skipped


def test_nlvr2_can_be_read_without_photos(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "dev.json", nlvr2_rows("dev", 500))
    records = [r for r in Nlvr2(json=[path], images=tmp_path).read().records if isinstance(r, ImageRecord)]
    assert len(records) == 500
    assert sum(len(record.sentences) for record in records) == 1000
    assert records[7].images[1].path == "dev/dev-7-0-img1.png"


def test_nlvr2_a_bad_photo_costs_its_pair(tmp_path: Path) -> None:
    source = nlvr2(tmp_path, {"dev": nlvr2_rows("dev", 4)})
    (source.images / "dev" / "dev-1-0-img1.png").unlink()
    (source.images / "dev" / "dev-2-0-img0.png").write_bytes(b"not a photo")
    summary = prepare(source, tmp_path / "set", max_bad=0.3)
    assert summary.skipped == {"missing image file": 1, "unusable image": 1}
    assert summary.left_out == {"image that belongs to a bad one": 2, "sentence of a bad image": 4}
    data = PreparedDataset.open(tmp_path / "set")
    assert [row["example_id"] for row in data.examples("dev")] == [
        f"nlvr2:dev-{pair}-0-{sentence}" for pair in (0, 3) for sentence in (0, 1)
    ]
    assert len(data.images) == 4
    entry = read_lines(tmp_path / "set" / "skipped.jsonl")[0]
    assert (entry["id"], entry["image"]) == ("nlvr2:dev-1-0-img1", "dev/dev-1-0-img1.png")


BAD_ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "maybe": ({"label": "Maybe"}, "label neither True nor False", "the label of dev-2-0-0 is 'Maybe'"),
    "a number": ({"label": 1}, "label neither True nor False", "dev-2-0-0 is 1"),
    "a list": ({"label": ["True"]}, "label neither True nor False", "dev-2-0-0"),
    "null": ({"label": None}, "no label", "dev-2-0-0 has no label, and only test2 may lack it"),
    "identifier": ({"identifier": "dev-2"}, "malformed row", "'identifier' is 'dev-2'"),
    "a path": ({"identifier": "../dev-2-0-0"}, "malformed row", "'identifier' is '../dev-2-0-0'"),
    "number": ({"identifier": 2}, "malformed row", "'identifier' is 2"),
    "twice": ({"identifier": "dev-1-0-0"}, "duplicate sentence id", "nlvr2:dev-1-0-0"),
    "no text": ({"sentence": 4}, "sentence is not text", "found 4"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_nlvr2_bad_rows(tmp_path: Path, name: str) -> None:
    change, problem, reason = BAD_ROWS[name]
    source = nlvr2(tmp_path, {"dev": nlvr2_rows("dev", 5)})
    rows = read_lines(source.json[0])
    rows[2].update(change)
    write_lines(source.json[0], rows)
    prepare(source, tmp_path / "set", max_bad=0.2)
    ((file, where, found, why),) = problems(tmp_path / "set")
    assert (file, where, found) == ("dev.json", "line 3", problem)
    assert reason in why
    assert len(PreparedDataset.open(tmp_path / "set").examples("dev")) == 9
    with pytest.raises(PixelBertError, match=r"dev\.json: line 3: " + problem):
        prepare(source, tmp_path / "strict", strict=True)


def test_nlvr2_files_that_are_wrong(tmp_path: Path) -> None:
    source = nlvr2(tmp_path, {"dev": nlvr2_rows("dev", 3)})
    text = source.json[0].read_text()
    source.json[0].write_text(text[:-30])
    prepare(source, tmp_path / "set", max_bad=0.2)
    ((file, where, problem, reason),) = problems(tmp_path / "set")
    assert (file, where, problem) == ("dev.json", "line 6", "malformed row")
    assert "cut short" in reason
    for content, message in (
        ("", r"dev\.json is empty"),
        ("<html>\n</html>", r"dev\.json: expected NLVR2's JSON lines.*line 1: not JSON"),
        (json.dumps(nlvr2_rows("dev", 2)), "expected NLVR2's JSON lines.*line 1: expected an object"),
    ):
        source.json[0].write_text(content)
        with pytest.raises(PixelBertError, match=message):
            source.read()
    with pytest.raises(PixelBertError, match="--json"):
        Nlvr2(json=[], images=tmp_path).read()


# --- Karpathy's COCO and Flickr30K, and Table 1


def test_coco_test_images_keep_the_order_of_the_file(tmp_path: Path) -> None:
    data = karpathy_data(12, sentences=1) | {"dataset": "coco"}
    numbers = [40, 7, 99, 3, 62, 11, 5, 80, 21, 2, 73, 1]
    for item, number in zip(data["images"], numbers, strict=True):
        item.update(cocoid=number, split="restval" if number == 1 else "test")
    source = Coco(json=write_json(tmp_path / "c.json", data), images=write_photos(tmp_path / "photos", 12))
    summary = prepare(source, tmp_path / "set")
    prepared = PreparedDataset.open(tmp_path / "set")
    assert [ids[0] for ids in prepared.examples("test")["image_ids"]] == [f"coco:{n}" for n in numbers[:-1]]
    assert prepared.splits == ["restval", "test"]
    assert "pre-training: 106K images, 533K texts; here 1 and 1 (restval)\n    not prepared here: train" in str(summary)


def test_flickr30k_is_not_taken_for_another(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    path = write_json(tmp_path / "f.json", karpathy_data(3) | {"dataset": "flickr30k"})
    summary = prepare(Flickr30k(json=path, images=photos), tmp_path / "set")
    assert PreparedDataset.open(tmp_path / "set").name == "flickr30k"
    assert "retrieval: 32K images, 160K texts; here 3 and 6 (train)" in str(summary)
    path = write_json(tmp_path / "f.json", karpathy_data(3) | {"dataset": "flickr8k"})
    with pytest.raises(
        PixelBertError, match=r"says it is 'flickr8k', not 'flickr30k': use `pixelbert prepare karpathy`"
    ):
        prepare(Flickr30k(json=path, images=photos), tmp_path / "other")


def test_table_1(tmp_path: Path) -> None:
    assert TABLE_1.keys() == {"vg", "coco", "flickr30k", "vqa2", "nlvr2"}
    assert beside_table1("mine", {"train": {"images": 1, "examples": 2}}) == []
    full = {split: {"images": 1000, "examples": 5000} for split in ("train", "val", "test", "test_dev")}
    line, note = beside_table1("vqa2", full)  # test_dev is a part of test
    assert line.endswith("204K images, 1.1M texts; here 3,000 and 15,000 (train+val+test)")
    assert "all splits" in note
    summary = Summary(tmp_path, "vqa2", notes=[line])
    assert str(summary).endswith(line)


def test_every_format_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name, options in (
        ("vqa2", ("--questions", "--annotations", "--answers", "--min_count", "--exclude")),
        ("visual-genome-qa", ("--question_answers", "--exclude", "--answers")),
        ("nlvr2", ("--json", "--images")),
        ("flickr30k", ("--json", "--images")),
    ):
        with pytest.raises(SystemExit):
            cli.main(["prepare", name, "--help"])
        text = capsys.readouterr().out
        assert all(option in text for option in options), name


def test_photos_of_any_kind_serve(tmp_path: Path) -> None:
    """NLVR2's files are called .png whatever they are."""
    source = nlvr2(tmp_path, {"dev": nlvr2_rows("dev", 1)})
    (source.images / "dev" / "dev-0-0-img0.png").write_bytes(encoded(photo(), "JPEG"))
    assert not prepare(source, tmp_path / "set").skipped

"""`pixelbert score`: files in, figures out, and errors that name the file and the id. No model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixelbert.cli import main

QUESTIONS = {11: "How many dogs?", 22: "Is it red?", 33: "What is it?"}
OTHERS = [f"other {letter}" for letter in "bcdefghij"]
ANNOTATIONS = {
    11: ("number", "how many", ["two"] * 3 + OTHERS[:7]),
    22: ("yes/no", "is it", ["yes"] * 10),
    33: ("other", "what is", ["a cat", *OTHERS]),
}
IDENTIFIERS = {"dev-7-0-0": "True", "dev-7-1-0": "False", "dev-7-0-1": "False", "dev-9-0-0": "True"}


def write(file: Path, value: Any) -> Path:
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    return file


def vqa_files(folder: Path, **changes: Any) -> list[str]:
    """Arguments for three questions; `changes` are other contents for a file."""
    contents: dict[str, Any] = {
        "questions": {"questions": [{"image_id": 1, "question_id": i, "question": q} for i, q in QUESTIONS.items()]},
        "annotations": {"annotations": [annotation(i) for i in ANNOTATIONS]},
        "predictions": [{"question_id": i, "answer": a} for i, a in {22: "Yes", 11: "2", 33: "cat."}.items()],
    }
    files = {name: write(folder / f"{name}.json", value) for name, value in (contents | changes).items()}
    return ["score", "vqa", *(word for name, file in files.items() for word in (f"--{name}", str(file)))]


def annotation(question_id: int, /, **changes: Any) -> dict[str, Any]:
    answer_type, question_type, answers = ANNOTATIONS[question_id]
    return {
        "question_id": question_id,
        "answer_type": answer_type,
        "question_type": question_type,
        "answers": [{"answer": a, "answer_id": n, "answer_confidence": "yes"} for n, a in enumerate(answers, 1)],
    } | changes


def nlvr2_files(folder: Path, data: str | None = None, predictions: str | None = None) -> list[str]:
    lines = [json.dumps({"identifier": i, "label": label, "sentence": "x"}) for i, label in IDENTIFIERS.items()]
    rows = ["dev-9-0-0,True", "dev-7-0-0,false", "dev-7-1-0,FALSE", "dev-7-0-1,False"]
    write(folder / "dev.json", "\n".join(lines) + "\n" if data is None else data)
    write(folder / "p.csv", "\n".join(rows) + "\n" if predictions is None else predictions)
    return ["score", "nlvr2", "--data", str(folder / "dev.json"), "--predictions", str(folder / "p.csv")]


def run(arguments: list[str], out: Path) -> dict[str, Any]:
    main([*arguments, "--json", str(out)])
    result = json.loads(out.read_text())
    assert [file.name for file in out.parent.glob("*.partial")] == []
    return result


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


class TestVqa:
    def test_by_hand(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        result = run(vqa_files(tmp_path), tmp_path / "new" / "out.json")
        # "2" is what three of ten said; ten times "yes" is not "Yes"; "cat." is what one of ten said.
        assert result["per_question"] == pytest.approx({"11": 90, "22": 0, "33": 30}, abs=1e-9)
        assert result["overall"] == pytest.approx(40, abs=1e-9)
        assert result["per_answer_type"] == pytest.approx({"number": 90, "yes/no": 0, "other": 30}, abs=1e-9)
        assert result["per_question_type"] == pytest.approx({"how many": 90, "is it": 0, "what is": 30}, abs=1e-9)
        shown = capsys.readouterr().out
        assert "40.00" in shown
        assert "yes/no" in shown

    def test_nothing_is_rounded(self, tmp_path: Path) -> None:
        answers = [{"question_id": i, "answer": a} for i, a in {22: "yes", 11: "2", 33: "dog"}.items()]
        result = run(vqa_files(tmp_path, predictions=answers), tmp_path / "out.json")
        assert result["overall"] == pytest.approx(190 / 3, abs=1e-9)

    def test_types_may_be_absent(self, tmp_path: Path) -> None:
        rows = [{k: v for k, v in annotation(i).items() if not k.endswith("_type")} for i in ANNOTATIONS]
        result = run(vqa_files(tmp_path, annotations={"annotations": rows}), tmp_path / "out.json")
        assert result["per_answer_type"] == {}
        assert result["overall"] == pytest.approx(40, abs=1e-9)

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("predictions", [{"question_id": 22, "answer": "yes"}], ["2 of 3 have no prediction", "11, 33"]),
            (
                "predictions",
                [{"question_id": i, "answer": "yes"} for i in (11, 22, 44)],
                ["no prediction: question_id 33", "question_id 44 not in"],
            ),
            ("predictions", [{"question_id": i, "answer": "yes"} for i in (11, 22, 33, 22)], ["22 stands there twice"]),
            (
                "predictions",
                [{"question_id": i, "answer": i} for i in (11, 22, 33)],
                ["question_id 11", "expected text"],
            ),
            ("predictions", [{"question_id": i} for i in (11, 22, 33)], ["question_id 11", "'answer' is missing"]),
            ("predictions", [{"question_id": "11", "answer": "yes"}], ["item 1", "'11' is not a whole number"]),
            ("predictions", {"11": "yes"}, ["a list at the top"]),
            ("predictions", [], ["the list is empty"]),
            ("predictions", '[{"question_id": 11, "answ', ["line 1", "cut short"]),
            ("questions", '{"questions": [{"question_id": 11}, {"quest', ["line 1", "cut short"]),
            ("questions", {"annotations": []}, ["'questions' at the top"]),
            ("questions", {"questions": [{"question": "no id"}]}, ["item 1", "'question_id'"]),
            ("annotations", {"annotations": [annotation(11), annotation(22)]}, ["no annotation for question_id 33"]),
            (
                "annotations",
                {"annotations": [annotation(i) for i in ANNOTATIONS] + [annotation(33, question_id=55)]},
                ["question_id 55 not in"],
            ),
            (
                "annotations",
                {"annotations": [annotation(i) for i in (11, 22, 33, 11)]},
                ["question_id 11 stands there twice"],
            ),
            (
                "annotations",
                {"annotations": [annotation(11), annotation(22, answers=[{"answer": "yes"}] * 9), annotation(33)]},
                ["question_id 22 has 9 answers, expected 10"],
            ),
            (
                "annotations",
                {"annotations": [annotation(11), annotation(22, answers=None), annotation(33)]},
                ["question_id 22 has no answers"],
            ),
            (
                "annotations",
                {"annotations": [annotation(11), annotation(22, answers=[{"answer": 1}] * 10), annotation(33)]},
                ["question_id 22", "'answer' is 1, expected text"],
            ),
            (
                "annotations",
                {"annotations": [annotation(11), annotation(22), annotation(33, answer_type=None)]},
                ["question_id 33", "'answer_type' is None"],
            ),
        ],
    )
    def test_what_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: Any, words: list[str]
    ) -> None:
        message = refused(vqa_files(tmp_path, **{name: content}), capsys)
        for word in [str(tmp_path / f"{name}.json"), *words]:
            assert word in message

    def test_many_missing_are_counted(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rows = [annotation(11, question_id=i) for i in range(100)]
        asked = [{"question_id": i} for i in range(100)]
        answered = [{"question_id": 99, "answer": "yes"}]
        files = vqa_files(
            tmp_path, questions={"questions": asked}, annotations={"annotations": rows}, predictions=answered
        )
        assert "99 of 100 have no prediction: question_id 0, 1, 2, 3, 4 and 94 more." in refused(files, capsys)


class TestNlvr2:
    def test_by_hand(self, tmp_path: Path) -> None:
        # Three of four are right. Sentence 7-0 has one of two right; 7-1 and 9-0 are right.
        result = run(nlvr2_files(tmp_path), tmp_path / "out.json")
        assert result == pytest.approx({"accuracy": 75, "consistency": 200 / 3}, abs=1e-9)

    def test_line_ends_blank_lines_and_further_columns(self, tmp_path: Path) -> None:
        rows = "\r\n".join(f"{i},{label},0.97" for i, label in IDENTIFIERS.items())
        result = run(nlvr2_files(tmp_path, predictions=f"\ufeff{rows}\r\n\r\n"), tmp_path / "out.json")
        assert result == {"accuracy": 100, "consistency": 100}

    @pytest.mark.parametrize(
        ("predictions", "words"),
        [
            ("dev-7-0-0,True\n", ["3 of 4 have no prediction", "dev-7-0-1, dev-7-1-0, dev-9-0-0"]),
            ("dev-7-0-0,yes\n", ["line 1", "'dev-7-0-0' has 'yes', expected True or False"]),
            ("dev-7-0-0,True\ndev-7-1-0, True\n", ["line 2", "'dev-7-1-0' has ' True'"]),
            ("identifier,prediction\n", ["line 1", "'prediction'"]),
            ("dev-7-0-0 True\n", ["line 1", "expected identifier,True"]),
            ("dev-7-0-0,True\ndev-7-0-0,True\n", ["'dev-7-0-0' stands there twice"]),
            ("".join(f"{i},True\n" for i in [*IDENTIFIERS, "dev-1-0-0"]), ["identifier dev-1-0-0 not in"]),
            ("", ["empty"]),
        ],
    )
    def test_predictions_that_are_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], predictions: str, words: list[str]
    ) -> None:
        message = refused(nlvr2_files(tmp_path, predictions=predictions), capsys)
        for word in [str(tmp_path / "p.csv"), *words]:
            assert word in message

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            (
                '{"identifier": "dev-7-0-0", "label": "Maybe"}',
                ["line 2", "'dev-7-0-0' has 'Maybe', expected True or Fal"],
            ),
            ('{"identifier": "dev-7-0-0"}', ["line 2", "'dev-7-0-0' has None"]),
            ('{"identifier": "dev-7-0-0", "lab', ["line 2", "cut short"]),
            ('{"label": "True"}', ["line 2", "'identifier'"]),
            ("[1]", ["line 2", "'identifier'"]),
            ('{"identifier": "dev7", "label": "True"}', ["line 2", "'dev7' is not of the form"]),
            ('{"identifier": "dev-1-0-0", "label": "True"}', ["'dev-1-0-0' stands there twice"]),
        ],
    )
    def test_data_that_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, words: list[str]
    ) -> None:
        first = '{"identifier": "dev-1-0-0", "label": "True"}'
        message = refused(nlvr2_files(tmp_path, data=f"{first}\n{line}\n"), capsys)
        for word in [str(tmp_path / "dev.json"), *words]:
            assert word in message


class TestRetrieval:
    SCORES = np.array([[0.9, 0.2], [0.1, 0.3], [0.8, 0.7]], dtype=np.float32)  # captions of images 7, 7, 5

    @pytest.mark.parametrize("form", ["json", "npy", "txt", "csv", "strings.json", "strings.npy"])
    def test_by_hand(self, tmp_path: Path, form: str) -> None:
        np.save(tmp_path / "scores.npy", self.SCORES)
        ids: list[Any] = ["7", "7", "5"] if "strings" in form else [7, 7, 5]
        file = tmp_path / f"ids.{form}"
        if form.endswith("npy"):
            np.save(file, np.array(ids))
        else:
            file.write_text(json.dumps(ids) if form.endswith("json") else "7\r\n7\r\n5\r\n")
        result = run(self.arguments(tmp_path, file), tmp_path / "out.json")
        # Caption 0 finds its image, captions 1 and 2 prefer the other. Both images prefer a caption of their own.
        assert result["text_to_image_r1"] == pytest.approx(100 / 3)
        assert result["image_to_text_r1"] == 100
        assert result["text_to_image_r5"] == result["image_to_text_r10"] == 100
        assert "fold_mean" not in result

    def test_columns_in_another_order(self, tmp_path: Path) -> None:
        np.save(tmp_path / "scores.npy", self.SCORES[:, ::-1])
        files = [write(tmp_path / "ids.json", [7, 7, 5]), write(tmp_path / "columns.txt", "5\n7\n")]
        result = run(self.arguments(tmp_path, *files), tmp_path / "out.json")
        assert result["text_to_image_r1"] == pytest.approx(100 / 3)

    def test_folds(self, tmp_path: Path) -> None:
        # Each caption scores its own image 1, and 2 an image of the other fold.
        np.save(tmp_path / "scores.npy", np.eye(4) + 2 * np.eye(4)[[2, 3, 0, 1]])
        ids = write(tmp_path / "ids.json", ["a", "b", "c", "d"])
        result = run([*self.arguments(tmp_path, ids), "--folds", "2"], tmp_path / "out.json")
        assert result["text_to_image_r1"] == result["image_to_text_r1"] == 0
        assert result["fold_mean"]["text_to_image_r1"] == result["fold_mean"]["image_to_text_r1"] == 100

    @pytest.mark.parametrize(
        ("scores", "ids", "columns", "words"),
        [
            (np.zeros((3, 2)), [7, 7], None, ["3 rows and 2 columns", "expected 2 rows", "1 columns"]),
            (np.zeros((3, 3)), [7, 7, 5], None, ["expected 3 rows", "2 columns", "--columns"]),
            (np.zeros((2, 3)), [7, 7, 5], None, ["2 rows and 3 columns"]),
            (np.array([[1.0, np.nan], [0, 1]]), [7, 5], None, ["scores.npy", "NaN"]),
            (np.zeros((3, 2)), [7, 7, 5], [7, 6], ["row 3", "'5' is not among the columns"]),
            (np.zeros((3, 2)), [7, 7, 7], [7, 6], ["columns.json", "no caption for image id 6"]),
            (np.zeros((3, 2)), [7, 7, 5], [7, 7], ["columns.json", "'7' stands there twice"]),
            (np.zeros((3, 2)), [7, None, 5], None, ["ids.json, row 2", "None"]),
            (np.zeros((3, 2)), {"7": 1}, None, ["ids.json", "a list of ids"]),
            (np.zeros(3), [7, 7, 5], None, ["expected a matrix"]),
            (np.array([["a", "b"]]), [7], None, ["expected a matrix of numbers"]),
        ],
    )
    def test_what_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], scores: Any, ids: Any, columns: Any, words: list[str]
    ) -> None:
        np.save(tmp_path / "scores.npy", scores)
        files = [write(tmp_path / "ids.json", ids)]
        if columns:
            files.append(write(tmp_path / "columns.json", columns))
        message = refused(self.arguments(tmp_path, *files), capsys)
        for word in words:
            assert word in message

    def test_folds_that_do_not_divide(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        np.save(tmp_path / "scores.npy", np.eye(4))
        arguments = self.arguments(tmp_path, write(tmp_path / "ids.json", [1, 2, 3, 4]))
        assert "4 images do not divide into 5 equal folds" in refused([*arguments, "--folds", "5"], capsys)
        assert "folds is -1; expected 0 to 2,147,483,647" in refused([*arguments, "--folds", "-1"], capsys)

    def test_files_that_are_not_arrays(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        np.save(tmp_path / "whole.npy", np.zeros((100, 100)))
        ids = write(tmp_path / "ids.json", [1])
        for content in ((tmp_path / "whole.npy").read_bytes()[:-8], b"not an array"):
            (tmp_path / "scores.npy").write_bytes(content)
            assert "scores.npy is not a whole .npy array" in refused(self.arguments(tmp_path, ids), capsys)
        (tmp_path / "scores.npy").unlink()
        assert "scores.npy does not exist" in refused(self.arguments(tmp_path, ids), capsys)
        assert "blank.txt, row 2" in refused(
            ["score", "retrieval", "--scores", str(tmp_path / "whole.npy"), "--image-ids", self.blank(tmp_path)], capsys
        )

    @staticmethod
    def blank(folder: Path) -> str:
        return str(write(folder / "blank.txt", "1\n\n2\n"))

    @staticmethod
    def arguments(folder: Path, ids: Path, columns: Path | None = None) -> list[str]:
        result = ["score", "retrieval", "--scores", str(folder / "scores.npy"), "--image-ids", str(ids)]
        return result + (["--columns", str(columns)] if columns else [])


def test_an_output_that_exists_stays_whole_if_the_files_are_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = write(tmp_path / "out.json", "{}")
    refused([*nlvr2_files(tmp_path, predictions="dev-7-0-0,True\n"), "--json", str(out)], capsys)
    assert out.read_text() == "{}"

"""`pixelbert evaluate` as a command: options that would be ignored, folders that are in use, files that were cut."""

from __future__ import annotations

import csv
import errno
import inspect
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from pixelbert import (
    PixelBertError,
    PixelBertForImageAndTextRetrieval,
    PixelBertForPreTraining,
    PixelBertForQuestionAnswering,
    PixelBertProcessor,
    cli,
)
from pixelbert.data.processing import PixelBertImageProcessor, learn_tokenizer
from pixelbert.evaluate import evaluate
from pixelbert.evaluate_options import USES, Kind, Options
from pixelbert.files import exclusive
from pixelbert.tasks import predictions
from pixelbert.tasks.predictions import PredictionLog, open_scores, read_predictions

GIVEN: dict[str, Any] = {
    "examples": 4,
    "controls": False,
    "retrieval_images": 3,
    "captions_per_image": 1,
    "folds": 3,
    "queries": 2,
    "shortlist": 2,
    "questions": Path("questions.json"),
    "seed": 5,
}


def ignored(kind: str, given: set[str]) -> set[str]:
    """The options that the evaluation of a task would not look at, spelt out task by task."""
    if kind == "pretraining":
        return given - {"examples", "retrieval_images", "captions_per_image", "seed"}
    if kind == "retrieval":
        used = {"retrieval_images", "captions_per_image", "folds", "queries", "shortlist", "seed"}
        if "shortlist" in given:
            used -= {"queries", "folds", "seed"}
        elif "queries" in given:
            used -= {"folds"}
        else:
            used -= {"seed"}
        return given - used
    used = {"examples", "controls", "seed"} | ({"questions"} if kind == "question-answering" else set())
    if "controls" in given:  # which turns them off
        used -= {"seed"}
    if "questions" in given:  # all of which must be answered
        used -= {"examples"}
    return given - used


class TestOptions:
    @pytest.mark.parametrize("kind", get_args(Kind))
    def test_what_would_be_ignored_is_refused_in_every_combination(self, kind: Kind) -> None:
        refusals = 0
        for chosen in itertools.product((False, True), repeat=len(GIVEN)):
            given = {name: value for (name, value), one in zip(GIVEN.items(), chosen, strict=True) if one}
            if not ignored(kind, set(given)):
                Options(**given).check(kind)
                continue
            refusals += 1
            with pytest.raises(PixelBertError, match=r"^--\S+ does (nothing|not go)"):
                Options(**given).check(kind)
        assert 0 < refusals < 2 ** len(GIVEN)

    def test_every_option_has_its_place(self) -> None:
        everywhere = {"checkpoint", "data", "split", "output", "json", "task", "allow_trained", "feature_cache"}
        everywhere |= {"precision", "device"}
        parameters = inspect.signature(evaluate).parameters
        assert set(parameters) - everywhere == set(USES) == set(GIVEN) == {*vars(Options())}
        assert {name: parameters[name].default for name in USES} == vars(Options())

    @pytest.mark.parametrize(
        ("kind", "given", "message"),
        [
            ("pretraining", {"examples": 0}, "--examples is 0: expected 1 or more"),
            ("reasoning", {"examples": -3}, "--examples is -3: expected 1 or more"),
            ("retrieval", {"retrieval_images": 0}, "--retrieval-images is 0: expected 1 or more"),
            ("pretraining", {"retrieval_images": 0, "captions_per_image": 2}, "with --retrieval-images 0"),
            ("retrieval", {"captions_per_image": -1}, "--captions-per-image is -1: expected 0 or more"),
            ("retrieval", {"queries": -5}, "--queries is -5: expected 1 or more"),
            ("retrieval", {"folds": -1}, "--folds is -1"),
            ("retrieval", {"shortlist": -1}, "--shortlist is -1"),
            ("pretraining", {"seed": -1}, "--seed is -1: expected 0 or more"),
            ("retrieval", {"examples": 5}, "--retrieval-images and --captions-per-image say how much is ranked"),
            ("retrieval", {"queries": 5, "folds": 5}, "--folds does not go with --queries: leave out one"),
            ("question-answering", {"folds": 5}, "only with retrieval: leave it out"),
        ],
    )
    def test_what_to_do(self, kind: Kind, given: dict[str, Any], message: str) -> None:
        with pytest.raises(PixelBertError) as refused:
            Options(**given).check(kind)
        assert message in str(refused.value)

    def test_what_may_be(self) -> None:
        Options(retrieval_images=0).check("pretraining")
        Options(captions_per_image=0).check("retrieval")
        Options(queries=5, seed=3, retrieval_images=10).check("retrieval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Any]) -> Path:
    """Twelve photos with captions and questions, and untrained models for them."""
    folder = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    captions, questions = [("image", "caption", "split")], [("image", "question", "answer", "split")]
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        captions += [(f"{i}.png", f"photo {i} of {word}", "test") for word in ("red", "blue")]
        questions.append((f"{i}.png", f"is photo {i} red", ("yes", "no")[i % 2], "test"))
    for name, rows in (("captions", captions), ("questions", questions)):
        with (folder / f"{name}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(rows)
    photos = ["--images", str(folder)]
    source = ["--captions", str(folder / "captions.csv")]
    cli.main(["prepare", "folder", *photos, *source, "--output", str(folder / "pairs")])
    source = ["--questions", str(folder / "questions.csv"), "--answers_from", "[test]"]
    cli.main(["prepare", "vqa-csv", *photos, *source, "--output", str(folder / "asked")])
    tokenizer = learn_tokenizer([row[1] for row in captions + questions], 100)
    processor = PixelBertProcessor(PixelBertImageProcessor(64, 64), tokenizer, 16)
    for name, kind, more in (
        ("answers", PixelBertForQuestionAnswering, {"id2label": {0: "yes", 1: "no"}, "label2id": {}}),
        ("ranks", PixelBertForImageAndTextRetrieval, {"tower_size": 8}),
        ("pretrained", PixelBertForPreTraining, {}),
    ):
        tiny_model(kind, vocab_size=len(tokenizer), **more).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return folder


def arguments(folder: Path, model: str, output: Path, *more: str) -> list[str]:
    data = folder / ("asked" if model == "answers" else "pairs")
    command = ["evaluate", str(folder / model), "--data", str(data), "--split", "test", "--output", str(output)]
    return [*command, "--precision", "fp32", "--device", "cpu", *more]


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    assert stop.value.code == 2
    return capsys.readouterr().err


class TestCommand:
    def test_refused_before_anything_is_measured_or_written(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for model, more, message in (
            ("ranks", ["--examples", "3"], "--examples does nothing when retrieval is measured"),
            ("ranks", ["--shortlist", "3", "--queries", "2"], "--queries does not go with --shortlist"),
            ("ranks", ["--shortlist", "3", "--folds", "2"], "--folds does not go with --shortlist"),
            ("ranks", ["--queries", "3", "--folds", "2"], "--folds does not go with --queries"),
            ("ranks", ["--seed", "3"], "--seed does nothing where all pairs are scored"),
            ("ranks", ["--folds", "5"], "--folds 5: 12 images do not divide"),
            ("answers", ["--retrieval-images", "3"], "--retrieval-images does nothing"),
            ("pretrained", ["--questions", "q.json"], "--questions does nothing"),
            ("pretrained", ["--task", "retrieval", "--shortlist", "3"], "no two-tower head"),
        ):
            assert message in refused(arguments(folder, model, tmp_path / "out", *more), capsys), more
            assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("model", ["answers", "ranks", "pretrained"])
    def test_a_folder_is_one_evaluations_at_a_time(
        self, folder: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        out.mkdir()
        with exclusive(out / ".lock", "busy"):
            assert f"another evaluation is at work in {out}" in refused(arguments(folder, model, out), capsys)
        assert [path.name for path in out.iterdir()] == [".lock"]
        cli.main(arguments(folder, model, out))
        assert (out / "metrics.json").exists()

    def test_no_figures_over_those_of_another_task(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        cli.main(arguments(folder, "pretrained", tmp_path, "--task", "retrieval"))
        before = (tmp_path / "metrics.json").read_text()
        assert "an evaluation of another task" in refused(arguments(folder, "pretrained", tmp_path), capsys)
        assert (tmp_path / "metrics.json").read_text() == before


KILLED = """
import json, os, signal
from pixelbert import cli
from pixelbert.tasks import predictions

def add(log, example_id, prediction, add=predictions.PredictionLog.add):
    if len(log.done) == 7:
        log._stream.write(json.dumps({{"id": example_id, "prediction": prediction}}).encode())
        log._stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    add(log, example_id, prediction)

predictions.PredictionLog.add = add
cli.main({command!r})
"""


class TestPredictions:
    def test_killed_between_a_line_and_its_line_break(self, folder: Path, tmp_path: Path) -> None:
        script = KILLED.format(command=arguments(folder, "answers", tmp_path / "killed"))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        assert done.returncode == -signal.SIGKILL, done.stderr
        log = tmp_path / "killed" / "answers.jsonl"
        assert log.read_bytes().count(b"\n") == 7
        assert log.read_bytes().endswith(b"}")
        for _ in range(2):  # a line that was glued on was noticed at the start after the next
            cli.main(arguments(folder, "answers", tmp_path / "killed"))
        cli.main(arguments(folder, "answers", tmp_path / "whole"))
        for file in ("metrics.json", "answers.jsonl", "vqa_results.json"):
            killed, whole = ((tmp_path / run / file).read_text() for run in ("killed", "whole"))
            assert sorted(killed.splitlines()) == sorted(whole.splitlines())

    def test_cut_at_every_byte(self, tmp_path: Path) -> None:
        file, expected = tmp_path / "answers.jsonl", {f"vqa:{i}": f"answer é {i}" for i in range(4)}
        with PredictionLog(file, str) as log:
            for item in expected.items():
                log.add(*item)
        whole = file.read_bytes()
        for size in range(len(whole) + 1):
            file.write_bytes(whole[:size])
            with PredictionLog(file, str) as log:
                known = dict(log.done)
                assert len(known) == whole[:size].count(b"\n")
                for key in expected.keys() - known.keys():
                    log.add(key, expected[key])
            assert read_predictions(file, str) == (expected, [])

    def test_a_damaged_line_is_told_and_the_others_are_kept(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "statements.jsonl"
        lines = [predictions.prediction_line(f"nlvr2:{i}", i % 2 == 0) for i in range(5)]
        glued = lines[1][:-1] + lines[2]
        for damaged in (glued, "\n", '{"id": "nlvr2:1", "prediction": "x"}\n', lines[1].replace(":1", ":\r"), "\0\n"):
            file.write_text("".join([lines[0], damaged, *lines[3:]]), newline="")
            with PredictionLog(file, bool) as log:
                assert log.done == {"nlvr2:0": True, "nlvr2:3": False, "nlvr2:4": True}, damaged
                log.add("nlvr2:2", True)
                log.add("nlvr2:1", False)
            said = " ".join(capsys.readouterr().err.split())
            assert "line 2 damaged; taken out, and predicted again" in said
            assert read_predictions(file, bool) == ({f"nlvr2:{i}": i % 2 == 0 for i in range(5)}, [])
        with PredictionLog(file, bool):
            assert capsys.readouterr().err == ""

    def test_a_full_disk_is_told_with_the_file(self, tmp_path: Path) -> None:
        file = tmp_path / "answers.jsonl"
        log = PredictionLog(file, str)
        log.add("a", "yes")
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, log._stream.fileno())
        os.close(full)
        with pytest.raises(OSError, match=r"answers\.jsonl"):
            log.add("b", "no")
        with pytest.raises(OSError, match=r"answers\.jsonl"):
            log.__exit__(None, None, None)
        assert read_predictions(file, str) == ({"a": "yes"}, [])

    def test_a_full_disk_is_told_before_pairs_are_scored(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(predictions.os, "fsync", full)
            with pytest.raises(
                PixelBertError, match=r"No space left on device\): it takes 24,000,000 bytes; make room"
            ):
                open_scores(tmp_path / "scores.npy", 3000, 2000)
        assert list(tmp_path.iterdir()) == []
        scores = open_scores(tmp_path / "scores.npy", 30, 20)
        assert np.isnan(scores).all()
        assert scores.shape == (30, 20)
        assert np.load(tmp_path / "scores.npy").dtype == np.float32

"""A run's folder: who may train in it, what it was begun with, and files of it that cannot be trusted."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from data_builders import read_lines
from pixelbert import PixelBertError, cli
from pixelbert.files import SUMS
from pixelbert.loading import load_checkpoint, trained_on
from pixelbert.model_card import last_validation
from pixelbert.train.checkpoint import checkpoints, damage
from pixelbert.train.curves import plot_curves
from pixelbert.train.inputs import hold, learned_from, of_checkpoint
from test_faults import RECIPE, log, same, train, when

# As many threads as here: what both compute is compared bit by bit.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that met no fault."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    train(output)
    return output


@pytest.fixture
def unfinished(tmp_path: Path, whole: Path) -> Path:
    """The same, but for its end."""
    output = tmp_path / "run"
    shutil.copytree(whole, output)
    shutil.rmtree(output / "final")
    return output


def refused(output: Path, capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    """Have the command refused, and give what it said in one line. The logs are as they were."""
    before = (output / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        train(output, **changes)
    assert ended.value.code == 2
    assert (output / "metrics.jsonl").read_bytes() == before
    assert not (output / "final").exists()
    return " ".join(capsys.readouterr().err.split())


def start(output: Path, **changes: Any) -> subprocess.Popen[str]:
    """The command, in a process of its own."""
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(RECIPE | changes))
    command = [sys.executable, "-m", "pixelbert", "train", str(file), "--output", str(output)]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def wait_for(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- What it was begun with


class Photos:
    """Photos whose captions are prepared, again and again, into one data set."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        (folder / "photos").mkdir(parents=True)
        for i in range(16):
            Image.new("RGB", (128, 128), (10 * i, 100, 200)).save(folder / "photos" / f"{i}.png")

    def caption(self, what: str) -> None:
        """Prepare the data set with captions about this."""
        rows = [f"{i}.png,a {what} number {i},{'train' if i < 12 else 'val'}" for i in range(16)]
        (self.folder / "photos" / "captions.csv").write_text("\n".join(["image,caption,split", *rows]) + "\n")
        photos = ["--images", str(self.folder / "photos"), "--output", str(self.data)]
        cli.main(["prepare", "folder", *photos, "--overwrite"])

    @property
    def recipe(self) -> dict[str, Any]:
        """Changes of the recipe that have a run learn from it."""
        sources = {"train": [f"{self.data}:train"], "validation": [f"{self.data}:val"]}
        return {"data": RECIPE["data"] | sources, "epochs": 4.0}


def test_a_killed_run_is_refused_other_data_and_goes_on_with_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = Photos(tmp_path / "mine")
    photos.caption("red bus")
    train(tmp_path / "whole", **photos.recipe)
    output = tmp_path / "run"
    process = start(output, **photos.recipe)
    metrics = output / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 6, process)
    process.kill()
    process.wait()

    photos.caption("sleeping cat")
    said = refused(output, capsys, **photos.recipe)
    for split in ("train", "val"):
        assert f"{photos.data}:{split}: {split}-00000.parquet changed" in said
    assert "Put back what was there to go on, or choose another --output" in said
    assert "sleeping" not in (output / "tokenizer" / "tokenizer.json").read_text()

    photos.caption("red bus")  # the same again, prepared anew
    train(output, **photos.recipe)
    assert same(output, tmp_path / "whole")
    assert trained_on(output / "final") == trained_on(tmp_path / "whole" / "final")
    assert len(trained_on(output / "final")) == 1


def test_a_run_without_checksums_goes_on_and_has_learned_from_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that an earlier version began; `best` tells what it had learned from."""
    photos, output = Photos(tmp_path / "mine"), tmp_path / "run"
    photos.caption("red bus")
    options = photos.recipe | {"keep_best": "itm_accuracy"}
    with when(output, 6, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(SystemExit):
        train(output, **options)
    first = trained_on(output / "best")
    for name in ("inputs.json", "trained_on.json"):
        (output / name).unlink()
    photos.caption("sleeping cat")
    capsys.readouterr()
    train(output, **options)
    assert "nobody can tell whether they are the same" in " ".join(capsys.readouterr().err.split())
    learned = trained_on(output / "final")
    assert learned[: len(first)] == first
    assert len(learned) == 2
    assert learned[0]["sha256"] != learned[1]["sha256"]
    assert json.loads((output / "inputs.json").read_text())


def test_before_the_first_step_there_is_nothing_to_lose(tmp_path: Path) -> None:
    photos, output = Photos(tmp_path / "mine"), tmp_path / "run"
    photos.caption("red bus")
    with pytest.raises(SystemExit):  # after the vocabulary is learned
        train(output, **photos.recipe | {"model": RECIPE["model"] | {"backbone_init": str(tmp_path / "none.pth")}})
    assert "bus" in (output / "tokenizer" / "tokenizer.json").read_text()
    photos.caption("sleeping cat")
    train(output, **photos.recipe | {"epochs": 0.5})
    assert "bus" not in (output / "tokenizer" / "tokenizer.json").read_text()
    assert len(trained_on(output / "final")) == 1


def test_the_vocabulary_that_it_learned(unfinished: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = unfinished / "tokenizer" / "tokenizer.json"
    shutil.copytree(whole / "tokenizer", unfinished / "tokenizer", dirs_exist_ok=True)
    kept = file.read_text()
    words = json.loads(kept)
    vocabulary = words["model"]["vocab"]
    vocabulary["red"], vocabulary["blue"] = vocabulary["blue"], vocabulary["red"]
    file.write_text(json.dumps(words))
    said = refused(unfinished, capsys)
    assert "learned vocabulary" in said
    assert "tokenizer.json changed" in said
    file.write_text(kept)
    train(unfinished)
    assert same(unfinished, whole)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "trained_on.json"])
def test_every_file_that_a_run_began_with(tmp_path: Path, whole: Path, name: str) -> None:
    start, output = tmp_path / "start", tmp_path / "run"
    shutil.copytree(whole / "final", start)
    (output / "checkpoints" / "step-00000001").mkdir(parents=True)
    hold(output, {"model.checkpoint start": of_checkpoint(str(start))})
    (start / "README.md").write_text("with its licence")  # which nothing depends on
    hold(output, {"model.checkpoint start": of_checkpoint(str(start))})
    content = bytearray((start / name).read_bytes())
    content[-5] ^= 1
    (start / name).write_bytes(content)
    with pytest.raises(PixelBertError, match=rf"model\.checkpoint start: {name} changed"):
        hold(output, {"model.checkpoint start": of_checkpoint(str(start))})
    (start / name).unlink()
    with pytest.raises(PixelBertError, match=rf"model\.checkpoint start: {name} gone"):
        hold(output, {"model.checkpoint start": of_checkpoint(str(start))})


def test_first_weights_of_the_cnn_are_held(tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = load_file(whole / "final" / "model.safetensors")
    part = "pixelbert.backbone."
    weights, output = tmp_path / "cnn.safetensors", tmp_path / "run"
    cnn = {name.removeprefix(part): tensor for name, tensor in state.items() if name.startswith(part)}
    save_file(cnn, weights)
    options = {"model": RECIPE["model"] | {"backbone_init": str(weights)}}
    with when(output, 3, lambda: os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(SystemExit):
        train(output, **options)
    save_file({name: tensor * 2 for name, tensor in cnn.items()}, weights)
    assert f"model.backbone_init {weights}: cnn.safetensors changed" in refused(output, capsys, **options)


def test_what_it_learned_from_only_grows(tmp_path: Path) -> None:
    a, b = ({"data": name, "split": "train", "sha256": [name]} for name in "ab")
    assert learned_from(tmp_path, [a]) == [a]
    assert learned_from(tmp_path, [b]) == [a, b]
    assert learned_from(tmp_path, [a]) == [a, b]


def test_damaged_checksums_of_inputs_are_told(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in ("", "{", "[]", '{"data": 3}'):
        (unfinished / "inputs.json").write_text(content)
        assert "inputs.json is damaged: copy it again" in refused(unfinished, capsys)


# --- Who may train in it


def test_a_second_command_touches_nothing_of_a_run_that_has_not_logged_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, slow = tmp_path / "run", {"log_every": 1000, "epochs": 4.0}
    process = start(output, **slow)
    try:
        wait_for((output / "tokenizer").exists, process)
        before = (output / "recipe.yaml").read_bytes()
        with pytest.raises(SystemExit) as ended:
            train(output, seed=5)
        assert ended.value.code == 2
        assert "another process is training in" in " ".join(capsys.readouterr().err.split())
        assert (output / "recipe.yaml").read_bytes() == before
        assert (output / "tokenizer").is_dir()
        wait_for(lambda: bool(checkpoints(output)), process)
    finally:
        process.kill()
        process.wait()
    train(output, **slow)
    assert "going on after step" in " ".join(capsys.readouterr().err.split())


def test_two_commands_at_one_instant(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    together = fork.Barrier(2)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(RECIPE | {"epochs": 0.5}))

    def command(output: Path, said: Path) -> None:
        sys.stderr = said.open("w")
        torch.set_num_threads(1)  # the threads of the process that was forked are not here
        together.wait()
        cli.main(["train", str(file), "--output", str(output)])

    for attempt in range(3):
        output, said = tmp_path / f"run{attempt}" / "deep", [tmp_path / f"said{attempt}{i}" for i in range(2)]
        both = [fork.Process(target=command, args=(output, each)) for each in said]
        for process in both:
            process.start()
        for process in both:
            process.join(60)
        codes = [process.exitcode for process in both]
        assert sorted(codes, key=str) == [0, 2], [each.read_text() for each in said]
        loser = said[codes.index(2)].read_text()
        assert "another process is training in" in " ".join(loser.split())
        assert "Errno" not in loser
        assert (output / "final").is_dir()


def test_a_folder_of_other_things_is_left_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "mine", tmp_path / "file"):
        with pytest.raises(SystemExit):
            train(output)
        assert "is not the folder of a run" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


# --- What cannot be trusted


def lines_of(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Write SHA256SUMS with other lines."""
    file = folder / SUMS
    file.write_text("".join(change(file.read_text().splitlines(keepends=True))))


HARM: dict[str, Callable[[Path], object]] = {
    "emptied": lambda folder: (folder / SUMS).write_text(""),
    "lacks a line": lambda folder: lines_of(folder, lambda lines: [x for x in lines if "model.safetensors" not in x]),
    "names a device": lambda folder: lines_of(folder, lambda lines: [*lines, f"{'0' * 64}  /dev/zero\n"]),
    "names a file outside": lambda folder: lines_of(folder, lambda lines: [*lines, f"{'0' * 64}  ../../recipe.yaml\n"]),
    "is a pipe": lambda folder: ((folder / SUMS).unlink(), os.mkfifo(folder / SUMS)),
    "a pipe for a file": lambda folder: (
        (folder / "model.safetensors").unlink(),
        os.mkfifo(folder / "model.safetensors"),
    ),
    "is not text": lambda folder: (folder / SUMS).write_bytes(b"\xff\n"),
}


@pytest.mark.parametrize("how", HARM)
def test_checksums_name_the_files_of_a_checkpoint_and_nothing_else(unfinished: Path, how: str) -> None:
    newest = checkpoints(unfinished)[-1]
    assert damage(newest) is None
    (newest / ".DS_Store").write_text("of a file manager")
    assert damage(newest) is None
    HARM[how](newest)
    assert damage(newest)


def test_a_file_more_in_a_checkpoint(unfinished: Path) -> None:
    newest = checkpoints(unfinished)[-1]
    (newest / "optimizer_7.bin").write_text("")
    assert damage(newest) == f"optimizer_7.bin is not in {SUMS}"


@pytest.mark.parametrize("how", ["emptied", "lacks a line", "names a device"])
def test_the_checkpoint_before_is_used(
    unfinished: Path, whole: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = checkpoints(unfinished)[-1]
    weights = newest / "model.safetensors"
    save_file({name: tensor * 0 for name, tensor in load_file(weights).items()}, weights)
    HARM[how](newest)
    train(unfinished)
    assert "the one before it is used" in " ".join(capsys.readouterr().err.split())
    assert same(unfinished, whole)


@pytest.mark.parametrize(
    "how", ["flipped", "emptied", "lacks a line", "names a device", "is a pipe", "names a file outside"]
)
def test_a_finished_model_is_what_was_written(tmp_path: Path, whole: Path, how: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole / "final", copy)
    (copy / "README.md").write_text("with its licence")
    (copy / "metrics.json").write_text("{}")
    assert not load_checkpoint(copy, "cpu").missing
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-100] ^= 64
    if how == "flipped":
        (copy / "model.safetensors").write_bytes(content)
    else:
        HARM[how](copy)
    with pytest.raises(PixelBertError, match=r"copy is damaged \(.*copy or download it again"):
        load_checkpoint(copy, "cpu")
    (copy / SUMS).unlink()
    (copy / "model.safetensors").write_bytes(content)
    load_checkpoint(copy, "cpu")  # changed on purpose


def test_where_all_checkpoints_are_damaged_they_stay_as_they_are(
    unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [folder.name for folder in checkpoints(unfinished)]
    for folder in checkpoints(unfinished):
        (folder / "model.safetensors").write_bytes(b"")
    for _ in range(2):  # the second attempt no more than the first
        said = refused(unfinished, capsys)
        assert "model.safetensors is not as it was written" in said
        assert "Nothing was changed" in said
        assert [folder.name for folder in checkpoints(unfinished)] == before


def test_where_all_checkpoints_are_gone_it_asks(
    unfinished: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(unfinished / "checkpoints")
    said = refused(unfinished, capsys)
    assert "has no checkpoint, though that of step 23 was written" in said
    (unfinished / "checkpoints.jsonl").unlink()  # as it says; so it is for a run that was killed before its first one
    train(unfinished)
    assert "has no checkpoint yet" in " ".join(capsys.readouterr().err.split())
    assert same(unfinished, whole)


@pytest.mark.parametrize("flip", [0x20, 0x01, 0x80])
def test_a_damaged_line_of_a_log_takes_no_other_with_it(
    unfinished: Path, whole: Path, flip: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in checkpoints(unfinished)[1:]:
        shutil.rmtree(folder)
    file = unfinished / "metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    colon = lines[2].index(b":")
    spoiled = bytearray(lines[2])
    spoiled[colon] ^= flip
    damaged = b"".join([*lines[:2], bytes(spoiled), *lines[3:]])
    file.write_bytes(damaged)
    train(unfinished)
    said = "".join(capsys.readouterr().err.split())  # wherever its lines are broken
    assert "metrics.jsonl,line3isdamaged.Thefileiskeptasmetrics.jsonl.damaged" in said
    assert (unfinished / "metrics.jsonl.damaged").read_bytes() == damaged
    assert log(unfinished) == [row for row in log(whole) if row[0] != 3]
    assert [row["step"] for row in read_lines(file)][:3] == [1, 2, 4]


def test_a_damaged_log_of_a_finished_run_is_still_read(
    tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("metrics.jsonl", "validation.jsonl"):
        first, second, *rest = (whole / name).read_text().splitlines(keepends=True)
        (tmp_path / name).write_text("".join([first, second.replace(":", ";"), *rest, '{"step": 99, "lo']))
    assert plot_curves(tmp_path).exists()
    assert last_validation(tmp_path) == last_validation(whole)
    said = " ".join(capsys.readouterr().err.split())
    for name in ("metrics.jsonl", "validation.jsonl"):
        assert f"{name}, line 2 is damaged" in said

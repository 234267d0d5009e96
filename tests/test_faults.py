"""What may befall a run: signals, damage, a full disk, lost photos, dead processes, numbers that are none.

Each fault is real, and what is lost is nothing: the run goes on to the losses and weights of one that met none. (A kill
at a random moment: tests/test_promises.py; at many: `make chaos`.)
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from pixelbert import PixelBertError, PixelBertForPreTraining, cli, files
from pixelbert.data.prepare import prepare
from pixelbert.data.sources.folder import Folder
from pixelbert.tasks.pretraining import Pretraining
from pixelbert.train import checkpoint
from pixelbert.train.checkpoint import Progress, Saver, checkpoints, damage
from pixelbert.train.logs import is_best
from pixelbert.train.loop import examples_in_step
from pixelbert.train.processes import OWN_STORE, deaths_told, doubtful_restarts
from pixelbert.train.recipe import Recipe
from pixelbert.train.run_folder import claimed

RECIPE: dict[str, Any] = {
    "model": {
        "backbone": "resnet14_small",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "dropout": 0.1,
        "vocab_size": 120,
    },
    "task": {"pixels": 3},
    "data": {
        "train": ["scenes:0-20"],
        "validation": ["scenes:100-104"],
        "shortest_edge": 128,
        "longest_edge": 128,
        "max_length": 24,
        "workers": 0,
    },
    "optimizer": {"cnn_lr": 0.05, "lr": 0.001, "warmup_steps": 0, "milestones": [], "clip": 1.0},
    "epochs": 1.2,
    "batch_size": 8,
    "micro_batch_size": 8,
    "precision": "fp32",
    "log_every": 1,
    "checkpoint_every": 4,
    "evaluate_every": 5,
    "evaluate_examples": 4,
    "trackers": [],
}


def train(output: Path, **changes: Any) -> None:
    """The command, in this process."""
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(RECIPE | changes))
    cli.main(["train", str(file), "--output", str(output)])


def log(output: Path, name: str = "metrics") -> list[tuple]:
    """What a run logged, without the times."""
    rows = [json.loads(line) for line in (output / f"{name}.jsonl").read_text().splitlines()]
    return [tuple(value for key, value in row.items() if key != "pairs_per_second") for row in rows]


def same(output: Path, whole: Path) -> bool:
    """Whether two runs logged the same and ended with the same weights, to the bit."""
    weights = [(folder / "final" / "model.safetensors").read_bytes() for folder in (output, whole)]
    return weights[0] == weights[1] and all(log(output, n) == log(whole, n) for n in ("metrics", "validation"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that met no fault."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    train(output)
    assert len(log(output)) >= 12
    assert len(log(output, "validation")) >= 3
    return output


@contextmanager
def when(output: Path, steps: int, act: Callable[[], object]) -> Iterator[None]:
    """Do something to a run of this process as soon as it has logged so many steps."""
    ended = threading.Event()

    def wait() -> None:
        file = output / "metrics.jsonl"
        while not ended.is_set() and not (file.exists() and file.read_text().count("\n") >= steps):
            time.sleep(0.002)
        if not ended.is_set():
            act()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_ends(
    tmp_path: Path, whole: Path, asked: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before, output = signal.getsignal(asked), tmp_path / "run"
    with when(output, 6, lambda: os.kill(os.getpid(), asked)), pytest.raises(SystemExit) as ended:
        train(output)
    assert ended.value.code == 128 + asked
    assert signal.getsignal(asked) == before
    steps = len(log(output))
    assert 6 <= steps < len(log(whole))
    assert checkpoints(output)[-1].name == f"step-{steps:08d}"  # not only those that were due
    assert f"step {steps} of" in capsys.readouterr().err
    train(output)
    assert same(output, whole)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.bin", "progress.json", "SHA256SUMS"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path: Path, whole: Path, file: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    shutil.copytree(whole, output)
    shutil.rmtree(output / "final")
    newest, before = reversed(checkpoints(output))
    assert damage(newest) is None
    victim = newest / file
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "gone":
        victim.unlink()
    else:
        victim.write_bytes(content if how == "flipped" else content[: len(content) // 2])
    train(output)
    said = " ".join(capsys.readouterr().err.split())
    assert "is damaged" in said
    assert "the one before it is used" in said
    assert same(output, whole)
    assert (newest.with_suffix(".damaged")).is_dir()
    assert damage(newest) is None  # written again
    assert before in checkpoints(output)


def test_where_all_are_damaged_nothing_is_begun_again_unasked(
    tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    shutil.copytree(whole, output)
    shutil.rmtree(output / "final")
    for folder in checkpoints(output):
        (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit):
        train(output)
    assert "every checkpoint in" in capsys.readouterr().err
    assert log(output) == log(whole)


def test_a_full_disk(tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, before = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # files may grow to 100 kB, which a checkpoint's don't fit in: an error like that of a full disk
        fill = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # noqa: E731
        with when(output, 5, fill), pytest.raises(SystemExit):
            train(output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert "step 8 cannot be written" in said
    assert "step-00000004 is as it was" in said
    assert [folder.name for folder in (output / "checkpoints").iterdir()] == ["step-00000004"]
    train(output)
    assert same(output, whole)


def test_deterministic_kernels(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen: list[bool] = []
    loss = Pretraining.loss
    look = lambda *args: seen.append(torch.are_deterministic_algorithms_enabled()) or loss(*args)  # noqa: E731
    monkeypatch.setattr(Pretraining, "loss", look)
    train(tmp_path / "run", deterministic=True)
    assert all(seen)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert same(tmp_path / "run", whole)  # on a CPU there is nothing to change
    train(tmp_path / "other", epochs=0.2)
    assert not torch.are_deterministic_algorithms_enabled()


class TestSaving:
    @pytest.fixture
    def saver(self, tmp_path: Path) -> Iterator[Saver]:
        model = torch.nn.Linear(2, 2)
        accelerator = Accelerator(cpu=True)
        accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
        with Saver(accelerator, tmp_path, keep=2) as saver:
            yield saver

    def test_training_goes_on_while_files_are_flushed(
        self, tmp_path: Path, saver: Saver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flushed = threading.Event()
        monkeypatch.setattr(checkpoint, "publish", lambda *paths: flushed.wait(30) and files.publish(*paths))
        saver.save(Progress(step=1))
        assert not checkpoints(tmp_path)
        flushed.set()
        saver.save(Progress(step=2))  # it waits for the one before it
        assert [folder.name for folder in checkpoints(tmp_path)][:1] == ["step-00000001"]
        saver.wait()
        assert len(checkpoints(tmp_path)) == 2
        assert not any(map(damage, checkpoints(tmp_path)))

    def test_what_fails_meanwhile_is_told_at_the_next(
        self, tmp_path: Path, saver: Saver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        saver.save(Progress(step=1))
        saver.wait()
        monkeypatch.setattr(checkpoint, "publish", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        saver.save(Progress(step=2))
        with pytest.raises(PixelBertError, match=r"step 2 cannot be written .*No space.*step-00000001 is as it was"):
            saver.save(Progress(step=3))
        assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


class TestProcesses:
    @pytest.mark.parametrize(
        "error",
        [RuntimeError("[../gloo/transport/tcp/pair.cc:537] Read error"), torch.distributed.DistBackendError("NCCL")],
    )
    def test_a_dead_one_is_no_traceback(self, error: RuntimeError) -> None:
        with pytest.raises(PixelBertError, match="another process of this run has died"), deaths_told():
            raise error

    def test_other_errors_are_left_as_they_are(self) -> None:
        with pytest.raises(RuntimeError, match="shapes"), deaths_told():
            raise RuntimeError("shapes")

    def test_one_alone_of_several_that_were_asked_for(self, tmp_path: Path) -> None:
        file = tmp_path / "told.py"
        file.write_text("from pixelbert.train.processes import started_alone\nprint('told:', started_alone())")
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MASTER_", "ACCELERATE_"))}
        for asked, said in (("3", "asked for 3 processes and has started this one alone"), ("1", "told: None")):
            done = subprocess.run([*launch, asked, str(file)], capture_output=True, text=True, env=environment)
            assert said in done.stdout
            assert ("torchrun --nproc-per-node 3" in done.stdout) == (asked == "3")

    @pytest.mark.parametrize(
        ("task", "batch_size", "processes", "said"),
        [
            (Pretraining(), 8, 8, None),  # a pair each, matched or not
            (Pretraining(), 8, 9, "makes 8 parts of 1, too few for 9 processes: start 8, or raise it to 9"),
            (Pretraining(contrast=4), 16, 2, None),
            (Pretraining(contrast=4), 16, 3, "makes 2 parts of 8, too few for 3 processes: start 2, or raise it to 24"),
        ],
    )
    def test_each_has_a_part_of_a_step(self, task: Any, batch_size: int, processes: int, said: str | None) -> None:
        recipe = Recipe(task=task, batch_size=batch_size)
        examples = partial(examples_in_step, recipe, processes)
        if said is None:
            assert examples() == batch_size // task.counts_per_example
            return
        with pytest.raises(PixelBertError, match=said):
            examples()

    def test_torchruns_restarts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(OWN_STORE, raising=False)
        assert doubtful_restarts() is None
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        assert OWN_STORE in (doubtful_restarts() or "")
        monkeypatch.setenv(OWN_STORE, "1")
        assert doubtful_restarts() is None


def test_a_photo_that_is_lost_or_rots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    with (tmp_path / "captions.csv").open("w") as table:
        table.write("image,caption,split\n")
        for i in range(20):
            Image.new("RGB", (128, 128), (10 * i, 100, 200)).save(photos / f"{i}.png")
            table.writelines(f"{i}.png,photo {i} is {word},train\n" for word in ("red", "green", "blue"))
    prepare(Folder(images=photos, captions=tmp_path / "captions.csv", name="mine"), tmp_path / "data")
    changes = {"data": RECIPE["data"] | {"train": [f"{tmp_path / 'data'}:train"], "validation": []}}
    train(tmp_path / "whole", **changes)
    output, victim = tmp_path / "run", photos / "7.png"
    kept = victim.read_bytes()
    for harm in (victim.unlink, lambda: victim.write_bytes(kept[: len(kept) // 2])):
        with when(output, 1, harm), pytest.raises(SystemExit):
            train(output, **changes)
        assert "7.png" in capsys.readouterr().err
        victim.write_bytes(kept)
    train(output, **changes)
    assert log(output) == log(tmp_path / "whole")


def test_a_process_that_loads_data_dies(tmp_path: Path, whole: Path) -> None:
    output, recipe = tmp_path / "run", tmp_path / "run.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | {"data": RECIPE["data"] | {"workers": 1}}))
    # In a process of its own: torch tells of such a death wherever the program happens to be.
    command = [sys.executable, "-m", "pixelbert", "train", str(recipe), "--output", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while not (output / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 2, said
    assert "a process that loads data has died" in said
    assert "Traceback" not in said
    train(output)
    assert same(output, whole)


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    def second() -> None:
        try:
            with claimed(tmp_path / "run", {}):
                os._exit(0)
        except PixelBertError as error:
            os._exit(7 if "another process is training" in str(error) else 1)

    def ended() -> int | None:
        process = multiprocessing.get_context("fork").Process(target=second)
        process.start()
        process.join()
        return process.exitcode

    with claimed(tmp_path / "run", {}):
        assert ended() == 7
    assert ended() == 0


class Broken:
    """Gives losses that are no numbers in some steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
        self.step, loss = 0, Pretraining.loss

        def broken(task: Pretraining, model: Any, batch: Any) -> Any:
            self.step += 1
            found = loss(task, model, batch)
            return found._replace(loss=found.loss * torch.nan) if self.step in steps else found

        monkeypatch.setattr(Pretraining, "loss", broken)


def test_steps_without_a_number_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    Broken(monkeypatch, {3, 5})
    train(output)
    said = " ".join(capsys.readouterr().err.split())
    assert "step 3: " in said
    assert "The step was on examples" in said
    assert "Left out: 2 of at most 10" in said
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert 3 not in [row["step"] for row in rows]
    assert rows[-1]["skipped"] == 2
    model = PixelBertForPreTraining.from_pretrained(output / "final")
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_too_many_of_them_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    Broken(monkeypatch, set(range(6, 100)))
    with pytest.raises(SystemExit):
        train(output, skip_limit=3)
    said = " ".join(capsys.readouterr().err.split())
    assert "number 4 of such steps" in said
    assert "step-00000004 is good" in said  # not step 8, which was left out
    assert damage(checkpoints(output)[-1]) is None


class TestBest:
    def test_the_best_by_a_figure_stays(self, tmp_path: Path) -> None:
        output = tmp_path / "run"
        train(output, keep_best="itm_accuracy", keep_checkpoints=20, checkpoint_every=1)
        rows = [json.loads(line) for line in (output / "validation.jsonl").read_text().splitlines()]
        best = max(rows, key=lambda row: row["itm_accuracy"])["step"]  # the first of equals
        model = PixelBertForPreTraining.from_pretrained(output / "best")
        then = load_file(output / "checkpoints" / f"step-{best:08d}" / "model.safetensors")
        for name, value in model.state_dict().items():
            if name in then:
                assert torch.equal(value, then[name]), name

    @pytest.mark.parametrize(("name", "expected"), [("itm_accuracy", True), ("itm_loss", False)])
    def test_of_a_loss_the_lowest(self, tmp_path: Path, name: str, expected: bool) -> None:
        assert is_best(tmp_path, name, {name: 1.0})
        (tmp_path / "validation.jsonl").write_text(json.dumps({"step": 1, name: 0.5}) + "\n")
        assert is_best(tmp_path, name, {name: 0.6}) is expected
        assert is_best(tmp_path, name, {name: 0.4}) is not expected
        assert not is_best(tmp_path, name, {name: 0.5})

    def test_an_unknown_figure(self, tmp_path: Path) -> None:
        with pytest.raises(PixelBertError, match="'beauty'; the validation split is measured by itm_accuracy"):
            is_best(tmp_path, "beauty", {"itm_accuracy": 0.5})

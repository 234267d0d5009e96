"""The promises that need a whole run: one step on any number of devices, and a killed run that loses nothing.

(The first promise, a score that never depends on its batch, is tested in test_batch_independence.py.)
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

TINY = {
    "model": {
        "backbone": "resnet14_small",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "dropout": 0.0,
        "vocab_size": 200,
    },
    "task": {"pixels": 3},
    "data": {
        "train": ["scenes:0-40"],
        "shortest_edge": 128,
        "longest_edge": 128,
        "max_length": 24,
        "sentences_per_image": 3,
        "workers": 0,
    },
    "optimizer": {"cnn_lr": 0.05, "lr": 0.001, "warmup_steps": 0, "clip": 1.0},
    "batch_size": 16,
    "micro_batch_size": 16,
    "precision": "fp32",
    "log_every": 1,
    "checkpoint_every": 4,
    "trackers": [],
}


def command(tmp_path: Path, recipe: dict, output: Path, processes: int = 1) -> list[str]:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = [sys.executable, *(launcher if processes > 1 else []), "-m", "pixelbert"]
    return [*start, "train", str(file), "--output", str(output)]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}


def run(tmp_path: Path, recipe: dict, output: Path, processes: int = 1) -> None:
    done = subprocess.run(
        command(tmp_path, recipe, output, processes),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def metrics(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses(output: Path) -> list[tuple]:
    return [(row["step"], row["loss"], row["mlm_loss"], row["itm_loss"]) for row in metrics(output)]


def test_a_step_is_the_same_at_once_accumulated_and_on_two_processes(tmp_path: Path) -> None:
    recipe = TINY | {"epochs": 1.0}
    layouts = {"at_once": ({}, 1), "accumulated": ({"micro_batch_size": 4}, 1), "two_processes": ({}, 2)}
    weights, logged = {}, {}
    for name, (change, processes) in layouts.items():
        run(tmp_path, recipe | change, tmp_path / name, processes)
        weights[name] = load_file(tmp_path / name / "final" / "model.safetensors")
        logged[name] = losses(tmp_path / name)
    before = TINY | {"epochs": 0.01, "optimizer": {"cnn_lr": 0.0, "lr": 0.0, "warmup_steps": 0}}
    run(tmp_path, before, tmp_path / "before")
    start = load_file(tmp_path / "before" / "final" / "model.safetensors")
    assert len(logged["at_once"]) >= 3
    for name, first in weights["at_once"].items():
        for other in ("accumulated", "two_processes"):
            torch.testing.assert_close(weights[other][name], first, rtol=0, atol=1e-5, msg=f"{other}: {name}")
    for other in ("accumulated", "two_processes"):
        for mine, theirs in zip(logged[other], logged["at_once"], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5)
    moved = max((weights["at_once"][k] - start[k]).abs().max().item() for k in start)
    assert moved > 1e-3  # far more than the tolerance, or the comparison would say nothing


def test_two_processes_may_measure_before_they_log(tmp_path: Path) -> None:
    """Only the first of them has a measurement."""
    data = TINY["data"] | {"validation": ["scenes:100-104"]}
    measured = {"evaluate_every": 1, "log_every": 100, "evaluate_examples": 4, "keep_best": "itm_accuracy"}
    run(tmp_path, TINY | measured | {"data": data, "epochs": 0.3}, tmp_path / "run", processes=2)
    rows = (tmp_path / "run" / "validation.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, len(rows) + 1))


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    recipe = TINY | {"epochs": 4.0, "model": TINY["model"] | {"dropout": 0.1}}
    run(tmp_path, recipe, tmp_path / "whole")
    whole = losses(tmp_path / "whole")
    assert len(whole) > 15

    killed = tmp_path / "killed"
    process = subprocess.Popen(
        command(tmp_path, recipe, killed),
        env=environment(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    log = killed / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() or log.read_text().count("\n") < 10:  # behind two checkpoints, in mid-epoch
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "final").exists()
    assert losses(killed)[:9] == whole[:9]

    run(tmp_path, recipe, killed)
    assert losses(killed) == whole
    finished = (killed / "final" / "model.safetensors").read_bytes()
    assert finished == (tmp_path / "whole" / "final" / "model.safetensors").read_bytes()

    run(tmp_path, recipe, killed)  # a finished run is left alone
    assert losses(killed) == whole

    other = subprocess.run(
        command(tmp_path, recipe | {"seed": 1}, killed),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert other.returncode == 2
    assert "another run" in other.stderr
    assert "seed" in other.stderr
    assert "Traceback" not in other.stderr

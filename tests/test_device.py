"""The precision that is chosen when nobody says one: by the clock, disturbing nothing, and kept by what it decided."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from pixelbert import cli, device
from pixelbert.device import best_precision, cpu_milliseconds
from pixelbert.train import precision as of_runs

TINY = Path(__file__).parents[1] / "recipes" / "tiny.yaml"
SMALL = [
    *("--data.train", '["scenes:0-8"]', "--data.workers", "0", "--epochs", "0.5", "--trackers", "[]"),
    *("--data.validation", "[]"),
]


@pytest.mark.parametrize(
    ("fp32", "bf16", "expected"),
    [(205, 330, "fp32"), (1.0, 0.55, "bf16"), (1.0, 0.9, "fp32"), (1.0, 17.0, "fp32")],
)
def test_bfloat16_is_for_cpus_that_are_faster_in_it_whatever_their_flags(
    fp32: float, bf16: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setattr(device, "cpu_milliseconds", lambda: {"fp32": fp32, "bf16": bf16}, raising=False)
    assert best_precision("cpu") == expected
    assert best_precision("mps") == "fp32"


def test_measuring_changes_nothing_and_happens_once() -> None:
    cpu_milliseconds.cache_clear()
    before = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    with torch.autocast("cpu", torch.bfloat16):
        found = cpu_milliseconds()
    after = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert found.keys() == {"fp32", "bf16"}
    assert all(0 < taken < 10_000 for taken in found.values())
    assert cpu_milliseconds() is found


def test_where_bfloat16_is_emulated_it_is_not_chosen() -> None:
    """On a processor that has it, kernels of an older one are taken here."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "CUDA_VISIBLE_DEVICES": ""}
    script = "from pixelbert.device import *; print(best_precision('cpu'))"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "fp32", done.stderr


@pytest.fixture
def train() -> Iterator[Callable[..., None]]:
    """Runs a command as a new process would: accelerate keeps one precision for all runs of a process."""

    def begin(command: list[str]) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        cli.main(command)

    yield begin
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_run_keeps_the_precision_that_it_began_in(
    train: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on another machine, on which the other one is the faster."""
    command = ["train", str(TINY), *SMALL, "--precision", "null", "--output", str(tmp_path / "run")]
    monkeypatch.setattr(of_runs, "best_precision", lambda device: "bf16")
    train(command)
    kept = json.loads((tmp_path / "run" / "precision.json").read_text())
    assert kept["precision"] == "bf16"
    (tmp_path / "run" / "final").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(of_runs, "best_precision", lambda device: "fp32")
    capsys.readouterr()
    train(command)
    said = " ".join(capsys.readouterr().err.split())
    assert "computing in bf16, as the run began; here fp32 would be the faster" in said
    assert "micro-batches each, bf16; going on after step" in said
    # One that an earlier version began has no such file, and says so; a spoilt one is refused.
    (tmp_path / "run" / "final").rename(tmp_path / "elsewhere2")
    (tmp_path / "run" / "precision.json").unlink()
    train(command)
    assert "goes on in fp32" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "run" / "precision.json").write_text('{"precision": "fp8"}')
    with pytest.raises(SystemExit):
        train(command)
    assert "does not say whether the run began in bf16 or fp32" in " ".join(capsys.readouterr().err.split())


def test_a_recipe_that_names_one_is_followed(tmp_path: Path) -> None:
    cli.main(["train", str(TINY), *SMALL, "--output", str(tmp_path / "run"), "--precision", "fp32"])
    assert not (tmp_path / "run" / "precision.json").exists()  # recipe.yaml says it


def test_all_processes_have_what_the_first_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_says(values: list[str]) -> None:
        values[0] = "bf16"

    monkeypatch.setattr(device, "broadcast_object_list", first_says)
    assert device.Share(1, 2).agreed("fp32") == "bf16"
    assert device.Share().agreed("fp32") == "fp32"

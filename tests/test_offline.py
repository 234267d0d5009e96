"""Nothing is sent anywhere unless it is asked for: the commands are run with the network cut off, and watched.

They run in one child process (offline/commands.py) with an empty home folder, watched in three ways. What Python tries
is written down and refused by an audit hook, in its children too (offline/sitecustomize.py). Where Linux lets a user
make a network of their own, the child has one with nothing in it but loopback, and the kernel counts what finds no way
out: so compiled code is seen too. And nothing is left in the home folder that a later process might send.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import BertConfig, BertForPreTraining

import data_builders as build
from pixelbert.data.processing import learn_tokenizer

ROOT = Path(__file__).parents[1]
CUT_OFF = ["unshare", "--user", "--net", "--map-root-user"]
SMALL = [
    "--epochs", "0.2", "--batch_size", "8", "--micro_batch_size", "8", "--evaluate_examples", "4",
    "--data.workers", "1", "--data.shortest_edge", "64", "--data.longest_edge", "64", "--optimizer.milestones", "[]",
]  # fmt: skip
TINY = str(ROOT / "recipes" / "tiny.yaml")
WITH = ["--checkpoint", "runs/tiny/final"]
COMMANDS = [
    ["prepare", "folder", "--images", "photos", "--output", "prepared/mine", "--val", "0", "--test", "0.2"],
    ["train", "--config", TINY, "--output", "runs/first", *SMALL, "--model.text_init", "bert",
     "--data.train", '["scenes:0-20"]', "--data.validation", '["scenes:20-24"]'],
    ["train", TINY, "--output", "runs/tiny", *SMALL, "--model.checkpoint", "runs/first/final",
     "--data.train", '["prepared/mine:train"]', "--data.validation", '["prepared/mine:test"]'],
    ["evaluate", "runs/tiny/final", "--data", "prepared/mine", "--split", "test", "--json", "metrics.json"],
    ["match", "photos/0.jpg", "a dog", *WITH],
    ["fill-mask", "photos/0.jpg", "a [MASK]", *WITH],
    ["attend", "photos/0.jpg", "a dog", "--out", "report.html", *WITH],
    ["index", "photos", "--out", "index", *WITH],
    ["search", "index", "a dog"],
    ["serve", "runs/tiny/final", "--index", "index"],
]  # fmt: skip
LOCAL = [*(" ".join(command[:2]) for command in COMMANDS), "transformers", "onnxruntime", "a folder mistyped"]


class Offline(NamedTuple):
    """What a child reported, whether it had a network of its own, and its folders."""

    report: dict[str, dict[str, Any]]
    cut_off: bool
    folder: Path
    home: Path


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Offline:
    folder, home = tmp_path_factory.mktemp("reader"), tmp_path_factory.mktemp("home")
    build.write_photos(folder / "photos", 20)
    table = ["image,caption", *(f"{i}.jpg,a dog number {i} on the beach" for i in range(20))]
    (folder / "photos" / "captions.csv").write_text("\n".join(table))
    write_bert(folder / "bert")
    noticed = folder / "noticed"
    noticed.touch()
    cut_off = bool(shutil.which("unshare")) and not subprocess.run([*CUT_OFF, "true"], capture_output=True).returncode
    if not cut_off:
        warnings.warn(
            "here no process can have a network of its own: what Python sends is seen, what compiled code sends is not",
            stacklevel=1,
        )
    # Nothing from outside that would turn a library's reports off, or lead them over a proxy on this machine.
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    paths = [str(ROOT / "tests" / "offline"), *(path for path in sys.path if path)]
    environment |= {"HOME": str(home), "NOTICED": str(noticed), "PYTHONPATH": os.pathsep.join(paths)}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    program = [sys.executable, str(ROOT / "tests" / "offline" / "commands.py"), str(int(cut_off)), json.dumps(COMMANDS)]
    done = subprocess.run(
        [*(CUT_OFF if cut_off else []), *program],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return Offline(json.loads(done.stdout), cut_off, folder, home)


def write_bert(folder: Path) -> None:
    """A BERT of the shape of tiny.yaml, in the old form: of those on the hub, transformers asks for a newer one."""
    tokenizer = learn_tokenizer(["a small red square left of a blue circle", "a dog on a beach"], 60)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    bert = BertForPreTraining(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **shape))
    tokenizer.save_pretrained(folder)
    bert.config.save_pretrained(folder)
    torch.save(bert.state_dict(), folder / "pytorch_model.bin")


def test_every_command_works_with_the_network_cut_off(offline: Offline) -> None:
    failed = {name: offline.report[name]["failure"] for name in LOCAL if offline.report[name]["failure"]}
    assert list(failed) == ["a folder mistyped"]
    for made in ("runs/first/final", "runs/tiny/final", "metrics.json", "report.html", "index"):
        assert (offline.folder / made).exists(), made
    assert "a dog" in offline.report["match photos/0.jpg"]["said"]
    assert "<title>pixelbert" in offline.report["page"]["said"]
    assert json.loads(offline.report["answer"]["said"])["scores"][0]["text"] == "a dog"


@pytest.mark.parametrize("name", LOCAL)
def test_nothing_reaches_out(name: str, offline: Offline) -> None:
    assert offline.report[name]["noticed"] == []
    assert offline.report[name]["unsent"] == 0


def test_a_folder_mistyped_is_not_looked_for_on_the_hub(offline: Offline) -> None:
    assert "there is no folder runs/tinny: check the path" in offline.report["a folder mistyped"]["failure"]


def test_nothing_waits_in_the_home_folder_to_be_sent(offline: Offline) -> None:
    files = [file.relative_to(offline.home) for file in offline.home.rglob("*") if file.is_file()]
    assert {"/".join(file.parts[:3]) for file in files if file.parts[1] != "matplotlib"} == {
        ".cache/huggingface/datasets"
    }


def test_the_watch_sees_attempts(offline: Offline) -> None:
    """Without which the tests above would say nothing."""
    assert offline.report["the hub's client"]["noticed"] == ["socket.getaddrinfo huggingface.co"]
    assert "cut off" in offline.report["the hub's client"]["failure"]
    assert offline.report["a child"]["noticed"] == ["socket.connect 192.0.2.1"]
    assert offline.report["compiled code"] | {"seconds": 0} == {
        "noticed": [], "unsent": int(offline.cut_off), "said": "", "failure": None, "seconds": 0,
    }  # fmt: skip


def test_the_libraries_are_told_to_be_silent(offline: Offline) -> None:
    assert offline.report["settings"]["said"] == "True 1\n"

"""Run two revisions of the project side by side and compare what they compute, bit by bit.

    python tools/compare_revisions.py HEAD~5 --output runs/compare --json runs/compare/compare.json

A change that claims to alter no result is held to it: each kind of recipe (pre-training, with a two-tower head, on
stored features, questions, statements, retrieval) prepares its data, trains for a few steps and is evaluated, by the
old revision's code and by this working tree's. Compared are every logged loss and measurement, the tensors of the
final model (by content, where their names differ) and every figure of the evaluation. It takes two to four minutes on
two cores; exit status 1 tells of a difference.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from pixelbert.files import write_json

ROOT = Path(__file__).parents[1]
TIMED = {"pairs_per_second", "minutes"}  # what a log says of the clock
PLACES = {"checkpoint", "data"}  # paths in an evaluation's metrics
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}

NETWORK = {
    "backbone": "resnet14_small",
    "batch_norm": "train",
    "pixel_layer_norm": True,
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "dropout": 0.1,
    "initializer_range": 0.15,
}
RECIPE: dict[str, Any] = {
    "data": {
        "shortest_edge": 128,
        "longest_edge": 128,
        "max_length": 16,
        "sentences_per_image": 2,
        "workers": 1,
    },
    "optimizer": {"cnn_lr": 0.05, "lr": 0.002, "milestones": [], "warmup_steps": 5, "clip": 1.0},
    "batch_size": 16,
    "micro_batch_size": 8,
    "precision": "fp32",
    "log_every": 1,
    "evaluate_every": 10,
    "evaluate_examples": 40,
    "checkpoint_every": 10,
    "trackers": [],
}
SCENES = {"train": ["scenes:0-30"], "validation": ["scenes:1000-1020"]}
SCENES_SHOWN = ["all", "--allow_trained", "true"]  # all sets of scenes are called "scenes:all"


@dataclass
class Kind:
    """One kind of recipe.

    Args:
        task: the recipe's section.
        data: the recipe's, beside `RECIPE`'s; PREPARED in it stands for the data set prepared by `prepare`.
        model: the recipe's, beside `NETWORK`'s.
        changes: further fields of the recipe.
        prepare: arguments of `pixelbert prepare` for data of its own; RAW in them stands for the raw files.
        splits: of the data set that is evaluated, for each evaluation its split and options.
        evaluated: the data set.
    """

    task: dict[str, Any]
    data: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    prepare: list[str] | None = None
    splits: list[list[str]] = field(default_factory=list)
    evaluated: str = "PREPARED"


QUESTIONS = ["vqa-csv", "--questions", "RAW/questions.csv", "--images", "RAW"]
STATEMENTS = ["nlvr2", "--json", "[RAW/train.json,RAW/dev.json]", "--images", "RAW"]
CAPTIONS = ["folder", "--images", "RAW", "--captions", "RAW/captions.csv"]
OWN = {"train": ["PREPARED:train"]}

KINDS = {
    "pretraining": Kind({"pixels": 3}, SCENES, evaluated="OUTPUT/data/scenes-1000-1020", splits=[SCENES_SHOWN]),
    "towers": Kind(
        {"pixels": 3, "contrast": 4}, SCENES, evaluated="OUTPUT/data/scenes-1000-1020", splits=[SCENES_SHOWN],
    ),
    "stored features": Kind(
        {"pixels": 3, "mlm": False, "contrast": 8}, OWN, {"freeze_backbone": True, "feature_cache": "OUTPUT/features"},
        {"micro_batch_size": 16}, CAPTIONS, [["test", "--task", "retrieval"]],
    ),
    "question answering": Kind({"kind": "question-answering"}, OWN, {}, {"epochs": 3}, QUESTIONS, [["test"]]),
    "reasoning": Kind({"kind": "reasoning"}, OWN, {}, {"epochs": 3}, STATEMENTS, [["dev"]]),
    "retrieval": Kind(
        {"kind": "retrieval", "wrong": 4, "hardest": 2}, OWN, {}, {"micro_batch_size": 20, "epochs": 4}, CAPTIONS,
        [["test"]],
    ),
}  # fmt: skip


def raw_files(folder: Path) -> Path:
    """Photos of plain walls with captions, questions and statements about them."""
    folder.mkdir(parents=True)
    names = list(COLOURS)
    captions, questions = [("image", "caption", "split")], [("image", "question", "answer", "split")]
    for i in range(100):
        colour, asked = names[i % 4], names[i // 4 % 4]
        split = "train" if i < 70 else "test"
        paint(folder / f"{i}.png", colour, i)
        captions += [(f"{i}.png", f"a {colour} wall", split), (f"{i}.png", f"picture {i} is {colour}", split)]
        questions += [(f"{i}.png", "what colour is the wall?", colour, split)]
        questions += [(f"{i}.png", f"is the wall {asked}?", "yes" if asked == colour else "no", split)]
    for name, rows in (("captions", captions), ("questions", questions)):
        with (folder / f"{name}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(rows)
    for split, first, number in (("train", 0, 60), ("dev", 100, 24)):
        lines = []
        for i in range(first, first + number):
            left, right = names[i % 4], names[i // 4 % 4]
            for side, colour in enumerate((left, right)):
                place = folder / split / ("0" if split == "train" else "")
                paint(place / f"{split}-{i}-0-img{side}.png", colour, i + side)
            said = ((f"the left wall is {left}", True), (f"both walls are {right}", left == right))
            for s, (text, label) in enumerate(said):
                row = {"identifier": f"{split}-{i}-0-{s}", "sentence": text, "label": str(label), "directory": 0}
                lines.append(json.dumps(row) + "\n")
        (folder / f"{split}.json").write_text("".join(lines))
    return folder


def paint(path: Path, colour: str, noise: int) -> None:
    """A wall in one colour, with noise of its own."""
    size = ((64, 64), (128, 64))[noise % 3 == 0]
    pixels = np.array(COLOURS[colour]) + np.random.default_rng(noise).integers(-15, 16, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def pixelbert(source: Path, log: Path, *arguments: str) -> None:
    """Run a command with a revision's code.

    Raises:
        SystemExit: it failed; shows the end of what it said.
    """
    environment = os.environ | {"PYTHONPATH": str(source / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    environment["HF_DATASETS_CACHE"] = str(log.parent / "cache")
    with log.open("a") as stream:
        command = [sys.executable, "-m", "pixelbert", *arguments]
        stream.write(f"$ {' '.join(command)}\n")
        stream.flush()
        done = subprocess.run(command, env=environment, stdout=stream, stderr=stream, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with {source}:\n{log.read_text()[-2000:]}")


def run_kind(source: Path, kind: Kind, raw: Path, output: Path) -> dict[str, Any]:
    """Prepare, train and evaluate with one revision's code.

    Returns:
        Everything that is compared, by name.
    """
    output.mkdir(parents=True)
    run, log = output / "run", output / "log.txt"

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: filled(part) for name, part in value.items()}
        if isinstance(value, list):
            return [filled(part) for part in value]
        if not isinstance(value, str):
            return value
        value = value.replace("PREPARED", str(output / "prepared")).replace("OUTPUT", str(run))
        return value.replace("RAW", str(raw))

    if kind.prepare is not None:
        pixelbert(source, log, "prepare", *filled(kind.prepare), "--output", str(output / "prepared"))
    recipe = RECIPE | {"epochs": 2, "task": kind.task, "model": NETWORK | kind.model} | kind.changes
    recipe["data"] = RECIPE["data"] | kind.data
    (output / "recipe.yaml").write_text(yaml.safe_dump(filled(recipe)))
    pixelbert(source, log, "train", str(output / "recipe.yaml"), "--output", str(run))
    found: dict[str, Any] = {}
    for name in ("metrics", "validation"):
        file = run / f"{name}.jsonl"
        for line in file.read_text().splitlines() if file.exists() else []:
            row = json.loads(line)
            found |= {f"{name} {row['step']} {key}": value for key, value in row.items() if key not in TIMED}
    tensors = load_file(run / "final/model.safetensors")
    digests = sorted(hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for tensor in tensors.values())
    found |= {f"tensor {number}": digest for number, digest in enumerate(digests)}
    for number, (split, *options) in enumerate(kind.splits):
        folder = output / f"evaluation{number}"
        arguments = ["--data", filled(kind.evaluated), "--split", split, "--output", str(folder), "--precision", "fp32"]
        result = output / f"evaluation{number}.json"
        pixelbert(source, log, "evaluate", str(run / "final"), *arguments, *options, "--json", str(result))
        figures = json.loads(result.read_text())
        found |= {f"evaluation {number} {k}": v for k, v in figures.items() if k not in PLACES}
    return found


def compare(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """How many figures there are, which differ, and which only one revision has (a new field is no difference)."""
    both = [name for name in old if name in new]
    return {
        "compared": len(both),
        "steps": sum(name.startswith("metrics") and name.endswith(" loss") for name in both),
        "tensors": sum(name.startswith("tensor") for name in both),
        "different": {name: [old[name], new[name]] for name in both if old[name] != new[name]},
        "only_before": sorted(old.keys() - new.keys()),
        "only_after": sorted(new.keys() - old.keys()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="the revision to compare with, as git names it")
    parser.add_argument("--output", type=Path, default=Path("runs/compare"), help="folder of the runs; made anew")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--json", type=Path, help="file to write the comparison to")
    args = parser.parse_args()
    output = args.output.absolute()
    base, began = output / "base", time.monotonic()
    if base.exists():
        subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", base], check=True)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    git = ["git", "-C", str(ROOT)]
    revision = subprocess.run([*git, "rev-parse", args.base], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(base), revision], check=True)
    results: dict[str, Any] = {}
    try:
        raw = raw_files(output / "raw")
        for name in args.kinds:
            folder = output / name.replace(" ", "_")
            with ThreadPoolExecutor(2) as pool:
                sides = [
                    pool.submit(run_kind, source, KINDS[name], raw, folder / side)
                    for side, source in (("before", base), ("after", ROOT))
                ]
                old, new = (side.result() for side in sides)
            results[name] = found = compare(old, new)
            print(
                f"{name:20} {found['compared']:5} figures ({found['steps']} steps, {found['tensors']} tensors): "
                + (f"{len(found['different'])} DIFFER" if found["different"] else "identical"),
                flush=True,
            )
            for figure, (before, after) in list(found["different"].items())[:5]:
                print(f"    {figure}: {before} before, {after} after")
            for side in ("before", "after"):
                if found[f"only_{side}"]:
                    print(f"    only {side}: {', '.join(found[f'only_{side}'][:8])}")
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", str(base)], check=True)
    about = {"base": revision, "torch": torch.__version__, "machine": platform.processor() or platform.machine()}
    if args.json:
        write_json(args.json, about | {"minutes": round((time.monotonic() - began) / 60, 1), "kinds": results})
    sys.exit(any(found["different"] for found in results.values()))


if __name__ == "__main__":
    main()

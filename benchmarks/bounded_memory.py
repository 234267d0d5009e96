"""How much memory evaluation takes as data grow, and that it goes on where it was stopped.

Two evaluations as large as the official ones, by a network of a few thousand weights: 200,000 VQA questions, and all
pairs of 1,000 images and 5,000 captions. Each is killed (SIGKILL) half way and started again; a tenth of the data is
run for comparison. Printed: the processes' peak memory, and whether the results equal those of a run without the kill.

    python benchmarks/bounded_memory.py --output runs/bounded_memory
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from pixelbert import PixelBertConfig, PixelBertProcessor
from pixelbert.data.processing import PixelBertImageProcessor, learn_tokenizer
from pixelbert.model.fine_tuning import PixelBertForImageAndTextRetrieval, PixelBertForQuestionAnswering

WORDS = "what is the colour of this wall and that door near a red green blue white old new table"


def sentence(number: int) -> str:
    """A sentence of 3 to 12 words, another for every number."""
    rng = np.random.default_rng(number)
    return " ".join([*rng.choice(WORDS.split(), rng.integers(2, 12)), str(number)])


def photos(folder: Path, number: int) -> list[str]:
    """Small photos of noise."""
    folder.mkdir(parents=True)
    for i in range(number):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return [f"{i}.png" for i in range(number)]


def table(file: Path, names: list[str], rows: int, columns: list[str]) -> None:
    """Rows of image, sentence and, for questions, answer; all in the split test."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", *columns, "split"])
        for i in range(rows):
            answer = [("yes", "no")[i % 2]] if "answer" in columns else []
            writer.writerow([names[i * len(names) // rows], sentence(i), *answer, "test"])


def command(*arguments: object) -> list[str]:
    """A pixelbert command line."""
    return [sys.executable, "-m", "pixelbert", *map(str, arguments)]


def save_model(model_class: type, folder: Path, **options: object) -> None:
    """A tiny network with its processor."""
    tokenizer = learn_tokenizer((sentence(i) for i in range(2000)), 400)
    config = PixelBertConfig(
        backbone="resnet14_small", vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1,
        num_attention_heads=1, intermediate_size=32, max_position_embeddings=32, **options,
    )  # fmt: skip
    model_class(config).save_pretrained(folder)
    PixelBertProcessor(PixelBertImageProcessor(64, 64), tokenizer, 24).save_pretrained(folder)


def run(arguments: list[str], kill_when: Path | None = None, size: int = 0) -> float:
    """Run a command, perhaps killed once the file `kill_when` has `size` bytes; its peak memory in MB."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if kill_when is not None:
        while process.poll() is None and not (kill_when.exists() and written(kill_when) >= size):
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    _, status, usage = os.wait4(process.pid, 0)
    if kill_when is None and status:
        raise SystemExit(f"{' '.join(arguments)} failed")
    return usage.ru_maxrss / 1024


def written(file: Path) -> int:
    """How much of an evaluation is done: bytes of a log, scores of a matrix."""
    if file.suffix == ".npy":
        return int((~np.isnan(np.load(file, mmap_mode="r"))).sum())
    return file.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="an empty folder")
    parser.add_argument("--questions", type=int, default=200_000)
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    out: Path = options.output
    names = photos(out / "photos", options.images)
    save_model(PixelBertForQuestionAnswering, out / "vqa", id2label={0: "yes", 1: "no"})
    save_model(PixelBertForImageAndTextRetrieval, out / "retrieval")
    figures: dict[str, object] = {"own_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    for kind, log, sizes in (
        ("vqa", "answers.jsonl", (options.questions // 10, options.questions)),
        ("retrieval", "scores.npy", (options.images // 10, options.images)),
    ):
        for size in sizes:
            shown = names if kind == "vqa" else names[:size]
            rows = size if kind == "vqa" else 5 * size
            prepared = out / f"{kind}-{size}"
            file = out / f"{kind}-{size}.csv"
            table(file, shown, rows, ["question", "answer"] if kind == "vqa" else ["caption"])
            source = (["vqa-csv", "--questions"] if kind == "vqa" else ["folder", "--captions"]) + [file]
            if kind == "vqa":
                source += ["--answers-from", "[test]"]
            memory = run(command("prepare", *source, "--images", out / "photos", "--output", prepared))
            figures[f"{kind}_{size}_prepare_mb"] = memory
            evaluate = ["evaluate", out / kind, "--data", prepared, "--split", "test"]
            evaluate += ["--controls", "false"] if kind == "vqa" else []
            first, again = out / f"{kind}-{size}-killed", out / f"{kind}-{size}-whole"
            started = time.monotonic()
            figures[f"{kind}_{size}_evaluate_mb"] = run(command(*evaluate, "--output", again))
            figures[f"{kind}_{size}_seconds"] = round(time.monotonic() - started, 1)
            if size == sizes[-1]:
                half = written(again / log) // 2
                run(command(*evaluate, "--output", first), first / log, half)
                done = written(first / log) / written(again / log)
                run(command(*evaluate, "--output", first))
                one, other = (json.loads((f / "metrics.json").read_text()) for f in (first, again))
                figures[f"{kind}_{size}_killed_at"] = round(done, 2)
                figures[f"{kind}_{size}_same_results"] = one == other
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

"""Small real files for the data tests: photos made with Pillow, and raw data sets around them."""

import importlib.util
import io
import json
import struct
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

from jsonargparse import ArgumentParser
from PIL import Image

from pixelbert import cli
from pixelbert.train.recipe import Recipe

ROOT = Path(__file__).parents[1]


def script(path: str) -> ModuleType:
    """A script of the repository as a module, which it is no part of a package for."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(module.__name__, module)  # where a dataclass looks its annotations up
    spec.loader.exec_module(module)
    return module


def read_recipe(file: Path, *options: str) -> Recipe:
    """A recipe's file with these options, as `pixelbert train` reads them."""
    parser = ArgumentParser(exit_on_error=False)
    arguments = ["--config", str(file), *options]
    cli.train_parser(parser, arguments)
    read = parser.instantiate(parser.parse_args(arguments))
    return Recipe(**{name: value for name, value in vars(read).items() if name != "config"})


def photo(shade: int = 120, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """An RGB image whose left half and right half differ, so that a turned one is noticed."""
    image = Image.new("RGB", size, (shade, 90, 60))
    image.paste((20, shade, 200), (0, 0, size[0] // 2, size[1]))
    return image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def karpathy_data(count: int, sentences: int = 2) -> dict[str, Any]:
    """Karpathy's JSON for images 0.jpg, 1.jpg and so on; every tenth is in val, every eleventh in test."""
    images = []
    for number in range(count):
        split = "val" if number % 10 == 5 else "test" if number % 11 == 7 else "train"
        texts = [
            {"raw": f"Photo {number}, seen {k} times .", "sentid": number * sentences + k} for k in range(sentences)
        ]
        images.append({"filename": f"{number}.jpg", "imgid": number, "split": split, "sentences": texts})
    return {"dataset": "tiny", "images": images}


def write_photos(folder: Path, count: int) -> Path:
    """Writes the photos that `karpathy_data` speaks of."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(encoded(photo(number % 250), "JPEG"))
    return folder


def write_json(path: Path, data: Any) -> Path:
    """Writes JSON and returns the path."""
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def vqa_answers(*answers: str) -> list[dict[str, Any]]:
    """Ten annotators' answers in VQA v2's form; those given are repeated until they are ten."""
    return [{"answer": answers[k % len(answers)], "answer_confidence": "yes", "answer_id": k + 1} for k in range(10)]


def vqa_data(subset: str, questions: list[tuple[int, int, str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """VQA v2's questions and annotations: of each (question id, image id, answer); all annotators agree."""
    asked = [{"question_id": q, "image_id": i, "question": f"What is number {q}?"} for q, i, _ in questions]
    notes = [
        {
            "question_id": q,
            "image_id": i,
            "multiple_choice_answer": answer,
            "answers": vqa_answers(answer),
            "answer_type": "other",
            "question_type": "what is",
        }
        for q, i, answer in questions
    ]
    head = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": subset, "license": {}}
    return head | {"questions": asked, "task_type": "Open-Ended"}, head | {"annotations": notes}


def write_coco_photos(folder: Path, subset: str, numbers: list[int]) -> Path:
    """Writes photos under COCO's names: train2014/COCO_train2014_000000000009.jpg."""
    (folder / subset).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        path = folder / subset / f"COCO_{subset}_{number:012d}.jpg"
        path.write_bytes(encoded(photo(number % 250), "JPEG"))
    return folder


def nlvr2_rows(split: str, count: int) -> list[dict[str, Any]]:
    """NLVR2's rows: of every pair of photos two statements, one true and one false, not next to each other."""
    pairs = [(number, sentence) for sentence in (0, 1) for number in range(count)]
    return [
        {
            "identifier": f"{split}-{number}-0-{sentence}",
            "sentence": f"Statement {sentence} on pair {number}.",
            "label": "False" if sentence else "True",
        }
        | ({"directory": number % 2} if split == "train" else {})
        for number, sentence in pairs
    ]


def write_pairs(folder: Path, rows: list[dict[str, Any]], numbered: bool = True) -> Path:
    """Writes the photos that NLVR2's rows speak of; those of train in numbered folders, as distributed."""
    for row in rows:
        pair = row["identifier"].rsplit("-", 1)[0]
        place = folder / pair.split("-")[0]
        if numbered and "directory" in row:
            place /= str(row["directory"])
        place.mkdir(parents=True, exist_ok=True)
        for side in (0, 1):
            (place / f"{pair}-img{side}.png").write_bytes(encoded(photo(50 + 100 * side), "PNG"))
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes JSON lines and returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path

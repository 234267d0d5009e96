"""The kinds of `pixelbert bench`: each times something, prints it, and writes it with what it rests on as JSON."""

from __future__ import annotations

import json as json_format
import multiprocessing
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pixelbert.bench import subjects
from pixelbert.bench.choices import choices
from pixelbert.bench.measure import (
    Case,
    Result,
    autocasted,
    environment,
    flops,
    interleaved,
    matrix_rate,
    peak_memory,
    quiet,
    times,
)
from pixelbert.bench.ratios import ratios
from pixelbert.bench.subjects import GEOMETRIES, PAIRS, SENTENCES, Geometry
from pixelbert.data.corpus import Corpus
from pixelbert.data.images import open_image
from pixelbert.data.photos import Photos
from pixelbert.data.sampler import ExampleOrder
from pixelbert.device import best_device, best_precision, cpu_milliseconds
from pixelbert.model.fine_tuning import PixelBertForImageAndTextRetrieval, PixelBertForQuestionAnswering
from pixelbert.model.inference import for_inference
from pixelbert.model.modeling import PixelBertForPreTraining
from pixelbert.model.pixels import PixelFeatures
from pixelbert.predict.pixelbert import PixelBert
from pixelbert.tasks.pretraining import Pretraining
from pixelbert.tasks.retrieval import score_all_pairs
from pixelbert.train.batches import loaded_batches


def training(device: torch.device, quick: bool) -> Result:
    """Steps of pre-training and question answering: pairs a second, FLOP/s against a matrix product's, memory."""
    rate = matrix_rate(device)
    details: Result = {}
    for name, geometry in some(quick):
        for task, model_class, make, n in (
            ("pretraining", PixelBertForPreTraining, subjects.pretraining_inputs, PAIRS),
            ("vqa", PixelBertForQuestionAnswering, subjects.answering_inputs, SENTENCES),
        ):
            labels = subjects.ANSWER_LABELS if task == "vqa" else {}
            model = subjects.network(model_class, geometry, device, **labels).train()
            run = subjects.training_step(model, make(geometry, n, device), device)
            entry = measured({task: run}, device, 2 if quick else 7, work=flops(run), rate=rate)[task]
            entry["pairs_per_second"] = round(n / entry["median_s"], 3)
            details[f"{task}, {name}, {n} pairs of an image"] = entry
    return {"matrix_flop_per_second": round(rate), "details": details}


@torch.inference_mode()
def encode(device: torch.device, quick: bool) -> Result:
    """The CNN alone, images a second, as training has it under autocast and as `PixelBert` has it."""
    precision = best_precision(device)
    rate = matrix_rate(device)
    details: Result = {}
    for name, geometry in some(quick):
        model = subjects.network(PixelBertForPreTraining, geometry, device, num_hidden_layers=1).eval()
        fast = for_inference(model, precision)
        pixels = torch.stack([subjects.photo(geometry.height, geometry.width)] * (1 if quick else 4)).to(device)
        forward = partial(model.encode_images, pixels)
        work = flops(forward)
        cases: dict[str, Case] = {
            f"{name}, as trained": autocasted(forward, device),
            f"{name}, ready for inference": partial(fast.encode_images, pixels),
        }
        for case, entry in measured(cases, device, 3 if quick else 9, work=work, rate=rate).items():
            details[case] = entry | {"images_per_second": round(len(pixels) / entry["median_s"], 3)}
    return {"matrix_flop_per_second": round(rate), "details": details}


@torch.inference_mode()
def pairs(device: torch.device, quick: bool) -> Result:
    """Scoring sentences with an image that is encoded, pairs a second."""
    precision = best_precision(device)
    rate = matrix_rate(device)
    details: Result = {}
    for name, geometry in some(quick):
        grid = torch.tensor([[geometry.height // 64, geometry.width // 64]], device=device)
        features = PixelFeatures(torch.randn(1, int(grid.prod()), 768, device=device), grid)
        model = subjects.network(PixelBertForPreTraining, geometry, device).eval()
        fast = for_inference(model, precision)
        for n in (1, 8) if quick else (1, 8, 32, 128):
            text = {k: v.to(device) for k, v in subjects.sentences(n).items()}
            text["image_index"] = torch.zeros(n, dtype=torch.long, device=device)
            forward, ready = partial(model, features, **text), partial(fast, features, **text)
            work = flops(forward)
            cases: dict[str, Case] = {
                f"{name}, {n} sentences, as trained": autocasted(forward, device),
                f"{name}, {n} sentences, ready for inference": ready,
            }
            for case, entry in measured(cases, device, 3 if quick else 9, work=work, rate=rate).items():
                details[case] = entry | {"pairs_per_second": round(n / entry["median_s"], 3)}
    return {"matrix_flop_per_second": round(rate), "details": details}


def measured(
    cases: dict[str, Case], device: torch.device, repeats: int, *, work: int, rate: float
) -> dict[str, Result]:
    """Times, FLOP/s and their share of a matrix product's, and peak memory on CUDA (on a CPU: `bench memory`)."""
    found = times(interleaved(cases, repeats, device))
    for name, entry in found.items():
        achieved = work / entry["median_s"]
        entry |= {"flop": work, "flop_per_second": round(achieved), "share_of_matrix_rate": round(achieved / rate, 3)}
        if device.type == "cuda":
            entry["peak_memory_bytes"] = peak_memory(cases[name], device)
    return found


def some(quick: bool) -> list[tuple[str, Geometry]]:
    """All geometries, or the two of ResNet-50."""
    return [(name, g) for name, g in GEOMETRIES.items() if not quick or g.backbone == "resnet50"]


def retrieval(device: torch.device, quick: bool) -> Result:
    """All pairs of images and captions with the full network at 384 x 640, images encoded on the way."""
    images, captions = (6, 30) if quick else (100, 500)
    geometry = GEOMETRIES["r50_384x640"]
    with tempfile.TemporaryDirectory() as name, quiet():
        corpus = Corpus([subjects.prepared(Path(name), images, per_photo=captions // images)])
        model = subjects.network(PixelBertForImageAndTextRetrieval, geometry, device)
        seconds = all_pairs(model, subjects.processor(geometry), corpus, best_precision(device))
    count = images * captions
    entry = {"median_s": round(seconds, 6), "pairs": count, "pairs_per_second": round(count / seconds, 3)}
    return {"details": {f"{images} images x {captions} captions": entry}}


def all_pairs(model: Any, processor: Any, corpus: Corpus, precision: Any, images: int | None = None) -> float:
    """Seconds that `score_all_pairs` takes for the first images of a corpus and their captions, as in `evaluate`."""
    number = len(corpus.sizes) if images is None else images
    chosen = np.flatnonzero(corpus.image_of < number).tolist()
    scores = np.full((len(chosen), number), np.nan, dtype=np.float32)
    fast = for_inference(model, precision)
    photos = Photos(corpus, processor.image_processor)
    started = time.perf_counter()
    score_all_pairs(fast, processor, photos, chosen, range(number), scores, precision=precision, show=False)
    return time.perf_counter() - started


def scaling(device: torch.device, quick: bool) -> Result:
    """Time a pair and memory from 1,000 to 100,000 pairs, with a small network so that the long end ends."""
    sizes = (14, 45, 141) if quick else (14, 26, 45, 79, 141)  # images, with five captions each
    options = {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512}
    geometry = Geometry("resnet14_small", 64, 64, 64, 64)
    details: Result = {}
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as name, quiet():
        corpus = Corpus([subjects.prepared(Path(name), max(sizes), size=(96, 96))])
        model = subjects.network(PixelBertForImageAndTextRetrieval, geometry, device, **options)
        processor, precision = subjects.processor(geometry), best_precision(device)

        def run(images: int) -> None:
            seconds.append(all_pairs(model, processor, corpus, precision, images))

        run(sizes[0])  # warms up
        for images in sizes:
            memory = peak_memory(partial(run, images), device)
            count = images * 5 * images
            details[f"{count:,} pairs"] = {
                "median_s": round(seconds[-1], 6),
                "pairs": count,
                "microseconds_per_pair": round(1e6 * seconds[-1] / count, 2),
                "peak_memory_bytes": memory,
            }
    return {"details": details}


def loading(device: torch.device, quick: bool) -> Result:
    """JPEGs of 640 x 480 to tensors, part by part, in seconds of one core; batches of a run, also where epochs end."""
    details: Result = {}
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        number = 8 if quick else 32
        files = [file.read_bytes() for file in subjects.jpegs(folder / "jpegs", number)]
        decoded = [open_image(file) for file in files]
        for name, geometry in some(quick=False):
            images = subjects.processor(geometry).image_processor
            size = images.size_for(*decoded[0].size)
            cases: dict[str, Case] = {
                f"decode, {name}, {number} photos": partial(each, open_image, files),
                f"resize, {name}, {number} photos": partial(each, partial(resized, size=size), decoded),
                f"all, {name}, {number} photos": partial(each, images.to_tensor, files),
            }
            seconds = interleaved(cases, 3 if quick else 7, torch.device("cpu"), of_a_core=True)
            for case, entry in times(seconds).items():
                details[case] = entry | {"images_per_second": round(number / entry["median_s"], 1)}
        details |= epoch_ends(folder, photos=16 if quick else 64)
    return {"details": details}


def each(function: Callable[[Any], Any], things: list[Any]) -> list[Any]:
    """What the function makes of each thing."""
    return [function(thing) for thing in things]


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """As the processor resizes."""
    return image.resize(size, Image.Resampling.BILINEAR)


def epoch_ends(folder: Path, photos: int) -> Result:
    """Seconds to wait for a batch inside an epoch, and where the next one begins."""
    geometry = GEOMETRIES["r50_384x640"]
    corpus = Corpus([subjects.prepared(folder, photos)])
    order = ExampleOrder(corpus.image_of, 10, 5, seed=0)
    processor = subjects.processor(geometry)
    data = Pretraining().data(Photos(corpus, processor.image_processor), processor, order, micro_batch=20)
    steps = order.steps(4)
    inside: list[float] = []
    ends: list[float] = []
    with loaded_batches(data, 0, steps, workers=1) as batches:
        for s in range(steps):
            started = time.perf_counter()
            next(batches)
            if s > 2:  # the loader has started
                crosses = int(order.epoch_of(s)) != int(order.epoch_of(s - 1))
                (ends if crosses else inside).append(time.perf_counter() - started)
    return times({"a batch inside an epoch": inside, "the first batch of an epoch": ends})


def latency(device: torch.device, quick: bool) -> Result:
    """One request to `PixelBert.match`: a JPEG of 640 x 480 and a sentence, decoding and words included."""
    details: Result = {}
    with tempfile.TemporaryDirectory() as name:
        files = [file.read_bytes() for file in subjects.jpegs(Path(name), 8)]
    for name, geometry in some(quick):
        model = subjects.network(PixelBertForPreTraining, geometry, device)
        for precision in dict.fromkeys(["fp32", best_precision(device)]):
            bert = PixelBert(model, subjects.processor(geometry), precision, remembered=1)  # type: ignore[arg-type]
            cases: dict[str, Case] = {
                f"{name}, {precision}, a new photo": partial(match_next, bert, cycle(files)),
                f"{name}, {precision}, the same photo": partial(match_next, bert, cycle(files[:1])),
            }
            for case, run in cases.items():  # not interleaved: the same photo would be a new one
                details |= times(interleaved({case: run}, 5 if quick else 20, device))
    return {"details": details}


def match_next(bert: PixelBert, photos: Iterator[bytes]) -> Any:
    """One request about the next photo."""
    return bert.match(next(photos), subjects.captions()[0])


def memory(device: torch.device, quick: bool) -> Result:
    """Peak memory of a training step and of scoring, each in a process of its own."""
    details: Result = {}
    context = multiprocessing.get_context("spawn")
    for name, _ in some(quick):
        for task in ("pretraining", "scoring"):
            with context.Pool(1) as pool:
                details[f"{task}, {name}"] = {"peak_memory_bytes": pool.apply(memory_of, (task, name, str(device)))}
    return {"details": details}


def memory_of(task: str, name: str, device_name: str) -> int:
    """Bytes at most of one step (an image with ten pairs), or of scoring ten sentences."""
    device, geometry = torch.device(device_name), GEOMETRIES[name]
    model = subjects.network(PixelBertForPreTraining, geometry, device)
    if task == "pretraining":
        inputs = subjects.pretraining_inputs(geometry, PAIRS, device)
        return peak_memory(subjects.training_step(model.train(), inputs, device), device)
    fast = for_inference(model, best_precision(device_name))
    inputs = subjects.sentences(PAIRS) | {"image_index": torch.zeros(PAIRS, dtype=torch.long)}
    moved = {key: value.to(device) for key, value in inputs.items()}
    pixels = [subjects.photo(geometry.height, geometry.width).to(device)]
    with torch.inference_mode():
        return peak_memory(lambda: fast(fast.encode_images(pixels), **moved), device)


# --- running one ---

KINDS: dict[str, Callable[[torch.device, bool], Result]] = {
    kind.__name__: kind
    for kind in (ratios, choices, training, encode, pairs, retrieval, scaling, loading, latency, memory)
}


def bench(kind: str, device: str | None = None, quick: bool = False, json: Path | None = None) -> Result:
    """Run one kind of benchmark.

    Args:
        kind: one of `KINDS`.
        device: cpu or cuda; the best there is if null.
        quick: fewer repeats, and of the sizes only some.
        json: file to write to; printed in any case.

    Raises:
        PixelBertError: no such device.
    """
    place = torch.device(best_device(device))
    started = time.monotonic()
    result: Result = {"kind": kind} | KINDS[kind](place, quick)
    result |= {
        "device": str(place),
        "precision": best_precision(place),
        "precision_milliseconds": cpu_milliseconds() if place.type == "cpu" else None,
        "quick": quick,
        "command": "pixelbert " + shlex.join(sys.argv[1:]),
        "minutes": round((time.monotonic() - started) / 60, 2),
        "environment": environment(place),
    }
    text = json_format.dumps(result, indent=2)
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.write_text(text + "\n")
    print(text)
    return result

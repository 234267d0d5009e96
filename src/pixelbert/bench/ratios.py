"""`pixelbert bench ratios`: ours against the plain way, against ViLT, and the training loop against its bare step."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from pixelbert.bench import subjects
from pixelbert.bench.measure import Case, Result, autocast, interleaved, quiet, times, working_type
from pixelbert.bench.peers import PlainPixelBert, vilt
from pixelbert.bench.subjects import GEOMETRIES, PAIRS, SENTENCES, Geometry
from pixelbert.data.corpus import Corpus
from pixelbert.data.photos import Photos
from pixelbert.data.sampler import ExampleOrder
from pixelbert.device import best_precision
from pixelbert.model.fine_tuning import PixelBertForQuestionAnswering
from pixelbert.model.inference import for_inference
from pixelbert.model.modeling import PixelBertForPreTraining
from pixelbert.model.pixels import PixelFeatures
from pixelbert.model.resnet import channels_last
from pixelbert.tasks.steps import StepBatch
from pixelbert.train.logs import read_rows
from pixelbert.train.loop import train
from pixelbert.train.optim import build_optimizers
from pixelbert.train.recipe import DataRecipe, ModelRecipe, OptimizerRecipe, Recipe
from pixelbert.train.run_folder import METRICS
from pixelbert.train.setup import build_model, build_processor


def ratios(device: torch.device, quick: bool) -> Result:
    """Ours against the plain way, against ViLT, and the training loop against its bare step."""
    parts = (
        training_ratios(device, quick),
        inference_ratios(device, 5 if quick else 15),
        engine_ratio(device, steps=6 if quick else 30),
    )
    merged: Result = {}
    details: Result = {}
    for part in parts:
        details |= part.pop("details")
        merged |= part
    return merged | {"details": details}


# --- training against the plain way ---


def training_ratios(device: torch.device, quick: bool) -> Result:
    """Pairs a second in the forward and backward pass of a micro-batch; optimisers step once in hundreds of them."""
    geometry, repeats = GEOMETRIES["r50_800x1333"], 3 if quick else 7
    # On a CPU an image alone, or a pair of the plain way, is as fast as several; a GPU wants more at once.
    images = 1 if device.type == "cpu" else 16
    # The attention that is faster for transformers' BERT in training: its eager one on a CPU, the fused one on CUDA.
    plain = partial(PlainPixelBert, attention="eager" if device.type == "cpu" else "sdpa")
    rate: dict[str, float] = {}
    details: Result = {}

    def compare(
        task: str, ours: Any, theirs: Any, make: Callable[..., dict[str, Any]], shared: tuple[int, ...]
    ) -> None:
        cases: dict[str, Case] = {}
        pairs: dict[str, int] = {}
        for n in shared:
            name = f"{task}, ours, {n} pairs of an image"
            cases[name] = subjects.training_step(ours.train(), make(geometry, n, device, images), device)
            pairs[name] = n * images
        name = f"{task}, plain"
        theirs.to(device, memory_format=torch.channels_last).train()
        cases[name], pairs[name] = plain_step(theirs, make(geometry, 1, device, images), device), images
        for name, entry in times(interleaved(cases, repeats, device)).items():
            rate[name] = pairs[name] / entry["median_s"]
            details[name] = {**entry, "pairs": pairs[name], "pairs_per_second": round(rate[name], 3)}

    compare(
        "pre-training",
        subjects.network(PixelBertForPreTraining, geometry, device),
        plain(),
        subjects.pretraining_inputs,
        (SENTENCES,) if quick else (SENTENCES, PAIRS),
    )
    compare(
        "questions",
        subjects.network(PixelBertForQuestionAnswering, geometry, device, **subjects.ANSWER_LABELS),
        plain(subjects.ANSWERS),
        subjects.answering_inputs,
        (SENTENCES,),
    )
    found = {
        name: round(rate[ours] / rate[ours.partition(",")[0] + ", plain"], 3)
        for name, ours in (
            ("pretraining_step_vs_plain", f"pre-training, ours, {SENTENCES} pairs of an image"),
            ("pretraining_step_vs_plain_10_pairs", f"pre-training, ours, {PAIRS} pairs of an image"),
            ("vqa_step_vs_plain", f"questions, ours, {SENTENCES} pairs of an image"),
        )
        if ours in rate
    }
    return found | {"details": details}


def plain_step(model: PlainPixelBert, inputs: dict[str, Any], device: torch.device) -> Case:
    """Forward and backward pass of the plain way: an image once for each of its pairs."""
    images = torch.stack([inputs["pixel_values"][i] for i in inputs["image_index"].tolist()])
    arguments = {
        "pixel_values": images.contiguous(memory_format=torch.channels_last),
        "targets": inputs["answer_targets"] if "answer_targets" in inputs else inputs["match_labels"][:, None],
    }
    arguments |= {
        name: inputs[name] for name in ("input_ids", "attention_mask", "token_labels", "pixel_index") if name in inputs
    }

    def run() -> None:
        with autocast(device):
            loss = model.loss(**arguments)
        loss.backward()
        model.zero_grad()

    return run


# --- scoring against ViLT ---


@torch.inference_mode()
def inference_ratios(device: torch.device, repeats: int) -> Result:
    """Pair scoring against ViLT-B/32, both in bfloat16 where the device has it, on one image and the same sentences.

    ViLT is timed under autocast and with bfloat16 weights (ours has them), and the faster of the two counts.
    """
    geometry, precision = GEOMETRIES["r50_384x640"], best_precision(device)
    model = scorer(geometry, device, precision)
    pixels = torch.stack([subjects.photo(geometry.height, geometry.width)]).to(device)
    features = model.encode_images(pixels)
    few, many = 8, 24  # sentences of one image, beyond which the time grows with their number
    text = {k: v.to(device) for k, v in subjects.sentences(few).items()}
    asked = {n: {k: v.repeat(n // few, 1) for k, v in text.items()} for n in (few, many)}
    middle = {k: v[few // 2][None, : int(text["attention_mask"][few // 2].sum())] for k, v in text.items()}
    mask = torch.ones(1, geometry.height, geometry.width, dtype=torch.long, device=device)
    other: Any = vilt().to(device, working_type(device))  # type: ignore[arg-type]

    def score(network: Any, text: dict[str, Tensor], image: PixelFeatures | None = None) -> Any:
        index = torch.zeros(len(text["input_ids"]), dtype=torch.long, device=device)
        return network(network.encode_images(pixels) if image is None else image, **text, image_index=index)

    def theirs(network: Any, values: Tensor, enabled: bool) -> Any:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
            return network(**middle, pixel_values=values, pixel_mask=mask)

    cases: dict[str, Case] = {
        "vilt, one pair": partial(theirs, other, pixels.to(other.dtype), False),
        "ours, one image and one sentence": partial(score, model, middle),
        "ours, the image": partial(model.encode_images, pixels),
        f"ours, {few} sentences": partial(score, model, asked[few], features),
        f"ours, {many} sentences": partial(score, model, asked[many], features),
    }
    peers = ["vilt, one pair"]
    if precision == "bf16":
        full: Any = vilt().to(device)  # type: ignore[arg-type]
        peers.append("vilt, one pair, autocast")
        cases["vilt, one pair, autocast"] = partial(theirs, full, pixels, True)
        cases["vilt, one pair, fp32"] = partial(theirs, full, pixels, False)
        cases["ours, one image and one sentence, fp32"] = partial(score, scorer(geometry, device, "fp32"), middle)
    details = times(interleaved(cases, repeats, device))
    seconds = {name: entry["median_s"] for name, entry in details.items()}
    pair = min(seconds[name] for name in peers)
    added = (seconds[f"ours, {many} sentences"] - seconds[f"ours, {few} sentences"]) / (many - few)
    found = {
        "added_sentence_vs_vilt": round(pair / added, 3),
        "single_pair_vs_vilt": round(pair / seconds["ours, one image and one sentence"], 3),
    }
    if precision == "bf16":
        single = seconds["vilt, one pair, fp32"] / seconds["ours, one image and one sentence, fp32"]
        found["single_pair_vs_vilt_fp32"] = round(single, 3)
    details["ours, an added sentence (their difference)"] = {"median_s": round(added, 6)}
    return found | {"details": details}


def scorer(geometry: Geometry, device: torch.device, precision: str) -> Any:
    """A network that is ready for inference."""
    return for_inference(subjects.network(PixelBertForPreTraining, geometry, device), precision)


# --- the training loop against its step ---


def engine_ratio(device: torch.device, steps: int) -> Result:
    """The training loop on real photos (loading, sampling, collation, logging) against forward, backward and optimisers
    on the same batches, resident on the device. Step by step, and the bare one before and after."""
    cpu = device.type == "cpu"
    size = 384 if cpu else 800
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        recipe = Recipe(
            output=str(folder / "run"),
            model=ModelRecipe(num_hidden_layers=4 if cpu else 12),
            data=DataRecipe(
                train=[subjects.prepared(folder, 64)],
                shortest_edge=size,
                longest_edge=size * 5 // 3,
                sentences_per_image=5,
                workers=0 if cpu else 8,
            ),
            optimizer=OptimizerRecipe(warmup_steps=0),
            batch_size=PAIRS if cpu else 320,
            micro_batch_size=PAIRS if cpu else 160,
            log_every=1,
        )
        examples = recipe.batch_size // 2
        recipe.epochs = steps * examples / (64 * 5)
        bare = BareStep(recipe, steps, device)
        before = bare.run()
        train(recipe)
        rows = read_rows(folder / "run" / METRICS)
        after = bare.run()
    engine = [recipe.batch_size / row["pairs_per_second"] for row in rows]
    both = [(a + b) / 2 for a, b in zip(before, after, strict=True)]
    shares = [b / e for b, e in zip(both[1:], engine[1:], strict=True)]  # the first step warms up
    return {
        "engine_vs_bare_step": round(median(shares), 3),
        "details": times({"training loop, a step": engine[1:], "bare step, the same batches": both[1:]}),
    }


class BareStep:
    """Forward, backward and optimisers on batches that are on the device already.

    Args:
        recipe: whose first steps these are.
        steps: how many.
    """

    def __init__(self, recipe: Recipe, steps: int, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        corpus = Corpus(recipe.data.train)
        torch.manual_seed(recipe.seed)
        processor = build_processor(recipe, corpus, Path(recipe.output) / "bare")
        self.model = build_model(recipe, processor.tokenizer, corpus)[0].to(device).train()
        channels_last(self.model.pixelbert.backbone)
        self.optimizers = build_optimizers(self.model, recipe.optimizer).values()
        order = ExampleOrder(corpus.image_of, recipe.batch_size // 2, recipe.data.sentences_per_image, recipe.seed)
        data = recipe.task.data(
            Photos(corpus, processor.image_processor), processor, order, 0, 1, recipe.micro_batch_size
        )
        self.batches: list[list[StepBatch]] = [
            [data.batch(s, m).to(device) for m in range(data.micro_batches())] for s in range(steps)
        ]
        shutil.rmtree(recipe.output)

    def run(self) -> list[float]:
        """Seconds of each step."""
        return [wall_clock(partial(self._step, batches), self.device) for batches in self.batches]

    def _step(self, batches: list[StepBatch]) -> None:
        for batch in batches:
            with autocast(self.device):
                loss = self.recipe.task.loss(self.model, batch).loss
            loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()


def wall_clock(case: Case, device: torch.device) -> float:
    """Seconds by the wall clock, as the training loop measures its own."""
    started = time.perf_counter()
    case()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started

"""What is timed: networks at their full size with random weights, real sentences, photos of a given shape.

Weights and pixels don't change how long a convolution or a matrix product takes; shapes and types do.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pixelbert.bench.measure import Case, autocast
from pixelbert.data.prepare import prepare
from pixelbert.data.processing import PixelBertImageProcessor, PixelBertProcessor, learn_tokenizer
from pixelbert.data.sources.folder import Folder
from pixelbert.demo.sample import shipped_photos
from pixelbert.model.configuration import PixelBertConfig
from pixelbert.model.resnet import channels_last
from pixelbert.tasks.pretraining import Pretraining, sample_pixels
from pixelbert.tasks.sentences import mask_tokens
from pixelbert.tasks.steps import pad, text_inputs

SENTENCES = 5  # of an image, or questions about it
PAIRS = 10  # of an image in pre-training with sentences_per_image 5: five matched, five mismatched
ANSWERS = 3129  # of VQA v2 (paper section 4.2)
ANSWER_LABELS = {"id2label": {i: str(i) for i in range(ANSWERS)}}


class Geometry(NamedTuple):
    """A CNN with the limits of its images' sides, and the shape that they and the snapping give a photo of 5 : 3."""

    backbone: str
    shortest_edge: int
    longest_edge: int
    height: int
    width: int


GEOMETRIES = {
    "r50_800x1333": Geometry("resnet50", 800, 1333, 832, 1280),
    "x152_600x1000": Geometry("resnext152_32x8d", 600, 1000, 576, 960),
    "r50_384x640": Geometry("resnet50", 384, 640, 384, 640),
}


@cache
def captions() -> tuple[str, ...]:
    """The captions of the shipped photos, photo after photo."""
    return tuple(caption for photo in shipped_photos() for caption in photo.captions)


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    """WordPiece learned from them: their words are whole pieces, as most are in BERT's own vocabulary."""
    return learn_tokenizer(captions(), 30522)


def sentences(number: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` of so many captions, in the order of their lengths, as every user of the network
    passes them."""
    ids = tokenizer()([captions()[i % len(captions())] for i in range(number)])["input_ids"]
    return text_inputs([np.array(x) for x in sorted(ids, key=len)], 0)


def photo(height: int, width: int) -> Tensor:
    """(3, height, width), normalised."""
    image = Image.open(shipped_photos()[0].path).resize((width, height))
    x = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
    return (x - 0.45) / 0.225


def network(model_class: Any, geometry: Geometry, device: torch.device, **options: Any) -> Any:
    """A network of full size, as training lays it out."""
    torch.manual_seed(0)
    model = model_class(PixelBertConfig(backbone=geometry.backbone, **options)).to(device)
    channels_last(model.pixelbert.backbone)
    return model


def processor(geometry: Geometry) -> PixelBertProcessor:
    """Photos and words to tensors."""
    images = PixelBertImageProcessor(geometry.shortest_edge, geometry.longest_edge)
    return PixelBertProcessor(images, tokenizer())


def pretraining_inputs(geometry: Geometry, pairs: int, device: torch.device, images: int = 1) -> dict[str, Any]:
    """Images with so many pairs each, every other one matched, as `PretrainingData` makes them."""
    rng, task = np.random.default_rng(0), Pretraining()
    text = sentences(images * pairs)
    rows = [ids[mask.bool()].numpy() for ids, mask in zip(text["input_ids"], text["attention_mask"], strict=True)]
    shown, labels = zip(*(mask_tokens(x, tokenizer(), task.mask_probability, rng) for x in rows), strict=True)
    pixels = [sample_pixels(geometry.height * geometry.width // 4096, task.pixels, rng) for _ in rows]
    inputs = text | {
        "input_ids": pad(shown, 0),
        "token_labels": pad(labels, -100),
        "match_labels": (torch.arange(len(rows)) % 2 == 0).float(),
    }
    if all(sampled is not None for sampled in pixels):
        inputs["pixel_index"] = torch.from_numpy(np.stack(pixels))  # type: ignore[arg-type]
    return with_images(inputs, geometry, pairs, device, images)


def answering_inputs(geometry: Geometry, questions: int, device: torch.device, images: int = 1) -> dict[str, Any]:
    """Images with so many questions each."""
    inputs = sentences(images * questions)
    inputs["answer_targets"] = torch.zeros(images * questions, ANSWERS)
    inputs["answer_targets"][:, 7] = 1.0
    return with_images(inputs, geometry, questions, device, images)


def with_images(
    inputs: dict[str, Tensor], geometry: Geometry, pairs: int, device: torch.device, images: int
) -> dict[str, Any]:
    """These inputs on the device, and images with so many of their pairs each."""
    inputs["image_index"] = torch.arange(images).repeat_interleave(pairs)
    moved = {name: value.to(device) for name, value in inputs.items()}
    return moved | {"pixel_values": [photo(geometry.height, geometry.width).to(device) for _ in range(images)]}


def training_step(model: Any, inputs: dict[str, Any], device: torch.device) -> Case:
    """Forward and backward pass of a network of ours."""

    def run() -> None:
        with autocast(device):
            output = model(**inputs)
        parts = [output.get(name) for name in ("loss", "mlm_loss", "itm_loss")]
        torch.stack([part for part in parts if part is not None]).sum().backward()
        model.zero_grad()

    return run


def jpegs(folder: Path, number: int, size: tuple[int, int] = (640, 480)) -> list[Path]:
    """JPEG files of the size that COCO's and Visual Genome's photos have, from the shipped ones."""
    folder.mkdir(parents=True, exist_ok=True)
    shipped = shipped_photos()
    files = [folder / f"{i}.jpg" for i in range(number)]
    for i, file in enumerate(files):
        Image.open(shipped[i % len(shipped)].path).convert("RGB").resize(size, Image.Resampling.BICUBIC).save(
            file, quality=90
        )
    return files


def prepared(folder: Path, photos: int, size: tuple[int, int] = (640, 480), per_photo: int = 5) -> str:
    """A prepared data set of such photos with their captions, as DIR:SPLIT."""
    files = jpegs(folder / "photos", photos, size)
    shipped, table = shipped_photos(), folder / "captions.csv"
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("image", "text", "split"))
        for i, file in enumerate(files):
            own = shipped[i % len(shipped)].captions
            # A number makes every sentence another one, however often a photo comes again.
            writer.writerows((file.name, f"{own[j % len(own)]} {i} {j}", "train") for j in range(per_photo))
    prepare(Folder(images=files[0].parent, captions=table, name="bench"), folder / "data", overwrite=True)
    return f"{folder / 'data'}:train"

"""`pixelbert export`: a trained model as two ONNX graphs, for programs that have no PyTorch.

The graphs keep the form of the model itself, one image and many sentences (paper sections 3.2 and 4.2):

    images.onnx    pixel_values -> pixel_embeddings, once an image (eq. 5)
    pairs.onnx     pixel_embeddings, and sentences that point into them -> the scores of the checkpoint's head

Shapes: I images, H x W their sides, K pixels of the largest grid, D hidden, P pairs, L word tokens, A answers.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelbert.data.processing import PixelBertProcessor
from pixelbert.errors import PixelBertError
from pixelbert.files import exclusive, publish, write_json
from pixelbert.loading import load_checkpoint
from pixelbert.model.fine_tuning import (
    PixelBertForImageAndTextRetrieval,
    PixelBertForImagesAndTextClassification,
    PixelBertForQuestionAnswering,
)
from pixelbert.model.modeling import PixelBertForPreTraining, PixelBertModel
from pixelbert.model.pixels import REDUCTION, PixelFeatures
from pixelbert.model.resnet import folded
from pixelbert.progress import console

NEEDED = ("onnx", "onnxruntime", "onnxscript")
OPSET = 20
TOLERANCE = 1e-4  # between PyTorch and ONNX Runtime, both in float32
CHECKED_SIDES = ((2, 3), (4, 1))  # of images that the graphs are compared on, in grid pixels
CHECKED_LENGTHS = (3, 8, 17)  # of sentences, in tokens


class Head(NamedTuple):
    """What a checkpoint's scores are."""

    task: str
    output: str
    shape: list[str | int]
    meaning: str


HEADS: dict[type, Head] = {
    PixelBertForPreTraining: Head(
        "matching", "match_logits", ["pairs"], "its sigmoid: probability that image and sentence belong together"
    ),
    PixelBertForQuestionAnswering: Head(
        "question-answering", "answer_logits", ["pairs", "answers"], "sigmoid of each: probability of that answer"
    ),
    PixelBertForImagesAndTextClassification: Head(
        "reasoning", "statement_logits", ["pairs", 2], "softmax: probability of false, of true"
    ),
    PixelBertForImageAndTextRetrieval: Head(
        "retrieval", "retrieval_logits", ["pairs"], "ranks images and sentences: the higher the better"
    ),
}


class ImageGraph(nn.Module):
    """pixel_values (I, 3, H, W) -> pixel_embeddings (I, K, D), batch norms folded: `encode_images` for one shape."""

    def __init__(self, model: PixelBertModel) -> None:
        super().__init__()
        self.trunk = folded(model.backbone)
        self.embedding = model.pixel_embedding

    def forward(self, pixel_values: Tensor) -> Tensor:
        grid = F.max_pool2d(self.trunk(pixel_values), 2)  # (I, C, rows, columns)
        rows, columns = grid.shape[2:]
        x = self.embedding.projection(grid.flatten(2).transpose(1, 2)) + self.embedding.semantic
        if self.embedding.row is not None and self.embedding.column is not None:
            row, column = self.embedding.row.weight[:rows, None], self.embedding.column.weight[None, :columns]
            x = x + (row + column).flatten(0, 1)
        return x if self.embedding.norm is None else self.embedding.norm(x)


class PairGraph(nn.Module):
    """Pixel embeddings, and sentences that point into them, to the scores of the model's head."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        pixel_embeddings: Tensor,
        pixel_counts: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_index: Tensor,
    ) -> Tensor:
        grid = torch.stack([pixel_counts, torch.ones_like(pixel_counts)], 1)  # its shape is of no more interest
        output = self.model(PixelFeatures(pixel_embeddings, grid), input_ids, attention_mask, image_index)
        logits = output.match_logits if isinstance(self.model, PixelBertForPreTraining) else output.logits
        return cast(Tensor, logits)


class Graph(NamedTuple):
    """A graph to write: the module, its file, and for each input an example and the names of its dimensions.

    A name stands for a size that may change from call to call, a number for one that may not.
    """

    module: nn.Module
    file: Path
    inputs: dict[str, tuple[Tensor, list[str | int]]]
    outputs: dict[str, list[str | int]]


def image_graph(model: Any, folder: Path) -> Graph:
    """The image encoder of a model, for images of one shape at a time."""
    shape: list[str | int] = ["images", 3, "height", "width"]
    pixels = torch.zeros(2, 3, 2 * REDUCTION, 3 * REDUCTION)
    embeddings: list[str | int] = ["images", "pixels", model.config.hidden_size]
    return Graph(
        ImageGraph(model.pixelbert).eval(),
        folder / "images.onnx",
        {"pixel_values": (pixels, shape)},
        {"pixel_embeddings": embeddings},
    )


def pair_graph(model: Any, folder: Path) -> Graph:
    """The transformer and the head of a model."""
    hidden, head = model.config.hidden_size, HEADS[type(model)]
    two = isinstance(model, PixelBertForImagesAndTextClassification)
    images, pixels, pairs, tokens = 2, 6, 3, 5  # each at least 2, since torch takes a size of 1 for one that stays
    index = torch.zeros((pairs, 2) if two else (pairs,), dtype=torch.long)
    ids = torch.ones((pairs, tokens), dtype=torch.long)  # not the mask too: one tensor would become one input
    return Graph(
        PairGraph(model).eval(),
        folder / "pairs.onnx",
        {
            "pixel_embeddings": (torch.zeros(images, pixels, hidden), ["images", "pixels", hidden]),
            "pixel_counts": (torch.full((images,), pixels), ["images"]),
            "input_ids": (ids, ["pairs", "tokens"]),
            "attention_mask": (ids.clone(), ["pairs", "tokens"]),
            "image_index": (index, ["pairs", 2] if two else ["pairs"]),
        },
        {head.output: [len(model.answers) if size == "answers" else size for size in head.shape]},
    )


def write_graph(graph: Graph, config: Any) -> None:
    """Write the ONNX file of a graph."""
    from torch.export import Dim

    grid_limit = {"max": config.pixel_positions} if config.pixel_positions else {}
    sizes: dict[str | int, Any] = {
        "height": REDUCTION * Dim("rows", **grid_limit),
        "width": REDUCTION * Dim("columns", **grid_limit),
        "tokens": Dim("tokens", max=config.max_position_embeddings),
    }
    for _, shape in graph.inputs.values():
        sizes |= {name: Dim(name) for name in shape if isinstance(name, str) and name not in sizes}
    with torch.no_grad(), quiet_exporter():
        torch.onnx.export(
            graph.module,
            tuple(example for example, _ in graph.inputs.values()),
            graph.file,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=tuple(
                {d: sizes[name] for d, name in enumerate(shape) if isinstance(name, str)}
                for _, shape in graph.inputs.values()
            ),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without torch's remarks on its own deprecations and on torchvision, which nobody here needs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@torch.inference_mode()
def largest_differences(model: Any, folder: Path) -> dict[str, float]:
    """How far ONNX Runtime's results are from PyTorch's: on images of several shapes, alone and together, and on
    sentences of several lengths.

    Returns:
        The largest absolute difference of the pixel embeddings, and of the scores computed from them.
    """
    from onnxruntime import InferenceSession

    images, pairs = (
        InferenceSession(folder / name, providers=["CPUExecutionProvider"]) for name in ("images.onnx", "pairs.onnx")
    )
    random = torch.Generator().manual_seed(0)
    photos = [
        torch.randn(number, 3, rows * REDUCTION, columns * REDUCTION, generator=random)
        for rows, columns in CHECKED_SIDES
        for number in (1, 2)
    ]
    embedded: list[np.ndarray] = []
    worst = {"pixel_embeddings": 0.0, "scores": 0.0}
    for pixel_values in photos:
        (found,) = images.run(None, {"pixel_values": pixel_values.numpy()})
        worst["pixel_embeddings"] = max(
            worst["pixel_embeddings"], difference(found, model.encode_images(pixel_values).values)
        )
        embedded += list(found)
    features = model.encode_images([image for group in photos for image in group])
    longest = max(len(x) for x in embedded)
    for length in (min(length, model.config.max_position_embeddings) for length in CHECKED_LENGTHS):
        shape = (len(embedded), 2) if isinstance(model, PixelBertForImagesAndTextClassification) else (len(embedded),)
        inputs = {
            "pixel_counts": torch.tensor([len(x) for x in embedded]),
            "input_ids": torch.randint(1, model.config.vocab_size, (len(embedded), length), generator=random),
            "attention_mask": torch.ones(len(embedded), length, dtype=torch.long),
            "image_index": torch.randint(0, len(embedded), shape, generator=random),
        }
        inputs["attention_mask"][0, length // 2 + 1 :] = 0
        padded = np.stack([np.pad(x, ((0, longest - len(x)), (0, 0))) for x in embedded])
        (found,) = pairs.run(None, {"pixel_embeddings": padded, **{k: v.numpy() for k, v in inputs.items()}})
        right = PairGraph(model)(features.values, *inputs.values())
        worst["scores"] = max(worst["scores"], difference(found, right))
    return worst


def difference(found: np.ndarray, right: Tensor) -> float:
    """The largest absolute difference; infinite where shapes differ or something is not a number."""
    if found.shape != tuple(right.shape):
        return float("inf")
    largest = float(np.abs(found - right.numpy()).max())
    return largest if np.isfinite(largest) else float("inf")


def description(model: Any, processor: PixelBertProcessor, graphs: list[Graph], worst: dict[str, float]) -> Any:
    """What export.json says: all that a program needs besides the graphs, the tokenizer and the image settings."""
    head = HEADS[type(model)]
    result: dict[str, Any] = {
        "format": "onnx",
        "opset": OPSET,
        "task": head.task,
        "model": type(model).__name__,
        "scores": {"output": head.output, "meaning": head.meaning},
        "max_length": processor.max_length,
        "pad_token_id": processor.tokenizer.pad_token_id,
        "reduction": REDUCTION,
        "largest_difference": worst,
    }
    if isinstance(model, PixelBertForQuestionAnswering):
        result["answers"] = model.answers
    result["graphs"] = {
        graph.file.name: {
            "inputs": {
                name: {"dtype": str(example.dtype).removeprefix("torch."), "shape": shape}
                for name, (example, shape) in graph.inputs.items()
            },
            "outputs": {name: {"dtype": "float32", "shape": shape} for name, shape in graph.outputs.items()},
        }
        for graph in graphs
    }
    return result


def export(checkpoint: str, out: Path, format: Literal["onnx"] = "onnx") -> dict[str, float]:
    """Write a trained model as two ONNX graphs, check them against PyTorch, and lay beside them what they need.

    Of a pre-trained checkpoint, the matching score is exported; masked words are not.

    Args:
        checkpoint: a run's `final` folder, or a hub name.
        out: the folder to write, new or empty: images.onnx, pairs.onnx, export.json, preprocessor_config.json and the
            tokenizer's files. `examples/onnx_match.py` reads it without PyTorch.
        format: onnx.

    Returns:
        The largest difference between ONNX Runtime's results and PyTorch's, of pixel embeddings and of scores.

    Raises:
        PixelBertError: what export needs is not installed, the checkpoint can't be read, the folder holds something,
            or a result differs by more than 1e-4: nothing is left then.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise PixelBertError(f"export needs the extra [onnx] of pixelbert: pip install {' '.join(missing)}")
    out = Path(out)
    target = out.absolute()
    if not target.name or target.resolve() == Path.cwd():
        raise PixelBertError(f"{out} is the folder that you are in, which cannot be replaced: name a new one inside it")
    lock, aside = (target.with_name(target.name + end) for end in (".lock", ".partial"))
    target.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(lock, f"another export is writing {out}: wait for it, or choose another --out"):
        try:
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                raise PixelBertError(f"{out} is not empty: choose another --out, or remove it")
            shutil.rmtree(aside, ignore_errors=True)  # of one that was killed
            aside.mkdir()
            worst = write_export(checkpoint, aside)
            if target.exists():
                target.rmdir()
            publish(aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            with suppress(OSError):  # Windows removes no file that is open: there it goes with the lock
                lock.unlink()
    console.print(f"written to {out}")
    return worst


def write_export(checkpoint: str, folder: Path) -> dict[str, float]:
    """Write what `export` writes into an empty folder, and check it; see there."""
    model, processor, _ = load_checkpoint(checkpoint, "cpu")
    model = model.float().eval()
    for name, values in model.state_dict().items():
        if not torch.isfinite(values).all():
            raise PixelBertError(f"{checkpoint}: {name} is not finite, so there is no model to export: train it again")
    graphs = [image_graph(model, folder), pair_graph(model, folder)]
    for graph in graphs:
        write_graph(graph, model.config)
    worst = largest_differences(model, folder)
    console.print(
        f"largest difference from PyTorch: pixel embeddings {worst['pixel_embeddings']:.1e}, "
        f"scores {worst['scores']:.1e}"
    )
    if max(worst.values()) > TOLERANCE:
        raise PixelBertError(
            f"{checkpoint}: ONNX Runtime's results differ from PyTorch's by {max(worst.values()):.1e}, more than "
            f"{TOLERANCE:.0e}, so nothing was written. Try the versions of torch, onnxscript and onnxruntime that "
            "constraints.txt names"
        )
    processor.save_pretrained(folder)
    write_json(folder / "export.json", description(model, processor, graphs, worst))
    return worst

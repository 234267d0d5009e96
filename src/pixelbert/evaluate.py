"""`pixelbert evaluate`: measure a checkpoint on a prepared split."""

from __future__ import annotations

import json as json_module
from pathlib import Path

import torch
from rich.table import Table

from pixelbert.data.corpus import Corpus
from pixelbert.predict.pixelbert import load_checkpoint
from pixelbert.progress import console
from pixelbert.tasks.pretraining_evaluation import Precision, evaluate_pretraining
from pixelbert.train.checkpoint import write_atomically


def evaluate(
    checkpoint: str,
    data: str,
    split: str,
    json: Path | None = None,
    examples: int | None = None,
    retrieval_images: int = 100,
    captions_per_image: int = 1,
    seed: int = 0,
    precision: Precision = "bf16",
    device: str | None = None,
) -> dict[str, float | int]:
    """Measure masked words, matching and zero-shot retrieval, each beside its control.

    Args:
        checkpoint: folder of a trained model (DIR/final of a run), or a hub name.
        data: a prepared data set.
        split: one of its splits.
        json: file to write the metrics to.
        examples: sentences for masked words and matching, from the first; all if null.
        retrieval_images: images whose captions are ranked among each other, from the first; 0 for none. All pairs are
            scored: 1,000 images are 1,000,000 forward passes of the transformer.
        captions_per_image: captions of each of these images, from the first; 0 for all.
        seed: of the masks and the mismatched sentences.
        precision: bf16 (autocast; twice as fast and more) or fp32.
        device: cuda, mps or cpu; the best there is if null.

    Returns:
        The metrics; see `evaluate_pretraining`.
    """
    model, processor = load_checkpoint(
        checkpoint, device or str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    )
    result = evaluate_pretraining(
        model,
        processor,
        Corpus([f"{data}:{split}"]),
        examples=examples,
        retrieval_images=retrieval_images,
        captions_per_image=captions_per_image,
        seed=seed,
        precision=precision,
    )
    print_table(result)
    if json is not None:
        json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(
            json,
            json_module.dumps({"checkpoint": checkpoint, "data": data, "split": split, **result}, indent=2) + "\n",
        )
    return result


def print_table(result: dict[str, float | int]) -> None:
    """The metrics for people, with what chance or the control gets."""
    table = Table("metric", "value", "control", "control is")
    table.add_row(
        "ITM accuracy",
        f"{result['itm_accuracy']:.3f}",
        f"{result['itm_accuracy_blank']:.3f}",
        "blank photos (chance 0.5)",
    )
    for name in ("mlm_loss", "mlm_accuracy"):
        control = f"{result[f'{name}_other_photo']:.3f} / {result[f'{name}_blank']:.3f}"
        table.add_row(
            name.replace("_", " ").replace("mlm", "MLM"),
            f"{result[name]:.3f}",
            control,
            "another photo / a blank one",
        )
    for way, items in (("text_to_image", "retrieval_images"), ("image_to_text", "retrieval_captions")):
        for k in (1, 5, 10):
            if f"{way}_r{k}" in result:
                table.add_row(
                    f"{way.replace('_', ' ')} R@{k}",
                    f"{result[f'{way}_r{k}']:.3f}",
                    f"{min(k / result[items], 1):.3f}",
                    f"chance among {result[items]}",
                )
    console.print(table)

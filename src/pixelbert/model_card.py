"""The model card of a finished run: `README.md` in its `final` folder, which a hub shows as the model's page.

What it says is read from the run: the network, the data it learned from, its last validation. It claims nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pixelbert.train.logs import read_rows
from pixelbert.train.run_folder import VALIDATION

CARD = "README.md"
LIBRARY = "pixelbert"
PAPER = "https://arxiv.org/abs/2004.00849"


class Kind(NamedTuple):
    """What a card says of each network: the hub's tag, what it is for, and a line of Python."""

    tag: str
    purpose: str
    use: str


KINDS: dict[str, Kind] = {
    "PixelBertForPreTraining": Kind(
        "image-text-matching",
        "pre-trained with masked words and image-text matching (section 3.3 of the paper)",
        'model.match("photo.jpg", ["a dog on a beach", "a plate of food"])  # probabilities (photos, sentences)',
    ),
    "PixelBertForQuestionAnswering": Kind(
        "visual-question-answering",
        "fine-tuned to answer questions about a photo, as a choice among known answers (section 4.2 of the paper)",
        'model.answer("photo.jpg", "what colour is the dog")  # the likeliest answers, best first',
    ),
    "PixelBertForImagesAndTextClassification": Kind(
        "visual-reasoning",
        "fine-tuned to say whether a statement is true of two photos (section 4.2 of the paper)",
        'model.reason("left.jpg", "right.jpg", "both photos show a dog")  # true or false, with its probability',
    ),
    "PixelBertForImageAndTextRetrieval": Kind(
        "image-text-retrieval",
        "fine-tuned to rank sentences for a photo, and photos for a sentence (section 4.2 of the paper)",
        'model.match(["beach.jpg", "kitchen.jpg"], ["a dog on a beach"])  # scores to rank by (photos, sentences)',
    ),
}
LIMITATIONS = """\
- On photos and sentences of another kind than the data above, expect less. It repeats the habits and prejudices of that
  data.
- A score compares sentences or photos; it is no fact about the world. Don't decide about people with it.
- Sentences are cut to {max_length} tokens; photos are resized to about {shortest} x {longest} pixels, so small things
  are lost.
- The figures above are of validation data, on which the run may have been chosen: measure a test split of your own with
  `pixelbert evaluate`."""


def model_card(
    model: Any, processor: Any, learned: list[dict[str, Any]], validation: Mapping[str, Any] | None, name: str
) -> str:
    """The text of the card.

    Args:
        model: one of the four networks with a head.
        processor: its processor.
        learned: the splits it has learned from, as `trained_on.json` lists them.
        validation: the row of the run's validation.jsonl that is of this model; None if it had no validation data.
        name: of the model, for the title.
    """
    config, kind, images = model.config, KINDS[type(model).__name__.removeprefix("FSDP")], processor.image_processor
    weights = sum(p.numel() for p in model.parameters())
    front = ["---", "license: unknown", f"library_name: {LIBRARY}"]
    front += [f"pipeline_tag: {kind.tag}"] if kind.tag == "visual-question-answering" else []  # the one the hub has
    front += ["tags:", "- pixel-bert", "- vision-language", f"- {kind.tag}", "---"]
    parts = [
        "\n".join(front),
        f"# {name}",
        f"A [Pixel-BERT]({PAPER}), one transformer over the pixels of a photo and the words of a sentence: "
        f"{kind.purpose}.",
        f"{config.backbone}, {config.num_hidden_layers} layers of width {config.hidden_size}, {weights:,} weights"
        + (f", {len(model.answers):,} answers." if hasattr(model, "answers") else "."),
        "## How to use it",
        "```python\nfrom pixelbert import PixelBert\n\n"
        f'model = PixelBert.from_pretrained("{name}")  # this folder, or its name on a hub\n'
        f"{kind.use}\n```",
        "## What it learned from",
        "\n".join(data_lines(learned)),
        "Weights that it may have started from have seen data of their own, which is not listed here.",
        "## How well it does",
        metrics_table(validation),
        "## Limitations",
        LIMITATIONS.format(max_length=processor.max_length, shortest=images.shortest_edge, longest=images.longest_edge),
        "## Licence",
        "Not stated: it depends on the licences of the data and of the weights it started from. Before you publish "
        "this model, put the licence in the head of this file.",
    ]
    return "\n\n".join(parts) + "\n"


def data_lines(learned: list[dict[str, Any]]) -> list[str]:
    """A line for each split, with the start of its files' checksums."""
    lines = [
        f"- {source['data']}, split {source['split']}"
        + (f" (sha256 {', '.join(sum_[:12] for sum_ in source['sha256'])})" if source.get("sha256") else "")
        for source in learned
    ]
    return lines or ["- not recorded"]


def metrics_table(validation: Mapping[str, Any] | None) -> str:
    """All figures of a validation, controls included."""
    figures = {k: v for k, v in (validation or {}).items() if k != "step" and isinstance(v, int | float)}
    if validation is None or not figures:
        return "The run had no validation data, so nothing is known."
    rows = [f"| {name} | {value:,} |" if isinstance(value, int) else f"| {name} | {value:.4f} |"
            for name, value in figures.items()]  # fmt: skip
    return "\n".join(
        [
            f"The run's validation after step {validation['step']:,}. `_blank`, `_shuffled` and `_other_photo` "
            "are controls, in which the model does not see the right photo:",
            "",
            "| metric | value |",
            "| --- | --- |",
            *rows,
        ]
    )


def last_validation(run: Path) -> dict[str, Any] | None:
    """The last row of a run's validation.jsonl; None if there is none."""
    rows = read_rows(run / VALIDATION)
    return rows[-1] if rows else None

"""DIR/curves.png: a run's losses and accuracies over its steps, for people who would rather look than read."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from pixelbert.train.logs import read_rows
from pixelbert.train.run_folder import METRICS, VALIDATION

LOSSES = {  # what is drawn of a row of metrics.jsonl or validation.jsonl, where it is there, and under what name
    "mlm_loss": "masked words",
    "itm_loss": "matching",
    "vqa_loss": "answers",
    "reasoning_loss": "true or false",
    "ranking_loss": "ranking",
    "contrastive_loss": "two towers",
    "mlm_loss_other_photo": "masked words, another photo",
}
SCORES = {
    "itm_accuracy": "matching",
    "itm_accuracy_blank": "matching, blank photos",
    "vqa_accuracy": "answers",
    "reasoning_accuracy": "true or false",
    "ranked_first": "right sentence first",
    "accuracy": "accuracy",
    "accuracy_shuffled": "accuracy, photos shuffled",
    "text_to_image_r1": "text to image R@1",
    "image_to_text_r1": "image to text R@1",
    "tower_text_to_image_r1": "two towers, text to image R@1",
    "tower_image_to_text_r1": "two towers, image to text R@1",
}


def plot_curves(output: Path) -> Path:
    """Draw metrics.jsonl and validation.jsonl of a run's folder.

    Returns:
        The picture's path.
    """
    trained, measured = read_rows(output / METRICS), read_rows(output / VALIDATION)
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, title, names in zip(figure.subplots(1, 2), ("loss", "accuracy"), (LOSSES, SCORES), strict=True):
        for rows, style, part in ((trained, "-", "training"), (measured, "o--", "validation")):
            for name, label in names.items():
                if rows and name in rows[0]:
                    steps, values = zip(*((row["step"], row[name]) for row in rows), strict=True)
                    axes.plot(steps, values, style, label=f"{label}, {part}")
        if axes.lines:
            axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.16))  # beside no curve
        axes.set_title(title, loc="left")
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    file = output / "curves.png"
    figure.savefig(file, dpi=110)
    return file

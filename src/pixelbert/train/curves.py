"""DIR/curves.png: a run's losses and accuracies over the pairs it saw, for people who would rather look than read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

LABELS = {"mlm_loss": "masked words", "itm_loss": "matching"}


def read_log(file: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file; none if it is not there."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def plot_curves(output: Path) -> Path:
    """Draw metrics.jsonl and validation.jsonl of a run's folder.

    Returns:
        The picture's path.
    """
    trained, measured = read_log(output / "metrics.jsonl"), read_log(output / "validation.jsonl")
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    losses, matching = figure.subplots(1, 2)
    steps, measured_steps = [row["step"] for row in trained], [row["step"] for row in measured]
    for name, label in LABELS.items():
        if trained and name in trained[0]:
            losses.plot(steps, [row[name] for row in trained], label=f"{label}, training")
    if measured and trained and "mlm_loss" in trained[0]:
        for name, label in (("mlm_loss", "right photo"), ("mlm_loss_other_photo", "another photo")):
            losses.plot(measured_steps, [row[name] for row in measured], "o--", label=f"masked words, {label}")
    if trained and "itm_accuracy" in trained[0]:
        matching.plot(steps, [row["itm_accuracy"] for row in trained], label="training")
        for name, label in (("itm_accuracy", "validation"), ("itm_accuracy_blank", "validation, blank photos")):
            if measured:
                matching.plot(measured_steps, [row[name] for row in measured], "o--", label=label)
        matching.axhline(0.5, color="0.7", linewidth=1)
        matching.set_ylim(0.4, 1)
    for axes, title in ((losses, "loss"), (matching, "matching accuracy")):
        axes.set_title(title, loc="left")
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False, fontsize=8)
    file = output / "curves.png"
    figure.savefig(file, dpi=110)
    return file

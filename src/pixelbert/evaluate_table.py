"""The table that `pixelbert evaluate` prints: each figure beside its control, or beside chance."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from pixelbert.progress import console


def print_table(result: dict[str, Any]) -> None:
    """The metrics for people, with what chance or the control gets."""
    table = Table("metric", "value", "control", "control is")

    def row(name: str, key: str, control: str = "", meaning: str = "") -> None:
        if key in result:
            table.add_row(name, f"{result[key]:.3f}", control, meaning)

    def figures(*keys: str) -> str:
        return " / ".join(f"{result[key]:.3f}" for key in keys if key in result)

    row("ITM accuracy", "itm_accuracy", figures("itm_accuracy_blank"), "blank photos (chance 0.5)")
    row("  matching head alone", "itm_accuracy_joint")
    row("  two-tower head alone", "itm_accuracy_apart")
    for name in ("mlm_loss", "mlm_accuracy"):
        row(
            name.replace("_", " ").replace("mlm", "MLM"),
            name,
            figures(f"{name}_other_photo", f"{name}_blank"),
            "another photo / a blank one",
        )
    row("accuracy", "accuracy", figures("accuracy_shuffled", "accuracy_blank"), "photos shuffled / blank")
    row("answerable questions", "answerable")
    row("consistency", "consistency")
    for key in result:
        if key.startswith("accuracy_") and key not in ("accuracy_shuffled", "accuracy_blank"):
            row(key.replace("_", " "), key)
    for way, items in (("text_to_image", "retrieval_images"), ("image_to_text", "retrieval_captions")):
        for k in (1, 5, 10):
            if f"{way}_r{k}" in result:
                chance = f"{min(k / result['retrieval_images'], 1):.3f}"
                meaning = f"chance among {result[items]:,}"
                if f"{way}_queries" in result:
                    error = result[f"{way}_r{k}_standard_error"]
                    meaning += f"; {result[f'{way}_queries']} queries, standard error {error:.3f}"
                row(f"{way.replace('_', ' ')} R@{k}", f"{way}_r{k}", chance, meaning)
    for key in result:
        if key.endswith("_folds") or "_kept_by_" in key or key.startswith(("tower_text", "tower_image_")):
            row(key.replace("_", " "), key)
    console.print(table)

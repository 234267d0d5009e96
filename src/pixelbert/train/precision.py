"""The precision of a run whose recipe leaves it open: chosen when it begins and kept, wherever it goes on."""

from __future__ import annotations

from pathlib import Path

from pixelbert.device import Precision, best_device, best_precision, cpu_milliseconds, launched_share
from pixelbert.errors import PixelBertError
from pixelbert.files import read_json, write_json
from pixelbert.progress import console
from pixelbert.train.recipe import Recipe

FILE = "precision.json"


def precision_of(recipe: Recipe) -> Precision:
    """The recipe's; else what the run began with; else the best here. The same in all processes.

    Raises:
        PixelBertError: the run's file does not say it.
    """
    if recipe.precision:
        return recipe.precision
    device = best_device()
    best = best_precision(device)
    file = Path(recipe.output) / FILE
    kept: Precision = best
    if file.exists():
        there = read_json(file)
        said = there.get("precision") if isinstance(there, dict) else None
        if said not in ("bf16", "fp32"):
            raise PixelBertError(
                f"{file} does not say whether the run began in bf16 or fp32: choose another --output, or, if you know "
                f'it, write {{"precision": "fp32"}} into that file'
            )
        kept = said
    share = launched_share(device)
    if share.first and kept != best:
        console.print(f"computing in {kept}, as the run began; here {best} would be the faster")
    return share.agreed(kept)


def keep_precision(recipe: Recipe, precision: Precision, begun: bool) -> None:
    """Write down what was chosen, and what was measured, if the recipe leaves it open.

    Args:
        begun: whether the run has steps behind it.
    """
    file = Path(recipe.output) / FILE
    if recipe.precision or file.exists():
        return
    if begun:
        console.print(f"begun by a version that did not write down its precision; it goes on in {precision}")
    measured = {} if best_device() != "cpu" else {"milliseconds": cpu_milliseconds()}
    write_json(file, {"precision": precision} | measured)

"""`python -m pixelbert.demo --output runs/demo`: photos and scenes, training, held-out figures, report.

The same command again goes on with a run that was stopped, and only measures one that is finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging as transformers_logging

from pixelbert.data.corpus import Corpus
from pixelbert.data.sources.scenes import make_scene, resolve_scenes
from pixelbert.demo.measure import CANDIDATES, FIRST_HELD_OUT, measure, table
from pixelbert.demo.recipe import demo_recipe
from pixelbert.demo.report import write_report
from pixelbert.demo.sample import prepare_photos, shipped_photos
from pixelbert.errors import PixelBertError
from pixelbert.predict import PixelBert
from pixelbert.progress import console
from pixelbert.train.loop import train
from pixelbert.train.recipe import Recipe


def demonstrate(output: Path, recipe: Recipe | None = None) -> Path:
    """Prepare, train, measure and report.

    Args:
        output: folder for all of it.
        recipe: another run than the demonstration's own, for trials; it must have validation scenes.

    Returns:
        The report.
    """
    photos = shipped_photos()
    trained_on, held_out = prepare_photos(photos, output / "data")
    recipe = recipe or demo_recipe(output / "training", trained_on)
    run = Path(recipe.output)
    model = PixelBert.from_pretrained(train(recipe))
    scenes = Corpus(resolve_scenes(recipe.data.validation, run / "data"))
    results = measure(model, scenes, Corpus([held_out]))
    results.save(output / "results.json")
    console.print(table(results))
    report = output / "report.html"
    shown = [make_scene(FIRST_HELD_OUT + i) for i in range(CANDIDATES)]
    write_report(report, run, recipe.batch_size, model, results, photos, shown)
    console.print(f"the report is in {report}: open it in a browser")
    return report


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m pixelbert.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for data, model and report")
    arguments = parser.parse_args(argv)
    transformers_logging.disable_progress_bar()
    try:
        demonstrate(arguments.output)
    except PixelBertError as error:
        print(f"pixelbert.demo: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

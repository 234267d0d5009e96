"""`python -m pixelbert.demo --output runs/demo`: what the shipped model sees in photos that are new to it; then a small
one is trained on photos and scenes. Held-out figures of both, and a report.

The same command again goes on with a run that was stopped, and only measures one that is finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging as transformers_logging

from pixelbert.data.corpus import Corpus
from pixelbert.data.photos import Photos
from pixelbert.data.sources.scenes import make_scene, resolve_scenes
from pixelbert.demo.measure import CANDIDATES, FIRST_HELD_OUT, measure, table
from pixelbert.demo.recipe import demo_recipe
from pixelbert.demo.report import training_part, write_report
from pixelbert.demo.sample import Photo, prepare_photos, shipped_photos
from pixelbert.demo.shipped import answered, shipped_part
from pixelbert.evaluate_table import print_table
from pixelbert.files import write_json
from pixelbert.predict import PixelBert
from pixelbert.progress import console
from pixelbert.tasks.pretraining_evaluation import evaluate_pretraining
from pixelbert.terminal import program
from pixelbert.train.loop import train
from pixelbert.train.recipe import Recipe

UNDER_WAY = "<h1>A small one is being trained here</h1><p>When it has ended, this page will show it.</p>"


def demonstrate(output: Path, recipe: Recipe | None = None) -> Path:
    """Show what the shipped model does; then train one, measure it, and show that too.

    Args:
        output: folder for all of it.
        recipe: another run than the demonstration's own, for trials; it must have validation scenes.

    Returns:
        The report.
    """
    photos, report = shipped_photos(), output / "report.html"
    trained_on, held_out = prepare_photos(photos, output / "data")
    shipped, shown = show_shipped(photos, Corpus([held_out]), output)
    write_report(report, photos, shown, shipped, UNDER_WAY)
    console.print(f"what the shipped model sees is in {report}: open it in a browser. Now one is trained here")
    recipe = recipe or demo_recipe(output / "training", trained_on)
    run = Path(recipe.output)
    model = PixelBert.from_pretrained(train(recipe))
    scenes = Corpus(resolve_scenes(recipe.data.validation, run / "data"))
    results = measure(model, scenes, Corpus([held_out]))
    results.save(output / "results.json")
    console.print(table(results))
    unseen = [make_scene(FIRST_HELD_OUT + i) for i in range(CANDIDATES)]
    write_report(report, photos, shown, shipped, training_part(run, recipe.batch_size, model, results, photos, unseen))
    console.print(f"the report is in {report}: open it in a browser")
    return report


def show_shipped(photos: list[Photo], captions: Corpus, output: Path) -> tuple[str, list[Photo]]:
    """The report's part about the shipped model, and the photos in it; its figures go to shipped.json."""
    model = PixelBert.from_pretrained()
    figures = evaluate_pretraining(
        model.model,
        model.processor,
        Photos(captions, model.processor.image_processor),
        retrieval_images=len(photos),
        precision=model.precision,
    )
    figures |= answered(model, photos)
    write_json(output / "shipped.json", figures)
    console.print(f"the shipped model on {len(photos)} photos that it has never seen:")
    print_table(figures)
    for kind, said in (("open", "open questions"), ("yes_no", "yes-or-no questions")):
        own, other = (f"{figures[f'answers_{kind}{beside}']:.0%}" for beside in ("", "_other_photo"))
        console.print(f"{own} of {figures[f'questions_{kind}']} {said} answered rightly; {other} beside another photo")
    return shipped_part(model, photos, figures)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m pixelbert.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for data, model and report")
    arguments = parser.parse_args(argv)
    transformers_logging.disable_progress_bar()
    with program("pixelbert.demo"):
        try:
            demonstrate(arguments.output)
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
            raise


if __name__ == "__main__":
    main()

"""What the demonstration's model has learned, each figure beside chance and beside its control."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from pixelbert.data.corpus import Corpus
from pixelbert.data.photos import Photos
from pixelbert.data.sources.scenes import Scene, Thing, make_scene
from pixelbert.predict import PixelBert
from pixelbert.progress import track
from pixelbert.tasks.pretraining_evaluation import evaluate_pretraining

CANDIDATES = 64  # images whose first sentences are ranked among each other, of scenes as of photos
FIRST_HELD_OUT = 100_000  # number of the first held-out scene


@dataclass(frozen=True)
class Pointing:
    """Where a word's attention falls in held-out scenes: on the thing that it names, or elsewhere.

    Args:
        layer: of the transformer, from 0; mean over its heads.
        words: words that were measured: the colour and the shape of each of two things.
        on_thing: mean share of the attention over pixels that falls on the pixels of the named thing.
        uniform: what an even spread of attention gives: the share of the image that the thing covers.
        on_other: the share that falls on the thing not named.
        hits: how often the grid pixel with the most attention touches the named thing.
        chance: how often a grid pixel drawn at random does.
    """

    layer: int
    words: int
    on_thing: float
    uniform: float
    on_other: float
    hits: float
    chance: float


@dataclass(frozen=True)
class Results:
    """All figures of the demonstration; see `evaluate_pretraining` for the keys of `scenes` and `photos`."""

    scenes: dict[str, float | int]
    photos: dict[str, float | int]
    pointing: list[Pointing]

    def save(self, file: Path) -> None:
        """Write them as JSON."""
        file.write_text(json.dumps(asdict(self), indent=2) + "\n")


def measure(model: PixelBert, scenes: Corpus, photos: Corpus) -> Results:
    """Matching, masked words and retrieval on held-out scenes and sentences, and attention against known masks."""
    scored = [
        evaluate_pretraining(
            model.model,
            model.processor,
            Photos(corpus, model.processor.image_processor),
            retrieval_images=CANDIDATES,
        )
        for corpus in (scenes, photos)
    ]
    held_out = [make_scene(FIRST_HELD_OUT + i) for i in range(len(scenes.sizes))]
    layers = model.model.config.num_hidden_layers
    return Results(scored[0], scored[1], [point(model, held_out, layer) for layer in range(layers)])


def point(model: PixelBert, scenes: list[Scene], layer: int) -> Pointing:
    """Compare each naming word's attention with the mask of the thing that it names, in scenes of two things."""
    rows = []
    for scene in track(scenes, f"attention of layer {layer + 1}"):
        if len(scene.things) < 2:
            continue
        a, b = scene.things
        maps = model.attend(scene.image, f"{a.phrase} and {b.phrase}", layer=layer)
        for thing, other, words in ((a, b, maps[: len(maps) // 2]), (b, a, maps[len(maps) // 2 :])):
            for word, weights, _ in words:
                if word in (thing.colour, thing.shape):
                    rows.append(fall(scene, thing, other, weights))
    mean = np.mean(rows, axis=0).tolist()
    return Pointing(layer, len(rows), *mean)


def fall(scene: Scene, thing: Thing, other: Thing, weights: np.ndarray) -> list[float]:
    """One word's figures in the order of `Pointing`: on the thing, evenly spread, on the other, hit, chance."""
    cover, elsewhere = (coverage(scene.mask(x), weights.shape) for x in (thing, other))
    best = np.unravel_index(weights.argmax(), weights.shape)
    hit, chance = float(cover[best] > 0), float((cover > 0).mean())
    return [
        float((weights * cover).sum()),
        float(cover.mean()),
        float((weights * elsewhere).sum()),
        hit,
        chance,
    ]


def coverage(mask: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """(H, W) mask -> (rows, columns): the share of each grid pixel's patch that the mask covers."""
    rows, columns = grid
    height, width = mask.shape
    return mask.reshape(rows, height // rows, columns, width // columns).mean((1, 3))


def metric_rows(results: Results) -> list[tuple[str, list[str], str]]:
    """The table of figures: a name; value and control for scenes, then for photos; and what the control is."""
    rows = []
    names = [("ITM accuracy", "itm_accuracy", "_blank", "blank pixels (chance 0.5)")]
    names.append(("MLM loss (lower is better)", "mlm_loss", "_other_photo", "another image"))
    names.append(("MLM accuracy", "mlm_accuracy", "_other_photo", "another image"))
    for name, key, control, meaning in names:
        values = [f"{part[key + end]:.3f}" for part in (results.scenes, results.photos) for end in ("", control)]
        rows.append((name, values, meaning))
    for way, said in (("text_to_image", "sentence to image"), ("image_to_text", "image to sentence")):
        for k in (1, 5, 10):
            values = []
            for part in (results.scenes, results.photos):
                chance = min(k / part["retrieval_images"], 1)
                values += [f"{part[f'{way}_r{k}']:.3f}", f"{chance:.3f}"]
            rows.append((f"{said} R@{k}", values, f"chance among {results.photos['retrieval_images']}"))
    return rows


def table(results: Results) -> Table:
    """The figures for the terminal."""
    shown = Table("held-out metric", "scenes", "control", "photos*", "control", "the control is")
    for name, values, meaning in metric_rows(results):
        shown.add_row(name, *values, meaning)
    for p in results.pointing:
        share, even = f"{p.on_thing:.3f}", f"{p.uniform:.3f}"
        shown.add_row(f"on named thing, layer {p.layer + 1}", share, even, "", "", "even attention")
    shown.caption = "* the photos themselves were trained on, with other sentences; scenes were never seen"
    return shown

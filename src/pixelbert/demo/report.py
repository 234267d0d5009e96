"""The report of the demonstration: one page that needs nothing else, neither files beside it nor a network.

The page's words are in page.html, those of its two parts in shipped.html and training.html, its looks in page.css; here
blanks are filled. Everything shown is chosen by rule, the first so many, and whatever comes from data is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np
import PIL.Image

from pixelbert.data.sources.scenes import Scene
from pixelbert.demo.figures import Curve, chart, smoothed
from pixelbert.demo.measure import CANDIDATES, Results, metric_rows
from pixelbert.demo.sample import TRAINED, Photo
from pixelbert.files import write_atomically
from pixelbert.predict import PixelBert, WordMap
from pixelbert.predict.maps import inlined, overlay, shrunk
from pixelbert.train.logs import read_rows
from pixelbert.train.run_folder import METRICS, VALIDATION

PACKAGE = Path(__file__).parent
SHOWN_SCENES = 6  # whose best-scoring sentences are shown
ATTENDED_SCENES = 3  # whose attention is shown
BEST = 3  # sentences shown with each image
WORDS = 5  # words shown with each image
SIDE, SMALL = 224, 88  # pixels of a picture, and of one in the list of credits
# Words whose attention is not shown, since they name nothing.
LITTLE_WORDS = re.compile(
    r"an?|and|are|as|at|be|by|for|from|has|her|his|in|into|is|its?|of|off|on|or|some|that|the|their|there|this|to|two|with"
)

Row = dict[str, float]  # one line of a run's log


def write_report(file: Path, photos: Sequence[Photo], shown: Sequence[Photo], shipped: str, training: str) -> None:
    """Write the page.

    Args:
        file: the page.
        photos: all photos.
        shown: those that can be seen in its parts, which are credited.
        shipped: the part about the model that ships with the project.
        training: the part about the one that was trained here.
    """
    page = filled(
        "page.html",
        style=(PACKAGE / "page.css").read_text(encoding="utf-8"),
        shipped=shipped,
        training=training,
        photo_count=len(photos),
        credits=credit(shown),
    )
    write_atomically(file, page)


def filled(template: str, **blanks: object) -> str:
    """One of the pages beside this file, its blanks filled."""
    return Template((PACKAGE / template).read_text(encoding="utf-8")).substitute(blanks)


def training_part(
    run: Path, per_step: int, model: PixelBert, results: Results, photos: Sequence[Photo], scenes: Sequence[Scene]
) -> str:
    """What was trained here, and what it has learned.

    Args:
        run: folder of the training run, whose metrics.jsonl and validation.jsonl give the curves.
        per_step: its pairs a step.
        model: what was trained.
        results: what was measured.
        photos: all photos.
        scenes: held-out scenes; their first sentences are the candidates.
    """
    trained, checked = (read_rows(run / name) for name in (METRICS, VALIDATION))
    pool = list(dict.fromkeys(scene.sentences[0] for scene in scenes[:CANDIDATES]))
    two = [scene for scene in scenes if len(scene.things) == 2][:ATTENDED_SCENES]
    return filled(
        "training.html",
        weights=weights(model),
        course=course(trained, per_step),
        photo_count=len(photos),
        trained_captions=TRAINED,
        all_captions=TRAINED + 1,
        tiles=tiles(training_tiles(results)),
        metrics=metrics(results),
        charts=charts(trained, checked, per_step) or "There is no log of this training.",
        best=BEST,
        scenes_shown=len(scenes[:SHOWN_SCENES]),
        scene_pool=len(pool),
        scene_count=len(scenes[:CANDIDATES]),
        scenes="".join(
            scored(s.image, pool, model.match(s.image, pool)[0], [text in s.truths for text in pool])
            for s in scenes[:SHOWN_SCENES]
        ),
        pointing_words=f"{results.pointing[0].words:,}",
        pointing=pointing(results),
        scenes_attended=len(two),
        attention="".join(looked_at(model, scene.image, scene.sentences[0]) for scene in two),
        patch=patch(model, scenes[0].image),
    )


def weights(model: PixelBert) -> str:
    """Millions of them."""
    return f"{sum(p.numel() for p in model.model.parameters()) / 1e6:.1f}"


def patch(model: PixelBert, picture: PIL.Image.Image) -> str:
    """The share of a picture's side that a grid pixel stands for."""
    return f"1/{int(model.encode(picture).grid[0, 0])}"


def course(trained: Sequence[Row], per_step: int) -> str:
    """How long training was; nothing if there is no log of it."""
    if not trained:
        return ""
    steps = np.diff([0, *(row["step"] for row in trained)])
    seconds = sum(n * per_step / row["pairs_per_second"] for n, row in zip(steps, trained, strict=True))
    count = trained[-1]["step"] * per_step
    return f" on {count:,.0f} pairs of an image and a sentence, in {seconds / 60:.1f} minutes"


def tiles(figures: Sequence[tuple[str, str]]) -> str:
    """The figures that say most, each with what it is."""
    return "".join(f'<div class="tile"><b>{big}</b>{small}</div>' for big, small in figures)


def training_tiles(results: Results) -> list[tuple[str, str]]:
    """Of the model that was trained here."""
    scenes, photos = results.scenes, results.photos
    first, last = (layer.on_thing / layer.uniform for layer in (results.pointing[0], results.pointing[-1]))
    ranked = photos["retrieval_images"]
    return [
        (
            f"{scenes['itm_accuracy']:.0%}",
            f"of sentences judged rightly on scenes never seen; {scenes['itm_accuracy_blank']:.0%} with blank pixels",
        ),
        (
            f"{scenes['text_to_image_r1']:.0%}",
            f"of sentences find their scene first among {scenes['retrieval_images']}; "
            f"chance {1 / scenes['retrieval_images']:.1%}",
        ),
        (
            f"{photos['itm_accuracy']:.0%}",
            f"of unseen sentences judged rightly on known photos; {photos['itm_accuracy_blank']:.0%} with blank pixels",
        ),
        (
            f"{photos['text_to_image_r10']:.0%}",
            f"of unseen sentences find their photo among the best 10 of {ranked}; chance {min(10 / ranked, 1):.0%}",
        ),
        (
            f"{last:.1f} times",
            "as much attention of the last layer on the thing that a word names as an even spread would put there; "
            f"first layer {first:.1f} times",
        ),
    ]


def metrics(results: Results) -> str:
    """The rows of the table of metrics."""
    kinds = ("value", "control", "value", "control")
    return "\n".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f'<td class="n {kind}">{value}</td>' for value, kind in zip(values, kinds, strict=True))
        + f'<td class="soft">{escape(meaning)}</td></tr>'
        for name, values, meaning in metric_rows(results)
    )


def charts(trained: Sequence[Row], checked: Sequence[Row], per_step: int) -> str:
    """The course of training over pairs seen."""
    if not trained:
        return ""
    x, held = ([row["step"] * per_step for row in rows] for rows in (trained, checked))

    def of(rows: Sequence[Row], key: str) -> list[float]:
        return [row[key] for row in rows]

    matching = [
        Curve("training, scenes and photos", "a", x, smoothed(of(trained, "itm_accuracy"))),
        Curve("held-out scenes", "b", held, of(checked, "itm_accuracy")),
        Curve("held-out scenes, blank pixels", "c", held, of(checked, "itm_accuracy_blank")),
        Curve("chance", "chance", [0, x[-1]], [0.5, 0.5]),
    ]
    masked = [
        Curve("training, scenes and photos", "a", x, smoothed(of(trained, "mlm_loss"))),
        Curve("held-out scenes", "b", held, of(checked, "mlm_loss")),
        Curve("held-out scenes, another image", "c", held, of(checked, "mlm_loss_other_photo")),
    ]
    left = chart("Matching: accuracy over pairs seen", matching, 0.4, 1.0, (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0))
    return left + chart("Masked words: loss over pairs seen", masked, 0.0, 6.0, (0, 1, 2, 3, 4, 5, 6))


def scored(picture: PIL.Image.Image, sentences: Sequence[str], scores: np.ndarray, right: Sequence[bool]) -> str:
    """One image with its best-scoring sentences, and where the best right one stands."""
    order = np.argsort(-scores, kind="stable").tolist()
    place = next(i for i, s in enumerate(order, start=1) if right[s])
    lines = "".join(
        f'<li class="{"right" if right[s] else "wrong"}"><span class="score">{scores[s]:.2f}</span>'
        f"<span>{escape(sentences[s])}</span></li>"
        for s in order[:BEST]
    )
    best = order[place - 1]
    missed = "" if place <= BEST else f": {escape(sentences[best])} ({scores[best]:.2f})"
    return (
        f'<div class="item"><img alt="" src="{inlined(picture, SIDE)}"><div><ol>{lines}</ol>'
        f'<p class="place">right sentence in place {place} of {len(order)}{missed}</p></div></div>'
    )


def naming_words(maps: Sequence[WordMap]) -> list[WordMap]:
    """The words that name something: little words and punctuation left out, repeated ones kept once."""
    chosen: dict[str, WordMap] = {}
    for found in maps:
        word = found.word.lower()
        if word[0].isalnum() and not LITTLE_WORDS.fullmatch(word):
            chosen.setdefault(word, found)
    return list(chosen.values())


def looked_at(model: PixelBert, picture: PIL.Image.Image, sentence: str) -> str:
    """One image, and what the words of its sentence look at in the first layer (as in the paper) and in the last."""
    rows = []
    small, attention = shrunk(picture, SIDE), model.attention(picture, sentence)
    for layer in (0, attention.layers - 1):
        shown = inlined(small, SIDE)
        figures = [f'<figure><img alt="" src="{shown}"><figcaption>layer {layer + 1}</figcaption></figure>']
        for word, weights, _ in naming_words(attention.maps(layer=layer))[:WORDS]:
            figures.append(
                f'<figure><img alt="attention of {escape(word)}" src="{inlined(overlay(small, weights), SIDE)}">'
                f"<figcaption><b>{escape(word)}</b> peak {weights.max() * weights.size:.1f}</figcaption></figure>"
            )
        rows.append(f'<div class="row">{"".join(figures)}</div>')
    return f'<div class="words"><p>{escape(sentence)}</p>{"".join(rows)}</div>\n'


def pointing(results: Results) -> str:
    """The rows of the table of attention, a layer each."""
    return "\n".join(
        f'<tr><td>layer {p.layer + 1}</td><td class="n value">{p.on_thing:.1%}</td>'
        f'<td class="n control">{p.uniform:.1%}</td><td class="n">{p.on_other:.1%}</td>'
        f'<td class="n value">{p.hits:.1%}</td><td class="n control">{p.chance:.1%}</td></tr>'
        for p in results.pointing
    )


def credit(photos: Sequence[Photo]) -> str:
    """Where each photo shown comes from, and its licence."""
    return "\n".join(
        f'<tr><td><img alt="" src="{inlined(photo.open(), SMALL)}"></td><td>{escape(photo.path.name)}</td>'
        f"<td>{link(photo.source)}</td><td>{escape(photo.licence)}</td>"
        f"<td>{escape(photo.changes)}; scaled again here, and recoloured under attention</td></tr>"
        for photo in photos
    )


def link(address: str) -> str:
    """A link that a reader may follow, only to the web, whatever the file of photos says."""
    shown = escape(address)
    return f'<a href="{shown}">{shown}</a>' if address.startswith(("http://", "https://")) else shown

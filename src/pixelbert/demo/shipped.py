"""What the model that ships with the project makes of the shipped photos, none of which it has learned from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pixelbert.demo.report import BEST, filled, looked_at, patch, scored, tiles, weights
from pixelbert.demo.sample import Photo
from pixelbert.predict import Answer, PixelBert
from pixelbert.predict.maps import FULL, inlined
from pixelbert.predict.search import index_photos

SHOWN = 8  # photos whose best-scoring captions are shown
SEARCHES, FOUND = 4, 5  # captions that are searched for, and the photos shown of each search
FILLED, GUESSES = 8, 3  # captions in which a word is masked, and words shown for it
ASKED, UNLIKELY = 8, 0.05  # photos whose questions are shown; answers below this are not
ATTENDED = 4  # photos whose attention is shown
SIDE = 150  # pixels of a picture that was found

Figures = dict[str, float | int]


def shipped_part(model: PixelBert, photos: Sequence[Photo], figures: Figures) -> tuple[str, list[Photo]]:
    """The part of the page, and the photos to be seen in it.

    Args:
        model: a pre-trained one.
        photos: all photos; their held-out captions are the candidates.
        figures: see `evaluate_pretraining`.
    """
    captions = [photo.held_out for photo in photos]
    first, next_ones = photos[:SHOWN], photos[SHOWN : SHOWN + SEARCHES]
    matched = model.match([photo.path for photo in first], captions)
    by_name = {photo.path.name: photo for photo in photos}
    with TemporaryDirectory() as folder:
        index_photos(model, photos[0].path.parent, Path(folder))
        found = [model.search(folder, photo.held_out, FOUND) for photo in next_ones]
    searches = [[by_name[Path(one.image).name] for one in best] for best in found]
    part = filled(
        "shipped.html",
        weights=weights(model),
        photo_count=len(photos),
        tiles=tiles(shipped_tiles(figures)),
        best=BEST,
        photos_shown=len(first),
        photos="".join(
            scored(photo.open(), captions, scores, [other is photo for other in photos])
            for photo, scores in zip(first, matched, strict=True)
        ),
        searches=len(next_ones),
        found=FOUND,
        searched="".join(searched(*each) for each in zip(next_ones, searches, strict=True)),
        filled="\n".join(masked(model, *two) for two in pairwise(photos[: FILLED + 1])),
        photos_asked=ASKED,
        asked="\n".join(
            row for photo, other in pairwise(photos[: ASKED + 1]) for row in questioned(model, photo, other)
        ),
        attention="".join(looked_at(model, photo.open(), photo.held_out) for photo in photos[:ATTENDED]),
        patch=patch(model, photos[0].open()),
        full=f"{FULL:g}",
    )
    shown = {id(photo) for photo in [*first, *next_ones, *(photo for best in searches for photo in best)]}
    return part, [photo for photo in photos if id(photo) in shown]


def shipped_tiles(figures: Figures) -> list[tuple[str, str]]:
    """The figures that say most."""
    ranked = figures["retrieval_images"]
    found = [
        (
            f"{figures[f'{way}_r{k}']:.0%}",
            f"of {queries} find their {item} {place} of {ranked}; chance {k / ranked:.1%}",
        )
        for way, queries, item in (("text_to_image", "captions", "photo"), ("image_to_text", "photos", "caption"))
        for k, place in ((1, "first"), (5, "among the best 5"))
    ]
    return [
        (
            f"{figures['itm_accuracy']:.0%}",
            f"of captions judged rightly, right ones and wrong; {figures['itm_accuracy_blank']:.0%} with blank photos",
        ),
        *found,
        (
            f"{figures['answers_open']:.0%}",
            f"of {figures['questions_open']} open questions answered rightly; "
            f"{figures['answers_open_other_photo']:.0%} beside another photo",
        ),
        (
            f"{figures['answers_yes_no']:.0%}",
            f"of {figures['questions_yes_no']} yes-or-no questions; {figures['answers_yes_no_commonest']:.0%} have the "
            "commoner answer",
        ),
    ]


def searched(photo: Photo, found: Sequence[Photo]) -> str:
    """A search and the photos that it found."""
    figures = "".join(
        f'<figure><img alt="" src="{inlined(other.open(), SIDE)}"><figcaption class="'
        f'{"right" if other is photo else "wrong"}">{place}{" ✓" if other is photo else ""}</figcaption></figure>'
        for place, other in enumerate(found, start=1)
    )
    return f'<div class="words"><p>{escape(photo.held_out)}</p><div class="row">{figures}</div></div>\n'


def questioned(model: PixelBert, photo: Photo, other: Photo) -> Iterator[str]:
    """A photo's questions, and the answers beside that photo and beside another."""
    for question, right in photo.questions:
        answers = [model.answer(shown.path, question, GUESSES) for shown in (photo, other)]
        yield in_a_row(photo, question, right, *map(likely, answers))


def likely(answers: Sequence[Answer]) -> str:
    """The answers that are worth showing, and the first in any case."""
    return ", ".join(f"{a.answer} {a.score:.2f}" for i, a in enumerate(answers) if a.score >= UNLIKELY or i == 0)


def answered(model: PixelBert, photos: Sequence[Photo]) -> Figures:
    """Shares of the photos' questions that are answered rightly, beside the photo and beside the next one.

    Yes-or-no questions and open ones apart, with how many there are and the share of their commonest answer.
    """
    nexts = [*photos[1:], photos[0]]
    asked = [(p, other, *question) for p, other in zip(photos, nexts, strict=True) for question in p.questions]
    figures: Figures = {}
    for kind in ("yes_no", "open"):
        rows = [row for row in asked if (row[3] in ("yes", "no")) == (kind == "yes_no")]
        beside = {"": [photo for photo, *_ in rows], "_other_photo": [other for _, other, *_ in rows]}
        figures[f"questions_{kind}"] = len(rows)
        for name, shown in beside.items():
            answers = [
                model.answer(photo.path, row[2], top=1)[0].answer for photo, row in zip(shown, rows, strict=True)
            ]
            figures[f"answers_{kind}{name}"] = float(
                np.mean([a == row[3] for a, row in zip(answers, rows, strict=True)])
            )
        figures[f"answers_{kind}_commonest"] = Counter(row[3] for row in rows).most_common(1)[0][1] / len(rows)
    return figures


def in_a_row(photo: Photo, *cells: str) -> str:
    """A row of a table that begins with a photo."""
    pictured = f'<td><img alt="" src="{inlined(photo.open(), SIDE // 2)}"></td>'
    return f"<tr>{pictured}{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def masked(model: PixelBert, photo: Photo, other: Photo) -> str:
    """A caption with its longest word masked, and what is put there beside its own photo and beside another."""
    words = photo.held_out.split()
    word = max((word.strip(".,") for word in words), key=len)
    text = photo.held_out.replace(word, model.processor.tokenizer.mask_token, 1)
    guesses = [
        ", ".join(f"{fill.token} {fill.score:.2f}" for fill in model.fill_mask(shown.path, text, GUESSES)[0])
        for shown in (photo, other)
    ]
    return in_a_row(photo, text, word, *guesses)

"""Generated scenes: their sentences are true, by what is drawn and not by what the generator meant."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pixelbert.data.corpus import Corpus
from pixelbert.data.sources import scenes
from pixelbert.data.sources.scenes import CELLS, COLOURS, NAMES, SIDE, Scene, Thing, make_scene, resolve_scenes
from pixelbert.errors import PixelBertError

NUMBERS = range(200)
RELATION = re.compile(r"an? (\w+ \w+) (and|to the left of|to the right of|above|below) an? (\w+ \w+)")
PLACE = re.compile(r"(?:an? (\w+ \w+) )?(at the (?:top|bottom) (?:left|right))(?: an? (\w+ \w+))?")


def centre(scene: Scene, name: str) -> tuple[float, float]:
    """x and y of the middle of the mask of the one thing with this name."""
    (thing,) = [thing for thing in scene.things if thing.name == name]
    ys, xs = np.nonzero(scene.mask(thing))
    return float(xs.mean()), float(ys.mean())


def is_true(scene: Scene, sentence: str) -> bool:
    """Judge a sentence by the masks."""
    if found := RELATION.fullmatch(sentence):
        (ax, ay), (bx, by) = (centre(scene, found[i]) for i in (1, 3))
        relations = {"to the left of": ax < bx, "to the right of": ax > bx, "above": ay < by, "below": ay > by}
        return relations.get(found[2], True)
    found = PLACE.fullmatch(sentence)
    assert found, sentence
    x, y = centre(scene, found[1] or found[3])
    place = f"at the {'top' if y < SIDE / 2 else 'bottom'} {'left' if x < SIDE / 2 else 'right'}"
    return found[2] == place


@pytest.mark.parametrize("number", NUMBERS)
def test_every_sentence_is_true_of_the_masks(number: int) -> None:
    scene = make_scene(number)
    assert scene.sentences
    assert len(set(scene.sentences)) == len(scene.sentences)
    assert set(scene.sentences) <= scene.truths
    for sentence in scene.truths:
        assert is_true(scene, sentence), sentence


@pytest.mark.parametrize("number", range(40))
def test_masks_are_where_the_colours_are(number: int) -> None:
    scene = make_scene(number)
    pixels = np.asarray(scene.image)
    ground = np.ones((SIDE, SIDE), dtype=bool)
    for thing in scene.things:
        mask = scene.mask(thing)
        assert (pixels[mask] == COLOURS[thing.colour]).all()
        assert mask.mean() > 0.02
        assert (ground[mask]).all(), "two things overlap"
        ground &= ~mask
    assert len(np.unique(pixels[ground], axis=0)) == 1
    assert pixels[ground].min() >= 215


def test_shapes_look_as_they_are_called() -> None:
    """The share of its box that a shape fills: a circle pi/4, a square all, a triangle half, a cross 5/9."""
    empty = make_scene(0)
    for shape, share in (("circle", np.pi / 4), ("square", 1), ("triangle", 0.5), ("cross", 5 / 9)):
        mask = empty.mask(Thing("red", shape, 0, (10, 10, 100, 100)))
        assert mask.sum() / 91**2 == pytest.approx(share, abs=0.03)


def test_all_names_and_cells_come_up() -> None:
    drawn = [make_scene(number) for number in range(400)]
    assert {(t.colour, t.shape) for s in drawn for t in s.things} == set(NAMES)
    assert {t.cell for s in drawn for t in s.things} == set(range(len(CELLS)))
    assert 0.4 < np.mean([len(s.things) == 2 for s in drawn]) < 0.6


def test_a_scene_depends_on_its_number_alone() -> None:
    first = make_scene(7)
    make_scene(8)
    again = make_scene(7)
    assert first.things == again.things
    assert np.array_equal(np.asarray(first.image), np.asarray(again.image))
    assert make_scene(8).things != first.things


def test_a_sentence_of_another_scene_is_almost_never_true() -> None:
    """Else matching could not reach an accuracy of 1, nor retrieval a recall of 1."""
    drawn = [make_scene(number) for number in NUMBERS]
    truths = [scene.truths for scene in drawn]
    trues = [t in truths[j] for i, a in enumerate(drawn) for j in range(len(drawn)) if i != j for t in a.sentences]
    assert np.mean(trues) < 0.005


def test_scenes_are_prepared_once_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = resolve_scenes(["scenes:5-9", "elsewhere:train"], tmp_path)
    assert sources == [f"{tmp_path / 'scenes-5-9'}:all", "elsewhere:train"]
    corpus = Corpus(sources[:1])
    assert len(corpus.sizes) == 4
    texts = [text for number in range(5, 9) for text in make_scene(number).sentences]
    assert [corpus.text(i) for i in range(len(corpus))] == texts
    assert np.array_equal(np.asarray(corpus.load_image(0)), np.asarray(make_scene(5).image))

    monkeypatch.setattr(scenes, "write_scenes", lambda *_: pytest.fail("drawn a second time"))
    assert resolve_scenes(["scenes:5-9"], tmp_path) == sources[:1]


def test_a_stop_while_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops_at_seven(number: int) -> Scene:
        if number == 7:
            raise KeyboardInterrupt
        return make_scene(number)

    with monkeypatch.context() as patch:
        patch.setattr(scenes, "make_scene", stops_at_seven)
        with pytest.raises(KeyboardInterrupt):
            resolve_scenes(["scenes:5-9"], tmp_path / "data")
    assert not (tmp_path / "data" / "scenes-5-9").exists()
    resolve_scenes(["scenes:5-9"], tmp_path / "data")


@pytest.mark.parametrize(
    "source", ["scenes:", "scenes:5", "scenes:9-5", "scenes:5-5", "scenes:a-b", "scenes:-1-5", "scenes:1-2-3"]
)
def test_a_malformed_range_says_what_is_expected(source: str, tmp_path: Path) -> None:
    with pytest.raises(PixelBertError, match=r"scenes:FIRST-END, such as scenes:0-1000"):
        resolve_scenes([source], tmp_path)
    assert not list(tmp_path.iterdir())

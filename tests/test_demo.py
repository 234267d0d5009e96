"""The demonstration: its data, its figures against known truth, and a report that is whole, safe and self-contained."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from pixelbert import PixelBertConfig, PixelBertForPreTraining, PixelBertForQuestionAnswering, PixelBertProcessor
from pixelbert.data.corpus import Corpus
from pixelbert.data.processing import PixelBertImageProcessor, learn_tokenizer
from pixelbert.data.sources.scenes import SIDE, Scene, make_scene, resolve_scenes
from pixelbert.demo.measure import FIRST_HELD_OUT, Results, coverage, measure, metric_rows, point
from pixelbert.demo.recipe import HELD_OUT_SCENES, TRAINING_SCENES, demo_recipe
from pixelbert.demo.report import link, naming_words, training_part, write_report
from pixelbert.demo.sample import TRAINED, Photo, prepare_photos, shipped_photos
from pixelbert.demo.shipped import SEARCHES, SHOWN, answered, shipped_part
from pixelbert.errors import PixelBertError
from pixelbert.predict import PixelBert, WordMap
from pixelbert.tasks.pretraining import mismatched_example
from pixelbert.train.setup import build_config

HOSTILE = "<script>alert('x')</script> & \"$style\" <img src=http://evil.example/x.png>"


@pytest.fixture(scope="module")
def model(tiny_config: Callable[..., PixelBertConfig]) -> PixelBert:
    """An untrained model that knows the words of scenes."""
    tokenizer = learn_tokenizer((text for i in range(60) for text in make_scene(i).sentences), 200)
    processor = PixelBertProcessor(PixelBertImageProcessor(128, 128), tokenizer, max_length=64)
    return PixelBert(
        PixelBertForPreTraining(tiny_config(vocab_size=len(tokenizer), max_position_embeddings=64)), processor
    )


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [make_scene(FIRST_HELD_OUT + i) for i in range(8)]


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    return shipped_photos()


@pytest.fixture(scope="module")
def results(model: PixelBert, photos: list[Photo], tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("demo")
    _, held_out = prepare_photos(photos[:10], folder)
    return measure(model, Corpus(resolve_scenes(["scenes:100000-100008"], folder)), Corpus([held_out]))


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_shipped_photos_are_whole_and_attributed(photos: list[Photo]) -> None:
    assert len(photos) == 64
    notice = (photos[0].path.parent / "ATTRIBUTION.md").read_text()
    for photo in photos:
        with PIL.Image.open(photo.path) as image:
            image.load()
            assert image.size == (224, 224)
        assert len(photo.captions) == TRAINED + 1
        assert photo.licence == "CC BY 2.0"
        assert photo.source in notice
        assert photo.path.name in notice


def test_missing_photos_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PixelBertError, match="install the project from its repository"):
        shipped_photos(tmp_path)


def test_held_out_captions_are_not_trained_on(photos: list[Photo], tmp_path: Path) -> None:
    trained_on, held_out = (Corpus([source]) for source in prepare_photos(photos, tmp_path))
    assert len(trained_on) == TRAINED * len(photos)
    assert [held_out.text(i) for i in range(len(held_out))] == [" ".join(p.held_out.split()) for p in photos]
    trained = {(int(trained_on.image_of[i]), trained_on.text(i)) for i in range(len(trained_on))}
    assert not trained & {(int(held_out.image_of[i]), held_out.text(i)) for i in range(len(held_out))}
    prepare_photos(photos, tmp_path)  # again, over what is there


def test_held_out_scenes_are_not_trained_on(tmp_path: Path) -> None:
    recipe = demo_recipe(tmp_path, "photos:train")
    assert recipe.data.validation == [HELD_OUT_SCENES]
    ranges = []
    for source in (TRAINING_SCENES, HELD_OUT_SCENES):
        first, end = (int(n) for n in source.removeprefix("scenes:").split("-"))
        ranges.append(range(first, end))
    assert ranges[0].stop <= ranges[1].start == FIRST_HELD_OUT


def test_the_recipe_reaches_the_network(model: PixelBert, tmp_path: Path) -> None:
    recipe = demo_recipe(tmp_path, "photos:train")
    config = build_config(recipe.model, model.processor.tokenizer)
    assert config.initializer_range == pytest.approx(config.hidden_size**-0.5)
    assert recipe.task.mismatched_from_same_split


def test_coverage_is_the_share_of_each_patch() -> None:
    mask = np.zeros((4, 8), dtype=bool)
    mask[:2, :2] = True
    mask[2, 4:] = True
    assert coverage(mask, (2, 2)).tolist() == [[0.5, 0.0], [0.0, 0.5]]


def test_pointing_finds_attention_on_the_named_thing(model: PixelBert, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a model that looks where its words say, and one that looks evenly."""
    two = [scene for scene in (make_scene(i) for i in range(20)) if len(scene.things) == 2]
    sentences = {id(scene.image): scene for scene in two}

    def perfect(image: PIL.Image.Image, sentence: str, layer: int) -> list[WordMap]:
        a, b = (coverage(sentences[id(image)].mask(t), (4, 4)) for t in sentences[id(image)].things)
        maps = [a, a, a, b, b, b, b]
        return [WordMap(word, m / m.sum(), 1.0) for word, m in zip(sentence.split(), maps, strict=True)]

    def even(image: PIL.Image.Image, sentence: str, layer: int) -> list[WordMap]:
        return [WordMap(word, np.full((4, 4), 1 / 16), 1.0) for word in sentence.split()]

    monkeypatch.setattr(model, "attend", perfect)
    best = point(model, two, 0)
    assert best.words == 4 * len(two)
    assert best.hits == 1
    assert best.on_thing > 3 * best.uniform
    assert best.on_thing > 5 * best.on_other
    monkeypatch.setattr(model, "attend", even)
    flat = point(model, two, 0)
    assert flat.on_thing == pytest.approx(flat.uniform)
    area = np.mean([scene.mask(thing).sum() / SIDE**2 for scene in two for thing in scene.things])
    assert flat.uniform == pytest.approx(area)


def test_words_that_name_nothing_are_left_out() -> None:
    written = [("A", 1.0), ("skate", 3.0), (".", 9.0), ("dog", 5.0), ("Dog", 6.0)]
    words = naming_words([WordMap(word, np.full((1, 1), value), 1.0) for word, value in written])
    assert [(word, float(m[0, 0])) for word, m, _ in words] == [("skate", 3.0), ("dog", 5.0)]


def test_figures_stand_beside_chance(results: Results, tmp_path: Path) -> None:
    rows = {name: values for name, values, _ in metric_rows(results)}
    assert rows["sentence to image R@1"][1::2] == ["0.125", "0.100"]  # of 8 scenes, of 10 photos
    assert len(results.pointing) == 2
    results.save(tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text())["scenes"] == results.scenes


def test_the_report_is_whole_safe_and_needs_no_network(
    model: PixelBert, results: Results, photos: list[Photo], scenes: list[Scene], tmp_path: Path
) -> None:
    run = tmp_path / "run <b>&"
    run.mkdir()
    row = {"step": 20, "itm_accuracy": 0.5, "mlm_loss": 4.0, "pairs_per_second": 100.0}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row | {"step": s}) + "\n" for s in (20, 40)))
    held = {"step": 40, "itm_accuracy": 0.6, "itm_accuracy_blank": 0.5, "mlm_loss": 4.0, "mlm_loss_other_photo": 4.1}
    (run / "validation.jsonl").write_text(json.dumps(held) + "\n")
    hostile = replace(photos[0], captions=(HOSTILE,) * 5, source="javascript:alert(1)", licence=HOSTILE)
    given = [hostile, *photos[1:]]
    loaded = saved(model, tmp_path / "checkpoint")
    answers = dict(enumerate([HOSTILE, "yes", "no", "dog"]))
    shape = loaded.model.config.to_dict() | {"id2label": answers, "label2id": {}}
    loaded.answering = PixelBert(PixelBertForQuestionAnswering(PixelBertConfig(**shape)), loaded.processor).model
    figures = answered(loaded, given)
    assert (figures["questions_yes_no"], figures["questions_open"]) == (99, 67)
    assert 0 < figures["answers_yes_no_commonest"] < 1
    shipped, shown = shipped_part(loaded, given, results.photos | figures)
    file = tmp_path / "report.html"
    write_report(file, given, shown, shipped, training_part(run, 64, model, results, given, scenes))

    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert HOSTILE in page.words
    assert not re.search(r"\$[a-z]", page.words.replace('"$style"', "")), "a blank of the page was not filled"
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    loads = [value for name, value in page.attributes if name in ("src", "srcset", "data", "poster", "xlink:href")]
    assert loads
    assert all(value.startswith("data:image/jpeg;base64,") for value in loads)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert "@import" not in text
    assert "url(" not in text
    links = [value for name, value in page.attributes if name == "href"]
    assert all(value.startswith(("http://", "https://")) for value in links)
    assert shown[: SHOWN + SEARCHES] == given[: SHOWN + SEARCHES]
    for photo in shown[1:]:
        assert photo.source in links, "a photo is shown without its source"
        assert photo.path.name in page.words
    assert page.words.count("CC BY 2.0") >= len(shown)
    assert page.tags.count("svg") == 2


def saved(model: PixelBert, folder: Path) -> PixelBert:
    """A checkpoint like the model's, loaded again: searching asks for one."""
    PixelBertForPreTraining(model.model.config).save_pretrained(folder)
    model.processor.save_pretrained(folder)
    return PixelBert.from_pretrained(folder)


def test_the_report_does_without_a_log(
    model: PixelBert, results: Results, photos: list[Photo], scenes: list[Scene], tmp_path: Path
) -> None:
    assert "There is no log" in training_part(tmp_path, 64, model, results, photos[:3], scenes)


def test_links_lead_to_the_web_only() -> None:
    assert link("javascript:alert(1)") == "javascript:alert(1)"
    assert link('https://a.example/"><b>') == (
        '<a href="https://a.example/&quot;&gt;&lt;b&gt;">https://a.example/&quot;&gt;&lt;b&gt;</a>'
    )


def test_mismatched_sentences_can_be_kept_to_their_own_kind(photos: list[Photo], tmp_path: Path) -> None:
    trained_on, _ = prepare_photos(photos[:6], tmp_path)
    corpus = Corpus([*resolve_scenes(["scenes:0-6"], tmp_path), trained_on, trained_on])
    kinds = [corpus.same_split(example) for example in range(len(corpus))]
    assert len(set(kinds)) == 3
    for example in (0, len(corpus) - 1):
        own = {corpus.text(e) for e in range(len(corpus)) if corpus.image_of[e] == corpus.image_of[example]}
        others = [
            mismatched_example(corpus, example, own, np.random.default_rng(seed), same_split=True) for seed in range(40)
        ]
        assert all(other in kinds[example] for other in others)
        assert len(set(others)) > 5

"""What is not read of sentences is told wherever they are given; what people hand over is taken in any sequence."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import yaml

import data_builders as build
from pixelbert import (
    PixelBert,
    PixelBertError,
    PixelBertForImagesAndTextClassification,
    PixelBertForQuestionAnswering,
    PixelBertProcessor,
    UnreadWarning,
    cli,
)
from pixelbert.data import reading
from pixelbert.data.prepare import prepare
from pixelbert.data.processing import PixelBertImageProcessor, learn_tokenizer
from pixelbert.data.reading import Sample, Unread
from pixelbert.data.sources import Folder
from pixelbert.predict.search import index_photos

LONG = "a dog and a cat on the red sea by the beach"  # 12 words, each one token
WHOLE = "a dog on the beach"
UNKNOWN = "a dog ☃ ☃ 雪"
Make = Callable[..., PixelBert]


@pytest.fixture(scope="module")
def processor() -> PixelBertProcessor:
    tokenizer = learn_tokenizer([LONG], 80)
    return PixelBertProcessor(PixelBertImageProcessor(64, 64), tokenizer, max_length=8)


@pytest.fixture(scope="module")
def make(tiny_model: Callable[..., Any], processor: PixelBertProcessor) -> Make:
    def of(*kind: type, **changes: Any) -> PixelBert:
        return PixelBert(tiny_model(*kind, vocab_size=len(processor.tokenizer), **changes), processor)

    return of


@pytest.fixture(scope="module")
def save(tiny_model: Callable[..., Any], processor: PixelBertProcessor) -> Callable[..., None]:
    def to(folder: Path, **changes: Any) -> None:
        tiny_model(vocab_size=len(processor.tokenizer), **changes).save_pretrained(folder)
        processor.save_pretrained(folder)

    return to


@pytest.fixture(scope="module")
def photo() -> PIL.Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


class TestUnread:
    def test_tokens_are_those_of_the_tokenizer(self, processor: PixelBertProcessor) -> None:
        texts = [LONG, WHOLE, UNKNOWN]
        expected = processor.tokenizer(texts, truncation=True, max_length=8)["input_ids"]
        assert [ids.tolist() for ids in processor.tokens(texts)] == expected
        padded = processor.tokenizer(texts, padding=True, truncation=True, max_length=8, return_tensors="pt")
        with pytest.warns(UnreadWarning):
            found = processor(text=texts)
        assert torch.equal(found["input_ids"], padded["input_ids"])
        assert torch.equal(found["attention_mask"], padded["attention_mask"])

    def test_what_is_cut_and_what_is_unknown(self, processor: PixelBertProcessor) -> None:
        unread = processor.unread([LONG, WHOLE, UNKNOWN])
        assert unread.fields() == {
            "cut": [{"text": LONG, "tokens": 12, "read": 6}],
            "unknown": [{"text": UNKNOWN, "words": ["☃", "雪"], "tokens": 5, "unknown": 3}],
        }
        cut, unknown = unread.lines()
        assert cut.startswith("1 of 3 sentences has 12 tokens, of which the first 6 are read: what follows ")
        assert cut.endswith("follows 'a dog and a cat on' is ignored")
        assert unknown.startswith(
            "1 of 3 sentences has words that the model does not know: '☃', '雪' in 'a dog ☃ ☃ 雪' ("
        )
        assert unknown.endswith("(3 of 5 tokens)")
        assert unread.counts() == {"sentences": 3, "sentences_cut": 1, "sentences_with_unknown_words": 1}
        assert unread.shares(30, 6).startswith("of 3 of 30 sentences, a sample, 33.33% are longer than 6 tokens")

    def test_as_long_as_is_read_is_not_cut(self, processor: PixelBertProcessor) -> None:
        exact = " ".join(LONG.split()[:6])
        assert processor.unread([exact, WHOLE]) == Unread(2, [], [], [])
        (cut,) = processor.unread([exact + " the"]).cut
        assert (cut.tokens, cut.read) == (7, 6)

    def test_several_and_a_very_long_one(self, processor: PixelBertProcessor) -> None:
        unread = processor.unread([LONG, 50 * "dog ", WHOLE])
        assert [cut.tokens for cut in unread.cut] == [12, 50]
        assert unread.lines()[0].startswith("2 of 3 sentences have more tokens than are read; the first has 12 tokens")
        assert processor.unread([LONG]).lines()[0].startswith("the sentence has 12 tokens, of which the first 6")

    def test_a_sample_is_spread_evenly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reading, "SAMPLE", 4)
        sample = Sample()
        for number in range(25):
            sample.add(str(number))
        assert sample.sentences == ["0", "4", "8", "12", "16", "20", "24"]
        assert sample.seen == 25


class TestCallsTell:
    """Each call issues one warning, at the line of the caller."""

    @pytest.fixture
    def calls(self, make: Make, photo: PIL.Image.Image, tmp_path: Path) -> dict[str, Callable[[str], Any]]:
        model = make()
        answering = make(PixelBertForQuestionAnswering, id2label={0: "yes", 1: "no"}, label2id={})
        reasoning = make(PixelBertForImagesAndTextClassification)
        return {
            "match": lambda text: model.match([photo, photo], [WHOLE, text]),
            "match_each": lambda text: model.match_each([(photo, [WHOLE]), (photo, [text])]),
            "answer": lambda text: answering.answer(photo, text),
            "fill_mask": lambda text: model.fill_mask(photo, "[MASK] " + text),
            "reason": lambda text: reasoning.reason(photo, photo, text),
            "attend": lambda text: model.attend(photo, text),
            "attention": lambda text: model.attention(photo, text),
            "processor": lambda text: model.processor(text=[WHOLE, text]),
        }

    def test_one_warning_a_call(self, calls: dict[str, Callable[[str], Any]]) -> None:
        for name, call in calls.items():
            for text in (LONG, UNKNOWN):
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    call(text)
                assert [w.category for w in caught] == [UnreadWarning], name
                assert caught[0].filename == __file__, name
                assert ("is ignored" if text == LONG else "does not know") in str(caught[0].message)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                call(WHOLE)

    def test_search(self, save: Callable[..., None], photo: PIL.Image.Image, tmp_path: Path) -> None:
        save(tmp_path / "model", tower_size=8)
        (tmp_path / "photos").mkdir()
        for i in range(3):
            photo.rotate(90 * i).save(tmp_path / "photos" / f"{i}.png")
        model = PixelBert.from_pretrained(tmp_path / "model", "cpu", "fp32")
        index_photos(model, tmp_path / "photos", tmp_path / "index")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.search(tmp_path / "index", LONG)
        assert [w.category for w in caught] == [UnreadWarning]

    def test_what_differs_beyond_the_limit_scores_the_same_and_that_is_told(
        self, make: Make, photo: PIL.Image.Image
    ) -> None:
        texts = [LONG, LONG.replace("red sea", "blue mountain")]
        with pytest.warns(UnreadWarning, match="2 of 2 sentences have more tokens than are read; the first has 12"):
            scores = make().match(photo, texts)[0]
        assert scores[0] == scores[1]

    def test_nothing_to_be_seen_is_no_text(self, make: Make, photo: PIL.Image.Image) -> None:
        with pytest.raises(PixelBertError, match="is no text: it has nothing but characters that are not seen"):
            make().match(photo, ["a dog", "\u200b\u200e"])


class TestCommands:
    @pytest.fixture
    def files(self, save: Callable[..., None], photo: PIL.Image.Image, tmp_path: Path) -> list[str]:
        save(tmp_path / "model")
        photo.save(tmp_path / "photo.png")
        return [str(tmp_path / "photo.png"), "--checkpoint", str(tmp_path / "model")]

    def test_fields_in_json_and_a_note_on_standard_error(
        self, files: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        for command, texts, read in (
            ("match", [WHOLE, LONG, UNKNOWN], 6),
            ("attend", [LONG], 6),
            ("fill-mask", ["[MASK] " + LONG], 6),
        ):
            cli.main([command, files[0], *texts, *files[1:], "--json"])
            printed = capsys.readouterr()
            found = json.loads(printed.out)
            assert [(cut["read"], cut["text"]) for cut in found["cut"]] == [(read, t) for t in texts if LONG in t]
            assert [unknown["text"] for unknown in found["unknown"]] == [t for t in texts if t == UNKNOWN]
            assert printed.err.count("is ignored") == 1
            assert printed.err.count("does not know") == texts.count(UNKNOWN)
            assert "Warning" not in printed.err
        cli.main(["match", files[0], WHOLE, *files[1:], "--json"])
        printed = capsys.readouterr()
        assert "note" not in printed.err
        assert json.loads(printed.out) | {"scores": 0} == {"scores": 0, "cut": [], "unknown": []}

    def test_prepare_train_and_evaluate_count(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        captions = 4 * [LONG] + 15 * ["two small dogs"] + ["a dog ☃"]
        rows = [f"{i}.jpg,{caption},train" for i, caption in enumerate(captions)]
        (tmp_path / "photos").mkdir()
        for i in range(20):
            build.photo(10 * i).save(tmp_path / "photos" / f"{i}.jpg")
        (tmp_path / "t.csv").write_text("\n".join(["image,caption,split", *rows]), encoding="utf-8")
        prepared = tmp_path / "prepared"
        summary = prepare(Folder(images=tmp_path / "photos", captions=tmp_path / "t.csv"), prepared)
        assert summary.notes[-1].startswith(
            "of 20 sentences 0.00% are longer than 62 tokens and are cut there; 5.00% have words that the tokenizer"
        )
        network = {"backbone": "resnet14_small", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        recipe = {
            "model": network | {"intermediate_size": 32, "vocab_size": 99},
            "data": {"train": [f"{prepared}:train"], "shortest_edge": 64, "longest_edge": 64, "max_length": 8}
            | {"workers": 0},
            "optimizer": {"milestones": []},
            **{"batch_size": 16, "epochs": 1, "precision": "fp32", "trackers": []},
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        capsys.readouterr()
        cli.main(["train", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "run")])
        said = " ".join(capsys.readouterr().err.split())
        assert "of 20 sentences 20.00% are longer than 6 tokens and are cut there" in said
        counted = {"sentences": 20, "max_length": 8, "looked_at": 20, "cut": 4, "unknown": 0}
        assert json.loads((tmp_path / "run" / "sentences.json").read_text()) == counted
        options = ["--data", str(prepared), "--split", "train", "--allow-trained", "--examples", "5"]
        cli.main(["evaluate", str(tmp_path / "run" / "final"), *options, "--json", str(tmp_path / "m.json")])
        metrics = json.loads((tmp_path / "m.json").read_text())
        assert (metrics["sentences"], metrics["sentences_cut"], metrics["sentences_with_unknown_words"]) == (5, 4, 0)
        assert "4 of 5 sentences have more tokens than are read" in " ".join(capsys.readouterr().err.split())


class Series:
    """As pandas': no sequence to Python, of one dimension, with labels of its own."""

    ndim = 1

    def __init__(self, *values: object) -> None:
        self.values = values

    def __iter__(self) -> Any:
        return iter(self.values)

    def __getitem__(self, label: int) -> Any:
        raise KeyError(label)


class Frame(Series):
    ndim = 2


class TestWhatIsHandedOver:
    def test_sentences_and_photos_in_any_sequence(
        self, make: Make, photo: PIL.Image.Image, tmp_path: Path, processor: PixelBertProcessor
    ) -> None:
        texts, model = ["a dog", "the cat"], make()
        photo.save(tmp_path / "a.png")
        photo.rotate(90).save(tmp_path / "b.png")
        paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
        scores, ids = model.match(paths, texts), processor(text=texts)["input_ids"]
        pixels = processor(images=paths)["pixel_values"]
        for kind in (tuple, np.array, lambda x: Series(*x), iter, lambda x: np.array(x, dtype=object)):
            np.testing.assert_array_equal(model.match(kind(paths), kind(texts)), scores)
            assert torch.equal(processor(text=kind(texts))["input_ids"], ids)
            assert torch.equal(processor(images=kind(paths))["pixel_values"], pixels)

    def test_pandas(self, processor: PixelBertProcessor) -> None:
        pandas = pytest.importorskip("pandas")
        table = pandas.DataFrame({"caption": ["a dog", "the cat"]}, index=[7, 3])
        assert torch.equal(
            processor(text=table.caption)["input_ids"], processor(text=["a dog", "the cat"])["input_ids"]
        )
        with pytest.raises(PixelBertError, match="a DataFrame is no text"):
            processor(text=table)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"images": 5}, "an int is no photo: expected a path"),
            ({"images": [None]}, "None is no photo"),
            ({"images": ["a.jpg", None]}, r"None is no photo \(image 2 of 2\)"),
            ({"images": []}, "there is no image"),
            ({"images": Frame("a.jpg")}, "a Frame is no photo"),
            ({"text": 5}, "an int is no text: expected a sentence, or several in a list"),
            ({"text": []}, "there is no sentence"),
            ({"text": Series("a dog", float("nan"))}, r"a float is no text \(sentence 2 of 2\)"),
            ({"text": Frame("caption")}, "a Frame is no text"),
            ({"text": b"a dog"}, "a bytes is no text"),
            ({"text": {"a dog": 1}}, "a dict is no text"),
            ({"text": {"a dog", "a cat"}}, "a set is no text"),
            ({"text": np.array([["a dog"]])}, "a ndarray is no text"),
        ],
    )
    def test_the_rest_is_refused(self, processor: PixelBertProcessor, given: dict[str, Any], message: str) -> None:
        with pytest.raises(PixelBertError, match=message):
            processor(**given)

    def test_so_does_match(self, make: Make, photo: PIL.Image.Image) -> None:
        for images, texts, message in (
            (photo, 5, "an int is no text"),
            (photo, Frame("caption"), "a Frame is no text"),
            (5, "a dog", "an int is no photo"),
            ([photo, None], "a dog", r"None is no photo \(image 2 of 2\)"),
        ):
            with pytest.raises(PixelBertError, match=message):
                make().match(images, texts)  # type: ignore[arg-type]

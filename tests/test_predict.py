"""Using a model: scores equal to the network's own, whatever is asked together; attention maps; the commands."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from pixelbert import (
    PixelBert,
    PixelBertConfig,
    PixelBertError,
    PixelBertForImageAndTextRetrieval,
    PixelBertForImagesAndTextClassification,
    PixelBertForPreTraining,
    PixelBertForQuestionAnswering,
    PixelBertProcessor,
    cli,
)
from pixelbert.data.processing import PixelBertImageProcessor, learn_tokenizer
from pixelbert.predict import pixelbert as module
from pixelbert.predict.attention import Attention, roll_out
from pixelbert.predict.maps import contact_sheet, overlay, report

TEXTS = ["a dog", "two dogs and a cat on a red beach", "Skateboarding!", "a cat", "dogs on a beach by the red sea"]
MakeConfig = Callable[..., PixelBertConfig]


@pytest.fixture(scope="module")
def processor() -> PixelBertProcessor:
    tokenizer = learn_tokenizer(["a dog and a cat on the red beach by the sea", "two dogs", "skate", "aboard"], 80)
    return PixelBertProcessor(PixelBertImageProcessor(128, 192), tokenizer, max_length=20)


@pytest.fixture(scope="module")
def network(tiny_model: Callable[..., Any], processor: PixelBertProcessor) -> Callable[..., Any]:
    return partial(tiny_model, vocab_size=len(processor.tokenizer))


@pytest.fixture(scope="module")
def make(network: Callable[..., Any], processor: PixelBertProcessor) -> Callable[..., PixelBert]:
    return lambda *kind, **changes: PixelBert(network(*kind, **changes), processor)


@pytest.fixture(scope="module")
def model(make: Callable[..., PixelBert]) -> PixelBert:
    return make()


@pytest.fixture(scope="module")
def photos() -> list[PIL.Image.Image]:
    """Of three shapes, so of three grids."""
    rng = np.random.default_rng(0)
    sizes = [(140, 140), (200, 130), (130, 200), (140, 140)]
    return [PIL.Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.fixture
def counted(model: PixelBert, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images in each call of the CNN from here on."""
    calls: list[int] = []
    encode = model.model.encode_images
    monkeypatch.setattr(model.model, "encode_images", lambda pixels: calls.append(len(pixels)) or encode(pixels))
    monkeypatch.setattr(model, "recent", module.RecentFeatures(3))
    return calls


def own_scores(model: PixelBert, photo: PIL.Image.Image, text: str) -> Any:
    """The network's own forward, for one photo and one text."""
    with torch.inference_mode():
        return model.model(
            image_index=torch.zeros(1, dtype=torch.long),
            **model.processor(images=photo, text=text),
            **OWN[type(model.model)],
        )


OWN: dict[type, dict[str, Any]] = {
    PixelBertForPreTraining: {"output_token_logits": True, "output_attentions": True},
    PixelBertForImageAndTextRetrieval: {},
    PixelBertForQuestionAnswering: {},
}


class TestMatch:
    def test_scores_are_those_of_the_network(self, model: PixelBert, photos: list[PIL.Image.Image]) -> None:
        scores = model.match(photos, TEXTS)
        assert scores.shape == (4, 5)
        expected = [[own_scores(model, p, t).match_logits.sigmoid().item() for t in TEXTS] for p in photos]
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        assert np.ptp(scores) > 1e-3

    def test_scores_depend_on_nothing_beside_them(
        self, model: PixelBert, photos: list[PIL.Image.Image], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scores = model.match(photos, TEXTS)
        monkeypatch.setattr(module, "PAIRS_AT_ONCE", 3)
        monkeypatch.setattr(module, "IMAGES_AT_ONCE", 2)
        np.testing.assert_allclose(model.match(photos, TEXTS), scores, atol=1e-5)
        np.testing.assert_allclose(model.match(photos[::-1], TEXTS[::-1]), scores[::-1, ::-1], atol=1e-5)
        for i, photo in enumerate(photos):
            for t, text in enumerate(TEXTS):
                assert model.match(photo, text).item() == pytest.approx(scores[i, t], abs=1e-5)

    def test_a_model_of_retrieval_matches_too(
        self, make: Callable[..., PixelBert], photos: list[PIL.Image.Image]
    ) -> None:
        model = make(PixelBertForImageAndTextRetrieval)
        expected = own_scores(model, photos[0], TEXTS[1]).logits.sigmoid().item()
        assert model.match(photos, TEXTS)[0, 1] == pytest.approx(expected, abs=1e-5)

    def test_every_way_to_hand_over_a_photo_is_the_same(
        self, model: PixelBert, photos: list[PIL.Image.Image], tmp_path: Path
    ) -> None:
        file = tmp_path / "photo.png"
        photos[1].save(file)
        kinds = [photos[1], np.asarray(photos[1]), file.read_bytes(), file, str(file)]
        scores = model.match(kinds, TEXTS)
        assert np.ptp(scores, axis=0).max() < 1e-6
        np.testing.assert_allclose(model.match(tuple(kinds), TEXTS), scores, atol=1e-6)

    def test_rotation_by_exif_counts_for_pillow_images(self, model: PixelBert, photos: list[PIL.Image.Image]) -> None:
        buffer = io.BytesIO()
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        photos[1].save(buffer, "PNG", exif=exif)
        turned = PIL.Image.open(io.BytesIO(buffer.getvalue()))
        expected = photos[1].transpose(PIL.Image.Transpose.ROTATE_270)
        scores = model.match([turned, buffer.getvalue(), expected, photos[1]], TEXTS)
        np.testing.assert_allclose(scores[:2], scores[2:3].repeat(2, 0), atol=1e-6)
        assert not np.allclose(scores[0], scores[3], atol=1e-5)

    def test_nothing_asked_is_nothing_answered(self, model: PixelBert, photos: list[PIL.Image.Image]) -> None:
        assert model.match([], TEXTS).shape == (0, 5)
        assert model.match(photos, []).shape == (4, 0)

    @pytest.mark.parametrize(
        ("image", "message"),
        [
            (np.zeros((40, 40, 3)), "numbers of type float64, of no agreed range"),
            (np.zeros((2, 40, 40, 3), dtype=np.uint8), "2 x 40 x 40 x 3: .*one photo an array"),
            (torch.zeros(3, 64, 64), "a Tensor is no photo"),
            (None, "None is no photo"),
            (b"plain text", "not an image"),
            ("missing.jpg", "missing.jpg does not exist"),
            ("nul\0.jpg", "cannot be read"),
        ],
    )
    def test_what_is_no_photo(self, model: PixelBert, image: Any, message: str) -> None:
        with pytest.raises(PixelBertError, match=message):
            model.match(image, "a dog")

    def test_an_empty_text(self, model: PixelBert, photos: list[PIL.Image.Image]) -> None:
        with pytest.raises(PixelBertError, match="is no text"):
            model.match(photos[0], ["a dog", "  "])


class TestRecentFeatures:
    def test_an_image_is_encoded_once(
        self, model: PixelBert, photos: list[PIL.Image.Image], counted: list[int]
    ) -> None:
        model.match([photos[0], photos[1], photos[0].copy()], TEXTS)
        assert sum(counted) == 2
        model.match(photos[:2], "a cat")
        model.attend(photos[0], "a cat")
        assert sum(counted) == 2

    def test_the_one_used_longest_ago_is_let_go(
        self, model: PixelBert, photos: list[PIL.Image.Image], counted: list[int]
    ) -> None:
        model.encode(photos[:3])
        model.encode(photos[0])
        model.encode(photos[3])  # photos[1] goes
        assert len(model.recent) == 3
        assert sum(counted) == 4
        model.encode([photos[0], photos[2], photos[3]])
        assert sum(counted) == 4
        model.encode(photos[1])
        assert sum(counted) == 5
        assert len(model.encode(photos)) == 4  # more than are kept
        assert len(model.recent) == 3

    def test_a_file_that_changed_is_read_again(
        self, model: PixelBert, photos: list[PIL.Image.Image], counted: list[int], tmp_path: Path
    ) -> None:
        file = tmp_path / "photo.bmp"  # whose size says nothing of what is in it
        photos[0].save(file)
        before = model.match(file, TEXTS)
        photos[3].save(file)
        os.utime(file, ns=(1, 1))
        assert not np.allclose(model.match(file, TEXTS), before, atol=1e-5)
        np.testing.assert_allclose(model.match(photos[3], TEXTS), model.match(file, TEXTS), atol=1e-6)


def test_answers(make: Callable[..., PixelBert], photos: list[PIL.Image.Image]) -> None:
    answers = ["yes", "no", "red", "two"]
    model = make(PixelBertForQuestionAnswering, id2label=dict(enumerate(answers)), label2id={})
    expected = own_scores(model, photos[1], "what is red").logits[0].sigmoid()
    found = model.answer(photos[1], "what is red", top=3)
    assert [a.answer for a in found] == [answers[i] for i in expected.argsort(descending=True)[:3]]
    assert [a.score for a in found] == pytest.approx(expected.sort(descending=True).values[:3].tolist(), abs=1e-5)
    assert len(model.answer(photos[1], "what is red", top=99)) == 4


def test_masked_words(model: PixelBert, photos: list[PIL.Image.Image]) -> None:
    text = "a [MASK] on the [MASK]"
    ids = model.processor(text=text)["input_ids"][0]
    probabilities = own_scores(model, photos[0], text).token_logits[0].softmax(-1)
    places = (ids == model.processor.tokenizer.mask_token_id).nonzero().flatten().tolist()
    filled = model.fill_mask(photos[0], text, top=4)
    assert len(filled) == len(places) == 2
    for place, fills in zip(places, filled, strict=True):
        best = probabilities[place].topk(4)
        assert [f.token for f in fills] == model.processor.tokenizer.convert_ids_to_tokens(best.indices)
        assert [f.score for f in fills] == pytest.approx(best.values.tolist(), abs=1e-5)
    with pytest.raises(PixelBertError, match=r"\[MASK\] is missing"):
        model.fill_mask(photos[0], "a dog on the beach")
    with pytest.raises(PixelBertError, match=r"\[MASK\] lies beyond"):
        model.fill_mask(photos[0], "a [MASK] " + 20 * "dog " + "[MASK]")


def test_only_tokens_fill_a_mask(make: Callable[..., PixelBert], photos: list[PIL.Image.Image]) -> None:
    """A network may have more rows than its tokenizer has tokens; a request that hit one got an error 500."""
    model = make(vocab_size=200)
    tokens = model.processor.tokenizer.get_vocab()
    (fills,) = model.fill_mask(photos[0], "a [MASK]", top=200)
    assert {fill.token for fill in fills} == set(tokens)
    assert len(fills) == len(tokens) < 200
    assert sum(fill.score for fill in fills) == pytest.approx(1, abs=1e-5)


def test_judgements(make: Callable[..., PixelBert], photos: list[PIL.Image.Image]) -> None:
    model = make(PixelBertForImagesAndTextClassification)
    judgements = set()
    for left, right in ((photos[0], photos[1]), (photos[1], photos[0])):
        with torch.inference_mode():
            inputs = model.processor(images=[left, right], text="two dogs")
            features = model.model.encode_images(inputs.pop("pixel_values"))
            logits = model.model(features, **inputs, image_index=torch.tensor([[0, 1]])).logits[0]
        found = model.reason(left, right, "two dogs")
        assert found.score == pytest.approx(logits.softmax(0)[1].item(), abs=1e-5)
        assert found.true is bool(logits[1] > logits[0])
        judgements.add(round(found.score, 6))
    assert len(judgements) == 2, "left and right make no difference"


def test_the_wrong_kind_of_checkpoint(make: Callable[..., PixelBert], photos: list[PIL.Image.Image]) -> None:
    trained, answering = make(), make(PixelBertForQuestionAnswering, id2label={0: "yes"}, label2id={})
    for call, message in (
        (lambda: trained.answer(photos[0], "x"), "is pre-trained: `answer` needs .* question answering"),
        (lambda: trained.reason(photos[0], photos[0], "x"), "NLVR2"),
        (lambda: answering.match(photos[0], "x"), "question answering: `match` needs .* pre-trained or .* retrieval"),
        (lambda: answering.fill_mask(photos[0], "[MASK]"), "pre-trained"),
    ):
        with pytest.raises(PixelBertError, match=message):
            call()
    assert answering.attend(photos[0], "a dog")  # which any checkpoint can


class TestLoading:
    def test_the_network_that_was_saved(
        self,
        make: Callable[..., PixelBert],
        network: Callable[..., Any],
        processor: PixelBertProcessor,
        tmp_path: Path,
        photos: list[PIL.Image.Image],
    ) -> None:
        for kind in (PixelBertForPreTraining, PixelBertForImageAndTextRetrieval):
            made = make(kind)
            network(kind).save_pretrained(tmp_path)
            processor.save_pretrained(tmp_path)
            loaded = PixelBert.from_pretrained(tmp_path, "cpu", "fp32")
            assert type(loaded.model) is kind
            np.testing.assert_allclose(loaded.match(photos, TEXTS), made.match(photos, TEXTS), atol=1e-6)
            half = PixelBert.from_pretrained(tmp_path, "cpu", "bf16").match(photos, TEXTS)
            assert half.dtype == np.float32
            np.testing.assert_allclose(half, made.match(photos, TEXTS), atol=0.05)

    def test_no_checkpoint_or_no_device(self, tmp_path: Path) -> None:
        with pytest.raises(PixelBertError, match="no Pixel-BERT checkpoint"):
            PixelBert.from_pretrained(tmp_path)
        with pytest.raises(PixelBertError, match="'abacus' cannot be used"):
            PixelBert.from_pretrained(tmp_path, "abacus")


class TestAttention:
    def test_rows_are_those_of_the_network(self, model: PixelBert, photos: list[PIL.Image.Image]) -> None:
        text = "a dog on the beach"
        own = own_scores(model, photos[1], text).attentions
        attention = model.attention(photos[1], text)
        length = own[0].shape[-1] - np.prod(attention.grid)
        assert attention.grid == (2, 3)
        for layer in range(2):
            np.testing.assert_allclose(attention.weights[layer], own[layer][0], atol=1e-5)
        rows = own[1][0, 2, 1:-6, length:].numpy()  # head 2, without [CLS]
        for found, row in zip(model.attend(photos[1], text, layer=1, head=2), rows, strict=False):
            np.testing.assert_allclose(found.map.flatten() * found.share, row, atol=1e-5)
            assert found.map.sum() == pytest.approx(1)
            assert found.share == pytest.approx(row.sum(), abs=1e-5)

    def test_first_layer_and_mean_of_heads_by_default(self, model: PixelBert, photos: list[PIL.Image.Image]) -> None:
        attention = model.attention(photos[0], "a dog")
        row = attention.weights[0].mean(0)[2, -4:]
        found = model.attend(photos[0], "a dog", "dog")
        np.testing.assert_allclose(found[0].map.flatten(), row / row.sum(), rtol=1e-5)
        same = attention.maps("dog", layer=-2)
        np.testing.assert_allclose(same[0].map, found[0].map, rtol=1e-5)

    def test_pieces_are_joined_to_the_words_that_were_written(
        self, model: PixelBert, photos: list[PIL.Image.Image]
    ) -> None:
        pieces = len(model.processor.tokenizer.tokenize("Skateboard"))
        assert pieces > 1
        attention = model.attention(photos[0], "Skateboard dogs!")
        assert attention.words == ["Skateboard", "dogs", "!"]
        assert attention.pieces[0] == list(range(1, 1 + pieces))
        rows = attention.weights[0].mean(0)[1 : 1 + pieces, -4:].mean(0)
        (found,) = attention.maps("SKATEBOARD")
        assert found.word == "Skateboard"
        assert found.share == pytest.approx(rows.sum(), rel=1e-5)
        np.testing.assert_allclose(found.map.flatten(), rows / rows.sum(), rtol=1e-5)

    def test_a_repeated_word_and_a_mask_and_a_word_of_no_vocabulary(
        self, model: PixelBert, photos: list[PIL.Image.Image]
    ) -> None:
        attention = model.attention(photos[0], "a dog ☃ [MASK] a dog")
        assert attention.words == ["a", "dog", "☃", "[MASK]", "a", "dog"]
        assert attention.find("dog") == 1
        assert len(attention.maps("[mask]")) == 1

    def test_what_is_not_there(self, model: PixelBert, photos: list[PIL.Image.Image]) -> None:
        for arguments, message in (
            ({"token": "cat"}, "no word 'cat'; it has: a, dog"),
            ({"layer": 2}, "no layer 2: the model has layers 0 to 1"),
            ({"head": 4}, "no head 4: the model has heads 0 to 3"),
            ({"head": 1, "rollout": True}, "leave the head out"),
        ):
            with pytest.raises(PixelBertError, match=message):
                model.attend(photos[0], "a dog", **arguments)  # type: ignore[arg-type]

    def test_roll_out_by_hand(self) -> None:
        first = np.array([[[0.5, 0.5], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]])  # two heads: mean below
        second = np.array([[[0.0, 1.0], [1.0, 0.0]]] * 2)
        # mean of the first: [[.75, .25], [.5, .5]]; with the residual [[.875, .125], [.25, .75]];
        # the second with the residual [[.5, .5], [.5, .5]]; second @ first:
        np.testing.assert_allclose(roll_out(np.stack([first, second])), [[0.5625, 0.4375], [0.5625, 0.4375]])
        np.testing.assert_allclose(roll_out(first[None]), [[0.875, 0.125], [0.25, 0.75]])

    def test_roll_out_ends_at_the_layer(self, model: PixelBert, photos: list[PIL.Image.Image]) -> None:
        attention = model.attention(photos[0], "a dog")
        for layer, used in ((None, 2), (1, 2), (0, 1)):
            row = roll_out(attention.weights[:used])[2, -4:]
            (found,) = attention.maps("dog", layer, rollout=True)
            np.testing.assert_allclose(found.map.flatten() * found.share, row, rtol=1e-5)
        np.testing.assert_allclose(roll_out(attention.weights).sum(1), 1, rtol=1e-5)


class TestPictures:
    def test_an_overlay_has_the_size_of_its_photo_and_shines_where_attention_is(self) -> None:
        photo = PIL.Image.new("RGB", (301, 197), (128, 128, 128))
        for row, column in ((0, 0), (1, 2)):
            weights = np.zeros((2, 3))
            weights[row, column] = 1
            drawn = overlay(photo, weights)
            assert drawn.size == photo.size
            light = np.asarray(drawn, dtype=float).sum(-1)
            patches = [
                [light[98 * r : 98 * r + 98, 100 * c : 100 * c + 100].mean() for c in range(3)] for r in range(2)
            ]
            assert np.unravel_index(np.argmax(patches), (2, 3)) == (row, column)

    def test_even_attention_is_one_colour(self) -> None:
        drawn = np.asarray(overlay(PIL.Image.new("RGB", (60, 40), (90, 90, 90)), np.full((2, 3), 1 / 6)))
        assert np.ptp(drawn.reshape(-1, 3), axis=0).tolist() == [0, 0, 0]

    def test_a_contact_sheet_shows_each_layer_and_head(self, model: PixelBert, photos: list[PIL.Image.Image]) -> None:
        attention = model.attention(photos[1], "a dog")
        sheet = contact_sheet(photos[1], attention, "DOG")
        small = contact_sheet(
            photos[1], Attention(attention.weights[:1, :2], attention.words, attention.pieces, attention.grid), "dog"
        )
        tile = (112, 73)  # of a photo of 200 x 130
        assert (sheet.width - small.width, sheet.height - small.height) == (2 * (tile[0] + 4), tile[1] + 4)
        with pytest.raises(PixelBertError, match="no word"):
            contact_sheet(photos[1], attention, "cat")

    def test_the_report_needs_nothing_else_and_escapes(self, model: PixelBert, photos: list[PIL.Image.Image]) -> None:
        text = "a dog <script>alert(1)</script> $grid & a cat"
        attention = model.attention(photos[1], text)
        page = report(photos[1], attention, text)
        assert "<script" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt; $grid &amp; a cat</h1>" in page
        sources = re.findall(r'src="([^"]{0,30})', page)
        assert len(sources) == 1 + len(attention.words) * 3  # two layers and the roll-out
        assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
        assert "http" not in page
        assert "url(" not in page


class TestCommands:
    @pytest.fixture(scope="class")
    def saved(
        self, network: Callable[..., Any], processor: PixelBertProcessor, tmp_path_factory: pytest.TempPathFactory
    ) -> Callable[..., str]:
        def save(kind: type = PixelBertForPreTraining, **changes: Any) -> str:
            folder = tmp_path_factory.mktemp(kind.__name__)
            network(kind, **changes).save_pretrained(folder)
            processor.save_pretrained(folder)
            return str(folder)

        return save

    @pytest.fixture(scope="class")
    def checkpoint(self, saved: Callable[..., str]) -> str:
        return saved()

    @pytest.fixture
    def files(self, photos: list[PIL.Image.Image], tmp_path: Path) -> list[str]:
        for i, photo in enumerate(photos):
            photo.save(tmp_path / f"{i}.png")
        return [str(tmp_path / f"{i}.png") for i in range(len(photos))]

    @pytest.fixture
    def say(self, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
        def run(*arguments: str) -> str:
            capsys.readouterr()
            cli.main(list(arguments))
            return capsys.readouterr().out

        return run

    def test_match(
        self, say: Callable[..., str], checkpoint: str, files: list[str], model: PixelBert, tmp_path: Path
    ) -> None:
        options = ["--checkpoint", checkpoint, "--precision", "fp32"]
        expected = model.match(files, TEXTS)
        found = json.loads(say("match", files[1], *TEXTS, *options, "--json"))
        assert found["scores"] == [
            {"text": t, "score": pytest.approx(s, abs=1e-5)} for t, s in zip(TEXTS, expected[1], strict=True)
        ]
        (tmp_path / "list.txt").write_text("\n".join([files[0], "", files[2]]))
        found = json.loads(say("match", *TEXTS, "--images-from", str(tmp_path / "list.txt"), *options, "--json"))
        assert [result["image"] for result in found["results"]] == [files[0], files[2]]
        scores = [[entry["score"] for entry in result["scores"]] for result in found["results"]]
        np.testing.assert_allclose(scores, expected[[0, 2]], atol=1e-5)
        assert [entry["text"] for entry in found["results"][0]["scores"]] == TEXTS
        lines = say("match", files[1], *TEXTS, *options).splitlines()
        assert [line.split("  ", 1)[1] for line in lines] == [TEXTS[i] for i in np.argsort(-expected[1])]

    @pytest.mark.parametrize(
        ("command", "texts"),
        [
            ("match PHOTO | -5 dogs | null | 1 | a: b | {a: 1} | OPTIONS", ["-5 dogs", "null", "1", "a: b", "{a: 1}"]),
            ("match OPTIONS | -- | PHOTO | --json | -h | --top", ["--json", "-h", "--top"]),
            ("match PHOTO | OPTIONS | a dog | -- | --dogs-and-cats", ["a dog", "--dogs-and-cats"]),
        ],
    )
    def test_texts_may_be_anything(
        self, say: Callable[..., str], checkpoint: str, files: list[str], command: str, texts: list[str]
    ) -> None:
        stand_for = {"PHOTO": [files[0]], "OPTIONS": ["--json", "--checkpoint", checkpoint]}
        arguments = [
            part for word in command.removeprefix("match ").split(" | ") for part in stand_for.get(word, [word])
        ]
        assert [entry["text"] for entry in json.loads(say("match", *arguments))["scores"]] == texts

    def test_answer(self, say: Callable[..., str], saved: Callable[..., str], files: list[str]) -> None:
        checkpoint = saved(PixelBertForQuestionAnswering, id2label={0: "yes", 1: "no", 2: "red"}, label2id={})
        found = json.loads(say("answer", files[0], "is it red", "--checkpoint", checkpoint, "--top", "2", "--json"))
        assert list(found) == ["answers", "cut", "unknown"]
        assert [sorted(entry) for entry in found["answers"]] == [["answer", "score"]] * 2
        assert found["answers"][0]["score"] >= found["answers"][1]["score"]
        assert len(say("answer", files[0], "is it red", "--checkpoint", checkpoint).splitlines()) == 3

    def test_fill_mask(self, say: Callable[..., str], checkpoint: str, files: list[str]) -> None:
        command = ["fill-mask", files[0], "a [MASK] on a [MASK]", "--checkpoint", checkpoint, "--top", "3"]
        found = json.loads(say(*command, "--json"))
        assert [[sorted(fill) for fill in fills] for fills in found["masks"]] == [[["score", "token"]] * 3] * 2
        assert say(*command).count("[MASK] 2\n") == 1

    def test_reason(self, say: Callable[..., str], saved: Callable[..., str], files: list[str]) -> None:
        checkpoint = saved(PixelBertForImagesAndTextClassification)
        command = ["reason", files[0], files[1], "two dogs", "--checkpoint", checkpoint]
        found = json.loads(say(*command, "--json"))
        assert found["true"] is (found["score"] > 0.5)
        assert say(*command).startswith(str(found["true"]).lower())

    def test_attend(
        self, say: Callable[..., str], checkpoint: str, files: list[str], model: PixelBert, tmp_path: Path
    ) -> None:
        command = ["attend", files[1], "a dog on the beach", "--checkpoint", checkpoint, "--precision", "fp32"]
        out = tmp_path / "new" / "map.png"
        options = ["--token", "Dog", "--layer", "1", "--head", "2", "--out", str(out)]
        found = json.loads(say(*command, *options, "--json"))
        assert found["out"] == str(out)
        (expected,) = model.attend(files[1], "a dog on the beach", "dog", layer=1, head=2)
        (word,) = found["words"]
        assert (word["word"], word["share"]) == ("dog", pytest.approx(expected.share, abs=1e-5))
        np.testing.assert_allclose(word["map"], expected.map, atol=1e-5)
        with PIL.Image.open(out) as drawn, PIL.Image.open(files[1]) as photo:
            assert drawn.size == photo.size
        assert len(json.loads(say(*command, "--rollout", "--json"))["words"]) == 5
        say(*command, "--token", "dog", "--sheet", "--out", str(tmp_path / "sheet.png"))
        page = tmp_path / "report.html"
        assert f"written to {page}" in say(*command, "--out", str(page))
        assert page.read_text().startswith("<!doctype html>")

    def test_what_a_person_can_put_right(
        self, checkpoint: str, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "note.txt").write_text("not a photo")
        (tmp_path / "list.txt").write_text("gone.png\n")
        at = ["--checkpoint", checkpoint]
        for command, message in (
            (["match", str(tmp_path / "note.txt"), "x", *at], "note.txt is not an image"),
            (["match", files[0], *at], "there is no text"),
            (["match", "x", "--images-from", str(tmp_path / "list.txt"), *at], "gone.png does not exist"),
            (["match", "x", "--images-from", str(tmp_path / "none.txt"), *at], "none.txt does not exist"),
            (["match", files[0], "x", "--checkpoint", str(tmp_path)], "no Pixel-BERT checkpoint"),
            (["reason", files[0], files[0], "x"], "required: checkpoint"),
            (["answer", files[0], "x", *at], "question answering"),
            (["answer", files[0], "x", "y", *at], "unrecognized arguments: y"),
            (["reason", files[0], files[1], "x", *at], "NLVR2"),
            (["fill-mask", files[0], "x", *at], "[MASK] is missing"),
            (["fill-mask", files[0], "[MASK]", "--top", "0", *at], "--top is 0"),
            (["attend", files[0], "a dog", "--out", "map.png", *at], "--token with one of: a, dog"),
            (["attend", files[0], "a dog", "--out", "map.txt", *at], "neither a picture"),
            (["attend", files[0], "a dog", "--token", "dog", "--sheet", *at], "add --out"),
            (["attend", files[0], "a dog", "--token", "cat", *at], "no word 'cat'"),
        ):
            with pytest.raises(SystemExit) as stop:
                cli.main(command)
            assert stop.value.code == 2
            error = capsys.readouterr().err
            assert message in error
            assert "Traceback" not in error

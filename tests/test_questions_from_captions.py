"""Questions that captions answer: what is made of sentences, and that question alone never tells the answer."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_builders import photo, script
from pixelbert import PixelBertError, cli
from pixelbert.data.corpus import Corpus
from pixelbert.data.store import PreparedDataset

made = script("tools/questions_from_captions.py")


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("A brown dog runs on the beach .", [(False, "brown dog"), (False, "beach")]),
        ("Two young men ride their bikes", [(True, "young men")]),
        ("a man wearing a striped shirt", [(False, "man"), (False, "striped shirt")]),
        ("The tennis player's racket", []),
        ("a group of people in a big glass building", [(False, "big glass building")]),
    ],
)
def test_noun_phrases(caption: str, phrases: list[tuple[bool, str]]) -> None:
    assert [(many, " ".join(words)) for many, words in made.noun_phrases(caption)] == phrases


def test_actions() -> None:
    assert list(made.actions("A man is riding a horse while women talking laugh")) == [
        ("man", "riding", "a horse"),
        ("women", "talking", "laugh"),
    ]
    assert list(made.actions("A dog running; a man wearing a hat in the morning")) == []


@pytest.mark.parametrize(
    ("one", "many"), [("dog", "dogs"), ("bus", "buses"), ("baby", "babies"), ("toy", "toys"), ("woman", "women")]
)
def test_one_and_many(one: str, many: str) -> None:
    assert made.plural(one) == many
    assert many == "women" or made.stem(many) == made.stem(one)


WORDS = ["a", "the", "two", "dog", "dogs", "man", "red", "ball", "running", "is", "on", "beach", "woman", "car", "cars"]
CAPTIONS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join), min_size=1, max_size=3)


@given(st.lists(CAPTIONS, min_size=2, max_size=12), st.integers(0, 9))
def test_each_question_has_a_yes_and_a_no_and_the_captions_agree(photos: list[list[str]], seed: int) -> None:
    captions = {str(i): texts for i, texts in enumerate(photos)}
    found = list(made.ask(captions, seed))
    assert found == list(made.ask(captions, seed))
    balance: dict[str, Counter[str]] = defaultdict(Counter)
    for _, question, answer in found:
        balance[question][answer] += 1
    assert all(n["yes"] == n["no"] for n in balance.values())
    for image, question, answer in found:
        told = {made.stem(word) for text in captions[image] for word in made.words_of(text)}
        asked = made.words_of(question)
        if asked[-1] in ("photo", "picture"):
            asked = asked[:-3]
        does = question.startswith("Is this") and asked[2] in made.PEOPLE
        about = asked[3] if does else {"men": "man", "women": "woman"}.get(asked[-1], asked[-1])
        # Twice, for "runnings": a word in -ing that follows an article passes for a noun.
        assert (answer == "yes") == (made.stem(made.stem(about)) in told)


def test_a_question_about_people_is_not_denied_where_there_are_some() -> None:
    captions = {"1": ["a man"] * 3, "2": ["a woman"] * 3, "3": ["a dog"] * 3}
    no = {(image, question) for image, question, answer in made.ask(captions) if answer == "no"}
    assert {image for image, question in no if "man" in question or "men" in question} == {"3"}


def test_a_data_set_of_questions_with_the_same_images(tmp_path: Path) -> None:
    captions = ["a red car", "a red car on a beach", "a black dog", "a dog on a beach", "a car", "a beach and a dog"]
    for i, caption in enumerate(captions * 3):
        photo(i).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(caption)
    lines = [f"{i}.png,{caption}" for i, caption in enumerate(captions * 3)]
    (tmp_path / "captions.csv").write_text("\n".join(["image,caption", *lines]))
    split = ["--val", "0", "--test", "0.5"]
    cli.main(["prepare", "folder", "--images", str(tmp_path), "--output", str(tmp_path / "captioned"), *split])
    made.main([f"{tmp_path / 'captioned'}:train", "--output", str(tmp_path / "asked")])
    asked, captioned = PreparedDataset.open(tmp_path / "asked"), PreparedDataset.open(tmp_path / "captioned")
    assert asked.image_checksums == captioned.image_checksums
    assert asked.answers == ["no", "yes"]
    about = {image for row in asked.examples("train") for image in row["image_ids"]}
    assert about <= {image for row in captioned.examples("train") for image in row["image_ids"]}
    assert set(asked.examples("train")["answer_type"]) == {"yes/no"}
    # Who learns from the questions learns from the captions, and is not to be measured on them.
    own, captions_of = Corpus([f"{tmp_path / 'asked'}:train"]), Corpus([f"{tmp_path / 'captioned'}:train"])
    assert own.provenance()[0]["data"] == "folder_asked"
    assert own.provenance()[1:] == captions_of.provenance()
    # Only about the photos of a split of another data set.
    only = ["--only", f"{tmp_path / 'captioned'}:test", "--output", str(tmp_path / "none")]
    with pytest.raises(PixelBertError, match="no photo to ask about"):
        made.main([f"{tmp_path / 'captioned'}:train", *only])


def test_draws_follow_the_seed() -> None:
    heads = {"dog"}
    first = [q.text for q in made.questions_of("a dog and the dog and a big dog", heads, random.Random(1))]
    assert first == [q.text for q in made.questions_of("a dog and the dog and a big dog", heads, random.Random(1))]

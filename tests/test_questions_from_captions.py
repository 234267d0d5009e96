"""Questions that captions answer: what is made of sentences, and that question alone never tells the answer."""

from __future__ import annotations

import csv
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_builders import photo, script
from pixelbert import PixelBertError, cli
from pixelbert.data.corpus import Corpus
from pixelbert.data.store import PreparedDataset
from pixelbert.metrics import vqa

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


@pytest.mark.parametrize(
    ("captions", "asked"),
    [
        (["a brown dog", "the dog runs"], {"What color is the dog? brown"}),
        (["a man in a grey fire department shirt"], {"What color is the fire department shirt? gray"}),
        (["two white dogs", "dogs on the beach"], {"What color are the dogs? white"}),
        (["a brown dog", "a tan dog"], set()),
        (["a black dog and a brown dog"], set()),
        (["a brown dog", "a black puppy"], set()),  # the same dog
        (["a girl in a red coat", "a girl in an orange jacket"], set()),
        (["a brown dog", "two dogs"], set()),  # which of them?
        (["a white dog", "a black and white dog"], set()),
        (["a white man", "a red and blue shirt", "a dog"], set()),
    ],
)
def test_colors(captions: list[str], asked: set[str]) -> None:
    found = made.colors(captions, {"dog", "dogs", "shirt", "coat", "jacket", "man"}, random.Random(0))
    assert {f"{re.sub(' in the (photo|picture)', '', question)} {answer}" for question, answer in found} == asked


@pytest.mark.parametrize(
    ("captions", "asked"),
    [
        (["two dogs", "the dogs run"], {("dogs", "2")}),
        (["six young men on a beach", "six people"], {("men", "6"), ("people", "6")}),
        (["two black dogs", "a pair of dogs"], {("black dogs", "2")}),
        (["two dogs", "three dogs"], set()),
        (["two men watch three girls"], set()),  # people or people
        (["two people", "a crowd of people"], set()),
        (["two dogs look at a dog", "a dog and two other dogs"], set()),
        (["two women ride three wheelers"], {("women", "2")}),
    ],
)
def test_numbers(captions: list[str], asked: set[tuple[str, str]]) -> None:
    found = made.numbers(captions, {"dogs", "men", "people", "women", "girls", "wheelers"}, random.Random(0))
    assert {(re.split(r"many | are | do ", question)[1], answer) for question, answer in found} == asked


@pytest.mark.parametrize(
    ("captions", "asked"),
    [
        (["a man riding a horse"], {"What is man doing? riding"}),
        (["children are playing", "a dog jumping"], {"What are children doing? playing", "What is dog doing? jumping"}),
        (["a man eating", "a man is riding", "a man riding away"], {"What is man doing? riding"}),
        (["a man getting off a bus", "a man wearing a hat"], set()),
        (["a man running", "two men"], set()),  # which of them?
    ],
)
def test_doings(captions: list[str], asked: set[str]) -> None:
    found = made.doings(captions, random.Random(0))
    assert {f"{re.sub('(the|this|these) ', '', question)} {answer}" for question, answer in found} == asked


@pytest.mark.parametrize(
    ("captions", "asked"),
    [
        (["A skateboarder jumps", "a boy on his skateboard", "a boy"], {("sport", "skateboarding")}),
        (["a restroom", "A bathroom sink"], {("room", "bathroom")}),
        (["two giraffes", "a giraffe and a tree"], {("animal", "giraffe")}),
        (["a hot dog on a plate"], {("food", "hot dog")}),
        (["a cat in a car"], {("animal", "cat"), ("vehicle", "car")}),
        (["a dog and a cat"], set()),
        (["a dog", "an animal", "something in the grass"], set()),  # most see none
        (["a dog catches a frisbee"], {("animal", "dog")}),
        (["a teddy bear in a baseball cap"], set()),
    ],
)
def test_short_lists(captions: list[str], asked: set[tuple[str, str]]) -> None:
    found = list(made.listed(captions, random.Random(0)))
    assert {(topic, answer) for topic, _, answer in found} == asked
    assert all(topic in question for topic, question, _ in found)


def test_open_answers_are_not_rare_and_none_prevails() -> None:
    captions = {str(i): [f"a {color} dog"] for i, color in enumerate(["red"] * 9 + ["blue"] * 3 + ["pink"] * 2)}
    counted = [Counter(answer for *_, answer in made.ask_open(captions, ["color"], least)) for least in (2, 3, 4)]
    assert counted == [{"red": 5, "blue": 3, "pink": 2}, {"red": 3, "blue": 3}, {}]
    assert list(made.ask_open(captions, ["yes/no", "doing"], 1)) == []


def test_open_answers_are_as_vqa_normalises_them() -> None:
    known = [*made.COLORS.values(), *made.NUMBERS.values(), *(answer for _, answer in made.LISTED.values())]
    assert [vqa.normalise_answer(answer) for answer in known] == known
    captions = {"1": ["a man wind-surfing"], "2": ["a man riding"]}
    assert {answer for *_, answer in made.ask_open(captions, ["doing"], 1)} == {"wind surfing", "riding"}


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


PARTS = [
    "a red dog",
    "a black dog",
    "the grey dog",
    "a dog",
    "two dogs",
    "three red dogs",
    "a black and red dog",
    "a red",
]
PARTS += [
    "a red car",
    "a black car",
    "two cars",
    "three cars",
    "a man running",
    "two men walking",
    "on",
    "and",
    "a tan dog",
]
COLORED = st.lists(st.lists(st.sampled_from(PARTS), min_size=1, max_size=3).map(" ".join), min_size=1, max_size=3)


@given(st.lists(COLORED, min_size=2, max_size=12), st.integers(0, 9))
def test_open_questions_agree_with_the_captions(photos: list[list[str]], seed: int) -> None:
    captions = {str(i): texts for i, texts in enumerate(photos)}
    found = list(made.ask_open(captions, made.KINDS, 1, seed))
    assert found == list(made.ask_open(captions, made.KINDS, 1, seed))
    for image, question, answer in found:
        told = " . ".join(captions[image]).replace("grey", "gray")
        asked = re.sub(r"What color (is|are) the | in the (photo|picture)|\?", "", question)
        if question.startswith("What color"):
            assert f"{answer} {asked}" in told
            assert not any(f"{other} {asked}" in told for other in {"red", "black", "gray"} - {answer})
        elif question.startswith("How many"):
            assert ("two" if answer == "2" else "three") in told
        else:
            assert answer in told


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
    source = f"{tmp_path / 'captioned'}:train"
    made.main([source, "--output", str(tmp_path / "asked")])
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
    assert Corpus(own.sources * 2).provenance() == own.provenance()
    # Open questions too, in a split of another name; yes and no stay what they were.
    kinds = ["--kinds", *made.KINDS, "--min-count", "1", "--split", "test", "--table", str(tmp_path / "open.csv")]
    made.main([source, "--output", str(tmp_path / "open"), *kinds])
    opened = PreparedDataset.open(tmp_path / "open")
    assert opened.splits == ["test"]
    rows = [(row["image_ids"], row["text"], row["answers"], row["answer_type"]) for row in opened.examples("test")]
    table = list(csv.reader((tmp_path / "open.csv").open()))
    assert table == [["image", "question", "answer"]] + [[f"{i[0].split(':')[1]}", q, a[0]] for i, q, a, _ in rows]
    assert opened.answers == sorted({answers[0] for _, _, answers, _ in rows}) == ["black", "no", "red", "yes"]
    assert {kind for _, _, answers, kind in rows if answers[0] not in ("yes", "no")} == {"other"}
    assert [row[:3] for row in rows if row[3] == "yes/no"] == [
        (row["image_ids"], row["text"], row["answers"]) for row in asked.examples("train")
    ]
    assert Corpus([*own.sources, f"{tmp_path / 'open'}:test"]).answers == ["no", "yes", "black", "red"]
    with pytest.raises(PixelBertError, match="no such questions"):
        made.main([source, "--output", str(tmp_path / "none"), "--kinds", "number"])
    # Only about the photos of a split of another data set.
    only = ["--only", f"{tmp_path / 'captioned'}:test", "--output", str(tmp_path / "none")]
    with pytest.raises(PixelBertError, match="no photo to ask about"):
        made.main([source, *only])


def test_draws_follow_the_seed() -> None:
    heads = {"dog"}
    first = [q.text for q in made.questions_of("a dog and the dog and a big dog", heads, random.Random(1))]
    assert first == [q.text for q in made.questions_of("a dog and the dog and a big dog", heads, random.Random(1))]

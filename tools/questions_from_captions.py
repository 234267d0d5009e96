"""Yes-or-no questions made from captions, for learning to answer before there are many real questions.

A noun phrase of a photo's caption becomes a question that is true of the photo ("Is this a brown dog?", "Are there any
trees?"), and what somebody in it does another ("Is this man riding a bike?"). The same question is asked of a photo
none of whose captions has the noun: half of the time of one that shares another noun of the caption, so that the
surroundings don't give the answer away. So each question has as often a yes as a no, and only the photo tells.
(Questions from captions: Ren, Kiros and Zemel 2015, arXiv:1505.02074. No parser here, but rules and counts.)

    python tools/questions_from_captions.py prepared/flickr8k:train --output prepared/flickr8k_asked

The images of the new data set are those of the old one, in the same order, so stored features serve both.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pixelbert import PixelBertError
from pixelbert.data.corpus import Corpus, split_source
from pixelbert.data.store import QUESTION_ANSWERING, PreparedDataset
from pixelbert.data.writer import DatasetWriter


def words_of(caption: str) -> list[str]:
    """Its words, in lower case."""
    return re.findall(r"[a-z][a-z'-]*", caption.lower())


ANSWERS = ["no", "yes"]
SINGULAR, PLURAL = {"a", "an", "the", "his", "her", "their"}, {"some", "two", "three", "four", "several", "many"}
PEOPLE = {
    *words_of("""man woman boy girl person child kid lady guy gentleman player rider skier surfer skateboarder
        snowboarder biker climber batter pitcher cyclist skater swimmer runner worker toddler baby adult teenager
        men women boys girls people children kids""")
}
MANY_PEOPLE = {"men", "women", "boys", "girls", "people", "children", "kids", "guys", "ladies"}
# Words that end a noun phrase: prepositions, pronouns, verbs that captions like, and nouns that name no thing.
ENDS = {
    *words_of("""a an the of in on at to with and or is are was were be been by for from into onto over under near next
        that which who whose while as it its his her their them they he she him there this these those through up down
        out off across behind beside between around along among against during has have having had do does doing done
        not no very so some several many two three four five six seven eight nine ten few another other one all both
        each just about after before above below inside outside toward towards front back top side middle lot group
        pair bunch couple set piece row line number kind type variety view picture photo image photograph scene part
        edge end corner background foreground get gets sit sits sitting stand stands standing can could will would
        looking look looks what where when how if but only also then than because made makes make eating covered filled
        wearing wears being taken parked attached dressed like""")
}
NOUNS_IN_ING = {
    *words_of("building evening morning clothing ceiling wedding swing string spring painting railing something")
}
NO_ACTION = NOUNS_IN_ING | {*words_of("wearing during holding using having looking being including sitting standing")}
SINGULAR_IN_S = {
    *words_of("""tennis bus dress glass grass cross lens canvas christmas mattress gas class wilderness harness compass
        cactus circus princess mess surface""")
}


class Question(NamedTuple):
    """A question that is true of a photo, and the stem that no caption of a photo may have where the answer is no."""

    text: str
    stem: str
    of_people: bool


def stem(word: str) -> str:
    """A word without its ending, so that "dogs" is "dog" and "riding" is "rid", as is "ride"."""
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("es") and len(word) > 4 and word[-3] in "sxhz":
        return word[:-2]
    if word.endswith("s") and not word.endswith("ss") and len(word) > 3:
        return word[:-1]
    if word.endswith("ing") and len(word) > 5:
        return word[:-4] if word[-4] == word[-5] else word[:-3]
    return word[:-1] if word.endswith("e") and len(word) > 4 else word


def plural(noun: str) -> str:
    """More than one of it."""
    irregular = {"man": "men", "woman": "women", "person": "people", "child": "children"}
    if noun in irregular:
        return irregular[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    return noun[:-1] + "ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else noun + "s"


def noun_phrases(caption: str) -> Iterator[tuple[bool, list[str]]]:
    """What follows an article or a number, up to three words: (whether it is plural, its words)."""
    words = words_of(caption)
    for i, word in enumerate(words):
        if word not in SINGULAR | PLURAL:
            continue
        many = word in PLURAL
        phrase: list[str] = []
        for following in words[i + 1 : i + 4]:
            ends_in_s = following.endswith("s") and not following.endswith("ss") and following not in SINGULAR_IN_S
            participle = following.endswith(("ing", "ed")) and following not in NOUNS_IN_ING
            if "'" in following:  # it is somebody's
                phrase = []
            if following in ENDS or "'" in following or (phrase and participle):
                break
            if ends_in_s and not many:  # a verb, most likely
                break
            phrase.append(following)
            if ends_in_s or following in MANY_PEOPLE:
                break
        if phrase and len(phrase[-1]) > 2 and not phrase[-1].endswith("ly"):
            yield phrase[-1] in MANY_PEOPLE or (many and phrase[-1].endswith("s")), phrase


def actions(caption: str) -> Iterator[tuple[str, str, str]]:
    """What somebody does: (who, the verb in -ing, the words after it up to the next noun)."""
    words = words_of(caption)
    for i, word in enumerate(words):
        if not word.endswith("ing") or len(word) < 6 or word in NO_ACTION:
            continue
        who = i - 2 if i > 1 and words[i - 1] in ("is", "are") else i - 1
        if who < 0 or words[who] not in PEOPLE:
            continue
        after: list[str] = []
        for following in words[i + 1 : i + 4]:
            after.append(following)
            if following not in ENDS:
                break
        yield words[who], word, " ".join(after if after and after[-1] not in ENDS else [])


def questions_of(caption: str, heads: set[str], draw: random.Random) -> Iterator[Question]:
    """The questions that a caption answers with yes.

    Args:
        heads: words that may end a noun phrase.
    """
    for many, phrase in noun_phrases(caption):
        head, words = phrase[-1], " ".join(phrase)
        if head not in heads:
            continue
        form = draw.random()
        if many:
            text = f"Are there any {words}{draw.choice(['', '', '', ' in the photo', ' in the picture'])}?"
        elif form < 0.62:
            text = f"Is this {'an' if words[0] in 'aeiou' else 'a'} {words}?"
        elif form < 0.78:
            text = f"Could this be {words}?"
        else:
            text = f"Are there any {' '.join([*phrase[:-1], plural(head)])}?"
        yield Question(text, stem(head), head in PEOPLE)
    for who, verb, after in actions(caption):
        one = "person" if who in MANY_PEOPLE or draw.random() < 0.4 else who
        text = f"Is this {one} {verb}{' ' + after if after and draw.random() < 0.6 else ''}?"
        yield Question(text, stem(verb), of_people=False)


def common_heads(captions: dict[str, list[str]], least: int = 3) -> set[str]:
    """Words that end noun phrases, often and mostly: adjectives go before, and a slip is rare."""
    last, anywhere = Counter[str](), Counter[str]()
    for texts in captions.values():
        for text in texts:
            for _, phrase in noun_phrases(text):
                last[phrase[-1]] += 1
                anywhere.update(phrase)
    return {word for word, count in last.items() if count >= least and count > anywhere[word] / 2}


def ask(captions: dict[str, list[str]], seed: int = 0, near: float = 0.5) -> Iterator[tuple[str, str, str]]:
    """Questions about images, each with a yes of one and a no of another.

    Args:
        captions: those of each image.
        near: share of the noes that go to an image which shares another noun of the caption.

    Yields:
        (image, question, answer)
    """
    draw, heads, images = random.Random(seed), common_heads(captions), list(captions)
    stems = {image: {stem(w) for text in texts for w in words_of(text)} for image, texts in captions.items()}
    nouns = {
        image: {stem(phrase[-1]) for text in texts for _, phrase in noun_phrases(text) if phrase[-1] in heads}
        for image, texts in captions.items()
    }
    having: dict[str, list[str]] = defaultdict(list)
    for image in images:
        for noun in sorted(nouns[image]):
            having[noun].append(image)
    people = {stem(word) for word in PEOPLE}
    for image, texts in captions.items():
        asked = {q.text: q for text in texts for q in questions_of(text, heads, draw)}
        for question in asked.values():
            others = sorted(nouns[image] - {question.stem} - people)
            for _ in range(30):
                pool = having[draw.choice(others)] if others and draw.random() < near else images
                other = draw.choice(pool)
                unfit = question.stem in stems[other] or (question.of_people and people & stems[other])
                if other != image and not unfit:
                    yield image, question.text, "yes"
                    yield other, question.text, "no"
                    break


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", help="a prepared data set of captions, and its splits: DIR:SPLIT,SPLIT")
    parser.add_argument("--output", type=Path, required=True, help="folder of the new data set; its split is train")
    parser.add_argument("--only", help="ask only about photos whose files are in these splits of another, DIR:SPLIT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace a prepared data set that is there")
    args = parser.parse_args(arguments)
    folder, splits = split_source(args.captions)
    data = PreparedDataset.open(folder)
    captions: dict[str, list[str]] = defaultdict(list)
    for split in splits:
        for row in data.examples(split):
            captions[row["image_ids"][0]].append(row["text"])
    if args.only:
        wanted = files_of(args.only)
        names = {row["image_id"]: Path(row["path"]).name for row in data.images}
        captions = {image: texts for image, texts in captions.items() if names[image] in wanted}
    if not captions:
        raise PixelBertError(f"{args.captions}: no photo to ask about is left")
    found = sorted(ask(captions, args.seed))  # a photo's questions stand together
    with DatasetWriter(
        args.output, name=f"{data.name}_asked", task=QUESTION_ANSWERING, overwrite=args.overwrite
    ) as out:
        for row in data.images:
            out.add_image(
                row["image_id"], path=row["path"], data=row["bytes"], width=row["width"], height=row["height"]
            )
        for number, (image, question, answer) in enumerate(found):
            out.add_example("train", f"asked_{number}", [image], question, answers=[answer], answer_type="yes/no")
        out.manifest = {
            "answers": ANSWERS,
            "sources": [{"file": str(folder), "splits": splits}],
            "derived_from": Corpus([args.captions]).provenance(),
        }
    print(f"{len(found):,} questions about {len({image for image, _, _ in found}):,} photos -> {args.output}")


def files_of(source: str) -> set[str]:
    """The names of the photos' files in splits of a prepared data set."""
    folder, splits = split_source(source)
    data = PreparedDataset.open(folder)
    ids = {image for split in splits for row in data.examples(split)["image_ids"] for image in row}
    return {Path(row["path"]).name for row in data.images if row["image_id"] in ids}


if __name__ == "__main__":
    main()

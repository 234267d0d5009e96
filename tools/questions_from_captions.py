"""Questions made from captions, for learning to answer before there are many real questions.

**Yes or no**, the kind that is made unless `--kinds` says otherwise. A noun phrase of a photo's caption becomes a
question that is true of the photo ("Is this a brown dog?", "Are there any trees?"), and what somebody in it does
another ("Is this man riding a bike?"). The same question is asked of a photo none of whose captions has the noun:
half of the time of one that shares another noun of the caption, so that the surroundings don't give the answer away.
So each question has as often a yes as a no, and only the photo tells.

    python tools/questions_from_captions.py prepared/flickr8k:train --output prepared/flickr8k_asked

**Open questions**, with answers as VQA v2 spells them:

- color: "a brown dog" makes "What color is the dog?" brown; number: "two dogs" makes "How many dogs are there?" 2.
  Neither is asked where the photo's captions disagree.
- doing: "a man riding a horse" makes "What is the man doing?" riding. Of several verbs the commonest is the answer.
- kind: where most of a photo's captions name the same sport, room, animal, food or vehicle of a short list, and none
  names another of that list: "What sport is this?" tennis.

Answers that are rare in their kind are left out (`--min-count`), and the commonest keeps at most half of the questions,
so that guessing it is no way to learn. The word lists stand in questions_from_captions.yaml.

    python tools/questions_from_captions.py prepared/flickr8k:train --kinds yes/no color number doing kind \\
        --output prepared/flickr8k_open

To measure, ask about photos that were not learned from, in a split of its own name:

    python tools/questions_from_captions.py prepared/flickr8k:test --kinds color number doing kind --split test \\
        --min-count 1 --output prepared/flickr8k_open_test

The images of the new data set are those of the old one, in the same order, so stored features serve both. (Questions
from captions: Ren, Kiros and Zemel 2015, arXiv:1505.02074. No parser here, but rules and counts.)
"""

from __future__ import annotations

import argparse
import csv
import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from pixelbert import PixelBertError
from pixelbert.data.corpus import Corpus, split_source
from pixelbert.data.sources.exclusion import file_name, files_of
from pixelbert.data.store import QUESTION_ANSWERING, PreparedDataset
from pixelbert.data.writer import DatasetWriter
from pixelbert.metrics.vqa import normalise_answer
from pixelbert.terminal import program


def words_of(caption: str) -> list[str]:
    """Its words, in lower case."""
    return re.findall(r"[a-z][a-z'-]*", caption.lower())


YES_NO = "yes/no"
KINDS = [YES_NO, "color", "number", "doing", "kind"]
WORDS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
SINGULAR, PLURAL = {"a", "an", "the", "his", "her", "their"}, {"some", "two", "three", "four", "several", "many"}
PEOPLE, MANY_PEOPLE, ENDS, NOUNS_IN_ING, SINGULAR_IN_S, NO_THING, GENERIC = (
    set(words_of(WORDS[name]))
    for name in ("people", "many people", "ends", "nouns in -ing", "singular in -s", "no thing", "generic")
)
NO_ACTION = NOUNS_IN_ING | set(words_of(WORDS["no action"]))
COLORS = {color: color for color in words_of(WORDS["colors"])} | {"grey": "gray"}
ALL_COLORS = COLORS | dict.fromkeys(words_of(WORDS["other colors"]), "else")
NUMBERS: dict[str, str] = WORDS["numbers"]
ALL_NUMBERS = NUMBERS | WORDS["same numbers"] | dict.fromkeys(words_of(WORDS["other numbers"]), "else")
ONE_THING = [words_of(names) for names in WORDS["one thing"]]


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


def noun_phrases(
    caption: str, after: Collection[str] = SINGULAR | PLURAL, longest: int = 3
) -> Iterator[tuple[bool, list[str]]]:
    """What follows an article or a number, up to so many words: (whether it is plural, its words)."""
    words = words_of(caption)
    for i, word in enumerate(words):
        if word not in after:
            continue
        many = word not in SINGULAR
        phrase: list[str] = []
        for following in words[i + 1 : i + 1 + longest]:
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


def actions(caption: str, actors: Collection[str] = PEOPLE) -> Iterator[tuple[str, str, str]]:
    """What somebody does: (who, the verb in -ing, the words after it up to the next noun)."""
    words = words_of(caption)
    for i, word in enumerate(words):
        if not word.endswith("ing") or len(word) < 6 or word in NO_ACTION:
            continue
        who = i - 2 if i > 1 and words[i - 1] in ("is", "are") else i - 1
        if who < 0 or words[who] not in actors:
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


LISTED = {  # each name of the short lists, of one or of many: its list and the answer
    form: (topic, names.replace("-", " ").split("/")[0])
    for topic, known in WORDS["lists"].items()
    for names in known["answers"].split()
    for name in names.replace("-", " ").split("/")
    for form in (name, plural(name))
}
DECOYS = [
    rf"(?:{'|'.join(words_of(WORDS['decoys after']))}) \w+",
    rf"\w+ (?:{'|'.join(words_of(WORDS['decoys before']))})",
]
NAMES = re.compile(rf"\b(?:{'|'.join(DECOYS + sorted(LISTED, key=len, reverse=True))})\b")


def before(texts: list[str], stems: Collection[str]) -> set[str]:
    """The words up to three places before any word with such a stem."""
    lines = [words_of(text) for text in texts]
    return {w for line in lines for i, noun in enumerate(line) if stem(noun) in stems for w in line[max(0, i - 3) : i]}


def colors(texts: list[str], heads: set[str], draw: random.Random) -> Iterator[tuple[str, str]]:
    """Questions for the colour of a thing, and the answers. People are not asked about."""
    told, found = {word for text in texts for word in words_of(text)}, dict[str, str]()
    things = heads - PEOPLE - COLORS.keys()
    for many, phrase in (each for text in texts for each in noun_phrases(text, longest=5)):
        head = phrase[-1]
        colored = [i for i, word in enumerate(phrase[:-1]) if word in COLORS]
        if not colored or head not in things or NO_THING & {*phrase} or (not many and plural(head) in told):
            continue
        color, thing = COLORS[phrase[colored[-1]]], " ".join(phrase[colored[-1] + 1 :])
        same = {stem(name) for names in [[head], *ONE_THING] if head in names for name in names}
        if {ALL_COLORS[word] for word in before(texts, same) if word in ALL_COLORS} == {color}:
            found[f"{'are' if many else 'is'} the {thing}"] = color
    for thing, color in found.items():
        yield f"What color {thing}{draw.choice(['', '', '', ' in the photo', ' in the picture'])}?", color


def numbers(texts: list[str], heads: set[str], draw: random.Random) -> Iterator[tuple[str, str]]:
    """Questions for how many there are, and the answers. People are one sort: not of "two men, three girls"."""
    found, people = dict[str, str](), {stem(word) for word in PEOPLE}
    for text in texts:
        for number, digit in NUMBERS.items():
            for _, phrase in noun_phrases(text, {number}, longest=5):
                things, are_people = phrase[-1], stem(phrase[-1]) in people
                if things not in heads - NO_THING or not (things in MANY_PEOPLE or things.endswith("s")):
                    continue
                if any(plural(word) == things for word in words_of(text)):  # "two dogs look at a dog"
                    continue
                given = before(texts, people if are_people else {stem(things)})
                if {ALL_NUMBERS[word] for word in given if word in ALL_NUMBERS} == {digit}:
                    found[things if are_people else " ".join(phrase)] = digit
    for name, digit in found.items():
        yield f"How many {name} {draw.choice(['are there', 'are there', 'are in the photo', 'do you see'])}?", digit


def doings(texts: list[str], draw: random.Random) -> Iterator[tuple[str, str]]:
    """Questions for what people and animals do, and the answers: the commonest verbs."""
    told, verbs = {word for text in texts for word in words_of(text)}, defaultdict[str, Counter[str]](Counter)
    animals = {word for word, (topic, _) in LISTED.items() if topic == "animal"}
    for who, verb, _ in (action for text in texts for action in actions(text, PEOPLE | animals)):
        if verb not in GENERIC and plural(who) not in told:
            verbs[who][verb] += 1
    for who, counts in verbs.items():
        if who in MANY_PEOPLE or who.endswith("s"):
            text = f"What are {draw.choice(['the', 'the', 'these'])} {who} doing?"
        else:
            text = f"What is {draw.choice(['the', 'the', 'this'])} {who} doing?"
        yield text, counts.most_common(1)[0][0]


def listed(texts: list[str], draw: random.Random) -> Iterator[tuple[str, str, str]]:
    """Questions for what is in the short lists: (list, question, answer). A dog with a ball is no sport."""
    named: dict[str, Counter[str]] = defaultdict(Counter)
    for text in texts:
        for topic, answer in {LISTED[name] for name in NAMES.findall(text.lower()) if name in LISTED}:
            named[topic][answer] += 1
    for topic, counts in named.items():
        (answer, times), *others = counts.most_common()
        if not others and times > len(texts) / 2 and not (topic == "sport" and "animal" in named):
            yield topic, draw.choice(WORDS["lists"][topic]["questions"]), answer


def ask_open(
    captions: dict[str, list[str]], kinds: Collection[str], least: int = 10, seed: int = 0
) -> Iterator[tuple[str, str, str]]:
    """Questions about images that take more than yes or no.

    Args:
        captions: those of each image.
        kinds: of `KINDS`.
        least: an answer that fewer questions of a kind have (or of a short list, "kind" being several) is left out.

    Yields:
        (image, question, answer); of each kind or list, at most half with the same answer.
    """
    draw, heads = random.Random(seed), common_heads(captions)
    # Kind or short list -> answer -> where it is the answer: (image, question).
    found: dict[str, dict[str, list[tuple[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for image, texts in captions.items():
        asked: list[tuple[str, str, str]] = []
        if "color" in kinds:
            asked += [("color", *q) for q in colors(texts, heads, draw)]
        if "number" in kinds:
            asked += [("number", *q) for q in numbers(texts, heads, draw)]
        if "doing" in kinds:
            asked += [("doing", *q) for q in doings(texts, draw)]
        if "kind" in kinds:
            asked += listed(texts, draw)
        for topic, question, answer in asked:
            found[topic][normalise_answer(answer)].append((image, question))
    for answers in found.values():
        common = {answer: places for answer, places in answers.items() if len(places) >= least}
        total = sum(map(len, common.values()))
        for answer, places in common.items():
            for image, question in draw.sample(places, min(len(places), total - len(places))):
                yield image, question, answer


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", help="a prepared data set of captions, and its splits: DIR:SPLIT,SPLIT")
    parser.add_argument("--output", type=Path, required=True, help="folder of the new data set")
    parser.add_argument("--split", default="train", help="its split (default: train)")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=[YES_NO], help=f"what is asked (default: {YES_NO} alone)"
    )
    parser.add_argument(
        "--min-count", type=int, default=10, help="leave out open answers that are rarer in their kind (default: 10)"
    )
    parser.add_argument("--table", type=Path, help="also write them as a CSV table, to be read or put right by hand")
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
    names = {row["image_id"]: Path(row["path"]).name for row in data.images}
    if args.only:
        wanted = files_of(args.only)
        captions = {image: texts for image, texts in captions.items() if file_name(names[image]) in wanted}
    if not captions:
        raise PixelBertError(f"{args.captions}: no photo to ask about is left")
    found = list(ask(captions, args.seed)) if YES_NO in args.kinds else []
    found += ask_open(captions, args.kinds, args.min_count, args.seed)
    if not found:
        raise PixelBertError(
            f"{args.captions}: the captions make no such questions; try other --kinds or --min-count 1"
        )
    found.sort()  # a photo's questions stand together
    with DatasetWriter(
        args.output, name=f"{data.name}_asked", task=QUESTION_ANSWERING, overwrite=args.overwrite
    ) as out:
        for row in data.images:
            out.add_image(
                row["image_id"], path=row["path"], data=row["bytes"], width=row["width"], height=row["height"],
                sha256=row.get("sha256"),
            )  # fmt: skip
        for number, (image, question, answer) in enumerate(found):
            kind = YES_NO if answer in ("no", "yes") else "number" if answer.isdigit() else "other"
            out.add_example(args.split, f"asked_{number}", [image], question, answers=[answer], answer_type=kind)
        out.manifest = {
            "answers": sorted({answer for _, _, answer in found}),
            "sources": [{"file": str(folder), "splits": splits}],
            "derived_from": Corpus([args.captions]).provenance(),
        }
    if args.table:
        with args.table.open("w", newline="", encoding="utf-8") as file:
            rows = ((names[image], question, answer) for image, question, answer in found)
            csv.writer(file, lineterminator="\n").writerows([("image", "question", "answer"), *rows])
    print(f"{len(found):,} questions about {len({image for image, _, _ in found}):,} photos -> {args.output}")


if __name__ == "__main__":
    with program("questions_from_captions"):
        main()

"""The commands that use a trained model on a person's own photos: match, answer, fill-mask, reason, attend; and, for
searching, index and search.

Each has `--checkpoint` and, for machines, `--json`. What a command prints for people is a table, best first.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from pixelbert.data.images import open_image
from pixelbert.errors import PixelBertError
from pixelbert.files import read_text, write_atomically
from pixelbert.loading import SHIPPED
from pixelbert.predict.indexing import bring_up_to_date, passed_over_lines, reserved
from pixelbert.predict.pixelbert import PixelBert
from pixelbert.predict.search import SHORTLIST, SearchIndex, remark, results_page
from pixelbert.terminal import print_json, print_lines, printable

SHOWN = 10  # photos that were left out, in the table for people
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def positionals_last(parser: ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Options first, then `--` and the photos and texts, so that a text may begin with a dash.

    What comes after a `--` of the user's own is taken as it is; before it, only `--name` and `-h` are options.
    """
    flags = {name for action in parser._actions if action.nargs == 0 for name in action.option_strings}
    options: list[str] = []
    others: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument == "--":
            others += waiting
        elif argument.startswith("--") or argument == "-h":
            options.append(argument)
            if argument not in flags and "=" not in argument:
                options += [value for value in [next(waiting, None)] if value is not None]
        else:
            others.append(argument)
    return [*options, "--", *others] if others else options


READ = "; in English (a note says what is not read: the model that ships reads 38 tokens)"
OWN = "your own"  # in place of a default: a checkpoint of a kind that doesn't ship with the project


def common(parser: ArgumentParser, *positionals: tuple[str, str], checkpoint: str | None = SHIPPED) -> None:
    """The arguments of every command here; `checkpoint` is taken if none is given, None for that of an index."""
    for name, said in positionals:
        parser.add_argument(name, metavar=name.upper(), type=str, help=said)
    said = "folder of a trained model (DIR/final of a run), or a hub name"
    if checkpoint == OWN:
        parser.add_argument("--checkpoint", type=str, required=True, help=said)
    else:
        said += f"; {'the model that ships with the project' if checkpoint else 'the one of the index'} if left out"
        parser.add_argument("--checkpoint", type=str, default=checkpoint, help=said)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--device", type=str, help="cuda, mps or cpu; the best there is by default")
    parser.add_argument(
        "--precision", choices=("bf16", "fp32"), help="by default the faster on this device, which is measured"
    )


def load(args: Namespace) -> PixelBert:
    return PixelBert.from_pretrained(args.checkpoint, args.device, args.precision)


def told(model: PixelBert, texts: Sequence[str]) -> dict[str, Any]:
    """Say on standard error what is not read of these texts; the same for the JSON: `cut` and `unknown`."""
    unread = model.processor.unread(texts)
    for line in unread.lines():
        print(f"note: {printable(line)}", file=sys.stderr)
    return unread.fields()


def show(args: Namespace, as_json: Any, lines: Sequence[str]) -> None:
    print_json(as_json) if args.json else print_lines(lines)


def match_parser(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    common(parser, ("photo", "an image file; with --images-from, the first text"))
    parser.add_argument("texts", metavar="TEXT", type=str, nargs="*", help="sentences to score" + READ)
    parser.add_argument("--images-from", type=Path, help="a text file with the path of a photo on each line")


def match_command(args: Namespace) -> None:
    many = args.images_from is not None
    texts = [args.photo, *args.texts] if many else args.texts
    if not texts:
        raise PixelBertError("there is no text to score: give the photo, then one or several sentences in quotes")
    photos = [args.photo]
    if many:
        photos = [line.strip() for line in read_text(args.images_from).splitlines() if line.strip()]
    model = load(args)
    unread = told(model, texts)
    table = model.match(photos, texts).tolist()
    results: list[dict[str, Any]] = []
    lines: list[str] = []
    for photo, row in zip(photos, table, strict=True):
        scored = [{"text": text, "score": score} for text, score in zip(texts, row, strict=True)]
        results.append({"image": photo, "scores": scored})
        lines += [photo] if many else []
        indent = "  " if many else ""
        lines += [f"{indent}{s:.3f}  {text}" for s, text in sorted(zip(row, texts, strict=True), reverse=True)]
    show(args, ({"results": results} if many else {"scores": results[0]["scores"]}) | unread, lines)


def answer_parser(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    common(parser, ("photo", "an image file"), ("question", "about it, in quotes" + READ))
    parser.add_argument("--top", type=int, default=5, help="answers to give")


def answer_command(args: Namespace) -> None:
    model, top = load(args), positive(args.top)
    unread = told(model, [args.question])
    answers = model.answer(args.photo, args.question, top)
    lines = [f"{a.score:.3f}  {a.answer}" for a in answers]
    show(args, {"answers": [a._asdict() for a in answers]} | unread, lines)


def fill_mask_parser(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    common(parser, ("photo", "an image file"), ("text", "with [MASK] in place of the words to fill in" + READ))
    parser.add_argument("--top", type=int, default=5, help="tokens to give for each [MASK]")


def fill_mask_command(args: Namespace) -> None:
    model, top = load(args), positive(args.top)
    unread = told(model, [args.text])
    masks = model.fill_mask(args.photo, args.text, top)
    lines: list[str] = []
    for number, fills in enumerate(masks, start=1):
        lines += [f"[MASK] {number}"] if len(masks) > 1 else []
        lines += [f"{fill.score:.3f}  {fill.token}" for fill in fills]
    show(args, {"masks": [[fill._asdict() for fill in fills] for fills in masks]} | unread, lines)


def reason_parser(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    common(
        parser,
        ("left", "an image file"),
        ("right", "another"),
        ("statement", "about the two, in quotes: is it true?" + READ),
        checkpoint=OWN,
    )


def reason_command(args: Namespace) -> None:
    model = load(args)
    unread = told(model, [args.statement])
    judgement = model.reason(args.left, args.right, args.statement)
    line = f"{str(judgement.true).lower()}  (true with probability {judgement.score:.3f})"
    show(args, judgement._asdict() | unread, [line])


def attend_parser(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    common(parser, ("photo", "an image file"), ("text", "a sentence about it, in quotes" + READ))
    parser.add_argument("--token", type=str, help="the word to look up; all words by default")
    parser.add_argument("--out", type=Path, help="picture to write (.png), or page with all words and layers (.html)")
    parser.add_argument("--layer", type=int, help="from 0; the first by default, with --rollout the last")
    parser.add_argument("--head", type=int, help="from 0; the mean over the heads by default")
    parser.add_argument("--rollout", action="store_true", help="follow attention through all layers up to --layer")
    parser.add_argument("--sheet", action="store_true", help="draw every layer and head of the word in one picture")


def attend_command(args: Namespace) -> None:
    from pixelbert.predict.maps import contact_sheet, overlay, report  # and so matplotlib, for this alone

    suffix = args.out.suffix.lower() if args.out else ""
    if args.out and suffix not in (*PICTURES, ".html"):
        raise PixelBertError(f"{args.out} is neither a picture ({', '.join(PICTURES)}) nor a page (.html)")
    if args.sheet and suffix not in PICTURES:
        raise PixelBertError(f"--sheet draws a picture: add --out FILE with one of {', '.join(PICTURES)}")
    model = load(args)
    unread = told(model, [args.text])
    attention = model.attention(args.photo, args.text)
    if suffix in PICTURES and args.token is None:
        raise PixelBertError(f"which word is to be drawn? Add --token with one of: {', '.join(attention.words)}")
    found = attention.maps(args.token, args.layer, args.head, args.rollout)
    if args.out:
        photo = open_image(args.photo)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".html":
            write_atomically(args.out, report(photo, attention, args.text))
        elif args.sheet:
            contact_sheet(photo, attention, args.token).save(args.out)
        else:
            overlay(photo, found[0].map).save(args.out)
    width = max((len(word) for word, _, _ in found), default=0)
    lines = [f"{'word':{width}}  on photo  peak (1 = even)"]
    lines += [f"{word:{width}}  {share:8.1%}  {grid.max() * grid.size:.1f}" for word, grid, share in found]
    lines += [f"written to {args.out}"] if args.out else []
    words = [{"word": word, "share": share, "map": grid.tolist()} for word, grid, share in found]
    show(args, {"words": words, "out": str(args.out) if args.out else None} | unread, lines)


def index_parser(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    common(parser, ("photos", "a folder; photos in folders below it are taken too"))
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the index; the same again brings it up to date"
    )


def index_command(args: Namespace) -> None:
    with reserved(args.out):  # before the model is loaded: an index that another process writes is told at once
        done = bring_up_to_date(load(args), args.photos, args.out)
    skipped = [{"image": image, "reason": reason} for image, reason in done.skipped.items()]
    passed_over = [{"kind": kind, "count": len(n), "files": n} for kind, n in done.passed_over.items()]
    lines = [f"{done.photos:,} photos in {args.out}: {done.added:,} added, {done.removed:,} removed"]
    lines += [f"{len(skipped):,} left out:"] if skipped else []
    lines += [f"  {reason}" for reason in list(done.skipped.values())[:SHOWN]]
    lines += [f"  and {len(skipped) - SHOWN:,} more; --json lists all"] if len(skipped) > SHOWN else []
    lines += passed_over_lines(done.passed_over)
    show(args, done._asdict() | {"skipped": skipped, "passed_over": passed_over}, lines)
    if not done.photos:
        raise PixelBertError(f"none of the photos in {args.photos} can be used, so there is nothing to search")


def search_parser(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    common(
        parser, ("index", "a folder that `pixelbert index` made"), ("text", "a sentence, in quotes" + READ),
        checkpoint=None,
    )  # fmt: skip
    parser.add_argument("--top", type=int, default=10, help="photos to give")
    parser.add_argument("--shortlist", type=int, default=SHORTLIST, help="photos that the first stage hands on")
    parser.add_argument("--exact", action="store_true", help="score every photo: slow, and nothing is missed")
    parser.add_argument("--out", type=Path, help="page with the photos to write (.html)")


def search_command(args: Namespace) -> None:
    if args.out and args.out.suffix.lower() != ".html":
        raise PixelBertError(f"{args.out} is no page: --out takes a name that ends in .html")
    index = SearchIndex.open(args.index)
    index.must_have_photos()
    args.checkpoint = args.checkpoint or index.checkpoint
    shortlist = None if args.exact else positive(args.shortlist, "--shortlist")
    top, model = positive(args.top), load(args)
    unread = told(model, [args.text])
    found = model.search(index, args.text, top, shortlist)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.out, results_page(args.text, found))
    lines = [f"{one.score:.3f}  {one.image}{remark(one)}" for one in found]
    if any(one.changed or one.missing for one in found):
        again = ["pixelbert", "index", index.photos, "--out", str(args.index)]
        again += [] if args.checkpoint == SHIPPED else ["--checkpoint", args.checkpoint]
        lines.append(f"`{shlex.join(again)}` brings the index up to date")
    lines += [f"written to {args.out}"] if args.out else []
    left_out = list(index.left_out.values())  # told already, as it was found
    show(args, {"results": [one._asdict() for one in found], "left_out": left_out} | unread, lines)


def positive(top: int, name: str = "--top") -> int:
    if top < 1:
        raise PixelBertError(f"{name} is {top}; expected 1 or more")
    return top


Parser = Callable[[ArgumentParser, Sequence[str]], None]
Runner = Callable[[Namespace], None]

INFERENCE: dict[str, tuple[str, Parser, Runner]] = {
    "match": ("Score sentences against photos, from 0 to 1.", match_parser, match_command),
    "answer": ("Answer a question about a photo.", answer_parser, answer_command),
    "fill-mask": ("Fill in the [MASK]s of a sentence by looking at a photo.", fill_mask_parser, fill_mask_command),
    "reason": ("Say whether a statement is true of two photos.", reason_parser, reason_command),
    "attend": ("Show which pixels of a photo each word looks at.", attend_parser, attend_command),
    "index": (
        "Encode a folder of photos once, for searching; again, to bring it up to date.",
        index_parser,
        index_command,
    ),
    "search": ("Find the photos of an index that a sentence belongs to.", search_parser, search_command),
}

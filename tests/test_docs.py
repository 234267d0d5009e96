"""README.md and docs/: every code block is run, or parsed completely where it cannot be; every link leads somewhere.

What is done with a block follows from what it is, by the rules of `parts` and `Workspace.check`. One that fits no rule
fails. Commands run in this process, in a folder in which the files that the texts speak of lie, all of them tiny.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import json
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import datasets
import numpy as np
import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from markdown_it import MarkdownIt
from markdown_it.token import Token
from torch.distributed.run import get_args_parser

import data_builders as build
from pixelbert import (
    PixelBert,
    PixelBertConfig,
    PixelBertForImageAndTextRetrieval,
    PixelBertForImagesAndTextClassification,
    PixelBertForPreTraining,
    PixelBertForQuestionAnswering,
    PixelBertProcessor,
    cli,
)
from pixelbert.data.processing import PixelBertImageProcessor, learn_tokenizer
from pixelbert.data.sources import folder, vqa_csv
from pixelbert.data.sources.tables import read_table
from pixelbert.train.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md"]

# Data that is made here, as the texts make it, and what else they prepare, of which nothing is trained or measured.
OWN = {"prepared/mine", "prepared/questions"}
OFFICIAL = {"prepared/coco", "prepared/flickr8k", "prepared/flickr30k", "prepared/visual_genome"}
OFFICIAL |= {"prepared/vqa2", "prepared/nlvr2", "prepared/visual_genome_qa", "prepared/daquar", "prepared/coco_unshown"}
OFFICIAL |= {"prepared/yesno"}
# A training that the texts name runs with this after it: the same recipe, a moment's work.
SMALL = shlex.split(
    "--epochs 0.1 --optimizer.milestones [] --precision fp32 --trackers [] "
    "--data.shortest_edge 64 --data.longest_edge 64 --data.max_length 16 --data.workers 0 --evaluate_examples 4"
)
SMALL_NETWORK = shlex.split(
    "--model.backbone resnet14_small --model.backbone_init null --model.stride_in_1x1 false --model.text_init null "
    "--model.vocab_size 80 --model.hidden_size 32 --model.num_hidden_layers 1 --model.num_attention_heads 2 "
    "--model.intermediate_size 32"
)
# What pages take for granted that another page, or a later section, makes.
BEFORE = """
    pixelbert prepare folder --images photos --captions captions.csv --output prepared/mine
    pixelbert prepare vqa-csv --questions questions.csv --images photos --output prepared/questions
    pixelbert prepare coco --json dataset_coco.json --images coco --output prepared/coco
    pixelbert prepare vqa2 --questions '[v2_OpenEnded_mscoco_val2014_questions.json]' \
        --annotations '[v2_mscoco_val2014_annotations.json]' --images coco --output prepared/vqa2
"""


class Block(NamedTuple):
    """A code block, or a part of one, and where it stands."""

    page: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def parts(text: str, page: str) -> Iterator[Block]:
    """The code blocks of a page, each with its kind. An indented block that is no Python is taken apart at blank lines,
    since Markdown joins what stands apart.

    Raises:
        ValueError: a block that is none of the kinds.
    """
    for token in MarkdownIt("commonmark").parse(text):
        if token.type not in ("fence", "code_block"):
            continue
        assert token.map
        line = token.map[0] + 1
        language = token.info.strip()
        if language.startswith("{"):
            yield Block(page, line, "directives", token.content)
        elif language:
            yield Block(page, line, language, token.content)
        elif re.match(r"(from|import) \w", token.content):
            yield Block(page, line, "python", token.content)
        else:
            for part in re.finditer(r"(?:.+\n?)+", token.content):
                start = line + token.content[: part.start()].count("\n") + (token.type == "fence")
                yield Block(page, start, kind_of(part[0], f"{page}:{start}"), part[0])


def kind_of(text: str, place: str) -> str:
    """The kind of a block that doesn't name it."""
    first = text.split(maxsplit=1)[0]
    if first in Workspace.PROGRAMS:
        return "shell"
    if first.startswith("image,"):
        return "table"
    if first.startswith("DIR/"):
        return "folder"
    raise ValueError(f"{place}: a block that begins with {first!r} is none that the tests know")


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a block: a line each, or several with a backslash at the end or a quotation that goes on."""
    waiting = ""
    for line in text.splitlines():
        waiting += line
        if waiting.endswith("\\"):
            waiting = waiting[:-1]
            continue
        try:
            words = shlex.split(waiting, comments=True)
        except ValueError:  # no closing quotation yet
            waiting += "\n"
            continue
        waiting = ""
        if words:
            yield words
    assert not waiting, f"this has no end: {waiting}"


def value_of(arguments: list[str], option: str) -> str:
    return arguments[arguments.index(option) + 1]


def made_for_own_data(sources: list[str]) -> bool:
    """Whether all of these data sets are there; they have to be known."""
    names = {source.partition(":")[0] for source in sources}
    assert names <= OWN | OFFICIAL | {"scenes"}, f"no text prepares {names - OWN - OFFICIAL}"
    return names <= OWN | {"scenes"}


class Parsed(Exception):
    """Raised where a script of the project would begin its work."""


class Workspace:
    """The folder that a reader of the texts works in, and what is done there with a block."""

    def __init__(self) -> None:
        self.done: set[tuple[str, ...]] = set()
        self.names: dict[str, dict[str, Any]] = {}  # of each page, from one of its Python blocks to the next

    def check(self, block: Block) -> None:
        """Run a block, or parse it completely."""
        check = getattr(self, f"check_{block.kind}", None)
        assert check, f"{block}: a block of {block.kind!r} is none that the tests know"
        check(block)

    def check_python(self, block: Block) -> None:
        """Run it, after the page's earlier ones."""
        code = compile("\n" * block.line + block.text, block.page, "exec")
        exec(code, self.names.setdefault(block.page, {"__name__": "__docs__"}))

    def check_shell(self, block: Block) -> None:
        """Each command by its program. What another block has run already isn't run again."""
        for words in commands(block.text):
            assert words[0] in self.PROGRAMS, f"{block}: {words[0]!r} is no program that the tests know"
            if tuple(words) not in self.done:
                self.PROGRAMS[words[0]](self, [word.replace("NAME", "vqa_r50") for word in words[1:]])
                self.done.add(tuple(words))

    def check_yaml(self, block: Block) -> None:
        """A recipe, read as `train` reads it."""
        assert set(yaml.safe_load(block.text)) <= set(Recipe.__dataclass_fields__), f"{block} is no recipe"
        Path("recipe.yaml").write_text(block.text)
        self.parse(["train", "recipe.yaml"])

    def check_json(self, block: Block) -> None:
        """NLVR2's lines, which a data set can be made of."""
        rows = [json.loads(line) for line in block.text.splitlines()]
        Path("rows.json").write_text(block.text)
        build.write_pairs(Path("pairs"), rows)
        self.run(["prepare", "nlvr2", "--json", "[rows.json]", "--images", "pairs", "--output", "prepared/rows"])

    def check_table(self, block: Block) -> None:
        """A table that `prepare` reads."""
        Path("table.csv").write_text(block.text)
        form = vqa_csv.FORM if "question" in block.text.splitlines()[0] else folder.FORM
        rows = [row for _, row in read_table(Path("table.csv"), form, [])]
        assert len(rows) >= 2
        assert all(isinstance(row, dict) for row in rows)

    def check_folder(self, block: Block) -> None:
        """A listing of a prepared data set."""
        for line in block.text.splitlines():
            name = line.split()[0].removeprefix("DIR/").replace("{split}", "train")
            assert name == "skipped.jsonl" or (Path("prepared/mine") / name).is_file(), f"{block}: there is no {name}"

    def check_text(self, block: Block) -> None:
        """What is for people alone. Nothing that could be run hides in it."""
        found = [line for line in block.text.splitlines() if line.split()[:1] and line.split()[0] in self.PROGRAMS]
        assert not found, f"{block}: {found[0]!r} is a command"

    def check_directives(self, block: Block) -> None:
        """The names that the site takes docstrings from."""
        for kind, name, options in re.findall(r"^\.\. (\S+):: (\S+)\n((?:   .*\n)*)", block.text, flags=re.MULTILINE):
            assert kind in ("autoclass", "autofunction", "autoexception"), f"{block}: {kind}"
            module, _, attribute = name.rpartition(".")
            thing = getattr(importlib.import_module(module), attribute)
            assert thing.__doc__, f"{block}: {name} has no docstring"
            for member in re.findall(r":members: (.*)", options):
                assert [m for m in member.split(", ") if not hasattr(thing, m)] == []

    def make(self, arguments: list[str]) -> None:
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert [word for word in arguments if "=" not in word and word not in targets] == []

    def source(self, arguments: list[str]) -> None:
        assert arguments == [".venv/bin/activate"]

    def accelerate(self, arguments: list[str]) -> None:
        launch = launch_command_parser().parse_args(arguments[1:])
        assert (arguments[0], launch.module, launch.training_script) == ("launch", True, "pixelbert")
        self.parse(launch.training_script_args)

    def torchrun(self, arguments: list[str]) -> None:
        launch = get_args_parser().parse_args(arguments)
        assert (launch.module, launch.training_script) == (True, "pixelbert")
        self.parse(launch.training_script_args)

    def python(self, arguments: list[str]) -> None:
        """A script of the project: run an example, and parse the arguments of what takes long."""
        script, *rest = arguments
        assert (ROOT / script).is_file(), f"there is no {script}"
        if script.startswith("examples/"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", arguments)
                runpy.run_path(str(ROOT / script), run_name="__main__")
            return

        def parsed(parser: argparse.ArgumentParser, *_: object) -> None:
            parse(parser, rest)
            raise Parsed

        parse = argparse.ArgumentParser.parse_args
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
            with pytest.raises(Parsed):
                runpy.run_path(str(ROOT / script), run_name="__main__")

    def curl(self, arguments: list[str]) -> None:
        """A request to the server: its address, and fields that are all there and all known."""
        method, fields = "get", set[str]()
        address = arguments[-1]
        for option, value in zip(arguments[:-1:2], arguments[1:-1:2], strict=True):
            assert option == "-F", f"curl {option} is none that the tests know"
            method, fields = "post", fields | {value.partition("=")[0]}
            assert "=@" not in value or Path(value.partition("=@")[2]).is_file()
        path, _, query = address.removeprefix("http://127.0.0.1:8000").partition("?")
        described = server_description()
        assert method in described["paths"].get(path, {}), f"{method} {address} is nothing that the server answers"
        request = described["paths"][path][method]
        known = {field["name"]: field["required"] for field in request.get("parameters", [])}
        for content in request.get("requestBody", {}).get("content", {}).values():
            body = described["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
            known |= {name: name in body["required"] for name in body["properties"]}
        fields |= set(parse_qs(query))
        needed = {name for name, required in known.items() if required}
        assert needed <= fields <= set(known), f"{address} takes {sorted(known)}"

    def pixelbert(self, arguments: list[str]) -> None:
        """Parse all; run what is no day's work and needs no data that isn't here."""
        parsed = self.parse(arguments)
        command = arguments[0]
        if parsed is None:
            return
        if command == "train":
            if not made_for_own_data([*parsed.data.train, *parsed.data.validation]):
                return
            arguments = [*arguments, *SMALL]
            if parsed.data.train[0].startswith("scenes:"):
                arguments += ["--data.train", '["scenes:0-20"]', "--data.validation", '["scenes:20-24"]']
            if parsed.model.checkpoint is None:
                arguments += SMALL_NETWORK
        elif command == "evaluate":
            if not made_for_own_data([value_of(arguments, "--data")]):
                return
        elif command in ("serve", "convert", "bench"):  # which doesn't end; whose file is a download; minutes
            return
        self.run(arguments)

    def parse(self, arguments: list[str]) -> Any:
        """What the command line makes of these arguments, up to where the work begins; None if it prints and ends."""
        found: list[Any] = []
        assert arguments[0] in cli.COMMANDS, f"pixelbert has no command {arguments[0]!r}"
        command = cli.COMMANDS[arguments[0]]._replace(run=found.append)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(cli.COMMANDS, arguments[0], command)
            in_process(arguments)
        return found[0] if found else None

    def run(self, arguments: list[str]) -> None:
        """Run a command of pixelbert. What it writes is made anew, and has to be there then."""
        written = [Path(value_of(arguments, option)) for option in ("--output", "--out") if option in arguments]
        for old in written:
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        in_process(arguments)
        assert [new for new in written if not new.exists()] == []

    PROGRAMS: dict[str, Callable[[Workspace, list[str]], None]] = {  # noqa: RUF012
        "pixelbert": pixelbert,
        "make": make,
        "curl": curl,
        "accelerate": accelerate,
        "torchrun": torchrun,
        "python": python,
        ".": source,
    }


@functools.cache
def server_description() -> dict[str, Any]:
    """What the server says of its API, with a model that can match, and an index."""
    from pixelbert.serve.app import create_app

    app: Any = create_app(PixelBert.from_pretrained("runs/mine/final"), "mine", index="index").app
    return app.openapi()


def in_process(arguments: list[str]) -> None:
    """`pixelbert ARGUMENTS`, whose message is the failure's."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            cli.main(arguments)
    except SystemExit as stop:
        if stop.code:
            pytest.fail(f"pixelbert {shlex.join(arguments)}\n{said.getvalue() or stop.code}")


COLOURS = ["red", "blue", "green", "brown", "white", "black", "grey", "yellow"]
THINGS = ["dog", "cat", "plate", "bicycle", "kitchen", "beach", "window", "table"]


def caption(number: int) -> str:
    return f"a {COLOURS[number % 8]} {THINGS[number // 8 % 8]} on the beach"


def write_own(at: Path) -> None:
    """Photos, a table of captions and one of questions, and photos under the names that the texts use."""
    names = [f"{number}.jpg" for number in range(64)]
    build.write_photos(at / "photos", len(names))
    for name in ("photo", "beach", "kitchen", "left", "right"):
        (at / f"{name}.jpg").write_bytes(build.encoded(build.photo(20 * len(name), (96, 80)), "JPEG"))
    (at / "photos.txt").write_text("beach.jpg\nkitchen.jpg\n")
    rows = [f"{name},{caption(i + k)}" for i, name in enumerate(names) for k in (0, 8)]
    (at / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    asked = [{"image": name, "question": "what is it", "answer": THINGS[i % 4]} for i, name in enumerate(names)]
    table = ["image,question,answer", *(",".join(row.values()) for row in asked)]
    for name in ("questions.csv", "quiz.csv"):
        (at / name).write_text("\n".join(table))
    build.write_lines(at / "train.jsonl", asked[:32])
    build.write_lines(at / "test.jsonl", asked[32:])


def write_official(at: Path) -> None:
    """The official files of each data set, under their names, with the photos."""
    for name, photos in {"flickr8k": "Images", "flickr30k": "flickr30k-images", "coco": "coco"}.items():
        build.write_json(at / f"dataset_{name}.json", build.karpathy_data(20) | {"dataset": name})
        build.write_photos(at / photos, 20)
    shown = sorted((ROOT / "src" / "pixelbert" / "demo" / "photos").glob("*.jpg"))[0]  # which the texts leave out
    shutil.copy(shown, at / "coco")
    coco = build.karpathy_data(20) | {"dataset": "coco"}
    said = [{"raw": "two men play baseball", "sentid": 1000}]
    coco["images"].append({"filename": shown.name, "imgid": 20, "split": "restval", "sentences": said})
    build.write_json(at / "dataset_coco.json", coco)
    build.write_photos(at / "images", 20)  # Flickr8k's, and NLVR2's beside them
    for number, subset in enumerate(("train2014", "val2014", "test2015", "test-dev2015")):
        asked = [(100 * number + q, 10 * min(number, 2) + q, "yes" if q else "no") for q in range(10)]
        questions, annotations = build.vqa_data(subset, asked)
        build.write_json(at / f"v2_OpenEnded_mscoco_{subset}_questions.json", questions)
        if number < 2:
            build.write_json(at / f"v2_mscoco_{subset}_annotations.json", annotations)
        build.write_coco_photos(at / "coco", subset.replace("-dev", ""), [image for _, image, _ in asked])
    for split in ("train", "dev", "test1"):
        rows = build.nlvr2_rows(split, 4)
        build.write_lines(at / f"{split}.json", rows)
        build.write_pairs(at / "images", rows)
    facts = [{"image_id": n, "coco_id": None, "flickr_id": None, "url": f"VG_100K/{n}.jpg"} for n in range(4)]
    regions = [{"id": n, "regions": [{"region_id": n, "image_id": n, "phrase": "a cat"}]} for n in range(4)]
    answers = [{"id": n, "qas": [{"qa_id": n, "question": "Is it?", "answer": "Yes."}]} for n in range(4)]
    build.write_json(at / "image_data.json", facts)
    build.write_json(at / "region_descriptions.json", regions)
    build.write_json(at / "question_answers.json", answers)
    build.write_photos(at / "vg" / "VG_100K", 4)


def write_predictions(at: Path) -> None:
    """What `score` reads: of VQA, of NLVR2 (whose dev.json is there) and of retrieval."""
    questions, annotations = build.vqa_data("val2014", [(1, 1, "yes"), (2, 1, "no")])
    annotations["annotations"][0]["answers"] = build.vqa_answers("yes", "no")
    build.write_json(at / "Q.json", questions)
    build.write_json(at / "A.json", annotations)
    build.write_json(at / "P.json", [{"question_id": q, "answer": "yes"} for q in (1, 2)])
    (at / "P.csv").write_text("".join(f"{row['identifier']},True\n" for row in build.nlvr2_rows("dev", 4)))
    np.save(at / "S.npy", np.arange(4.0).reshape(4, 1) % np.array([[2, 3]]))
    build.write_json(at / "ids.json", [7, 8, 7, 8])


def write_checkpoints(at: Path, tiny_config: Callable[..., PixelBertConfig]) -> None:
    """A model of each task, as a run leaves it."""
    tokenizer = learn_tokenizer([caption(number) for number in range(64)], 80)
    processor = PixelBertProcessor(PixelBertImageProcessor(64, 128), tokenizer, max_length=16)
    for run, kind in {
        "mine": PixelBertForPreTraining,
        "questions": PixelBertForQuestionAnswering,
        "nlvr2_r50": PixelBertForImagesAndTextClassification,
        "ranking": PixelBertForImageAndTextRetrieval,
    }.items():
        config = tiny_config(vocab_size=len(tokenizer), id2label=dict(enumerate(THINGS)))
        kind(config).save_pretrained(at / "runs" / run / "final")
        processor.save_pretrained(at / "runs" / run / "final")


@pytest.fixture(scope="module")
def workspace(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., PixelBertConfig]
) -> Iterator[Workspace]:
    at = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.chdir(at)
        for name in ("recipes", "examples", "src"):
            (at / name).symlink_to(ROOT / name)
        write_own(at)
        write_official(at)
        write_predictions(at)
        write_checkpoints(at, tiny_config)
        made = Workspace()
        for words in commands(BEFORE):
            made.run(words[1:])
        yield made


BLOCKS = [block for page in PAGES for block in parts(page.read_text(), str(page.relative_to(ROOT)))]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block(block: Block, workspace: Workspace) -> None:
    workspace.check(block)


WRONG = {
    "an option that is none": ("    pixelbert match photo.jpg dog --chekpoint runs/mine/final", "chekpoint"),
    "an option that is missing": ("    pixelbert prepare folder --images photos", "output"),
    "a command that is none": ("    pixelbert trane recipes/tiny.yaml", "no command 'trane'"),
    "a field that is none": ("    pixelbert train recipes/tiny.yaml --optimizer.speed 3", "optimizer.speed"),
    "a recipe that is none": ("    pixelbert train recipes/huge.yaml", "huge.yaml"),
    "a file that isn't there": ("    pixelbert match no.jpg dog --checkpoint runs/mine/final", "no.jpg"),
    "a data set that no text prepares": ("    pixelbert evaluate x --data prepared/mien --split val", "prepared/mien"),
    "the wrong kind of model": (
        "    pixelbert answer photo.jpg why --checkpoint runs/mine/final",
        "question answering",
    ),
    "a target that is none": ("    make everything", "everything"),
    "an option of accelerate that is none": (
        "    accelerate launch --gpus 8 -m pixelbert train recipes/tiny.yaml",
        "2",
    ),
    "a script's option that is none": ("    python benchmarks/bounded_memory.py --outputs x", "2"),
    "a script that isn't there": ("    python examples/nothing.py", "there is no examples/nothing.py"),
    "a quotation without end": ('    pixelbert match photo.jpg "a dog', "no end"),
    "one command that is unknown among others": ("    make test\n    rm -rf runs", "'rm' is no program"),
    "a program that is unknown": ("    wget localhost", "begins with 'wget'"),
    "an address that is none": ("    curl -F image=@photo.jpg http://127.0.0.1:8000/api/v1/guess", "nothing that"),
    "a field that is missing": ("    curl -F image=@photo.jpg http://127.0.0.1:8000/api/v1/match", "takes"),
    "a field that the server lacks": ('    curl "http://127.0.0.1:8000/api/v1/search?text=dog&best=5"', "takes"),
    "Python that fails": ("```python\nfrom pixelbert import Pixelbert\n```", "Pixelbert"),
    "Python that fails, indented": ("    import pixelbert\n    pixelbert.answer", "answer"),
    "a recipe of other fields": ("```yaml\nbatchsize: 3\n```", "no recipe"),
    "a recipe of wrong values": ("```yaml\nbatch_size: three\n```", "batch_size"),
    "a table without captions": ("    image,sentence\n    1.jpg,a dog", "sentence|text"),
    "a file that no data set has": ("    DIR/pictures.parquet  photos", "pictures.parquet"),
    "a command for people alone": ("```text\nmake test\n```", "is a command"),
    "a language that is unknown": ("```bash\nmake test\n```", "'bash'"),
    "a docstring of nothing": ("```{eval-rst}\n.. autoclass:: pixelbert.Pixelbert\n```", "Pixelbert"),
    "a member that is none": ("```{eval-rst}\n.. autoclass:: pixelbert.PixelBert\n   :members: guess\n```", "guess"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=list(WRONG))
def test_what_is_wrong_fails(text: str, message: str, workspace: Workspace) -> None:
    def check() -> None:
        for block in parts(text, "page.md"):
            workspace.check(block)

    with pytest.raises((Exception, SystemExit, pytest.fail.Exception), match=message):
        check()


def inline(text: str) -> Iterator[Token]:
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        yield from token.children or []


def slugs(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    found: set[str] = set()
    tokens = MarkdownIt("commonmark").parse(text)
    for before, token in pairwise(tokens):
        if before.type == "heading_open":
            words = "".join(child.content for child in token.children or [])
            found.add(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    return found


def dead_links(text: str, page: Path) -> list[str]:
    """The relative links and pictures of a page that lead nowhere: no such file, or no such heading in it."""
    dead = []
    for token in inline(text):
        target = str(token.attrGet("href") or token.attrGet("src") or "")
        if not target or re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        if not file.is_file() or (heading and heading not in slugs(text if file == page else file.read_text())):
            dead.append(target)
    return dead


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page.read_text(), page) == []


def test_dead_links_are_found() -> None:
    text = "# A b\n[a](data.md) [b](#a-b) ![c](attention.png) [d](https://example.org) [e](data.md#coco-captions)\n\n"
    wrong = ["nothing.md", "nothing.png", "#c", "data.md#nothing", "tasks"]
    text += "[1](nothing.md) ![2](nothing.png) [3](#c)\n\n| a |\n| - |\n| [4](data.md#nothing) [5](tasks) |\n"
    assert dead_links(text, ROOT / "docs" / "index.md") == wrong

"""The command line, derived from typed signatures: `pixelbert prepare | train | evaluate | score | match | ...`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace
from transformers.utils import logging as transformers_logging

from pixelbert.errors import PixelBertError, UnreadWarning
from pixelbert.files import read_yaml
from pixelbert.predict.commands import INFERENCE, positionals_last
from pixelbert.terminal import program

OVERVIEW = """usage: pixelbert COMMAND ... (pixelbert COMMAND --help tells all of each)

Pixel-BERT: one transformer over image pixels and sentences, with no object detector.

  pixelbert prepare karpathy --json dataset_flickr8k.json --images Images --output prepared/flickr8k
  pixelbert train recipes/tiny.yaml --output runs/tiny
  pixelbert evaluate runs/tiny/final --data prepared/flickr8k --split val --json metrics.json
  pixelbert score nlvr2 --data dev.json --predictions predictions.csv --json scores.json
  pixelbert match photo.jpg "a dog on a beach" "a plate of food"
  pixelbert attend photo.jpg "a dog on a beach" --token dog --out map.png
  pixelbert serve
  pixelbert export runs/tiny/final --out exported

commands:
"""


def prepare_parser(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    from pixelbert.data.prepare import prepare
    from pixelbert.data.sources import SOURCES

    formats = parser.add_subcommands(dest="format")
    for name, source in SOURCES.items():
        summary = (source.__doc__ or "").strip().splitlines()[0]
        sub = ArgumentParser(description=summary)
        sub.add_class_arguments(source)
        sub.add_function_arguments(prepare, skip={"source", "output"})
        sub.add_argument("--output", type=Path, required=True, help="the folder to write; new or empty")
        formats.add_subcommand(name, sub, help=summary)


def prepare_command(args: Namespace) -> None:
    from dataclasses import fields

    from pixelbert.data.prepare import prepare
    from pixelbert.data.sources import SOURCES

    source = SOURCES[args.format]
    options = vars(args[args.format])
    of_source = {f.name: options.pop(f.name) for f in fields(source)}  # type: ignore[arg-type]
    prepare(source(**of_source), **options)


def train_parser(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    from pixelbert.train.recipe import TASKS, Recipe

    parser.add_argument("--config", action="config", help="the recipe; `train RECIPE.yaml` is short for it")
    parser.add_class_arguments(Recipe, skip={"task"})
    parser.add_class_arguments(TASKS[task_kind(arguments, list(TASKS))], "task")


def task_kind(arguments: Sequence[str], known: Sequence[str]) -> str:
    """The task that a command line is about, which decides what its `task` section may hold: the last that is named."""
    kind: object = known[0]
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        value = value if equals else next(iter(arguments[i + 1 : i + 2]), "")
        if name == "--task.kind":
            kind = value
        elif name == "--config" and Path(value).is_file():
            kind = read_recipe(Path(value)).get("task", {}).get("kind", kind)
    if kind not in known:
        raise PixelBertError(f"task.kind is {kind!r}; expected one of {', '.join(known)}")
    return str(kind)


def read_recipe(file: Path) -> dict[str, Any]:
    """A recipe's YAML before the parser sees it, which would import whatever a `class_path` names.

    Raises:
        PixelBertError: it is no YAML, or its sections are none.
    """
    recipe = read_yaml(file)
    for name in ("task", "model", "data", "optimizer"):
        if not isinstance(recipe.get(name, {}), dict):
            raise PixelBertError(f"{file}: {name!r} is a section, expected names and values below it")
    for key in (key for section in (recipe, *recipe.values()) if isinstance(section, dict) for key in section):
        if not isinstance(key, str) or "." in key or key in ("class_path", "config"):
            raise PixelBertError(f"{file}: {key!r} is no field of a recipe; --print_config shows them all")
    return recipe


def train_command(recipe: Namespace) -> None:
    from pixelbert.train.loop import train
    from pixelbert.train.recipe import Recipe

    train(Recipe(**{name: value for name, value in vars(recipe).items() if name != "config"}))


def evaluate_parser(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    from pixelbert.evaluate import evaluate

    parser.add_argument("checkpoint", type=str, help="folder of a trained model (DIR/final of a run), or a hub name")
    parser.add_function_arguments(evaluate, skip={"checkpoint", "json"})
    parser.add_argument("--json", type=Path, help="file to write the metrics to")


def evaluate_command(args: Namespace) -> None:
    from pixelbert.evaluate import evaluate
    from pixelbert.train.processes import started_alone

    if advice := started_alone():
        print(advice, file=sys.stderr)
    evaluate(**vars(args))


def scorers() -> dict[str, Callable[..., object]]:
    from pixelbert.score import score_nlvr2, score_retrieval, score_vqa

    return {"vqa": score_vqa, "nlvr2": score_nlvr2, "retrieval": score_retrieval}


def score_parser(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    kinds = parser.add_subcommands(dest="kind")
    for name, score in scorers().items():
        summary = (score.__doc__ or "").strip().splitlines()[0]
        sub = ArgumentParser(description=summary)
        sub.add_function_arguments(score)
        kinds.add_subcommand(name, sub, help=summary)


def score_command(args: Namespace) -> None:
    scorers()[args.kind](**vars(args[args.kind]))


def convert_parser(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    parser.add_argument("source", type=Path, help="Detectron's .pkl, such as X-152-32x8d-IN5k.pkl")
    parser.add_argument("output", type=Path, help=".safetensors file to write, for model.backbone_init")


def convert_command(args: Namespace) -> None:
    from pixelbert.model.detectron import convert_detectron

    print(convert_detectron(args.source, args.output))


def export_parser(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    from pixelbert.export import export

    parser.add_function_arguments(export)


def export_command(args: Namespace) -> None:
    from pixelbert.export import export

    export(**vars(args))


def serve_parser(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    from pixelbert.serve.server import serve

    parser.add_function_arguments(serve)


def serve_command(args: Namespace) -> None:
    from pixelbert.serve.server import serve

    serve(**vars(args))


def bench_parser(parser: ArgumentParser, arguments: Sequence[str]) -> None:
    from pixelbert.bench.kinds import KINDS, bench
    from pixelbert.bench.report import report

    kinds = parser.add_subcommands(dest="kind")
    for name, kind in KINDS.items():
        summary = " ".join((kind.__doc__ or "").split())
        sub = ArgumentParser(description=summary)
        sub.add_function_arguments(bench, skip={"kind"})
        kinds.add_subcommand(name, sub, help=summary)
    sub = ArgumentParser(description="Write a page of tables and plots from the JSON files of benchmarks.")
    sub.add_argument("json_files", type=Path, nargs="+", help="what `bench KIND --json FILE` wrote")
    sub.add_function_arguments(report, skip={"json_files"})
    kinds.add_subcommand("report", sub, help="Write a page of tables and plots from the JSON files of benchmarks.")


def bench_command(args: Namespace) -> None:
    from pixelbert.bench.kinds import bench
    from pixelbert.bench.report import report

    options = vars(args[args.kind])
    if args.kind == "report":
        report(**options)
    else:
        bench(args.kind, **options)


def normalise(arguments: Sequence[str]) -> list[str]:
    """Take `--allow-leaks` for `--allow_leaks true`: options as people write them, to what the parser knows."""
    result: list[str] = []
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
            alone = i + 1 == len(arguments) or arguments[i + 1].startswith("--")
            if name in FLAGS and not equals and alone:
                equals, value = "=", "true"
        result.append(name + equals + value)
    return result


def shipped_recipe(path: str) -> str:
    """The recipe at this path, or the one of that name that is installed with the package."""
    installed = Path(__file__).parent / "recipes" / Path(path).name
    return str(installed) if not Path(path).exists() and installed.exists() else path


FLAGS = {"--quick", "--strict", "--embed_images", "--overwrite", "--allow_leaks", "--allow_trained"}


FIRST = {"train": "--config", "serve": "--checkpoint", "export": "--checkpoint"}  # what a first word is short for


class Command(NamedTuple):
    """A command: one line of help, what adds its arguments (and may look at those given), what runs it."""

    help: str
    arguments: Callable[[ArgumentParser, Sequence[str]], None]
    run: Callable[[Namespace], None]


COMMANDS = {
    "prepare": Command(
        "Turn a data set's official files into one checked folder that training reads.", prepare_parser, prepare_command
    ),
    "train": Command(
        "Train by a recipe: train RECIPE.yaml [--any.field value]. The same command again goes on with an unfinished "
        "run; --print_config shows the whole recipe.",
        train_parser,
        train_command,
    ),
    "evaluate": Command(
        "Measure a checkpoint on a prepared split, each figure beside its control.", evaluate_parser, evaluate_command
    ),
    "score": Command(
        "Score any system's prediction files as the official scripts do, with no model: score vqa | nlvr2 | retrieval.",
        score_parser,
        score_command,
    ),
    **{name: Command(*entry) for name, entry in INFERENCE.items()},
    "serve": Command(
        "Serve a trained model as a web page and an HTTP API, on this machine by default.", serve_parser, serve_command
    ),
    "export": Command(
        "Write a trained model as two ONNX graphs, checked against PyTorch, for programs without PyTorch.",
        export_parser,
        export_command,
    ),
    "bench": Command(
        "Measure how fast it is: ratios to other ways, steps, scoring, loading, memory; report writes a page of them.",
        bench_parser,
        bench_command,
    ),
    "convert": Command(
        "Turn a Detectron ResNeXt .pkl into weights for model.backbone_init.", convert_parser, convert_command
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exits with status 2 and one message where the user can put something right."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments.pop(0) if arguments else "--help"
    with program(f"pixelbert {name}" if name in COMMANDS else "pixelbert"):
        if name in COMMANDS:
            run(name, arguments)
        elif name == "--version":
            from pixelbert import __version__

            print(__version__)
        else:
            print(OVERVIEW + "\n".join(f"  {n:10}{c.help}" for n, c in COMMANDS.items()))
            if name not in ("--help", "-h"):
                raise PixelBertError(f"there is no command {name!r}")


def run(name: str, arguments: list[str]) -> None:
    """Run a command."""
    command = COMMANDS[name]
    transformers_logging.disable_progress_bar()  # for a moment's work; what takes long has a bar of ours
    if name in FIRST and arguments and not arguments[0].startswith("-"):
        arguments[:1] = [FIRST[name], shipped_recipe(arguments[0]) if name == "train" else arguments[0]]
    parser = ArgumentParser(prog=f"pixelbert {name}", description=command.help)
    inference = name in INFERENCE  # whose texts are anything
    arguments = arguments if inference else normalise(arguments)
    command.arguments(parser, arguments)
    arguments = positionals_last(parser, arguments) if inference else arguments
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadWarning)  # commands tell it themselves
        command.run(parser.instantiate(parser.parse_args(arguments)))

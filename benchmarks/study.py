"""Train the same thing in several ways, each with several seeds, and compare what comes of it: the tool for ablations.

A study is a YAML file. Its stages are recipes (beside this file), which may begin with the model of another stage, with
what all arms change in them and the figures to compare, of their last validation. Its arms say what each changes.

    title: what a table and a plot are headed with
    stages:
      pretraining: {recipe: pretraining.yaml, change: {epochs: 2}}
      retrieval: {recipe: retrieval.yaml, from: pretraining, measure: [text_to_image_r1, image_to_text_r1]}
      daquar: {recipe: daquar.yaml, from: pretraining, measure: [accuracy]}
    arms:
      no pre-training: {pretraining: null}                # the stage is left out
      matching alone: {pretraining: {task.mlm: false}}    # fields of the recipe
      both: {}

    python benchmarks/study.py benchmarks/studies/scenes_table6.yaml --output runs/table6 --json table6.json

`minutes`, those of all steps, may be measured too. The same command again goes on where it was: finished runs are left
alone. Arms take turns, so that whoever stops early has the first seeds of all of them. With --keep, seeds whose figures
are in the JSON file are not run at all, so that more can be added on another machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from pixelbert import PixelBertError, cli
from pixelbert.files import read_json_lines, read_yaml, write_atomically, write_json

MOMENT = 5.0  # seconds
COLUMNS = 2  # figures side by side in a plot
FROM_ELSEWHERE = ("backbone_init", "text_init")  # first weights, which a checkpoint takes the place of


def train_stage(recipe: Path, changes: dict[str, Any], seed: int, output: Path, checkpoint: Path | None) -> None:
    """`pixelbert train`; at once if that run is finished."""
    options = {**changes, "seed": seed, "output": output}
    if checkpoint is not None:
        options["model.checkpoint"] = checkpoint
        options |= {f"model.{name}": None for name in FROM_ELSEWHERE}
    cli.main(["train", str(recipe), *as_arguments(options)])


def as_arguments(options: dict[str, Any]) -> list[str]:
    """Fields of a recipe for the command line."""
    return [
        f"--{name}={value if isinstance(value, str | Path) else json.dumps(value)}" for name, value in options.items()
    ]


def run_arm(study: dict[str, Any], folder: Path, arm: str, seed: int, output: Path) -> dict[str, float]:
    """All stages of one arm with one seed.

    Returns:
        What is to be measured, and the minutes that all steps took.
    """
    checkpoints: dict[str, Path | None] = {}
    found: dict[str, float] = {"minutes": 0.0}
    for name, stage in study["stages"].items():
        before = checkpoints[stage["from"]] if "from" in stage else None
        changes = (study["arms"][arm] or {}).get(name, {})
        if changes is None:
            checkpoints[name] = before
            continue
        run = output / arm.replace(" ", "_") / str(seed) / name
        train_stage(folder / stage["recipe"], stage.get("change", {}) | changes, seed, run, before)
        checkpoints[name] = run / "final"
        found["minutes"] += minutes_of_steps(run)
        if wanted := [figure for figure in stage.get("measure", []) if figure != "minutes"]:
            last = read_json_lines(run / "validation.jsonl")[-1]
            if missing := [figure for figure in wanted if figure not in last]:
                raise PixelBertError(
                    f"{run} has no {', '.join(missing)}, which is to be measured; it has {', '.join(last)}"
                )
            found |= {figure: last[figure] for figure in wanted}
    return found


def figures_of(study: dict[str, Any]) -> list[str]:
    """What a study measures, in the order of its stages."""
    names = [figure for stage in study["stages"].values() for figure in stage.get("measure", [])]
    if twice := {name for name in names if names.count(name) > 1}:
        raise PixelBertError(f"two stages measure {', '.join(sorted(twice))}: a column of the table is one figure")
    return names


def minutes_of_steps(run: Path) -> float:
    """What a run's steps take at its median rate, so that halts and whatever else the machine did don't count."""
    rows, recipe = read_json_lines(run / "metrics.jsonl"), read_yaml(run / "recipe.yaml")
    pairs_in_step = recipe["batch_size"] * (1 + recipe["task"].get("wrong", 0))
    rate = statistics.median(row["pairs_per_second"] for row in rows)
    return rows[-1]["step"] * pairs_in_step / rate / 60


def time_left(turns: Sequence[tuple[int, str]], took: dict[str, float]) -> str:
    """For a line of progress: what the turns to come will take, by what their arms took (seconds) this time.

    A run that was finished before took a moment and says nothing.
    """
    known = {arm: seconds for arm, seconds in took.items() if seconds > MOMENT}
    if not known:
        return ""
    usual = statistics.mean(known.values())
    return f", about {sum(known.get(arm, usual) for _, arm in turns) / 60:.0f} minutes left"


def summary(found: dict[str, dict[str, dict[str, float]]], names: list[str]) -> dict[str, Any]:
    """Of each arm and figure: the values by seed, their mean and standard deviation."""
    result: dict[str, Any] = {}
    for arm, seeds in found.items():
        result[arm] = {}
        for name in dict.fromkeys([*names, "minutes"]):
            values = [row[name] for row in seeds.values()]
            spread = statistics.stdev(values) if len(values) > 1 else None
            result[arm][name] = {"values": values, "mean": statistics.mean(values), "sd": spread}
    return result


def kept_figures(study: dict[str, Any], file: Path | None) -> dict[str, dict[str, dict[str, float]]]:
    """The figures of each arm and seed that `summary` wrote to a file.

    Raises:
        PixelBertError: there is no such file, or it is of another study.
    """
    if file is None or not file.exists():
        raise PixelBertError("--keep needs --json with a file that has figures already")
    before = json.loads(file.read_text(encoding="utf-8"))
    if before["study"] != study:
        raise PixelBertError(f"{file} has the figures of another study: compare its 'study' with the YAML file")
    return {
        arm: {
            str(seed): dict(zip(figures, values, strict=True))
            for seed, values in enumerate(zip(*(figure["values"] for figure in figures.values()), strict=True))
        }
        for arm, figures in before["figures"].items()
    }


def markdown(title: str, result: dict[str, Any], names: list[str]) -> str:
    """The table: mean and standard deviation over seeds."""
    lines = [f"# {title}", "", f"| | {' | '.join(name.replace('_', ' ') for name in names)} | seeds |"]
    lines.append("| --- |" + " ---: |" * (len(names) + 1))
    for arm, figures in result.items():
        cells = []
        for name in names:
            mean, spread = figures[name]["mean"], figures[name]["sd"]
            cells.append(f"{mean:.3f}" + (f" ± {spread:.3f}" if spread is not None else ""))
        lines.append(f"| {arm} | {' | '.join(cells)} | {len(figures[names[0]]['values'])} |")
    return "\n".join(lines) + "\n"


def plot(title: str, result: dict[str, Any], names: list[str], file: Path) -> None:
    """A dot for each seed and a bar at the mean, figure by figure."""
    columns = min(len(names), COLUMNS)
    rows = -(-len(names) // columns)
    size = (4.5 * columns + 2, (0.45 * len(result) + 0.8) * rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for unused in panels[len(names) :]:
        unused.remove()
    for axes, name in zip(panels[: len(names)], names, strict=True):
        for place, figures in enumerate(result.values()):
            values = figures[name]["values"]
            axes.plot(values, [place] * len(values), "o", color="#2563c9", alpha=0.7)
            axes.plot(figures[name]["mean"], place, "|", color="#1c2430", markersize=18)
        axes.set_title(name.replace("_", " "), loc="left", fontsize=10)
        axes.grid(axis="x", color="#dde3e9")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_yticks(range(len(result)), list(result))
    panels[0].margins(y=0.1)
    panels[0].invert_yaxis()  # which all share
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="the YAML file")
    parser.add_argument("--output", type=Path, required=True, help="folder for all runs; the same again goes on")
    parser.add_argument("--json", type=Path, help="file for the figures; a table (.md) and a plot (.png) go beside it")
    parser.add_argument("--seeds", type=int, default=3, help="of each arm")
    parser.add_argument("--keep", action="store_true", help="take the seeds that the JSON file has already from there")
    parser.add_argument("--arms", nargs="*", help="some of them; all if left out")
    args = parser.parse_args(arguments)
    study = yaml.safe_load(args.study.read_text(encoding="utf-8"))
    unknown = set(args.arms or ()) - set(study["arms"])
    if unknown:
        parser.error(f"{args.study} has no arm {', '.join(sorted(unknown))}; it has {', '.join(study['arms'])}")
    kept = kept_figures(study, args.json) if args.keep else {}
    found = {arm: kept.get(arm, {}) for arm in args.arms or study["arms"]}
    names = figures_of(study)
    turns = [(seed, arm) for seed in range(args.seeds) for arm in found if str(seed) not in found[arm]]
    took: dict[str, float] = {}
    for seed in range(args.seeds):
        for arm, seeds in found.items():
            if (seed, arm) not in turns:
                continue
            turn = turns.index((seed, arm))
            print(f"== {arm}, seed {seed}: {turn + 1} of {len(turns)}{time_left(turns[turn:], took)}", flush=True)
            started = time.monotonic()
            seeds[str(seed)] = run_arm(study, args.study.parent, arm, seed, args.output)
            took[arm] = time.monotonic() - started
        result = summary(found, names)
        table = markdown(study["title"], result, names)
        print(table, flush=True)
        if args.json:
            write_json(args.json, {"study": study, "figures": result})
            write_atomically(args.json.with_suffix(".md"), table)
            plot(study["title"], result, names, args.json.with_suffix(".png"))


if __name__ == "__main__":
    main()

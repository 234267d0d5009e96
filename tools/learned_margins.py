"""Rerun every test that compares what was learned with a bound, over seeds, kernels, precisions and threads, and show
how near its bound each figure ever came.

    python tools/learned_margins.py --output runs/learned --json runs/learned/margins.json

The tests are those of `pytest -m learned`, which is every test that takes the fixture `margins`. Each kind of
arithmetic is a process of its own, for torch chooses its kernels when it is loaded. What a stopped sweep has finished
in --output is kept, and the same command goes on with the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pixelbert.bench.measure import environment
from pixelbert.files import read_log, write_atomically, write_json
from pixelbert.progress import Tracker, console

ROOT = Path(__file__).parents[1]
KERNELS: dict[str, dict[str, str]] = {
    "default": {},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "mkl-compatible": {"MKL_CBWR": "COMPATIBLE"},
    "no-amx": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
}
EMULATING = ("avx2",)  # kernels without bfloat16 of their own
ENDED = re.compile(r"::.* (PASSED|FAILED|ERROR)")
Row = dict[str, Any]


class Kind(NamedTuple):
    """A kind of arithmetic that the tests are run with."""

    kernel: str
    precision: str
    threads: int

    def __str__(self) -> str:
        return f"{self.kernel}, {self.precision}, {self.threads} thread{'s' * (self.threads > 1)}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the figures of each kind of arithmetic")
    parser.add_argument("--seeds", type=int, default=10, help="train with so many, from 0")
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--only", default="", help="of the tests, those that pytest's -k would choose")
    parser.add_argument("--json", type=Path, help="write all margins to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    options = parser.parse_args(arguments)
    kinds = [Kind(*kind) for kind in product(options.kernels, options.precisions, options.threads)]
    left_out = [kind for kind in kinds if kind.precision == "bf16" and kind.kernel in EMULATING]
    kinds = [kind for kind in kinds if kind not in left_out]
    for kind in left_out:
        console.print(f"{kind}: left out. bfloat16 is emulated there, up to a hundred times slower, and never chosen")
    chosen = ["-m", "learned", "--learned-seeds", str(options.seeds), *(["-k", options.only] if options.only else [])]
    number = sum("::" in line for line in pytest([*chosen, "--collect-only"], {}))
    if not number:
        raise SystemExit("there is no such test")
    started, broken, rows = time.monotonic(), list[str](), list[Row]()
    done = {kind: figures_file(options, kind).exists() for kind in kinds}
    with Tracker("tests", number * len(kinds), done=number * sum(done.values())) as tracker:
        for kind in kinds:
            file = figures_file(options, kind)
            if done[kind]:
                console.print(f"{kind}: kept from before ({file})")
            else:
                tracker.advance(0, note=str(kind))
                broken += measure(kind, file, chosen, tracker)
            rows += [row | kind._asdict() for row in json.loads(file.read_text())] if file.exists() else []
    found = summary(rows)
    result = {
        "margins": found,
        "broken": broken,
        "seeds": options.seeds,
        "kinds": [kind._asdict() for kind in kinds],
        "left_out": [kind._asdict() for kind in left_out],
        "kernels": {name: KERNELS[name] for name in options.kernels},
        "command": "python " + shlex.join(sys.argv),
        "minutes": round((time.monotonic() - started) / 60, 1),
        "environment": environment(torch.device("cpu")),
    }
    print(table(found))
    if options.json:
        write_json(options.json, result)
    if options.markdown:
        write_atomically(options.markdown, table(found) + "\n")
    missed = [entry for entry in found if not entry["holds"]]
    for line in broken:
        print(f"failed, so that its figures are lacking: {line}")
    if missed or broken:
        raise SystemExit(f"{len(missed)} of {len(found)} bounds missed, {len(broken)} tests failed otherwise")


def figures_file(options: argparse.Namespace, kind: Kind) -> Path:
    """Where the figures of a kind of arithmetic are kept, when it is finished."""
    only = "-" + re.sub(r"\W+", "_", options.only) if options.only else ""
    return options.output / f"{kind.kernel}-{kind.precision}-{kind.threads}-{options.seeds}_seeds{only}.json"


def measure(kind: Kind, file: Path, chosen: list[str], tracker: Tracker) -> list[str]:
    """Run the tests with a kind of arithmetic and write its figures; returns the tests that failed by other faults."""
    log = file.with_suffix(".jsonl")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    command = [*chosen, "-v", "--learned-precision", kind.precision, "--threads", str(kind.threads)]
    broken = []
    environment = KERNELS[kind.kernel] | {"OMP_NUM_THREADS": str(kind.threads)}
    for line in pytest([*command, "--learned-figures", str(log.absolute())], environment):
        if ended := ENDED.search(line):
            tracker.advance()
            if ended[1] != "PASSED":
                broken.append(f"{line.split()[0]} ({kind})")
    rows = read_log(log, lambda row: "figure" in row)[0]
    if not broken:  # or the next sweep would keep what is lacking
        write_json(file, rows)
        log.unlink(missing_ok=True)
    return broken


def pytest(options: list[str], environment: dict[str, str]) -> Iterator[str]:
    """What pytest says, line by line, as it says it."""
    command = [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            yield line
        if process.wait() not in (0, 1):  # 1: tests failed
            sys.stderr.write("".join(said[-30:]))
            raise SystemExit(f"pytest ended with {process.returncode}")
    finally:
        process.kill()


def summary(rows: list[Row]) -> list[Row]:
    """Each figure's bound, median and worst value, with where that was, and the worst of each kernel and precision."""
    together: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        together.setdefault((row["test"], row["case"], row["name"]), []).append(row)
    found = []
    for (test, case, name), same in sorted(together.items()):
        where = worst(same)
        entry: Row = {"test": test, "case": case, "name": name, "kind": where["kind"], "bound": where["bound"]}
        entry |= {"trainings": len(same), "median": statistics.median(row["figure"] for row in same)}
        entry |= {"worst": where["figure"], "holds": all(row["holds"] for row in same)}
        entry["worst_at"] = {key: where[key] for key in ("kernel", "precision", "threads", "seed")}
        of: dict[str, list[Row]] = {}
        for row in same:
            of.setdefault(f"{row['kernel']}, {row['precision']}", []).append(row)
        entry["worst_of"] = {kernel: worst(some)["figure"] for kernel, some in of.items()}
        found.append(entry)
    return found


def worst(same: list[Row]) -> Row:
    """Of the same figure, the one that comes nearest to its bound, or is farthest beyond it."""
    return (max if same[0]["kind"] == "at most" else min)(same, key=lambda row: row["figure"])


def table(found: list[Row]) -> str:
    """The figures beside their bounds, as a table in Markdown."""
    lines = [
        "| test | figure | has to be | median | worst | where | times |",
        "| --- | --- | --- | ---: | ---: | --- | ---: |",
    ]
    for entry in found:
        at = entry["worst_at"]
        where = f"{at['kernel']}, {at['precision']}, {at['threads']}" + (
            f", seed {at['seed']}" if at["seed"] is not None else ""
        )
        name = f"`{entry['test'].rpartition('::')[2]}`" + (f" ({entry['case']})" if entry["case"] else "")
        worst = f"{entry['worst']:.4g}" + ("" if entry["holds"] else " **missed**")
        lines.append(
            f"| {name} | {entry['name']} | {entry['kind']} {entry['bound']:.4g} | {entry['median']:.4g} | {worst} | "
            f"{where} | {entry['trainings']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

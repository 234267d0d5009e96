"""Try hostile input for as long as you like: the targets of `tests/test_fuzz.py`, each in a process of its own.

    python tools/fuzz.py --minutes 5                                   (of each target)
    python tools/fuzz.py --minutes 5 --target images prepared --output runs/fuzz
    python tools/fuzz.py --again runs/fuzz/images-1234                 (what is wrong with one that was kept)

An input is made from its number alone, so a number is all that there is to remember. What raises anything but a
`PixelBertError`, kills its process, takes too much time or memory, or does something outside of its folder is kept in
OUTPUT/TARGET-NUMBER. Exit status 1 if there is any.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fuzz_targets import TARGETS  # they lie beside the tests
from fuzzing import SECONDS, Fault, attempt, files_of, write_files

GRACE = 3 * SECONDS  # after which a process that does not even notice its alarm is killed
LIMIT = 20  # findings of a target; then something is wrong everywhere


class Finding(NamedTuple):
    """An input that does what none should."""

    target: str
    number: int
    what: str


def child(target: str, first: int, pipe: Connection) -> None:
    """Try one input after the other, and tell the number before and the outcome after."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)  # what is read may print a lot, and libtiff without asking Python
    os.dup2(nothing, 2)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "shared").mkdir()
        made = TARGETS[target](place / "shared")
        number = first
        while True:
            pipe.send((number, ""))
            try:
                verdict = attempt(made, made.spoiled(number), place / "input")
            except Fault as fault:
                verdict = f"fault: {fault}"
            pipe.send((number, verdict))
            number += 1


def fuzz(target: str, seconds: float, first: int) -> tuple[dict[str, int], list[Finding]]:
    """Try inputs of one target. A process that dies is replaced, and goes on behind the input that it died of."""
    counts = {"read": 0, "refused": 0}
    findings: list[Finding] = []
    number, end = first, time.monotonic() + seconds
    while time.monotonic() < end and len(findings) < LIMIT:
        context = multiprocessing.get_context("fork")  # what took long to import is there
        pipe, theirs = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(target, number, theirs), daemon=True)
        process.start()
        theirs.close()
        verdict = "started"
        try:
            while time.monotonic() < end and len(findings) < LIMIT:
                if not pipe.poll(GRACE):
                    findings.append(Finding(target, number, f"hangs: no answer in {GRACE} seconds"))
                    break
                number, verdict = pipe.recv()
                if verdict in counts:
                    counts[verdict] += 1
                elif verdict:
                    findings.append(Finding(target, number, verdict.removeprefix("fault: ")))
        except EOFError:
            process.join()
            code = process.exitcode or 0
            died = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            findings.append(Finding(target, number, f"its process dies: {died}"))
        process.kill()
        process.join()
        number += 1
    return counts, findings


def keep(findings: list[Finding], output: Path) -> None:
    """Write each input with what it does."""
    for target, number, what in findings:
        with tempfile.TemporaryDirectory() as shared:
            folder = output / f"{target}-{number}"
            shutil.rmtree(folder, ignore_errors=True)
            write_files(TARGETS[target](Path(shared)).spoiled(number), folder / "input")
            (folder / "what.txt").write_text(what + "\n", errors="backslashreplace")


def again(kept: Path) -> None:
    """Try an input that was kept, in this process, with its traceback."""
    target = kept.name.rpartition("-")[0]
    with tempfile.TemporaryDirectory() as name:
        shared = Path(name, "shared")
        shared.mkdir()
        print(attempt(TARGETS[target](shared), files_of(kept / "input"), Path(name, "input")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1, help="for each target")
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--first", type=int, default=1_000_000, help="number of the first input; tests try small ones")
    parser.add_argument("--output", type=Path, default=Path("runs/fuzz"), help="folder for what is found")
    parser.add_argument("--again", type=Path, help="an input that was kept")
    arguments = parser.parse_args()
    if arguments.again:
        again(arguments.again)
        return
    found = 0
    print(f"{'target':18}{'read':>9}{'refused':>9}{'findings':>10}", flush=True)
    for target in arguments.target:
        counts, findings = fuzz(target, 60 * arguments.minutes, arguments.first)
        keep(findings, arguments.output)
        found += len(findings)
        print(f"{target:18}{counts['read']:9,}{counts['refused']:9,}{len(findings):10,}", flush=True)
        for finding in findings:
            print(f"    {arguments.output}/{target}-{finding.number}: {finding.what[:300]}", flush=True)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()

"""Do to training runs what machines do, for real, and compare their ends with that of a run that met no fault.

    make chaos            (python tools/chaos.py --output runs/chaos --json runs/chaos/chaos.json)

One run is killed with SIGKILL again and again at random moments, in start, step, measurement and checkpoint, until it
has been killed as often as asked for, and then runs to its end. Beside it, others are stopped by signals, lose one of
two processes or one of two machines, go on with another number of processes, have a clock that jumps, or a folder
that becomes read-only. What is compared: every logged loss, every measurement and the final weights, bit by bit.
(Other faults, each a quick test: tests/test_faults.py.)
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: this process forks, and sums are to be made in one order

import argparse
import json
import multiprocessing
import platform
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

import pixelbert.train.loop  # noqa: F401  imported once, so that a run begins at once in a fork
from pixelbert import cli
from pixelbert.files import write_json
from pixelbert.terminal import program
from pixelbert.train.processes import OWN_STORE

RECIPE: dict[str, Any] = {
    "model": {
        "backbone": "resnet14_small",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "dropout": 0.1,
        "vocab_size": 200,
    },
    "task": {"pixels": 3},
    "data": {
        "train": ["scenes:0-60"],
        "validation": ["scenes:100-104"],
        "shortest_edge": 128,
        "longest_edge": 128,
        "max_length": 24,
        "workers": 1,
    },
    "optimizer": {"cnn_lr": 0.01, "lr": 0.001, "warmup_steps": 5, "clip": 1.0},
    "batch_size": 16,
    "micro_batch_size": 8,
    "precision": "fp32",
    "log_every": 1,
    "checkpoint_every": 2,
    "evaluate_every": 7,
    "evaluate_examples": 8,
    "trackers": [],
}
LONG, SHORT = {"epochs": 10.0}, {"epochs": 2.0}  # 260 steps and 52
# Dropout's draws belong to a process, so runs on different numbers of processes are the same without it alone.
PLAIN = SHORT | {"model": RECIPE["model"] | {"dropout": 0.0}}
ON_CPU = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
NOBODY = 65534
NEW_INTERPRETER_EVERY = 10
fork = multiprocessing.get_context("fork")


class Forked:
    """The train command in a fork of this process, as a subprocess.Popen: it need not import everything again."""

    def __init__(self, arguments: list[str], log: Path, before: Callable[[], None] | None) -> None:
        self._process = fork.Process(target=self._run, args=(arguments, log, before))
        self._process.start()
        self.pid = self._process.pid or 0

    @staticmethod
    def _run(arguments: list[str], log: Path, before: Callable[[], None] | None) -> None:
        os.setsid()
        with log.open("a") as stream:
            for number in (1, 2):
                os.dup2(stream.fileno(), number)
        os.environ.update(ON_CPU)
        if before:
            before()
        cli.main(arguments)

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"process {self.pid} goes on after {timeout} s")
        return self._process.exitcode


Started = Forked | subprocess.Popen[str]


class Chaos:
    """A folder of runs, and what became of each.

    Args:
        kills: how often the first run is killed.
    """

    def __init__(self, folder: Path, kills: int, seed: int) -> None:
        self.folder, self.kills, self.random = folder, kills, random.Random(seed)
        self.rows: list[dict[str, Any]] = []

    def arguments(self, name: str, changes: dict[str, Any]) -> list[str]:
        recipe = self.folder / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump(RECIPE | LONG | changes))
        return ["train", str(recipe), "--output", str(self.folder / name)]

    def start(self, name: str, changes: dict[str, Any] = {}, before: Callable[[], None] | None = None) -> Started:  # noqa: B006
        return Forked(self.arguments(name, changes), self.folder / f"{name}.log", before)

    def launch(self, name: str, changes: dict[str, Any] = {}, torchrun: tuple[str, ...] = ()) -> Started:  # noqa: B006
        """In a new interpreter; through torchrun, if options for it are given."""
        launcher = ["-m", "torch.distributed.run", *torchrun] if torchrun else []
        command = [sys.executable, *launcher, "-m", "pixelbert", *self.arguments(name, changes)]
        log = (self.folder / f"{name}.log").open("a")
        environment = os.environ | ON_CPU | {OWN_STORE: "1"}
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True, start_new_session=True)

    def finish(self, name: str, process: Started, timeout: float = 600) -> None:
        if code := process.wait(timeout):
            raise SystemExit(f"{name} ended with {code}: see {self.folder / name}.log")

    def steps(self, name: str) -> int:
        file = self.folder / name / "metrics.jsonl"
        return file.read_text().count("\n") if file.exists() else 0

    def until(self, name: str, steps: int, process: Started, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while self.steps(name) < steps and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)

    def logged(self, name: str) -> list[Any]:
        """Losses and measurements, without times."""
        lines = [
            json.loads(line)
            for file in ("metrics.jsonl", "validation.jsonl")
            for line in (self.folder / name / file).read_text().splitlines()
        ]
        return [{key: value for key, value in line.items() if key != "pairs_per_second"} for line in lines]

    def weights(self, name: str) -> Path:
        return self.folder / name / "final" / "model.safetensors"

    def compare(self, name: str, whole: str, *, to_the_bit: bool = True) -> str:
        """What is lost."""
        if to_the_bit:
            same = self.weights(name).read_bytes() == self.weights(whole).read_bytes()
            return "nothing: the same bits" if same and self.logged(name) == self.logged(whole) else "NOT THE SAME"
        mine, theirs = load_file(self.weights(name)), load_file(self.weights(whole))
        furthest = max((mine[key] - theirs[key]).abs().max().item() for key in theirs)
        if furthest > 1e-5:
            return f"NOT THE SAME ({furthest:.0e})"
        return f"nothing: weights within {furthest:.0e}" if furthest else "nothing: the same weights"

    def tell(self, fault: str, times: int, happened: str, lost: str) -> None:
        self.rows.append({"fault": fault, "times": times, "happened": happened, "lost": lost})
        print(f"{fault}, {times} times: {happened}; lost: {lost}", flush=True)

    # --- the faults ---

    def killed_at_random(self) -> None:
        """SIGKILL to the whole process group, again and again, at any moment between the start and the end."""
        where: Counter[str] = Counter()
        for kill in range(self.kills):
            process = (self.launch if kill % NEW_INTERPRETER_EVERY == 0 else self.start)("killed")
            # By the clock it would mostly die before its first new step; most are killed at some time after one.
            if self.random.random() < 0.8:
                self.until("killed", self.steps("killed") + 1, process, 60)
            else:
                time.sleep(self.random.uniform(0, 3))
            time.sleep(self.random.uniform(0, 0.4))
            if process.poll() is None:
                where[self.moment("killed")] += 1
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            elif (self.folder / "killed" / "final").exists():
                raise SystemExit(f"the run ended after {kill} kills: give it more epochs")
            print(f"kill {kill + 1} of {self.kills}: {self.steps('killed')} steps", flush=True)
        self.finish("killed", self.start("killed"))
        said = ", ".join(f"{count} {moment}" for moment, count in where.most_common())
        lost = self.compare("killed", "whole")
        self.tell("killed (SIGKILL) at random moments of one run", sum(where.values()), said, lost)

    def moment(self, name: str) -> str:
        """What a run is at."""
        folder, steps = self.folder / name, self.steps(name)
        measured = folder / "validation.jsonl"
        measurements = measured.read_text().count("\n") if measured.exists() else 0
        if steps // RECIPE["evaluate_every"] > measurements:
            return "while measuring"
        if list((folder / "checkpoints").glob("*.partial")):
            return "while saving"
        return "in or between steps" if steps else "before the first step"

    def signalled(self) -> None:
        for asked in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            name = asked.name.lower()
            process = self.launch(name, SHORT)
            self.until(name, 5, process)
            sent = time.monotonic()
            os.kill(process.pid, asked)
            code, seconds = process.wait(60), time.monotonic() - sent
            self.finish(name, self.start(name, SHORT))
            self.tell(asked.name, 1, f"saved and ended in {seconds:.1f} s with {code}", self.compare(name, "short"))

    def one_of_two(self) -> None:
        """One of two processes is killed, again and again; torchrun starts both again."""
        torchrun = ("--standalone", "--nproc-per-node=2", "--max-restarts=3")
        self.finish("two", self.launch("two", SHORT, torchrun))
        name, times = "one_of_two", 3
        process = self.launch(name, SHORT, torchrun)
        for n in range(times):
            self.until(name, self.steps(name) + 8, process)
            os.kill(children(process.pid)[n % 2], signal.SIGKILL)
            time.sleep(3)
        self.finish(name, process)
        said = "torchrun stopped the other and started both again"
        self.tell("one of two processes killed", times, said, self.compare(name, "two"))

    def one_of_two_machines(self) -> None:
        """Two launchers that meet over the network, a process each; all of one machine is killed, and comes back."""
        name = "machines"
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        meet = ("--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d")
        meet = (*meet, f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=chaos", "--local-addr=127.0.0.1")
        meet = (*meet, "--rdzv-conf=last_call_timeout=2")
        first = self.launch(name, PLAIN, meet)
        while not listens(port):  # so that this one has the meeting point, without which no job goes on
            time.sleep(0.1)
        second = self.launch(name, PLAIN, meet)
        self.until(name, 8, first)
        os.killpg(second.pid, signal.SIGKILL)
        for child in children(second.pid):
            os.kill(child, signal.SIGKILL)
        second = self.launch(name, PLAIN, meet)
        self.finish(name, first)
        second.wait(60)
        said = "the other waited for it, and both went on"
        lost = self.compare(name, "plain", to_the_bit=False)
        self.tell("one of two machines dies and comes back", 1, said, lost)

    def another_number(self) -> None:
        """A run on one process that goes on with two, and the other way round."""
        two = ("--standalone", "--nproc-per-node=2")
        for name, layouts in (("one_then_two", ((), two)), ("two_then_one", (two, ()))):
            process = self.launch(name, PLAIN, layouts[0])
            self.until(name, 5, process)
            for pid in (*children(process.pid), process.pid):
                os.kill(pid, signal.SIGKILL)
            process.wait()
            time.sleep(1)
            self.finish(name, self.launch(name, PLAIN, layouts[1]))
            said = f"killed on {2 if layouts[0] else 1} process(es), went on with {2 if layouts[1] else 1}"
            self.tell("another number of processes", 1, said, self.compare(name, "plain", to_the_bit=False))

    def two_on_one_folder(self) -> None:
        process = self.start("shared", SHORT)
        self.until("shared", 2, process)
        code = self.start("shared", SHORT).wait(120)
        said = re.findall(r"another process is training", (self.folder / "shared.log").read_text())
        process.wait(300)
        refused = f"the second was refused (exit status {code})" if said and code else "NOT REFUSED"
        self.tell("a second run on the same folder", 1, refused, self.compare("shared", "short"))

    def clock_jumps(self) -> None:
        """The time of day that a run sees is anything within a day of the true one, at every look."""
        self.finish("clock", self.start("clock", SHORT, before=wild_clock))
        said = "the run went on; only TensorBoard's and the log's times are wrong"
        self.tell("the clock jumps back and forth by up to a day", 1, said, self.compare("clock", "short"))

    def read_only(self) -> None:
        """Nothing can be written to the run's folder any more. (Root may write anywhere, so it is nobody's run.)"""
        name, root = "read_only", os.geteuid() == 0
        folder = self.folder / name
        process = self.start(name, SHORT, before=become_nobody(folder) if root else None)
        self.until(name, 5, process)
        paths = [folder, *(path for path in folder.rglob("*") if not path.name.startswith("."))]
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        code = process.wait(60)
        last = (self.folder / f"{name}.log").read_text().strip().splitlines()[-1]
        for path in paths:
            if path.exists():
                path.chmod(0o777 if path.is_dir() else 0o666)
        self.finish(name, self.start(name, SHORT))
        said = f"an error that names the file, exit status {code}; writable again, the same command went on"
        if "Permission denied" not in last or code != 2:
            said = f"NOT TOLD: {last}"
        self.tell("the folder becomes read-only", 1, said, self.compare(name, "short"))


def listens(port: int) -> bool:
    """Whether a process on this machine does, at this port."""
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in found.stdout.split()]


def wild_clock() -> None:
    """Have this process see a time of day that jumps."""
    true, jump = time.time, random.Random(0)
    time.time = lambda: true() + jump.uniform(-86400, 86400)


def become_nobody(folder: Path) -> Callable[[], None]:
    """Go on without root's rights, in a folder that is nobody's."""

    def change() -> None:
        "".encode("utf-8-sig")  # loaded at first use, from a Python that may be root's alone
        folder.mkdir()
        os.chown(folder, NOBODY, NOBODY)
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)

    return change


def strand(folder: Path, kills: int, seed: int, faults: list[str]) -> list[dict[str, Any]]:
    """Some of the faults, one after another."""
    chaos = Chaos(folder, kills, seed)
    for fault in faults:
        getattr(chaos, fault)()
    return chaos.rows


def main() -> None:
    # Two strands side by side, about as long as each other.
    strands = [
        ["killed_at_random", "clock_jumps", "read_only", "two_on_one_folder"],
        ["signalled", "one_of_two", "one_of_two_machines", "another_number"],
    ]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the runs; one of an earlier time is deleted"
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--faults", nargs="*", choices=[name for names in strands for name in names])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = options.output.absolute()
    if folder.exists():
        if not (folder / "whole.yaml").exists():
            raise SystemExit(f"{folder} is not a folder of this tool's")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    started = time.monotonic()
    chaos = Chaos(folder, options.kills, options.seed)
    undisturbed = {name: chaos.start(name, of) for name, of in (("whole", LONG), ("short", SHORT), ("plain", PLAIN))}
    for name, process in undisturbed.items():
        chaos.finish(name, process)
    chosen = [[fault for fault in faults if not options.faults or fault in options.faults] for faults in strands]
    with ProcessPoolExecutor(len(strands), fork) as pool:
        found = [pool.submit(strand, folder, options.kills, options.seed, faults) for faults in chosen]
        rows = [row for future in found for row in future.result()]
    result = {
        "faults": rows,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}",
        "command": "python " + " ".join(sys.argv),
    }
    print(f"{result['minutes']} minutes")
    if options.json:
        write_json(options.json, result)
    if any("NOT" in row["lost"] + row["happened"] for row in rows):
        raise SystemExit("something was lost")


if __name__ == "__main__":
    with program("chaos"):
        main()

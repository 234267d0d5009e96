"""Do to a training run what machines do, for real, and compare its end with that of a run that met no fault.

    make chaos            (python tools/chaos.py --output runs/chaos --json runs/chaos/chaos.json)

One run is killed with SIGKILL again and again at random moments, in start, step, checkpoint, measurement and end,
until it has been killed as often as asked for and then runs to its end. Others are stopped by signals, or run as two
processes of which one is killed, or go on with another number of processes. What is compared: every logged loss, every
measurement and the final weights, bit by bit. (Other faults, each a quick test: tests/test_faults.py.)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from pixelbert.files import write_json

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


class Chaos:
    """A folder of runs, and what became of each.

    Args:
        kills: how often the first run is killed.
    """

    def __init__(self, folder: Path, kills: int, seed: int) -> None:
        self.folder, self.kills, self.random = folder, kills, random.Random(seed)
        self.rows: list[dict[str, Any]] = []
        folder.mkdir(parents=True)

    def command(self, name: str, processes: int = 1, **changes: Any) -> list[str]:
        recipe = self.folder / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump(RECIPE | {"epochs": 6.0} | changes))
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        start = [sys.executable, *(launcher if processes > 1 else []), "-m", "pixelbert", "train"]
        return [*start, str(recipe), "--output", str(self.folder / name)]

    def start(self, name: str, **options: Any) -> subprocess.Popen[str]:
        log = (self.folder / f"{name}.log").open("a")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        command = self.command(name, **options)
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True, start_new_session=True)

    def finish(self, name: str, **options: Any) -> None:
        process = self.start(name, **options)
        if process.wait(timeout=600):
            raise SystemExit(f"{name} ended with {process.returncode}: see {self.folder / name}.log")

    def steps(self, name: str) -> int:
        file = self.folder / name / "metrics.jsonl"
        return file.read_text().count("\n") if file.exists() else 0

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
        return f"nothing: weights within {furthest:.0e}" if furthest <= 1e-5 else f"NOT THE SAME ({furthest:.0e})"

    def tell(self, fault: str, times: int, happened: str, lost: str) -> None:
        self.rows.append({"fault": fault, "times": times, "happened": happened, "lost": lost})
        print(f"{fault}, {times} times: {happened}; lost: {lost}", flush=True)

    # --- the faults ---

    def killed_at_random(self) -> None:
        """SIGKILL to the whole process group, again and again, at any moment between the start and the end."""
        steps = self.steps("whole")
        where: Counter[str] = Counter()
        for kill in range(self.kills):
            process = self.start("killed")
            # By the clock it would mostly die before its first new step; most are killed at some time after one.
            goal = self.steps("killed") + 1 if self.random.random() < 0.8 else 10**9
            deadline = time.monotonic() + (60 if goal < 10**9 else self.random.uniform(0.5, 20))
            while time.monotonic() < deadline and process.poll() is None and self.steps("killed") < goal:
                time.sleep(0.01)
            time.sleep(self.random.uniform(0, 0.4))
            if process.poll() is None:
                where[self.moment("killed")] += 1
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            elif (self.folder / "killed" / "final").exists():
                raise SystemExit(f"the run ended after {kill} kills: give it more epochs")
            print(f"kill {kill + 1} of {self.kills}: {self.steps('killed')} of {steps} steps", flush=True)
        self.finish("killed")
        said = ", ".join(f"{count} {moment}" for moment, count in where.most_common())
        self.tell(
            "killed (SIGKILL) at random moments of one run", sum(where.values()), said, self.compare("killed", "whole")
        )

    def moment(self, name: str) -> str:
        """What a run is at."""
        folder = self.folder / name
        if list((folder / "checkpoints").glob("*.partial")):
            return "while saving"
        return "between steps or in one" if self.steps(name) else "before the first step"

    def signalled(self) -> None:
        for asked in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            name = asked.name.lower()
            process = self.start(name)
            while self.steps(name) < 5:
                time.sleep(0.05)
            sent = time.monotonic()
            process.send_signal(asked)
            code = process.wait(60)
            seconds = time.monotonic() - sent
            self.finish(name)
            self.tell(
                f"{asked.name}", 1, f"saved and ended in {seconds:.1f} s with {code}", self.compare(name, "whole")
            )

    def one_of_two(self) -> None:
        """One of two processes is killed; the launcher stops the other, and the same command goes on."""
        self.finish("two", processes=2, epochs=2.0)
        name, times = "one_of_two", 3
        for n in range(times):
            goal = self.steps(name) + 4
            process = self.start(name, processes=2, epochs=2.0)
            while self.steps(name) < goal and process.poll() is None:
                time.sleep(0.05)
            found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
            os.kill(int(found.stdout.split()[n % 2]), signal.SIGKILL)
            process.wait(120)
        self.finish(name, processes=2, epochs=2.0)
        said = "the other was stopped, and the same command went on"
        self.tell("one of two processes killed", times, said, self.compare(name, "two"))

    def another_number(self) -> None:
        """A run on one process that goes on with two, and the other way round."""
        self.finish("short", epochs=2.0, model=RECIPE["model"] | {"dropout": 0.0})
        for name, layouts in (("one_then_two", (1, 2)), ("two_then_one", (2, 1))):
            changes: dict[str, Any] = {"epochs": 2.0, "model": RECIPE["model"] | {"dropout": 0.0}}
            process = self.start(name, processes=layouts[0], **changes)
            while self.steps(name) < 5:
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            time.sleep(1)
            self.finish(name, processes=layouts[1], **changes)
            said = f"killed on {layouts[0]} process(es), went on with {layouts[1]}"
            self.tell("another number of processes", 1, said, self.compare(name, "short", to_the_bit=False))

    def two_on_one_folder(self) -> None:
        process = self.start("shared")
        while self.steps("shared") < 2:
            time.sleep(0.05)
        second = self.start("shared")
        code = second.wait(120)
        said = re.findall(r"another process is training", (self.folder / "shared.log").read_text())
        process.wait(300)
        refused = f"the second was refused (exit status {code})" if said and code else "NOT REFUSED"
        self.tell("a second run on the same folder", 1, refused, self.compare("shared", "whole"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the runs; one of an earlier time is deleted"
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--faults", nargs="*", help="some of them, by the names of the functions here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.output.exists():
        if not (options.output / "whole.yaml").exists():
            raise SystemExit(f"{options.output} is not a folder of this tool's")
        shutil.rmtree(options.output)
    started = time.monotonic()
    chaos = Chaos(options.output, options.kills, options.seed)
    faults: list[Callable[[], None]] = [
        chaos.killed_at_random,
        chaos.signalled,
        chaos.one_of_two,
        chaos.another_number,
        chaos.two_on_one_folder,
    ]
    chaos.finish("whole")
    for fault in faults:
        if not options.faults or fault.__name__ in options.faults:
            fault()
    result = {
        "faults": chaos.rows,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}",
        "command": "python " + " ".join(sys.argv),
    }
    if options.json:
        write_json(options.json, result)
    if any("NOT" in row["lost"] + row["happened"] for row in chaos.rows):
        raise SystemExit("something was lost")


if __name__ == "__main__":
    main()

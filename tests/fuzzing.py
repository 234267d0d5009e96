"""Hostile input, the same each time: how a sound one is spoiled, and what must hold for whoever reads it.

An input is a few files. Whatever they hold, the reader gives a result or one `PixelBertError` that names the file, in
bounded time and memory, and does nothing else: it writes nowhere outside, runs nothing, asks nobody on the network.
`fuzz_targets.py` lists the targets; `test_fuzz.py` tries some inputs of each, `tools/fuzz.py` as many as you like.
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any, ClassVar
from unittest.mock import patch

import datasets
import yaml

from pixelbert import PixelBertError, cli

Files = dict[str, bytes]  # by name, which may have folders in it

SECONDS = 20  # that one input may take; a busy machine is slow, a hang is for ever
DEEP = "\x00deep"  # stands for brackets in thousands, which json.dumps cannot write
ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 10**30, -(10**18), 1e308, -0.5, float("nan"), float("inf")),
    *("", " ", "\x00", "\ud800", "../../../out", "/etc/passwd", "a" * 9999, "[/b]", "²", "{{", "null", "1", DEEP),
    *([], {}, [[1]], [None], {"": 1}, {"id": []}, [0] * 999),
]


def spoil(name: str, data: bytes, draw: Random) -> bytes:
    """One change to a file, by the form that its name tells."""
    suffix = Path(name).suffix
    if draw.random() < 0.7:
        if suffix in (".json", ".jsonl", ".yaml"):
            return spoil_text(data, suffix, draw)
        if suffix == ".safetensors":
            return spoil_header(data, draw)
        if suffix == ".npy":
            return spoil_array(data, draw)
    return spoil_bytes(data, draw)


def spoil_bytes(data: bytes, draw: Random) -> bytes:
    """Some bytes turned, written over, cut out, put in or repeated; early ones more often, where headers are."""
    changed = bytearray(data or b"\0")
    at = draw.randrange(len(changed) if draw.random() < 0.5 else min(len(changed), 200))
    match draw.randrange(8):
        case 0:
            changed[at] ^= 1 << draw.randrange(8)
        case 1:
            changed[at] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
        case 2:
            changed[at : at + 1] = draw.choice((b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\n", b"\xff", b"a"))
        case 3:
            del changed[at : at + draw.choice((1, 4, 8, 100))]
        case 4:
            changed[at:at] = draw.randbytes(draw.choice((1, 4, 9)))
        case 5:  # an enormous number, where a size may stand
            size = draw.choice((2, 4, 8))
            number = draw.choice((0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 4)))
            changed[at : at + size] = number.to_bytes(size, draw.choice(("little", "big")))
        case 6:
            start = draw.randrange(len(changed))
            changed[at:at] = changed[start : start + draw.choice((4, 50, 500))] * draw.choice((1, 2, 20))
        case 7:
            del changed[at:]
    return bytes(changed)


def spoil_value(value: Any, draw: Random) -> Any:
    """One place in some JSON: replaced by another type, removed, doubled, renamed, wrapped."""
    if isinstance(value, dict | list) and value and draw.random() < 0.85:
        key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
        action = draw.random()
        if action < 0.1:
            del value[key]
        elif action < 0.2 and isinstance(value, list):
            value.append(deepcopy(value[key]))
        elif action < 0.2 and isinstance(value, dict):
            value[draw.choice(("", "../../../out", "class_path", "\ud800", f"{key} "))] = deepcopy(value[key])
        else:
            value[key] = spoil_value(value[key], draw)
        return value
    return [value] if draw.random() < 0.1 else deepcopy(draw.choice(ODD))


def spoil_text(data: bytes, suffix: str, draw: Random) -> bytes:
    """JSON, JSON lines or YAML with one place changed; as bytes if it is none of them any more."""
    try:
        if suffix == ".yaml":
            value = yaml.safe_load(data)
        elif suffix == ".jsonl":
            value = [json.loads(line) for line in data.splitlines()]
        else:
            value = json.loads(data)
        value = spoil_value(value, draw)
        if suffix == ".yaml":
            return yaml.safe_dump(value).encode()
        lines = value if suffix == ".jsonl" and isinstance(value, list) else [value]
        text = "\n".join(map(json.dumps, lines))
    except (ValueError, RecursionError, AttributeError, yaml.YAMLError):
        return spoil_bytes(data, draw)
    depth = draw.choice((50, 990, 100_000))
    return text.replace(json.dumps(DEEP), "[" * depth + "]" * depth).encode()


def spoil_header(data: bytes, draw: Random) -> bytes:
    """safetensors whose header, JSON behind its length, says something else."""
    try:
        (size,) = struct.unpack("<Q", data[:8])
        header = spoil_text(data[8 : 8 + size], ".json", draw)
    except struct.error:
        return spoil_bytes(data, draw)
    return struct.pack("<Q", draw.choice((len(header),) * 9 + (2**63,))) + header + data[8 + size :]


def spoil_array(data: bytes, draw: Random) -> bytes:
    """.npy whose header says something else."""
    descr = draw.choice(("<f4", "<f8", ">f4", "|O", "<U99999999", "<i8", "|S0", "<U4", "|b1", "<c8", "|V8", "?", "(("))
    shape = draw.choice(("()", "(0,)", "(0, 0)", "(4, 2)", "(2, 4)", "(-1, 2)", "(10**9,)", "(4000000000, 4000000000)"))
    order = draw.choice(("False", "True", "0"))
    header = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}"
    header = draw.choice((header,) * 5 + ("-" * 9000 + "1", "(" * 9000, header[:-3], "'", "{'descr': 1}"))
    version = draw.choice((1, 1, 1, 2, 3, 9))
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes((version, 0)) + length + header.encode() + data[128:]


class Target:
    """Something that reads input from elsewhere.

    Args:
        shared: an empty folder, for what all inputs have in common.

    Attributes:
        megabytes: that one input may take, beside what was in use before.
        names_file: whether the message must name the folder of the input.
        inputs: how many `test_fuzz.py` tries.
    """

    megabytes: ClassVar[int] = 300
    names_file: ClassVar[bool] = True
    inputs: ClassVar[int] = 60

    def __init__(self, shared: Path) -> None:
        self.shared = shared

    def sound(self, draw: Random) -> Files:
        """An input as it should be."""
        raise NotImplementedError

    def made(self, draw: Random) -> Files | None:
        """One that is hostile by design, which no change of a sound one would give; a quarter of the inputs."""
        return None

    def finish(self, files: Files, draw: Random) -> Files:
        """What a spoiled input needs to get past the first check, such as checksums that fit again."""
        return files

    def read(self, folder: Path) -> None:
        """What the program does with the input in `folder`. It may write in `folder` too."""
        raise NotImplementedError

    def spoiled(self, number: int) -> Files:
        """The hostile input of that number, always the same."""
        draw = Random(number)
        if number % 4 == 0 and (made := self.made(draw)) is not None:
            return made
        files = self.sound(draw)
        for _ in range(draw.choice((1, 1, 2, 3, 6))):
            name = draw.choice(sorted(files))
            files[name] = spoil(name, files[name], draw)
        return self.finish(files, draw)


class Fault(AssertionError):
    """What must not happen, and did."""


def attempt(target: Target, files: Files, place: Path) -> str:
    """Let the target read an input, in a folder below `place`.

    Returns:
        "read" or "refused".

    Raises:
        Fault: anything but a result or a `PixelBertError` that names the file; too much time or memory; something
            written outside of the folder; something run.
    """
    shutil.rmtree(place, ignore_errors=True)
    folder = place / "a" / "b" / "input"  # so that ../../../out is still seen
    write_files(files, folder)
    verdict = "read"
    with watched(folder, target) as seen:
        try:
            target.read(folder)
        except PixelBertError as error:
            verdict = "refused"
            if target.names_file and str(folder) not in str(error):
                raise Fault(f"the message names no file: {error}") from error
        except Exception as error:
            raise Fault(f"{type(error).__name__}: {error}") from error
    if seen:
        raise Fault("; ".join(dict.fromkeys(seen)))
    return verdict


def write_files(files: Files, folder: Path) -> None:
    """Write an input."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def command(folder: Path, *arguments: str) -> None:
    """Run a command as its user would. What it prints when it exits with status 2 is raised as a PixelBertError."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")  # as a terminal takes it
    complaint = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(complaint):
        try:
            cli.main(arguments)
        except SystemExit as end:
            if end.code == 2:
                raise PixelBertError(complaint.getvalue()) from None
            if end.code:
                raise Fault(f"exit status {end.code}: {complaint.getvalue()}") from None


def files_of(folder: Path) -> Files:
    """What lies in a folder, as an input."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def as_lines(rows: list[Any]) -> bytes:
    return b"\n".join(map(as_json, rows))


@contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """What Hugging Face's `datasets` keeps, in the input's own folder."""
    with patch.object(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache")):
        yield


# --- Watching


class TooSlowError(BaseException):
    """Not an Exception: nobody on the way should take it for an error of the input."""


_watched: list[tuple[tuple[str, ...], list[str]]] = []  # where writing is allowed, and what was seen otherwise
WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree"}
RUNS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "webbrowser.open", "pickle.find_class"}
NETWORK = {"socket.connect", "socket.getaddrinfo"}


def _audit(event: str, args: tuple[Any, ...]) -> None:
    """Python tells its audit hooks, which stay for ever, of whatever it opens, removes, starts or runs."""
    if not _watched:
        return
    allowed, seen = _watched[-1]
    if event == "open":
        path, _, flags = args
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        if writes and isinstance(path, str | bytes | Path) and not _inside(path, allowed):
            seen.append(f"writes {os.fsdecode(path)}")
    elif event in WRITES:
        # Names without a folder are below one that is open already, in a shutil.rmtree that was told as well.
        path = os.fsdecode(args[0]) if isinstance(args[0], str | bytes | Path) else ""
        if os.path.dirname(path) and not _inside(path, allowed):  # noqa: PTH120
            seen.append(f"{event} {path}")
    elif event in RUNS:
        seen.append(f"{event} {args[:2]}")
    elif event in NETWORK:
        seen.append(f"asks the network: {args[:2]}")
    elif event == "exec" and _inside(getattr(args[0], "co_filename", ""), allowed[:1]):
        seen.append(f"runs {args[0].co_filename}")


def _inside(path: str | bytes | Path, allowed: Sequence[str]) -> bool:
    return os.path.realpath(os.fsdecode(path)).startswith((*allowed, "/dev/null", "/proc/self"))


sys.addaudithook(_audit)


@contextmanager
def watched(folder: Path, target: Target) -> Iterator[list[str]]:
    """Notes what is done outside of the folder; more than the time or the memory is a `Fault`."""
    place, megabytes = folder.parents[2], target.megabytes
    seen: list[str] = []
    allowed = (os.path.realpath(folder), os.path.realpath(target.shared))
    before = _memory("VmRSS")
    limit = resource.getrlimit(resource.RLIMIT_DATA)
    # So that an absurd size fails on a large machine too. Twice: what was allocated and never touched costs nothing.
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (_memory("VmData") + 2 * megabytes * 2**20 + 2**29, limit[1]))
    _forget_peak()
    alarm = signal.signal(signal.SIGALRM, _too_slow)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _watched.append((allowed, seen))
    try:
        yield seen
    except TooSlowError as error:
        raise Fault(f"takes more than {SECONDS} seconds") from error
    finally:
        _watched.pop()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        resource.setrlimit(resource.RLIMIT_DATA, limit)
    grown = (_memory("VmHWM") - before) >> 20
    if grown > megabytes:
        seen.append(f"takes {grown} MB")
    outside = [path for path in place.rglob("*") if folder not in (path, *path.parents) and path not in folder.parents]
    seen += [f"leaves {path}" for path in outside]


def _too_slow(*_: Any) -> None:
    raise TooSlowError


def _forget_peak() -> None:
    """Linux then counts the peak from here on; elsewhere memory is not looked at."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _memory(what: str) -> int:
    """Bytes of this process, by a name of Linux's."""
    if sys.platform != "linux":
        return 0
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{what}:")[1].split()[0]) << 10

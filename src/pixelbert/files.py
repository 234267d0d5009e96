"""Small files read and written with care: errors name the file and the place, and nothing is left half written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from filelock import FileLock, Timeout

from pixelbert.errors import PixelBertError

SUMS = "SHA256SUMS"  # in a folder: the checksums of its files


def write_atomically(file: Path, text: str) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the new, never a part."""
    aside = file.with_name(file.name + ".partial")
    with naming(aside), aside.open("w", encoding="utf-8", newline="\n") as f:  # the same bytes on every system
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    aside.replace(file)
    flush(file.parent)


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Have the error of a disk that is full say in which file: writing, unlike opening, does not tell."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(file)
        raise


def flush(path: Path) -> None:
    """Have a file, or what was renamed in a folder, survive a power cut."""
    windows = os.name == "nt"  # which flushes no folders, and files only for who may write
    if windows and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(aside: Path, target: Path) -> None:
    """Flush a folder's files to disk and give it its name: it appears whole or not at all."""
    for path in (*aside.rglob("*"), aside):
        flush(path)
    aside.rename(target)
    flush(target.parent)


@contextmanager
def exclusive(lock: Path, busy: str) -> Iterator[None]:
    """Hold a lock on this file, which is made if need be and stays. It ends with the process, however that ends;
    processes forked from it (those that load data) have no part in it.

    Args:
        busy: the message of the error if another process holds it.

    Raises:
        PixelBertError: another process holds it, or the file cannot be made.
    """
    held = FileLock(lock, timeout=0)
    try:
        held.acquire()
    except Timeout:
        raise PixelBertError(busy) from None
    except OSError as error:
        raise PixelBertError(f"{lock} cannot be written ({error.strerror or error}): check the folder") from error
    try:
        yield
    finally:
        held.release()


class Log(NamedTuple):
    """A JSON-lines file that grows while a run goes on.

    Attributes:
        rows: its objects, up to the first damaged line.
        whole: bytes of these lines.
        damaged: the number of the first line, from 1, that ends and is no such object; None if there is none. A last
            line without a line break, which a kill leaves, is no damage: it is left out.
        behind: the objects of sound lines behind it.
    """

    rows: list[dict[str, Any]]
    whole: int
    damaged: int | None
    behind: list[dict[str, Any]]


def log_lines(
    file: Path, is_row: Callable[[dict[str, Any]], bool] = lambda row: True
) -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
    """The lines of a log that end, with their numbers from 1 and their objects; None for one that is damaged.

    Args:
        is_row: whether an object is one of this log's.
    """
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):  # at line feeds alone, whatever else a damaged line holds
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield number, line, row if isinstance(row, dict) and is_row(row) else None


def read_log(file: Path, is_row: Callable[[dict[str, Any]], bool] = lambda row: True) -> Log:
    """Read a log; an empty one if there is no such file.

    Args:
        is_row: whether an object is one of this log's.
    """
    rows: list[dict[str, Any]] = []
    behind: list[dict[str, Any]] = []
    whole, damaged = 0, None
    for number, line, row in log_lines(file, is_row) if file.exists() else ():
        if row is None:
            damaged = damaged or number
        elif damaged:
            behind.append(row)
        else:
            rows.append(row)
            whole += len(line)
    return Log(rows, whole, damaged, behind)


def append_line(file: Path, row: dict[str, Any]) -> None:
    """Add one JSON object to a log."""
    with file.open("ab") as f:
        f.write(json.dumps(row).encode() + b"\n")


def folder_or_hub_name(source: str | Path) -> str:
    """What names a checkpoint, as it was given: a folder that is here, or a name on the hub.

    A folder mistyped is not looked for on the hub, which would learn what folders are called here.

    Raises:
        PixelBertError: it is a path, or would be a folder beside others, and there is none.
    """
    path = Path(source)
    beside = len(path.parts) == 2 and path.parent.is_dir()
    if not path.exists() and (isinstance(source, Path) or len(path.parts) > 2 or beside):
        raise PixelBertError(f"there is no folder {source}: check the path")
    return str(source)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path, *, but: Container[str] = ()) -> None:
    """Note the checksums of a folder's files in it, as `sha256sum -c SHA256SUMS` checks them.

    Args:
        but: files that people may change.
    """
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in sorted(_names(folder)) if name not in but]
    write_atomically(folder / SUMS, "".join(lines))


def sums_problem(folder: Path, needed: Container[str] | None = None) -> str | None:
    """What is wrong with the files that `write_sums` noted, if something is.

    Args:
        needed: files that have to be noted, if they are there; each that is there if None.
    """
    sums = folder / SUMS
    if not sums.is_file():  # and no device, which might be read for ever
        return f"{SUMS} is missing"
    try:
        noted = {name: sha for sha, name in (line.split("  ", 1) for line in sums.read_text("utf-8").splitlines())}
        there = _names(folder)
        if missing := noted.keys() - there:
            return f"{min(missing)} is missing"
        if more := [name for name in there - noted.keys() if needed is None or name in needed]:
            return f"{min(more)} is not in {SUMS}"
        for name, sha in noted.items():
            if not (folder / name).is_file() or file_sha256(folder / name) != sha:
                return f"{name} is not as it was written"
    except (OSError, ValueError) as error:
        return f"it cannot be read: {error}"
    return None


def _names(folder: Path) -> set[str]:
    """What there is in a folder, but for its checksums and what file managers and systems hide there."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return {path.as_posix() for path in paths if not path.name.startswith(".")} - {SUMS}


def write_json(file: Path, value: Any) -> None:
    """Write a value as JSON for people too, and make the folder if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(value, indent=2) + "\n")


def read_text(path: Path) -> str:
    """A whole UTF-8 file, with or without a byte order mark.

    Raises:
        PixelBertError: missing, unreadable, empty or not UTF-8.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise PixelBertError(f"{path} does not exist: check the path") from None
    except (OSError, ValueError) as error:
        raise PixelBertError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not data.strip():
        raise PixelBertError(f"{path} is empty: copy or download it again")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PixelBertError(
            f"{path}, line {line}: byte {error.start + 1} is not UTF-8. Save the file as UTF-8, or download "
            "it again (unpacked, if it came in an archive)"
        ) from None


def read_json(path: Path) -> Any:
    """A whole JSON file.

    Raises:
        PixelBertError: as `read_text`, or not JSON; names line and column.
    """
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        raise PixelBertError(json_error(path, error, len(text))) from None
    except DuplicateKey as error:
        raise PixelBertError(f"{path}: {error}, and which value is meant is not clear: keep one") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in thousands
        raise PixelBertError(f"{path} is not the JSON of a data set ({error}): download it again") from None


class DuplicateKey(ValueError):
    """A JSON object has a key twice."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, for `object_pairs_hook`: Python's reader would take the last of two values without a word.

    Raises:
        DuplicateKey: a key stands twice; names it and the object.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DuplicateKey(f"the key {twice!r} stands twice in the object of {', '.join(map(repr, found))}"[:300])
    return found


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file that we wrote; none if it is not there.

    Raises:
        PixelBertError: as `read_text`, or a line is not an object; names it.
    """
    rows = []
    for number, line in enumerate(read_text(path).splitlines() if path.exists() and path.stat().st_size else [], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise PixelBertError(f"{path}, line {number}: expected a JSON object: copy the file again, or remove it")
        rows.append(row)
    return rows


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a few lines of them stand for gigabytes, or for something that contains itself."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"*{event.anchor} is an alias, which is not read here: write out what it stands for",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds names and values, which run nothing.

    Raises:
        PixelBertError: as `read_text`, or not such YAML; names line and column where they are known.
    """
    try:
        value = yaml.load(read_text(path), _PlainLoader)
    except PixelBertError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise PixelBertError(f"{path}{place}: {error.problem}. Put it right there") from None
    except Exception as error:  # PyYAML lets through whatever an odd number or date raises
        raise PixelBertError(f"{path} is not the YAML of a recipe ({error}): see the recipes that come along") from None
    if not isinstance(value, dict):
        raise PixelBertError(f"{path} holds no names and values: see the recipes that come along")
    return value


def read_array(path: Path) -> np.ndarray:
    """A .npy file, mapped from disk for reading: what its header declares costs nothing until the file really has it.

    Raises:
        PixelBertError: missing, or not a whole array of plain values. Pickled objects are not read.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise PixelBertError(f"{path} does not exist: check the path") from None
    except Exception as error:  # numpy lets through whatever its parsers raise
        raise PixelBertError(f"{path} is not a whole .npy array ({error}). Save it again with numpy.save") from error
    if not isinstance(array, np.ndarray):
        raise PixelBertError(f"{path} holds several arrays (.npz): save the one with numpy.save")
    return array


def json_error(path: Path, error: json.JSONDecodeError, length: int) -> str:
    """What to tell about text that is not JSON."""
    cut = error.pos >= length - 1 or error.msg.startswith("Unterminated string")
    what = "the file ends too early: it was cut short" if cut else f"this is not JSON ({error.msg})"
    return f"{path}, line {error.lineno}, column {error.colno}: {what}. Copy or download it again"

"""Small files read and written with care: errors name the file and the place, and nothing is left half written."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pixelbert.errors import PixelBertError


def write_atomically(file: Path, text: str) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the new, never a part."""
    aside = file.with_name(file.name + ".partial")
    with aside.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    aside.replace(file)
    flush(file.parent)


def flush(path: Path) -> None:
    """Have a file, or what was renamed in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
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
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise PixelBertError(json_error(path, error, len(text))) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in thousands
        raise PixelBertError(f"{path} is not the JSON of a data set ({error}): download it again") from None


def json_error(path: Path, error: json.JSONDecodeError, length: int) -> str:
    """What to tell about text that is not JSON."""
    cut = error.pos >= length - 1 or error.msg.startswith("Unterminated string")
    what = "the file ends too early: it was cut short" if cut else f"this is not JSON ({error.msg})"
    return f"{path}, line {error.lineno}, column {error.colno}: {what}. Copy or download it again"

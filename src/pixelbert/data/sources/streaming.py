"""Reading an array in JSON one element at a time, for files that would take gigabytes as Python objects."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from pixelbert.errors import PixelBertError
from pixelbert.files import DuplicateKey, unique_keys

_SPACE = re.compile(r"[ \t\n\r]*")
_CHUNK = 1 << 20  # characters
DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)


def iter_json_array(
    path: Path, expected: str, key: str | None = None, head: dict[str, Any] | None = None
) -> Iterator[Any]:
    """Yields the elements of the array at the top of a JSON file; holds about one element in memory.

    Args:
        path: the file.
        expected: what it should be, for the error messages.
        key: the array stands under this key of an object at the top.
        head: where to put the object's other entries; those after the array come when it has been read.

    Raises:
        PixelBertError: missing, empty, not UTF-8, not JSON, not an array, cut short; names line and column.
    """
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            elements = _Elements(path, file, expected)
            if key is None:
                yield from elements.array("the top")
            else:
                yield from elements.array_of_object(key, {} if head is None else head)
            elements.end()
    except FileNotFoundError:
        raise PixelBertError(f"{path} does not exist: check the path") from None
    except OSError as error:
        raise PixelBertError(f"{path} cannot be read ({error.strerror or error})") from error


class _Elements:
    """The text between `position` and the end of `buffer` is read and not used yet."""

    def __init__(self, path: Path, file: TextIO, expected: str) -> None:
        self.path, self.file, self.expected = path, file, expected
        self.buffer, self.position, self.ended = "", 0, False
        self.line, self.column = 1, 1  # of the buffer's first character

    def array(self, place: str) -> Iterator[Any]:
        """The elements of the array that follows."""
        self._open("[", "an array", place)
        if self._next_character() == "]":
            raise PixelBertError(f"{self.path} is an empty array: download it again")
        while True:
            self._next_character()
            yield self._element()
            if self._separator("]"):
                return

    def array_of_object(self, key: str, others: dict[str, Any]) -> Iterator[Any]:
        """The elements of the array under `key` in the object that follows; its other entries go to `others`."""
        self._open("{", "an object", "the top")
        names: set[str] = set()
        while True:
            if self._next_character() != '"':
                self._fail("expected a key in quotes")
            name = self._element()
            if self._next_character() != ":":
                self._fail("expected ':'")
            self.position += 1
            if name in names:
                self._twice(f"the key {name!r} stands twice at the top")
            names.add(name)
            if name == key:
                yield from self.array(f"the key {key!r}")
            else:
                self._next_character()
                others[name] = self._element()
            if self._separator("}"):
                break
        if key not in names:
            raise PixelBertError(f"{self.path}: expected {self.expected}, and the key {key!r} is missing at the top")

    def end(self) -> None:
        """Makes sure that nothing follows."""
        if self._next_character():
            self._fail("text after the end")

    def _open(self, bracket: str, kind: str, place: str) -> None:
        start = self._next_character()
        if not start and place == "the top":
            raise PixelBertError(f"{self.path} is empty: copy or download it again")
        if start != bracket:
            if not start:
                self._fail("")
            what = {"{": "an object", "[": "an array"}.get(start, repr(start))
            raise PixelBertError(f"{self.path}: expected {self.expected}, {kind} at {place}, and found {what}")
        self.position += 1

    def _separator(self, bracket: str) -> bool:
        """Passes a comma, and says no, or the closing bracket, and says yes."""
        after = self._next_character()
        self.position += 1
        if after in (bracket, ","):
            return after == bracket
        self.position -= 1
        self._fail(f"expected ',' or '{bracket}'")

    def _element(self) -> Any:
        size = _CHUNK
        while True:
            try:
                value, end = DECODER.raw_decode(self.buffer, self.position)
                length = end - self.position  # reading moves the position
                if end < len(self.buffer) or not self._read(size):  # a number may go on in the next chunk
                    self.position += length
                    return value
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.buffer) - 20
                offset = error.pos - self.position
                if not cut or not self._read(size):
                    self.position += offset
                    unfinished = error.msg.startswith("Unterminated string")
                    self._fail("" if unfinished or self.position >= len(self.buffer) - 1 else error.msg)
            except DuplicateKey as error:
                self._twice(str(error))
            except (ValueError, RecursionError) as error:
                self._fail(str(error))
            size *= 2  # so that one huge element is not parsed again for every chunk

    def _next_character(self) -> str:
        """Skips white space; the character that follows, or nothing at the end of the file."""
        while True:
            found = _SPACE.match(self.buffer, self.position)
            self.position = found.end() if found else self.position
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            if not self._read(_CHUNK):
                return ""

    def _read(self, size: int) -> bool:
        """Reads more; false at the end of the file."""
        if self.ended:
            return False
        self.line, self.column = self._place(self.position)
        try:
            more = self.file.read(size)
        except UnicodeDecodeError as error:
            raise PixelBertError(
                f"{self.path}, after line {self.line}, column {self.column}: not UTF-8 ({error.reason}). "
                "Download the file again (unpacked, if it came in an archive)"
            ) from None
        self.buffer, self.position = self.buffer[self.position :] + more, 0
        self.ended = not more
        return bool(more)

    def _place(self, position: int) -> tuple[int, int]:
        lines = self.buffer.count("\n", 0, position)
        if lines == 0:
            return self.line, self.column + position
        return self.line + lines, position - self.buffer.rindex("\n", 0, position)

    def _twice(self, message: str) -> NoReturn:
        line, column = self._place(self.position)
        raise PixelBertError(
            f"{self.path}, line {line}, column {column}: {message}, and which value is meant is not clear: keep one"
        )

    def _fail(self, message: str) -> NoReturn:
        cut = not message or self.position >= len(self.buffer)
        what = "the file ends too early: it was cut short" if cut else f"this is not JSON ({message})"
        line, column = self._place(self.position)
        raise PixelBertError(f"{self.path}, line {line}, column {column}: {what}. Copy or download it again")

"""Standard output and error as programs meet them: encodings that lack a character, control characters in names, a
reader that left; and the exit statuses of every command here.
"""

from __future__ import annotations

import io
import json
import os
import select
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from pixelbert.errors import PixelBertError, StoppedError

READER_LEFT = 141  # 128 + SIGPIPE: what a shell sees of a program that wrote to a closed pipe
JOINERS = "\u200c\u200d"  # invisible, but part of words (Persian) and of emoji


@contextmanager
def program(name: str) -> Iterator[None]:
    """Runs a program. What the user can put right is one message and status 2, without a traceback.

    Args:
        name: with which messages begin.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")  # a character that the encoding lacks is no reason to fail
    try:
        try:
            yield
        finally:  # here, where an error can still be told
            for stream in streams:
                stream.flush()
    except StoppedError as stopped:
        tell(name, stopped)
        sys.exit(128 + stopped.signal)
    except (PixelBertError, OSError) as error:  # a disk that is full or read-only, say
        stuck = [stream for stream in streams if is_stuck(stream)]
        for stream in stuck:
            discard(stream)
        if stuck and isinstance(error, BrokenPipeError):
            sys.exit(READER_LEFT)
        tell(name, error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def tell(name: str, error: BaseException) -> None:
    """An error on standard error, if anybody still reads it."""
    try:
        print(f"{name}: {printable(str(error))}", file=sys.stderr)
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Let go of what can't leave, or the interpreter fails once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_stuck(stream: TextIO) -> bool:
    """Whether what is written there can't leave: the disk is full, or the reader of a pipe has left."""
    try:
        stream.flush()
        file = stream.fileno()
    except io.UnsupportedOperation:  # text in memory
        return False
    except OSError:
        return True
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(file, 0)  # for nothing but errors
    return bool(poll.poll(0))


def printable(text: str) -> str:
    """A text for people, with characters that would steer a terminal or hide escaped (`\\x1b`); lines stay lines."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or not steers(c) else repr(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """As `printable`, of what has to stay on its line: a file's name, a row of a table."""
    return printable(text).replace("\n", "\\n")


def steers(character: str) -> bool:
    """Whether it is a control character, a mark of direction, half of a pair, or another that is not seen."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in JOINERS


def print_lines(lines: Iterable[str]) -> None:
    """Lines of a table on standard output; each stays one, whatever is in it."""
    print("\n".join(map(one_line, lines)))


def print_json(value: Any) -> None:
    """JSON on one line of standard output, exact in every encoding: characters that it lacks are escaped."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    print(text)

"""What is printed: in every encoding, with control characters shown, into pipes that nobody reads, onto a full disk."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from pixelbert import PixelBertError, cli
from pixelbert.errors import StoppedError
from pixelbert.progress import console
from pixelbert.terminal import print_json, print_lines, printable, program

TEXT = "é 日本 😀"


@contextmanager
def printed(monkeypatch: pytest.MonkeyPatch, encoding: str, name: str = "stdout") -> Iterator[io.BytesIO]:
    """What arrives on standard output or error of this encoding, where a character that it lacks is an error."""
    arrived = io.BytesIO()
    stream = io.TextIOWrapper(arrived, encoding=encoding, errors="strict")
    with monkeypatch.context() as patch:
        patch.setattr(sys, name, stream)
        yield arrived
        stream.flush()
        stream.detach()


class TestEncodings:
    @pytest.mark.parametrize(
        ("encoding", "expected"),
        [("ascii", rb"\xe9 \u65e5\u672c \U0001f600"), ("cp1252", b"\xe9 \\u65e5\\u672c \\U0001f600")],
    )
    def test_what_an_encoding_lacks_is_escaped(
        self, monkeypatch: pytest.MonkeyPatch, encoding: str, expected: bytes
    ) -> None:
        for name in ("stdout", "stderr"):
            with printed(monkeypatch, encoding, name) as arrived, program("test"):
                print(TEXT, file=getattr(sys, name))
            assert arrived.getvalue().rstrip() == expected

    def test_json_is_exact_in_each(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for encoding in ("ascii", "cp1252", "utf-8"):
            for text in (TEXT, "é", "a\x1b[31m\u202e", "not UTF-8: \udcff"):
                with printed(monkeypatch, encoding) as arrived, program("test"):
                    print_json({"text": text})
                assert json.loads(arrived.getvalue().decode(encoding)) == {"text": text}
        with printed(monkeypatch, "utf-8") as arrived, program("test"):
            print_json({"text": TEXT})
        assert TEXT.encode() in arrived.getvalue()

    def test_tables_have_lines_that_every_terminal_has(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with printed(monkeypatch, "ascii", "stderr") as arrived, program("test"):
            console.print(Table("metric \u65e5"))
        assert rb"metric \u65e5" in arrived.getvalue()
        assert rb"\u25" not in arrived.getvalue()  # of the box that is drawn around it elsewhere

    def test_a_command(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        with (
            printed(monkeypatch, "ascii", "stderr") as arrived,
            pytest.raises(SystemExit) as stop,
        ):
            cli.main(["match", str(tmp_path / "é\x1b[2J.jpg"), "--images-from", str(tmp_path / "日\x1b[2J")])
        assert stop.value.code == 2
        assert b"\\u65e5\\x1b[2J does not exist" in arrived.getvalue()


class TestControlCharacters:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("a dog", "a dog"),
            ("é 日本 😀 a\u00a0b 👩\u200d🚀", "é 日本 😀 a\u00a0b 👩\u200d🚀"),
            ("a\x1b[31mred\x07\x9b", r"a\x1b[31mred\x07\x9b"),
            ("gnp.\u202ejpg", r"gnp.\u202ejpg"),
            ("over\rwritten", r"over\rwritten"),
            ("not UTF-8 \udcff", r"not UTF-8 \udcff"),
            ("two\nlines", "two\nlines"),
        ],
    )
    def test_they_are_shown(self, text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert printable(text) == shown
        print_lines([text])
        assert capsys.readouterr().out == shown.replace("\n", "\\n") + "\n"
        console.print(text)
        assert "".join(capsys.readouterr().err.split()) == "".join(shown.split())

    def test_in_errors(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop, program("test"):
            raise PixelBertError("\x1b]0;title\x07.jpg does not exist\n  the first of two")
        assert stop.value.code == 2
        assert capsys.readouterr().err == "test: \\x1b]0;title\\x07.jpg does not exist\n  the first of two\n"


@contextmanager
def nobody_reads(monkeypatch: pytest.MonkeyPatch, name: str, **options: Any) -> Iterator[None]:
    """A pipe as standard output or error whose reader has left."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", **options) as stream, monkeypatch.context() as patch:  # noqa: PTH123  a descriptor
        patch.setattr(sys, name, stream)
        yield


class TestReadersThatLeft:
    @pytest.mark.parametrize("options", [{}, {"buffering": 1}])
    @pytest.mark.parametrize("name", ["stdout", "stderr"])
    def test_it_ends_as_a_program_that_sigpipe_ends(
        self, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with nobody_reads(monkeypatch, name, **options), pytest.raises(SystemExit) as stop, program("test"):
            print("a table", file=getattr(sys, name))
        assert stop.value.code == 141
        assert capsys.readouterr() == ("", "")

    def test_rich_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with nobody_reads(monkeypatch, "stderr"), pytest.raises(SystemExit) as stop, program("test"):
            console.print("100,000 sentences")
        assert stop.value.code == 141
        assert not console.quiet

    def test_help(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for arguments in (["--help"], ["match", "--help"], []):
            with nobody_reads(monkeypatch, "stdout"), pytest.raises(SystemExit) as stop:
                cli.main(arguments)
            assert stop.value.code == 141

    def test_an_error_that_nobody_reads_is_still_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with nobody_reads(monkeypatch, "stderr"), pytest.raises(SystemExit) as stop, program("test"):
            raise PixelBertError("no such photo")
        assert stop.value.code == 2

    def test_another_pipe_is_an_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop, program("test"):
            raise BrokenPipeError(32, "Broken pipe")
        assert stop.value.code == 2
        assert "Broken pipe" in capsys.readouterr().err

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
    def test_a_full_disk_is_told(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        with open("/dev/full", "w") as full, monkeypatch.context() as patch:  # noqa: PTH123
            patch.setattr(sys, "stdout", full)
            with pytest.raises(SystemExit) as stop:
                cli.main(["--version"])
        assert stop.value.code == 2
        assert "No space left" in capsys.readouterr().err

    def test_a_whole_program(self) -> None:
        read, write = os.pipe()
        os.close(read)
        environment = os.environ | {"PYTHONUNBUFFERED": "", "PYTHONIOENCODING": "ascii"}
        command = [sys.executable, "-m", "pixelbert", "--version"]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, env=environment, text=True, check=False)
        os.close(write)
        assert (done.returncode, done.stderr) == (141, "")


def test_other_ends(capsys: pytest.CaptureFixture[str]) -> None:
    for error, status, said in (
        (StoppedError("asked to stop", 15), 143, "test: asked to stop\n"),
        (KeyboardInterrupt(), 130, ""),
        (OSError("a disk"), 2, "test: a disk\n"),
    ):
        with pytest.raises(SystemExit) as stop, program("test"):
            raise error
        assert (stop.value.code, capsys.readouterr().err) == (status, said)

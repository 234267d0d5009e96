"""Searching when things go wrong: odd names, files that are no photos, a full disk, damage, two processes at once."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from pixelbert import PixelBert, PixelBertError, cli
from pixelbert.data import images
from pixelbert.data.images import ImageError, open_image
from pixelbert.predict import commands, index_store, indexing
from pixelbert.predict.index_store import PhotoStore
from pixelbert.predict.indexing import reserved
from pixelbert.predict.search import SearchIndex, index_photos, results_page
from pixelbert.serve.app import create_app
from pixelbert.terminal import one_line, steers
from search_builders import TEXT, save_checkpoint, write_photo


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"), tiny_model)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> PixelBert:
    return PixelBert.from_pretrained(checkpoint, "cpu", "fp32")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed in range(8):
        write_photo(tmp_path / "photos" / f"{seed}.png", seed)
    return tmp_path / "photos"


@pytest.fixture
def index(model: PixelBert, photos: Path, tmp_path: Path) -> Path:
    """Of eight photos."""
    index_photos(model, photos, tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def pixelbert(capsys: pytest.CaptureFixture[str], checkpoint: Path) -> Callable[..., tuple[int, str, str]]:
    """Runs a command here: its status, and what it printed and complained of."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status: Any = 0
        try:
            cli.main([*map(str, arguments), "--checkpoint", str(checkpoint), "--precision", "fp32", "--device", "cpu"])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


def changed(index: Path, script: str) -> None:
    """Change an index behind its back."""
    with sqlite3.connect(index / "photos.sqlite") as database:
        database.executescript(script)
    database.close()


def found(model: PixelBert, index: Path | SearchIndex, shortlist: int | None = None) -> list[str]:
    return [Path(one.image).name for one in model.search(index, TEXT, 100, shortlist)]


class TestNames:
    ODD = (
        "Screenshot at 10.00.00\u202fAM.png",  # as macOS names them
        "no\u00a0break.png",
        "wide\u3000space.png",
        "joined\u200demoji.png",
        "two\nlines.png",
        "\x1b[2J\x1b[31mred.png",
        "back\\..\\slash.png",
        "C:drive.png",
        " space before.png",
        "<img src=x onerror=alert(1)>.png",
        "\u202egnp.exe.png",
        os.fsdecode(b"latin \xe9.png"),
    )

    def test_photos_of_all_names_are_found(
        self, model: PixelBert, tmp_path: Path, pixelbert: Callable[..., tuple[int, str, str]]
    ) -> None:
        photos, index = tmp_path / "photos", tmp_path / "index"
        for seed, name in enumerate(self.ODD):
            write_photo(photos / name, seed)
        status, said, _ = pixelbert("index", photos, "--out", index, "--json")
        assert (status, json.loads(said)["photos"]) == (0, len(self.ODD))
        assert sorted(found(model, index)) == sorted(found(model, index, 5)) == sorted(self.ODD)
        assert index_photos(model, photos, index)[:3] == (len(self.ODD), 0, 0)

        status, said, _ = pixelbert("search", index, TEXT, "--top", 20, "--json")
        assert status == 0
        assert {one["image"] for one in json.loads(said)["results"]} == {str(photos / name) for name in self.ODD}
        said.encode()  # can be printed

        page = tmp_path / "found.html"
        status, said, _ = pixelbert("search", index, TEXT, "--top", 20, "--out", page)
        assert status == 0
        lines = [line[7:] for line in said.splitlines()[:-1]]
        assert sorted(lines) == sorted(one_line(str(photos / name)) for name in self.ODD)
        assert not any(steers(character) for character in said.replace("\n", ""))
        html = page.read_text()
        assert html.count("<figure>") == html.count("<img ") == len(self.ODD)
        assert "&lt;img src=x onerror=alert(1)&gt;.png" in html
        assert not any(c in html for c in "\x1b\u202e")

    def test_photos_that_cannot_be_read_are_named_by_letters_that_can_be_printed(
        self, tmp_path: Path, pixelbert: Callable[..., tuple[int, str, str]]
    ) -> None:
        names = (os.fsdecode(b"broken \xe9.png"), "broken \x1b[31m.png")
        write_photo(tmp_path / "photos" / "0.png", 0)
        for name in names:
            (tmp_path / "photos" / name).write_bytes(b"\x89PNG no more")
        status, said, _ = pixelbert("index", tmp_path / "photos", "--out", tmp_path / "index")
        assert status == 0
        assert "2 left out" in said
        assert r"broken \udce9.png" in said
        assert r"broken \x1b[31m.png" in said
        assert not any(steers(character) for character in said.replace("\n", ""))
        _, said, _ = pixelbert("index", tmp_path / "photos", "--out", tmp_path / "index", "--json")
        assert {one["image"] for one in json.loads(said)["skipped"]} == set(names)


class TestPassedOver:
    @pytest.fixture(autouse=True)
    def without_heif(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(indexing, "SUFFIXES", indexing.SUFFIXES - indexing.HEIF_SUFFIXES)

    def test_is_counted_and_named(
        self, photos: Path, tmp_path: Path, pixelbert: Callable[..., tuple[int, str, str]]
    ) -> None:
        for number in range(4):
            (photos / "phone").mkdir(exist_ok=True)
            (photos / "phone" / f"IMG_{number}.HEIC").write_bytes(b"x")
        for name in ("photo.jpg_large", "photo", ".thumbnail.jpg"):
            shutil.copy(photos / "0.png", photos / name)
        (photos / "linked").symlink_to(photos / "phone")
        (photos / "broken.jpg").symlink_to(photos / "nowhere.jpg")
        write_photo(photos / "a.jfif", 20)
        write_photo(photos / "b.JPE", 21)
        status, said, _ = pixelbert("index", photos, "--out", tmp_path / "index")
        assert status == 0
        assert "10 photos" in said
        heic = (
            "4 passed over, .heic (phone/IMG_0.HEIC, phone/IMG_1.HEIC, phone/IMG_2.HEIC, ...): to read .heic, "
            "`pip install 'pixelbert[heif]'` and give the same command again"
        )
        assert said.splitlines()[1] == heic
        assert "1 passed over, .jpg_large (photo.jpg_large)" in said
        _, said, _ = pixelbert("index", photos, "--out", tmp_path / "index", "--json")
        assert {one["kind"]: (one["count"], one["files"]) for one in json.loads(said)["passed_over"]} == {
            ".heic": (4, [f"phone/IMG_{number}.HEIC" for number in range(4)]),
            ".jpg_large": (1, ["photo.jpg_large"]),
            "no suffix": (1, ["photo"]),
            "hidden": (1, [".thumbnail.jpg"]),
            "link to a folder": (1, ["linked"]),
            "link to nothing": (1, ["broken.jpg"]),
        }

    def test_if_that_is_all_it_says_so(self, model: PixelBert, tmp_path: Path) -> None:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "IMG_1.HEIC").write_bytes(b"x")
        with pytest.raises(PixelBertError, match=r"no photos .*1 passed over, \.heic \(IMG_1.HEIC\).*pip install"):
            index_photos(model, tmp_path / "photos", tmp_path / "index")

    def test_what_cannot_be_looked_at_stays_in_the_index(
        self, model: PixelBert, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As a folder whose permissions changed, or a disk that is not mounted."""
        write_photo(photos / "deep" / "a.png", 30)
        index_photos(model, photos, tmp_path / "index")
        scandir = os.scandir

        def refusing(path: Any) -> Any:
            if str(path).endswith("deep"):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refusing)
        done = index_photos(model, photos, tmp_path / "index")
        assert done[:3] == (9, 0, 0)
        assert "Permission denied" in done.skipped["deep"]
        assert "a.png" in found(model, tmp_path / "index")


class TestHeic:
    HEAD = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"

    def test_without_the_decoder_the_error_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(images, "HEIF", False)
        monkeypatch.setattr(images, "FORMATS", tuple(f for f in images.FORMATS if f != "HEIF"))
        with pytest.raises(ImageError, match=r"HEIC .*pip install 'pixelbert\[heif\]'"):
            open_image(self.HEAD)

    @pytest.mark.skipif(not images.HEIF, reason="pillow-heif is not installed")
    def test_with_it_they_are_indexed(self, model: PixelBert, tmp_path: Path) -> None:
        photo = open_image(write_photo(tmp_path / "whole.png", 1))
        (tmp_path / "photos").mkdir()
        photo.save(tmp_path / "photos" / "IMG_1.HEIC", "HEIF", quality=95)
        read = open_image(tmp_path / "photos" / "IMG_1.HEIC")
        assert read.size == photo.size
        assert abs(np.asarray(read, int) - np.asarray(photo, int)).mean() < 12
        assert index_photos(model, tmp_path / "photos", tmp_path / "index")[:2] == (1, 1)
        (tmp_path / "photos" / "IMG_1.HEIC").write_bytes(self.HEAD)
        assert list(index_photos(model, tmp_path / "photos", tmp_path / "index").skipped) == ["IMG_1.HEIC"]


class TestUnusable:
    def test_an_index_of_nothing_is_an_error(
        self, tmp_path: Path, pixelbert: Callable[..., tuple[int, str, str]], model: PixelBert
    ) -> None:
        photos, index = tmp_path / "photos", tmp_path / "index"
        photos.mkdir()
        (photos / "a.jpg").write_bytes(b"\xff\xd8 no more")
        status, said, complaint = pixelbert("index", photos, "--out", index)
        assert status == 2
        assert "a.jpg is not an image" in said
        assert "none of the photos" in complaint
        status, _, complaint = pixelbert("search", index, TEXT)
        assert status == 2
        assert "has no photos that could be used" in complaint
        assert model.search(index, TEXT) == []
        write_photo(photos / "good.png", 1)
        assert pixelbert("index", photos, "--out", index)[0] == 0
        assert found(model, index) == ["good.png"]

    def test_they_are_tried_again(self, model: PixelBert, photos: Path, tmp_path: Path) -> None:
        """Permissions and decoders change, and no file tells."""
        good = (photos / "0.png").read_bytes()
        (photos / "0.png").write_bytes(b"x" * len(good))
        os.utime(photos / "0.png", ns=(1, 1))
        assert list(index_photos(model, photos, tmp_path / "index").skipped) == ["0.png"]
        (photos / "0.png").write_bytes(good)
        os.utime(photos / "0.png", ns=(1, 1))
        assert index_photos(model, photos, tmp_path / "index") == (8, 1, 0, {}, {})


class TestChangedPhotos:
    def test_search_says_so(
        self, model: PixelBert, photos: Path, index: Path, tmp_path: Path, checkpoint: Path,
        pixelbert: Callable[..., tuple[int, str, str]],
    ) -> None:  # fmt: skip
        size = (photos / "1.png").stat().st_size
        (photos / "1.png").write_bytes(b"x" * size)  # another of the same size
        (photos / "2.png").unlink()
        states = {Path(one.image).name: (one.changed, one.missing) for one in model.search(index, TEXT)}
        as_they_were = {f"{number}.png": (False, False) for number in range(8)}
        assert states == as_they_were | {"1.png": (True, False), "2.png": (False, True)}
        status, said, _ = pixelbert("search", index, TEXT, "--out", tmp_path / "found.html")
        assert status == 0
        assert said.count("  (") == 2
        assert "1.png  (changed since it was indexed)" in said
        assert "2.png  (no longer there)" in said
        again = f"`pixelbert index {photos} --out {index} --checkpoint {checkpoint}`"  # one that doesn't ship is named
        assert f"{again} brings the index up to date" in said
        html = (tmp_path / "found.html").read_text()
        assert (html.count("<figure>"), html.count("<img ")) == (8, 6)
        assert "2.png does not exist" in html
        _, said, _ = pixelbert("search", index, TEXT, "--json")
        rows = {Path(one["image"]).name: one for one in json.loads(said)["results"]}
        assert [name for name, row in rows.items() if row["changed"]] == ["1.png"]
        assert [name for name, row in rows.items() if row["missing"]] == ["2.png"]
        done = index_photos(model, photos, index)
        assert (done.photos, done.added, done.removed, list(done.skipped)) == (6, 0, 1, ["1.png"])

    def test_another_of_the_same_size_is_indexed_anew(self, model: PixelBert, photos: Path, index: Path) -> None:
        data = (photos / "1.png").read_bytes()
        status = (photos / "1.png").stat()
        (photos / "1.png").write_bytes(data)
        os.utime(photos / "1.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # a nanosecond is enough
        assert index_photos(model, photos, index)[:3] == (8, 1, 0)


class TestDamage:
    @pytest.mark.parametrize(
        "change",
        [
            "SET pixels = x'00'",
            "SET pixels = NULL",
            "SET pixels = 'text'",
            "SET rows = 999",
            "SET rows = NULL",
            "SET name = '../0.png'",
            "SET name = '/etc/0.png'",
            "SET name = 'a' || char(0) || '.png'",
            "SET name = CAST(x'ff00' AS TEXT)",
            "SET vector = NULL",
            "SET vector = x'0000'",
            f"SET vector = x'{'0000c07f' * 16}'",  # not a number
        ],
    )
    def test_one_bad_row_fails_no_search(
        self, change: str, model: PixelBert, photos: Path, index: Path, caplog: pytest.LogCaptureFixture,
        pixelbert: Callable[..., tuple[int, str, str]],
    ) -> None:  # fmt: skip
        changed(index, f"UPDATE photos {change} WHERE name = '0.png'; DELETE FROM about WHERE name = 'vectors'")
        opened = SearchIndex.open(index)
        with caplog.at_level(logging.WARNING):
            for shortlist in (None, 100):
                assert sorted(found(model, opened, shortlist)) == [f"{number}.png" for number in range(1, 8)]
        assert len(opened.left_out) == 1
        assert len(caplog.messages) == 1
        assert "1 of its photos left out" in caplog.text
        status, said, _ = pixelbert("search", index, TEXT, "--json")
        assert (status, len(json.loads(said)["results"]), len(json.loads(said)["left_out"])) == (0, 7, 1)
        (photos / "0.png").touch()  # as the message says
        assert index_photos(model, photos, index).photos == 8
        assert len(found(model, opened)) == 8
        assert opened.left_out == {}

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ("DELETE FROM about", "does not say its version, photos, checkpoint, fingerprint"),
            *[(f"DELETE FROM about WHERE name = '{n}'", f"does not say its {n}") for n in index_store.SAYS],
            *[(f"UPDATE about SET value = '' WHERE name = '{n}'", f"not say its {n}") for n in index_store.SAYS],
            ("ALTER TABLE photos RENAME COLUMN pixels TO other", "no .*column.* pixels"),
            ("DROP TABLE about", "lacks our tables"),
        ],
    )
    def test_an_index_that_does_not_say_whose_it_is(
        self, change: str, said: str, model: PixelBert, photos: Path, index: Path
    ) -> None:
        changed(index, change)
        (photos / "0.png").touch()
        before = (index / "photos.sqlite").read_bytes()
        for use in (lambda: model.search(index, TEXT), lambda: index_photos(model, photos, index)):
            with pytest.raises(
                PixelBertError, match=rf"damaged .*{said}.*: move .* away .*photos .* untouched"
            ) as told:
                use()
            assert "delete" not in str(told.value)
        assert (index / "photos.sqlite").read_bytes() == before or "column" in said

    def test_the_database_of_another_program_is_left_alone(
        self, model: PixelBert, photos: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "index").mkdir()
        changed(tmp_path / "index", "CREATE TABLE albums (name)")
        before = (tmp_path / "index" / "photos.sqlite").read_bytes()
        with pytest.raises(PixelBertError, match="lacks our tables"):
            index_photos(model, photos, tmp_path / "index")
        assert (tmp_path / "index" / "photos.sqlite").read_bytes() == before

    def test_a_run_that_was_stopped_before_it_began(self, model: PixelBert, photos: Path, tmp_path: Path) -> None:
        (tmp_path / "index").mkdir()
        (tmp_path / "index" / "photos.sqlite").touch()
        with pytest.raises(PixelBertError, match="no photos yet"):
            SearchIndex.open(tmp_path / "index")
        assert index_photos(model, photos, tmp_path / "index").photos == 8


class TestSqlite:
    @pytest.mark.parametrize(
        ("code", "said"),
        [
            (sqlite3.SQLITE_FULL, "is full. Make room"),
            (sqlite3.SQLITE_BUSY, "in use by another process"),
            (sqlite3.SQLITE_BUSY_SNAPSHOT, "in use by another process"),
            (sqlite3.SQLITE_IOERR_WRITE, "cannot be read or written .*disk"),
            (sqlite3.SQLITE_READONLY, "may not be written: .*permissions"),
            (sqlite3.SQLITE_READONLY_DIRECTORY, "may not be written: .*permissions"),
            (sqlite3.SQLITE_READONLY_ROLLBACK, "as somebody who may write"),
            (sqlite3.SQLITE_CANTOPEN, "cannot be opened: .*permissions"),
            (sqlite3.SQLITE_NOMEM, "memory"),
            (sqlite3.SQLITE_CORRUPT, "is damaged .*move .* away"),
            (sqlite3.SQLITE_NOTADB, "is damaged, or no database .*move .* away"),
        ],
    )
    def test_each_error_is_told_as_what_it_is(self, code: int, said: str, tmp_path: Path) -> None:
        error = sqlite3.OperationalError("what SQLite says {of it}")
        error.sqlite_errorcode = code
        with pytest.raises(PixelBertError, match=said) as told, index_store.telling(tmp_path):
            raise error
        assert "delete" not in str(told.value)
        assert ("damaged" in str(told.value)) == (code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))

    def test_a_locked_database(
        self, model: PixelBert, photos: Path, index: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (photos / "0.png").touch()
        monkeypatch.setattr(index_store, "WAIT", 0.05)
        other = sqlite3.connect(index / "photos.sqlite", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        for use in (lambda: model.search(index, TEXT), lambda: index_photos(model, photos, index)):
            with pytest.raises(PixelBertError, match="in use by another process"):
                use()
        other.execute("ROLLBACK")
        other.close()
        assert len(found(model, index)) == 8
        assert index_photos(model, photos, index)[:2] == (8, 1)

    def test_a_page_that_is_damaged(self, model: PixelBert, index: Path) -> None:
        data = bytearray((index / "photos.sqlite").read_bytes())
        page = int.from_bytes(data[16:18], "big")
        data[page:] = b"\xff" * (len(data) - page)
        (index / "photos.sqlite").write_bytes(data)
        with pytest.raises(PixelBertError, match=r"is damaged .*move .* away"):
            model.search(index, TEXT)

    def test_a_limit_on_the_size_of_files(self, checkpoint: Path, model: PixelBert, photos: Path, index: Path) -> None:
        write_more(photos, 40)
        size = (index / "photos.sqlite").stat().st_size
        ended = indexed_elsewhere(
            checkpoint, photos, index, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30_000, -1))
        )
        assert ended.returncode == 2
        assert "cannot be read or written" in ended.stderr
        assert "`ulimit -f`" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert len(found(model, index)) >= 8
        assert index_photos(model, photos, index).photos == 48

    def test_a_database_that_cannot_grow(
        self, model: PixelBert, photos: Path, index: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SQLite's own limit, which it tells as it tells a full disk."""
        before = {one.image: one.score for one in model.search(index, TEXT, 100, None)}
        write_more(photos, 40)
        with monkeypatch.context() as patch:
            patch.setattr(index_store, "SCHEMA", "PRAGMA max_page_count = 12;" + index_store.SCHEMA)
            with pytest.raises(
                PixelBertError, match=r"is full\. Make room.* what the index held is still there"
            ) as told:
                index_photos(model, photos, index)
        assert "damaged" not in str(told.value)
        now = {one.image: one.score for one in model.search(index, TEXT, 100, None)}
        assert 8 <= len(now) < 48
        assert {image: now[image] for image in before} == pytest.approx(before, abs=1e-6)
        assert index_photos(model, photos, index).photos == 48

    def test_a_full_disk(self, checkpoint: Path, model: PixelBert, photos: Path, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=160k", "none", str(disk)]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root can make a small disk")
        try:
            index = disk / "index"
            index_photos(model, photos, index)
            before = model.search(index, TEXT)
            write_more(photos, 200)
            write_photo(photos / "3.png", 77)  # to be replaced
            ended = indexed_elsewhere(checkpoint, photos, index)
            assert ended.returncode == 2
            assert "is full. Make room" in ended.stderr
            assert "damaged" not in ended.stderr
            now = {one.image: one.score for one in model.search(index, TEXT, 1000, None)}
            assert len(now) > 8
            assert [now[one.image] for one in before if "/3.png" not in one.image] == pytest.approx(
                [one.score for one in before if "/3.png" not in one.image], abs=1e-6
            )
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            assert index_photos(model, photos, index).photos == 208
            assert sorted(file.name for file in index.iterdir()) == ["index.lock", "photos.sqlite", "vectors.usearch"]
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)

    def test_no_room_for_the_vectors(
        self, model: PixelBert, photos: Path, index: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        write_photo(photos / "new.png", 40)
        with monkeypatch.context() as patch:
            patch.setattr(indexing.Vectors, "save", full)
            with pytest.raises(PixelBertError, match=r"No space left.*All photos are in the index.*make room"):
                index_photos(model, photos, index)
        assert not list(index.glob("*.partial"))
        assert len(found(model, index, 100)) == 9


def write_more(photos: Path, count: int) -> None:
    for number in range(count):
        write_photo(photos / f"more_{number}.png", 100 + number)


def indexed_elsewhere(
    checkpoint: Path, photos: Path, index: Path, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """`pixelbert index` in a process of its own."""
    command = [sys.executable, "-m", "pixelbert", "index", str(photos), "--out", str(index)]
    command += ["--checkpoint", str(checkpoint), "--precision", "fp32", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=before, env=environment)


KILLED_IN_A_COMMIT = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute("PRAGMA cache_size = 1")  # what changes goes to the file before the commit
database.execute("UPDATE photos SET pixels = zeroblob(length(pixels)), size = size + 1")
database.execute("UPDATE photos SET pixels = zeroblob(length(pixels) + 9000)")
os.kill(os.getpid(), signal.SIGKILL)
"""


class TestKilledInACommit:
    @pytest.fixture
    def half(self, index: Path) -> Path:
        """An index whose writer was killed: the database is half new, and the journal has the old."""
        before = (index / "photos.sqlite").read_bytes()
        ended = subprocess.run([sys.executable, "-c", KILLED_IN_A_COMMIT, str(index / "photos.sqlite")])
        assert ended.returncode == -signal.SIGKILL
        assert (index / "photos.sqlite-journal").stat().st_size > 0
        assert (index / "photos.sqlite").read_bytes() != before
        return index

    def test_a_search_takes_it_back(self, model: PixelBert, half: Path) -> None:
        assert len(model.search(half, TEXT)) == 8
        assert not any(one.changed for one in model.search(half, TEXT))
        assert not (half / "photos.sqlite-journal").exists()

    def test_the_next_run_takes_it_back(self, model: PixelBert, photos: Path, half: Path) -> None:
        assert index_photos(model, photos, half)[:3] == (8, 0, 0)

    def test_who_may_not_write_is_told(self, model: PixelBert, half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        connect = PhotoStore._connect
        monkeypatch.setattr(PhotoStore, "_connect", lambda self, mode: connect(self, "ro"))
        with pytest.raises(PixelBertError, match=r"killed.* as somebody who may write") as told:
            model.search(half, TEXT)
        assert "damaged" not in str(told.value)

    def test_while_it_is_open(self, model: PixelBert, index: Path, request: pytest.FixtureRequest) -> None:
        opened = SearchIndex.open(index)
        before = model.search(opened, TEXT)
        request.getfixturevalue("half")
        assert model.search(opened, TEXT) == before


class TestSideBySide:
    def test_an_open_index_follows(self, model: PixelBert, photos: Path, index: Path, tmp_path: Path) -> None:
        opened = SearchIndex.open(index)
        assert len(found(model, opened, 100)) == 8
        for number in range(4):
            (photos / f"{number}.png").unlink()
        write_photo(photos / "new.png", 50)
        write_photo(photos / "5.png", 51)
        index_photos(model, photos, index)
        for shortlist in (None, 100):
            assert model.search(opened, TEXT, 100, shortlist) == model.search(index, TEXT, 100, shortlist)
            assert sorted(found(model, opened, shortlist)) == ["4.png", "5.png", "6.png", "7.png", "new.png"]
        moved = photos.rename(tmp_path / "elsewhere")
        index_photos(model, moved, index)
        assert all(Path(one.image).parent == moved and not one.missing for one in model.search(opened, TEXT))

    def test_an_index_made_anew_in_its_place(self, model: PixelBert, photos: Path, index: Path, tmp_path: Path) -> None:
        opened = SearchIndex.open(index)
        before = model.search(opened, TEXT)
        index.rename(tmp_path / "away")
        assert model.search(opened, TEXT) == before
        shutil.rmtree(photos)
        for number in range(3):
            write_photo(photos / f"other_{number}.png", 60 + number)
        index_photos(model, photos, index)
        assert model.search(opened, TEXT) == model.search(index, TEXT)
        assert len(found(model, opened)) == 3

    @pytest.mark.parametrize("shortlist", [None, 100])
    def test_what_changes_within_a_search(
        self, shortlist: int | None, model: PixelBert, photos: Path, index: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = SearchIndex.open(index)
        logits_of, calls = model.logits_of, []

        def slowly(*arguments: Any) -> Any:
            calls.append(len(arguments[0]))
            if len(calls) == 1:  # of three: five are not read yet, and one of them at least is gone then
                for name in ("0.png", "3.png", "7.png"):
                    (photos / name).unlink()
                write_photo(photos / "4.png", 52)
                write_photo(photos / "new.png", 50)
                index_photos(model, photos, index)
            return logits_of(*arguments)

        monkeypatch.setattr("pixelbert.predict.search.SCORED_AT_ONCE", 3)
        monkeypatch.setattr(model, "logits_of", slowly)
        now = model.search(opened, TEXT, 100, shortlist)
        monkeypatch.setattr(model, "logits_of", logits_of)
        assert {Path(one.image).name for one in now} == {"1.png", "2.png", "4.png", "5.png", "6.png", "new.png"}
        fresh = {one.image: one.score for one in model.search(index, TEXT, 100, shortlist)}
        assert {one.image: one.score for one in now} == pytest.approx(fresh, abs=1e-6)

    @pytest.fixture
    def writer(self, checkpoint: Path, photos: Path, index: Path) -> Iterator[subprocess.Popen[str]]:
        """A process that adds and removes photos, and indexes after each."""
        script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from pixelbert import PixelBert
from pixelbert.predict.search import index_photos
from search_builders import write_photo
model = PixelBert.from_pretrained({str(checkpoint)!r}, "cpu", "fp32")
photos = Path({str(photos)!r})
for turn in range(1000):
    write_photo(photos / f"new_{{turn % 4}}.png", 200 + turn)
    (photos / f"new_{{(turn + 2) % 4}}.png").unlink(missing_ok=True)
    done = index_photos(model, photos, {str(index)!r})
    print(turn, done.photos, flush=True)
"""
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert process.stdout is not None
        assert process.stdout.readline().startswith("0 ")
        yield process
        process.kill()
        process.wait()

    def test_the_server_answers_while_photos_come_and_go(
        self, model: PixelBert, index: Path, writer: subprocess.Popen[str]
    ) -> None:
        opened = SearchIndex.open(index)
        with TestClient(create_app(model, "tiny", index=opened), base_url="http://localhost") as client:
            states = set()
            deadline = time.monotonic() + 20
            while len(states) < 6 and time.monotonic() < deadline:
                answer = client.get("/api/v1/search", params={"text": TEXT, "top": 100})
                assert answer.status_code == 200, answer.text
                said = answer.json()
                assert (8 <= len(said["results"]) <= 11, said["left_out"]) == (True, 0)
                states.add(tuple(sorted(one["image"] for one in said["results"])))
        assert writer.poll() is None
        assert len(states) > 1

    def test_two_that_index_at_once(
        self, model: PixelBert, photos: Path, index: Path, pixelbert: Callable[..., tuple[int, str, str]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(commands, "load", lambda args: pytest.fail("the model was loaded before it was told"))
        for folder in (index, index.with_name("new")):
            with reserved(folder):
                status, _, complaint = pixelbert("index", photos, "--out", folder)
                assert status == 2
                assert f"another process writes the index {folder}: wait" in complaint
                with pytest.raises(PixelBertError, match="another process"):
                    index_photos(model, photos, folder)
        assert index_photos(model, photos, index.with_name("new")).photos == 8


def test_the_index_finds_its_checkpoint_from_anywhere(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A relative path, taken from another folder, would be looked for on the hub."""
    monkeypatch.chdir(checkpoint.parent)
    options = ["--precision", "fp32", "--device", "cpu"]
    cli.main(["index", str(photos), "--out", str(tmp_path / "index"), "--checkpoint", checkpoint.name, *options])
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    cli.main(["search", "index", TEXT, *options])
    assert len(capsys.readouterr().out.splitlines()) == 8


def test_the_page_runs_nothing(model: PixelBert, tmp_path: Path) -> None:
    name = "</figcaption><script>alert(1)<!--.png"  # as far as a name can go: it has no slash
    write_photo(tmp_path / "photos" / name.replace("/", "\u2044"), 1)
    index_photos(model, tmp_path / "photos", tmp_path / "index")
    html = results_page("$text</title><script>", model.search(tmp_path / "index", TEXT))
    assert "<script" not in html
    assert "$text&lt;/title&gt;" in html

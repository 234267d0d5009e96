"""Hostile input, some of it each time: see `fuzzing.py` for what must hold, `tools/fuzz.py` for much more of it.

Below are those that once did something else, one test each.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import fuzzing
from fuzz_data import Prepared, parquet
from fuzz_models import Checkpoints, Runs
from fuzz_results import Evaluations, Indexes, ScoreRetrieval
from fuzz_targets import TARGETS
from fuzzing import Fault, Files, Target, as_json, attempt, files_of, spoil
from pixelbert import PixelBertError

Make = Callable[[str], Target]


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Each target, made when it is first needed."""
    made: dict[str, Target] = {}

    def get(name: str) -> Target:
        if name not in made:
            made[name] = TARGETS[name](tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.mark.parametrize("name", TARGETS)
def test_a_sound_input_is_read(name: str, make: Make, tmp_path: Path) -> None:
    assert attempt(make(name), make(name).sound(Random(1)), tmp_path / "place") == "read"


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input(name: str, make: Make, tmp_path: Path) -> None:
    target = make(name)

    # A failure needs no shrinking: `tools/fuzz.py --first NUMBER` makes the same input again.
    @settings(
        max_examples=target.inputs,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 10**6))
    def hostile(number: int) -> None:
        attempt(target, target.spoiled(number), tmp_path / "place")

    hostile()


class TestWatching:
    """The watch sees what it is there for."""

    @pytest.mark.parametrize(
        ("act", "seen"),
        [
            (lambda folder: 1 / 0, "ZeroDivisionError"),
            (lambda folder: (folder.parents[3] / "beside").write_text(""), "writes"),
            (lambda folder: shutil.copy(folder / "photo", folder.parent), "leaves|writes"),
            (lambda folder: exec(compile("1", str(folder / "code.py"), "exec")), "runs"),
            (lambda folder: __import__("pickle").loads(b"cos\nsystem\n."), "find_class"),
            (lambda folder: __import__("subprocess").run(["true"]), "Popen"),
            (lambda folder: bytearray(200 << 20), "MB"),
            (lambda folder: bytearray(90 << 30), "MemoryError"),
            (lambda folder: __import__("time").sleep(9), "seconds"),
        ],
    )
    def test_sees(
        self, act: Callable[[Path], object], seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Bad(Target):
            megabytes = 100

            def read(self, folder: Path) -> None:
                act(folder)

        monkeypatch.setattr(fuzzing, "SECONDS", 2)
        with pytest.raises(Fault, match=seen):
            attempt(Bad(tmp_path / "shared"), {"photo": b"x"}, tmp_path / "place")

    def test_spoils(self) -> None:
        for name, data in (("a.json", b'{"a": [1, "b"]}'), ("a.bin", bytes(99)), ("a.jsonl", b'{"a": 1}\n{"b": 2}')):
            assert len({spoil(name, data, Random(seed)) for seed in range(50)}) > 25
            assert spoil(name, data, Random(7)) == spoil(name, data, Random(7))


def refused(target: Target, place: Path, **changed: bytes) -> str:
    """The message to a sound input with these files changed; `__` stands for `.`."""
    files: Files = target.sound(Random(0)) | {name.replace("__", "."): data for name, data in changed.items()}
    shutil.rmtree(place, ignore_errors=True)
    fuzzing.write_files(files, place)
    with pytest.raises(PixelBertError) as caught:
        target.read(place)
    return str(caught.value)


class TestRecipes:
    @pytest.mark.parametrize(
        ("recipe", "said"),
        [
            (b"model: {class_path: spoken_by_recipe.Model, init_args: {}}", "'class_path' is no field"),
            (b"model.class_path: spoken_by_recipe.Model", "'model.class_path' is no field"),
            (b"model: other.yaml", "'model' is a section"),
            (b"config: other.yaml", "'config' is no field"),
            (b"data: [1]", "'data' is a section"),
            (b"a: &a [x, x]\nb: [*a, *a]", "line 2, column 5: .a is an alias"),
            (b"model: &a {text_init: *a}", "is an alias"),
            (b"output: !!python/object/apply:os.system ['touch ran']", "could not determine a constructor"),
            (b"seed: !!timestamp x", "is not the YAML"),
            (b"seed: " + b"9" * 5000, "is not the YAML"),
            (b"trackers: " + b"[" * 10_000, "is not the YAML"),
            (b"epochs: \xff", "not UTF-8"),
            (b"- epochs", "holds no names and values"),
        ],
    )
    def test_refused(
        self, recipe: bytes, said: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first once imported whatever module it named, and the parser ran it."""
        (tmp_path / "spoken_by_recipe.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\n")
        (tmp_path / "other.yaml").write_text("model: {class_path: spoken_by_recipe.Model}")
        monkeypatch.syspath_prepend(tmp_path)
        message = refused(make("recipes"), tmp_path / "place", recipe__yaml=recipe)
        assert re.search(said, message)
        assert str(tmp_path / "place" / "recipe.yaml") in message
        assert not (tmp_path / "ran").exists()

    def test_null(self, make: Make, tmp_path: Path) -> None:
        assert "log_every is null" in refused(make("recipes"), tmp_path / "place", recipe__yaml=b"log_every: null")


class TestPrepared:
    def changed(self, make: Make, place: Path, change: Callable[[dict[str, Any], Files], object]) -> str:
        """The message to a data set of captions whose manifest or files were changed, with checksums that fit."""
        target = make("prepared")
        assert isinstance(target, Prepared)
        files = dict(target.whole["captions"])
        manifest = json.loads(files["dataset.json"])
        change(manifest, files)
        files["dataset.json"] = as_json(manifest)
        fuzzing.write_files(target.fitting(files), place / "set")
        with pytest.raises(PixelBertError) as caught:
            target.read(place / "set")
        assert not list(place.glob("*.arrow"))
        return str(caught.value)

    @pytest.mark.parametrize(
        ("place", "value", "said"),
        [
            (("counts",), {}, "lacks its splits"),
            (("counts", "splits"), {"../../../out": {}}, "a name that is none"),  # which a file was then called
            (("files",), {"../images-00000.parquet": {}}, "is no table with its checksum"),
            (("files", "images-00000.parquet"), [], "is no table with its checksum"),
            (("task",), ["captions"], "is for the task"),
        ],
    )
    def test_manifest(self, place: tuple[str, ...], value: Any, said: str, make: Make, tmp_path: Path) -> None:
        def change(manifest: dict[str, Any], files: Files) -> None:
            for key in place[:-1]:
                manifest = manifest[key]
            manifest[place[-1]] = value
            files["../images-00000.parquet"] = b""

        assert said in self.changed(make, tmp_path, change)

    @pytest.mark.parametrize(
        ("column", "value", "said"),
        [
            ("image_ids", ["t:99"], "the image 't:99', which is not in the data set"),
            ("image_ids", ["t:0", "t:0"], "an example of 2 images"),
            ("image_ids", [], "an example of 0 images"),
            ("image_ids", [None], "nothing where one of 'image_ids' should be"),
            ("text", None, "a row without 'text'"),
            ("text", "a" * 90_000_000, "unpacks to more than"),
            ("width", 0, "an image without width"),
            ("bytes", None, "without 'path' and 'bytes'"),
        ],
    )
    def test_rows(self, column: str, value: Any, said: str, make: Make, tmp_path: Path) -> None:
        def change(manifest: dict[str, Any], files: Files) -> None:
            name = "images-00000.parquet" if column in ("width", "bytes") else "train-00000.parquet"
            table = pq.read_table(pa.BufferReader(files[name]))
            rows = table.to_pylist()
            rows[1] |= {column: value} | ({"path": None} if column == "bytes" else {})
            files[name] = parquet(pa.Table.from_pylist(rows, pa.schema([(f.name, f.type) for f in table.schema])))

        assert said in self.changed(make, tmp_path, change)

    def test_a_bit_that_turned(self, make: Make, tmp_path: Path) -> None:
        """Sizes fit, and parquet would have read other words, or none."""
        target = make("prepared")
        assert isinstance(target, Prepared)
        files = target.whole["captions"]
        data = bytearray(files["train-00000.parquet"])
        data[60] ^= 1
        fuzzing.write_files(files | {"train-00000.parquet": bytes(data)}, tmp_path / "set")
        with pytest.raises(PixelBertError, match=r"train-00000\.parquet is not as it was written"):
            target.read(tmp_path / "set")


class TestCheckpoints:
    @pytest.mark.parametrize(
        ("file", "fields", "said"),
        [
            ("config.json", {"architectures": 5}, "names 5; this version knows"),
            ("config.json", {"architectures": [{}]}, r"names \{\}; this version knows"),
            ("config.json", {"num_labels": 10**9}, "num_labels is 1000000000; expected"),
            ("config.json", {"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000; expected"),
            ("config.json", {"hidden_size": 50_000}, "describes a network of .* weights, and model.safetensors has"),
            ("config.json", {"layer_norm_eps": [1]}, r"layer_norm_eps is \[1\]; expected a number"),
            ("config.json", {"hidden_act": "eval"}, "hidden_act 'eval' is unknown"),
            ("config.json", {"max_position_embeddings": 10}, "don't belong together|has the shape"),
            ("preprocessor_config.json", {"longest_edge": 10**9}, "longest_edge 1000000000"),
            ("preprocessor_config.json", {"image_std": "abc"}, "image_std is 'abc'; expected three numbers"),
            ("preprocessor_config.json", {"max_length": "x"}, "max_length is 'x'"),
            ("preprocessor_config.json", {"max_length": 10**6}, "reads 1,000,000 of a sentence"),
        ],
    )
    def test_settings(self, file: str, fields: dict, said: str, make: Make, tmp_path: Path) -> None:
        target = make("checkpoints")
        assert isinstance(target, Checkpoints)
        changed = as_json(json.loads(target.whole[file]) | fields)
        assert re.search(said, refused(target, tmp_path / "place", **{file.replace(".", "__"): changed}))

    @pytest.mark.parametrize("learned", [b"", b"{", b"3", b"[3]", b'[{"data": "t"}]', b'[{"sha256": 3}]'])
    def test_what_it_learned_from(self, learned: bytes, make: Make, tmp_path: Path) -> None:
        assert "trained_on.json" in refused(make("checkpoints"), tmp_path / "place", trained_on__json=learned)

    def test_code_for_a_tokenizer_is_not_even_asked_about(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """transformers asks on the terminal whether to run it, if nobody has said no."""
        monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
        evil = as_json({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}})
        code = f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n".encode()
        refused(make("checkpoints"), tmp_path / "place", tokenizer_config__json=evil, evil__py=code)
        assert not (tmp_path / "ran").exists()


class TestRuns:
    @pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "scheduler.bin"])
    def test_a_state_whose_sums_fit(self, name: str, make: Make, tmp_path: Path) -> None:
        target = make("runs")
        assert isinstance(target, Runs)
        files = target.whole | {f"checkpoints/step-00000002/{name}": b"\x80\x04cos\nsystem\n."}
        fuzzing.write_files(target.fitting(files), tmp_path / "run")
        with pytest.raises(PixelBertError, match="step-00000002 is whole and cannot be read"):
            target.read(tmp_path / "run")

    @pytest.mark.parametrize("row", [b"3", b"{}", b'{"step": "x"}', b"\xff", b"[" * 100_000])
    def test_logs_and_progress(self, row: bytes, make: Make, tmp_path: Path) -> None:
        target = make("runs")
        assert isinstance(target, Runs)
        changed = {name: target.whole[name] + row + b"\n" for name in ("metrics.jsonl", "validation.jsonl")}
        if row != b"{}":  # which is the progress of no step
            changed["checkpoints/step-00000002/progress.json"] = row
        assert attempt(target, target.fitting(target.whole | changed), tmp_path / "place") == "read"


class TestPredictions:
    @pytest.mark.parametrize("header", ["'", "(" * 9000, "-" * 9000 + "1", "{'descr': '<f4'"])
    def test_arrays_whose_header_is_odd(self, header: str, make: Make, tmp_path: Path) -> None:
        data = b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header.encode()
        target = make("score-retrieval")
        assert isinstance(target, ScoreRetrieval)
        assert "is not a whole .npy array" in refused(target, tmp_path / "place", s__npy=data)

    def test_scores_that_were_not_all_there_yet_are_not_made(self, make: Make, tmp_path: Path) -> None:
        """A file for reading and writing is made as long as its header says, were it terabytes."""
        target = make("evaluations")
        assert isinstance(target, Evaluations)
        data = target.sound(Random(0))["scores.npy"].replace(b"(4, 2), }" + b" " * 8, b"(40000000, 200000), }"[:17])
        refused(target, tmp_path / "place", scores__npy=data[:-8])
        assert (tmp_path / "place" / "scores.npy").stat().st_size < 1000

    @pytest.mark.parametrize("there", [b"", b"3", b"[]", b"{", b"\xff", b"[" * 100_000])
    def test_whose_evaluation(self, there: bytes, make: Make, tmp_path: Path) -> None:
        assert "evaluation.json" in refused(make("evaluations"), tmp_path / "place", evaluation__json=there)

    @pytest.mark.parametrize("line", [b"3", b"{}", b'{"id": [], "prediction": ""}', b'{"id": "a", "prediction": 3}'])
    def test_lines_of_others_are_predicted_again(self, line: bytes, make: Make, tmp_path: Path) -> None:
        files = make("evaluations").sound(Random(0))
        files["answers.jsonl"] += line + b"\n"
        assert attempt(make("evaluations"), files, tmp_path / "place") == "read"

    @pytest.mark.parametrize("odd", [b"[/b]", b"\\ud800"])
    def test_names_that_a_terminal_cannot_show(self, odd: bytes, make: Make, tmp_path: Path) -> None:
        """Brackets are markup to who draws the table, and half a character is none to a terminal."""
        files = make("score-vqa").sound(Random(0))
        files["a.json"] = files["a.json"].replace(b'"answer_type": "other"', b'"answer_type": "%s"' % odd)
        assert attempt(make("score-vqa"), files, tmp_path / "place") == "read"


class TestIndexes:
    def test_vectors_that_nobody_here_wrote_are_not_read(self, make: Make, tmp_path: Path) -> None:
        """usearch trusts its file, and a few turned bytes end the process."""
        target = make("indexes")
        assert isinstance(target, Indexes)
        data = target.whole["vectors.usearch"]
        for at in range(0, len(data), 97):
            changed = data[:at] + b"\xff" * 9 + data[at + 9 :]
            assert attempt(target, target.whole | {"vectors.usearch": changed}, tmp_path / "place") == "read"

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE photos SET name = '../' || name",
            "UPDATE photos SET pixels = x'00'",
            "UPDATE photos SET pixels = NULL",
            "UPDATE photos SET rows = 999",
            "UPDATE photos SET vector = x'0000'; DELETE FROM about WHERE name = 'vectors'",
            "UPDATE about SET value = x'00'",
            "DROP TABLE photos",
            "DROP TABLE photos; CREATE VIEW photos AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT 1 FROM n) "
            "SELECT id, '' AS name, 0 AS size, 0 AS changed, NULL AS problem, NULL AS vector FROM n",
        ],
    )
    def test_rows(self, change: str, make: Make, tmp_path: Path) -> None:
        target = make("indexes")
        assert isinstance(target, Indexes)
        fuzzing.write_files(target.whole, tmp_path / "made")
        with sqlite3.connect(tmp_path / "made" / "photos.sqlite") as database:
            database.executescript(change)
        database.close()
        assert attempt(target, files_of(tmp_path / "made"), tmp_path / "place") == "refused"

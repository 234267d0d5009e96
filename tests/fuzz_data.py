"""Targets that are data: photos, the files that `pixelbert prepare` reads, prepared data sets."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_builders import (
    encoded,
    karpathy_data,
    nlvr2_rows,
    photo,
    png_header,
    vqa_data,
    write_coco_photos,
    write_pairs,
    write_photos,
)
from fuzzing import Files, Target, as_json, as_lines, files_of, own_cache
from pixelbert import (
    PixelBertError,
)
from pixelbert.data import sources
from pixelbert.data.corpus import Corpus
from pixelbert.data.images import MIN_SIDE, open_image, stored_size
from pixelbert.data.prepare import prepare
from pixelbert.data.sources.answers import read_answers
from pixelbert.data.sources.leaks import tested_images
from pixelbert.data.store import CAPTIONS, EXAMPLE_SCHEMAS, IMAGE_SCHEMA, QUESTION_ANSWERING, REASONING, PreparedDataset
from pixelbert.data.writer import DatasetWriter

RECIPES = Path(__file__).parents[1] / "recipes"


class Images(Target):
    """Photos: whatever the bytes are, an RGB image within the limits or an error."""

    megabytes = 1500
    inputs = 350

    @cached_property
    def photos(self) -> list[bytes]:
        kinds = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "JPEG2000", "PPM", "AVIF")
        found = [encoded(photo(), kind) for kind in kinds]
        found.append(encoded(Image.fromarray(np.full((20, 20), 40_000, np.uint16)), "PNG"))
        found.append(encoded(photo().quantize(8), "PNG", transparency=3))
        found.append(encoded(photo(), "TIFF", compression="tiff_lzw"))
        found.append(encoded(photo(), "PNG", save_all=True, append_images=[photo(3)]))
        found.append(b"P3 20 20 255 " + b"7 " * 1200)
        return found

    def sound(self, draw: Random) -> Files:
        return {"photo": draw.choice(self.photos)}

    def made(self, draw: Random) -> Files:
        bomb = png_header(draw.choice((9_999, 20, 2**31 - 1)), draw.choice((9_999, 2**31 - 1)))
        return {"photo": draw.choice((bomb, draw.randbytes(draw.randrange(300))))}

    def read(self, folder: Path) -> None:
        image = open_image(folder / "photo")
        assert image.mode == "RGB"
        assert min(image.size) >= MIN_SIDE
        assert sorted(stored_size((folder / "photo").read_bytes())) == sorted(image.size)


# --- What `pixelbert prepare` reads


class Annotations(Target):
    """The files of one of prepare's formats; the photos are sound."""

    inputs = 25

    def __init__(self, shared: Path) -> None:
        super().__init__(shared)
        self.photos = write_photos(shared / "photos", 6)
        write_photos(shared / "photos" / "VG_100K", 4)
        write_coco_photos(self.photos, "train2014", [7, 8])
        write_pairs(self.photos, nlvr2_rows("train", 3))

    def source(self, folder: Path) -> sources.Source:
        raise NotImplementedError

    def read(self, folder: Path) -> None:
        lenient = len((folder / sorted(p.name for p in folder.iterdir())[0]).read_bytes()) % 2
        with own_cache(folder):
            try:
                prepare(self.source(folder), folder / "set", max_bad=1 if lenient else 0.01)
            except PixelBertError:
                assert not (folder / "set").exists()
                raise
            data = PreparedDataset.open(folder / "set")
            for split in data.splits:
                for row in data.examples(split):
                    assert set(row["image_ids"]) <= set(data.image_row)
                    assert row.get("answers", []) is not None


class Karpathy(Annotations):
    inputs = 60

    def sound(self, draw: Random) -> Files:
        return {"raw.json": as_json(karpathy_data(6))}

    def source(self, folder: Path) -> sources.Source:
        return sources.Karpathy(json=folder / "raw.json", images=self.photos)


class CocoCaptions(Annotations):
    def sound(self, draw: Random) -> Files:
        images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(6)]
        captions = [{"id": n, "image_id": n // 2, "caption": f"a dog number {n}"} for n in range(12)]
        return {"captions_val2014.json": as_json({"images": images, "annotations": captions})}

    def source(self, folder: Path) -> sources.Source:
        return sources.CocoCaptions(json=folder / "captions_val2014.json", images=self.photos)


class VisualGenome(Annotations):
    FACTS = as_json([{"image_id": n, "coco_id": 500 + n, "flickr_id": None, "url": "/VG_100K/"} for n in range(4)])

    def sound(self, draw: Random) -> Files:
        regions = [{"region_id": n, "phrase": f"a red dog {n}"} for n in range(3)]
        entries = [{"id": n, "regions": [r | {"region_id": 9 * n + r["region_id"]} for r in regions]} for n in range(4)]
        tested = {"images": [{"id": 501}], "questions": [{"image_id": 502}], "dataset": "flickr8k"}
        return {"regions.json": as_json(entries), "facts.json": self.FACTS, "tested.json": as_json(tested)}

    def source(self, folder: Path) -> sources.Source:
        return sources.VisualGenome(
            regions=folder / "regions.json",
            image_data=folder / "facts.json",
            images=self.photos,
            exclude=[folder / "tested.json"],
        )


class VisualGenomeQa(VisualGenome):
    def sound(self, draw: Random) -> Files:
        pairs = [{"question": "What is it?", "answer": "A cat."}, {"question": "How many?", "answer": "Two"}]
        entries = [{"id": n, "qas": [p | {"qa_id": 9 * n + k} for k, p in enumerate(pairs)]} for n in range(4)]
        return {"qas.json": as_json(entries), "facts.json": self.FACTS, "answers.json": as_json(["2", "cat"])}

    def source(self, folder: Path) -> sources.Source:
        return sources.VisualGenomeQa(
            question_answers=folder / "qas.json",
            image_data=folder / "facts.json",
            answers=folder / "answers.json",
            images=self.photos,
            allow_leaks=True,
        )


class Vqa2(Annotations):
    def sound(self, draw: Random) -> Files:
        rows = [(70, 7, "yes"), (80, 8, "two"), (71, 7, "No"), (81, 8, "a cat"), (82, 8, "yes")]
        questions, annotations = vqa_data("train2014", rows)
        return {"questions.json": as_json(questions), "annotations.json": as_json(annotations)}

    def source(self, folder: Path) -> sources.Source:
        files = {name: [folder / f"{name}.json"] for name in ("questions", "annotations")}
        return sources.Vqa2(images=self.photos, min_count=1, **files)  # type: ignore[arg-type]


class VqaCsv(Annotations):
    def sound(self, draw: Random) -> Files:
        lines = [f'{n % 6}.jpg,"what, is it {n}",a cat|dog,{draw.choice(("train", ""))}' for n in range(9)]
        return {"questions.csv": "\r\n".join(["image,question,answer,split", *lines]).encode()}

    def source(self, folder: Path) -> sources.Source:
        return sources.VqaCsv(questions=folder / "questions.csv", images=self.photos)


class Nlvr2(Annotations):
    def sound(self, draw: Random) -> Files:
        return {"train.jsonl": as_lines(nlvr2_rows("train", 3))}

    def source(self, folder: Path) -> sources.Source:
        return sources.Nlvr2(json=[folder / "train.jsonl"], images=self.photos)


class Folder(Annotations):
    def sound(self, draw: Random) -> Files:
        return {"t.jsonl": as_lines([{"image": f"{n % 6}.jpg", "caption": f"a dog {n}"} for n in range(9)])}

    def source(self, folder: Path) -> sources.Source:
        return sources.Folder(images=self.photos, captions=folder / "t.jsonl", test=0.4)


# --- Prepared data sets


def hostile_tables(task: str, draw: Random) -> Files:
    """Tables that no `prepare` writes, in the columns that it does."""
    images: list[dict[str, Any]] = [
        {"image_id": f"t:{n}", "path": "x.png", "bytes": encoded(photo(n), "PNG"), "width": 40, "height": 32}
        for n in range(3)
    ]
    for image in images:
        image["sha256"] = sha256(image["bytes"]).hexdigest()
    targets: dict[str, Any] = {"answers": ["yes"], "answer_type": None, "question_type": None, "label": True}
    examples: list[dict[str, Any]] = [
        {"example_id": f"t:{n}", "image_ids": [f"t:{n}"] * (1 + (task == REASONING)), "text": f"photo {n}"}
        | {column.name: targets[column.name] for column in EXAMPLE_SCHEMAS[task] if column.name in targets}
        for n in range(3)
    ]
    tables = []
    for rows, schema in ((images, IMAGE_SCHEMA), (examples, EXAMPLE_SCHEMAS[task])):
        for _ in range(draw.choice((0, 1, 2))):
            row, column = draw.choice(rows), draw.choice(schema.names)
            odd = draw.choice((None, "", "t:99", "/etc/passwd", -5, 0, 2**31 - 1, [], [None], ["t:0"] * 3, b"x", [[]]))
            before, row[column] = row[column], odd
            try:
                pa.Table.from_pylist(rows, schema)
            except (pa.ArrowException, TypeError):
                row[column] = before
        if draw.random() < 0.1:
            rows[:] = draw.choice(([], rows * 2))
        nullable = pa.schema([pa.field(f.name, f.type) for f in schema])
        tables.append(pa.Table.from_pylist(rows, nullable))
        if draw.random() < 0.1:  # next to nothing on disk, much in memory
            column = draw.choice(("image_id", "example_id", "text"))
            if column in schema.names:
                long = [["a" * 10**6] * len(rows)]
                tables[-1] = pa.concat_tables([tables[-1].set_column(schema.names.index(column), column, long)] * 99)
    return {"images-00000.parquet": parquet(tables[0]), "train-00000.parquet": parquet(tables[1])}


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


class Prepared(Target):
    """A prepared data set on disk: damaged, or made by somebody else, with checksums that fit."""

    inputs = 60
    megabytes = 400

    @cached_property
    def whole(self) -> dict[str, Files]:
        """A sound one for each task."""
        targets: dict[str, dict[str, Any]] = {CAPTIONS: {}, QUESTION_ANSWERING: {"answers": ["yes"]}}
        targets[REASONING] = {"label": True}
        for task, columns in targets.items():
            with DatasetWriter(self.shared / task, name="t", task=task) as writer:
                for n in range(6):
                    writer.add_image(f"t:{n}", data=encoded(photo(n), "PNG"), width=40, height=32)
                    images = [f"t:{n}"] * (1 + (task == REASONING))
                    writer.add_example("val" if n == 5 else "train", f"t:{n}", images, f"photo {n}", **columns)
                writer.manifest = {"answers": ["yes", "no"]}
        return {task: files_of(self.shared / task) for task in targets}

    def sound(self, draw: Random) -> Files:
        return dict(self.whole[draw.choice(list(self.whole))])

    def made(self, draw: Random) -> Files:
        task = draw.choice(list(self.whole))
        files = self.whole[task] | hostile_tables(task, draw)
        manifest = json.loads(files["dataset.json"])
        manifest["counts"]["splits"].pop("val")
        del manifest["files"]["val-00000.parquet"]
        return self.fitting(files | {"dataset.json": as_json(manifest)})

    def finish(self, files: Files, draw: Random) -> Files:
        return self.fitting(files) if draw.random() < 0.5 else files

    def fitting(self, files: Files) -> Files:
        """With sizes and checksums of the files as they are."""
        try:
            manifest = json.loads(files["dataset.json"])
            for name, facts in manifest["files"].items():
                facts |= {"bytes": len(files[name]), "sha256": sha256(files[name]).hexdigest()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return files
        return files | {"dataset.json": as_json(manifest)}

    def read(self, folder: Path) -> None:
        with own_cache(folder):
            data = PreparedDataset.open(folder)
            if data.task == QUESTION_ANSWERING:
                assert all(isinstance(answer, str) for answer in read_answers(folder))
            splits = ",".join(data.splits)
            corpus = Corpus([f"{folder}:{splits}"])
            corpus.provenance()
            for example in range(len(corpus)):
                assert isinstance(corpus.text(example), str)
                assert isinstance(corpus.example_id(example), str)
                for column in EXAMPLE_SCHEMAS[corpus.task].names[3:]:
                    corpus.target(example, column)
                for image in corpus.images_of[example]:
                    corpus.image_id(image)
                    corpus.load_image(image)
            with suppress(PixelBertError):  # it has no numbers of COCO's
                tested_images([folder])

"""Everything that reads input from elsewhere, as targets for `fuzzing.attempt`: TARGETS, by name."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, ClassVar
from unittest.mock import patch

import datasets
import matplotlib.figure  # noqa: F401  # which makes folders when it is imported first
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from PIL import Image
from starlette.testclient import TestClient

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
from fuzzing import Fault, Files, Target, command
from pixelbert import (
    PixelBert,
    PixelBertConfig,
    PixelBertError,
    PixelBertForPreTraining,
    PixelBertProcessor,
)
from pixelbert.data import sources
from pixelbert.data.corpus import Corpus
from pixelbert.data.images import MIN_SIDE, image_size, open_image
from pixelbert.data.prepare import prepare
from pixelbert.data.processing import PixelBertImageProcessor, learn_tokenizer
from pixelbert.data.sources.answers import read_answers
from pixelbert.data.sources.leaks import tested_images
from pixelbert.data.store import CAPTIONS, EXAMPLE_SCHEMAS, IMAGE_SCHEMA, QUESTION_ANSWERING, REASONING, PreparedDataset
from pixelbert.data.writer import DatasetWriter
from pixelbert.evaluate import was_trained_on
from pixelbert.predict.search import SearchIndex, index_photos
from pixelbert.serve.app import create_app
from pixelbert.serve.limits import Limits
from pixelbert.tasks import predictions
from pixelbert.train import checkpoint

RECIPES = Path(__file__).parents[1] / "recipes"


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


class Images(Target):
    """Photos: whatever the bytes are, an RGB image within the limits or an error."""

    megabytes = 1500
    inputs = 350

    @cached_property
    def photos(self) -> list[bytes]:
        kinds = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "JPEG2000", "PPM", "AVIF")
        found = [encoded(photo(), kind) for kind in kinds]
        found.append(encoded(Image.fromarray(np.full((20, 20), 999, np.uint16)), "PNG"))
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
        assert image_size((folder / "photo").read_bytes()) == image.size


# --- What `pixelbert prepare` reads


class Annotations(Target):
    """The files of one of prepare's formats; the photos are sound."""

    form: ClassVar[str]
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
    form = "csv"

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


# --- Recipes


class Recipes(Target):
    """The YAML of a run: parsed, and nothing trained."""

    inputs = 20
    names_file = False  # the parser names the option

    HOSTILE: ClassVar[list[bytes]] = [
        b"model: {class_path: antigravity.Model, init_args: {}}\n",
        b"task: {class_path: this.s, init_args: {}}\n",
        b"output: !!python/object/apply:os.system ['touch ran']\n",
        b"model: &a {backbone: resnet50, text_init: *a}\n",
        b"a: &a [x, x, x, x, x, x, x, x, x]\n"
        + b"".join(b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 107))
        + b"trackers: *j\n",
        b"data: " * 3000,
        b"__path__: /etc/passwd\ntrackers: [[[[[[\n",
        b"epochs: 1e999\nseed: " + b"9" * 5000,
        b"task: !!timestamp x\n",
        b"trackers: " + b"[" * 100_000,
    ]

    def sound(self, draw: Random) -> Files:
        return {"recipe.yaml": draw.choice(sorted(RECIPES.rglob("*.yaml"))).read_bytes()}

    def made(self, draw: Random) -> Files:
        return {"recipe.yaml": draw.choice(self.HOSTILE)}

    def read(self, folder: Path) -> None:
        with patch("pixelbert.train.loop.train"):
            command(folder, "train", str(folder / "recipe.yaml"), "--output", str(folder / "run"))


# --- Checkpoints


def tiny(kind: Any = PixelBertForPreTraining, **changes: Any) -> Any:
    """A model of a few thousand weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = PixelBertConfig("resnet14_small", vocab_size=64, max_position_embeddings=24, **sizes | changes)
    return kind(config).eval()


def tiny_processor() -> PixelBertProcessor:
    tokenizer = learn_tokenizer(["a dog and a cat on the red beach by the sea", "two dogs"], 64)
    return PixelBertProcessor(PixelBertImageProcessor(64, 128), tokenizer, max_length=20)


def saved(folder: Path) -> Path:
    """A checkpoint with a two-tower head."""
    tiny(tower_size=8).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


class Checkpoints(Target):
    """A trained model's folder, loaded and asked."""

    inputs = 50

    @cached_property
    def whole(self) -> Files:
        learned = [{"data": "t", "split": "train", "sha256": ["0" * 64]}]
        return files_of(saved(self.shared / "checkpoint")) | {"trained_on.json": as_json(learned)}

    @cached_property
    def corpus(self) -> Corpus:
        with DatasetWriter(self.shared / "data", name="t") as writer:
            writer.add_image("t:0", data=encoded(photo(), "PNG"), width=40, height=32)
            writer.add_example("val", "t:0", ["t:0"], "a photo")
        with own_cache(self.shared):
            return Corpus([f"{self.shared / 'data'}:val"])

    def sound(self, draw: Random) -> Files:
        return dict(self.whole)

    def read(self, folder: Path) -> None:
        was_trained_on(str(folder), self.corpus)
        model = PixelBert.from_pretrained(folder, "cpu", "fp32")
        scores = model.match([photo(), photo(size=(90, 30))], ["a dog", "two dogs on the red beach " * 9])
        assert scores.shape == (2, 2)


class Runs(Target):
    """A training run's folder, which somebody goes on with; half of the time its checksums fit."""

    inputs = 12
    RECIPE: ClassVar[dict[str, Any]] = {"batch_size": 4, "data": {"train": ["x:train"]}, "output": "runs/x"}

    @contextmanager
    def accelerator(self) -> Iterator[Accelerator]:
        torch.manual_seed(0)
        accelerator = Accelerator(cpu=True)
        network = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(network.parameters())
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        accelerator.prepare(network, optimizer, schedule)
        yield accelerator
        accelerator.free_memory()

    @cached_property
    def whole(self) -> Files:
        run = self.shared / "run"
        checkpoint.claim(run, self.RECIPE)
        with self.accelerator() as accelerator:
            for step in (1, 2):
                checkpoint.save(accelerator, run, checkpoint.Progress(step), keep=2)
                checkpoint.append_line(run / "metrics.jsonl", {"step": step, "loss": 1.0})
                checkpoint.append_line(run / "validation.jsonl", {"step": step, "itm_accuracy": 0.5})
        return files_of(run)

    def sound(self, draw: Random) -> Files:
        return dict(self.whole)

    def finish(self, files: Files, draw: Random) -> Files:
        return self.fitting(files) if draw.random() < 0.7 else files

    def fitting(self, files: Files) -> Files:
        """With checksums of the files as they are."""
        files = dict(files)
        for sums in [name for name in files if name.endswith(checkpoint.SUMS)]:
            inside = [name for name in files if Path(name).parent == Path(sums).parent and name != sums]
            files[sums] = "".join(f"{sha256(files[n]).hexdigest()}  {Path(n).name}\n" for n in inside).encode()
        return files

    def read(self, folder: Path) -> None:
        checkpoint.claim(folder, self.RECIPE)
        with self.accelerator() as accelerator:
            progress = checkpoint.restore(accelerator, folder)
        assert isinstance(progress.step, int)
        progress.add({"mlm_loss": 1.0}, 1.0)
        progress.logged()
        checkpoint.is_best(folder, "itm_accuracy", {"itm_accuracy": 0.6})


# --- Predictions, evaluations, indexes


class ScoreVqa(Target):
    inputs = 20

    def sound(self, draw: Random) -> Files:
        questions, annotations = vqa_data("val2014", [(7, 1, "yes"), (8, 2, "two")])
        answers = [{"question_id": 7, "answer": "yes"}, {"question_id": 8, "answer": "2"}]
        return {"q.json": as_json(questions), "a.json": as_json(annotations), "p.json": as_json(answers)}

    def read(self, folder: Path) -> None:
        files = zip(("--questions", "--annotations", "--predictions"), "qap", strict=True)
        given = [word for option, name in files for word in (option, str(folder / f"{name}.json"))]
        command(folder, "score", "vqa", *given, "--json", str(folder / "scores.json"))


class ScoreNlvr2(Target):
    inputs = 20

    def sound(self, draw: Random) -> Files:
        rows = nlvr2_rows("dev", 3)
        return {"dev.jsonl": as_lines(rows), "p.csv": "".join(f"{r['identifier']},True\n" for r in rows).encode()}

    def read(self, folder: Path) -> None:
        given = ("--data", str(folder / "dev.jsonl"), "--predictions", str(folder / "p.csv"))
        command(folder, "score", "nlvr2", *given, "--json", str(folder / "scores.json"))


class Pickled:
    """Ends the process when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.exit, (7,)


def array(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=True)
    return buffer.getvalue()


class ScoreRetrieval(Target):
    inputs = 30

    def sound(self, draw: Random) -> Files:
        scores = draw.choice((np.eye(4, 2, dtype=np.float32), np.eye(4, 2)))
        ids: list[Any] = draw.choice(([0, 1, 0, 1], ["a", "b", "a", "b"]))
        name = draw.choice((".json", ".npy", ".txt"))
        forms = {".json": as_json(ids), ".npy": array(np.array(ids)), ".txt": "\n".join(map(str, ids)).encode()}
        return {"s.npy": array(scores), f"ids{name}": forms[name]}

    def made(self, draw: Random) -> Files:
        return {"s.npy": array(np.array([[Pickled()] * 2] * 4)), "ids.npy": array(np.array([Pickled()] * 4))}

    def read(self, folder: Path) -> None:
        (ids,) = folder.glob("ids.*")
        given = ("--scores", str(folder / "s.npy"), "--image-ids", str(ids), "--folds", "2")
        command(folder, "score", "retrieval", *given, "--json", str(folder / "scores.json"))


class Evaluations(Target):
    """The folder of an evaluation that was stopped, which somebody goes on with."""

    inputs = 80
    IDENTITY: ClassVar[dict[str, Any]] = {"checkpoint": "0" * 64, "task": "retrieval", "data": [{"split": "val"}]}

    def sound(self, draw: Random) -> Files:
        answers = [{"id": f"t:{n}", "prediction": "yes"} for n in range(4)]
        return {
            "evaluation.json": as_json(self.IDENTITY),
            "answers.jsonl": as_lines(answers) + b"\n",
            "scores.npy": array(np.full((4, 2), np.nan, np.float32)),
        }

    def read(self, folder: Path) -> None:
        predictions.claim(folder, self.IDENTITY)
        with predictions.PredictionLog(folder / "answers.jsonl", str) as log:
            assert all(isinstance(key, str) and isinstance(value, str) for key, value in log.done.items())
            log.add("t:9", "no")
        scores = predictions.open_scores(folder / "scores.npy", 4, 2)
        assert scores.dtype == np.float32
        scores[3, 1] = 1
        assert (folder / "scores.npy").stat().st_size < 10_000


class Indexes(Target):
    """An index of photos, searched."""

    inputs = 50

    @cached_property
    def model(self) -> PixelBert:
        return PixelBert.from_pretrained(saved(self.shared / "checkpoint"), "cpu", "fp32")

    @cached_property
    def whole(self) -> Files:
        index_photos(self.model, write_photos(self.shared / "photos", 6), self.shared / "index")
        return files_of(self.shared / "index")

    def sound(self, draw: Random) -> Files:
        return dict(self.whole)

    def read(self, folder: Path) -> None:
        for shortlist in (3, None):
            index = SearchIndex.open(folder)
            assert len(index) >= 0
            for found in self.model.search(index, "a dog", 3, shortlist):
                assert Path(found.image).parent == self.shared / "photos"
        index_photos(self.model, self.shared / "photos", folder)


# --- The web app


class Requests(Target):
    """A request to the API: an answer, or a 4xx with one sentence that names none of the server's files."""

    inputs = 150
    names_file = False
    BOUNDARY = "0123456789"

    @cached_property
    def client(self) -> TestClient:
        logging.getLogger("pixelbert.serve").setLevel(logging.CRITICAL)
        model = PixelBert.from_pretrained(saved(self.shared / "checkpoint"), "cpu", "fp32")
        index = self.shared / "index"
        index_photos(model, write_photos(self.shared / "photos", 3), index)
        app = create_app(model, "tiny", Limits(upload_mb=1, seconds=15), SearchIndex.open(index))
        client = TestClient(app)
        client.__enter__()
        return client

    def sound(self, draw: Random) -> Files:
        fields = {"text": draw.choice(("a [MASK] dog", "a dog")), "top": "3", "layer": "0", "head": "1", "token": "dog"}
        fields["rollout"] = "false"
        parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
        kind = draw.choice(("PNG", "JPEG", "GIF"))
        parts.append(b'name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n' + encoded(photo(), kind))
        body = b"".join(f"--{self.BOUNDARY}\r\nContent-Disposition: form-data; ".encode() + p + b"\r\n" for p in parts)
        task = draw.choice(("match", "fill-mask", "attend", "search", "photos/0", "answer", "info"))
        head = {
            "method": "GET" if task in ("search", "photos/0", "info") else "POST",
            "path": f"/api/v1/{task}",
            "query": "text=a%20dog&top=3",
            "headers": {"host": "localhost", "content-type": f"multipart/form-data; boundary={self.BOUNDARY}"},
        }
        return {"head.json": as_json(head), "body": body + f"--{self.BOUNDARY}--\r\n".encode()}

    def read(self, folder: Path) -> None:
        try:
            head = json.loads((folder / "head.json").read_bytes())
            headers = [(str(k).lower().encode(), str(v).encode()) for k, v in head["headers"].items()]
            method, path, query = (str(head[key]) for key in ("method", "path", "query"))
            scope: dict[str, Any] = {
                "type": "http",
                "method": method.encode("ascii").decode(),
                "path": path.encode().decode(),
            }
            scope["query_string"] = query.encode()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return  # no request at all: a web server lets none of these through
        body = (folder / "body").read_bytes()
        incoming = [{"type": "http.request", "body": body[:100], "more_body": True}]
        incoming += [{"type": "http.request", "body": body[100:]}]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return incoming.pop(0) if incoming else {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        common = {"asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": ""}
        common |= {"server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "raw_path": b"", "headers": headers}
        assert self.client.portal is not None
        self.client.portal.call(self.client.app, scope | common, receive, send)
        status, answer = sent[0]["status"], b"".join(message.get("body", b"") for message in sent)
        if not 200 <= status < 500:
            raise Fault(f"status {status}: {answer[:500]!r}")
        if status >= 400:
            assert method == "HEAD" or json.loads(answer).keys() == {"error"}
        assert str(self.shared).encode() not in answer


TARGETS: dict[str, Callable[[Path], Target]] = {
    "images": Images,
    "karpathy": Karpathy,
    "coco-captions": CocoCaptions,
    "visual-genome": VisualGenome,
    "visual-genome-qa": VisualGenomeQa,
    "vqa2": Vqa2,
    "vqa-csv": VqaCsv,
    "nlvr2": Nlvr2,
    "folder": Folder,
    "prepared": Prepared,
    "recipes": Recipes,
    "checkpoints": Checkpoints,
    "runs": Runs,
    "score-vqa": ScoreVqa,
    "score-nlvr2": ScoreNlvr2,
    "score-retrieval": ScoreRetrieval,
    "evaluations": Evaluations,
    "indexes": Indexes,
    "requests": Requests,
}

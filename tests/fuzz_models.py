"""Targets of training: recipes, checkpoints, runs to go on with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, ClassVar
from unittest.mock import patch

import matplotlib.figure  # noqa: F401  # which makes folders when it is imported first
import torch
from accelerate import Accelerator

from data_builders import encoded, photo
from fuzzing import Files, Target, as_json, command, files_of, own_cache
from pixelbert import PixelBert, PixelBertConfig, PixelBertForPreTraining, PixelBertProcessor
from pixelbert.data.corpus import Corpus
from pixelbert.data.processing import PixelBertImageProcessor, learn_tokenizer
from pixelbert.data.writer import DatasetWriter
from pixelbert.evaluate import was_trained_on
from pixelbert.files import SUMS, append_line
from pixelbert.train import checkpoint
from pixelbert.train.logs import is_best
from pixelbert.train.run_folder import claimed

RECIPES = Path(__file__).parents[1] / "recipes"


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
        with claimed(run, self.RECIPE), self.accelerator() as accelerator:
            for step in (1, 2):
                with checkpoint.Saver(accelerator, run, keep=2) as saver:
                    saver.save(checkpoint.Progress(step))
                append_line(run / "metrics.jsonl", {"step": step, "loss": 1.0})
                append_line(run / "validation.jsonl", {"step": step, "itm_accuracy": 0.5})
        return files_of(run)

    def sound(self, draw: Random) -> Files:
        return dict(self.whole)

    def finish(self, files: Files, draw: Random) -> Files:
        return self.fitting(files) if draw.random() < 0.7 else files

    def fitting(self, files: Files) -> Files:
        """With checksums of the files as they are."""
        files = dict(files)
        for sums in [name for name in files if name.endswith(SUMS)]:
            inside = [name for name in files if Path(name).parent == Path(sums).parent and name != sums]
            files[sums] = "".join(f"{sha256(files[n]).hexdigest()}  {Path(n).name}\n" for n in inside).encode()
        return files

    def read(self, folder: Path) -> None:
        with claimed(folder, self.RECIPE), self.accelerator() as accelerator:
            progress = checkpoint.restore(accelerator, folder)
        assert isinstance(progress.step, int)
        progress.add({"mlm_loss": 1.0}, 1.0)
        progress.logged()
        is_best(folder, "itm_accuracy", {"itm_accuracy": 0.6})

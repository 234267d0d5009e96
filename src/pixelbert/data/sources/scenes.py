"""Generated scenes with known truth: coloured shapes on plain ground, sentences about them, and where each shape is.

They need no files and no downloads, so they serve the smallest recipes, the demonstration and the tests; and since the
truth is known, attention can be measured against it. A scene is defined by its number alone. Its sentences are true of
it and of hardly any other scene, so a sentence of another scene is a fair mismatch (paper eq. 8).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pixelbert.data.store import PreparedDataset
from pixelbert.data.writer import DatasetWriter
from pixelbert.errors import PixelBertError
from pixelbert.progress import track

COLOURS = {
    "red": (214, 40, 40),
    "orange": (242, 133, 20),
    "yellow": (246, 214, 40),
    "green": (46, 150, 67),
    "blue": (38, 84, 204),
    "purple": (130, 50, 180),
    "pink": (246, 130, 190),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "cross")
NAMES = [(colour, shape) for colour in COLOURS for shape in SHAPES]
SIDE = 256  # a grid of 4 x 4 pixels
# Each thing stands in one of four cells, row by row.
CELLS = ("at the top left", "at the top right", "at the bottom left", "at the bottom right")


@dataclass(frozen=True)
class Thing:
    """One shape: what it is, its cell, and its box (left, top, right, bottom) in image pixels."""

    colour: str
    shape: str
    cell: int
    box: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def phrase(self) -> str:
        return f"an {self.name}" if self.colour[0] in "aeiou" else f"a {self.name}"


@dataclass(frozen=True)
class Scene:
    """An image (SIDE x SIDE) and the one or two things in it."""

    image: Image.Image
    things: tuple[Thing, ...]

    @property
    def sentences(self) -> list[str]:
        """True sentences about the scene; those of two things name each of them first equally often."""
        return self._places() if len(self.things) == 1 else self._relations()

    @property
    def truths(self) -> set[str]:
        """Every sentence of any scene that is true of this one too, its own among them."""
        return {*self._places(), *self._relations()}

    def _places(self) -> list[str]:
        forms = ("{0} {1}", "{1} {0}")
        return [form.format(thing.phrase, CELLS[thing.cell]) for thing in self.things for form in forms]

    def _relations(self) -> list[str]:
        texts = []
        for a, b in permutations(self.things, 2):
            texts.append(f"{a.phrase} and {b.phrase}")
            if a.box[2] <= b.box[0]:
                texts.append(f"{a.phrase} to the left of {b.phrase}")
            if a.box[0] >= b.box[2]:
                texts.append(f"{a.phrase} to the right of {b.phrase}")
            if a.box[3] <= b.box[1]:
                texts.append(f"{a.phrase} above {b.phrase}")
            if a.box[1] >= b.box[3]:
                texts.append(f"{a.phrase} below {b.phrase}")
        return texts

    def mask(self, thing: Thing) -> np.ndarray:
        """(SIDE, SIDE) true where the thing is drawn."""
        canvas = Image.new("1", (SIDE, SIDE))
        draw_thing(ImageDraw.Draw(canvas), thing, fill=1)
        return np.asarray(canvas)


def draw_thing(draw: ImageDraw.ImageDraw, thing: Thing, fill: int | tuple[int, int, int]) -> None:
    """Draw one shape into its box."""
    left, top, right, bottom = thing.box
    if thing.shape == "circle":
        draw.ellipse(thing.box, fill=fill)
    elif thing.shape == "square":
        draw.rectangle(thing.box, fill=fill)
    elif thing.shape == "triangle":
        draw.polygon([((left + right) / 2, top), (right, bottom), (left, bottom)], fill=fill)
    else:
        third = (right - left) // 3
        draw.rectangle((left + third, top, right - third, bottom), fill=fill)
        draw.rectangle((left, top + third, right, bottom - third), fill=fill)


def make_scene(number: int) -> Scene:
    """The scene with this number: one or two different things, each in a cell of its own, on light ground."""
    rng = np.random.default_rng((20200402, number))
    ground = tuple(int(v) for v in rng.integers(215, 246, size=3))
    image = Image.new("RGB", (SIDE, SIDE), ground)
    draw = ImageDraw.Draw(image)
    half = SIDE // 2
    count = int(rng.integers(1, 3))
    names = rng.choice(len(NAMES), count, replace=False)
    cells = rng.choice(len(CELLS), count, replace=False)
    things = []
    for name, cell in zip(names.tolist(), cells.tolist(), strict=True):
        size = int(rng.integers(half * 6 // 10, half * 9 // 10))
        left = cell % 2 * half + int(rng.integers(half - size))
        top = cell // 2 * half + int(rng.integers(half - size))
        colour, shape = NAMES[name]
        thing = Thing(colour, shape, cell, (left, top, left + size, top + size))
        draw_thing(draw, thing, COLOURS[thing.colour])
        things.append(thing)
    return Scene(image, tuple(things))


def write_scenes(first: int, end: int, output: Path) -> None:
    """Prepare scenes `first` to `end - 1` as a data set with one split, `all`."""
    with DatasetWriter(output, name="scenes") as writer:
        writer.manifest = {"sources": [], "options": {"first": first, "end": end}}
        for number in track(range(first, end), "drawing scenes"):
            scene = make_scene(number)
            buffer = io.BytesIO()
            scene.image.save(buffer, "PNG")
            image_id = f"scene:{number}"
            writer.add_image(image_id, path=f"{number}.png", data=buffer.getvalue(), width=SIDE, height=SIDE)
            for i, text in enumerate(scene.sentences):
                writer.add_example("all", f"{image_id}:{i}", [image_id], text)


def resolve_scenes(sources: list[str], folder: Path) -> list[str]:
    """Replace each `scenes:FIRST-END` by the prepared data set of those scenes, drawn into `folder` if need be."""
    resolved = []
    for source in sources:
        if not source.startswith("scenes:"):
            resolved.append(source)
            continue
        try:
            first, end = (int(n) for n in source.removeprefix("scenes:").split("-"))
        except ValueError:
            first = end = 0
        if not 0 <= first < end:
            raise PixelBertError(f"data {source!r}: expected scenes:FIRST-END, such as scenes:0-1000") from None
        output = folder / source.replace(":", "-")
        if not output.exists():
            write_scenes(first, end, output)
        PreparedDataset.open(output)
        resolved.append(f"{output}:all")
    return resolved

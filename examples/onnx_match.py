"""Score sentences against a photo with an exported model: no PyTorch, no transformers, no pixelbert.

    pip install onnxruntime tokenizers numpy pillow
    python examples/onnx_match.py EXPORTED photo.jpg "a dog on a beach" "a plate of food"

EXPORTED is what `pixelbert export C --out EXPORTED` wrote, of a checkpoint that matches or retrieves.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # or ONNX Runtime, once imported, reports its use to its makers

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

PAIRS_AT_ONCE = 64


def resized(width: int, height: int, shortest: int, longest: int, step: int) -> tuple[int, int]:
    """The multiples of `step` nearest to the size wanted: `shortest` for the short side, unless the long side would be
    beyond `longest`. In whole numbers, as pixelbert does it."""
    short, long = min(width, height), max(width, height)
    wanted, present = (shortest, short) if shortest * long <= longest * short else (longest, long)

    def snap(side: int) -> int:
        nearest = (2 * side * wanted + step * present) // (2 * step * present)
        return min(max(nearest, 1), longest // step) * step

    return snap(width), snap(height)


def pixel_values(photo: Image.Image, settings: dict, step: int) -> np.ndarray:
    """A photo to a normalised array (1, 3, H, W)."""
    photo = ImageOps.exif_transpose(photo)
    if photo.has_transparency_data:
        photo = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo)
    photo = photo.convert("RGB")
    size = resized(*photo.size, settings["shortest_edge"], settings["longest_edge"], step)
    if photo.size != size:
        photo = photo.resize(size, Image.Resampling.BILINEAR)
    x = np.asarray(photo, dtype=np.float32) / 255
    x = (x - np.float32(settings["image_mean"])) / np.float32(settings["image_std"])
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None])


class Matcher:
    """An exported model that scores sentences against photos."""

    def __init__(self, exported: Path) -> None:
        self.facts = json.loads((exported / "export.json").read_text())
        if self.facts["task"] not in ("matching", "retrieval"):
            raise SystemExit(f"{exported} was exported for {self.facts['task']}; expected matching or retrieval")
        self.settings = json.loads((exported / "preprocessor_config.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(exported / "tokenizer.json"))
        self.tokenizer.enable_truncation(self.facts["max_length"])
        self.tokenizer.enable_padding(pad_id=self.facts["pad_token_id"])
        self.images, self.pairs = (
            onnxruntime.InferenceSession(exported / name, providers=["CPUExecutionProvider"])
            for name in ("images.onnx", "pairs.onnx")
        )

    def match(self, photo: Image.Image, sentences: list[str]) -> list[float]:
        """The probability that each sentence belongs to the photo; the photo goes through the CNN once."""
        pixels = pixel_values(photo, self.settings, self.facts["reduction"])
        (embeddings,) = self.images.run(None, {"pixel_values": pixels})  # (1, K, D)
        scores: list[float] = []
        for start in range(0, len(sentences), PAIRS_AT_ONCE):
            some = sentences[start : start + PAIRS_AT_ONCE]
            encoded = self.tokenizer.encode_batch(some)
            for sentence, e in zip(some, encoded, strict=True):
                if e.overflowing:
                    print(
                        f"only the first {self.facts['max_length'] - 2} tokens are read of {sentence!r}",
                        file=sys.stderr,
                    )
            (logits,) = self.pairs.run(
                None,
                {
                    "pixel_embeddings": embeddings,
                    "pixel_counts": np.array([embeddings.shape[1]]),  # of each image, where grids differ and are padded
                    "input_ids": np.array([e.ids for e in encoded]),
                    "attention_mask": np.array([e.attention_mask for e in encoded]),
                    "image_index": np.zeros(len(encoded), dtype=np.int64),  # the photo of each sentence
                },
            )
            scores += (1 / (1 + np.exp(-logits.astype(np.float64)))).tolist()
        return scores


def main(exported: str, photo: str, *sentences: str) -> None:
    scores = Matcher(Path(exported)).match(Image.open(photo), list(sentences))
    for score, sentence in zip(scores, sentences, strict=True):
        print(f"{score:.6f}  {sentence}")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    sys.stdout.reconfigure(errors="backslashreplace")  # for terminals that lack a sentence's characters
    main(*sys.argv[1:])

"""Make the checkpoint that ships with the project from a run's: weights in half precision and no more positions than it
needs, so that it stays small.

    python tools/ship.py runs/shipped_3/final

It writes src/pixelbert/shipped, but for the model card there, which is written by hand.
"""

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from pixelbert.loading import SHIPPED, TRAINED_ON, load_checkpoint

LARGEST = 95_000_000  # bytes of the weights
POSITIONS = 128  # of BERT's 512: it learned from sentences of 40 tokens at most, and the others are BERT's own still
EMBEDDINGS = "pixelbert.embeddings.position_embeddings.weight"
PACKAGE = Path(__file__).parent.parent / "src" / "pixelbert"


def ship(checkpoint: Path, output: Path) -> None:
    """Write a checkpoint's weights in half precision. The variances of batch norm stay in float32: some are beyond its
    largest number, 65,504.

    Raises:
        ValueError: it is too large, or some other weight is beyond half precision.
    """
    model, processor, _ = load_checkpoint(checkpoint, "cpu")
    aside = output.with_name(output.name + ".partial")
    state = {
        name: x if name.endswith("running_var") or not x.is_floating_point() else x.half()
        for name, x in model.state_dict().items()
    }
    state[EMBEDDINGS] = state[EMBEDDINGS][:POSITIONS].clone()
    model.config.max_position_embeddings = POSITIONS
    model.save_pretrained(aside, state_dict=state)  # and the configuration says float32, which it is to compute in
    processor.save_pretrained(aside)
    shutil.copy(checkpoint / TRAINED_ON, aside)
    weights = aside / SAFE_WEIGHTS_NAME
    size = weights.stat().st_size
    beyond = [name for name, tensor in load_file(weights).items() if not tensor.isfinite().all()]
    if size > LARGEST or beyond:
        raise ValueError(f"{size:,} bytes of weights ({LARGEST:,} at most), not finite in half precision: {beyond}")
    shutil.copytree(aside, output, dirs_exist_ok=True)
    shutil.rmtree(aside)
    print(f"{output}: {size:,} bytes of weights")


if __name__ == "__main__":
    logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a run's `final` folder")
    parser.add_argument("--output", type=Path, default=PACKAGE / SHIPPED, help="folder of the shipped checkpoint")
    arguments = parser.parse_args()
    ship(arguments.checkpoint, arguments.output)

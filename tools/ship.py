"""Make the checkpoint that ships with the project from a run's: weights in half precision and no more positions than it
needs, so that it stays small.

    python tools/ship.py runs/shipped_3/final

It writes src/pixelbert/shipped, but for the model card there, which is written by hand. Heads that learned to answer
questions on the trunk of that checkpoint, which stayed as it was (`model.freeze_trunk`), go beside it:

    python tools/ship.py runs/shipped_answers/final --answering
"""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_NAME, logging

from pixelbert.files import write_sums
from pixelbert.loading import ANSWERING, SHIPPED, TRAINED_ON, load_checkpoint, of_trunk
from pixelbert.terminal import program

LARGEST = 95_000_000  # bytes of the weights
LARGEST_ANSWERING = 3_000_000
POSITIONS = 128  # of BERT's 512: it learned from sentences of 40 tokens at most, and the others are BERT's own still
EMBEDDINGS = "pixelbert.embeddings.position_embeddings.weight"
PACKAGE = Path(__file__).parent.parent / "src" / "pixelbert"


def ship(checkpoint: Path, output: Path) -> None:
    """Write a checkpoint's weights in half precision.

    Raises:
        ValueError: it is too large, or some weight is beyond half precision.
    """
    model, processor, _ = load_checkpoint(checkpoint, "cpu")
    aside = output.with_name(output.name + ".partial")
    state = halved(model.state_dict())
    state[EMBEDDINGS] = state[EMBEDDINGS][:POSITIONS].clone()
    model.config.max_position_embeddings = POSITIONS
    model.save_pretrained(aside, state_dict=state)  # and the configuration says float32, which it is to compute in
    processor.save_pretrained(aside)
    put_in_place(aside, output, checkpoint, LARGEST)


def ship_answering(checkpoint: Path, output: Path) -> None:
    """Write the heads of a checkpoint that answers questions, as `load_answering` reads them.

    Args:
        output: folder of the checkpoint whose trunk they learned on; they go into a folder of it.

    Raises:
        ValueError: they learned on another trunk; they are too large.
    """
    model, _, _ = load_checkpoint(checkpoint, "cpu")
    state = model.state_dict()
    shipped = load_checkpoint(output, "cpu").model.state_dict()
    other = [name for name, x in state.items() if of_trunk(name) and not torch.equal(x, shipped[name])]
    if other:
        raise ValueError(f"{checkpoint} has a trunk of its own ({other[0]}): train with model.freeze_trunk")
    aside = output / f"{ANSWERING}.partial"
    aside.mkdir()
    save_file(
        halved({name: x for name, x in state.items() if not of_trunk(name)}),
        aside / SAFE_WEIGHTS_NAME,
        metadata={"format": "pt"},
    )
    model.config.save_pretrained(aside)
    put_in_place(aside, output / ANSWERING, checkpoint, LARGEST_ANSWERING)


def halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In half precision. The variances of batch norm stay in float32: some are beyond its largest number, 65,504."""
    return {
        name: x if name.endswith("running_var") or not x.is_floating_point() else x.half() for name, x in state.items()
    }


def put_in_place(aside: Path, output: Path, checkpoint: Path, largest: int) -> None:
    """The last step: check a folder of weights, say what they learned from, and move it where it belongs."""
    shutil.copy(checkpoint / TRAINED_ON, aside)
    weights = aside / SAFE_WEIGHTS_NAME
    weights.chmod(0o644)  # save_file lets nobody but its owner read
    size = weights.stat().st_size
    beyond = [name for name, tensor in load_file(weights).items() if not tensor.isfinite().all()]
    if size > largest or beyond:
        raise ValueError(f"{size:,} bytes of weights ({largest:,} at most), not finite in half precision: {beyond}")
    write_sums(aside)
    shutil.copytree(aside, output, dirs_exist_ok=True)
    shutil.rmtree(aside)
    print(f"{output}: {size:,} bytes of weights")


if __name__ == "__main__":
    logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a run's `final` folder")
    parser.add_argument("--answering", action="store_true", help="ship its heads for answering, and nothing else")
    parser.add_argument("--output", type=Path, default=PACKAGE / SHIPPED, help="folder of the shipped checkpoint")
    arguments = parser.parse_args()
    with program("ship"):
        (ship_answering if arguments.answering else ship)(arguments.checkpoint, arguments.output)

"""What every task offers to the training loop and to evaluation; one file a task does the work.

A task is a dataclass: its fields are the `task` section of a recipe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import nn

from pixelbert.data.corpus import Corpus
from pixelbert.data.photos import Photos
from pixelbert.data.processing import PixelBertProcessor
from pixelbert.device import Precision
from pixelbert.tasks.steps import StepBatch, StepData, StepLoss


class Task(ABC):
    """One task of the paper.

    Attributes:
        kind: its name in recipes.
        reads: the kind of prepared data that it learns from (see `store.py`).
        model_class: the network with this task's head.
        tower_size: width of the two-tower head's vectors, where the task trains that head (`has_towers`).
        joint_share: what the joint head counts beside it.
    """

    kind: str
    reads: ClassVar[str]
    model_class: ClassVar[type]
    tower_size: int
    joint_share: float

    @property
    def has_towers(self) -> bool:
        """Whether a two-tower head learns."""
        return False

    @property
    def counts_per_example(self) -> int:
        """How much one example counts in a recipe's `batch_size`."""
        return 1

    @property
    def indivisible(self) -> int:
        """Of a recipe's `batch_size`, what one process has to hold."""
        return 1

    def head_config(self, corpus: Corpus) -> dict[str, Any]:
        """Fields of the configuration that the task decides, some by its training data.

        A two-tower head that the task doesn't train is left out: it would no longer fit the transformer below it.
        """
        if not self.has_towers:
            return {"tower_size": 0}
        return {"tower_size": self.tower_size, "joint_share": self.joint_share}

    def adapt_head(self, model: Any, checkpoint: str) -> None:  # noqa: B027 (most heads have no names in them)
        """Make a head that was loaded from a checkpoint fit the training data, where its size alone doesn't tell."""

    def freeze_unused(self, model: Any) -> None:  # noqa: B027 (most tasks use all there is)
        """Don't train what no loss reaches."""

    @abstractmethod
    def data(self, *args: Any, **options: Any) -> StepData:
        """The batches of a run; arguments as of `StepData`."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: StepBatch) -> StepLoss:
        """Forward pass and loss of one batch, normalised over the whole step."""

    @abstractmethod
    def validate(
        self, model: Any, processor: PixelBertProcessor, photos: Photos, examples: int, precision: Precision
    ) -> dict[str, float]:
        """Measure on the first `examples` of a validation split, each figure beside its control."""

    @abstractmethod
    def summary(self, row: dict[str, float]) -> str:
        """What `validate` found, in one line."""

"""That a run learns and saves finite numbers alone.

A step whose loss or gradient is not finite is left out. The weights are looked at after the update, before anything is
saved or logged: an infinite learning rate or a value too large for its type spoils them where loss and gradient, which
come before the update, were sound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from pixelbert.data.corpus import Corpus
from pixelbert.errors import PixelBertError
from pixelbert.train.checkpoint import Saver, checkpoints


class Soundness:
    """What of a run is not finite, and what then.

    Args:
        accelerator: of the run.
        model: the network.
        optimizers: whose state is looked at too.
        saver: of its checkpoints, for advice.

    Attributes:
        streak: steps just before now that were left out, one after another. While there are any nothing is saved: the
            weights are those of the last step that was not, which may be what is wrong.
    """

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], saver: Saver
    ) -> None:
        self.accelerator, self.model, self.optimizers, self.saver = accelerator, model, optimizers, saver
        self.streak = 0
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._statistics = [b for norm in norms for b in norm.buffers() if b.is_floating_point()]
        self._kept = [b.clone() for b in self._statistics]

    def begin_step(self) -> None:
        """A step begins. Its forward pass may change the statistics of batch norms, which are kept."""
        if self._statistics:
            torch._foreach_copy_(self._kept, self._statistics)

    def took_step(self) -> None:
        """The weights were updated."""
        self.streak = 0

    def left_out(self) -> None:
        """The step is left out: nothing of it stays."""
        self.streak += 1
        if self._statistics:
            torch._foreach_copy_(self._statistics, self._kept)

    def broken(self) -> str | None:
        """Name something that is not finite among weights, statistics and what optimisers keep; None if all are.

        All processes take part and find the same. A device is waited for once.
        """
        state, name = self._state(), None
        # One pass over all memory and one wait. A sum of squares may overflow where every number is sound: then look.
        if not math.isfinite(float(get_total_norm(list(state.values())))):
            name = next((name for name, t in state.items() if not torch.isfinite(t).all()), None)
        if self.accelerator.num_processes > 1:
            spoilt = torch.tensor(float(name is not None), device=self.accelerator.device)
            if float(self.accelerator.reduce(spoilt, "sum")) > 0:
                return name or "a weight of another process"
        return name

    def _state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        names = {id(weight): name for name, weight in self.model.named_parameters()}
        for optimizer in self.optimizers:
            for weight, kept in optimizer.state.items():
                of = f"the optimizer's {{}} of {names.get(id(weight), 'a weight')}"
                state |= {of.format(key): t for key, t in kept.items() if isinstance(t, Tensor) and t.ndim}
        local = {name: t.to_local() if hasattr(t, "to_local") else t for name, t in state.items()}  # a shard's own part
        return {name: t.detach() for name, t in local.items() if t.is_floating_point() and t.numel()}

    def require(self, step: int) -> None:
        """Raises PixelBertError if something is not finite, before it is saved."""
        if name := self.broken():
            raise PixelBertError(f"after step {step}, {name} is not finite: nothing of it is saved. {self.advice()}")

    def require_start(self, step: int) -> None:
        """Raises PixelBertError if a run would start from, or go on with, something that is not finite."""
        if not (name := self.broken()):
            return
        if step:
            raise PixelBertError(
                f"{self.newest()}: {name} is not finite, which earlier versions did not look at. Remove it to go on "
                "from the one before it"
            )
        raise PixelBertError(
            f"{name} is not finite before the first step: the weights that model.checkpoint, model.text_init or "
            "model.backbone_init names are spoilt; copy or download them again"
        )

    def newest(self) -> Path | None:
        """The last checkpoint, which is good: none is written unless all is finite."""
        self.saver.wait()
        return next(reversed(checkpoints(self.saver.output)), None)

    def advice(self) -> str:
        """From where one can go on, and what to change."""
        newest, best = self.newest(), self.saver.output / "best"
        said = "No checkpoint was saved yet; "
        if newest:
            said = f"{newest} is good, and the same command goes on from it. If that comes to the same point, "
        said += (
            "the cause is in recipe or data: lower the learning rates, or set optimizer.clip, and begin again with "
            "another --output"
        )
        return said + (f"; --model.checkpoint {best} starts from the best model so far" if best.exists() else "")


def not_finite(
    step: int, sums: dict[str, Tensor], totals: list[float], norm: float, corpus: Corpus, seen: list[int]
) -> str:
    """Name the step and its examples when a loss or the gradient is infinite or not a number."""
    losses = ", ".join(f"{name} {total}" for name, total in zip(sums, totals, strict=True))
    losses += f", gradient norm {norm}"
    examples = ", ".join(corpus.example_id(e) for e in sorted(set(seen))[:8])
    return f"step {step}: {losses}. The step was on examples {examples}, ... (on this process)."

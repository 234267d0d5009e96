"""Optimisers and schedules of paper section 4.1: SGD for the CNN, AdamW for the rest, milestones, warm-up."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pixelbert.model.modeling import PixelBertPreTrainedModel
from pixelbert.train.recipe import OptimizerRecipe

Groups = list[dict[str, object]]


ENCODER = ("pixelbert.embeddings.", "pixelbert.encoder.")  # what BERT's weights can be put into


def decay_groups(named: list[tuple[str, nn.Parameter]], lr: float, weight_decay: float) -> Groups:
    """Weights that decay, and the biases and norms (one-dimensional) that don't."""
    trained = [p for _, p in named if p.requires_grad]
    groups: Groups = [
        {"params": [p for p in trained if p.ndim > 1], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]  # with frozen norms a CNN has none of the second kind


def build_optimizers(
    model: PixelBertPreTrainedModel, recipe: OptimizerRecipe, *, sharded: bool = False
) -> dict[str, Optimizer]:
    """ "transformer" (AdamW) and, unless the CNN is frozen, "cnn" (SGD, or AdamW if the recipe says so).

    Args:
        sharded: the network is to be cut in shards (FSDP), for which torch has no fused SGD.
    """
    backbone = [(n, p) for n, p in model.named_parameters() if ".backbone." in f".{n}"]
    rest = [(n, p) for n, p in model.named_parameters() if ".backbone." not in f".{n}"]
    apart = ENCODER if recipe.encoder_lr is not None else ()
    groups = decay_groups([(n, p) for n, p in rest if not n.startswith(apart)], recipe.lr, recipe.weight_decay)
    if recipe.encoder_lr is not None:
        encoder = [(n, p) for n, p in rest if n.startswith(apart)]
        groups += decay_groups(encoder, recipe.encoder_lr, recipe.weight_decay)
    optimizers: dict[str, Optimizer] = {"transformer": AdamW(groups, fused=True)}
    if any(p.requires_grad for _, p in backbone):
        groups = decay_groups(backbone, recipe.cnn_lr, recipe.cnn_weight_decay)
        if recipe.cnn == "adamw":
            optimizers["cnn"] = AdamW(groups, fused=True)
        else:
            optimizers["cnn"] = SGD(groups, momentum=recipe.cnn_momentum, fused=not sharded)
    return optimizers


def schedule(recipe: OptimizerRecipe, epoch_of: Callable[[int], float]) -> Callable[[int], float]:
    """Factor of the learning rate at each step: linear warm-up, then divided by 10 after each milestone epoch."""

    def factor(step: int) -> float:
        warmup = min((step + 1) / recipe.warmup_steps, 1.0) if recipe.warmup_steps else 1.0
        passed = sum(epoch_of(step) >= milestone for milestone in recipe.milestones)
        return warmup * 0.1**passed

    return factor


def build_scheduler(optimizer: Optimizer, recipe: OptimizerRecipe, epoch_of: Callable[[int], float]) -> LambdaLR:
    """A torch scheduler of `schedule`, stepped once a training step."""
    return LambdaLR(optimizer, schedule(recipe, epoch_of))

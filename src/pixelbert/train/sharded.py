"""Training with a network that no process holds whole (FSDP), where accelerate's own saving knows one optimiser alone.

accelerate launch --config_file fsdp.yaml -m pixelbert train ...    (docs/reliability.md has such a file)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

WEIGHTS, STATE = "model.safetensors", "optimizers.pt"


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether accelerate was told to use FSDP."""
    return accelerator.distributed_type == DistributedType.FSDP


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """The weights of all shards, on the first process's CPU. All processes take part."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def save_shards(accelerator: Accelerator, folder: Path) -> None:
    """Gather weights, optimisers and schedules and write them. All processes take part, the first writes."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found, optimizers = get_state_dict(accelerator._models[0], plain_optimizers(accelerator), options=options)
    if accelerator.is_main_process:
        weights: dict[str, Any] = found
        folder.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
        schedules = [schedule.state_dict() for schedule in accelerator._schedulers]
        torch.save({"optimizers": optimizers, "schedules": schedules}, folder / STATE)


def load_shards(accelerator: Accelerator, folder: Path) -> None:
    """Each process reads all and keeps its shards; their number may be another than when they were saved."""
    state: dict[str, Any] = torch.load(folder / STATE, weights_only=True)
    weights: dict[str, Any] = dict(load_file(folder / WEIGHTS))
    set_state_dict(
        accelerator._models[0],
        plain_optimizers(accelerator),
        model_state_dict=weights,
        optim_state_dict=state["optimizers"],
        options=StateDictOptions(full_state_dict=True),
    )
    for schedule, then in zip(accelerator._schedulers, state["schedules"], strict=True):
        schedule.load_state_dict(then)


def plain_optimizers(accelerator: Accelerator) -> list[torch.optim.Optimizer]:
    """Without accelerate's wrapping."""
    return [optimizer.optimizer for optimizer in accelerator._optimizers]


@contextmanager
def whole(model: Any, sharded: bool) -> Iterator[None]:
    """While this is open, a sharded network's parts can be called as if it were whole. All processes take part."""
    if sharded:
        model.unshard()
    yield
    if sharded:
        model.reshard()

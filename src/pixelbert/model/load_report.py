"""What weight import says and holds to: a report that names tensors, and a copy of all of them or of none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pixelbert.errors import PixelBertError


@dataclass(frozen=True)
class LoadReport:
    """Which tensors of a file went into a model.

    Args:
        source: the file, folder or hub name.
        loaded: the model's tensors that were loaded, by name.
        left_out: the file's tensors that the model has no place for.
        missing: the model's tensors of this part that the file does not have; they keep the values they had.
        notes: what the file does not say and the reader should check.
    """

    source: str
    loaded: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded: {compact_names(self.loaded)}"]
        if self.left_out:
            lines.append(f"  left out of the model: {compact_names(self.left_out)}")
        if self.missing:
            lines.append(f"  not in the file, so as initialised: {compact_names(self.missing)}")
        return "\n".join(lines + [f"  {note}" for note in self.notes])


def compact_names(names: Iterable[str]) -> str:
    """Tensor names by module: `encoder.layer.0-5.* (96), pooler.dense.* (2)`."""
    groups: dict[tuple[str, bool], list[str]] = {}
    for name in names:
        numbered = re.match(r"(.*?\.)\d+\.", name)
        if name.endswith("num_batches_tracked"):
            key = "*.num_batches_tracked"
        else:
            key = numbered[1] if numbered else name.rpartition(".")[0] + "."
        groups.setdefault((key, bool(numbered)), []).append(name)
    parts = []
    for (key, numbered_group), members in groups.items():
        if len(members) == 1 or key == ".":
            parts += members
            continue
        whole = key if key.startswith("*") else f"{key}*"
        if numbered_group and not key.startswith("*"):
            numbers = sorted({int(m.removeprefix(key).partition(".")[0]) for m in members})
            first, last = numbers[0], numbers[-1]
            whole = f"{key}{first}.*" if first == last else f"{key}{first}-{last}.*"
        parts.append(f"{whole} ({len(members)})")
    return ", ".join(parts)


@torch.no_grad()
def copy_checked(
    source: str | Path,
    target: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    left_out: Iterable[str],
    missing: Iterable[str],
    notes: Iterable[str] = (),
) -> LoadReport:
    """Check the shapes of all tensors, then copy all of them into the model's.

    Args:
        source: where they come from, for messages.
        target: the model's tensors by name.
        state: the tensors to copy, under the model's names.
        left_out, missing, notes: for the report.

    Raises:
        PixelBertError: a shape differs; nothing was copied.
    """
    for name, tensor in state.items():
        if tensor.shape != target[name].shape:
            raise PixelBertError(
                f"{source}: {name} is {tuple(tensor.shape)} in the file and {tuple(target[name].shape)} in "
                "the model; nothing was loaded. Choose the model's shape to fit the file in the recipe's "
                "model section"
            )
    for name, tensor in state.items():
        target[name].copy_(tensor)
    return LoadReport(str(source), tuple(state), tuple(left_out), tuple(missing), tuple(notes))


def first_line(error: BaseException) -> str:
    """The beginning of another library's message, which may run over a screen."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

"""Figures that a training learned, and the bounds they have to keep. See conftest.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelbert.files import append_line


@dataclass
class Margins:
    """Compares what was learned with its bounds.

    Args:
        trial: what stands beside each figure in the file.
        file: gets the figures in place of a judgement, so that those behind a missed bound are seen too.
    """

    trial: dict[str, Any]
    file: Path | None

    def at_least(self, name: str, figure: float, bound: float) -> None:
        """The figure is no smaller than the bound."""
        self._compare(name, figure, "at least", bound, figure >= bound)

    def at_most(self, name: str, figure: float, bound: float) -> None:
        """The figure is no greater than the bound."""
        self._compare(name, figure, "at most", bound, figure <= bound)

    def _compare(self, name: str, figure: float, kind: str, bound: float, holds: bool) -> None:
        if self.file is None:
            assert holds, f"{name} is {figure:.4g}, and has to be {kind} {bound:g}"
        else:
            row = {"name": name, "figure": float(figure), "kind": kind, "bound": bound, "holds": bool(holds)}
            append_line(self.file, self.trial | row)

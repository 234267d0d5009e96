"""The charts of the report, as SVG that stands in the page itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np


@dataclass(frozen=True)
class Curve:
    """One line of a chart: its name, its style class, and its points."""

    name: str
    style: str
    x: Sequence[float]
    y: Sequence[float]


def chart(title: str, curves: Sequence[Curve], low: float, high: float, ticks: Sequence[float]) -> str:
    """Curves over pairs seen, as an SVG that takes its colours from the page."""
    width, height, left, right, top, bottom = 460, 250, 44, 12, 30, 34
    end = max((x for curve in curves for x in curve.x), default=1.0)

    def at(x: float, y: float) -> tuple[float, float]:
        share = (min(max(y, low), high) - low) / (high - low)
        return left + (width - left - right) * x / end, height - bottom - (height - top - bottom) * share

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    parts.append(f'<text class="title" x="{left}" y="16">{escape(title)}</text>')
    for tick in ticks:
        x, y = at(0, tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for part in range(5):
        x, y = at(end * part / 4, low)
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{pairs(end * part / 4)}</text>'
        )
    for curve in curves:
        points = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in zip(curve.x, curve.y, strict=True))
        parts.append(f'<polyline class="{escape(curve.style)}" points="{points}"/>')
    parts.append("</svg>")
    key = "".join(f'<span class="key {escape(c.style)}">{escape(c.name)}</span>' for c in curves)
    return f'<figure class="chart">{"".join(parts)}<figcaption>{key}</figcaption></figure>'


def pairs(number: float) -> str:
    """A round number of pairs: 0, 500, 12k."""
    return f"{number / 1000:.0f}k" if number >= 1000 else f"{number:.0f}"


def smoothed(values: Sequence[float], window: int = 5) -> list[float]:
    """Means over the last few values, so that a curve shows its course."""
    return [float(np.mean(values[max(i - window + 1, 0) : i + 1])) for i in range(len(values))]

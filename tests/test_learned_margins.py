"""The tool that shows margins of what tests learn, and the fixture that its figures come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_builders import read_lines, script
from learned import Margins

TRIAL = {"test": "tests/test_a.py::test_b", "seed": 0, "case": ""}


def test_a_bound_is_judged_by_the_test_and_recorded_for_the_tool(tmp_path: Path) -> None:
    judged, recorded = Margins(TRIAL, None), Margins(TRIAL, tmp_path / "figures.jsonl")
    for margins in (judged, recorded):
        margins.at_least("accuracy", 0.75, 0.75)
        margins.at_most("loss", 0.1, 0.1)
    with pytest.raises(AssertionError, match=r"accuracy is 0\.625, and has to be at least 0\.75"):
        judged.at_least("accuracy", 0.625, 0.75)
    with pytest.raises(AssertionError, match="at most"):
        judged.at_most("loss", float("nan"), 0.1)
    recorded.at_least("accuracy", 0.625, 0.75)
    rows = read_lines(tmp_path / "figures.jsonl")
    assert [row["holds"] for row in rows] == [True, True, False]
    assert rows[2] == TRIAL | {"name": "accuracy", "figure": 0.625, "kind": "at least", "bound": 0.75, "holds": False}


def test_the_worst_of_each_figure_stands_beside_its_bound() -> None:
    def row(kernel: str, seed: int, name: str, figure: float, kind: str, bound: float) -> dict[str, Any]:
        holds = figure >= bound if kind == "at least" else figure <= bound
        arithmetic = {"kernel": kernel, "precision": "fp32", "threads": 1}
        return TRIAL | arithmetic | {
            "seed": seed, "name": name, "figure": figure, "kind": kind, "bound": bound, "holds": holds
        }  # fmt: skip

    tool = script("tools/learned_margins.py")
    found = tool.summary(
        [row("default", s, "accuracy", 0.9 + s / 100, "at least", 0.75) for s in range(3)]
        + [row("avx2", s, "accuracy", 0.8 - s / 10, "at least", 0.75) for s in range(3)]
        + [row("default", s, "loss", 0.1 + s / 10, "at most", 0.5) for s in range(3)]
    )
    accuracy, loss = found
    assert (accuracy["worst"], accuracy["holds"], accuracy["trainings"]) == (pytest.approx(0.6), False, 6)
    assert accuracy["worst_at"] == {"kernel": "avx2", "precision": "fp32", "threads": 1, "seed": 2}
    assert accuracy["worst_of"] == {"default, fp32": 0.9, "avx2, fp32": pytest.approx(0.6)}
    assert (loss["worst"], loss["holds"], loss["median"]) == (pytest.approx(0.3), True, pytest.approx(0.2))
    lines = tool.table(found).splitlines()
    assert "at least 0.75 | 0.85 | 0.6 **missed** | avx2, fp32, 1, seed 2 | 6 |" in lines[2]
    assert "missed" not in lines[3]
    json.dumps(found)

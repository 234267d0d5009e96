"""`pixelbert bench report`: the JSON files of runs as one page of tables and plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pixelbert.errors import PixelBertError

RATIOS = {
    "pretraining_step_vs_plain": "pre-training, ResNet-50 at 832 x 1280, 5 pairs an image, against the plain way: "
    "pairs a second, forwards and backwards",
    "pretraining_step_vs_plain_10_pairs": "the same with what `sentences_per_image: 5` gives: 5 matched and 5 "
    "mismatched pairs an image",
    "vqa_step_vs_plain": "question answering, ResNet-50 at 832 x 1280, 5 questions an image, against the plain way",
    "added_sentence_vs_vilt": "scoring one more sentence with an encoded image at 384 x 640, against ViLT-B/32 scoring "
    "one more pair",
    "single_pair_vs_vilt": "one image and one sentence at 384 x 640, against ViLT-B/32",
    "single_pair_vs_vilt_fp32": "the same in float32, both",
    "engine_vs_bare_step": "the training loop on real photos against its step alone on resident tensors (at most 1)",
}
TITLES = {
    "ratios": "Ratios",
    "choices": "Two ways to the same result",
    "training": "Training steps",
    "encode": "Encoding images",
    "pairs": "Scoring pairs",
    "retrieval": "All-pairs retrieval",
    "scaling": "Growth with the number of pairs",
    "loading": "Loading data",
    "latency": "One request",
    "memory": "Peak memory",
}
COLUMNS = {
    "median_s": ("median, ms", lambda v: f"{1000 * v:,.1f}"),
    "images_per_second": ("images/s", lambda v: f"{v:,.2f}" if v >= 1 else f"{v:.3f}"),
    "pairs_per_second": ("pairs/s", lambda v: f"{v:,.2f}" if v >= 1 else f"{v:.3f}"),
    "microseconds_per_pair": ("µs a pair", lambda v: f"{v:,.1f}"),
    "times_the_faster": ("times the faster", lambda v: f"{v:.2f}"),
    "taken": ("", lambda v: "taken" if v else ""),
    "flop_per_second": ("GFLOP/s", lambda v: f"{v / 1e9:,.0f}"),
    "share_of_matrix_rate": ("of a matrix product's", lambda v: f"{100 * v:.0f} %"),
    "peak_memory_bytes": ("peak memory, MB", lambda v: f"{v / 1e6:,.0f}"),
}


def report(json_files: list[Path], out: Path, notes: Path | None = None) -> None:
    """Write the page, and its plots in a folder beside it.

    Args:
        json_files: what `pixelbert bench KIND --json FILE` wrote.
        out: the page to write (Markdown).
        notes: text to put between its heading and its tables: what was compared, and how.

    Raises:
        PixelBertError: a file that is none of a benchmark.
    """
    runs = [read(file) for file in json_files]
    runs.sort(key=lambda run: list(TITLES).index(run["kind"]))
    parts = ["# Performance\n\nWritten by `pixelbert bench report`; every table stands beside its command.\n"]
    if notes:
        parts.append(notes.read_text(encoding="utf-8"))
    for run in runs:
        parts.append(section(run))
        if run["kind"] == "scaling":
            picture = plot_scaling(run, out.with_suffix(""))
            parts.append(f"![Time a pair and memory]({picture.relative_to(out.parent)})\n")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(parts), encoding="utf-8")


def read(file: Path) -> dict[str, Any]:
    """One run."""
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        if run["kind"] in TITLES and run["details"] and run["environment"] and run["precision"]:
            return run
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise PixelBertError(f"{file} is no result of a benchmark; give what `pixelbert bench KIND --json FILE` wrote")


def section(run: dict[str, Any]) -> str:
    """Heading, command, hardware, versions, ratios, times."""
    facts = run["environment"]
    versions = ", ".join(
        f"{name} {facts[name]}" for name in ("python", "torch", "transformers", "accelerate", "pillow")
    )
    hardware = facts.get("gpu", facts["processor"])
    lines = [
        f"## {TITLES[run['kind']]} ({run['device']}, {run['precision']})\n",
        f"    {run['command']}\n",
        f"{hardware}, {facts['cores']} core(s), {facts['threads']} thread(s), computing in {run['precision']}; "
        f"{versions}; {facts['date']}, {run['minutes']:.1f} minutes, load average {facts.get('load_average', '?')}.\n",
    ]
    if run["kind"] == "ratios":
        found = [(text, run[name]) for name, text in RATIOS.items() if name in run]
        lines += ["| what | ratio |", "| --- | ---: |", *(f"| {text} | **{value:.2f}** |" for text, value in found), ""]
    if "matrix_flop_per_second" in run:
        lines.append(f"A product of two large matrices: {run['matrix_flop_per_second'] / 1e9:,.0f} GFLOP/s.\n")
    details = run["details"]
    shown = [column for column in COLUMNS if any(column in entry for entry in details.values())]
    lines += ["| | " + " | ".join(COLUMNS[column][0] for column in shown) + " |", "| --- |" + " ---: |" * len(shown)]
    for name, entry in details.items():
        cells = [COLUMNS[column][1](entry[column]) if column in entry else "" for column in shown]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot_scaling(run: dict[str, Any], folder: Path) -> Path:
    """Time a pair and memory over the number of pairs."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    entries = list(run["details"].values())
    numbers = [entry["pairs"] for entry in entries]
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.2))
    for axis, column, scale, label in (
        (axes[0], "microseconds_per_pair", 1.0, "µs a pair"),
        (axes[1], "peak_memory_bytes", 1e-6, "peak memory, MB"),
    ):
        values = [scale * entry[column] for entry in entries]
        axis.plot(numbers, values, marker="o")
        axis.set(xscale="log", xlabel="pairs scored", ylabel=label, ylim=(0, 1.3 * max(values)))
        axis.grid(alpha=0.3)
    figure.tight_layout()
    picture = folder / f"scaling_{run['device'].partition(':')[0]}.png"
    figure.savefig(picture, dpi=130)
    pyplot.close(figure)
    return picture

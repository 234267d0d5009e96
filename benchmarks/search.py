"""How long indexing and searching a folder of photos takes, and how often the short list keeps the exact best.

Every query is searched twice: with every photo scored, and with a short list by the two-tower head. The exact ranking
then tells how many of the best 1, 5 and 10 photos a short list of each size would have kept.

    python benchmarks/search.py --photos coco/val2014 --captions prepared/coco:test \\
        --checkpoint runs/flickr8k_search/final --output runs/search
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from pixelbert import PixelBert
from pixelbert.data.corpus import Corpus
from pixelbert.files import write_json
from pixelbert.metrics.retrieval import shortlist_recall
from pixelbert.predict.search import SHORTLIST, SearchIndex
from pixelbert.progress import track

SIZES = (10, 20, 50, 100, 200, 500)


def index(photos: Path, checkpoint: str, out: Path) -> dict[str, float]:
    """`pixelbert index`, in a process of its own: its seconds and what it says it did."""
    command = [sys.executable, "-m", "pixelbert", "index", str(photos), "--out", str(out), "--checkpoint", checkpoint]
    started = time.monotonic()
    done = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, check=True, text=True)
    said = json.loads(done.stdout.splitlines()[-1])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"seconds": time.monotonic() - started, "peak_megabytes": peak} | {
        name: said[name] for name in ("photos", "added", "removed")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photos")
    parser.add_argument("--checkpoint", required=True, help="with a two-tower head")
    parser.add_argument(
        "--captions", required=True, help="DIR:SPLIT of prepared data; its first captions are the queries"
    )
    parser.add_argument("--queries", type=int, default=50, help="one caption each of so many images")
    parser.add_argument("--output", type=Path, required=True, help="folder for the index and search.json; new")
    args = parser.parse_args()

    folder = args.output / "index"
    result: dict[str, object] = {"index": index(args.photos, args.checkpoint, folder)}
    result["index_again"] = index(args.photos, args.checkpoint, folder)
    result["index_megabytes"] = sum(file.stat().st_size for file in folder.iterdir()) / 2**20

    corpus = Corpus([args.captions])
    queries = [corpus.text(examples[0]) for examples in corpus.examples_of_images(args.queries).values()]
    model, opened = PixelBert.from_pretrained(args.checkpoint), SearchIndex.open(folder)
    ids = opened.ids()
    paths = [str(opened.path(photo)) for photo in ids]
    seconds: dict[str, list[float]] = {"exact": [], "short_list": []}
    exact, first_stage = np.empty((len(queries), len(ids))), np.empty((len(queries), len(ids)))
    model.search(opened, queries[0])  # opens what is opened once
    for row, text in enumerate(track(queries, "searching")):
        for name, shortlist in (("short_list", SHORTLIST), ("exact", None)):
            started = time.monotonic()
            found = model.search(opened, text, len(ids) if shortlist is None else 10, shortlist)
            seconds[name].append(time.monotonic() - started)
        rank = {one.image: r for r, one in enumerate(found)}  # of all photos, by the search that was exact
        exact[row] = [-rank[path] for path in paths]
        place = {photo: p for p, (photo, _) in enumerate(opened.nearest(model.embed_text(text), len(ids)))}
        first_stage[row] = [-place[photo] for photo in ids]
    result |= {
        "queries": len(queries),
        "photos": len(ids),
        "median_seconds": {name: float(np.median(values)) for name, values in seconds.items()},
        "kept": shortlist_recall(exact, first_stage, SIZES),
        "checkpoint": args.checkpoint,
        "precision": model.precision,
        "cores": len(os.sched_getaffinity(0)),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
        "command": " ".join(["python", *sys.argv]),
    }
    write_json(args.output / "search.json", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

"""Everything that reads input from elsewhere, as targets for `fuzzing.attempt`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fuzz_data import (
    CocoCaptions,
    Folder,
    Images,
    Karpathy,
    Nlvr2,
    Prepared,
    VisualGenome,
    VisualGenomeQa,
    Vqa2,
    VqaCsv,
)
from fuzz_models import Checkpoints, Recipes, Runs
from fuzz_results import Evaluations, Indexes, Requests, ScoreNlvr2, ScoreRetrieval, ScoreVqa
from fuzzing import Target

TARGETS: dict[str, Callable[[Path], Target]] = {
    "images": Images,
    "karpathy": Karpathy,
    "coco-captions": CocoCaptions,
    "visual-genome": VisualGenome,
    "visual-genome-qa": VisualGenomeQa,
    "vqa2": Vqa2,
    "vqa-csv": VqaCsv,
    "nlvr2": Nlvr2,
    "folder": Folder,
    "prepared": Prepared,
    "recipes": Recipes,
    "checkpoints": Checkpoints,
    "runs": Runs,
    "score-vqa": ScoreVqa,
    "score-nlvr2": ScoreNlvr2,
    "score-retrieval": ScoreRetrieval,
    "evaluations": Evaluations,
    "indexes": Indexes,
    "requests": Requests,
}

"""pixelbert: Pixel-BERT, one transformer over image pixels and sentences, with no object detector."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# `import pixelbert` loads all public names, since that makes the models known to transformers' Auto classes. The
# `pixelbert` command alone waits until one is asked for: help, or scoring, need neither torch nor transformers.
if TYPE_CHECKING or Path(*sys.argv[:1]).stem != "pixelbert":
    from pixelbert.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    # All public names are classes. Others are asked for in passing, by `from pixelbert import cli` for one.
    if name[:1].isupper() and name in (public := import_module("pixelbert.public")).__all__:
        return getattr(public, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

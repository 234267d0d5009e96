"""The raw formats that `pixelbert prepare` reads: one file and dataclass each; fields are options."""

from pixelbert.data.sources.coco_captions import CocoCaptions
from pixelbert.data.sources.common import Source
from pixelbert.data.sources.folder import Folder
from pixelbert.data.sources.karpathy import Karpathy
from pixelbert.data.sources.visual_genome import VisualGenome

SOURCES: dict[str, type[Source]] = {
    "karpathy": Karpathy,
    "coco-captions": CocoCaptions,
    "visual-genome": VisualGenome,
    "folder": Folder,
}

__all__ = ["SOURCES", "CocoCaptions", "Folder", "Karpathy", "Source", "VisualGenome"]

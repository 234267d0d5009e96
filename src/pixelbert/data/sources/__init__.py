"""The raw formats that `pixelbert prepare` reads: one file and dataclass each; fields are options."""

from pixelbert.data.sources.coco_captions import CocoCaptions
from pixelbert.data.sources.common import Source
from pixelbert.data.sources.folder import Folder
from pixelbert.data.sources.karpathy import Coco, Flickr30k, Karpathy
from pixelbert.data.sources.nlvr2 import Nlvr2
from pixelbert.data.sources.visual_genome import VisualGenome, VisualGenomeQa
from pixelbert.data.sources.vqa2 import Vqa2
from pixelbert.data.sources.vqa_csv import VqaCsv

SOURCES: dict[str, type[Source]] = {
    "flickr30k": Flickr30k,
    "coco": Coco,
    "karpathy": Karpathy,
    "coco-captions": CocoCaptions,
    "visual-genome": VisualGenome,
    "visual-genome-qa": VisualGenomeQa,
    "folder": Folder,
    "vqa2": Vqa2,
    "vqa-csv": VqaCsv,
    "nlvr2": Nlvr2,
}

__all__ = [
    "SOURCES",
    "Coco",
    "CocoCaptions",
    "Flickr30k",
    "Folder",
    "Karpathy",
    "Nlvr2",
    "Source",
    "VisualGenome",
    "VisualGenomeQa",
    "Vqa2",
    "VqaCsv",
]

"""The paper's Table 1 (statistics of the data sets), to stand beside the counts of what was prepared."""

from typing import NamedTuple


class PaperCount(NamedTuple):
    """One row of Table 1.

    Attributes:
        use: what the paper uses the data for.
        images: the column "#Imgs".
        texts: the column "#Text".
        splits: the splits that the figures are of, by our names.
        note: why the official files may give other figures; empty where nobody need wonder.
    """

    use: str
    images: str
    texts: str
    splits: tuple[str, ...]
    note: str


# Pixel-BERT (arXiv:2004.00849), Table 1, by the name of the prepared data set. The notes are ours: the paper does not
# say how it counted, and they give the count of the official files that comes nearest.
TABLE_1: dict[str, list[PaperCount]] = {
    "vg": [
        PaperCount(
            "pre-training",
            "101K",
            "5.06M",
            ("train",),
            "Visual Genome has 108,077 images; the paper's are fewer, as when images of evaluation sets are left out",
        )
    ],
    "coco": [
        PaperCount(
            "pre-training",
            "106K",
            "533K",
            ("train", "restval"),
            "Karpathy's train and restval have 113,287 images; the paper does not say which it left out",
        ),
        PaperCount(
            "retrieval",
            "92K",
            "460K",
            ("train", "val", "test"),
            "92K is train, val and test without restval (82,783 + 5,000 + 5,000), though the table says train+restval",
        ),
    ],
    "flickr30k": [
        PaperCount(
            "retrieval",
            "32K",
            "160K",
            ("train", "val", "test"),
            "Flickr30K has 31,783 images, of which Karpathy's splits use 31,014",
        )
    ],
    "vqa2": [
        PaperCount(
            "question answering",
            "204K",
            "1.1M",
            ("train", "val", "test"),
            "the paper counts all splits: 443,757 + 214,354 + 447,793 questions",
        )
    ],
    "nlvr2": [
        PaperCount(
            "reasoning",
            "214K",
            "107K",
            ("train", "dev", "test1", "test2"),
            "the paper counts all splits, test2 among them, and two images a sentence; here an image counts once",
        )
    ],
}


def beside_table1(name: str, splits: dict[str, dict[str, int]]) -> list[str]:
    """Lines that compare a prepared data set with the paper; none if the paper does not use it.

    Args:
        name: the data set's name.
        splits: images and examples of each split.
    """
    lines = []
    for row in TABLE_1.get(name, []):
        here = [split for split in row.splits if split in splits]
        if not here:
            continue
        images, texts = (sum(splits[split][count] for split in here) for count in ("images", "examples"))
        lines.append(
            f"Table 1 of the paper, {row.use}: {row.images} images, {row.texts} texts; here {images:,} and {texts:,} "
            f"({'+'.join(here)})"
        )
        absent = [split for split in row.splits if split not in splits]
        if absent:
            lines.append(f"  not prepared here: {', '.join(absent)}")
        lines.append(f"  {row.note}")
    return lines

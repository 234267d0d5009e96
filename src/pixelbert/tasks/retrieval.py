"""Image-text retrieval (paper section 4.2): one right and 20 wrong sentences an image, ranked by softmax.

The gradient goes through the right sentence and the five hardest wrong ones. The CNN is frozen, so each image is
encoded once: in training for all its sentences, in evaluation for all captions of the split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from pixelbert.bounds import SHARE, Bound, check_fields
from pixelbert.data.corpus import Corpus
from pixelbert.data.feature_cache import View
from pixelbert.data.photos import Photos
from pixelbert.data.processing import PixelBertProcessor
from pixelbert.data.sampler import Draw, keyed_rng
from pixelbert.device import Precision, Share
from pixelbert.errors import PixelBertError
from pixelbert.metrics.retrieval import recall_at_k
from pixelbert.model.fine_tuning import PixelBertForImageAndTextRetrieval
from pixelbert.progress import Tracker
from pixelbert.tasks.scoring import SENTENCES_AT_ONCE, encode_images
from pixelbert.tasks.sentences import mismatched_example, names_a_side
from pixelbert.tasks.shortlist import tower_recall
from pixelbert.tasks.steps import StepBatch, StepData, StepLoss, move, text_inputs
from pixelbert.tasks.task import Task


@dataclass
class Retrieval(Task):
    """Image-text retrieval. The defaults are the paper's.

    Args:
        kind: the task's name.
        wrong: sentences of other images beside each right one.
        hardest: of these, how many the gradient goes through: those that the model scores highest.
        towers: teach a two-tower head beside it (not in the paper), by which a search short-lists.
        tower_size: width of its vectors.
        joint_share: what the joint score counts in a pair's, beside the two-tower head's, from 0 to 1.
    """

    kind: Literal["retrieval"] = "retrieval"
    wrong: Annotated[int, Bound(ge=1, le=10_000)] = 20
    hardest: Annotated[int, Bound(ge=1, le=10_000)] = 5
    towers: bool = False
    tower_size: Annotated[int, Bound(ge=1, le=100_000)] = 256
    joint_share: Annotated[float, SHARE] = 0.5

    reads: ClassVar[str] = "captions"
    model_class: ClassVar[type] = PixelBertForImageAndTextRetrieval

    def __post_init__(self) -> None:
        check_fields(self, "task")
        if self.hardest > self.wrong:
            raise PixelBertError(
                f"task.hardest is {self.hardest} and task.wrong {self.wrong}; expected no more hardest than wrong ones"
            )

    @property
    def has_towers(self) -> bool:
        """See `Task.has_towers`."""
        return self.towers

    def data(self, *args: Any, **options: Any) -> RankingData:
        """See `Task.data`."""
        return RankingData(*args, **options, task=self)  # type: ignore[misc]

    def loss(self, model: nn.Module, batch: StepBatch) -> StepLoss:
        """Softmax cross-entropy, mean over the right pairs of the step."""
        output = model(**batch.inputs)
        loss = output.loss / batch.in_step["rows"]
        groups = output.logits.detach().view(-1, 1 + self.wrong)
        first = (groups[:, :1] > groups[:, 1:]).all(1).sum() / batch.in_step["rows"]
        logged = {"ranking_loss": loss.detach(), "ranked_first": first}
        if output.contrastive_loss is not None:
            apart = output.contrastive_loss / batch.in_step["rows"]
            loss, logged["contrastive_loss"] = loss + apart, apart.detach()
        return StepLoss(loss, logged)

    def validate(
        self, model: Any, processor: PixelBertProcessor, photos: Photos, examples: int, precision: Precision
    ) -> dict[str, float]:
        """Recall both ways among the images whose captions are the first `examples`, one caption each."""
        groups = photos.corpus.examples_of_images()
        chosen = [captions[0] for captions in groups.values()][: max(int(examples**0.5), 2)]
        images = [int(photos.corpus.image_of[e]) for e in chosen]
        scores = np.full((len(chosen), len(images)), np.nan, dtype=np.float32)
        score_all_pairs(model, processor, photos, chosen, images, scores, precision=precision, show=False)
        found = {"images": len(images)} | all_pairs_recall(photos.corpus, chosen, images, scores)
        if self.towers:
            found |= tower_recall(model, processor, photos, images=len(images), precision=precision)
        return found

    def summary(self, row: dict[str, float]) -> str:
        """The figures that matter, beside chance, in one line."""
        return (
            f"R@1 text to image {row['text_to_image_r1']:.3f}, image to text {row['image_to_text_r1']:.3f} "
            f"among {row['images']:.0f} images (chance {1 / row['images']:.3f})"
        )


class Group(NamedTuple):
    """One row of a batch: an image, its right sentence, and wrong ones.

    Args:
        example: the right sentence's number.
        view: its image.
        ids: 1 + wrong sentences' tokens, the right one first.
    """

    example: int
    view: View
    ids: list[np.ndarray]

    @property
    def length(self) -> int:
        """Tokens of the longest sentence."""
        return max(map(len, self.ids))


@dataclass
class RankingData(StepData[Group]):
    """The batches of retrieval; see `StepData`."""

    task: Retrieval = field(default_factory=Retrieval)

    def __post_init__(self) -> None:
        self.corpus.own_texts(0)  # collected here, once, and not by each process that loads data

    @property
    def pairs_per_row(self) -> int:  # type: ignore[override]
        """The right sentence and the wrong ones."""
        return 1 + self.task.wrong

    def rows(self, draws: Sequence[Draw]) -> list[Group]:
        """See `StepData.rows`."""
        chosen = [self._candidates(draw) for draw in draws]
        ids = iter(self.tokens([self.corpus.text(e) for examples in chosen for e in examples]))
        rows = []
        for draw, examples in zip(draws, chosen, strict=True):
            one_sided = names_a_side(self.corpus.text(draw.example))
            view = self.view(draw, int(self.corpus.image_of[draw.example]), one_sided=one_sided)
            rows.append(Group(draw.example, view, [next(ids) for _ in examples]))
        return rows

    def _candidates(self, draw: Draw) -> list[int]:
        """The right sentence, then wrong ones, no sentence twice."""
        rng = keyed_rng(self.order.seed, *draw)
        taken = self.corpus.own_texts(draw.example)
        candidates = [draw.example]
        for _ in range(self.task.wrong):
            candidates.append(mismatched_example(self.corpus, draw.example, taken, rng))
            taken = taken | {self.corpus.text(candidates[-1])}
        return candidates

    def collate(self, rows: Sequence[Group]) -> dict[str, Any]:
        """Groups to the arguments of the model, group after group."""
        n = self.pairs_per_row
        text = text_inputs([ids for row in rows for ids in row.ids], self.processor.tokenizer.pad_token_id)
        images = self.images([[row.view] for row in rows])
        images["image_index"] = images["image_index"].repeat_interleave(n)
        return text | images | {"candidates": n, "hardest": self.task.hardest, "towers": self.task.towers}


@torch.inference_mode()
def score_all_pairs(
    model: Any,
    processor: PixelBertProcessor,
    photos: Photos,
    captions: Sequence[int],
    images: Sequence[int],
    scores: np.ndarray,
    *,
    wanted: np.ndarray | None = None,
    precision: Precision = "bf16",
    images_at_once: int = 100,
    share: Share = Share(),  # noqa: B008  a constant
    show: bool = True,
) -> None:
    """Fill in the scores of every caption with every image; those that are not NaN are there already and are left.

    Images are encoded once; captions of like length go together, each with the images of a block. Memory holds
    `images_at_once` images' features, and `scores`, which may be a memory-mapped file: scores are written when they
    are made, so whoever stops this loses no more than a moment's work.

    Args:
        captions: examples, the rows of `scores`.
        images: image numbers, its columns.
        scores: (captions, images) float32, NaN where still to be done.
        wanted: (captions, images) true for the pairs to score; all if None.
        share: the blocks of images that this process does, where several fill one file.
    """
    corpus = photos.corpus
    tokens = processor.tokens([corpus.text(e) for e in captions])
    by_length = np.array(sorted(range(len(tokens)), key=lambda i: len(tokens[i])))
    was_training = model.training
    model.eval()

    def missing(block: slice) -> np.ndarray:
        to_do = np.isnan(scores[:, block])
        return to_do if wanted is None else to_do & wanted[:, block]

    images_at_once = min(images_at_once, -(-len(images) // share.world))  # something for each process
    blocks = [slice(i, min(i + images_at_once, len(images))) for i in range(0, len(images), images_at_once)]
    blocks = share.of(blocks)
    total = sum(scores[:, b].size if wanted is None else int(wanted[:, b].sum()) for b in blocks)
    left = sum(int(missing(b).sum()) for b in blocks)
    with Tracker("scoring pairs", total, done=total - left, show=show) as tracker:
        for block in blocks:
            rows, columns = np.nonzero(missing(block)[by_length])
            if not len(rows):
                continue
            rows = by_length[rows]
            with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
                features = encode_images(model, photos, images[block], show=False)
                for start in range(0, len(rows), SENTENCES_AT_ONCE):
                    r, c = rows[start : start + SENTENCES_AT_ONCE], columns[start : start + SENTENCES_AT_ONCE]
                    sentences, which = np.unique(r, return_inverse=True)
                    text = text_inputs([tokens[i] for i in sentences], processor.tokenizer.pad_token_id)
                    inputs = {key: value[torch.from_numpy(which)] for key, value in text.items()}
                    inputs["image_index"] = torch.from_numpy(c)
                    known = {}
                    if model.pixelbert.towers is not None:
                        known["text_vectors"] = model.pixelbert.embed_texts(**move(text, model.device))[which]
                    found = pair_logits(model(features, **move(inputs, model.device), **known))
                    scores[r, block.start + c] = found.float().cpu().numpy()
                    tracker.advance(len(r))
    model.train(was_training)
    share.wait()


def pair_logits(output: Any) -> torch.Tensor:
    """(P,) the score of each pair: a retrieval model's, or the matching head's of a pre-trained one."""
    return output.match_logits if hasattr(output, "match_logits") else output.logits


def all_pairs_recall(
    corpus: Corpus, captions: Sequence[int], images: Sequence[int], scores: np.ndarray
) -> dict[str, float]:
    """Recall at 1, 5, 10 both ways from (captions, images) scores; see `recall_at_k`."""
    column = {image: i for i, image in enumerate(images)}
    owner = np.array([column[int(corpus.image_of[e])] for e in captions])
    return recall_at_k(scores.T, owner, photo=corpus.photos[images])

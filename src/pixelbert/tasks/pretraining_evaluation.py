"""What a pre-trained model has learned: MLM and ITM beside their controls, and zero-shot retrieval.

Each figure stands beside the one with what it claims to use taken away: masked words with another photo, matching with
blank photos. All pixels are used (paper section 3.3: sampling is for pre-training only).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pixelbert.data.photos import Photos
from pixelbert.data.processing import PixelBertProcessor
from pixelbert.data.sampler import keyed_rng
from pixelbert.device import Precision
from pixelbert.metrics.retrieval import recall_at_k
from pixelbert.model.modeling import IGNORE, PixelBertForPreTraining
from pixelbert.model.pixels import PixelFeatures
from pixelbert.progress import track
from pixelbert.tasks.scoring import encode_blank, encode_images
from pixelbert.tasks.sentences import mask_tokens, mismatched_example
from pixelbert.tasks.shortlist import tower_scores


@dataclass
class Sentence:
    """A sentence of one pair: shown tokens, labels of masked ones, and the row of its image in the features."""

    ids: list[int]
    image: int
    labels: list[int] | None = None


@torch.inference_mode()
def run_pairs(
    model: PixelBertForPreTraining,
    features: PixelFeatures,
    sentences: Sequence[Sentence],
    description: str,
    *,
    batch: int = 256,
    show: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Run all pairs, sentences of one length together.

    Returns:
        (P,) match logits, and (P, 3) of each pair's masked tokens: sum of losses, number right, number.
    """
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i].ids))
    match = np.empty(len(sentences))
    masked = np.zeros((len(sentences), 3))
    for start in track(range(0, len(order), batch), description, show=show):
        rows = order[start : start + batch]
        chosen = [sentences[i] for i in rows]
        pad = partial(pad_to_longest, device=model.device)
        labels = None
        if chosen[0].labels is not None:
            labels = pad([s.labels or [] for s in chosen], IGNORE)
        output = model(
            features,
            input_ids=pad([s.ids for s in chosen], 0),
            attention_mask=pad([[1] * len(s.ids) for s in chosen], 0),
            image_index=torch.tensor([s.image for s in chosen], device=model.device),
            token_labels=labels,
        )
        match[rows] = output.match_logits.float().cpu().numpy()
        if labels is not None:
            where = labels != IGNORE
            true = labels[where]
            losses = torch.nn.functional.cross_entropy(output.token_logits, true, reduction="none")
            pair = where.nonzero()[:, 0].cpu().numpy()
            right = (output.token_logits.argmax(-1) == true).float()
            for column, values in enumerate((losses, right, torch.ones_like(right))):
                np.add.at(masked[:, column], np.asarray(rows)[pair], values.cpu().double().numpy())
    return match, masked


def pad_to_longest(rows: Sequence[Sequence[int]], value: int, device: torch.device) -> Tensor:
    """(rows, longest row) filled up with `value`."""
    padded = torch.full((len(rows), max(len(r) for r in rows)), value)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row)
    return padded.to(device)


def evaluate_pretraining(
    model: PixelBertForPreTraining,
    processor: PixelBertProcessor,
    photos: Photos,
    *,
    examples: int | None = None,
    retrieval_images: int = 0,
    captions_per_image: int = 1,
    seed: int = 0,
    precision: Precision = "bf16",
    show: bool = True,
) -> dict[str, float | int]:
    """Measure MLM, ITM and zero-shot retrieval.

    Args:
        photos: the images of a split, and its captions.
        examples: how many examples, from the first; all if None.
        retrieval_images: number of images, from the first, whose captions are ranked among each other; 0 for none.
        captions_per_image: captions of each of them, from the first; 0 for all.
        seed: of the masks and the mismatched sentences, which are the same for every model.
        precision: bf16 (autocast) or fp32.

    Returns:
        itm_accuracy against a random caption of another image, and with blank photos (chance 0.5), with a two-tower
        head also by that alone (`_apart`) and by the matching head alone (`_joint`); mlm_loss and
        mlm_accuracy with the right photo, with another photo and with a blank one; recall both ways.
    """
    was_training = model.training
    model.eval()
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        result = _matching_and_masking(model, processor, photos, examples, seed, precision, show)
        if retrieval_images:
            result |= _retrieval(model, processor, photos, retrieval_images, captions_per_image, show)
    model.train(was_training)
    return result


def _matching_and_masking(
    model: PixelBertForPreTraining,
    processor: PixelBertProcessor,
    photos: Photos,
    limit: int | None,
    seed: int,
    precision: Precision,
    show: bool,
) -> dict[str, float | int]:
    corpus = photos.corpus
    chosen = range(len(corpus))[:limit]
    tokens: dict[int, list[int]] = {}
    others, masks = [], []
    for example in chosen:
        rng = keyed_rng(seed, example)
        other = mismatched_example(corpus, example, corpus.own_texts(example), rng)
        for e in (example, other):
            if e not in tokens:
                tokens[e] = processor.tokens([corpus.text(e)])[0].tolist()
        others.append(other)
        masks.append(mask_tokens(np.array(tokens[example]), processor.tokenizer, 0.15, rng))
    used = sorted({int(corpus.image_of[e]) for e in [*chosen, *others]})
    row = {image: i for i, image in enumerate(used)}
    image_row = [row.get(int(i), -1) for i in corpus.image_of]
    run = partial(run_pairs, model, show=show)

    matching = [Sentence(tokens[e], image_row[e]) for e in chosen]
    matching += [Sentence(tokens[o], image_row[e]) for e, o in zip(chosen, others, strict=True)]
    right = np.arange(len(matching)) < len(chosen)
    with_photo = [
        Sentence(shown.tolist(), image_row[e], labels.tolist())
        for e, (shown, labels) in zip(chosen, masks, strict=True)
    ]
    with_other = [Sentence(s.ids, image_row[o], s.labels) for s, o in zip(with_photo, others, strict=True)]
    features = encode_images(model, photos, used, show=show)
    blank = encode_blank(model, photos, used)
    scores = run(features, matching, "matching")[0]
    result: dict[str, float | int] = {
        "examples": len(chosen),
        "itm_accuracy": float(((scores > 0) == right).mean()),
        "itm_accuracy_blank": float(((run(blank, matching, "matching, blank photos")[0] > 0) == right).mean()),
    }
    if model.pixelbert.towers is not None:
        cosines = tower_scores(model, processor, photos, list(tokens), used, features=features, precision=precision)
        sentence = {e: i for i, e in enumerate(tokens)}
        said = [sentence[e] for e in [*chosen, *others]]
        apart = model.pixelbert.towers.match_cosines(cosines[said, [s.image for s in matching]])
        result["itm_accuracy_apart"] = float(((apart > 0) == right).mean())
        share = model.config.joint_share
        if share:
            joint = scores - (1 - share) * apart  # times the share
            result["itm_accuracy_joint"] = float(((joint > 0) == right).mean())
    for name, pixels, sentences in (
        ("", features, with_photo),
        ("_other_photo", features, with_other),
        ("_blank", blank, with_photo),
    ):
        loss, correct, count = run(pixels, sentences, f"masked words{name.replace('_', ' ')}")[1].sum(0)
        result |= {f"mlm_loss{name}": float(loss / count), f"mlm_accuracy{name}": float(correct / count)}
    return result


def _retrieval(
    model: PixelBertForPreTraining,
    processor: PixelBertProcessor,
    photos: Photos,
    images: int,
    captions_per_image: int,
    show: bool,
) -> dict[str, float | int]:
    corpus = photos.corpus
    groups = corpus.examples_of_images(images)
    captions = [e for es in groups.values() for e in (es[:captions_per_image] if captions_per_image else es)]
    rows = {image: i for i, image in enumerate(groups)}
    caption_image = np.array([rows[int(corpus.image_of[e])] for e in captions])
    tokens = [ids.tolist() for ids in processor.tokens([corpus.text(e) for e in captions])]
    features = encode_images(model, photos, list(groups), show=show)
    pairs = [Sentence(ids, image) for ids in tokens for image in range(len(groups))]
    scores = run_pairs(model, features, pairs, "all pairs", show=show)[0].reshape(len(captions), len(groups)).T
    recall = recall_at_k(scores, caption_image, photo=corpus.photos[list(groups)])
    return {"retrieval_images": len(groups), "retrieval_captions": len(captions)} | recall

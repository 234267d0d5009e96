"""The high-level class: photos and sentences in, plain numbers out.

Shapes: I images, P pairs of an image and a sentence, L word tokens, K pixels, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub import HfApi

from pixelbert.data.inputs import ImageInput, given_sentences
from pixelbert.data.processing import PixelBertProcessor
from pixelbert.device import Precision, best_device, best_precision
from pixelbert.errors import PixelBertError
from pixelbert.loading import SHIPPED, load_answering, load_checkpoint
from pixelbert.model.fine_tuning import (
    PixelBertForImageAndTextRetrieval,
    PixelBertForImagesAndTextClassification,
    PixelBertForQuestionAnswering,
)
from pixelbert.model.inference import for_inference
from pixelbert.model.modeling import PixelBertForPreTraining
from pixelbert.model.pixels import PixelFeatures
from pixelbert.predict.attention import Attention, WordMap, words_of
from pixelbert.predict.encoded import RecentFeatures, as_photos
from pixelbert.predict.search import SHORTLIST, Found, SearchIndex, search
from pixelbert.tasks.steps import move, text_inputs

IMAGES_AT_ONCE = 8  # through the CNN, and held while their sentences are scored
PAIRS_AT_ONCE = 64  # through the transformer
REMEMBERED = 64  # images whose features are kept for the next question about them
KINDS: dict[type, str] = {
    PixelBertForPreTraining: "pre-trained",
    PixelBertForQuestionAnswering: "fine-tuned for question answering",
    PixelBertForImagesAndTextClassification: "fine-tuned for statements about two photos (NLVR2)",
    PixelBertForImageAndTextRetrieval: "fine-tuned for retrieval",
}


class Answer(NamedTuple):
    """An answer to a question, and its probability (each answer has its own; they don't sum to 1)."""

    answer: str
    score: float


class Fill(NamedTuple):
    """A token in place of [MASK], and its probability among all tokens. One that starts with ## ends a word."""

    token: str
    score: float


class Judgement(NamedTuple):
    """Whether a statement is true of two photos, and the probability that it is."""

    true: bool
    score: float


class PixelBert:
    """A trained model with its processor: what it can do depends on what it was trained for.

    An image may be a path, the bytes of an image file, a Pillow image or an array (H, W, 3) of uint8. It is encoded
    once, and its features are kept while it is among the last so many used.

    Of a text, the first `processor.max_length` - 2 tokens are read (a word is one or several; 38 with the model that
    ships), and words that the vocabulary lacks are read as [UNK]. A call with such texts issues one `UnreadWarning`;
    `processor.unread(texts)` tells of each.

    Args:
        model: one of the four networks with a head. It stays as it is; `.model` is a copy made ready for inference (see
            `for_inference`).
        processor: resizes photos and cuts words.
        precision: fp32, or bf16 (bfloat16 weights).
        remembered: images whose features are kept.

    Attributes:
        model: the network, made ready for inference.
        answering: the network that answers questions, if there is one: `model`, or one that shares its trunk.
    """

    def __init__(
        self, model: Any, processor: PixelBertProcessor, precision: Precision = "fp32", remembered: int = REMEMBERED
    ) -> None:
        self.model = for_inference(model, precision)
        self.answering: Any = self.model if isinstance(model, PixelBertForQuestionAnswering) else None
        self.processor, self.precision = processor, precision
        self.recent = RecentFeatures(remembered)

    @classmethod
    def from_pretrained(
        cls, checkpoint: str | Path = SHIPPED, device: str | None = None, precision: Precision | None = None
    ) -> PixelBert:
        """Load a checkpoint from a folder or a hub.

        Args:
            checkpoint: a run's `final` folder, or a hub name, whichever of the four networks was saved there; the model
                that ships with the project by default.
            device: cuda, mps or cpu; the best there is if None.
            precision: bf16 or fp32; if None bf16 where the device is clearly faster in it, which is measured. With
                fp32, scores are those of the model's own forward.

        Raises:
            PixelBertError: no checkpoint there, or no such device.
        """
        device = best_device(device)
        model, processor, _ = load_checkpoint(checkpoint, device)
        loaded = cls(model, processor, precision or best_precision(device))
        loaded.answering = loaded.answering or load_answering(checkpoint, loaded.model.pixelbert)
        return loaded

    @torch.inference_mode()
    def match(self, images: ImageInput | Iterable[ImageInput], texts: str | Iterable[str]) -> np.ndarray:
        """The probability that each sentence belongs to each image (S of eq. 8).

        Of a model that was fine-tuned for retrieval, the sigmoid of the score that ranks; it has learned to rank, so
        compare its values with each other and not with 0.5.

        Args:
            images: I of them in any sequence (a list, a pandas Series, ...), or one.
            texts: T sentences in any sequence, or one.

        Returns:
            (I, T) float32, whatever else is asked in the same call.

        Raises:
            PixelBertError: another kind of checkpoint; an image that cannot be read; an empty text.
        """
        self._must_be("match", PixelBertForPreTraining, PixelBertForImageAndTextRetrieval)
        photos = as_photos(images)
        ids = self._read(given_sentences(texts))
        scores = np.empty((len(photos), len(ids)), dtype=np.float32)
        for first in range(0, len(photos), IMAGES_AT_ONCE):
            some = photos[first : first + IMAGES_AT_ONCE]
            pairs = [(i, t) for i in range(len(some)) for t in range(len(ids))]
            logits = self._score(self._encode(some), ids, pairs)
            scores[first : first + len(some)] = probabilities(logits).reshape(len(some), len(ids))
        return scores

    @torch.inference_mode()
    def match_each(self, asked: Sequence[tuple[ImageInput, Sequence[str]]]) -> list[np.ndarray]:
        """As `match`, of several images that have sentences of their own, which go through the network together.

        Args:
            asked: images, each with its sentences.

        Returns:
            The scores of each image's sentences, (T,) float32.

        Raises:
            PixelBertError: as `match`.
        """
        self._must_be("match_each", PixelBertForPreTraining, PixelBertForImageAndTextRetrieval)
        found: list[np.ndarray] = []
        waiting = iter(self._read([text for _, texts in asked for text in texts]))
        for first in range(0, len(asked), IMAGES_AT_ONCE):
            some = asked[first : first + IMAGES_AT_ONCE]
            counts = [len(texts) for _, texts in some]
            ids = list(islice(waiting, sum(counts)))
            pairs = list(zip(np.repeat(np.arange(len(some)), counts).tolist(), range(len(ids)), strict=True))
            logits = self._score(self.encode([image for image, _ in some]), ids, pairs)
            found += np.split(probabilities(logits), np.cumsum(counts)[:-1])
        return found

    def _score(
        self, features: PixelFeatures, ids: Sequence[np.ndarray], pairs: Sequence[tuple[int, int]]
    ) -> np.ndarray:
        """The logits (P,) of pairs of an image and a sentence, which are passed in the order of their lengths."""
        order = sorted(range(len(pairs)), key=lambda p: len(ids[pairs[p][1]]))
        scores = np.empty(len(pairs), dtype=np.float32)
        for start in range(0, len(order), PAIRS_AT_ONCE):
            some = order[start : start + PAIRS_AT_ONCE]
            index, text = np.array([pairs[p] for p in some]).T
            sentences, which = np.unique(text, return_inverse=True)
            vectors = self._vectors([ids[t] for t in sentences])
            known = {} if vectors is None else {"text_vectors": vectors[which]}
            output = self._run(self.model, features, [ids[t] for t in text], torch.from_numpy(index), **known)
            logits = output.match_logits if isinstance(self.model, PixelBertForPreTraining) else output.logits
            scores[some] = logits.float().cpu().numpy()
        return scores

    @torch.inference_mode()
    def answer(self, image: ImageInput, question: str, top: int = 5) -> list[Answer]:
        """The likeliest answers to a question, best first (paper section 4.2, VQA).

        Raises:
            PixelBertError: another kind of checkpoint; an image that cannot be read; an empty question.
        """
        if self.answering is None:
            self._must_be("answer", PixelBertForQuestionAnswering)
        ids = self._read([question])
        scores = self._run(self.answering, self.encode(image), ids).logits[0].float().sigmoid()
        answers = self.answering.answers
        best = scores.topk(min(top, len(answers)))
        return [Answer(answers[a], s) for s, a in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    @torch.inference_mode()
    def fill_mask(self, image: ImageInput, text: str, top: int = 5) -> list[list[Fill]]:
        """The likeliest tokens for each [MASK] of a text, best first (paper section 3.3, MLM).

        Returns:
            A list for each [MASK], in order. Each is judged with the others still masked.

        Raises:
            PixelBertError: another kind of checkpoint; an image that cannot be read; no [MASK], or one beyond the
                processor's `max_length`.
        """
        self._must_be("fill_mask", PixelBertForPreTraining)
        tokenizer = self.processor.tokenizer
        (ids,) = self._read([text])
        places = np.flatnonzero(ids == tokenizer.mask_token_id)
        if not len(places) or len(places) < text.count(tokenizer.mask_token):
            reason = "lies beyond the tokens that the model reads" if tokenizer.mask_token in text else "is missing"
            raise PixelBertError(
                f"{tokenizer.mask_token} {reason}: write it where a word is to be filled in, within the first "
                f"{self.processor.max_length - 2} tokens"
            )
        output = self._run(self.model, self.encode(image), [ids], output_token_logits=True)
        named = output.token_logits[0, places.tolist(), : len(tokenizer)]  # a network may have rows that no token has
        probabilities = named.float().softmax(-1)
        best = probabilities.topk(min(top, probabilities.shape[-1]))
        return [
            [Fill(token, s) for token, s in zip(tokenizer.convert_ids_to_tokens(tokens), scores, strict=True)]
            for tokens, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    @torch.inference_mode()
    def reason(self, left: ImageInput, right: ImageInput, statement: str) -> Judgement:
        """Whether a statement is true of a left and a right photo (paper section 4.2, NLVR2).

        Raises:
            PixelBertError: another kind of checkpoint; an image that cannot be read; an empty statement.
        """
        self._must_be("reason", PixelBertForImagesAndTextClassification)
        ids = self._read([statement])
        logits = self._run(self.model, self.encode([left, right]), ids, torch.tensor([[0, 1]])).logits[0]
        score = logits.float().softmax(0)[1].item()
        return Judgement(score > 0.5, score)

    def attend(
        self,
        image: ImageInput,
        text: str,
        token: str | None = None,
        layer: int | None = None,
        head: int | None = None,
        rollout: bool = False,
    ) -> list[WordMap]:
        """What each word of a text looks at, or one word (paper section 4.4, Fig. 3); any checkpoint can tell.

        `pixelbert.predict.maps.overlay` draws a map over its photo. For several layers or heads of one pair, take
        `attention` once.

        Args, returns, raises: see `Attention.maps`.
        """
        return self.attention(image, text).maps(token, layer, head, rollout)

    @torch.inference_mode()
    def attention(self, image: ImageInput, text: str) -> Attention:
        """All attention of a pair, in every layer and head, from one pass.

        Of a model for two photos, the pass over the one given.
        """
        ids = self._read([text])
        words, pieces = words_of(text, self.processor.encode([text])[0])
        features = self.encode(image)
        output = self._run(self.model.pixelbert, features, ids, output_attentions=True)
        weights = torch.cat(output.attentions).float().cpu().numpy()
        rows, columns = features.grid[0].tolist()
        return Attention(weights, words, pieces, (rows, columns))

    def search(
        self, index: SearchIndex | str | Path, text: str, top: int = 10, shortlist: int | None = SHORTLIST
    ) -> list[Found]:
        """The photos of an index to which a sentence most likely belongs, best first.

        The two-tower head, if the model has one, short-lists. What it hands on is ranked by what `match` gives.

        Args:
            index: of `pixelbert index` (`index_photos`), made with this checkpoint.
            text: a sentence.
            top: photos to give.
            shortlist: photos that are scored jointly; None for all, as without a two-tower head.

        Raises:
            PixelBertError: another kind of checkpoint, or another than the index's; no index; an empty text.
        """
        self._must_be("search", PixelBertForPreTraining, PixelBertForImageAndTextRetrieval)
        opened = index if isinstance(index, SearchIndex) else SearchIndex.open(index)
        self._read([text])
        return search(self, opened, text, top, shortlist)

    def push_to_hub(self, repository: str, private: bool | None = None, token: str | None = None) -> str:
        """Upload the checkpoint that this was loaded from, its model card included, to the Hugging Face hub.

        Args:
            repository: its name there, "user/model"; made if there is none.
            private: whether others may not see it; the hub's own default if None.
            token: of the hub; the one of `hf auth login` if None.

        Returns:
            The address of the model's page.

        Raises:
            PixelBertError: it was not loaded from a folder.
        """
        folder = Path(self.source)
        if not self.source or not folder.is_dir():
            raise PixelBertError(f"{self.source or 'this model'} is no folder to upload: load the checkpoint from one")
        hub = HfApi(token=token)
        url = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload a Pixel-BERT")
        return str(url)

    @property
    def source(self) -> str:
        """The checkpoint that it was loaded from."""
        return str(self.model.name_or_path)

    @torch.inference_mode()
    def embed_images(self, features: PixelFeatures) -> np.ndarray | None:
        """The two-tower head's vectors of encoded images (I, E) float32, of length 1; None without such a head."""
        if self.model.pixelbert.towers is None:
            return None
        return self.model.pixelbert.embed_images(features.to(self.model.device)).float().cpu().numpy()

    @torch.inference_mode()
    def embed_text(self, text: str) -> np.ndarray | None:
        """The two-tower head's vector of a sentence (E,) float32, of length 1; None without such a head."""
        vectors = self._vectors(self.processor.tokens([text]))
        return None if vectors is None else vectors[0].float().cpu().numpy()

    def _vectors(self, ids: Sequence[np.ndarray]) -> torch.Tensor | None:
        """The two-tower head's vectors of sentences (T, E) on the model's device; None without such a head."""
        if self.model.pixelbert.towers is None:
            return None
        inputs = text_inputs(ids, self.processor.tokenizer.pad_token_id)
        return self.model.pixelbert.embed_texts(**move(inputs, self.model.device))

    @torch.inference_mode()
    def logits_of(self, features: PixelFeatures, text: str) -> np.ndarray:
        """The logits of what `match` gives, of images that are encoded already: (I,) float32."""
        pairs = [(i, 0) for i in range(len(features))]
        return self._score(features.to(self.model.device), self.processor.tokens([text]), pairs)

    def encode(self, images: ImageInput | Iterable[ImageInput]) -> PixelFeatures:
        """The pixel embeddings of images (I, K, D), each through the CNN once while it is among those used last.

        Raises:
            PixelBertError: an image that cannot be read.
        """
        return self._encode(as_photos(images))

    @torch.inference_mode()
    def _encode(self, photos: Sequence[Any]) -> PixelFeatures:
        found = {photo.key: self.recent.get(photo.key) for photo in photos}
        new = {photo.key: photo.image for photo in photos if found[photo.key] is None}
        for start in range(0, len(new), IMAGES_AT_ONCE):
            keys = list(new)[start : start + IMAGES_AT_ONCE]
            inputs = move(dict(self.processor(images=[new[key] for key in keys])), self.model.device)
            features = self.model.encode_images(inputs["pixel_values"])
            for i, (key, pixels_of_image) in enumerate(zip(keys, features.lengths.tolist(), strict=True)):
                one = PixelFeatures(features.values[i : i + 1, :pixels_of_image].clone(), features.grid[i : i + 1])
                found[key] = one
                self.recent.put(key, one)
        return PixelFeatures.concatenate([found[photo.key] for photo in photos])  # type: ignore[misc]

    def _run(
        self,
        model: Any,
        features: PixelFeatures,
        ids: Sequence[np.ndarray],
        image_index: torch.Tensor | None = None,
        **options: Any,
    ) -> Any:
        inputs: dict[str, Any] = text_inputs(ids, self.processor.tokenizer.pad_token_id)
        inputs["image_index"] = torch.zeros(len(ids), dtype=torch.long) if image_index is None else image_index
        return model(features, **move(inputs, self.model.device), **options)

    def _read(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text; one `UnreadWarning` for all, if they are not read whole."""
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise PixelBertError(f"{text!r} is no text: expected a sentence")
        unread = self.processor.unread(texts)
        if unread.empty:
            raise PixelBertError(f"{unread.empty[0]!r} is no text: it has nothing but characters that are not seen")
        unread.warn()
        return self.processor.tokens(texts)

    def _must_be(self, method: str, *kinds: type) -> None:
        if not isinstance(self.model, kinds):
            has = KINDS.get(type(self.model), type(self.model).__name__)
            raise PixelBertError(
                f"{self.model.name_or_path or 'this model'} is {has}: `{method}` needs a checkpoint that is "
                + " or ".join(KINDS[kind] for kind in kinds)
            )


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Their sigmoid, float32."""
    return torch.from_numpy(logits).sigmoid().numpy()

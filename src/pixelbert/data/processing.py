"""From photos and sentences to tensors: resize, snap to the grid, normalise; WordPiece.

Images are never padded: a side is snapped to a multiple of 64, so that the CNN's grid is exact and an image's features
do not depend on the images beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from tokenizers import AddedToken, Encoding
from tokenizers.implementations import BertWordPieceTokenizer
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    BertTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin

from pixelbert.data.images import image_of_array, open_image
from pixelbert.data.inputs import ImageInput, given_images, given_sentences
from pixelbert.data.reading import Unread
from pixelbert.errors import PixelBertError
from pixelbert.model.configuration import PixelBertConfig
from pixelbert.model.pixels import REDUCTION

LONGEST = 10_000  # pixels of a side: the photo alone then takes more than a gigabyte


class PixelBertImageProcessor(BaseImageProcessor):
    """Resizes, snaps and normalises images (paper section 4.1).

    Args:
        shortest_edge: pixels that the shorter side is scaled to (paper: 800 with ResNet-50, 600 with ResNeXt-152).
        longest_edge: the longer side is kept at or below it, which wins over `shortest_edge` (paper: 1333; 1000).
        image_mean: of the RGB channels in [0, 1]; ImageNet's by default.
        image_std: likewise.
    """

    model_input_names = ("pixel_values",)  # type: ignore[assignment]  # a list there

    def __init__(
        self,
        shortest_edge: int = 800,
        longest_edge: int = 1333,
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sides = (shortest_edge, longest_edge)
        if not all(type(side) is int for side in sides) or not REDUCTION <= shortest_edge <= longest_edge <= LONGEST:
            raise ValueError(
                f"shortest_edge {shortest_edge} and longest_edge {longest_edge}: expected {REDUCTION} <= shortest "
                f"<= longest <= {LONGEST:,}"
            )
        for name, value in (("image_mean", image_mean), ("image_std", image_std)):
            if not isinstance(value, Sequence) or [type(v) for v in value] != [float] * 3:
                raise ValueError(f"{name} is {value!r}; expected three numbers, of red, green and blue")
        self.shortest_edge = shortest_edge
        self.longest_edge = longest_edge
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def size_for(self, width: int, height: int) -> tuple[int, int]:
        """The width and height that an image of this size is resized to: the nearest multiples of 64 (the larger of two
        as near), within `longest_edge`."""
        short, long = min(width, height), max(width, height)
        # In whole numbers, since floats would send one shape of photo to two grids: the scale is wanted / present.
        if self.shortest_edge * long <= self.longest_edge * short:
            wanted, present = self.shortest_edge, short
        else:
            wanted, present = self.longest_edge, long
        limit = self.longest_edge // REDUCTION

        def snap(side: int) -> int:
            nearest = (2 * side * wanted + REDUCTION * present) // (2 * REDUCTION * present)
            return min(max(nearest, 1), limit) * REDUCTION

        return snap(width), snap(height)

    def __call__(  # type: ignore[override]
        self, images: ImageInput | Iterable[ImageInput], **kwargs: Any
    ) -> BatchFeature:
        """Images to `pixel_values`: one tensor (I, 3, H, W) if all have one shape, else a list of (3, H, W).

        Args:
            images: paths, bytes, PIL images or arrays (H, W, 3) of 8 bits; one, or several in any sequence (a list, a
                pandas Series, ...).

        Raises:
            PixelBertError: there is none, or one that is no image.
        """
        photos = given_images(images)
        if not photos:
            raise PixelBertError("there is no image: expected one or several")
        tensors = [self.to_tensor(image) for image in photos]
        same = len({t.shape for t in tensors}) == 1
        return BatchFeature({"pixel_values": torch.stack(tensors) if same else tensors})

    preprocess = __call__  # type: ignore[assignment]  # transformers' other name for it

    def to_tensor(self, image: ImageInput) -> Tensor:
        """One image to a normalised tensor (3, H, W)."""
        image = open_image(image_of_array(image) if isinstance(image, np.ndarray) else image)
        size = self.size_for(*image.size)
        if image.size != size:
            image = image.resize(size, PIL.Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.image_mean, self.image_std))
        return (x - mean) / std


class PixelBertProcessor(ProcessorMixin):
    """Photos and sentences to the arguments of a model: `model(**processor(images=photos, text=sentences))`.

    Args:
        image_processor: see `PixelBertImageProcessor`.
        tokenizer: a WordPiece tokenizer with [CLS], [SEP], [MASK] and [PAD].
        max_length: tokens that a sentence is cut to, [CLS] and [SEP] included; see `unread`.
    """

    attributes = ("image_processor", "tokenizer")
    image_processor_class = "PixelBertImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor: PixelBertImageProcessor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_length: int = 64,
        **kwargs: Any,
    ) -> None:
        if tokenizer is None:
            raise ValueError("PixelBertProcessor needs a tokenizer")
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} is a slow tokenizer: take the fast one of the same name")
        if type(max_length) is not int or max_length < 3:
            raise ValueError(f"max_length is {max_length!r}; expected 3 tokens or more: [CLS], a word and [SEP]")
        self.image_processor = image_processor or PixelBertImageProcessor()
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.chat_template = None

    def __call__(  # type: ignore[override]
        self,
        images: ImageInput | Iterable[ImageInput] | None = None,
        text: str | Iterable[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Return `pixel_values` for the images and `input_ids`, `attention_mask` for the sentences.

        Args:
            images: see `PixelBertImageProcessor.__call__`.
            text: one sentence, or several in any sequence (a list, a pandas Series, ...). One that is cut, or has
                words that the tokenizer does not know, is told by an `UnreadWarning`.

        Raises:
            PixelBertError: something else than images and sentences.
        """
        data: dict[str, Any] = {}
        if images is not None:
            data.update(self.image_processor(images))
        if text is not None:
            sentences = given_sentences(text)
            if not sentences:
                raise PixelBertError("there is no sentence: expected one or several")
            self.unread(sentences).warn()
            ids = [x.tolist() for x in self.tokens(sentences)]
            tokens = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
            data.update(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return BatchFeature(data)

    def encode(self, sentences: Sequence[str]) -> list[Encoding]:
        """What the tokenizer makes of sentences, [CLS] and [SEP] included: the one place where they are cut.

        What is cut off is in `overflowing` of each.
        """
        if not sentences:
            return []
        encoded = self.tokenizer(list(sentences), truncation=True, max_length=self.max_length)
        return encoded.encodings  # type: ignore[no-any-return]

    def tokens(self, sentences: Sequence[str]) -> list[np.ndarray]:
        """Each sentence's tokens (L,), [CLS] and [SEP] included, cut to `max_length`; `unread` tells what is lost."""
        return [np.array(encoding.ids) for encoding in self.encode(sentences)]

    def unread(self, sentences: Sequence[str]) -> Unread:
        """Which of these sentences are cut, and which have words that the tokenizer does not know."""
        return Unread.of(sentences, self.encode(sentences), self.tokenizer.unk_token_id)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Write preprocessor_config.json and the tokenizer's files."""
        self.image_processor.max_length = self.max_length
        self.image_processor.save_pretrained(save_directory)
        self.tokenizer.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, source: str | Path, **kwargs: Any) -> PixelBertProcessor:  # type: ignore[override]
        """Read what `save_pretrained` wrote, from a folder or a hub. Code that comes with it is not run."""
        kwargs["trust_remote_code"] = False  # not None, with which transformers asks on the terminal
        image_processor = PixelBertImageProcessor.from_pretrained(source, **kwargs)
        max_length = image_processor.__dict__.pop("max_length", 64)
        return cls(image_processor, AutoTokenizer.from_pretrained(source, **kwargs), max_length)


def learn_tokenizer(sentences: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A WordPiece vocabulary learned from sentences, in BERT's format (lower case), for models trained from scratch.

    The same sentences always give the same vocabulary.
    """
    sentences = list(sentences)
    learner = BertWordPieceTokenizer(lowercase=True)
    words = {
        word
        for sentence in sentences
        for word, _ in learner.pre_tokenizer.pre_tokenize_str(learner.normalizer.normalize_str(sentence))
    }
    # The trainer numbers the letters inside words as it meets them in a hash table, another order each time, and breaks
    # ties by number. Those that it is given it numbers in the order in which they are given.
    inside = Counter(letter for word in words for letter in word[1:])
    often = sorted(inside, key=lambda letter: (-inside[letter], letter))[:1000]  # the trainer's own limit
    known: list[str | AddedToken] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    known += [f"##{letter}" for letter in sorted(often)]
    learner.train_from_iterator(
        iter(sentences), vocab_size=vocab_size, min_frequency=1, special_tokens=known, show_progress=False
    )
    wordpiece = BertWordPieceTokenizer(learner.get_vocab(), lowercase=True)
    return BertTokenizer(tokenizer_object=wordpiece._tokenizer, do_lower_case=True)


AutoImageProcessor.register(PixelBertConfig, image_processor_classes={"pil": PixelBertImageProcessor})
AutoProcessor.register(PixelBertConfig, PixelBertProcessor)

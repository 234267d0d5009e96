"""A score never depends on its batch: alone or beside any others, the same image and text score the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelbert import PixelBertForPreTraining
from references import images, sentences

MakeModel = Callable[..., PixelBertForPreTraining]
SIDES = st.sampled_from([64, 128, 192])
PAIR = st.tuples(st.integers(0, 3), st.integers(2, 12), st.integers(1, 5))  # image, tokens, sampled pixels


@pytest.mark.parametrize("options", [{}, {"pixel_positions": 3, "pixel_layer_norm": True}], ids=["paper", "options"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    sides=st.lists(st.tuples(SIDES, SIDES), min_size=4, max_size=4),
    pairs=st.lists(PAIR, min_size=2, max_size=6),
    sample=st.booleans(),
)
def test_a_score_never_depends_on_its_batch(
    tiny_model: MakeModel,
    options: dict,
    sides: list[tuple[int, int]],
    pairs: list[tuple[int, int, int]],
    sample: bool,
) -> None:
    model = tiny_model(**options)
    pixel_values = images(*sides)
    ids, mask = sentences(*(length for _, length, _ in pairs))
    index = torch.tensor([image for image, _, _ in pairs])
    pixel_index = draw_pixels(sides, pairs) if sample else None
    with torch.no_grad():
        features = model.encode_images(pixel_values)
        together = model(features, ids, mask, index, pixel_index=pixel_index, output_token_logits=True)
        for p, (image, length, _) in enumerate(pairs):
            alone_index = None
            if pixel_index is not None:
                alone_index = pixel_index[p : p + 1, pixel_index[p] >= 0]
            alone = model(
                input_ids=ids[p : p + 1, :length],
                pixel_values=pixel_values[image][None],
                pixel_index=alone_index,
                output_token_logits=True,
            )
            assert (alone.match_logits - together.match_logits[p]).abs().max() <= 1e-5
            assert (alone.token_logits[0] - together.token_logits[p, :length]).abs().max() <= 1e-5


def draw_pixels(sides: list[tuple[int, int]], pairs: list[tuple[int, int, int]]) -> torch.Tensor:
    """(P, k) sampled pixels without replacement, -1 where a grid has fewer."""
    generator = torch.Generator().manual_seed(2)
    widest = max(k for *_, k in pairs)
    drawn = torch.full((len(pairs), widest), -1)
    for p, (image, _, k) in enumerate(pairs):
        height, width = sides[image]
        chosen = torch.randperm(height * width // 64**2, generator=generator)[:k]
        drawn[p, : len(chosen)] = chosen
    return drawn


def test_the_tiny_model_looks_at_pixels_and_words(tiny_model: MakeModel) -> None:
    """Or else the tests here would prove nothing."""
    model = tiny_model()
    (image,), (ids, _) = images((128, 128)), sentences(6)
    changed = ids.clone()
    changed[0, 3] = ids[0, 3] % 63 + 1
    with torch.no_grad():
        logit = model(pixel_values=image[None], input_ids=ids).match_logits
        assert (model(pixel_values=-image[None], input_ids=ids).match_logits - logit).abs() > 1e-3
        assert (model(pixel_values=image[None], input_ids=changed).match_logits - logit).abs() > 1e-3


def test_ragged_grids_are_encoded_as_one_at_a_time(tiny_model: MakeModel) -> None:
    model = tiny_model()
    # Grouped by shape they stand in another order, and going back is not the same step again.
    batch = images((64, 192), (128, 128), (192, 64), (64, 192))
    with torch.no_grad():
        features = model.encode_images(batch)
        assert features.grid.tolist() == [[1, 3], [2, 2], [3, 1], [1, 3]]
        for i, image in enumerate(batch):
            alone = model.encode_images(image[None])
            n = int(alone.lengths)
            assert (features.values[i, :n] - alone.values[0]).abs().max() <= 1e-5

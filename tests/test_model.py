"""The network (paper section 3): sizes, heads, saving, how images are shared and pixels drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pixelbert import PixelBertConfig, PixelBertForPreTraining, PixelBertModel, PixelFeatures
from pixelbert.model.encoder import Layout
from pixelbert.model.pixels import PixelEmbedding, by_shape, flatten_grid
from pixelbert.model.resnet import STAGES, beginning
from references import images, sentences

MakeModel = Callable[..., PixelBertForPreTraining]


# --- sizes ---


@pytest.mark.parametrize(("backbone", "count"), [("resnet50", 23_508_032), ("resnext152_32x8d", 120_323_392)])
def test_the_trunks_have_the_published_number_of_weights(backbone: str, count: int) -> None:
    with torch.device("meta"):
        model = PixelBertModel(PixelBertConfig(backbone=backbone))
    assert sum(p.numel() for p in model.backbone.parameters()) == count
    assert model.pixel_embedding.projection.in_features == 2048


def test_the_resnext_has_32_groups_of_8() -> None:
    with torch.device("meta"):
        trunk = PixelBertModel(PixelBertConfig(backbone="resnext152_32x8d")).backbone
    assert trunk.layer1[0].conv2.weight.shape == (256, 8, 3, 3)
    assert trunk.layer4[2].conv2.weight.shape == (2048, 64, 3, 3)


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_the_stride_is_where_the_configuration_says(tiny_config: Callable, stride_in_1x1: bool) -> None:
    block = PixelBertModel(tiny_config(stride_in_1x1=stride_in_1x1)).backbone.layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == (((2, 2), (1, 1)) if stride_in_1x1 else ((1, 1), (2, 2)))


def test_an_image_becomes_a_pixel_for_every_64_by_64(tiny_model: MakeModel) -> None:
    features = tiny_model().encode_images(images((128, 192), (64, 64)))
    assert features.grid.tolist() == [[2, 3], [1, 1]]
    assert features.lengths.tolist() == [6, 1]
    assert features.values.shape == (2, 6, 32)


# --- one image, many sentences ---


def test_a_match_is_the_same_with_and_without_the_words(tiny_model: MakeModel) -> None:
    model = tiny_model()
    ids, mask = sentences(4, 7)
    with torch.no_grad():
        features = model.encode_images(images((128, 64), (64, 64)))
        alone = model(features, ids, mask)  # of the last layer, [CLS] is computed alone
        with_words = model(features, ids, mask, output_token_logits=True)
    assert alone.token_logits is None
    assert with_words.token_logits.shape == (2, 7, 64)
    assert (alone.match_logits - with_words.match_logits).abs().max() <= 1e-5


def test_sharing_an_image_is_one_image_one_sentence_exactly(tiny_model: MakeModel) -> None:
    model = tiny_model()
    index = torch.tensor([1, 0, 1, 1])
    ids, mask = sentences(4, 7, 5, 7)
    with torch.no_grad():
        features = model.encode_images(torch.stack(images((128, 64), (128, 64))))
        shared = model(features, ids, mask, index)
        single = model(features.select(index), ids, mask)
    assert torch.equal(shared.match_logits, single.match_logits)
    assert len(shared.match_logits.unique()) == 4


def test_the_gradient_of_shared_images_is_the_sum_over_their_sentences(tiny_model: MakeModel) -> None:
    pair = images((64, 64), (64, 64))
    ids, mask = sentences(4, 7, 5)
    gradients = []
    for pixel_values, index in ((pair, torch.tensor([0, 1, 0])), ([pair[0], pair[1], pair[0]], None)):
        model = tiny_model()
        labels = torch.tensor([1, 0, 0])
        output = model(None, ids, mask, index, pixel_values=torch.stack(pixel_values), match_labels=labels)
        output.itm_loss.backward()
        gradients.append(model.pixelbert.backbone.conv1.weight.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_stored_trunk_features_give_the_same_as_images(tiny_model: MakeModel) -> None:
    model = tiny_model()
    batch, (ids, mask) = images((64, 128), (128, 128)), sentences(5, 6)
    with torch.no_grad():
        stored = model.pixelbert.trunk_features(batch)
        a = model(None, ids, mask, trunk_features=stored).match_logits
        b = model(None, ids, mask, pixel_values=batch).match_logits
    assert torch.equal(a, b)


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_what_a_stage_gave_goes_on_to_the_same_as_images(tiny_model: MakeModel, stage: str) -> None:
    """Through the stages that follow alone, whatever the shapes beside it; and only those learn from it."""
    model = tiny_model().pixelbert.eval()
    batch = images((64, 128), (128, 128), (64, 128))
    begun = beginning(model.backbone, stage)
    stored = by_shape(lambda x: flatten_grid(begun(x)), batch)
    assert torch.equal(stored.grid, torch.tensor([(2, 4), (4, 4), (2, 4)]) * 64 // (8 * 2 ** STAGES.index(stage)))
    found, direct = model.embed_stored(stored), model.encode_images(batch)
    assert torch.equal(found.grid, direct.grid)
    for i, pixels in enumerate(direct.lengths):
        torch.testing.assert_close(found.values[i, :pixels], direct.values[i, :pixels], rtol=1e-5, atol=1e-5)
    model.zero_grad()
    model.embed_stored(PixelFeatures(stored.values.detach(), stored.grid)).values.sum().backward()
    learning = {name.split(".")[0] for name, p in model.backbone.named_parameters() if p.grad is not None}
    assert learning == set(STAGES[STAGES.index(stage) + 1 :])


# --- pixels ---


def test_the_paper_gives_pixels_no_position(tiny_model: MakeModel) -> None:
    """Another order of the pixels changes nothing; with the option `pixel_positions` it does."""
    ids, _ = sentences(5)
    for options, same in (({}, True), ({"pixel_positions": 3}, False)):
        model = tiny_model(**options)
        with torch.no_grad():
            trunk = model.pixelbert.trunk_features(torch.stack(images((192, 128))))
            shuffled = PixelFeatures(trunk.values[:, torch.tensor([3, 1, 5, 0, 4, 2])], trunk.grid)
            a = model(None, ids, trunk_features=trunk).match_logits
            b = model(None, ids, trunk_features=shuffled).match_logits
        assert torch.allclose(a, b, atol=1e-6) == same


def test_sampled_pixels_are_those_of_the_index(tiny_model: MakeModel) -> None:
    model = tiny_model()
    ids, _ = sentences(5, 5)
    with torch.no_grad():
        features = model.encode_images(torch.stack(images((128, 128), (128, 128))))
        sampled = model(features, ids, pixel_index=torch.tensor([[3, 1], [2, -1]]))
        first = PixelFeatures(features.values[:1, [3, 1]], torch.tensor([[1, 2]]))
        second = PixelFeatures(features.values[1:, [2]], torch.tensor([[1, 1]]))
        for p, only in enumerate((first, second)):
            expected = model(only, ids[p : p + 1]).match_logits
            torch.testing.assert_close(sampled.match_logits[p : p + 1], expected, rtol=0, atol=1e-5)


def test_eq_5_is_a_projection_plus_s_v(tiny_model: MakeModel) -> None:
    embedding = tiny_model().pixelbert.pixel_embedding
    trunk = PixelFeatures(torch.randn(1, 4, 512, generator=torch.Generator().manual_seed(3)), torch.tensor([[2, 2]]))
    with torch.no_grad():
        expected = trunk.values @ embedding.projection.weight.T + embedding.projection.bias + embedding.semantic
        assert embedding.semantic.abs().min() > 0
        torch.testing.assert_close(embedding(trunk).values, expected)


# --- heads ---


def test_mlm_scores_only_the_masked_tokens(tiny_model: MakeModel) -> None:
    model = tiny_model()
    ids, mask = sentences(6, 4)
    labels = torch.full_like(ids, -100)
    labels[0, 2], labels[0, 4], labels[1, 1] = 7, 8, 9
    with torch.no_grad():
        batch = torch.stack(images((64, 64), (64, 64)))
        output = model(None, ids, mask, pixel_values=batch, token_labels=labels)
        every = model(None, ids, mask, pixel_values=batch, output_token_logits=True)
    assert output.itm_loss is None
    assert every.token_logits.shape == (2, 6, 64)
    torch.testing.assert_close(output.token_logits, every.token_logits[labels != -100])
    log_p = every.token_logits.log_softmax(-1)
    expected = -(log_p[0, 2, 7] + log_p[0, 4, 8] + log_p[1, 1, 9])
    torch.testing.assert_close(output.mlm_loss, expected)


def test_mlm_shares_the_word_embeddings(tiny_model: MakeModel) -> None:
    model = tiny_model()
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(4))
    words = model.get_input_embeddings().weight
    with torch.no_grad():
        before = model.mlm_head(x, words)
        words[5] += 1
        after = model.mlm_head(x, words)
    changed = (before != after).any(0)
    assert changed[5]
    assert changed.sum() == 1


def test_without_masked_tokens_the_mlm_loss_is_zero(tiny_model: MakeModel) -> None:
    ids, _ = sentences(4)
    output = tiny_model()(input_ids=ids, token_labels=torch.full_like(ids, -100))
    assert output.mlm_loss.item() == 0


def test_itm_is_the_summed_binary_cross_entropy_of_eq_8(tiny_model: MakeModel) -> None:
    ids, mask = sentences(6, 4, 5)
    labels = torch.tensor([1, 0, 1])
    with torch.no_grad():
        output = tiny_model()(
            None, ids, mask, torch.tensor([0, 0, 0]), pixel_values=images((64, 64)), match_labels=labels
        )
    p = output.match_logits.sigmoid()
    torch.testing.assert_close(output.itm_loss, -(p[0].log() + (1 - p[1]).log() + p[2].log()))
    assert output.mlm_loss is None


# --- attention, batch norm, gradients, saving ---


def test_asking_for_attention_does_not_change_the_output(tiny_model: MakeModel) -> None:
    model = tiny_model().pixelbert
    ids, mask = sentences(6, 3)
    with torch.no_grad():
        features = model.encode_images(images((128, 64), (64, 64)))
        fused = model(features, ids, mask)
        slow = model(features, ids, mask, output_attentions=True)
    assert fused.attentions is None
    assert [a.shape for a in slow.attentions] == [(2, 4, 8, 8)] * 2
    torch.testing.assert_close(slow.pooler_output, fused.pooler_output, rtol=0, atol=1e-5)
    torch.testing.assert_close(slow.last_hidden_state, fused.last_hidden_state, rtol=0, atol=1e-5)
    attended = torch.cat([mask.bool(), fused.pixel_mask], 1)
    for attention in slow.attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 4, 8))
        assert (attention * ~attended[:, None, None]).abs().max() == 0  # nothing looks at padding


@pytest.mark.parametrize("positions", [1, 6])
def test_outputs_that_nobody_reads_are_not_computed(tiny_model: MakeModel, positions: int) -> None:
    model = tiny_model().pixelbert
    ids, mask = sentences(6, 3)
    with torch.no_grad():
        features = model.encode_images(images((128, 64), (64, 64)))
        whole, some = (model(features, ids, mask, positions=n) for n in (None, positions))
    assert some.last_hidden_state.shape[1] == positions
    torch.testing.assert_close(some.last_hidden_state, whole.last_hidden_state[:, :positions], rtol=0, atol=1e-6)
    torch.testing.assert_close(some.pooler_output, whole.pooler_output, rtol=0, atol=1e-6)


@pytest.mark.parametrize("positions", [None, 1, 6])
def test_padding_costs_nothing_and_changes_nothing(
    tiny_model: MakeModel, positions: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tiny_model().pixelbert.encoder
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 10, encoder.layer[0].intermediate.dense.in_features, generator=generator)
    mask = torch.arange(10) < torch.tensor([[10], [3], [7]])
    mask[2, 1:5] = False  # padding between words and pixels too
    read = mask[:, :positions]
    rows: list[int] = []
    for layer in encoder.layer:
        layer.intermediate.register_forward_hook(lambda _module, args, _output: rows.append(len(args[0])))

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        encoder.zero_grad()
        output = encoder(x, mask, positions=positions)[0][read]
        output.square().sum().backward()
        return output.detach(), encoder.layer[0].attention.self.key.weight.grad.clone()

    packed, packed_gradient = run()
    assert rows == [int(mask.sum()), int(read.sum())]
    monkeypatch.setattr(Layout, "WORTHWHILE", 0.0)
    padded, padded_gradient = run()
    assert rows[2:] == [mask.numel(), read.numel()]
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-6)
    torch.testing.assert_close(packed_gradient, padded_gradient, rtol=1e-5, atol=1e-5)


def test_activation_checkpointing_keeps_less_and_changes_nothing(tiny_model: MakeModel) -> None:
    model = tiny_model(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2).train()
    ids, mask = sentences(9, 5)
    photos = images((128, 64), (64, 128))
    labels = torch.tensor([1.0, 0.0])

    def step() -> tuple[int, list[torch.Tensor]]:
        kept: dict[int, int] = {}  # bytes held for the backward pass, by address

        def keep(x: torch.Tensor) -> torch.Tensor:
            kept[x.data_ptr()] = x.numel() * x.element_size()
            return x

        model.zero_grad()
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = model(pixel_values=photos, input_ids=ids, attention_mask=mask, match_labels=labels).itm_loss
        held = sum(kept.values())
        loss.backward()
        return held, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain_bytes, plain = step()
    model.activation_checkpointing_enable({"use_reentrant": False})
    fewer_bytes, again = step()
    assert fewer_bytes < plain_bytes / 2
    assert len(plain) == len(again) > 50
    for expected, found in zip(plain, again, strict=True):
        assert torch.equal(expected, found)


def test_frozen_batch_norm_stays_put_in_training(tiny_model: MakeModel) -> None:
    model = tiny_model().train()
    norms = {k: v.clone() for k, v in model.pixelbert.backbone.state_dict().items() if v.ndim == 1}
    ids, _ = sentences(5)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(input_ids=ids, pixel_values=images((64, 64)), match_labels=torch.tensor([1])).itm_loss.backward()
    optimizer.step()
    after = model.pixelbert.backbone.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in norms.items())
    assert not any(p.requires_grad for n in model.pixelbert.backbone.batch_norms() for p in n.parameters())


def test_trained_batch_norm_moves(tiny_model: MakeModel) -> None:
    model = tiny_model(batch_norm="train").train()
    before = model.pixelbert.backbone.bn1.running_mean.clone()
    model.encode_images(images((64, 64)))
    assert not torch.equal(before, model.pixelbert.backbone.bn1.running_mean)
    assert all(p.requires_grad for p in model.parameters())


def test_the_gradient_of_both_losses_reaches_the_cnn(tiny_model: MakeModel) -> None:
    ids, _ = sentences(5)
    labels = torch.full_like(ids, -100)
    labels[0, 2] = 9
    for target in ({"token_labels": labels}, {"match_labels": torch.tensor([1])}):
        model = tiny_model().train()
        output = model(input_ids=ids, pixel_values=images((128, 128)), **target)
        (output.mlm_loss if "token_labels" in target else output.itm_loss).backward()
        for name, p in model.pixelbert.backbone.named_parameters():
            if p.requires_grad:
                assert p.grad is not None, name
                assert p.grad.abs().max() > 0, name


def test_what_is_saved_comes_back(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model(stride_in_1x1=True)
    with torch.no_grad():  # rows and parameters that initialisation sets to zero hold something else after training
        for p in model.parameters():
            p += 0.01
    model.save_pretrained(tmp_path)
    ids, _ = sentences(5)
    batch = images((64, 128))
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=batch, output_token_logits=True)
        again = PixelBertForPreTraining.from_pretrained(tmp_path)
        output = again(input_ids=ids, pixel_values=batch, output_token_logits=True)
        # Not to the bit: what is loaded lies elsewhere in memory, and kernels differ with how it is aligned.
        torch.testing.assert_close(output.match_logits, expected.match_logits, rtol=0, atol=1e-6)
        torch.testing.assert_close(output.token_logits, expected.token_logits, rtol=0, atol=1e-5)
        base = PixelBertModel.from_pretrained(tmp_path)
    saved = model.state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in again.state_dict().items())
    assert again.config.stride_in_1x1
    assert again.config.backbone == "resnet14_small"
    for name, tensor in model.pixelbert.state_dict().items():
        assert torch.equal(base.state_dict()[name], tensor), name


def test_batch_norm_is_still_frozen_in_a_model_that_was_loaded(tiny_model: MakeModel, tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    model = PixelBertForPreTraining.from_pretrained(tmp_path).train()
    norms = model.pixelbert.backbone.batch_norms()
    assert not any(n.training for n in norms)
    assert not any(p.requires_grad for n in norms for p in n.parameters())


# --- errors ---


@pytest.mark.parametrize("shape", [(1, 3, 100, 128), (1, 1, 64, 64), (3, 64, 64), (1, 3, 64, 65)])
def test_images_of_a_wrong_shape_are_named(tiny_model: MakeModel, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"multiples of 64.*PixelBertProcessor"):
        tiny_model().encode_images(torch.zeros(shape))


def test_wrong_use_says_what_to_do(tiny_model: MakeModel) -> None:
    model = tiny_model()
    ids, mask = sentences(5, 5, 5)
    features = model.encode_images(images((64, 64), (64, 64)))
    with pytest.raises(ValueError, match="2 images and 3 sentences: pass image_index"):
        model(features, ids, mask)
    with pytest.raises(ValueError, match="input_ids is missing"):
        model(features)
    with pytest.raises(ValueError, match="25 tokens is longer than the 24 positions"):
        model(input_ids=torch.ones(1, 25, dtype=torch.long))
    with pytest.raises(ValueError, match=r"pixel_positions >= 4"):
        tiny_model(pixel_positions=3).encode_images(images((256, 64)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "resnet51"}, "resnet51.*there are resnet50"),
        ({"batch_norm": "thawed"}, "'frozen' or 'train'"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "30 is not a multiple of 4"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelBertConfig(**fields)


def test_text_alone_needs_no_image(tiny_model: MakeModel) -> None:
    ids, mask = sentences(5, 3)
    output = tiny_model().pixelbert(input_ids=ids, attention_mask=mask)
    assert output.last_hidden_state.shape == (2, 5, 32)
    assert output.pixel_mask is None
    assert output.pooler_output.shape == (2, 32)


def test_an_image_loses_the_same_channels_at_all_of_its_pixels_and_in_training_alone(tiny_config: Callable) -> None:
    torch.manual_seed(0)
    embedding = PixelEmbedding(tiny_config(pixel_dropout_prob=0.5, hidden_size=64), 64)
    with torch.no_grad():
        embedding.projection.weight.copy_(torch.eye(64))
        embedding.projection.bias.zero_()
    ones = PixelFeatures(torch.ones(3, 4, 64), torch.tensor([[2, 2]] * 3))
    found = embedding(ones).values - embedding.semantic
    assert set(found.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(found, found[:, :1].expand_as(found))
    assert not torch.equal(found[0], found[1])
    torch.testing.assert_close(embedding.eval()(ones).values - embedding.semantic, ones.values)

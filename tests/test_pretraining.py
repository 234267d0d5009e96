"""How pre-training makes its batches: order, masking, mismatches, sampling; and that nothing gives the label away."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learned import Margins
from pixelbert.data.corpus import Corpus
from pixelbert.data.photos import Photos
from pixelbert.data.processing import PixelBertImageProcessor, PixelBertProcessor, learn_tokenizer
from pixelbert.data.sampler import ExampleOrder, share
from pixelbert.data.sources.scenes import resolve_scenes
from pixelbert.errors import PixelBertError
from pixelbert.model.configuration import PixelBertConfig
from pixelbert.model.modeling import IGNORE, PixelBertForPreTraining
from pixelbert.model.pixels import PixelFeatures
from pixelbert.tasks.pretraining import Pretraining, PretrainingData, sample_pixels
from pixelbert.tasks.sentences import mask_tokens, mismatched_example, names_a_side
from pixelbert.tasks.steps import StepBatch


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(resolve_scenes(["scenes:0-40"], tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def processor(corpus: Corpus) -> PixelBertProcessor:
    tokenizer = learn_tokenizer((corpus.text(i) for i in range(len(corpus))), 300)
    return PixelBertProcessor(PixelBertImageProcessor(128, 128), tokenizer, 24)


@pytest.mark.parametrize("size", [60, 90, 300])
def test_the_same_sentences_give_the_same_vocabulary(corpus: Corpus, size: int) -> None:
    sentences = [corpus.text(i) for i in range(len(corpus))]
    first, *others = (learn_tokenizer(iter(sentences), size) for _ in range(4))
    assert all(other.get_vocab() == first.get_vocab() for other in others)
    assert first.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert first.all_special_tokens == ["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"]
    text = first.decode(first(sentences[0])["input_ids"], skip_special_tokens=True)
    assert text == sentences[0].lower()


def make_data(
    corpus: Corpus,
    processor: PixelBertProcessor,
    *,
    rank: int = 0,
    world: int = 1,
    micro: int = 32,
    seed: int = 7,
    **task: object,
) -> PretrainingData:
    options = Pretraining(**({"pixels": 3} | task))  # type: ignore[arg-type]
    order = ExampleOrder(corpus.image_of, 16, sentences_per_image=3, seed=seed)
    photos = Photos(corpus, processor.image_processor)
    return PretrainingData(photos, processor, order, rank, world, micro, task=options)


def rows(batch: StepBatch) -> list[tuple]:
    """Each pair of a batch as plain values, without padding."""
    inputs = batch.inputs
    result = []
    for i, example in enumerate(batch.examples):
        n = int(inputs["attention_mask"][i].sum())
        image = inputs["pixel_values"][int(inputs["image_index"][i])]
        result.append(
            (
                example,
                bool(inputs["match_labels"][i]),
                tuple(inputs["input_ids"][i, :n].tolist()),
                tuple(inputs["token_labels"][i, :n].tolist()),
                tuple(inputs["pixel_index"][i].tolist()),
                float(image.sum()),
            )
        )
    return sorted(result)


class TestOrder:
    @given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 9))
    def test_every_epoch_uses_every_example_once(self, images: list[int], together: int, size: int) -> None:
        order = ExampleOrder(np.array(images), size, together, seed=3)
        draws = [draw for step in range(3 * len(images) // size + 1) for draw in order.step(step)]
        for epoch in range(2):
            used = [draw.example for draw in draws if draw.epoch == epoch]
            assert sorted(used) == list(range(len(images)))

    def test_sentences_of_an_image_stand_together_and_in_new_company_each_epoch(self) -> None:
        image_of = np.repeat(np.arange(10), 6)
        order = ExampleOrder(image_of, 6, 3, seed=0)
        first, second = order.permutation(0), order.permutation(1)
        for epoch in (first, second):
            groups = image_of[epoch].reshape(-1, 3)
            assert (groups == groups[:, :1]).all()
        assert not np.array_equal(first, second)

    def test_a_step_needs_none_before_it(self) -> None:
        image_of = np.arange(50)
        one, other = (ExampleOrder(image_of, 8, 1, seed=5) for _ in range(2))
        walked = [one.step(i) for i in range(20)]
        assert other.step(17) == walked[17]
        assert ExampleOrder(image_of, 8, 1, seed=6).step(17) != walked[17]

    @given(st.integers(1, 100), st.integers(1, 9))
    def test_shares_cover_everything_evenly(self, total: int, parts: int) -> None:
        items = [list(range(total))[share(total, part, parts)] for part in range(parts)]
        assert [item for part in items for item in part] == list(range(total))
        assert max(map(len, items)) - min(map(len, items)) <= 1


def test_half_of_the_images_are_mirrored_unless_a_sentence_names_a_side(
    corpus: Corpus, processor: PixelBertProcessor
) -> None:
    data = make_data(corpus, processor)
    data.mirror = True
    pairs = [pair for step in range(20) for pair in data.plan(step)]
    by_side: dict[bool, list[bool]] = {True: [], False: []}
    for pair in pairs:
        by_side[names_a_side(corpus.text(pair.example))].append(pair.view.mirrored)
    assert by_side[True]
    assert not any(by_side[True])
    assert 0.4 < np.mean(by_side[False]) < 0.6
    # Matched and mismatched alike, or the mirroring would give the label away.
    rates = [np.mean([pair.view.mirrored for pair in pairs if pair.matched is matched]) for matched in (True, False)]
    assert rates[0] == rates[1]
    assert names_a_side("a dog to the left of a cat")
    assert not names_a_side("a bright cleft")


class TestMasking:
    @settings(max_examples=50)
    @given(st.integers(0, 2**32 - 1), st.integers(1, 20))
    def test_only_ordinary_tokens_and_at_least_one(self, processor: PixelBertProcessor, seed: int, length: int) -> None:
        tokenizer = processor.tokenizer
        ids = np.array(tokenizer(" ".join(["red circle"] * length))["input_ids"])
        shown, labels = mask_tokens(ids, tokenizer, 0.15, np.random.default_rng(seed))
        masked = labels != IGNORE
        special = np.isin(ids, tokenizer.all_special_ids)
        assert masked.sum() >= 1
        assert not masked[special].any()
        assert (labels[masked] == ids[masked]).all()
        assert (shown[~masked] == ids[~masked]).all()

    def test_rates(self, processor: PixelBertProcessor) -> None:
        tokenizer = processor.tokenizer
        ids = np.array(tokenizer(" ".join(["red"] * 20000))["input_ids"])
        shown, labels = mask_tokens(ids, tokenizer, 0.15, np.random.default_rng(0))
        masked = labels != IGNORE
        assert masked.mean() == pytest.approx(0.15, abs=0.01)
        assert (shown[masked] == tokenizer.mask_token_id).mean() == pytest.approx(0.8, abs=0.02)
        kept = (shown[masked] == ids[masked]).mean()
        assert kept == pytest.approx(0.1 + 0.1 / (len(tokenizer) - 5), abs=0.02)
        assert not np.isin(shown[masked], [tokenizer.pad_token_id, tokenizer.cls_token_id]).any()


class TestPixels:
    @given(st.integers(1, 300), st.integers(1, 120), st.integers(0, 99))
    def test_without_replacement_and_all_of_a_small_grid(self, grid: int, pixels: int, seed: int) -> None:
        chosen = sample_pixels(grid, pixels, np.random.default_rng(seed))
        if grid <= pixels:
            assert chosen is None
        else:
            assert chosen is not None
            assert len(set(chosen.tolist())) == pixels
            assert 0 <= chosen.min() <= chosen.max() < grid

    def test_evenly(self) -> None:
        counts = np.zeros(20)
        for seed in range(4000):
            counts[sample_pixels(20, 5, np.random.default_rng(seed))] += 1
        assert counts / 4000 == pytest.approx(np.full(20, 0.25), abs=0.03)


class TestBatches:
    def test_the_same_pairs_on_any_number_of_devices(self, corpus: Corpus, processor: PixelBertProcessor) -> None:
        whole = rows(make_data(corpus, processor).batch(3, 0))
        assert len(whole) == 32
        parts: list[tuple] = []
        for rank in range(3):
            data = make_data(corpus, processor, rank=rank, world=3, micro=4)
            for micro in range(data.micro_batches()):
                batch = data.batch(3, micro)
                assert len(batch.examples) <= 4
                assert batch.in_step["rows"] == 32
                parts += rows(batch)
        assert sorted(parts) == whole

    def test_losses_of_a_step_add_up(self, corpus: Corpus, processor: PixelBertProcessor) -> None:
        torch.manual_seed(0)
        model = small_model(len(processor.tokenizer))
        whole = Pretraining().loss(model, make_data(corpus, processor).batch(0, 0))
        data = make_data(corpus, processor, micro=6)
        parts = [Pretraining().loss(model, data.batch(0, micro)) for micro in range(data.micro_batches())]
        assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), abs=1e-5)
        for name in ("mlm_loss", "itm_loss", "itm_accuracy"):
            total = sum(part.parts[name].item() for part in parts)
            assert total == pytest.approx(whole.parts[name].item(), abs=1e-5)

    def test_as_many_mismatched_as_matched_and_masked_alike(
        self, corpus: Corpus, processor: PixelBertProcessor
    ) -> None:
        data = make_data(corpus, processor)
        pairs = [pair for step in range(20) for pair in data.plan(step)]
        matched = [pair for pair in pairs if pair.matched]
        assert len(matched) * 2 == len(pairs)
        mask = processor.tokenizer.mask_token_id
        share_masked = [
            np.mean([(pair.ids == mask).any() for pair in pairs if pair.matched is kind]) for kind in (True, False)
        ]
        assert share_masked[0] == pytest.approx(share_masked[1], abs=0.06)
        assert all((pair.labels == IGNORE).all() for pair in pairs if not pair.matched)  # eq. 7: matched pairs only
        with_option = make_data(corpus, processor, mlm_on_mismatched=True)
        assert all((pair.labels != IGNORE).any() for pair in with_option.plan(0))

    def test_a_mismatched_sentence_is_not_true_of_the_image(self, corpus: Corpus) -> None:
        groups = corpus.examples_of_images()
        for example in range(0, len(corpus), 7):
            image = int(corpus.image_of[example])
            own = {corpus.text(e) for e in groups[image]}
            for seed in range(20):
                other = mismatched_example(corpus, example, own, np.random.default_rng(seed))
                assert corpus.image_of[other] != image
                assert corpus.text(other) not in own

    def test_one_image_has_no_mismatch(self, tmp_path: Path) -> None:
        corpus = Corpus(resolve_scenes(["scenes:5-6"], tmp_path))
        with pytest.raises(PixelBertError, match="several images"):
            mismatched_example(corpus, 0, {corpus.text(0)}, np.random.default_rng(0))

    @pytest.mark.parametrize("options", [{"mlm": False, "itm": False}, {"mask_probability": 1.5}, {"pixels": 0}])
    def test_options_that_make_no_sense(self, options: dict) -> None:
        with pytest.raises(PixelBertError, match=r"task"):
            Pretraining(**options)


def small_model(vocabulary: int) -> PixelBertForPreTraining:
    config = PixelBertConfig(
        backbone="resnet14_small",
        vocab_size=vocabulary,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
    )
    return PixelBertForPreTraining(config)


def blank_accuracy(data: PretrainingData, seed: int, precision: str, *, leak: bool) -> float:
    """Train matching with every pixel blank, on the batches of training; accuracy over the second half of the steps."""
    torch.manual_seed(seed)
    model = small_model(len(data.processor.tokenizer)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    right, pairs, steps = 0, 0, 120
    for step in range(steps):
        inputs = dict(data.batch(step, 0).inputs)
        images = len(inputs.pop("pixel_values"))
        blank = PixelFeatures(torch.zeros(images, 4, 512), torch.full((images, 2), 2))
        if leak:  # what a careless implementation does: only the matched sentences are masked
            matched = inputs["match_labels"] > 0.5
            plain = torch.where(inputs["token_labels"] == IGNORE, inputs["input_ids"], inputs["token_labels"])
            inputs["input_ids"] = torch.where(matched[:, None], inputs["input_ids"], plain)
        inputs.pop("token_labels")
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = model(trunk_features=blank, **inputs)
        (output.itm_loss / len(inputs["match_labels"])).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= steps // 2:
            right += int(((output.match_logits > 0) == (inputs["match_labels"] > 0.5)).sum())
            pairs += len(inputs["match_labels"])
    return right / pairs


def test_with_blank_pixels_matching_stays_at_chance(
    corpus: Corpus, processor: PixelBertProcessor, learned_seed: int, learned_precision: str, margins: Margins
) -> None:
    data = make_data(corpus, processor, seed=learned_seed, mlm_on_mismatched=True)
    accuracy = blank_accuracy(data, learned_seed, learned_precision, leak=False)
    margins.at_most("distance from chance", abs(accuracy - 0.5), 0.08)  # five of its standard deviations over seeds


def test_the_blank_test_would_see_a_leak(
    corpus: Corpus, processor: PixelBertProcessor, learned_seed: int, learned_precision: str, margins: Margins
) -> None:
    data = make_data(corpus, processor, seed=learned_seed, mlm_on_mismatched=True)
    margins.at_least("accuracy", blank_accuracy(data, learned_seed, learned_precision, leak=True), 0.8)

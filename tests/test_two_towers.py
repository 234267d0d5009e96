"""The two-tower head: its loss against hand-made values, vectors that depend on nothing beside them, whole groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from learned import Margins
from pixelbert import PixelBertConfig
from pixelbert.data.corpus import Corpus
from pixelbert.data.photos import Photos
from pixelbert.data.processing import PixelBertImageProcessor, PixelBertProcessor, learn_tokenizer
from pixelbert.data.sampler import ExampleOrder
from pixelbert.data.sources.scenes import resolve_scenes
from pixelbert.errors import PixelBertError
from pixelbert.loading import load_checkpoint
from pixelbert.model.fine_tuning import PixelBertForImageAndTextRetrieval, PixelBertForQuestionAnswering
from pixelbert.model.heads import TwoTowerHead, assign_hard_negatives
from pixelbert.model.modeling import Contrast, PixelBertForPreTraining
from pixelbert.model.pixels import PixelFeatures
from pixelbert.tasks.pretraining import Pretraining, PretrainingData
from pixelbert.tasks.question_answering import QuestionAnswering
from pixelbert.tasks.retrieval import Retrieval, pair_logits
from pixelbert.tasks.shortlist import tower_scores
from pixelbert.tasks.steps import StepBatch

MakeModel = Callable[..., PixelBertForPreTraining]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(resolve_scenes(["scenes:0-40"], tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def processor(corpus: Corpus) -> PixelBertProcessor:
    tokenizer = learn_tokenizer((corpus.text(i) for i in range(len(corpus))), 300)
    return PixelBertProcessor(PixelBertImageProcessor(128, 128), tokenizer, 24)


def make_data(
    corpus: Corpus, processor: PixelBertProcessor, rank: int = 0, world: int = 1, micro: int = 32, **task: object
) -> PretrainingData:
    order = ExampleOrder(corpus.image_of, 16, sentences_per_image=2, seed=7)
    options = Pretraining(**({"pixels": 3, "contrast": 4} | task))  # type: ignore[arg-type]
    return PretrainingData(
        Photos(corpus, processor.image_processor), processor, order, rank, world, micro, task=options
    )


class TestLoss:
    def test_is_the_published_one_worked_out_by_hand(self, tiny_config: Callable) -> None:
        """CLIP's symmetric cross-entropy (arXiv:2103.00020, Fig. 3), other sentences of an image left out."""
        head = TwoTowerHead(tiny_config(tower_size=8))
        rng = np.random.default_rng(0)
        text, image = rng.normal(size=(6, 8)).astype("f4"), rng.normal(size=(4, 8)).astype("f4")
        index = np.array([0, 1, 0, 3, 2, 1])  # groups (0, 1, 0) and (3, 2, 1)
        expected = 0.0
        for group in ([0, 1, 2], [3, 4, 5]):
            for own in group:
                rivals = [r for r in group if r == own or index[r] != index[own]]
                to_image = np.array([text[own] @ image[index[r]] for r in rivals]) / 0.07
                to_text = np.array([text[r] @ image[index[own]] for r in rivals]) / 0.07
                right = rivals.index(own)
                for scores in (to_image, to_text):
                    expected += (np.log(np.exp(scores - scores[right]).sum())) / 2
        found = head.contrast(head.rivals(*map(torch.from_numpy, (text, image, index, index)), 3))
        assert found.item() == pytest.approx(expected, rel=1e-5)

    def test_scale_is_bounded(self, tiny_config: Callable) -> None:
        head = TwoTowerHead(tiny_config(tower_size=8))
        assert head.scale().item() == pytest.approx(1 / 0.07)
        torch.nn.init.constant_(head.log_scale, 50.0)
        assert head.scale().item() == 100.0

    def test_a_network_without_the_head_says_so(self, tiny_model: MakeModel) -> None:
        with pytest.raises(ValueError, match="tower_size is 0"):
            tiny_model().pixelbert.embed_texts(torch.ones(1, 3, dtype=torch.long))


def test_vectors_depend_on_nothing_beside_them(tiny_model: MakeModel) -> None:
    model = tiny_model(tower_size=16).pixelbert
    images = [torch.randn(3, h, w, generator=torch.Generator().manual_seed(h + w)) for h, w in ((64, 128), (192, 128))]
    ids = torch.tensor([[2, 9, 8, 3], [2, 7, 3, 0]])
    with torch.inference_mode():
        together = model.embed_images(model.encode_images(images))
        alone = torch.cat([model.embed_images(model.encode_images([image])) for image in images])
        texts = model.embed_texts(ids, ids.ne(0))
        short = model.embed_texts(ids[1:, :3])
    assert (together - alone).abs().max() < 1e-5
    assert (texts[1:] - short).abs().max() < 1e-5
    assert torch.allclose(torch.cat([together, texts]).norm(dim=1), torch.ones(4), atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_an_image_is_the_mean_of_its_pixels_by_what_each_says_it_counts(tiny_config: Callable) -> None:
    head = TwoTowerHead(tiny_config(tower_size=8)).eval()
    pixels = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    found = head.embed_image(pixels, mask)
    for image, count in enumerate((5, 3)):
        own = pixels[image, :count].detach().numpy().astype("f8")
        says = own @ head.pixel_weight.weight[0].detach().numpy() + head.pixel_weight.bias.item()
        mean = (np.exp(says) / np.exp(says).sum()) @ own
        alone = torch.tensor(mean, dtype=torch.float32)[None, None]  # one pixel, whose share is 1
        torch.testing.assert_close(
            found[image : image + 1], head.embed_image(alone, torch.ones(1, 1, dtype=torch.bool))
        )
    assert head.pixel_weight.weight.abs().max() > 1e-3  # or the shares would be even


class TestGroups:
    @pytest.mark.parametrize("task", [{}, {"mlm": False, "itm": False}, {"hard_negatives": True}])
    def test_the_same_groups_on_any_number_of_devices(
        self, corpus: Corpus, processor: PixelBertProcessor, task: dict
    ) -> None:
        def groups(world: int, micro: int) -> list[tuple]:
            found = []
            for rank in range(world):
                data = make_data(corpus, processor, rank, world, micro, **task)
                for m in range(data.micro_batches()):
                    contrast: Contrast = data.batch(3, m).inputs["contrast"]
                    sentences = [tuple(row[row > 0].tolist()) for row in contrast.input_ids]
                    orders = [()] * len(sentences) if contrast.order is None else contrast.order.tolist()
                    found += [
                        (tuple(sentences[i : i + 4]), tuple(order))
                        for i, order in zip(range(0, len(sentences), 4), orders, strict=False)
                    ]
            return found

        whole = groups(1, 64)
        assert len(whole) == 4
        assert groups(1, 8) == groups(2, 8) == groups(2, 64) == whole

    def test_sentences_are_whole_where_the_others_are_masked(
        self, corpus: Corpus, processor: PixelBertProcessor
    ) -> None:
        batch = make_data(corpus, processor).batch(0, 0)
        mask = processor.tokenizer.mask_token_id
        assert (batch.inputs["input_ids"] == mask).any()
        given = batch.inputs["contrast"]
        assert not (given.input_ids == mask).any()
        assert given.image_index.tolist() == batch.inputs["image_index"][batch.inputs["match_labels"] == 1].tolist()

    @pytest.mark.parametrize("hard", [False, True])
    def test_losses_of_a_step_add_up(
        self, corpus: Corpus, processor: PixelBertProcessor, tiny_model: MakeModel, hard: bool
    ) -> None:
        model = tiny_model(vocab_size=300, tower_size=16)
        task = Pretraining(pixels=3, contrast=4, hard_negatives=hard)

        def gradients(world: int, micro: int) -> torch.Tensor:
            model.zero_grad()
            datas = [make_data(corpus, processor, rank, world, micro, hard_negatives=hard) for rank in range(world)]
            batches: list[StepBatch] = [data.batch(0, m) for data in datas for m in range(data.micro_batches())]
            losses = [task.loss(model, batch) for batch in batches]
            torch.stack([loss.loss for loss in losses]).sum().backward()
            total = torch.stack([loss.parts["contrastive_loss"] for loss in losses]).sum()
            found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            return torch.cat([total[None], *found])

        whole = gradients(1, 64)
        assert whole[1:].abs().max() > 0.1
        for layout in ((1, 8), (2, 8), (2, 64)):
            torch.testing.assert_close(gradients(*layout), whole, rtol=1e-4, atol=1e-5)

    def test_sizes_that_would_divide_a_group(self, corpus: Corpus, processor: PixelBertProcessor) -> None:
        with pytest.raises(PixelBertError, match="groups of 8 pairs"):
            make_data(corpus, processor, micro=12)
        with pytest.raises(PixelBertError, match=r"contrast is 1"):
            Pretraining(contrast=1)


class TestHardNegatives:
    def test_worked_out_by_hand(self) -> None:
        logits = torch.tensor([[9.0, 5.0, 4.0], [7.0, 9.0, 6.0], [1.0, 8.0, 9.0]])  # (texts, images)
        rounds = {(0, 1, 2): [1, 2, 0], (1, 0, 2): [1, 2, 0], (2, 0, 1): [2, 0, 1], (2, 1, 0): [0, 2, 1]}
        for order, expected in rounds.items():
            found = assign_hard_negatives(logits[None], ~torch.eye(3).bool()[None], torch.tensor([order]))[0].tolist()
            assert found == expected, order

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(images=st.lists(st.integers(0, 5), min_size=2, max_size=9), seed=st.integers(0, 999))
    def test_every_sentence_once_and_none_with_its_own_image(self, images: list[int], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        text, image = (torch.randn(n, 4, generator=generator) for n in (len(images), 6))
        head = TwoTowerHead(PixelBertConfig(hidden_size=8, num_attention_heads=2, tower_size=4))
        index, order = torch.tensor(images), torch.randperm(len(images), generator=generator)[None]
        wrong = (index[:, None] != index)[None]
        found = assign_hard_negatives(head.rivals(text, image, index, index, len(images)), wrong, order)[0].tolist()
        given = [sentence for place, sentence in enumerate(found) if sentence != place]
        assert len(given) == len(set(given))
        assert all(images[sentence] != images[place] for place, sentence in enumerate(found) if sentence != place)
        first = int(order[0, 0])
        others = [i for i in range(len(images)) if images[i] != images[first]]
        if others:
            assert found[first] == max(others, key=lambda i: float(text[i] @ image[images[first]]))

    def test_the_network_scores_what_was_assign_hard_negatives(
        self, corpus: Corpus, processor: PixelBertProcessor, tiny_model: MakeModel
    ) -> None:
        model = tiny_model(vocab_size=300, tower_size=16)
        batch = make_data(corpus, processor, hard_negatives=True).batch(0, 0)
        plain = make_data(corpus, processor).batch(0, 0)
        given = batch.inputs["contrast"]
        assert given.order.sort(1).values.tolist() == [[0, 1, 2, 3]] * 4
        with torch.no_grad():
            features = model.pixelbert.encode_images(batch.inputs["pixel_values"])
            rivals = model.pixelbert.rivals(features, given)
            near = assign_hard_negatives(rivals, given.wrong, given.order).flatten().tolist()
            expected = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in plain.inputs.items()}
            labels = expected["match_labels"]
            matched = [i for i, label in enumerate(labels) if label == 1]
            for n, row in enumerate(i for i, label in enumerate(labels) if label == 0):
                source = matched[n // 4 * 4 + near[n]]
                expected["input_ids"][row] = plain.inputs["input_ids"][source]
                expected["attention_mask"][row] = plain.inputs["attention_mask"][source]
            found, wanted, random = (model(**inputs) for inputs in (batch.inputs, expected, plain.inputs))
        torch.testing.assert_close(found.match_logits, wanted.match_logits, rtol=0, atol=1e-5)
        assert (found.match_logits - random.match_logits).abs().max() > 1e-3
        torch.testing.assert_close(found.mlm_loss, random.mlm_loss)  # of matched pairs alone
        torch.testing.assert_close(found.contrastive_loss, random.contrastive_loss)

    def test_a_sentence_that_another_image_has_too_is_not_wrong_for_it(
        self, corpus: Corpus, processor: PixelBertProcessor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = make_data(corpus, processor, hard_negatives=True)
        images = [int(corpus.image_of[row.example]) for row in data.plan(0) if row.matched][:4]
        different = data.batch(0, 0).inputs["contrast"].wrong[0].tolist()
        assert different == [[images[t] != images[i] for i in range(4)] for t in range(4)]
        monkeypatch.setattr(corpus, "text", lambda example: "a red square at the top left")
        assert not make_data(corpus, processor, hard_negatives=True)._negatives(data.plan(0)[:4])["wrong"].any()

    def test_it_needs_groups(self) -> None:
        for wrong in ({"contrast": 0}, {"contrast": 4, "itm": False}, {"contrast": 4, "mlm_on_mismatched": True}):
            with pytest.raises(PixelBertError, match=r"task\.hard_negatives"):
                Pretraining(hard_negatives=True, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("blank", [False, True])
def test_it_learns_which_images_are_meant_and_nothing_without_them(
    blank: bool, tiny_model: MakeModel, learned_seed: int, learned_precision: str, margins: Margins
) -> None:
    model = tiny_model(tower_size=16, pixel_layer_norm=True)
    rng = torch.Generator().manual_seed(learned_seed)
    channels = model.pixelbert.backbone.shape.out_channels
    values = torch.randn(8, 4, channels, generator=rng)
    images = PixelFeatures(torch.zeros_like(values) if blank else values, torch.tensor([[2, 2]] * 8))
    ids = torch.randint(1, 64, (8, 5), generator=rng)
    contrast = Contrast(ids, torch.ones_like(ids), torch.arange(8), torch.arange(8), 8)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        with torch.autocast("cpu", torch.bfloat16, enabled=learned_precision == "bf16"):
            loss = model(trunk_features=images, contrast=contrast).contrastive_loss / 8
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if blank:  # nothing tells the images apart
        margins.at_least("contrastive loss", loss.item(), np.log(8) - 1e-4)
    else:
        margins.at_most("contrastive loss", loss.item(), 0.1)


def test_scores_of_all_pairs_are_the_vectors_products(
    corpus: Corpus, processor: PixelBertProcessor, tiny_model: MakeModel
) -> None:
    model, photos = tiny_model(vocab_size=300, tower_size=16), Photos(corpus, processor.image_processor)
    scores = tower_scores(model, processor, photos, range(5), [3, 0], precision="fp32")
    with torch.inference_mode():
        for caption, column, image in ((0, 0, 3), (4, 1, 0)):
            features = model.encode_images([processor.image_processor.to_tensor(corpus.load_image(image))])
            ids = torch.tensor(processor.tokenizer([corpus.text(caption)])["input_ids"])
            cosine = (model.pixelbert.embed_texts(ids) * model.pixelbert.embed_images(features)).sum()
            assert scores[caption, column] == pytest.approx(cosine.item(), abs=1e-5)


@pytest.mark.parametrize("network", [PixelBertForPreTraining, PixelBertForImageAndTextRetrieval])
def test_a_match_is_the_joint_logit_and_the_towers_together(network: type, tiny_config: Callable) -> None:
    torch.manual_seed(0)
    model = network(tiny_config(tower_size=16, joint_share=0.25)).eval()
    ids = torch.randint(4, 60, (6, 5))
    ids[2, 3:] = 0
    images = [torch.randn(3, 64, 64), torch.randn(3, 128, 64)]
    index = torch.tensor([0, 1, 0, 1, 1, 1])
    pairs = {"input_ids": ids, "attention_mask": ids.ne(0), "image_index": index}
    with torch.inference_mode():
        features = model.encode_images(images)
        joint = model.itm_head(model.pixelbert(features, **pairs).pooler_output)
        texts = model.pixelbert.embed_texts(ids, ids.ne(0))
        cosines = (texts * model.pixelbert.embed_images(features)[index]).sum(-1)
        model.pixelbert.towers.log_slope.fill_(np.log(2))
        model.pixelbert.towers.threshold.fill_(0.1)
        for known, sign in (({}, 1), ({"text_vectors": texts}, 1), ({"text_vectors": -texts}, -1)):
            apart = 2 * (sign * cosines - 0.1) / 0.07
            torch.testing.assert_close(pair_logits(model(features, **pairs, **known)), joint / 4 + 0.75 * apart)


def test_calibration_finds_slope_and_threshold_and_teaches_nothing_else(
    tiny_config: Callable, learned_seed: int, margins: Margins
) -> None:
    """Cosines of right pairs around 0.5 and wrong ones around 0.3, 14 logits to a unit: they part at 0.4."""
    head = TwoTowerHead(tiny_config(tower_size=8))
    rng, n = np.random.default_rng(learned_seed), 160  # of fewer right pairs the mean itself is too far from 0.5
    cosines = np.where(np.eye(n, dtype=bool), 0.5, 0.3) + rng.normal(0, 0.05, (n, n))
    logits = torch.tensor(cosines / 0.07, dtype=torch.float32, requires_grad=True)
    right = torch.eye(n, dtype=torch.bool)
    p = 1 / (1 + np.exp(-(cosines - 0.2) / 0.07))
    by_hand = (-np.log(p.diagonal()).mean() - np.log(1 - p[~np.eye(n, dtype=bool)]).mean()) / 2
    assert head.calibration(logits, right).item() / n == pytest.approx(by_hand, rel=1e-4)
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    for _ in range(300):
        loss = head.calibration(logits, right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    margins.at_most("threshold's distance from 0.4", abs(head.threshold.item() - 0.4), 0.02)
    assert logits.grad is None
    assert {name for name, p in head.named_parameters() if p.grad is not None} == {"log_slope", "threshold"}
    neither = torch.full((n, 7), -torch.inf)
    padded = head.calibration(torch.cat([logits, neither], 1), torch.cat([right, neither.isfinite()], 1))
    assert padded.item() == pytest.approx(head.calibration(logits, right).item(), rel=1e-5)


def test_retrieval_teaches_the_towers_to_rank_the_same_candidates(tiny_config: Callable) -> None:
    torch.manual_seed(0)
    model = PixelBertForImageAndTextRetrieval(tiny_config(tower_size=16)).eval()
    ids = torch.randint(4, 60, (6, 5))
    images = [torch.randn(3, 64, 64), torch.randn(3, 128, 64)]
    index = torch.tensor([0, 0, 0, 1, 1, 1])
    output = model(input_ids=ids, image_index=index, pixel_values=images, candidates=3, hardest=1, towers=True)
    trunk = model.pixelbert
    cosines = (trunk.embed_texts(ids) * trunk.embed_images(model.encode_images(images))[index]).sum(-1) / 0.07
    expected = -cosines.view(2, 3).log_softmax(1)[:, 0].sum()
    expected += trunk.towers.calibration(cosines, torch.tensor([True, False, False] * 2))
    assert output.contrastive_loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert Retrieval(towers=True, tower_size=16).head_config(None) == {  # type: ignore[arg-type]
        "tower_size": 16,
        "joint_share": 0.5,
    }


def test_a_task_that_does_not_train_the_head_leaves_it_out(
    tiny_model: MakeModel, processor: PixelBertProcessor, tmp_path: Path
) -> None:
    tiny_model(tower_size=16, vocab_size=len(processor.tokenizer)).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert load_checkpoint(tmp_path, "cpu").model.pixelbert.towers is not None
    plain, with_towers = Retrieval(), Retrieval(towers=True, tower_size=16)
    for task in (plain, with_towers):
        fields = task.head_config(None)  # type: ignore[arg-type]
        loaded = load_checkpoint(tmp_path, "cpu", task.model_class, new_head=True, **fields)
        assert (loaded.model.pixelbert.towers is not None) == task.towers
        assert not loaded.missing
    new = load_checkpoint(tmp_path, "cpu", Retrieval.model_class, new_head=True, tower_size=8)
    assert {name.split(".")[1] for name in new.missing} == {"towers"}


class TestAnswersFromTheVectors:
    """`task.towers` of question answering: a perceptron on what question and image share, beside that on [CLS]."""

    ANSWERS = MappingProxyType({0: "yes", 1: "no", 2: "red"})

    def given(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(5)
        mask = torch.ones(3, 6, dtype=torch.long)
        mask[1, 4:] = 0
        return {
            "input_ids": torch.randint(5, 64, (3, 6), generator=generator),
            "attention_mask": mask,
            "image_index": torch.tensor([1, 0, 1]),
            "pixel_values": torch.randn(2, 3, 64, 128, generator=generator),
        }

    @pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
    def test_are_mixed_with_the_joint_ones_and_each_is_taught_by_itself(
        self, share: float, tiny_model: MakeModel
    ) -> None:
        model = tiny_model(PixelBertForQuestionAnswering, id2label=dict(self.ANSWERS), tower_size=16, joint_share=share)
        given, trunk = self.given(), model.pixelbert
        targets = torch.tensor([[1.0, 0, 0], [0, 0.3, 0.9], [0, 0, 0]])
        found = model(**given, answer_targets=targets)
        text = given["input_ids"], given["attention_mask"]
        features = model.encode_images(given["pixel_values"])
        words, image = trunk.embed_texts(*text), trunk.embed_images(features)[given["image_index"]]
        apart = model.tower_classifier(torch.cat([16 * words * image, 4 * words], 1))
        expected, taught = (1 - share) * apart, [apart]
        if share:
            joint = model.classifier(trunk(features, *text, given["image_index"]).pooler_output)
            expected, taught = share * joint + expected, [joint, apart]
        torch.testing.assert_close(found.logits, expected)
        losses = [F.binary_cross_entropy_with_logits(x, targets, reduction="sum") for x in taught]
        torch.testing.assert_close(found.loss, sum(losses))

    def test_without_a_share_words_and_pixels_never_meet(self, tiny_model: MakeModel) -> None:
        model = tiny_model(PixelBertForQuestionAnswering, id2label=dict(self.ANSWERS), tower_size=16, joint_share=0.0)
        given = self.given()
        QuestionAnswering(towers=True, tower_size=16, joint_share=0).freeze_unused(model)
        model(**given, answer_targets=torch.zeros(3, 3)).loss.backward()
        lacking = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not lacking
        assert model.classifier is None
        # Maps of attention still show the joint transformer; a question alone has nothing to be compared with.
        assert model(**given, output_attentions=True).attentions is not None
        del given["pixel_values"], given["image_index"]
        with pytest.raises(ValueError, match="needs both"):
            model(**given)

    def test_from_a_pre_trained_head(
        self, tmp_path: Path, tiny_model: MakeModel, processor: PixelBertProcessor
    ) -> None:
        before = tiny_model(tower_size=16, vocab_size=len(processor.tokenizer))
        before.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        task = QuestionAnswering(towers=True, tower_size=16, joint_share=0.25)
        head = task.head_config(SimpleNamespace(answers=["yes", "no"], sources=[]))  # type: ignore[arg-type]
        loaded = load_checkpoint(tmp_path, "cpu", PixelBertForQuestionAnswering, new_head=True, **head)
        assert {name.split(".")[0] for name in loaded.missing} == {"classifier", "tower_classifier"}
        assert torch.equal(loaded.model.pixelbert.towers.text.weight, before.pixelbert.towers.text.weight)
        assert loaded.model.config.joint_share == 0.25
        with pytest.raises(PixelBertError, match=r"joint_share is 1\.5"):
            QuestionAnswering(joint_share=1.5)

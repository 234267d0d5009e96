"""The heads of the downstream tasks (paper section 4.2) against hand-written losses and gradients."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from pixelbert.model.configuration import PixelBertConfig
from pixelbert.model.fine_tuning import (
    PixelBertForImageAndTextRetrieval,
    PixelBertForImagesAndTextClassification,
    PixelBertForQuestionAnswering,
)

MakeConfig = Callable[..., PixelBertConfig]


def seeded(cls: type, config: PixelBertConfig):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return cls(config).eval()


def inputs(pairs: int, images: int) -> dict:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, 64, (pairs, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    pixels = torch.randn(images, 3, 128, 128, generator=generator)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}


class TestQuestionAnswering:
    def test_binary_cross_entropy_summed_over_answers(self, tiny_config: MakeConfig) -> None:
        config = tiny_config(id2label={0: "yes", 1: "no", 2: "2"})
        model = seeded(PixelBertForQuestionAnswering, config)
        assert model.answers == ["yes", "no", "2"]
        targets = torch.tensor([[1.0, 0.0, 0.3], [0.0, 0.9, 0.0]])
        output = model(**inputs(2, 2), answer_targets=targets)
        p = output.logits.sigmoid().double()
        expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum()
        assert output.logits.shape == (2, 3)
        assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)

    def test_an_untrained_head_expects_one_answer_in_all(self, tiny_config: MakeConfig, tmp_path) -> None:
        config = tiny_config(id2label={i: str(i) for i in range(200)}, initializer_range=1e-4)
        model = seeded(PixelBertForQuestionAnswering, config)
        total = model(**inputs(2, 2)).logits.sigmoid().sum(1)
        torch.testing.assert_close(total, torch.ones(2), rtol=0, atol=0.01)
        # Also where a checkpoint without this head is loaded.
        PixelBertForImageAndTextRetrieval(config).save_pretrained(tmp_path)
        loaded = PixelBertForQuestionAnswering.from_pretrained(tmp_path)
        torch.testing.assert_close(loaded.classifier.out.bias, model.classifier.out.bias)

    def test_the_answers_are_saved_with_the_weights(self, tiny_config: MakeConfig, tmp_path) -> None:
        model = seeded(PixelBertForQuestionAnswering, tiny_config(id2label={0: "yes", 1: "no"}))
        model.save_pretrained(tmp_path)
        again = PixelBertForQuestionAnswering.from_pretrained(tmp_path)
        assert again.answers == ["yes", "no"]
        assert torch.equal(again.classifier.out.weight, model.classifier.out.weight)


class TestReasoning:
    def test_two_passes_whose_joint_embeddings_are_concatenated(self, tiny_config: MakeConfig) -> None:
        model = seeded(PixelBertForImagesAndTextClassification, tiny_config())
        given = inputs(2, 3)
        index = torch.tensor([[0, 1], [2, 0]])
        labels = torch.tensor([1, 0])
        output = model(**given, image_index=index, labels=labels)
        sides = []
        for side in (0, 1):  # one pass an image, by the trunk alone
            text = {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"]}
            features = model.encode_images(given["pixel_values"])
            sides.append(model.pixelbert(features, **text, image_index=index[:, side]).pooler_output)
        expected = model.classifier(torch.cat(sides, dim=1))
        torch.testing.assert_close(output.logits, expected, rtol=0, atol=1e-5)
        assert output.loss.item() == pytest.approx(F.cross_entropy(expected, labels, reduction="sum").item(), rel=1e-5)

    def test_left_and_right_differ(self, tiny_config: MakeConfig) -> None:
        model = seeded(PixelBertForImagesAndTextClassification, tiny_config())
        given = inputs(1, 2)
        one, other = (model(**given, image_index=torch.tensor([order])).logits for order in ([0, 1], [1, 0]))
        assert not torch.allclose(one, other, atol=1e-3)

    def test_one_image_is_refused(self, tiny_config: MakeConfig) -> None:
        model = seeded(PixelBertForImagesAndTextClassification, tiny_config())
        with pytest.raises(ValueError, match="two images"):
            model(**inputs(2, 2), image_index=torch.tensor([0, 1]))


class TestRetrieval:
    CANDIDATES = 6

    def batch(self) -> dict:
        index = torch.tensor([0] * self.CANDIDATES + [1] * self.CANDIDATES)
        return inputs(2 * self.CANDIDATES, 2) | {"image_index": index}

    def test_all_candidates_give_the_plain_softmax(self, tiny_config: MakeConfig) -> None:
        model = seeded(PixelBertForImageAndTextRetrieval, tiny_config())
        logits = model(**self.batch()).logits.view(2, -1)
        output = model(**self.batch(), candidates=self.CANDIDATES)
        expected = -logits.log_softmax(1)[:, 0].sum()
        assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)

    def test_the_gradient_goes_through_the_right_and_the_hardest_alone(self, tiny_config: MakeConfig) -> None:
        model = seeded(PixelBertForImageAndTextRetrieval, tiny_config())
        hardest = 2
        model(**self.batch(), candidates=self.CANDIDATES, hardest=hardest).loss.backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

        model.zero_grad()
        logits = model(**self.batch()).logits.view(2, -1)
        learns = torch.zeros_like(logits, dtype=torch.bool)
        learns[:, 0] = True
        for group in range(2):
            wrong = sorted(range(1, self.CANDIDATES), key=lambda i: -logits[group, i].item())[:hardest]
            learns[group, wrong] = True
        torch.where(learns, logits, logits.detach()).log_softmax(1)[:, 0].sum().neg().backward()
        assert set(found) == {name for name, p in model.named_parameters() if p.grad is not None}
        for name, p in model.named_parameters():
            if p.grad is not None:
                torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-6)

    def test_the_loss_counts_all_candidates(self, tiny_config: MakeConfig) -> None:
        model = seeded(PixelBertForImageAndTextRetrieval, tiny_config())
        whole = model(**self.batch(), candidates=self.CANDIDATES).loss
        some = model(**self.batch(), candidates=self.CANDIDATES, hardest=2).loss
        torch.testing.assert_close(whole, some, rtol=1e-5, atol=1e-6)

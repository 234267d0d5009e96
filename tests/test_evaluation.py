"""The evaluation of a pre-trained model against the same figures computed one pair at a time."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pixelbert import PixelBertForPreTraining
from pixelbert.data.corpus import Corpus
from pixelbert.data.photos import Photos
from pixelbert.data.processing import PixelBertImageProcessor, PixelBertProcessor, learn_tokenizer
from pixelbert.data.sources.scenes import resolve_scenes
from pixelbert.metrics.retrieval import recall_at_k
from pixelbert.model.modeling import IGNORE
from pixelbert.predict.pixelbert import PixelBert
from pixelbert.tasks.pretraining_evaluation import Sentence, evaluate_pretraining, run_pairs
from pixelbert.tasks.scoring import encode_blank, encode_images
from pixelbert.tasks.shortlist import tower_scores

Setting = tuple[PixelBertForPreTraining, PixelBertProcessor, Corpus]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., PixelBertForPreTraining]) -> Setting:
    corpus = Corpus(resolve_scenes(["scenes:0-8"], tmp_path_factory.mktemp("data")))
    tokenizer = learn_tokenizer((corpus.text(i) for i in range(len(corpus))), 300)
    processor = PixelBertProcessor(PixelBertImageProcessor(64, 128), tokenizer, 24)
    return tiny_model(vocab_size=len(tokenizer)), processor, corpus


@torch.inference_mode()
def test_pairs_of_many_lengths_are_scored_as_if_alone(setting: Setting) -> None:
    model, processor, corpus = setting
    images = [3, 0, 5]
    features = encode_images(model, Photos(corpus, processor.image_processor), images, batch=2, show=False)
    mask = processor.tokenizer.mask_token_id
    sentences = []
    for i in range(7):
        ids = processor.tokenizer(" ".join([corpus.text(i)] * (1 + i % 3)))["input_ids"]
        labels = [IGNORE] * len(ids)
        labels[2], ids[2] = ids[2], mask
        sentences.append(Sentence(ids, i % 3, labels))
    match, masked = run_pairs(model, features, sentences, "", batch=4, show=False)
    for sentence, logit, (loss, right, count) in zip(sentences, match, masked, strict=True):
        pixels = processor(images=corpus.load_image(images[sentence.image]))["pixel_values"]
        alone = model(
            pixel_values=pixels,
            input_ids=torch.tensor([sentence.ids]),
            token_labels=torch.tensor([sentence.labels]),
        )
        assert logit == pytest.approx(alone.match_logits.item(), abs=1e-5)
        assert loss == pytest.approx(alone.mlm_loss.item(), abs=1e-4)
        assert count == 1
        assert right == float(alone.token_logits.argmax() == sentence.labels[2])


@torch.inference_mode()
def test_a_blank_image_is_grey_and_of_the_same_size(setting: Setting) -> None:
    model, processor, corpus = setting
    blank = encode_blank(model, Photos(corpus, processor.image_processor), [1, 2])
    mean = tuple(round(255 * m) for m in processor.image_processor.image_mean)
    grey = processor(images=np.full((256, 256, 3), mean, dtype=np.uint8))["pixel_values"]
    expected = model.encode_images(grey).values
    torch.testing.assert_close(blank.values, expected.expand(2, -1, -1), rtol=0, atol=0.05)


def test_the_report_of_a_model(setting: Setting) -> None:
    model, processor, corpus = setting
    options = {"retrieval_images": 6, "captions_per_image": 2, "precision": "fp32", "show": False}
    photos = Photos(corpus, processor.image_processor)
    result = evaluate_pretraining(model, processor, photos, **options)
    assert result["examples"] == len(corpus)
    assert result == evaluate_pretraining(
        model, processor, Photos(corpus, processor.image_processor), **options
    )  # the same masks and mismatches again
    # By hand: the score of every caption with every photo through the high-level class, in float32 and one at a time.
    groups = corpus.examples_of_images(6)
    captions = [example for examples in groups.values() for example in examples[:2]]
    owner = np.array([list(groups).index(int(corpus.image_of[c])) for c in captions])
    photos = [corpus.load_image(image) for image in groups]
    matcher = PixelBert(model, processor)
    scores = np.array([[matcher.match(photo, corpus.text(c)).item() for c in captions] for photo in photos])
    for name, value in recall_at_k(scores, owner).items():
        assert result[name] == pytest.approx(value)
    assert (result["retrieval_images"], result["retrieval_captions"]) == (6, 12)


def test_matching_is_measured_by_each_head_alone_too(
    setting: Setting, tiny_model: Callable[..., PixelBertForPreTraining]
) -> None:
    _, processor, corpus = setting
    model = tiny_model(vocab_size=len(processor.tokenizer), tower_size=8)
    photos = Photos(corpus, processor.image_processor)
    cosines = tower_scores(model, processor, photos, range(len(corpus)), range(8), precision="fp32")
    with torch.no_grad():
        model.pixelbert.towers.threshold.fill_(float(np.median(cosines)))
        model.itm_head.weight.zero_()
        model.itm_head.bias.zero_()  # so the score is half of the two-tower head's logit
        found = evaluate_pretraining(model, processor, photos, precision="fp32", show=False)
        assert found["itm_accuracy"] == found["itm_accuracy_apart"]
        assert 0 < found["itm_accuracy_apart"] < 1
        model.itm_head.bias.fill_(-1000.0)  # no match, it says, to everything
        unsure = evaluate_pretraining(model, processor, photos, precision="fp32", show=False)
        model.config.joint_share = 0.0
        apart = evaluate_pretraining(model, processor, photos, precision="fp32", show=False)
    assert unsure["itm_accuracy_joint"] == unsure["itm_accuracy"] == 0.5
    assert unsure["itm_accuracy_apart"] == found["itm_accuracy_apart"] == apart["itm_accuracy"]
    assert "itm_accuracy_joint" not in apart

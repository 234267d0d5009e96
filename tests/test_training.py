"""Optimisers, schedules, the run's folder, stored features, and the road from the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_builders import read_lines
from pixelbert import PixelBertForPreTraining, PixelBertModel, PixelBertProcessor, cli
from pixelbert.data.corpus import Corpus
from pixelbert.data.feature_cache import View, build_feature_cache, encode_grey
from pixelbert.data.photos import Photos
from pixelbert.data.processing import PixelBertImageProcessor
from pixelbert.data.sources.scenes import resolve_scenes
from pixelbert.errors import PixelBertError
from pixelbert.train.curves import plot_curves
from pixelbert.train.logs import cut_back
from pixelbert.train.optim import build_optimizers, schedule
from pixelbert.train.recipe import DataRecipe, ModelRecipe, OptimizerRecipe, Recipe
from pixelbert.train.run_folder import claimed
from pixelbert.train.setup import build_model, build_processor

MakeModel = Callable[..., PixelBertForPreTraining]
RECIPES = Path(__file__).parents[1] / "recipes"


class TestOptimizers:
    def test_warmup_and_milestones(self) -> None:
        recipe = OptimizerRecipe(milestones=[25, 35], warmup_steps=10)
        factor = schedule(recipe, epoch_of=lambda step: step / 100)
        assert factor(0) == pytest.approx(0.1)
        assert factor(9) == factor(2499) == 1.0
        assert factor(2500) == factor(3499) == pytest.approx(0.1)
        assert factor(3500) == pytest.approx(0.01)

    def test_sgd_for_the_cnn_adamw_for_the_rest_and_no_decay_on_norms(self, tiny_model: MakeModel) -> None:
        model = tiny_model(batch_norm="train")
        optimizers = build_optimizers(model, OptimizerRecipe())
        assert isinstance(optimizers["cnn"], torch.optim.SGD)
        assert isinstance(optimizers["transformer"], torch.optim.AdamW)
        backbone = {id(p) for p in model.pixelbert.backbone.parameters()}
        assert {id(p) for g in optimizers["cnn"].param_groups for p in g["params"]} == backbone
        seen = [p for o in optimizers.values() for g in o.param_groups for p in g["params"]]
        assert len(seen) == len({id(p) for p in seen}) == len(list(model.parameters()))
        for optimizer in optimizers.values():
            decayed, plain = optimizer.param_groups
            assert plain["weight_decay"] == 0
            assert all(p.ndim > 1 for p in decayed["params"])
            assert all(p.ndim <= 1 for p in plain["params"])

    def test_the_encoder_may_learn_at_a_rate_of_its_own(self, tiny_model: MakeModel) -> None:
        model = tiny_model(tower_size=8)
        groups = build_optimizers(model, OptimizerRecipe(lr=1e-3, encoder_lr=2e-5))["transformer"].param_groups
        rates = {id(p): group["lr"] for group in groups for p in group["params"]}
        found = {name: rates[id(p)] for name, p in model.named_parameters() if id(p) in rates}
        assert {name for name, rate in found.items() if rate == 2e-5} == {
            name for name in found if name.startswith(("pixelbert.embeddings.", "pixelbert.encoder."))
        }
        assert {found["pixelbert.pixel_embedding.projection.weight"], found["itm_head.weight"]} == {1e-3}

    def test_the_cnn_may_have_adamw(self, tiny_model: MakeModel) -> None:
        recipe = OptimizerRecipe(cnn="adamw", cnn_lr=3e-5, cnn_weight_decay=1e-2)
        optimizer = build_optimizers(tiny_model(), recipe)["cnn"]
        assert isinstance(optimizer, torch.optim.AdamW)
        assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(3e-5, 1e-2)]

    def test_a_frozen_cnn_has_no_optimizer(self, tiny_model: MakeModel) -> None:
        model = tiny_model()
        model.pixelbert.backbone.requires_grad_(False)
        assert set(build_optimizers(model, OptimizerRecipe())) == {"transformer"}


def claim(output: Path, *recipes: dict) -> None:
    """Begin a run there, or go on with it, and end."""
    with claimed(output, *recipes):
        pass


class TestFolder:
    def test_another_recipe_is_refused_and_how_it_runs_may_change(self, tmp_path: Path) -> None:
        recipe = {"seed": 1, "micro_batch_size": 8, "data": {"workers": 2, "max_length": 5}}
        claim(tmp_path / "run", recipe | {"seed": 2})  # never began, so the folder is free
        claim(tmp_path / "run", recipe)
        (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
        claim(tmp_path / "run", recipe | {"micro_batch_size": 4})
        newer = recipe | {"of_a_later_version": 0}  # begun before there was such a field
        claim(tmp_path / "run", newer, {"of_a_later_version": 0})
        with pytest.raises(PixelBertError, match="of_a_later_version: there 0, here 1"):
            claim(tmp_path / "run", newer | {"of_a_later_version": 1}, {"of_a_later_version": 0})
        with pytest.raises(PixelBertError, match=r"(?s)another run.*data\.max_length: there 5, here 6"):
            claim(tmp_path / "run", recipe | {"data": {"workers": 2, "max_length": 6}})

    def test_a_folder_of_other_things_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(PixelBertError, match="not the folder of a run"):
            claim(tmp_path, {"seed": 1})
        assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]

    def test_logs_are_cut_back_to_the_checkpoint(self, tmp_path: Path) -> None:
        log = tmp_path / "metrics.jsonl"
        log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
        cut_back(log, 2)
        assert log.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_stored_features_are_those_of_the_cnn(tmp_path: Path, tiny_model: MakeModel) -> None:
    model: PixelBertModel = tiny_model().pixelbert
    corpus = Corpus(resolve_scenes(["scenes:0-5"], tmp_path))
    processor = PixelBertImageProcessor(128, 192)
    cache = build_feature_cache(model, corpus, processor, tmp_path / "features", batch=2)
    direct = model.trunk_features([processor.to_tensor(corpus.load_image(i)) for i in (3, 0)])
    stored = cache.get([View(3), View(0)])
    assert torch.equal(stored.grid, direct.grid)
    torch.testing.assert_close(
        stored.values.float(), direct.values, rtol=0.05, atol=0.02 * direct.values.detach().max().item()
    )

    mirrored = build_feature_cache(model, corpus, processor, tmp_path / "features", mirror=True)
    flipped = model.trunk_features([processor.to_tensor(corpus.load_image(3)).flip(-1)]).values
    tolerance = {"rtol": 0.05, "atol": 0.02 * flipped.detach().max().item()}
    torch.testing.assert_close(mirrored.get([View(3, True)]).values.float(), flipped, **tolerance)
    assert torch.equal(mirrored.get([View(3)]).values, cache.get([View(3)]).values)
    assert not torch.equal(mirrored.get([View(3)]).values, mirrored.get([View(3, True)]).values)

    # One file a data set: more data sets, or other splits, make no file anew.
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "features").glob("*.bf16")}
    more = Corpus([*corpus.sources, *resolve_scenes(["scenes:7-9"], tmp_path)])
    both = build_feature_cache(model, more, processor, tmp_path / "features")
    assert torch.equal(both.get([View(3)]).values, cache.get([View(3)]).values)
    last = len(more.sizes) - 1
    added = model.trunk_features([processor.to_tensor(more.load_image(last))]).values
    torch.testing.assert_close(both.get([View(last)]).values.float(), added, **tolerance)
    after = {f: f.stat().st_mtime_ns for f in (tmp_path / "features").glob("*.bf16")}
    assert before.items() < after.items()

    before = after
    build_feature_cache(model, corpus, processor, tmp_path / "features")
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "features").glob("*.bf16")} == before  # read, not made again
    with torch.no_grad():
        model.backbone.conv1.weight += 0.1
    build_feature_cache(model, corpus, processor, tmp_path / "features")
    assert len(list((tmp_path / "features").glob("*.bf16"))) == len(before) + 1  # other weights, other file


def test_features_of_frozen_stages_are_those_of_the_cnn(tmp_path: Path, tiny_model: MakeModel) -> None:
    model: PixelBertModel = tiny_model().pixelbert
    corpus = Corpus(resolve_scenes(["scenes:0-5"], tmp_path))
    processor = PixelBertImageProcessor(128, 192)
    cache = build_feature_cache(model, corpus, processor, tmp_path / "features", mirror=True, after="layer3", batch=2)
    photos = [processor.to_tensor(corpus.load_image(i)) for i in (3, 0)]
    direct = model.encode_images([photos[0], photos[1].flip(-1)])
    stored = model.embed_stored(cache.get([View(3), View(0, True)]))
    assert torch.equal(stored.grid, direct.grid)
    scale = direct.values.detach().abs().max().item()
    torch.testing.assert_close(stored.values, direct.values, rtol=0.05, atol=0.02 * scale)

    made = set((tmp_path / "features").glob("*.bf16"))
    with torch.no_grad():
        model.backbone.layer4[0].conv1.weight += 0.1  # what learns is no part of what is stored
    build_feature_cache(model, corpus, processor, tmp_path / "features", mirror=True, after="layer3")
    assert set((tmp_path / "features").glob("*.bf16")) == made
    with torch.no_grad():
        model.backbone.layer3[0].conv1.weight += 0.1
    build_feature_cache(model, corpus, processor, tmp_path / "features", after="layer3")
    assert len(set((tmp_path / "features").glob("*.bf16")) - made) == 1


@pytest.mark.parametrize("after", [None, "layer3"])
def test_grey_features_are_those_of_grey_photos(tmp_path: Path, tiny_model: MakeModel, after: str | None) -> None:
    model: PixelBertModel = tiny_model().pixelbert
    corpus = Corpus(resolve_scenes(["scenes:0-3"], tmp_path))
    for sizes in (corpus.sizes, corpus.datasets[0].sizes):
        sizes[1] = (128, 256)  # another shape than the others
    processor = PixelBertImageProcessor(128, 256)
    views = [View(1), View(0), View(2, True)]
    direct = Photos(corpus, processor, blank=True).inputs(views)["pixel_values"]
    assert [tuple(photo.shape) for photo in direct] == [(3, 256, 128), (3, 128, 128), (3, 128, 128)]
    cache = encode_grey(model, corpus, processor, after=after)
    stored = model.embed_stored(Photos(corpus, processor, cache, blank=True).inputs(views)["trunk_features"])
    wanted = model.encode_images(direct)
    assert torch.equal(stored.grid, wanted.grid)
    scale = wanted.values.detach().abs().max().item()
    torch.testing.assert_close(stored.values, wanted.values, rtol=0.05, atol=0.02 * scale)


@pytest.mark.parametrize("stored", [True, False])
def test_a_run_without_photos_has_the_text_alone(tmp_path: Path, stored: bool) -> None:
    recipe = ["train", str(RECIPES / "tiny.yaml"), "--data.blank", "true", "--output", str(tmp_path / "run")]
    recipe += ["--data.train", '["scenes:0-8"]', "--data.validation", '["scenes:20-26"]', "--epochs", "0.5"]
    if stored:
        recipe += ["--model.freeze_backbone", "true", "--model.feature_cache", str(tmp_path / "features")]
    cli.main(recipe)
    found = read_lines(tmp_path / "run" / "validation.jsonl")[-1]
    for name in ("mlm_loss", "mlm_accuracy"):  # another photo is as grey
        assert found[name] == found[f"{name}_other_photo"] == pytest.approx(found[f"{name}_blank"], abs=1e-3)
    assert found["itm_accuracy"] == 0.5  # each sentence stands by its own photo and by another, and can't tell
    assert not (tmp_path / "features").exists()


def test_from_a_folder_of_photos_to_a_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """prepare, train, evaluate, match: a user's own pairs, through the command line."""
    photos = tmp_path / "photos"
    photos.mkdir()
    lines = ["image,caption"]
    for i in range(12):
        name, colour = (("red", (220, 30, 30)), ("blue", (30, 30, 220)))[i % 2]
        size = ((120, 90), (90, 120))[i // 2 % 2]  # two shapes
        Image.new("RGB", size, colour).save(photos / f"{i}.jpg")
        lines += [f"{i}.jpg,a {name} wall number {i}", f"{i}.jpg,picture {i} is {name}"]
    (photos / "captions.csv").write_text("\n".join(lines) + "\n")
    prepared = tmp_path / "prepared"
    options = ["--val", "0.3", "--test", "0", "--output", str(prepared)]
    cli.main(["prepare", "folder", "--images", str(photos), *options])
    sizes = [
        "--data.shortest_edge",
        "64",
        "--data.longest_edge",
        "128",
        "--epochs",
        "2",
        "--batch_size",
        "16",
    ]
    output = tmp_path / "run"
    data = [
        "--data.train",
        f"[{prepared}:train]",
        "--data.validation",
        f"[{prepared}:val]",
        "--log_every",
        "1",
    ]
    cli.main(["train", str(RECIPES / "tiny.yaml"), "--output", str(output), *sizes, *data])
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["mlm_loss"] + rows[-1]["itm_loss"])

    report = tmp_path / "metrics.json"
    final = str(output / "final")
    cli.main(["evaluate", final, "--data", str(prepared), "--split", "val", "--json", str(report)])
    metrics = json.loads(report.read_text())
    assert 0 <= metrics["itm_accuracy"] <= 1
    assert metrics["mlm_loss"] > 0
    assert metrics["retrieval_images"] == metrics["retrieval_captions"] > 0

    capsys.readouterr()
    matched = ["match", str(photos / "0.jpg"), "a red wall", "a blue wall", "--checkpoint", final]
    cli.main([*matched, "--precision", "fp32", "--json"])
    scores = {entry["text"]: entry["score"] for entry in json.loads(capsys.readouterr().out)["scores"]}
    model, processor = (
        PixelBertForPreTraining.from_pretrained(final).eval(),
        PixelBertProcessor.from_pretrained(final),
    )
    with torch.inference_mode():
        inputs = processor(images=photos / "0.jpg", text="a blue wall")
        assert scores["a blue wall"] == pytest.approx(model(**inputs).match_logits.sigmoid().item(), abs=1e-5)

    for bad, message in (
        (["evaluate", str(photos), "--data", str(prepared), "--split", "val"], "no Pixel-BERT checkpoint"),
        (["evaluate", final, "--data", str(prepared), "--split", "dev"], "val"),
        (["match", str(photos / "captions.csv"), "x", "--checkpoint", final], "captions.csv"),
        (["match", str(photos / "none.jpg"), "x", "--checkpoint", final], "none.jpg"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(bad)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_a_run_starts_from_a_checkpoint(tmp_path: Path, tiny_model: MakeModel) -> None:
    corpus = Corpus(resolve_scenes(["scenes:0-5"], tmp_path))
    data = DataRecipe(shortest_edge=64, longest_edge=64, max_length=24)
    first = Recipe(data=data)
    processor = build_processor(first, corpus, tmp_path / "tokenizer")
    before = tiny_model(vocab_size=len(processor.tokenizer))
    before.save_pretrained(tmp_path / "first")
    processor.save_pretrained(tmp_path / "first")

    start = ModelRecipe(checkpoint=str(tmp_path / "first"), freeze_backbone=True, dropout=0.25)
    recipe = Recipe(data=data, model=start)
    again = build_processor(recipe, corpus, tmp_path / "other")
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    after, _ = build_model(recipe, again.tokenizer, corpus)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert after.pixelbert.embeddings.dropout.p == after.config.attention_probs_dropout_prob == 0.25
    assert not any(p.requires_grad for p in after.pixelbert.backbone.parameters())
    recipe.model.freeze_backbone = "layer3"
    partly, _ = build_model(recipe, again.tokenizer, corpus)
    learning = {name.split(".")[0] for name, p in partly.pixelbert.backbone.named_parameters() if p.requires_grad}
    assert learning == {"layer4"}
    recipe.model.freeze_backbone = True
    recipe.optimizer.encoder_lr = 0.0
    still, _ = build_model(recipe, again.tokenizer, corpus)
    learning = {name.split(".")[1] for name, p in still.pixelbert.named_parameters(prefix="p") if p.requires_grad}
    assert learning == {"pixel_embedding", "pooler"}
    recipe.data.max_length = 25
    with pytest.raises(PixelBertError, match=r"max_length is 25; expected 3 to 24"):
        build_model(recipe, again.tokenizer, corpus)
    with pytest.raises(PixelBertError, match="holds all weights"):
        ModelRecipe(checkpoint="x", text_init="y")


@pytest.mark.parametrize("measured", ["itm_loss", "contrastive_loss", "vqa_loss", "reasoning_loss", "ranking_loss"])
def test_what_every_task_learns_by_is_drawn(tmp_path: Path, measured: str) -> None:
    pictures = []
    for name in (measured, "nobody_draws_this"):
        (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {i}, "{name}": {i / 9}}}\n' for i in range(9)))
        pictures.append(plot_curves(tmp_path).read_bytes())
    assert pictures[0] != pictures[1]


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--optimizer.lr", "1e30", "--optimizer.warmup_steps", "0", "--epochs", "1", "--data.workers", "1"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", str(RECIPES / "tiny.yaml"), "--output", str(tmp_path / "run"), *options])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "loss nan" in error or "loss inf" in error
    assert "scene:" in error
    assert not (tmp_path / "run" / "final").exists()

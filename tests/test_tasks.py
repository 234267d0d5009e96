"""The downstream tasks end to end, through the command line: prepare, train, evaluate, predictions, going on."""

import csv
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data_builders import read_lines
from learned import Margins
from pixelbert import PixelBert, cli
from pixelbert.data.corpus import Corpus
from pixelbert.data.photos import Photos
from pixelbert.data.processing import PixelBertImageProcessor, PixelBertProcessor, learn_tokenizer
from pixelbert.data.sampler import ExampleOrder
from pixelbert.errors import PixelBertError
from pixelbert.metrics.retrieval import recall_at_k
from pixelbert.model.configuration import PixelBertConfig
from pixelbert.model.fine_tuning import PixelBertForImageAndTextRetrieval, PixelBertForQuestionAnswering
from pixelbert.tasks.predictions import PredictionLog, claim, open_scores, write_run
from pixelbert.tasks.question_answering import QuestionAnswering, QuestionData
from pixelbert.tasks.reasoning import Reasoning, StatementData
from pixelbert.tasks.retrieval import RankingData, Retrieval
from pixelbert.tasks.scoring import pieces, shuffled_images
from pixelbert.tasks.steps import StepData
from pixelbert.tasks.task import Task
from pixelbert.train.recipe import ModelRecipe, Recipe
from pixelbert.train.setup import build_model

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}

SHAPE = {
    "backbone": "resnet14_small",
    "batch_norm": "train",
    "pixel_layer_norm": True,
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "dropout": 0.0,
    "initializer_range": 0.15,
}


def paint(path: Path, colour: str, size: tuple[int, int] = (64, 64), noise: int = 0) -> None:
    rng = np.random.default_rng(noise)
    pixels = np.array(COLOURS[colour]) + rng.integers(-15, 16, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def write_recipe(file: Path, task: dict, data: str, **changes: object) -> Path:
    recipe: dict = {
        "task": task,
        "model": SHAPE,
        "data": {
            "train": [data],
            "shortest_edge": 64,
            "longest_edge": 128,
            "max_length": 16,
            "sentences_per_image": 2,
            "workers": 0,
        },
        "optimizer": {"cnn_lr": 0.05, "lr": 0.002, "milestones": [], "warmup_steps": 5},
        "epochs": 8,
        "batch_size": 16,
        "micro_batch_size": 16,
        "precision": "fp32",
        "log_every": 5,
        "evaluate_examples": 50,
        "trackers": [],
    }
    file.write_text(yaml.safe_dump(recipe | changes))
    return file


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain walls of four colours: what colour is it, and is it this colour?"""
    folder = tmp_path_factory.mktemp("questions")
    rows = []
    for i in range(80):
        colour = list(COLOURS)[i % 4]
        asked = list(COLOURS)[i // 4 % 4]
        paint(folder / f"{i}.png", colour, ((64, 64), (128, 64))[i % 3 == 0], noise=i)
        split = "train" if i < 60 else "test"
        rows.append((f"{i}.png", "what colour is the wall?", colour, split))
        rows.append((f"{i}.png", f"is the wall {asked}?", "yes" if asked == colour else "no", split))
    with (folder / "questions.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "question", "answer", "split"), *rows])
    options = ["--questions", str(folder / "questions.csv"), "--images", str(folder)]
    cli.main(["prepare", "vqa-csv", *options, "--output", str(folder / "prepared")])
    return folder / "prepared"


@pytest.fixture(scope="module")
def statements(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NLVR2's files with pairs of walls."""
    folder = tmp_path_factory.mktemp("statements")
    for split, first, number in (("train", 0, 60), ("dev", 100, 24)):
        lines = []
        for i in range(first, first + number):
            left, right = list(COLOURS)[i % 4], list(COLOURS)[i // 4 % 4]
            place = folder / split / ("0" if split == "train" else "")
            paint(place / f"{split}-{i}-0-img0.png", left, noise=i)
            paint(place / f"{split}-{i}-0-img1.png", right, noise=i + 1)
            for s, (text, label) in enumerate(
                ((f"the left wall is {left}", True), (f"both walls are {right}", left == right))
            ):
                row = {"identifier": f"{split}-{i}-0-{s}", "sentence": text, "label": str(label), "directory": 0}
                lines.append(json.dumps(row) + "\n")
        (folder / f"{split}.json").write_text("".join(lines))
    files = f"[{folder / 'train.json'},{folder / 'dev.json'}]"
    options = ["--json", files, "--images", str(folder)]
    cli.main(["prepare", "nlvr2", *options, "--output", str(folder / "prepared")])
    return folder / "prepared"


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Walls with two captions each."""
    folder = tmp_path_factory.mktemp("captions")
    rows = []
    for i in range(40):
        colour = list(COLOURS)[i % 4]
        paint(folder / f"{i}.png", colour, noise=i)
        split = "train" if i < 28 else "test"
        rows += [(f"{i}.png", f"a {colour} wall", split), (f"{i}.png", f"picture {i} is {colour}", split)]
    with (folder / "captions.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "caption", "split"), *rows])
    cli.main(["prepare", "folder", "--images", str(folder), "--output", str(folder / "prepared")])
    return folder / "prepared"


@cache  # since a vocabulary that is learned again numbers its words anew
def opened(prepared: Path, split: str) -> tuple[Corpus, PixelBertProcessor]:
    corpus = Corpus([f"{prepared}:{split}"])
    tokenizer = learn_tokenizer((corpus.text(i) for i in range(len(corpus))), 200)
    return corpus, PixelBertProcessor(PixelBertImageProcessor(64, 128), tokenizer, 16)


def make_data(kind: type[StepData], prepared: Path, split: str, **options: object) -> StepData:
    corpus, processor = opened(prepared, split)
    order = ExampleOrder(corpus.image_of, 12, sentences_per_image=2, seed=3)
    return kind(Photos(corpus, processor.image_processor), processor, order, **options)


@pytest.mark.parametrize("kind", [QuestionData, StatementData, RankingData])
def test_the_same_rows_on_any_number_of_devices(
    kind: type[StepData], questions: Path, statements: Path, captions: Path
) -> None:
    prepared = {QuestionData: questions, StatementData: statements, RankingData: captions}[kind]
    extra = {"task": Retrieval(wrong=4, hardest=2)} if kind is RankingData else {}
    whole = make_data(kind, prepared, "train", micro_batch=1000, **extra)
    assert whole.micro_batches() == 1
    expected = whole.batch(1, 0)
    parts = []
    for rank in range(3):
        data = make_data(kind, prepared, "train", rank=rank, world=3, micro_batch=10, **extra)
        batches = [data.batch(1, micro) for micro in range(data.micro_batches())]
        assert all(batch.in_step == expected.in_step == {"rows": 12} for batch in batches)
        parts += batches
    assert sorted(e for part in parts for e in part.examples) == sorted(expected.examples)
    name = {QuestionData: "answer_targets", StatementData: "labels", RankingData: "input_ids"}[kind]
    assert sum(part.inputs[name].sum() for part in parts) == expected.inputs[name].sum()


@pytest.mark.parametrize("kind", [QuestionData, StatementData, RankingData])
def test_a_step_is_the_same_however_it_is_cut(
    kind: type[StepData], questions: Path, statements: Path, captions: Path
) -> None:
    """Loss and gradients of a step at once, and summed over two processes with small micro-batches."""
    prepared = {QuestionData: questions, StatementData: statements, RankingData: captions}[kind]
    ranking = Retrieval(wrong=4, hardest=2)
    task: Task = {QuestionData: QuestionAnswering(), StatementData: Reasoning(), RankingData: ranking}[kind]
    extra = {"task": ranking} if kind is RankingData else {}
    corpus, processor = opened(prepared, "train")
    torch.manual_seed(0)
    shape = {k: v for k, v in SHAPE.items() if k not in ("dropout", "vocab_size")} | {"batch_norm": "frozen"}
    config = PixelBertConfig(vocab_size=len(processor.tokenizer), **shape)
    if kind is QuestionData:
        config.update(task.head_config(corpus))
    model = task.model_class(config).eval()

    def step(parts: list[StepData]) -> tuple[float, dict[str, torch.Tensor], dict[str, float]]:
        model.zero_grad()
        logged: dict[str, float] = {}
        total = 0.0
        for data in parts:
            for micro in range(data.micro_batches()):
                loss, found = task.loss(model, data.batch(0, micro))
                loss.backward()
                total += loss.item()
                for name, value in found.items():
                    logged[name] = logged.get(name, 0.0) + float(value)
        return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, logged

    whole, gradients, logged = step([make_data(kind, prepared, "train", micro_batch=1000, **extra)])
    cut, cut_gradients, cut_logged = step(
        [make_data(kind, prepared, "train", rank=rank, world=2, micro_batch=10, **extra) for rank in (0, 1)]
    )
    assert cut == pytest.approx(whole, abs=1e-5)
    assert cut_logged == pytest.approx(logged, abs=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(cut_gradients[name], gradient, rtol=1e-3, atol=1e-5)


class TestRanking:
    def test_one_right_sentence_then_wrong_ones_of_other_images(self, captions: Path) -> None:
        data = make_data(RankingData, captions, "train", task=Retrieval(wrong=6, hardest=5))
        corpus = data.corpus
        for row in data.plan(0):
            texts = data.processor.tokenizer.batch_decode(row.ids, skip_special_tokens=True)
            assert texts[0] == corpus.text(row.example)
            own = {corpus.text(e) for e in range(len(corpus)) if corpus.image_of[e] == row.view.image}
            assert len(set(texts)) == 7
            assert not own & set(texts[1:])

    def test_more_hard_ones_than_wrong_ones_is_refused(self) -> None:
        with pytest.raises(PixelBertError, match="hardest is 5"):
            Retrieval(wrong=4, hardest=5)


class TestScoring:
    def test_pieces_hold_few_images_and_everything(self) -> None:
        images_of = np.array([[0], [0], [1], [2], [2], [3]])
        found = list(pieces(range(6), images_of, 2))
        assert found == [[0, 1, 2], [3, 4, 5]]

    def test_shuffled_photos_are_never_ones_own_and_each_is_used_once(self) -> None:
        images_of = np.repeat(np.arange(10), 3)[:, None]
        examples = range(3, 27)  # of images 1 to 8
        shuffled = shuffled_images(SimpleNamespace(images_of=images_of, photos=np.arange(10)), examples)
        assert (shuffled[3:27] != images_of[3:27]).all()
        assert sorted(shuffled[3:27:3, 0]) == list(range(1, 9))
        assert (shuffled[3:27].reshape(8, 3) == shuffled[3:27:3]).all()  # an image's sentences get one image
        assert (shuffled[:3] == images_of[:3]).all()


class TestPredictionsOnDisk:
    def test_a_log_goes_on_after_a_line_that_was_cut(self, tmp_path: Path) -> None:
        file = tmp_path / "answers.jsonl"
        with PredictionLog(file, str) as log:
            log.add("a", "yes")
            log.add("b", "no")
        with file.open("a") as stream:
            stream.write('{"id": "c", "pred')
        with PredictionLog(file, str) as log:
            assert log.done == {"a": "yes", "b": "no"}
            log.add("c", "2")
        assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == ["a", "b", "c"]

    def test_spaces_of_names_part_no_columns(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        scores = np.array([[0.5, 1.0]], dtype=np.float32)
        write_run(tmp_path / "x.run", scores, ["folder:my dog.jpg#0"], ["my dog.jpg", "cat.jpg"])
        rows = [line.split() for line in (tmp_path / "x.run").read_text().splitlines()]
        assert [row[:4] for row in rows] == [
            ["folder:my%20dog.jpg#0", "Q0", "cat.jpg", "1"],
            ["folder:my%20dog.jpg#0", "Q0", "my%20dog.jpg", "2"],
        ]
        assert "2 names have spaces" in capfd.readouterr().err

    def test_another_evaluation_is_refused(self, tmp_path: Path) -> None:
        claim(tmp_path / "x", {"checkpoint": "1"})
        claim(tmp_path / "x", {"checkpoint": "1"})
        with pytest.raises(PixelBertError, match="checkpoint: there '1', here '2'"):
            claim(tmp_path / "x", {"checkpoint": "2"})
        (tmp_path / "y").mkdir()
        (tmp_path / "y" / "thesis.txt").write_text("")
        with pytest.raises(PixelBertError, match="holds no evaluation"):
            claim(tmp_path / "y", {"checkpoint": "1"})

    def test_scores_start_unknown_and_stay(self, tmp_path: Path) -> None:
        scores = open_scores(tmp_path / "scores.npy", 3, 2)
        assert np.isnan(scores).all()
        scores[1] = (0.5, 1.0)
        scores.flush()
        again = open_scores(tmp_path / "scores.npy", 3, 2)
        assert again[1].tolist() == [0.5, 1.0]
        assert np.isnan(again[[0, 2]]).all()
        with pytest.raises(PixelBertError, match="shape"):
            open_scores(tmp_path / "scores.npy", 3, 4)


def run_evaluation(final: Path, prepared: Path, split: str, output: Path, *options: str) -> dict:
    arguments = ["--data", str(prepared), "--split", split, "--output", str(output), "--precision", "fp32"]
    cli.main(["evaluate", str(final), *arguments, *options])
    return json.loads((output / "metrics.json").read_text())


@pytest.fixture(scope="module")
def answering(
    questions: Path, tmp_path_factory: pytest.TempPathFactory, learned_seed: int, learned_precision: str
) -> Path:
    """A model that learned to answer them. Plain walls make poor statistics of a batch, and steps of this size leap
    where nothing cuts them, so that what is learned would hang on rounding: batch norm stays as it is, the rates are
    low and fall at the end, and gradients are cut.
    """
    folder = tmp_path_factory.mktemp("answering")
    changes = {
        "model": SHAPE | {"batch_norm": "frozen"},
        "optimizer": {"cnn_lr": 0.005, "lr": 0.002, "milestones": [10], "warmup_steps": 10, "clip": 1.0},
        "epochs": 12,
        "seed": learned_seed,
        "precision": learned_precision,
    }
    recipe = write_recipe(folder / "vqa.yaml", {"kind": "question-answering"}, f"{questions}:train", **changes)
    cli.main(["train", str(recipe), "--output", str(folder / "run")])
    return folder / "run" / "final"


def test_answers_are_read_off_the_photo(
    answering: Path, questions: Path, tmp_path: Path, learned_precision: str, margins: Margins
) -> None:
    """A colour is read off the wall; with another wall's photo, or a grey one, it is a guess."""
    options = ["--precision", learned_precision]
    found = run_evaluation(answering, questions, "test", tmp_path / "test", *options)
    margins.at_least("accuracy", found["accuracy"], 0.75)
    margins.at_least("accuracy, less that with photos shuffled", found["accuracy"] - found["accuracy_shuffled"], 0.2)
    margins.at_least("accuracy, less that with photos blank", found["accuracy"] - found["accuracy_blank"], 0.2)
    # From stored features of the CNN: the same answers, but for features kept in bfloat16.
    options += ["--feature-cache", str(tmp_path / "features")]
    run_evaluation(answering, questions, "test", tmp_path / "stored", *options)
    assert len(list((tmp_path / "features").glob("*.bf16"))) == 1
    both = [read_lines(tmp_path / name / "answers.jsonl") for name in ("test", "stored")]
    answers = [{row["id"]: row["prediction"] for row in rows} for rows in both]
    same = [answers[0][asked] == answers[1][asked] for asked in answers[0]]
    margins.at_least("share of answers that are the same from stored features", np.mean(same), 0.9)


def test_question_answering(
    answering: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    final = answering
    found = run_evaluation(final, questions, "test", tmp_path / "test")
    assert (found["examples"], found["precision"]) == (40, "fp32")

    results = json.loads((tmp_path / "test" / "vqa_results.json").read_text())
    truth = {e["example_id"]: e["answers"] for e in Corpus([f"{questions}:test"]).datasets[0].examples("test")}
    right = [row["answer"] in truth[f"vqa:{row['question_id']}"] for row in results]
    assert len(results) == 40
    assert np.mean(right) == pytest.approx(found["accuracy"])

    # Stopped half way, with a line cut short: the rest is answered, the same.
    log = tmp_path / "test" / "answers.jsonl"
    whole = log.read_text().splitlines(keepends=True)
    log.write_text("".join(whole[:17]) + whole[17][:9])
    assert run_evaluation(final, questions, "test", tmp_path / "test") == found
    assert sorted(log.read_text().splitlines(keepends=True)) == sorted(whole)

    # What was trained on is refused, or marked.
    with pytest.raises(SystemExit):
        run_evaluation(final, questions, "train", tmp_path / "train")
    assert "was trained on vqa:train" in capsys.readouterr().err
    assert run_evaluation(final, questions, "train", tmp_path / "train", "--allow_trained", "true")["trained_on"]


def test_two_processes_share_an_evaluation(questions: Path, captions: Path, tmp_path: Path) -> None:
    """Each example is measured by one of them, and all is as one process has it."""
    shape = {k: v for k, v in SHAPE.items() if k != "vocab_size"}
    commands: dict[str, list[str]] = {}
    for prepared, kind in ((questions, PixelBertForQuestionAnswering), (captions, PixelBertForImageAndTextRetrieval)):
        corpus, processor = opened(prepared, "train")
        labels = {"id2label": dict(enumerate(corpus.answers))} if kind is PixelBertForQuestionAnswering else {}
        torch.manual_seed(0)
        checkpoint = tmp_path / kind.__name__
        kind(PixelBertConfig(vocab_size=len(processor.tokenizer), **shape, **labels)).save_pretrained(checkpoint)
        processor.save_pretrained(checkpoint)
        commands[kind.__name__] = ["evaluate", str(checkpoint), "--data", str(prepared), "--split", "test"]
    script = tmp_path / "both.py"
    together = [[*command, "--output", str(tmp_path / "two" / name)] for name, command in commands.items()]
    script.write_text(f"from pixelbert import cli\nfor command in {together!r}:\n    cli.main(command)\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("metrics and predictions are in") == 2  # by the first process alone
    for name, command in commands.items():
        cli.main([*command, "--output", str(tmp_path / "one" / name)])
        found, alone = (json.loads((tmp_path / n / name / "metrics.json").read_text()) for n in ("two", "one"))
        assert found == alone

    folder = tmp_path / "two" / "PixelBertForQuestionAnswering"
    parts = [[json.loads(line)["id"] for line in file.read_text().splitlines()] for file in (
        folder / "answers.jsonl", folder / "answers-1.jsonl"
    )]  # fmt: skip
    assert list(map(len, parts)) == [20, 20]
    assert len(set(parts[0] + parts[1])) == 40
    scores = [np.load(tmp_path / n / "PixelBertForImageAndTextRetrieval" / "scores.npy") for n in ("one", "two")]
    np.testing.assert_allclose(*scores, atol=1e-5)
    # One process goes on with what two have left.
    whole = (folder / "answers-1.jsonl").read_text()
    (folder / "answers-1.jsonl").write_text("".join(whole.splitlines(keepends=True)[:7]))
    (folder / "metrics.json").unlink()
    cli.main([*commands["PixelBertForQuestionAnswering"], "--output", str(folder)])
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 33
    assert (folder / "metrics.json").read_text() == (tmp_path / "one" / folder.name / "metrics.json").read_text()


def test_a_model_of_other_answers_keeps_those_it_knows(questions: Path, tmp_path: Path) -> None:
    corpus, processor = opened(questions, "train")
    answers = ["purple", "red", "no", "blue", "yes", "green"]  # as many as the data have, others and in another order
    assert len(answers) == len(corpus.answers)
    shape = {k: v for k, v in SHAPE.items() if k not in ("dropout", "vocab_size")}
    config = PixelBertConfig(vocab_size=len(processor.tokenizer), id2label=dict(enumerate(answers)), **shape)
    before = PixelBertForQuestionAnswering(config)
    before.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    recipe = Recipe(task=QuestionAnswering(), model=ModelRecipe(checkpoint=str(tmp_path)))
    after, _ = build_model(recipe, processor.tokenizer, corpus)
    assert after.answers == corpus.answers
    for i, answer in enumerate(after.answers):
        same = [torch.equal(after.classifier.out.weight[i], row) for row in before.classifier.out.weight]
        assert same == [answer == known for known in answers]
    assert torch.equal(after.classifier.dense.weight, before.classifier.dense.weight)


def test_reasoning_over_two_photos(statements: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "nlvr2.yaml", {"kind": "reasoning"}, f"{statements}:train", epochs=4)
    validation = ["--data.validation", f"[{statements}:dev]"]
    cli.main(["train", str(recipe), "--output", str(tmp_path / "run"), *validation])
    assert (tmp_path / "run" / "curves.png").exists()
    found = run_evaluation(tmp_path / "run" / "final", statements, "dev", tmp_path / "dev")
    rows = dict(line.split(",") for line in (tmp_path / "dev" / "nlvr2.csv").read_text().splitlines())
    assert len(rows) == found["examples"] == 48
    assert set(rows.values()) <= {"True", "False"}
    lines = map(json.loads, (statements.parent / "dev.json").read_text().splitlines())
    right = [rows[line["identifier"]] == line["label"] for line in lines]
    assert np.mean(right) == pytest.approx(found["accuracy"])
    assert 0 <= found["consistency"] <= found["accuracy"]
    # The official files and our predictions, by the command that scores any system.
    scored = tmp_path / "scored.json"
    files = ["--data", str(statements.parent / "dev.json"), "--predictions", str(tmp_path / "dev" / "nlvr2.csv")]
    cli.main(["score", "nlvr2", *files, "--json", str(scored)])
    assert json.loads(scored.read_text())["accuracy"] == pytest.approx(100 * found["accuracy"])


def test_retrieval_from_a_pretrained_model(captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_recipe(tmp_path / "pretrain.yaml", {"kind": "pretraining", "pixels": None}, f"{captions}:train")
    cli.main(["train", str(first), "--output", str(tmp_path / "pretrained"), "--epochs", "2"])
    pretrained = tmp_path / "pretrained" / "final"
    model = {"checkpoint": str(pretrained), "freeze_backbone": True, "feature_cache": str(tmp_path / "features")}
    task = {"kind": "retrieval", "wrong": 5, "hardest": 2, "towers": True, "tower_size": 16}
    recipe = write_recipe(tmp_path / "retrieval.yaml", task, f"{captions}:train", model=model, batch_size=8)
    cli.main(["train", str(recipe), "--output", str(tmp_path / "run"), "--epochs", "2"])
    final = tmp_path / "run" / "final"
    learned = json.loads((final / "trained_on.json").read_text())
    assert [(item["data"], item["split"]) for item in learned] == [("folder", "train")]

    found = run_evaluation(final, captions, "test", tmp_path / "test", "--folds", "3")
    scores = np.load(tmp_path / "test" / "scores.npy")
    assert scores.shape == (24, 12)
    for name, value in recall_at_k(scores.T, np.repeat(np.arange(12), 2)).items():
        assert found[name] == value
        assert f"{name}_3_folds" in found
    loaded = PixelBert.from_pretrained(final, precision="fp32")
    corpus = Corpus([f"{captions}:test"])
    shown = list(corpus.examples_of_images())
    matched = loaded.match(corpus.load_image(shown[3]), [corpus.text(e) for e in range(24)])[0]
    np.testing.assert_allclose(1 / (1 + np.exp(-scores[:, 3])), matched, atol=1e-5)
    assert all(0 <= found[f"tower_{name}"] <= 1 for name in ("text_to_image_r1", "image_to_text_r10"))
    # Going on: only what is missing is scored again, to the same value.
    file = tmp_path / "test" / "scores.npy"
    broken = np.load(file)
    broken[5, 3:] = np.nan
    np.save(file, broken)
    assert run_evaluation(final, captions, "test", tmp_path / "test", "--folds", "3") == found
    np.testing.assert_allclose(np.load(file), scores, atol=1e-5)
    run = [line.split() for line in (tmp_path / "test" / "text_to_image.run").read_text().splitlines()]
    assert len(run) == 24 * 12
    assert [row[3] for row in run[:3]] == ["1", "2", "3"]
    # Some queries against everything: of these captions and images, the same recall.
    some = run_evaluation(final, captions, "test", tmp_path / "some", "--queries", "6")
    assert (some["text_to_image_queries"], some["image_to_text_queries"]) == (6, 3)
    part = np.load(tmp_path / "some" / "scores_text_to_image.npy")
    assert part.shape == (6, 12)
    assert {tuple(np.round(row, 4)) for row in part} <= {tuple(np.round(row, 4)) for row in scores}
    every = run_evaluation(final, captions, "test", tmp_path / "every", "--queries", "24")
    assert {k: v for k, v in every.items() if k in found and "_r" in k} == {
        k: v for k, v in found.items() if k in every and "_r" in k
    }
    # By two stages: a list that is not short gives the exact result, a short one has the same scores.
    whole = run_evaluation(final, captions, "test", tmp_path / "whole", "--shortlist", "24")
    assert {k: v for k, v in whole.items() if k in found and "_r" in k} == {
        k: v for k, v in found.items() if k in whole and "_r" in k
    }
    run_evaluation(final, captions, "test", tmp_path / "short", "--shortlist", "3")
    short = np.load(tmp_path / "short" / "scores_shortlist.npy")
    listed = ~np.isnan(short)
    assert (listed.sum(1) >= 3).all()
    assert (listed.sum(0) >= 3).all()
    assert listed.sum() <= 24 * 3 + 12 * 3
    np.testing.assert_allclose(short[listed], scores[listed], atol=1e-5)
    # A pre-trained model ranks with its matching head.
    zero_shot = run_evaluation(pretrained, captions, "test", tmp_path / "zero", "--task", "retrieval")
    assert zero_shot["retrieval_captions"] == 24
    with pytest.raises(SystemExit):
        run_evaluation(pretrained, captions, "test", tmp_path / "none", "--task", "retrieval", "--shortlist", "3")
    assert "no two-tower head" in capsys.readouterr().err


def test_data_of_another_kind_is_refused(captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "vqa.yaml", {"kind": "question-answering"}, f"{captions}:train")
    with pytest.raises(SystemExit):
        cli.main(["train", str(recipe), "--output", str(tmp_path / "run")])
    assert "question-answering is needed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["train", str(recipe), "--task.kind", "singing"])
    assert "task.kind is 'singing'" in capsys.readouterr().err


def test_a_file_for_the_server_answers_every_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """VQA v2's test questions, which have no annotations; one photo is missing."""
    asked = [{"image_id": i, "question": f"what is in photo {i}?", "question_id": 10 * i} for i in range(1, 121)]
    file = tmp_path / "v2_OpenEnded_mscoco_test2015_questions.json"
    file.write_text(json.dumps({"data_subtype": "test2015", "questions": asked}))
    for i in range(1, 121):
        paint(tmp_path / "test2015" / f"COCO_test2015_{i:012d}.jpg", "red", noise=i)
    (tmp_path / "answers.json").write_text('["yes", "no"]')
    options = ["--questions", f"[{file}]", "--images", str(tmp_path), "--answers", str(tmp_path / "answers.json")]
    cli.main(["prepare", "vqa2", *options, "--output", str(tmp_path / "whole")])
    (tmp_path / "test2015" / "COCO_test2015_000000000007.jpg").unlink()
    cli.main(["prepare", "vqa2", *options, "--output", str(tmp_path / "partial")])
    paint(tmp_path / "test2015" / "COCO_test2015_000000000007.jpg", "red", noise=7)

    config = PixelBertConfig(**{k: v for k, v in SHAPE.items() if k != "dropout"}, id2label={0: "yes", 1: "no"})
    _, processor = opened(tmp_path / "whole", "test")
    config.vocab_size = len(processor.tokenizer)
    PixelBertForQuestionAnswering(config).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")

    found = run_evaluation(tmp_path / "model", tmp_path / "whole", "test", tmp_path / "out", "--questions", str(file))
    assert "accuracy" not in found  # nobody but the server knows
    results = json.loads((tmp_path / "out" / "vqa_results.json").read_text())
    assert sorted(row["question_id"] for row in results) == [row["question_id"] for row in asked]
    assert {row["answer"] for row in results} <= {"yes", "no"}

    for extra in ([], ["--questions", str(file)]):
        with pytest.raises(SystemExit):
            run_evaluation(tmp_path / "model", tmp_path / "partial", "test", tmp_path / "out2", *extra)
        error = capsys.readouterr().err
        assert "1 questions have no answer" in error
        assert ("70" if extra else "coco:7") in error
        assert not (tmp_path / "out2" / "vqa_results.json").exists()

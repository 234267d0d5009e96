"""`pixelbert evaluate`: measure a checkpoint on a prepared split and write its predictions.

What is measured follows the checkpoint's head: masked words, matching and zero-shot retrieval; answers; statements;
retrieval over all pairs. Every evaluation but pre-training's can be stopped and goes on where it was, and is shared by
the processes that `accelerate launch -m pixelbert evaluate ...` starts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from pixelbert.data.corpus import Corpus
from pixelbert.data.feature_cache import build_feature_cache
from pixelbert.data.photos import Photos
from pixelbert.data.processing import PixelBertProcessor
from pixelbert.data.store import SKIPPED
from pixelbert.device import Precision, Share, best_device, best_precision, launched_share
from pixelbert.errors import PixelBertError
from pixelbert.evaluate_options import Kind, Options
from pixelbert.evaluate_table import print_table
from pixelbert.files import read_json_lines, write_json
from pixelbert.loading import load_answering, load_checkpoint, trained_on
from pixelbert.metrics.nlvr2 import nlvr2_scores
from pixelbert.metrics.retrieval import fold_recall, query_recall
from pixelbert.model.inference import for_inference
from pixelbert.progress import console
from pixelbert.score import by_question
from pixelbert.tasks import predictions
from pixelbert.tasks.pretraining_evaluation import evaluate_pretraining
from pixelbert.tasks.question_answering import answer_questions, answerable, measure_answers
from pixelbert.tasks.reasoning import judge_statements
from pixelbert.tasks.retrieval import all_pairs_recall, score_all_pairs
from pixelbert.tasks.scoring import shuffled_images
from pixelbert.tasks.shortlist import kept_by_shortlist, shortlisted, tower_recall, tower_scores, two_stage
from pixelbert.train.recipe import TASKS

KINDS = {task.model_class: cast(Kind, kind) for kind, task in TASKS.items()}  # of each network


@dataclass
class Evaluation:
    """What an evaluation works with."""

    model: Any
    processor: PixelBertProcessor
    photos: Photos
    folder: Path
    precision: Precision
    options: Options
    share: Share

    @property
    def corpus(self) -> Corpus:
        """The examples."""
        return self.photos.corpus

    @property
    def chosen(self) -> range:
        """The examples that are measured, where each is measured for itself."""
        return range(len(self.corpus))[: self.options.examples]

    @property
    def has_towers(self) -> bool:
        """Whether the model can short-list."""
        return self.model.pixelbert.towers is not None

    def score(self, name: str, captions: list[int], images: list[int], wanted: np.ndarray | None = None) -> np.memmap:
        """(captions, images) joint scores of all pairs or those wanted, in a file of the folder."""
        with self.share.first_alone():
            scores = predictions.open_scores(self.folder / f"{name}.npy", len(captions), len(images))
        score_all_pairs(
            self.model, self.processor, self.photos, captions, images, scores,
            wanted=wanted, precision=self.precision, share=self.share, show=self.share.first,
        )  # fmt: skip
        return scores


def evaluate(
    checkpoint: str,
    data: str,
    split: str,
    output: Path | None = None,
    json: Path | None = None,
    task: Kind | None = None,
    examples: int | None = None,
    controls: bool = True,
    retrieval_images: int | None = None,
    captions_per_image: int | None = None,
    folds: int = 0,
    queries: int = 0,
    shortlist: int = 0,
    questions: Path | None = None,
    allow_trained: bool = False,
    feature_cache: Path | None = None,
    seed: int = 0,
    precision: Precision | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint, each figure beside its control, and write its predictions.

    Args:
        checkpoint: folder of a trained model (DIR/final of a run), or a hub name.
        data: a prepared data set.
        split: one of its splits.
        output: folder for metrics.json and the predictions: vqa_results.json for VQA's server, nlvr2.csv for NLVR2's
            script, scores.npy and run files of retrieval. The same command on the same folder goes on with an
            evaluation that was stopped. If null, evaluation/DATA-SPLIT beside the checkpoint, with the
            task at the end where it isn't the checkpoint's own.
        json: another file to write the metrics to.
        task: measure as this task: "retrieval" ranks with the matching head of a pre-trained model,
            "question-answering" asks heads that are beside its own, as in the model that ships. Null for the task that
            the checkpoint was trained for.
        examples: sentences that are measured, from the first; all if null. Not of retrieval.
        controls: also answer with photos shuffled, and blank. Of answers and statements; pre-training has its controls
            always.
        retrieval_images: images whose captions are ranked among each other, from the first. Null for all of them; for
            100 in the zero-shot retrieval of a pre-trained checkpoint, which 0 leaves out. All pairs are scored: 1,000
            images and 5,000 captions are 5,000,000 forward passes of the transformer.
        captions_per_image: captions of each of these images, from the first; 0 for all. Null for all; for 1 with a
            pre-trained checkpoint.
        queries: estimate retrieval by so many captions drawn at random, each against all images, and by as many images
            against all captions as take the same time; with the standard error of sampling. 0 for all pairs.
        shortlist: score only so many items of each query, those that the two-tower head ranks highest.
            0 to score all. Not with queries. A checkpoint with that head gets figures of it alone too (`tower_`), with
            what short lists would keep of the best.
        folds: also the mean recall of so many equal folds of images: 5 for COCO's five folds of 1,000. Not with queries
            or shortlist.
        questions: VQA's official questions file of the split: each of its questions must be answered, since the server
            rejects a file in which one is missing. Not with examples.
        allow_trained: measure on a split that the checkpoint was trained on. The metrics are marked.
        feature_cache: a folder of stored CNN features, as of training's model.feature_cache: photos that are there are
            not encoded again, others are added. For many measurements with one CNN.
        seed: of masks, mismatched sentences, shuffled photos and drawn queries.
        precision: bf16 or fp32; if null bf16 where the device is clearly faster in it, which is measured.
        device: cuda, mps or cpu; the best there is if null.

    Returns:
        The metrics. (None of a pre-trained checkpoint's on other processes than the first, which measures it alone.)

    Raises:
        PixelBertError: the checkpoint or the data can't be read or don't fit, the split was trained on, an option would
            be ignored, or another evaluation is at work in the folder.
    """
    device = best_device(device)
    share = launched_share(device)
    options = Options(
        examples, controls, retrieval_images, captions_per_image, folds, queries, shortlist, questions, seed
    )
    console.quiet = not share.first
    precision = precision or share.agreed(best_precision(device))
    corpus = Corpus([f"{data}:{split}"])
    model, processor, _ = load_checkpoint(checkpoint, device)
    made_for = KINDS[type(model)]
    kind = task or made_for
    options.check(kind)
    check_fit(options, model, corpus)
    if (kind, made_for) == ("question-answering", "pretraining"):
        model = load_answering(checkpoint, model.pixelbert)
    elif kind != made_for and (kind, made_for) != ("retrieval", "pretraining"):
        model = None
    if model is None:
        raise PixelBertError(f"{checkpoint} was trained for {made_for} and can't be measured as {kind}")
    corpus.require(TASKS[kind].reads)
    learned = was_trained_on(model.name_or_path, corpus)
    if learned and not allow_trained:
        raise PixelBertError(
            f"{checkpoint} was trained on {learned}, so its figures there say nothing about new data; measure another "
            "split, or say --allow-trained to have them marked"
        )
    folder = output or default_folder(checkpoint, corpus, split, kind, made_for)
    identity: dict[str, Any] | None = None
    if kind != "pretraining":
        identity = {"checkpoint": weights_fingerprint(model), "task": kind, "data": corpus.provenance()}
        if photos := corpus.photo_digest:
            identity["photos"] = photos
        identity |= {"examples": examples, "seed": seed, "precision": precision}
        if kind == "retrieval":
            identity |= {"retrieval_images": retrieval_images, "captions_per_image": captions_per_image}
            identity |= {"queries": queries, "shortlist": shortlist}
    elif share.first:
        share = Share()  # a few thousand captions at most are measured, by one process, and no predictions kept
    else:
        return {}
    images = processor.image_processor
    with predictions.claimed(folder, identity, share):
        cache = None
        if feature_cache:
            with share.first_alone():
                cache = build_feature_cache(model.pixelbert, corpus, images, feature_cache)
        model = for_inference(model, precision)
        run = Evaluation(model, processor, Photos(corpus, images, cache), folder, precision, options, share)
        result: dict[str, Any] = {
            "checkpoint": checkpoint,
            "data": data,
            "split": split,
            "task": kind,
            "precision": precision,
        }
        result |= {"trained_on": bool(learned)} | measure(run, kind)
        measured = gallery(run)[0] if kind == "retrieval" else run.chosen
        unread = processor.unread([corpus.text(e) for e in measured])
        result |= unread.counts()
        if share.first:
            print_table(result)
            for line in unread.lines():
                console.print(f"note: {line}")
            for file in (folder / "metrics.json", json):
                if file is not None:
                    write_json(file, result)
            console.print(f"metrics and predictions are in {folder}")
    return result


def check_fit(options: Options, model: Any, corpus: Corpus) -> None:
    """Check that the model and the data have what the options ask for.

    Raises:
        PixelBertError: there is no two-tower head, or the images make no equal folds.
    """
    if options.shortlist and model.pixelbert.towers is None:
        raise PixelBertError("this checkpoint has no two-tower head to short-list by: leave out --shortlist")
    images = len(corpus.examples_of_images(options.retrieval_images)) if options.folds else 0
    if options.folds and images % options.folds:
        raise PixelBertError(
            f"--folds {options.folds}: {images:,} images do not divide into equal folds; choose a number that divides "
            "them, or fewer images with --retrieval-images"
        )


def measure(run: Evaluation, kind: Kind) -> dict[str, Any]:
    """The figures of a task, as the options say."""
    if kind == "pretraining":
        return evaluate_zero_shot(run)
    if kind == "question-answering":
        return evaluate_answers(run)
    if kind == "reasoning":
        return evaluate_statements(run)
    if run.options.shortlist:
        return evaluate_shortlist(run)
    return estimate_retrieval(run) if run.options.queries else evaluate_retrieval(run)


def evaluate_zero_shot(run: Evaluation) -> dict[str, Any]:
    """What a pre-trained model has learned, and how it ranks as it is."""
    options = run.options
    shown = 100 if options.retrieval_images is None else options.retrieval_images
    result: dict[str, Any] = evaluate_pretraining(
        run.model,
        run.processor,
        run.photos,
        examples=options.examples,
        retrieval_images=shown,
        captions_per_image=1 if options.captions_per_image is None else options.captions_per_image,
        seed=options.seed,
        precision=run.precision,
    )
    if run.has_towers and shown:
        result |= tower_recall(run.model, run.processor, run.photos, images=shown, precision=run.precision)
    return result


def was_trained_on(checkpoint: str, corpus: Corpus) -> str:
    """Which of the corpus's splits a checkpoint has learned from, by name or by content; empty if none."""
    known = trained_on(checkpoint)
    names = {(item["data"], item["split"]) for item in known}
    files = {checksum for item in known for checksum in item["sha256"]}
    found = [
        f"{item['data']}:{item['split']}"
        for item in corpus.provenance()
        if (item["data"], item["split"]) in names or files & set(item["sha256"])
    ]
    return ", ".join(found)


def default_folder(checkpoint: str, corpus: Corpus, split: str, kind: str, made_for: str) -> Path:
    """evaluation/DATA-SPLIT beside a checkpoint that is a folder, or here; and the task, if not the model's own."""
    beside = Path(checkpoint).parent if Path(checkpoint).is_dir() else Path()
    return beside / "evaluation" / f"{corpus.datasets[0].name}-{split}{'' if kind == made_for else f'-{kind}'}"


def weights_fingerprint(model: torch.nn.Module) -> str:
    """What tells these weights from others."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def predict(
    run: Evaluation, name: str, examples: Sequence[int], predicted: Any, kind: type, **options: Any
) -> dict[int, Any]:
    """Predictions of all these examples: those on disk from an earlier start, and the others, noted as they come.

    Args:
        name: of the file.
        kind: what a prediction is.
        predicted: `answer_questions` or `judge_statements`.
        options: for it.
    """
    ids = {run.corpus.example_id(e): e for e in examples}

    def files() -> list[Path]:
        return sorted(run.folder.glob(f"{name}.jsonl")) + sorted(run.folder.glob(f"{name}-*.jsonl"))

    known: dict[str, Any] = {}
    with run.share.first_alone():
        for file in files():
            known |= predictions.recover(file, kind)
    run.share.wait()
    left = run.share.of([e for example_id, e in ids.items() if example_id not in known])
    part = "" if run.share.first else f"-{run.share.rank}"
    with predictions.PredictionLog(run.folder / f"{name}{part}.jsonl", kind) as log:
        found: Iterable[tuple[int, Any]] = predicted(
            run.model, run.processor, run.photos, left, precision=run.precision, description=name,
            show=run.share.first, **options,
        )  # fmt: skip
        for example, prediction in found:
            log.add(run.corpus.example_id(example), prediction)
    run.share.wait()
    for file in files():
        known |= predictions.read_predictions(file, kind)[0]
    return {e: known[example_id] for example_id, e in ids.items()}


def evaluate_answers(run: Evaluation) -> dict[str, Any]:
    """Accuracy beside photos shuffled and blank, and the file for VQA's evaluation server."""
    chosen, questions = run.chosen, run.options.questions
    answer = partial(predict, run, examples=chosen, predicted=answer_questions, kind=str)
    answers = answer("answers")
    labelled = all(run.corpus.target(e, "answers") for e in chosen)
    result: dict[str, Any] = {"examples": len(chosen)}
    if labelled:
        controls = {}
        if run.options.controls:
            shuffled = shuffled_images(run.corpus, chosen, run.options.seed)
            controls["shuffled"] = answer("answers_shuffled", images_of=shuffled)
            controls["blank"] = answer("answers_blank", blank=True)
        result |= measure_answers(run.corpus, answers, **controls)
        result["answerable"] = answerable(run.corpus, chosen, run.model.answers)
        result["answer_rule"] = run.corpus.answer_rule(chosen[0])
    by_id = {run.corpus.example_id(e): found for e, found in answers.items()}
    if questions is not None or not labelled:
        check_complete(run, by_id, questions)
    if run.share.first:
        predictions.write_vqa_results(run.folder / "vqa_results.json", by_id)
    return result


def check_complete(run: Evaluation, answers: dict[str, str], questions: Path | None) -> None:
    """Check that no question is missing from what the server will be sent.

    Args:
        questions: the official file. Without it, the prepared data set itself must have left nothing out.

    Raises:
        PixelBertError: names the questions that have no answer.
    """
    data = run.corpus.datasets[0]
    if questions is not None:
        asked = [str(number) for number, _ in by_question(questions, "questions")]
        known = {example_id.rpartition(":")[2] for example_id in answers}
        missing, where = [number for number in asked if number not in known], str(questions)
    else:
        missing = [str(entry.get("id") or entry.get("where")) for entry in read_json_lines(data.folder / SKIPPED)]
        missing += ["..."] if len(answers) < len(run.corpus) else []
        where = f"{data.folder / SKIPPED}, which lists what was left out when the data set was prepared"
    if missing:
        raise PixelBertError(
            f"{len(missing):,} questions have no answer, and the server rejects a file in which one is missing: "
            f"{', '.join(missing[:10])}{', ...' if len(missing) > 10 else ''} ({where}). No vqa_results.json was "
            f"written; the answers that there are stand in {run.folder / 'answers.jsonl'}"
        )


def evaluate_statements(run: Evaluation) -> dict[str, Any]:
    """Accuracy and consistency beside photos shuffled, and the file for NLVR2's script."""
    chosen = run.chosen
    judge = partial(predict, run, examples=chosen, predicted=judge_statements, kind=bool)
    identifier = {e: run.corpus.example_id(e).rpartition(":")[2] for e in chosen}
    judged = {identifier[e]: true for e, true in judge("statements").items()}
    labels = {identifier[e]: run.corpus.target(e, "label") for e in chosen}
    result: dict[str, Any] = {"examples": len(chosen)}
    if all(label is not None for label in labels.values()):
        result |= {name: value / 100 for name, value in nlvr2_scores(judged, labels).items()}
        if run.options.controls:
            images_of = shuffled_images(run.corpus, chosen, run.options.seed)
            shuffled = judge("statements_shuffled", images_of=images_of)
            result["accuracy_shuffled"] = float(np.mean([shuffled[e] == labels[identifier[e]] for e in chosen]))
    if run.share.first:
        predictions.write_nlvr2_predictions(run.folder / "nlvr2.csv", judged)
    return result


def gallery(run: Evaluation) -> tuple[list[int], list[int]]:
    """The captions and the images that are ranked among each other."""
    groups, captions_per_image = (
        run.corpus.examples_of_images(run.options.retrieval_images),
        run.options.captions_per_image,
    )
    captions = [e for es in groups.values() for e in (es[:captions_per_image] if captions_per_image else es)]
    return captions, list(groups)


def estimate_retrieval(run: Evaluation) -> dict[str, Any]:
    """Recall both ways by some of the queries against everything, each with its standard error."""
    captions, shown = gallery(run)
    queries = run.options.queries
    rng = np.random.default_rng(run.options.seed)
    some_captions = sorted(rng.permutation(captions)[:queries].tolist())
    some_images = sorted(rng.permutation(shown)[: max(queries * len(shown) // len(captions), 1)].tolist())
    result: dict[str, Any] = {"retrieval_images": len(shown), "retrieval_captions": len(captions)}
    for way, rows, columns in (
        ("text_to_image", some_captions, shown),
        ("image_to_text", captions, some_images),
    ):
        scores = run.score(f"scores_{way}", rows, columns)
        right = run.corpus.photo_of[rows][:, None] == run.corpus.photos[columns]
        found = query_recall(scores, right) if way == "text_to_image" else query_recall(scores.T, right.T)
        number = len(rows) if way == "text_to_image" else len(columns)
        result[f"{way}_queries"] = number
        for k, recall in found.items():
            result[f"{way}_r{k}"] = recall
            result[f"{way}_r{k}_standard_error"] = (recall * (1 - recall) / number) ** 0.5
        if run.has_towers:
            first = tower_scores(run.model, run.processor, run.photos, rows, columns, precision=run.precision)
            turned = (scores, first) if way == "text_to_image" else (scores.T, first.T)
            result |= kept_by_shortlist(*turned, way)
    return result


def evaluate_shortlist(run: Evaluation) -> dict[str, Any]:
    """Recall both ways as a search finds: the two-tower head short-lists, and the exact score ranks the list."""
    captions, shown = gallery(run)
    size = run.options.shortlist
    first = tower_scores(run.model, run.processor, run.photos, captions, shown, precision=run.precision)
    of_texts, of_images = shortlisted(first, size), shortlisted(first.T, size).T
    scores = run.score("scores_shortlist", captions, shown, of_texts | of_images)
    result: dict[str, Any] = {"retrieval_images": len(shown), "retrieval_captions": len(captions), "shortlist": size}
    for way, chosen in (("text_to_image", of_texts), ("image_to_text", of_images)):
        found = all_pairs_recall(run.corpus, captions, shown, two_stage(scores, first, chosen))
        result |= {name: value for name, value in found.items() if name.startswith(way)}
    towers = all_pairs_recall(run.corpus, captions, shown, first)
    return result | {f"tower_{name}": value for name, value in towers.items()}


def evaluate_retrieval(run: Evaluation) -> dict[str, Any]:
    """Recall both ways over all pairs, scores.npy and a run file for each way."""
    captions, shown = gallery(run)
    folds = run.options.folds
    scores = run.score("scores", captions, shown)
    result: dict[str, Any] = {"retrieval_images": len(shown), "retrieval_captions": len(captions)}
    result |= all_pairs_recall(run.corpus, captions, shown, scores)
    if run.has_towers:
        first = tower_scores(run.model, run.processor, run.photos, captions, shown, precision=run.precision)
        towers = all_pairs_recall(run.corpus, captions, shown, first)
        result |= {f"tower_{name}": value for name, value in towers.items()}
        result |= kept_by_shortlist(scores, first, "text_to_image")
        result |= kept_by_shortlist(scores.T, first.T, "image_to_text")
    if folds:
        column = {image: i for i, image in enumerate(shown)}
        owner = np.array([column[int(run.corpus.image_of[e])] for e in captions])
        found = fold_recall(scores.T, owner, folds, photo=run.corpus.photos[shown])
        result |= {f"{name}_{folds}_folds": value for name, value in found.items()}
    caption_ids, image_ids = [run.corpus.example_id(e) for e in captions], [run.corpus.image_id(i) for i in shown]
    if run.share.first:
        predictions.write_run(run.folder / "text_to_image.run", scores, caption_ids, image_ids)
        predictions.write_run(run.folder / "image_to_text.run", scores.T, image_ids, caption_ids)
    return result

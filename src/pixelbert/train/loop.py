"""The training loop: setup, then steps, from top to bottom.

A step is the same on any number of devices: its examples, masks and mismatches depend on (seed, step) alone, its losses
are normalised over the whole step, and it is accumulated from as many micro-batches as the devices need.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import time
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs

from pixelbert.data.corpus import Corpus
from pixelbert.data.feature_cache import FeatureCache, build_feature_cache, encode_grey
from pixelbert.data.photos import Photos
from pixelbert.data.processing import PixelBertProcessor
from pixelbert.data.reading import SAMPLE
from pixelbert.data.sampler import ExampleOrder
from pixelbert.data.sources.scenes import resolve_scenes
from pixelbert.device import Precision
from pixelbert.errors import PixelBertError, StoppedError
from pixelbert.files import append_line, publish, write_json, write_sums
from pixelbert.loading import TRAINED_ON, trained_on
from pixelbert.model.resnet import channels_last
from pixelbert.model_card import CARD, last_validation, model_card
from pixelbert.progress import Tracker, console
from pixelbert.tasks.steps import StepData
from pixelbert.train import checkpoint, inputs
from pixelbert.train.batches import loaded_batches, next_batch
from pixelbert.train.curves import plot_curves
from pixelbert.train.finite import Soundness, not_finite
from pixelbert.train.logs import is_best
from pixelbert.train.optim import build_optimizers, build_scheduler
from pixelbert.train.precision import keep_precision, precision_of
from pixelbert.train.processes import deaths_told, doubtful_restarts, started_alone
from pixelbert.train.recipe import Recipe
from pixelbert.train.run_folder import METRICS, TOKENIZER, VALIDATION, claimed, flatten
from pixelbert.train.setup import build_model, build_processor
from pixelbert.train.sharded import is_sharded, whole, whole_weights
from pixelbert.train.signals import StopRequest


def train(recipe: Recipe) -> Path:
    """Run a recipe to its end, or go on with it where it stopped.

    Returns:
        The folder of the finished model.

    Raises:
        PixelBertError: data, weights or the output folder don't fit the recipe.
    """
    output = Path(recipe.output)
    torch.use_deterministic_algorithms(recipe.deterministic, warn_only=True)
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS reads when it is first used
    precision = precision_of(recipe)
    accelerator = Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        log_with=known_trackers(recipe.trackers) or None,
        project_dir=output,
        step_scheduler_with_optimizer=False,
        # The first process may encode every image while the others wait for it.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
    )
    main = accelerator.is_main_process
    settings = dataclasses.asdict(recipe)
    final, defaults = output / "final", dataclasses.asdict(Recipe(task=type(recipe.task)()))
    with claimed(output, settings, defaults) if main else nullcontext():
        if main:
            keep_precision(recipe, precision, begun=bool(checkpoint.checkpoints(output)))
        accelerator.wait_for_everyone()
        if final.exists():
            if main:
                console.print(f"{output} is finished; its model is in {final}. Choose another --output to train again.")
            return final
        for advice in filter(None, (doubtful_restarts(), started_alone())) if main else ():
            console.print(advice)
        with deaths_told():
            run(recipe, output, accelerator, precision)
    return final


def run(recipe: Recipe, output: Path, accelerator: Accelerator, precision: Precision) -> None:
    """See `train`; the folder is this run's."""
    main = accelerator.is_main_process
    # What to learn from.
    with accelerator.main_process_first():
        corpus = Corpus(resolve_scenes(recipe.data.train, output / "data"))
        validation = Corpus(resolve_scenes(recipe.data.validation, output / "data")) if recipe.data.validation else None
        for part in (corpus, validation):
            if part is not None:
                part.require(recipe.task.reads)
        if main:
            inputs.hold(output, inputs.of_recipe(recipe, corpus, validation))
    examples = examples_in_step(recipe, accelerator.num_processes)
    order = ExampleOrder(corpus.image_of, examples, recipe.data.sentences_per_image, recipe.seed)
    steps = order.steps(recipe.epochs)

    # What learns.
    torch.manual_seed(recipe.seed)
    with accelerator.main_process_first():
        processor = build_processor(recipe, corpus, output / TOKENIZER)
        if main:
            inputs.hold(output, inputs.of_vocabulary(output), first=False)
    bare, reports = build_model(recipe, processor.tokenizer, corpus)
    bare.to(accelerator.device)
    sharded = is_sharded(accelerator)
    if sharded:
        # accelerate would shard the words' embeddings apart from the rest, where the MLM head, which scores with them
        # too, finds a part of them.
        vars(bare)["get_input_embeddings"] = lambda: None
    else:  # sharding takes no weights in another layout
        channels_last(bare.pixelbert.backbone)
    if main:
        for report in reports:
            console.print(str(report))
    caches: list[FeatureCache | None] = [None, None]
    if recipe.model.feature_cache and recipe.data.blank:
        grey = partial(
            encode_grey, bare.pixelbert, processor=processor.image_processor, after=recipe.model.last_frozen_stage
        )
        caches = [grey(corpus), grey(validation) if validation else None]
    elif recipe.model.feature_cache:
        folder = Path(recipe.model.feature_cache)
        with accelerator.local_main_process_first():
            encode = partial(
                build_feature_cache, bare.pixelbert, processor=processor.image_processor, folder=folder,
                after=recipe.model.last_frozen_stage,
            )  # fmt: skip
            caches[0] = encode(corpus, mirror=recipe.data.mirror)
            caches[1] = encode(validation) if validation else None
    optimizers = list(build_optimizers(bare, recipe.optimizer, sharded=sharded).values())
    schedulers = [build_scheduler(o, recipe.optimizer, order.epoch_of) for o in optimizers]
    model, *prepared = accelerator.prepare(bare, *optimizers, *schedulers)
    optimizers, schedulers = prepared[: len(optimizers)], prepared[len(optimizers) :]

    # Where it stands.
    progress = checkpoint.restore(accelerator, output)
    if recipe.trackers:
        accelerator.init_trackers("pixelbert", config=flatten(trackable(dataclasses.asdict(recipe))))
    images = processor.image_processor
    data = recipe.task.data(
        Photos(corpus, images, caches[0], recipe.data.blank), processor, order, accelerator.process_index,
        accelerator.num_processes, recipe.micro_batch_size, recipe.data.mirror,
    )  # fmt: skip
    validation_photos = Photos(validation, images, caches[1], recipe.data.blank) if validation else None
    saver = checkpoint.Saver(accelerator, output, recipe.keep_checkpoints)
    sound = Soundness(accelerator, bare, optimizers, saver)
    sound.require_start(progress.step)
    if main:
        describe(data, steps, accelerator, precision, bare, progress.step)
        tell_unread(corpus, processor, output)

    model.train()
    started, pairs_since, time_since = time.monotonic(), 0, time.monotonic()
    learned = inputs.learned_from(output, what_it_learned(recipe, corpus)) if main else []
    with (
        Tracker("training", steps, done=progress.step, show=main) as tracker,
        StopRequest() as stop,
        loaded_batches(data, progress.step, steps, recipe.data.workers) as batches,
        saver,
    ):
        to_measure = to_save = False
        for step in range(progress.step, steps):
            sound.begin_step()
            torch.manual_seed(hash((recipe.seed, step, accelerator.process_index)))  # dropout, the same after a resume
            sums: dict[str, torch.Tensor] = {}
            seen: list[int] = []
            count = data.micro_batches()
            for micro in range(count):
                batch = next_batch(batches).to(accelerator.device)
                seen += batch.examples
                synchronise = micro == count - 1
                with nullcontext() if synchronise else accelerator.no_sync(model):
                    with accelerator.autocast():
                        loss, parts = recipe.task.loss(model, batch)
                    # Processes average their gradients, and the losses of a step's parts must add up.
                    accelerator.backward(loss * accelerator.num_processes)
                for name, value in parts.items():
                    sums[name] = sums.get(name, torch.zeros_like(value)) + value
            norm = accelerator.clip_grad_norm_(model.parameters(), recipe.optimizer.clip or math.inf)
            asked = torch.zeros_like(loss).detach() + stop.signal  # one process may be asked to stop, and all do
            *totals, asked_to_stop = accelerator.reduce(torch.stack([*sums.values(), asked]), "sum").tolist()
            rate = schedulers[0].get_last_lr()[0]
            if all(map(math.isfinite, [*totals, float(norm)])):
                for optimizer in optimizers:
                    optimizer.step()
                sound.took_step()
                progress.add(dict(zip(sums, totals, strict=True)), float(norm))
            else:  # every process sees the same sums, so all skip it
                sound.left_out()
                progress.skipped += 1
                said = not_finite(step + 1, sums, totals, float(norm), corpus, seen)
                if broken := sound.broken():
                    raise PixelBertError(f"{said} {broken} is not finite since a step before it. {sound.advice()}")
                if progress.skipped > recipe.skip_limit:
                    count_said = f"It is number {progress.skipped} of such steps (skip_limit)."
                    raise PixelBertError(f"{said} {count_said} {sound.advice()}")
                if main:
                    console.print(f"{said} Left out: {progress.skipped} of at most {recipe.skip_limit}.")
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                scheduler.step()
                optimizer.zero_grad()
            progress.step = step + 1
            pairs_since += data.pairs_in_step

            last = progress.step == steps
            to_log = progress.counted and (last or due(progress.step, recipe.log_every))
            to_measure |= validation_photos is not None and (last or due(progress.step, recipe.evaluate_every))
            to_save |= last or asked_to_stop > 0 or due(progress.step, recipe.checkpoint_every)
            if to_log or to_measure or to_save:
                sound.require(progress.step)
            if to_log:
                row = {"step": progress.step, "epoch": order.epoch_of(progress.step), **progress.logged()}
                row["pairs_per_second"] = round(pairs_since / (time.monotonic() - time_since), 2)
                row["lr"] = rate
                if main:
                    append_line(output / METRICS, row)
                    accelerator.log({k: v for k, v in row.items() if k != "step"}, step=progress.step)
                pairs_since, time_since = 0, time.monotonic()
                tracker.advance(0, note=f"loss {row['loss']:.4f}")
            # Measured before it is saved: who goes on from a checkpoint has its measurement behind him. Steps that are
            # left out put both off.
            if to_measure and validation_photos and not sound.streak:
                if main or sharded:  # of whose network each process has to give its part
                    with whole(bare, sharded):
                        row = recipe.task.validate(
                            bare, processor, validation_photos, recipe.evaluate_examples, precision
                        )
                to_measure = False
                weights = whole_weights(bare) if sharded and recipe.keep_best else None
                if main:
                    row = {"step": progress.step, **row}
                    if recipe.keep_best and is_best(output, recipe.keep_best, row):
                        write_model(bare, processor, learned, output, "best", row, weights)
                    append_line(output / VALIDATION, row)
                    accelerator.log({f"validation/{k}": v for k, v in row.items() if k != "step"}, step=progress.step)
                    console.print(f"step {progress.step}: {recipe.task.summary(row)}")
                accelerator.wait_for_everyone()
            if to_save and not sound.streak:
                saver.save(progress)
                to_save = False
            if last and sound.streak:
                raise PixelBertError(
                    f"the last steps up to {progress.step} were left out, so there is no model to end with. "
                    f"{sound.advice()}"
                )
            if asked_to_stop and not last:
                kept = f"step {progress.step:,} of {steps:,} is saved"
                if sound.streak:
                    since = newest.name if (newest := sound.newest()) else "the beginning"
                    kept = f"the last steps up to {progress.step:,} were left out, so nothing since {since} is saved"
                saver.wait()
                # A launcher ends the other processes soon after the first has ended: not before all is on disk.
                accelerator.wait_for_everyone()
                raise StoppedError(
                    f"asked to stop; {kept}. The same command goes on from there", stop.signal or signal.SIGTERM
                )
            tracker.advance()

    weights = whole_weights(bare) if sharded else None
    if main:
        plot_curves(output)
        write_model(bare, processor, learned, output, "final", last_validation(output), weights)
        minutes = (time.monotonic() - started) / 60
        console.print(f"finished in {minutes:.1f} minutes; the model is in {output / 'final'}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


def examples_in_step(recipe: Recipe, processes: int) -> int:
    """How many examples `batch_size` comes to.

    Raises:
        PixelBertError: too few for each process to have some.
    """
    task = recipe.task
    parts = recipe.batch_size // task.indivisible
    if parts < processes:
        raise PixelBertError(
            f"batch_size {recipe.batch_size:,} makes {parts:,} parts of {task.indivisible:,}, too few for {processes} "
            f"processes: start {parts}, or raise it to {processes * task.indivisible:,}"
        )
    return recipe.batch_size // task.counts_per_example


def known_trackers(names: list[str]) -> list[str]:
    """The trackers of a recipe, or an error that lists those that accelerate finds installed."""
    available = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name not in available:
            raise PixelBertError(f"tracker {name!r} is unknown or not installed; there are {', '.join(available)}")
    return names


def what_it_learned(recipe: Recipe, corpus: Corpus) -> list[dict[str, Any]]:
    """The data of this run and of the checkpoint that it began with."""
    learned = trained_on(recipe.model.checkpoint) if recipe.model.checkpoint else []
    return learned + [source for source in corpus.provenance() if source not in learned]


def due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (never if 0) happens after this one."""
    return every > 0 and step % every == 0


def trackable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as TensorBoard takes them: lists as text."""
    return {
        key: trackable(value) if isinstance(value, dict) else str(value) if isinstance(value, list) else value
        for key, value in settings.items()
        if value is not None
    }


def describe(
    data: StepData,
    steps: int,
    accelerator: Accelerator,
    precision: Precision,
    model: Any,
    step: int,
) -> None:
    """Say what is about to run."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    console.print(
        f"{len(data.corpus):,} sentences of {len(data.corpus.sizes):,} images; "
        f"{trained:,} of {total:,} weights are trained\n"
        f"{steps:,} steps of {data.pairs_in_step:,} pairs on {accelerator.num_processes} x {accelerator.device.type}, "
        f"{data.micro_batches()} micro-batches each, {precision}" + (f"; going on after step {step:,}" if step else "")
    )
    if data.order.size > len(data.corpus):
        console.print(
            f"A step takes {data.order.size:,} examples, and there are {len(data.corpus):,}: some are in it more than "
            "once. A lower batch_size prevents that"
        )


def tell_unread(corpus: Corpus, processor: PixelBertProcessor, output: Path) -> None:
    """Say, and note in sentences.json, how many training sentences are cut or have unknown words, by a sample."""
    unread = processor.unread([corpus.text(e) for e in range(0, len(corpus), max(len(corpus) // SAMPLE, 1))])
    console.print(unread.shares(len(corpus), processor.max_length - 2))
    facts = {"sentences": len(corpus), "max_length": processor.max_length, "looked_at": unread.sentences}
    write_json(output / "sentences.json", facts | {"cut": len(unread.cut), "unknown": len(unread.unknown)})


def write_model(
    model: Any,
    processor: PixelBertProcessor,
    learned: list[dict[str, Any]],
    output: Path,
    name: str,
    validation: dict[str, Any] | None,
    weights: dict[str, Any] | None = None,
) -> None:
    """Write DIR/name, a model for from_pretrained with its card, aside and rename it.

    Args:
        validation: what was measured of it, with its step; None if there is no validation data.
        weights: in place of the model's own, which are but a part of them if it is sharded.
    """
    aside, target = output / f"{name}.partial", output / name
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside, state_dict=weights)
    processor.save_pretrained(aside)
    (aside / TRAINED_ON).write_text(json.dumps(learned, indent=2) + "\n")
    card = model_card(model, processor, learned, validation, output.name)
    (aside / CARD).write_text(card, encoding="utf-8")
    write_sums(aside, but=(CARD,))  # which people complete
    shutil.rmtree(target, ignore_errors=True)
    publish(aside, target)

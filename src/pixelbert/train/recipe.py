"""The typed recipe: everything that a run depends on. YAML, command line and `--print_config` come from these classes.

The defaults are those of paper section 4.1 with ResNet-50, but for `data.sentences_per_image`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pixelbert.bounds import COUNT, RATE, SEED, SHARE, ZERO_OR_MORE, Bound, check_fields
from pixelbert.device import Precision
from pixelbert.errors import PixelBertError
from pixelbert.tasks.pretraining import Pretraining
from pixelbert.tasks.question_answering import QuestionAnswering
from pixelbert.tasks.reasoning import Reasoning
from pixelbert.tasks.retrieval import Retrieval
from pixelbert.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    "pretraining": Pretraining,
    "question-answering": QuestionAnswering,
    "reasoning": Reasoning,
    "retrieval": Retrieval,
}


@dataclass
class ModelRecipe:
    """The network and what it starts from. Sizes left null are those of `text_init`, or of BERT-base without it.

    Args:
        checkpoint: a pixelbert checkpoint to start from ("shipped" is the one that ships with the project); the shape
            of the network and the tokenizer are then its own, and only `freeze_backbone`, `freeze_trunk`,
            `feature_cache`, `activation_checkpointing`, `dropout` and `pixel_dropout` below still count. A new task has
            a new head.
        backbone: the CNN: resnet50, resnext152_32x8d or resnet14_small.
        backbone_init: its weights, a torchvision or timm state dict (.safetensors or .pth); random if null.
        text_init: a transformers BERT checkpoint, a folder or a hub name (paper: bert-base-uncased); random if null.
        tokenizer: folder or hub name of a WordPiece tokenizer; `text_init`'s if null; without either, a vocabulary is
            learned from the training sentences.
        vocab_size: of a learned vocabulary, at most.
        stride_in_1x1: the first 1x1 convolution of a bottleneck halves the grid, not the 3x3 (see PixelBertConfig).
        batch_norm: frozen, or train (for a CNN that starts at random).
        freeze_backbone: don't train the CNN; or, with the name of a stage, only its stages up to and including that one
            (layer3: stage 5 of the paper learns, and the stem and stages 2 to 4 stay as they are).
        freeze_trunk: train the heads alone, of which the two-tower head is one; CNN, pixel embedding and transformer
            stay as they are. A model that ships can then take the heads in beside its own (tools/ship.py).
        feature_cache: with a frozen CNN, a folder in which each image's features are stored the first time and read
            from then on; runs may share it. Of a CNN that is frozen in part they are those of its last frozen stage,
            which take more room: half a megabyte a photo of 256 x 256 after layer3. Null to run the CNN in every step.
        activation_checkpointing: keep only what goes into each layer of the transformer and each block of the CNN, and
            compute the rest again in the backward pass: larger images or batches in the same memory, for more time.
        pixel_layer_norm: LayerNorm after the projection of pixel features (not in the paper).
        pixel_positions: largest grid side with learned row and column positions; 0 for none, as in the paper.
        hidden_size: width of the transformer.
        num_hidden_layers: its depth.
        num_attention_heads: heads of its attention.
        intermediate_size: width of its feed-forward network.
        dropout: of hidden states and attention.
        pixel_dropout: of the CNN's channels, an image's own draw for all of its pixels (not in the paper).
        initializer_range: standard deviation of the transformer's random first weights. 0.02 is BERT's, for a width of
            768; a narrow network trained from scratch needs about 1 / sqrt(hidden_size), or words and pixels hardly
            reach each other and matching stays at chance for tens of thousands of pairs.
    """

    checkpoint: str | None = None
    backbone: str = "resnet50"
    backbone_init: str | None = None
    text_init: str | None = None
    tokenizer: str | None = None
    vocab_size: Annotated[int, Bound(ge=10, le=10_000_000)] = 8000
    stride_in_1x1: bool = False
    batch_norm: Literal["frozen", "train"] = "frozen"
    freeze_backbone: bool | Literal["layer1", "layer2", "layer3"] = False
    freeze_trunk: bool = False
    feature_cache: str | None = None
    activation_checkpointing: bool = False
    pixel_layer_norm: bool = False
    pixel_positions: Annotated[int, Bound(ge=0, le=10_000)] = 0
    hidden_size: Annotated[int, Bound(ge=1, le=100_000)] | None = None
    num_hidden_layers: Annotated[int, Bound(ge=0, le=1_000)] | None = None
    num_attention_heads: Annotated[int, Bound(ge=1, le=1_000)] | None = None
    intermediate_size: Annotated[int, Bound(ge=1, le=1_000_000)] | None = None
    dropout: Annotated[float, Bound(ge=0, lt=1)] = 0.1
    pixel_dropout: Annotated[float, Bound(ge=0, lt=1)] = 0.0
    initializer_range: Annotated[float, SHARE] = 0.02

    @property
    def last_frozen_stage(self) -> str | None:
        """The stage after which the CNN learns, if it is frozen in part."""
        return self.freeze_backbone if isinstance(self.freeze_backbone, str) else None

    def __post_init__(self) -> None:
        check_fields(self, "model")
        if self.checkpoint and (self.text_init or self.backbone_init):
            raise PixelBertError(
                "model.checkpoint holds all weights; leave out model.text_init and model.backbone_init"
            )
        if self.freeze_trunk and not (self.checkpoint and self.freeze_backbone is True):
            raise PixelBertError(
                "model.freeze_trunk needs model.checkpoint, whose trunk it keeps, and model.freeze_backbone: true: the "
                "CNN is part of it"
            )
        if self.feature_cache and not self.freeze_backbone:
            raise PixelBertError(
                "model.feature_cache needs model.freeze_backbone: true, or the name of a stage, since the features of "
                "a CNN that learns change"
            )


@dataclass
class DataRecipe:
    """Prepared data sets, as DIR:SPLIT (or DIR:SPLIT,SPLIT); `scenes:0-1000` are generated scenes, which need no files.

    Args:
        train: what is learned from.
        validation: what is measured during training; nothing if empty.
        shortest_edge: pixels that an image's shorter side is scaled to.
        longest_edge: limit of its longer side. Both sides are then snapped to multiples of 64.
        max_length: tokens that a sentence is cut to.
        sentences_per_image: sentences of one image that stand together in a step and share the CNN's work: a pair then
            teaches somewhat less and costs much less (docs/results/sharing.md). 1 is the paper's sampling.
        mirror: show each image mirrored half of the time, unless its sentence says left or right (not in the paper).
        blank: show evenly grey images in place of all photos, in training and validation: the control that has the text
            alone. (`evaluate` shows photos, and gives what it answers without them as "blank".)
        workers: processes that load data beside each training process.
    """

    train: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    shortest_edge: Annotated[int, Bound(ge=64, le=10_000)] = 800
    longest_edge: Annotated[int, Bound(ge=64, le=10_000)] = 1333
    max_length: Annotated[int, Bound(ge=3, le=1_000_000)] = 64
    sentences_per_image: Annotated[int, COUNT] = 5
    mirror: bool = False
    blank: bool = False
    workers: Annotated[int, Bound(ge=0, le=1_000)] = 2

    def __post_init__(self) -> None:
        check_fields(self, "data")


@dataclass
class OptimizerRecipe:
    """Two optimisers: SGD for the CNN, AdamW for the rest (paper section 4.1). Biases and norms don't decay.

    Args:
        cnn: the CNN's optimiser: sgd, as in the paper, or adamw, which learns faster in a short run
            (docs/results/shipped.md), with a `cnn_lr` of 1e-4 or less.
        cnn_lr: its learning rate.
        cnn_weight_decay: its weight decay.
        cnn_momentum: the momentum of SGD (not said in the paper).
        lr: learning rate of AdamW.
        encoder_lr: that of the word embeddings and the transformer's layers, which BERT's weights may have taught much,
            while the rest (pixel projection, heads) is new and can learn faster; 0 leaves them as they are, and saves
            their backward pass where nothing below them learns. `lr` if null, as in the paper.
        weight_decay: its weight decay.
        milestones: epochs after which both learning rates are divided by 10.
        warmup_steps: linear warm-up of both (not in the paper; 0 to leave it out).
        clip: largest norm of the gradient; null for no clipping, as in the paper.
    """

    cnn: Literal["sgd", "adamw"] = "sgd"
    cnn_lr: Annotated[float, RATE] = 1e-2
    cnn_weight_decay: Annotated[float, RATE] = 5e-4
    cnn_momentum: Annotated[float, Bound(ge=0, lt=1)] = 0.9
    lr: Annotated[float, RATE] = 1e-4
    encoder_lr: Annotated[float, RATE] | None = None
    weight_decay: Annotated[float, RATE] = 1e-2
    milestones: list[Annotated[float, Bound(ge=0)]] = field(default_factory=lambda: [25.0, 35.0])
    warmup_steps: Annotated[int, ZERO_OR_MORE] = 1000
    clip: Annotated[float, Bound(gt=0)] | None = None

    def __post_init__(self) -> None:
        check_fields(self, "optimizer")


@dataclass
class Recipe:
    """One training run.

    Args:
        output: folder of the run; the same command on the same folder continues an unfinished run.
        task: what is learned; its `kind` is pretraining, question-answering, reasoning or retrieval.
        model: the network and its first weights.
        data: what it learns from.
        optimizer: how.
        epochs: passes over the sentences.
        batch_size: examples a step over all devices; in pre-training pairs, matched and mismatched counted (paper: 4096
            pairs; in fine-tuning 256 questions, 128 statements, 512 captions).
        micro_batch_size: pairs that one device takes at once; the step is accumulated from as many as it needs.
        precision: bf16 (autocast; weights, softmax, norms and losses stay in float32) or fp32; if null bf16 where the
            device is clearly faster in it, which is measured when the run begins and kept in OUTPUT/precision.json.
        seed: of every random choice.
        deterministic: have torch take kernels that give the same bits each time, where it has them, and warn where not.
            For GPUs, slower; on a CPU they are so anyway.
        log_every: steps between lines of metrics.jsonl.
        evaluate_every: steps between measurements on the validation split; 0 for only at the end.
        evaluate_examples: examples of the validation split that are measured during training.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of the newest stay.
        keep_best: a figure of validation.jsonl, such as itm_accuracy: the model that did best by it stays in
            OUTPUT/best. Of a figure that ends in _loss the lowest is best.
        skip_limit: steps that may be left out because a loss or the gradient is not a finite number; one more stops the
            run, and so does one at its end, or one after which the weights are not finite.
        trackers: where metrics go beside metrics.jsonl, by accelerate's names: tensorboard, wandb, ...
    """

    output: str = "runs/pretraining"
    task: Task = field(default_factory=Pretraining)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    epochs: Annotated[float, Bound(gt=0, le=1_000_000)] = 40.0
    batch_size: Annotated[int, Bound(ge=1, le=1_000_000)] = 4096
    micro_batch_size: Annotated[int, Bound(ge=1, le=1_000_000)] = 64
    precision: Precision | None = None
    seed: Annotated[int, SEED] = 0
    deterministic: bool = False
    log_every: Annotated[int, COUNT] = 50
    evaluate_every: Annotated[int, ZERO_OR_MORE] = 0
    evaluate_examples: Annotated[int, COUNT] = 1000
    checkpoint_every: Annotated[int, COUNT] = 1000
    keep_checkpoints: Annotated[int, COUNT] = 2
    keep_best: str | None = None
    skip_limit: Annotated[int, ZERO_OR_MORE] = 10
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])

    def __post_init__(self) -> None:
        check_fields(self)
        n = self.task.counts_per_example
        if self.batch_size < n or self.batch_size % n:
            raise PixelBertError(
                f"batch_size is {self.batch_size}; expected a multiple of {n} (a matched and a mismatched pair)"
            )

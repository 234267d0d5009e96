"""The shape of a Pixel-BERT (paper section 3.2): which CNN, how large a transformer, how pixels enter it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from pixelbert.model.resnet import BACKBONES


class PixelBertConfig(PreTrainedConfig):
    """Configuration of every PixelBert model; the defaults are the paper's r50 network.

    Args:
        backbone: name of the CNN, one of `pixelbert.model.resnet.BACKBONES`.
        stride_in_1x1: where a bottleneck halves the grid: its 3x3 convolution (False; torchvision, "v1.5") or its
            first 1x1 (True; the original ResNet and caffe2, "v1"). Published weights come in both; loading one as
            the other runs and is wrong.
        batch_norm: "frozen" uses stored statistics and a fixed scale and shift; "train" learns them, which a CNN
            trained from scratch needs.
        pixel_layer_norm: LayerNorm after the projection of the pixel features (the paper has none).
        pixel_dropout_prob: share of the CNN's channels that an image loses in training, before the projection, the same
            ones at all of its pixels; 0 in the paper. For small data.
        pixel_positions: largest number of grid rows and of columns with a learned position embedding; 0, the
            paper's setting, gives pixels no position.
        tower_size: width of the vectors by which images and sentences are compared apart from each other, to short-list
            in a search (see `TwoTowerHead`); 0 for none, as in the paper.
        joint_share: what the matching head counts in the score of a pair, where there is a two-tower head; the rest is
            that head's (see `PixelBertModel.match`). In question answering, what the perceptron on [CLS] counts.
        hidden_act: activation of the feed-forward network; GELU as in the BERT weights ("relu" is eq. 3).

    The others are those of `transformers.BertConfig`. There is no token type: it is folded into the positions when
    BERT weights are imported (paper section 3.2: s_w is omitted).
    """

    model_type = "pixelbert"
    # Far beyond any network, so that a number that nobody meant fails at once, and not when memory is full.
    LIMITS: ClassVar[dict[str, tuple[int, int]]] = {
        "pixel_positions": (0, 10_000),
        "tower_size": (0, 100_000),
        "vocab_size": (1, 10_000_000),
        "hidden_size": (1, 100_000),
        "num_hidden_layers": (0, 1_000),
        "num_attention_heads": (1, 1_000),
        "intermediate_size": (1, 1_000_000),
        "max_position_embeddings": (1, 1_000_000),
        "pad_token_id": (0, 10_000_000),
        "num_labels": (0, 1_000_000),
    }
    SHARES: ClassVar = (
        "pixel_dropout_prob",
        "joint_share",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "initializer_range",
        "layer_norm_eps",
    )

    def __init__(
        self,
        backbone: str = "resnet50",
        stride_in_1x1: bool = False,
        batch_norm: Literal["frozen", "train"] = "frozen",
        pixel_layer_norm: bool = False,
        pixel_dropout_prob: float = 0.0,
        pixel_positions: int = 0,
        tower_size: int = 0,
        joint_share: float = 0.5,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 512,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        pad_token_id: int = 0,
        **kwargs: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "kwargs"} | kwargs
        for name, (least, most) in self.LIMITS.items():
            if name in given and not (type(given[name]) is int and least <= given[name] <= most):
                raise ValueError(f"{name} is {given[name]!r}; expected {least:,} to {most:,}")
        for name in self.SHARES:
            if type(given[name]) not in (int, float) or not 0 <= given[name] <= 1:
                raise ValueError(f"{name} is {given[name]!r}; expected a number between 0 and 1")
        if hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act {hidden_act!r} is unknown; there are {', '.join(ACT2FN)}")
        if backbone not in BACKBONES:
            raise ValueError(f"backbone {backbone!r} is unknown; there are {', '.join(BACKBONES)}")
        if batch_norm not in ("frozen", "train"):
            raise ValueError(f"batch_norm is {batch_norm!r}; it is 'frozen' or 'train'")
        if hidden_size % num_attention_heads:
            raise ValueError(f"hidden_size {hidden_size} is not a multiple of {num_attention_heads} attention heads")
        self.backbone = backbone
        self.stride_in_1x1 = stride_in_1x1
        self.batch_norm = batch_norm
        self.pixel_layer_norm = pixel_layer_norm
        self.pixel_dropout_prob = pixel_dropout_prob
        self.pixel_positions = pixel_positions
        self.tower_size = tower_size
        self.joint_share = joint_share
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.pad_token_id = pad_token_id
        super().__init__(**kwargs)

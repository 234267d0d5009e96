"""Shared by all tests: a model of a few thousand weights, where the published ones lie, and margins of what is learned.

A test that trains and then compares a figure with a bound takes `margins`, which makes it one of `-m learned`, and
takes what its training may depend on from `learned_seed` and `learned_precision`. `tools/learned_margins.py` reruns all
of those over seeds and kernels and shows how near their bounds they come.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from learned import Margins
from pixelbert import PixelBertConfig, PixelBertForPreTraining

WEIGHTS = Path(os.environ.get("PIXELBERT_WEIGHTS", Path(__file__).parents[1] / "weights"))
WEIGHT_FILES = ("resnet50_imagenet.safetensors", "minilm/model.safetensors")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("learned", "trainings of the tests (see tools/learned_margins.py)")
    group.addoption("--learned-seeds", type=int, default=1, help="train with so many seeds, from 0")
    group.addoption("--learned-precision", choices=("fp32", "bf16"), default="fp32", help="train and measure in it")
    group.addoption("--learned-figures", type=Path, help="append figures and bounds to this file, and judge none")
    group.addoption("--threads", type=int, default=1, help="of torch, in all tests")


def pytest_configure(config: pytest.Config) -> None:
    # The models here are tiny: one thread is as fast as two, and far faster on a busy machine.
    torch.set_num_threads(config.getoption("--threads"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    seeds = metafunc.config.getoption("--learned-seeds")
    if "learned_seed" in metafunc.fixturenames and seeds > 1:
        metafunc.parametrize("learned_seed", range(seeds), indirect=True, scope="module")


@pytest.fixture(scope="module")
def learned_seed(request: pytest.FixtureRequest) -> int:
    """What a training is to be seeded with."""
    return getattr(request, "param", 0)


@pytest.fixture(scope="session")
def learned_precision(pytestconfig: pytest.Config) -> str:
    """The precision of trainings and measurements whose figures are compared with a bound."""
    return str(pytestconfig.getoption("--learned-precision"))


@pytest.fixture
def margins(request: pytest.FixtureRequest) -> Margins:
    """See `Margins`."""
    callspec = getattr(request.node, "callspec", None)
    parameters = dict(callspec.params) if callspec else {}
    trial = {"test": request.node.nodeid.partition("[")[0], "seed": parameters.pop("learned_seed", None)}
    trial["case"] = ", ".join(f"{name} {value}" for name, value in parameters.items())
    return Margins(trial, request.config.getoption("--learned-figures"))


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of what is learned. Without the published weights, leave out the tests that need them."""
    for item in items:
        if "margins" in getattr(item, "fixturenames", ()):
            item.add_marker("learned")
    if all((WEIGHTS / name).is_file() for name in WEIGHT_FILES):
        return
    needing = [item for item in items if item.get_closest_marker("weights")]
    if needing:
        items[:] = [item for item in items if item not in needing]
        config.hook.pytest_deselected(items=needing)
        config.stash[LEFT_OUT] = len(needing)


LEFT_OUT = pytest.StashKey[int]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if number := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(
            f"{number} tests left out: they need published weights, and {WEIGHTS} does not have them. "
            "`make weights` gets them (about 180 MB), or set PIXELBERT_WEIGHTS to their folder.",
            yellow=True,
        )


@pytest.fixture(scope="session")
def weights() -> Path:
    """The folder that `make weights` fills."""
    return WEIGHTS


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., PixelBertConfig]:
    """The configuration of a model small enough for property tests; any field can be given another value."""

    def make(**changes: Any) -> PixelBertConfig:
        fields: dict[str, Any] = {
            "backbone": "resnet14_small",
            "vocab_size": 64,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 24,
            "initializer_range": 0.15,  # large, so that outputs depend on every input
        }
        return PixelBertConfig(**fields | changes)

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_config: Callable[..., PixelBertConfig]) -> Callable[..., Any]:
    """Makes the same seeded tiny model each time, of one of the four classes, in evaluation mode, with batch norms that
    do something."""

    def make(kind: Any = PixelBertForPreTraining, **changes: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = kind(tiny_config(**changes))
            for norm in model.pixelbert.backbone.batch_norms():
                torch.nn.init.uniform_(norm.get_buffer("running_mean"), -0.3, 0.3)
                torch.nn.init.uniform_(norm.get_buffer("running_var"), 0.5, 2.0)
                torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
                torch.nn.init.uniform_(norm.bias, -0.3, 0.3)
            # Features of order one, as real ones are: a random CNN's are not.
            torch.nn.init.normal_(model.pixelbert.pixel_embedding.projection.weight, std=0.02)
        return model.eval()

    return make

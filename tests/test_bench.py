"""`pixelbert bench`: the clock and the counter, the peer's mathematics, the command and the page."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig

from pixelbert import PixelBertConfig, PixelBertError, PixelBertForPreTraining, PixelBertForQuestionAnswering, cli
from pixelbert.bench import choices, kinds, measure
from pixelbert.bench.kinds import bench
from pixelbert.bench.peers import PlainPixelBert
from pixelbert.bench.ratios import plain_step
from pixelbert.bench.report import report
from pixelbert.bench.subjects import GEOMETRIES, answering_inputs, pretraining_inputs
from pixelbert.model.resnet import BACKBONES
from references import images, sentences, transformers_resnet

CPU = torch.device("cpu")


# --- the clock and the counter ---


def test_cases_take_turns_and_the_first_run_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], list[str]()
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def case(name: str, seconds: list[float]) -> Callable[[], None]:
        left = iter(seconds)

        def run() -> None:
            order.append(name)
            clock[0] += next(left)

        return run

    found = measure.interleaved(
        {"a": case("a", [100, 1, 2, 9]), "b": case("b", [100, 5, 4, 3]), "c": case("c", [100, 7, 7, 8])}, 3, CPU
    )
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert found == {"a": [1, 2, 9], "b": [5, 4, 3], "c": [7, 7, 8]}
    table = measure.times(found)
    assert [table[name]["median_s"] for name in "abc"] == [2, 4, 7]
    assert table["a"]["seconds"] == [1, 2, 9]


def test_seconds_of_a_core_leave_out_waiting() -> None:
    found = measure.interleaved({"sleep": lambda: time.sleep(0.05)}, 1, CPU, of_a_core=True)
    assert found["sleep"][0] < 0.04
    assert measure.once(lambda: time.sleep(0.05), CPU) >= 0.05


def test_a_matrix_product_has_two_operations_a_multiplication() -> None:
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    assert measure.flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_a_backward_pass_is_counted_too() -> None:
    x, layer = torch.randn(2, 4, requires_grad=True), torch.nn.Linear(4, 3)
    assert measure.flops(lambda: layer(x).sum().backward()) == 3 * 2 * 2 * 4 * 3


@pytest.mark.parametrize("groups", [1, 4])
def test_a_grouped_convolution_is_counted_by_its_groups(groups: int) -> None:
    conv = torch.nn.Conv2d(8, 12, 3, padding=1, groups=groups)
    x = torch.randn(2, 8, 5, 5, requires_grad=True)
    forward = 2 * (2 * 12 * 5 * 5) * (8 // groups * 3 * 3)
    assert measure.flops(lambda: conv(x)) == forward
    assert measure.flops(lambda: conv(x).sum().backward()) == 3 * forward
    assert measure.flops(lambda: conv(x.detach()).sum().backward()) == 2 * forward


def test_the_rate_of_a_matrix_product_is_in_operations_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "once", lambda *arguments: 0.5)
    assert measure.matrix_rate(CPU) == 2 * 2048**3 / 0.5


# --- the peer ---


def carrying(ours: Any, answers: int = 0) -> PlainPixelBert:
    """The plain network with the weights of ours."""
    config = ours.config
    state = ours.pixelbert.state_dict()

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}

    cnn = transformers_resnet(part("backbone."), BACKBONES[config.backbone], config.stride_in_1x1)
    bert = {name: getattr(config, name) for name in BertConfig().to_dict() if name in config.to_dict()}
    plain = PlainPixelBert(answers, "eager", cnn.config, BertConfig(**bert | {"architectures": None}))
    plain.cnn.load_state_dict(cnn.state_dict())
    words = {f"embeddings.{k}": v for k, v in part("embeddings.").items()}
    words["embeddings.token_type_embeddings.weight"] = torch.zeros(2, config.hidden_size)
    rest = {k: v for k, v in state.items() if k.startswith(("encoder.", "pooler."))}
    assert plain.bert.load_state_dict(words | rest, strict=False).missing_keys in ([], ["embeddings.position_ids"])
    projection = ours.pixelbert.pixel_embedding.projection
    bias = projection.bias + ours.pixelbert.pixel_embedding.semantic
    plain.projection.load_state_dict({"weight": projection.weight, "bias": bias})
    if answers:
        head = {"dense.": "0.", "LayerNorm.": "2.", "out.": "3."}
    else:
        head = {"": ""}
        mlm = {f"transform.{k}": v for k, v in ours.mlm_head.state_dict().items() if k != "bias"}
        mlm |= {"decoder.weight": state["embeddings.word_embeddings.weight"], "decoder.bias": ours.mlm_head.bias}
        plain.mlm.predictions.load_state_dict(mlm | {"bias": ours.mlm_head.bias})
    own = (ours.classifier if answers else ours.itm_head).state_dict()
    plain.head.load_state_dict(
        {new + k.removeprefix(old): v for old, new in head.items() for k, v in own.items() if k.startswith(old)}
    )
    return plain


def gradients(model: Any, plain: PlainPixelBert) -> list[tuple[Tensor, Tensor]]:
    """Of the first convolution, the projection and the first layer of the transformer: ours and the peer's."""
    base = model.pixelbert
    pairs = [
        (base.backbone.conv1.weight, plain.cnn.embedder.embedder.convolution.weight),
        (base.pixel_embedding.projection.weight, plain.projection.weight),
        (base.encoder.layer[0].attention.self.query.weight, plain.bert.encoder.layer[0].attention.self.query.weight),
    ]
    return [(ours.grad, theirs.grad) for ours, theirs in pairs]


def check_same(model: Any, loss: Tensor, plain: PlainPixelBert, theirs: Tensor) -> None:
    assert theirs.item() == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    theirs.backward()
    for ours, other in gradients(model, plain):
        assert ours.abs().max() > 1e-3
        assert (ours - other).abs().max() <= 1e-4 * ours.abs().max()


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SHARED = torch.tensor([0, 1, 0, 0])  # the image of each sentence


def test_the_peer_computes_the_losses_of_pretraining(tiny_model: Callable[..., PixelBertForPreTraining]) -> None:
    model = tiny_model(**NO_DROPOUT).train()
    plain = carrying(model).train()
    pixel_values = torch.stack(images((192, 128), (192, 128)))
    ids, mask = sentences(9, 4, 6, 9)
    labels = torch.full_like(ids, -100)
    labels[:, 1:3] = ids[:, 1:3]
    matched = torch.tensor([1.0, 0.0, 1.0, 0.0])
    drawn = torch.tensor([[5, 0, 2], [1, 3, 4], [0, 1, 2], [4, 2, 3]])
    output = model(
        pixel_values=pixel_values, input_ids=ids, attention_mask=mask, image_index=SHARED, pixel_index=drawn,
        token_labels=labels, match_labels=matched,
    )  # fmt: skip
    theirs = plain.loss(pixel_values[SHARED], ids, mask, matched[:, None], labels, drawn)
    check_same(model, output.mlm_loss + output.itm_loss, plain, theirs)


def test_the_peer_computes_the_loss_of_question_answering(tiny_config: Callable[..., PixelBertConfig]) -> None:
    torch.manual_seed(0)
    model = PixelBertForQuestionAnswering(tiny_config(id2label={i: str(i) for i in range(7)}, **NO_DROPOUT)).train()
    plain = carrying(model, answers=7).train()
    pixel_values = torch.stack(images((192, 128), (192, 128)))
    ids, mask = sentences(9, 4, 6, 9)
    targets = torch.rand(4, 7)
    output = model(
        pixel_values=pixel_values, input_ids=ids, attention_mask=mask, image_index=SHARED, answer_targets=targets
    )
    check_same(model, output.loss, plain, plain.loss(pixel_values[SHARED], ids, mask, targets))


@pytest.mark.parametrize("make", [pretraining_inputs, answering_inputs])
def test_the_peer_gets_an_image_for_each_pair(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make(GEOMETRIES["r50_384x640"]._replace(height=64, width=128), 3, CPU, images=2)
    assert (len(inputs["pixel_values"]), inputs["image_index"].tolist()) == (2, [0, 0, 0, 1, 1, 1])
    inputs["pixel_values"] = [torch.full((3, 64, 128), float(i)) for i in range(2)]
    given: dict[str, Tensor] = {}

    class Model:
        def loss(self, **arguments: Tensor) -> Tensor:
            given.update(arguments)
            return torch.ones((), requires_grad=True)

        def zero_grad(self) -> None: ...

    plain_step(Model(), inputs, CPU)()  # type: ignore[arg-type]
    assert given["pixel_values"][:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert given["targets"].shape[0] == given["input_ids"].shape[0] == 6


# --- two ways to the same result ---


def test_both_ways_of_each_choice_are_timed_and_the_one_taken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "PAIRS", 2)
    monkeypatch.setattr(choices, "POSITIONS", 20)
    monkeypatch.setattr(choices, "precision", lambda device: ("precision", "b", {"a": list, "b": list}))
    seconds = {"a": 1.0, "b": 3.0}  # of the ways in their order

    def timed(ways: dict[str, Callable[[], object]], *_: object) -> dict[str, list[float]]:
        for way in ways.values():
            way()
        return {way: [taken] for way, taken in zip(ways, seconds.values(), strict=True)}

    monkeypatch.setattr(choices, "interleaved", timed)
    found = choices.choices(CPU, quick=True)
    names = {name.rpartition(": ")[0] for name in found["details"]}
    assert {"precision", "dropout", "attention, a training step, float32", "64 pairs, inference"} <= names
    assert len([name for name in names if name.startswith("sequences, ")]) == 3
    for name in names:
        ways = {way: e for way, e in found["details"].items() if way.startswith(f"{name}: ")}
        assert len(ways) == 2
        assert sorted(e["times_the_faster"] for e in ways.values()) == [1.0, 3.0]
        (taken,) = (way for way, e in ways.items() if e["taken"])
        assert (taken in found["slower_than_the_other_way"]) == (not ways[taken]["faster"])
    assert found["slower_than_the_other_way"]["precision: b"] == 3.0
    assert found["details"]["sequences, 2% of them padding: padded"]["taken"]
    assert found["details"]["sequences, 25% of them padding: packed"]["taken"]


# --- the command and the page ---


def test_a_command_writes_a_file_and_report_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, page, notes = tmp_path / "out" / "pairs.json", tmp_path / "docs" / "speed.md", tmp_path / "notes.md"
    notes.write_text("What was compared.\n")

    def pairs(device: torch.device, quick: bool) -> dict[str, Any]:
        assert (device, quick) == (CPU, True)
        return {"matrix_flop_per_second": 5e9, "details": {"r50": {"median_s": 0.25, "pairs_per_second": 4.0}}}

    monkeypatch.setitem(kinds.KINDS, "pairs", pairs)
    monkeypatch.setattr("sys.argv", ["pixelbert", "bench", "pairs", "--quick"])
    cli.main(["bench", "pairs", "--device", "cpu", "--quick", "--json", str(file)])
    run = json.loads(file.read_text())
    assert (run["kind"], run["device"], run["precision"]) == ("pairs", "cpu", kinds.best_precision("cpu"))
    assert run["command"] == "pixelbert bench pairs --quick"
    assert run["environment"]["torch"] == torch.__version__
    cli.main(["bench", "report", str(file), "--out", str(page), "--notes", str(notes)])
    text = page.read_text()
    assert "What was compared." in text
    assert "    pixelbert bench pairs --quick" in text
    assert f"computing in {run['precision']}" in text
    assert "matrices: 5 GFLOP/s" in text
    assert "| r50 | 250.0 | 4.00 |" in text


def written(tmp_path: Path, kind: str, **more: Any) -> Path:
    facts = {"processor": "A CPU", "cores": 2, "threads": 2, "date": "2026-01-01", "load_average": 0.5}
    facts |= dict.fromkeys(("python", "torch", "transformers", "accelerate", "pillow"), "1.0")
    run = {"kind": kind, "device": "cpu", "precision": "fp32", "command": "pixelbert bench", "minutes": 1.0}
    (tmp_path / f"{kind}.json").write_text(json.dumps(run | {"environment": facts} | more))
    return tmp_path / f"{kind}.json"


def test_the_page_has_ratios_first_and_a_plot_of_growth(tmp_path: Path) -> None:
    growth = {
        f"{n} pairs": {"median_s": n / 1e3, "pairs": n, "microseconds_per_pair": 1000.0, "peak_memory_bytes": 5e8}
        for n in (1000, 10000)
    }
    files = [
        written(tmp_path, "scaling", details=growth),
        written(tmp_path, "ratios", details={"ours": {"median_s": 0.5}}, vqa_step_vs_plain=3.456),
    ]
    report(files, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert text.index("## Ratios") < text.index("## Growth")
    assert "| **3.46** |" in text
    assert "| 10000 pairs | 10,000.0 | 1,000.0 | 500 |" in text
    assert "(page/scaling_cpu.png)" in text
    assert (tmp_path / "page" / "scaling_cpu.png").stat().st_size > 1000


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"kind": "speed", "details": {"a": {}}, "environment": {"a": 1}}'])
def test_a_file_that_is_no_benchmark_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.json").write_text(text)
    with pytest.raises(PixelBertError, match=r"wrong\.json is no result of a benchmark"):
        report([tmp_path / "wrong.json"], tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()


def test_an_unknown_device_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PixelBertError, match="the device 'cuda:77' cannot be used"):
        bench("pairs", "cuda:77")
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "pairs", "--device", "abacus"])
    assert stop.value.code == 2
    assert "'abacus'" in capsys.readouterr().err

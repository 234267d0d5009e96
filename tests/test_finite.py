"""No checkpoint and no model holds what is not a finite number, and steps that are left out leave nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from pixelbert import PixelBertForPreTraining
from pixelbert.files import SUMS, file_sha256
from pixelbert.train import optim
from pixelbert.train.checkpoint import checkpoints
from pixelbert.train.finite import Soundness
from pixelbert.train.logs import is_best
from test_faults import RECIPE, Broken, log, same, train


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that met no fault."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    train(output)
    assert len(log(output)) == 23
    return output


def fails(capsys: pytest.CaptureFixture[str], output: Path, status: int = 2, **changes: Any) -> str:
    """What a run says that ends with an error."""
    with pytest.raises(SystemExit) as ended:
        train(output, **changes)
    assert ended.value.code == status
    assert not (output / "final").exists()
    return " ".join(capsys.readouterr().err.split())


def numbers(output: Path) -> list[int]:
    """The steps of its checkpoints."""
    return [int(folder.name.removeprefix("step-")) for folder in checkpoints(output)]


class TestWeights:
    def test_an_update_beyond_float32(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        # Loss and gradient of the first step are sound. The few other steps may all be left out.
        changes = {"epochs": 0.5, "optimizer": RECIPE["optimizer"] | {"lr": 1e39}}
        said = fails(capsys, tmp_path / "run", **changes)
        assert "after step 1, " in said
        assert "is not finite: nothing of it is saved. No checkpoint was saved yet" in said
        assert numbers(tmp_path / "run") == []

    @pytest.mark.parametrize(("log_every", "told"), [(1, "after step 6, "), (50, "is not finite since a step before")])
    def test_one_bad_update_in_mid_run(
        self,
        tmp_path: Path,
        whole: Path,
        log_every: int,
        told: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        output, changes = tmp_path / "run", {"keep_best": "itm_accuracy", "log_every": log_every}
        with monkeypatch.context() as patch:
            patch.setattr(optim, "schedule", lambda *_: lambda step: float("inf") if step == 5 else 1.0)
            said = fails(capsys, output, **changes)
        assert told in said
        assert "step-00000004 is good, and the same command goes on from it" in said
        assert f"--model.checkpoint {output / 'best'} starts from the best model so far" in said
        assert numbers(output) == [4]
        train(output, **changes)
        final = [(folder / "final" / "model.safetensors").read_bytes() for folder in (output, whole)]
        assert final[0] == final[1]

    def test_a_checkpoint_of_nan_is_not_gone_on_from(
        self, tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "run"
        shutil.copytree(whole, output)
        shutil.rmtree(output / "final")
        newest = checkpoints(output)[-1]
        file = newest / "model.safetensors"
        weights = load_file(file)
        weights["itm_head.weight"][0] = torch.nan
        before = file_sha256(file)
        save_file(weights, file, {"format": "pt"})
        sums = newest / "SHA256SUMS"
        sums.write_text(sums.read_text().replace(before, file_sha256(file)))
        assert f"{newest}: itm_head.weight is not finite" in fails(capsys, output)
        shutil.rmtree(newest)
        train(output)
        assert same(output, whole)

    @pytest.mark.parametrize("where", ["weight", "statistics", "optimizer", "nowhere"])
    def test_everything_is_looked_at(self, where: str) -> None:
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        accelerator = Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
        model(torch.randn(4, 2)).sum().backward()
        optimizer.step()
        model[0].weight.data.fill_(3e38)  # large, and a number
        names = {"weight": "1.bias", "statistics": "1.running_var", "optimizer": "the optimizer's exp_avg_sq of 0.bias"}
        spoilt = {
            "weight": model[1].bias.data,
            "statistics": model[1].running_var,
            "optimizer": optimizer.state[model[0].bias]["exp_avg_sq"],
        }
        if where in spoilt:
            spoilt[where][1] = torch.inf
        assert Soundness(accelerator, model, [optimizer], Mock()).broken() == names.get(where)

    def test_a_figure_that_is_no_number_is_never_the_best(self, tmp_path: Path) -> None:
        assert not is_best(tmp_path, "loss", {"loss": float("nan")})
        (tmp_path / "validation.jsonl").write_text('{"step": 1, "loss": NaN}\n')
        assert is_best(tmp_path, "loss", {"loss": 2.0})


class TestStepsLeftOut:
    def test_nothing_is_saved_or_measured_before_a_sound_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        output = tmp_path / "run"
        Broken(monkeypatch, {8, 10, 15, 16})
        train(output, keep_checkpoints=20)
        assert numbers(output) == [4, 9, 12, 17, 20, 23]  # due at 4, 8, 12, 16, ... and at the end
        assert [row[0] for row in log(output, "validation")] == [5, 11, 17, 20, 23]

    def test_they_are_no_end(
        self, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "run"
        with monkeypatch.context() as patch:
            Broken(patch, {22, 23})
            said = fails(capsys, output)
        assert "the last steps up to 23 were left out, so there is no model to end with" in said
        assert "step-00000020 is good" in said
        assert numbers(output) == [16, 20]
        train(output)
        assert same(output, whole)

    def test_asked_to_stop_among_them(
        self, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "run"
        with monkeypatch.context() as patch:
            broken = Broken(patch, {6, 7, 8, 9})
            zero_grad = torch.optim.AdamW.zero_grad

            def ask(*args: Any, **options: Any) -> None:
                zero_grad(*args, **options)
                if broken.step == 7:
                    os.kill(os.getpid(), signal.SIGTERM)

            patch.setattr(torch.optim.AdamW, "zero_grad", ask)
            said = fails(capsys, output, status=128 + signal.SIGTERM)
        assert "were left out, so nothing since step-00000004 is saved" in said
        assert numbers(output) == [4]
        train(output)
        assert same(output, whole)

    def test_they_leave_no_statistics_behind(self) -> None:
        model = torch.nn.BatchNorm1d(2)
        sound = Soundness(Accelerator(cpu=True), model, [], Mock())
        sound.begin_step()
        model(torch.full((3, 2), torch.nan))
        sound.left_out()
        assert model.running_mean is not None
        assert model.running_mean.tolist() == [0, 0]
        assert sound.streak == 1
        assert sound.broken() is None


def test_the_card_of_the_best_model_has_its_own_figures(tmp_path: Path) -> None:
    output = tmp_path / "run"
    train(output, keep_best="itm_accuracy", evaluate_every=2)
    rows = [json.loads(line) for line in (output / "validation.jsonl").read_text().splitlines()]
    for name, row in (("best", max(rows, key=lambda row: row["itm_accuracy"])), ("final", rows[-1])):  # first of equals
        card = (output / name / "README.md").read_text()
        assert f"after step {row['step']:,}." in card
        assert f"| itm_accuracy | {row['itm_accuracy']:.4f} |" in card
        assert f"| mlm_loss | {row['mlm_loss']:.4f} |" in card
    assert PixelBertForPreTraining.from_pretrained(output / "best").config.hidden_size == 32


def test_unsound_first_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "first", epochs=0.2)
    start = tmp_path / "first" / "final"
    weights = load_file(start / "model.safetensors")
    trunk = "pixelbert.backbone."
    cnn = {name.removeprefix(trunk): x.clone() for name, x in weights.items() if name.startswith(trunk)}
    cnn["conv1.weight"][0] = torch.inf
    save_file(cnn, tmp_path / "cnn.safetensors")
    said = fails(capsys, tmp_path / "cnn", model=RECIPE["model"] | {"backbone_init": str(tmp_path / "cnn.safetensors")})
    assert "pixelbert.backbone.conv1.weight is not finite before the first step" in said
    weights["pixelbert.pixel_embedding.semantic"][0] = torch.inf
    save_file(weights, start / "model.safetensors", {"format": "pt"})
    (start / SUMS).unlink()
    said = fails(capsys, tmp_path / "run", model={"checkpoint": str(start)})
    assert "pixelbert.pixel_embedding.semantic is not finite" in said

"""The tool for ablations: chains of real, tiny trainings, and what is made of their figures."""

from __future__ import annotations

import json
import statistics
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_builders import ROOT, read_recipe, script
from pixelbert import PixelBertError

STUDIES = sorted((ROOT / "benchmarks" / "studies").glob("*.yaml"))


def run(study: Path, output: Path, *options: str) -> None:
    script("benchmarks/study.py").main([str(study), "--output", str(output), *options])


def tiny(name: str, **changes: Any) -> dict[str, Any]:
    """One of the recipes of the studies, a moment's work."""
    recipe = yaml.safe_load((ROOT / "benchmarks" / "studies" / name).read_text())
    recipe["model"] |= {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    recipe["data"] |= {"train": ["scenes:0-12"], "validation": ["scenes:100000-100004"]}
    recipe["data"] |= {"shortest_edge": 64, "longest_edge": 64}
    recipe["optimizer"] |= {"milestones": []}
    return recipe | {"epochs": 0.5, "evaluate_examples": 9} | changes


def test_a_study_goes_from_recipes_to_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("scenes_pretraining.yaml", "scenes_retrieval.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump(tiny(name)))
    study = yaml.safe_load((ROOT / "benchmarks" / "studies" / "scenes_table6.yaml").read_text())
    more = {"recipe": "scenes_pretraining.yaml", "from": "pretraining", "measure": ["itm_accuracy"]}
    study["stages"]["more"] = more | {"change": {"epochs": 0.6, "batch_size": 8, "micro_batch_size": 8}}
    study["arms"] = {
        "none": {"pretraining": None},
        "matching alone": {"pretraining": {"task.mlm": False}, "more": {"epochs": 0.7}},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    options = ("--seeds", "2", "--json", str(tmp_path / "figures.json"))
    run(tmp_path / "study.yaml", tmp_path / "runs", *options)
    assert not (tmp_path / "runs" / "none" / "0" / "pretraining").exists()
    learned = yaml.safe_load((tmp_path / "runs" / "matching_alone" / "1" / "pretraining" / "recipe.yaml").read_text())
    assert (learned["task"]["mlm"], learned["seed"]) == (False, 1)
    for stage in ("retrieval", "more"):  # both begin where pre-training ended
        after = yaml.safe_load((tmp_path / "runs" / "matching_alone" / "1" / stage / "recipe.yaml").read_text())
        assert after["model"]["checkpoint"].endswith("matching_alone/1/pretraining/final")
    assert (after["batch_size"], after["epochs"]) == (8, 0.7)  # what all arms change, and what this one does
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert list(figures["none"]) == ["text_to_image_r1", "image_to_text_r1", "itm_accuracy", "minutes"]
    for arm in ("none", "matching alone"):
        found = figures[arm]["text_to_image_r1"]
        last = [
            json.loads(file.read_text().splitlines()[-1])["text_to_image_r1"]
            for file in sorted((tmp_path / "runs" / arm.replace(" ", "_")).glob("*/retrieval/validation.jsonl"))
        ]
        assert found["values"] == last
        assert found["mean"] == pytest.approx(statistics.mean(last))
        assert found["sd"] == pytest.approx(statistics.stdev(last))
        assert f"| {arm} | {found['mean']:.3f} ± {found['sd']:.3f} |" in (tmp_path / "figures.md").read_text()
    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG")

    weights = [(file, file.stat().st_mtime_ns) for file in (tmp_path / "runs").rglob("final/model.safetensors")]
    run(tmp_path / "study.yaml", tmp_path / "runs", *options)  # finished runs are left alone
    assert len(weights) == 10
    assert all(file.stat().st_mtime_ns == changed for file, changed in weights)
    assert json.loads((tmp_path / "figures.json").read_text())["figures"] == figures
    # Elsewhere, with the figures alone: a third seed is added, and the first two are not run again.
    more = ("--seeds", "3", "--json", str(tmp_path / "figures.json"), "--keep")
    run(tmp_path / "study.yaml", tmp_path / "elsewhere", *more)
    assert {int(folder.name) for folder in (tmp_path / "elsewhere").glob("*/*")} == {2}
    three = json.loads((tmp_path / "figures.json").read_text())["figures"]
    for name, before in figures.items():
        assert all(len(three[name][figure]["values"]) == 3 for figure in before)
        assert all(three[name][figure]["values"][:2] == before[figure]["values"] for figure in before)
    study["title"] = "another"
    (tmp_path / "another.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    with pytest.raises(PixelBertError, match="of another study"):
        run(tmp_path / "another.yaml", tmp_path / "elsewhere", *more)
    with pytest.raises(SystemExit):
        run(tmp_path / "study.yaml", tmp_path / "runs", "--arms", "nun")
    assert "has no arm nun; it has none, matching alone" in capsys.readouterr().err


@pytest.mark.parametrize("file", [file for file in STUDIES if "arms" in yaml.safe_load(file.read_text())])
def test_the_studies_name_recipes_and_stages_that_there_are(file: Path) -> None:
    study = yaml.safe_load(file.read_text())
    assert all((file.parent / stage["recipe"]).is_file() for stage in study["stages"].values())
    assert all(set(changes) <= set(study["stages"]) for changes in study["arms"].values())
    stages = list(study["stages"])
    assert all(stage.get("from") in [None, *stages[:i]] for i, stage in enumerate(study["stages"].values()))
    assert script("benchmarks/study.py").figures_of(study)
    for stage, arm in product(study["stages"], study["arms"]):
        changes = study["stages"][stage].get("change", {}) | ((study["arms"][arm] or {}).get(stage) or {})
        options = script("benchmarks/study.py").as_arguments({**changes, "output": Path("run")})
        read_recipe(file.parent / study["stages"][stage]["recipe"], *options)


def test_two_stages_may_not_measure_one_figure() -> None:
    stages = {"first": {"measure": ["itm_accuracy", "mlm_loss"]}, "second": {"measure": ["itm_accuracy"]}}
    with pytest.raises(PixelBertError, match="two stages measure itm_accuracy"):
        script("benchmarks/study.py").figures_of({"stages": stages})


def test_minutes_are_those_of_the_median_rate(tmp_path: Path) -> None:
    rows = [{"step": step, "pairs_per_second": rate} for step, rate in ((20, 100.0), (40, 1.0), (50, 120.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"batch_size": 16, "task": {"wrong": 20}}))
    # 50 steps of 16 images with 21 sentences each
    assert script("benchmarks/study.py").minutes_of_steps(tmp_path) == pytest.approx(50 * 16 * 21 / 100 / 60)


def test_time_left_is_what_the_arms_took() -> None:
    left = script("benchmarks/study.py").time_left
    assert left([(0, "a"), (0, "b")], {}) == ""
    assert left([(0, "a")], {"b": 0.5}) == ""  # b was there already
    assert left([(0, "b"), (1, "a"), (1, "b")], {"a": 60.0}) == ", about 3 minutes left"
    assert left([(1, "a"), (1, "b")], {"a": 60.0, "b": 240.0, "c": 0.1}) == ", about 5 minutes left"

"""Recipes: they read, say how they are run, and hold what sections 4.1 and 4.2 and Tables 2 to 6 of the paper say."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser, Namespace

from data_builders import read_recipe
from pixelbert import cli
from pixelbert.tasks.retrieval import Retrieval
from pixelbert.train.recipe import Recipe
from pixelbert.train.run_folder import flatten

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
REPRODUCE = ROOT / "docs" / "reproduce.md"

# The paper's figures, copied from its tables a second time: each stands at the head of its recipe and in its row of
# docs/reproduce.md. TR is image to text, IR text to image.
TABLES = {
    "vqa_r50": ["71.35", "71.42"],  # Table 2: test-dev, test-std
    "vqa_x152": ["74.45", "74.55"],
    "nlvr2_r50": ["71.7", "72.4"],  # Table 3: dev, test-P
    "nlvr2_x152": ["76.5", "77.2"],
    "retrieval_flickr30k_r50": ["TR 75.7 / 94.7 / 97.1", "IR 59.8 / 85.5 / 91.6"],  # Table 4: R@1, 5, 10
    "retrieval_flickr30k_x152": ["TR 87.0 / 98.9 / 99.5", "IR 71.5 / 92.1 / 95.8"],
    "retrieval_coco_r50": [  # Table 5: 1K, then 5K
        *("TR 77.8 / 95.4 / 98.2", "IR 64.1 / 91.0 / 96.2"),
        *("TR 53.4 / 80.4 / 88.5", "IR 41.1 / 69.7 / 80.5"),
    ],
    "retrieval_coco_x152": [
        *("TR 84.9 / 97.7 / 99.3", "IR 71.6 / 93.7 / 97.4"),
        *("TR 63.6 / 87.5 / 93.6", "IR 50.1 / 77.6 / 86.2"),
    ],
}
# Table 6, rows 1 to 4: VQA test-dev, Flickr30K R@1 TR and IR, NLVR2 dev. Rows 5 and 6 are the recipes above.
ABLATION = {
    "no_pretraining": ("63.50", "52.4", "39.6", "52.0"),
    "no_mlm": ("65.24", "69.0", "55.5", "51.9"),
    "no_itm": ("71.13", "67.1", "52.7", "70.9"),
    "all_pixels": ("70.84", "72.0", "57.7", "71.3"),
}
TASKS = ("vqa", "retrieval_flickr30k", "nlvr2")
for name, (vqa, tr, ir, nlvr2) in ABLATION.items():
    TABLES |= {f"vqa_r50_{name}": [vqa], f"retrieval_flickr30k_r50_{name}": [tr, ir], f"nlvr2_r50_{name}": [nlvr2]}
PRETRAINING = ["pretrain_r50", "pretrain_x152", *(f"pretrain_r50_{name}" for name in list(ABLATION)[1:])]
PAPER = [*PRETRAINING, *TABLES]


def recipe(name: str) -> Recipe:
    return read_recipe(ROOT / "recipes" / f"{name}.yaml")


def head(name: str) -> str:
    """The comment that a recipe opens with."""
    text = (ROOT / "recipes" / f"{name}.yaml").read_text()
    return "\n".join(line.removeprefix("#") for line in text.split("\noutput:")[0].splitlines())


def commands(text: str, command: str) -> list[list[str]]:
    """The arguments of each indented `pixelbert COMMAND ...` of a text, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    found = re.findall(rf"^ {{3,}}(?:accelerate launch .*-m )?pixelbert {command} (.*)$", joined, flags=re.MULTILINE)
    return [shlex.split(line) for line in found]


def parse_evaluate(arguments: list[str]) -> Namespace:
    parser = ArgumentParser(exit_on_error=False)
    cli.evaluate_parser(parser, arguments)
    return parser.parse_args(cli.normalise(arguments))


def changes(a: Recipe, b: Recipe) -> dict[str, tuple[Any, Any]]:
    """The fields in which two recipes differ, the output folder aside."""
    flat_a, flat_b = (flatten(dataclasses.asdict(x)) for x in (a, b))
    assert flat_a.keys() == flat_b.keys()
    return {key: (flat_a[key], flat_b[key]) for key in flat_a if flat_a[key] != flat_b[key] and key != "output"}


def published_rows(name: str) -> list[str]:
    """The rows of docs/reproduce.md's tables that link to a recipe."""
    return [line for line in REPRODUCE.read_text().splitlines() if f"(../recipes/{name}.yaml)" in line]


class TestEveryRecipe:
    @pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
    def test_it_reads_and_opens_with_its_command(self, file: Path) -> None:
        assert read_recipe(file).data.train
        text = file.read_text()
        assert text.startswith("# ")
        trained = [arguments[0] for arguments in commands(text.replace("\n#", "\n"), "train")]
        assert f"recipes/{file.name}" in trained

    def test_each_is_listed_where_people_look(self) -> None:
        listed = "".join(page.read_text() for page in (ROOT / "README.md", REPRODUCE))
        assert [file.name for file in RECIPES if f"{file.stem}.yaml" not in listed and file.stem not in PAPER] == []
        assert [name for name in PAPER if not published_rows(name)] == []

    @pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
    def test_its_data_sets_have_their_commands(self, file: Path) -> None:
        pages = (ROOT / "docs" / "data.md").read_text()
        if file.stem not in PAPER:
            pages += file.read_text()
        data = read_recipe(file).data
        folders = {source.partition(":")[0] for source in data.train + data.validation} - {"scenes"}
        prepared = re.findall(r"--output (prepared/\w+)", pages)
        assert folders <= set(prepared)

    def test_options_win_over_the_file(self) -> None:
        read = read_recipe(ROOT / "recipes" / "tiny.yaml", "--optimizer.lr", "0.5", "--task.pixels", "null")
        assert read.optimizer.lr == 0.5
        assert read.task.pixels is None

    def test_print_config_shows_every_field(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            cli.main(["train", str(ROOT / "recipes" / "tiny.yaml"), "--print_config"])
        assert stop.value.code == 0
        shown = yaml.safe_load(capsys.readouterr().out)
        assert shown["optimizer"]["cnn_momentum"] == 0.9
        assert set(shown) >= {"task", "model", "data", "optimizer", "batch_size", "seed"}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--optimizer.speed", "3"], "optimizer.speed"),
            (["--batch_size", "many"], "batch_size"),
            (["--batch_size", "33"], "multiple of 2"),
            (["--model.feature_cache", "x"], "freeze_backbone"),
            (["--model.activation_checkpointing", "true"], "count each batch twice"),  # its batch norm is trained
            (["--epochs", "0"], "epochs"),
        ],
    )
    def test_mistakes_are_named(self, options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            cli.main(["train", str(ROOT / "recipes" / "tiny.yaml"), *options])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


class TestSection41:
    @pytest.mark.parametrize("name", ["pretrain_r50", "pretrain_x152"])
    def test_hyper_parameters(self, name: str) -> None:
        read = recipe(name)
        optimizer = read.optimizer
        assert (optimizer.cnn_lr, optimizer.cnn_weight_decay) == (1e-2, 5e-4)
        assert (optimizer.lr, optimizer.weight_decay) == (1e-4, 1e-2)
        assert (read.batch_size, read.epochs, optimizer.milestones) == (4096, 40, [25, 35])
        assert read.task.pixels == 100
        assert read.task.mask_probability == 0.15
        assert read.task.mlm
        assert read.task.itm

    def test_ablations_differ_in_one_thing(self) -> None:
        base = recipe("pretrain_r50")
        assert changes(base, recipe("pretrain_r50_no_mlm")) == {"task.mlm": (True, False)}
        assert changes(base, recipe("pretrain_r50_no_itm")) == {"task.itm": (True, False)}
        assert changes(base, recipe("pretrain_r50_all_pixels")) == {"task.pixels": (100, None)}


class TestSection42:
    @pytest.mark.parametrize("name", PAPER)
    def test_image_size_follows_the_cnn(self, name: str) -> None:
        data = recipe(name).data
        expected = (600, 1000) if "x152" in name else (800, 1333)
        assert (data.shortest_edge, data.longest_edge) == expected

    @pytest.mark.parametrize("name", TABLES)
    def test_hyper_parameters(self, name: str) -> None:
        read = recipe(name)
        optimizer = read.optimizer
        assert (optimizer.lr, optimizer.weight_decay) == (1e-4, 1e-2)
        if isinstance(read.task, Retrieval):
            assert read.model.freeze_backbone
            assert (read.task.wrong, read.task.hardest) == (20, 5)
            assert read.batch_size == 8 * 64
            assert (read.epochs, optimizer.milestones) == ((10, [6]) if "flickr30k" in name else (4, [2]))
            assert read.micro_batch_size % (1 + read.task.wrong) == 0  # pairs, in whole groups
        else:
            assert not read.model.freeze_backbone
            assert (optimizer.cnn_lr, optimizer.cnn_weight_decay) == (1e-2, 5e-4)
            assert (read.epochs, optimizer.milestones) == (18, [12, 16])
            assert read.batch_size == (256 if "vqa" in name else 128)

    @pytest.mark.parametrize("name", TABLES)
    def test_splits_are_table_1s(self, name: str) -> None:
        splits = {
            "vqa": ("prepared/vqa2:train,val", None),
            "nlvr2": ("prepared/nlvr2:train", "prepared/nlvr2:dev"),
            "retrieval_flickr30k": ("prepared/flickr30k:train", "prepared/flickr30k:val"),
            "retrieval_coco": ("prepared/coco:train,restval", "prepared/coco:val"),
        }
        train, validation = next(value for key, value in splits.items() if name.startswith(key))
        data = recipe(name).data
        assert data.train == [train]
        assert data.validation == ([validation] if validation else [])

    @pytest.mark.parametrize("task", [*TASKS, "retrieval_coco"])
    def test_the_larger_cnn_changes_the_start_and_the_size(self, task: str) -> None:
        found = changes(recipe(f"{task}_r50"), recipe(f"{task}_x152"))
        assert found.pop("micro_batch_size", (2, 1)) > (1, 1)
        assert found == {
            "model.checkpoint": ("runs/pretrain_r50/final", "runs/pretrain_x152/final"),
            "data.shortest_edge": (800, 600),
            "data.longest_edge": (1333, 1000),
        }

    @pytest.mark.parametrize("task", TASKS)
    @pytest.mark.parametrize("ablation", ABLATION)
    def test_ablations_change_the_start_alone(self, task: str, ablation: str) -> None:
        found = changes(recipe(f"{task}_r50"), recipe(f"{task}_r50_{ablation}"))
        start = "runs/pretrain_r50/final"
        if ablation != "no_pretraining":
            assert found == {"model.checkpoint": (start, f"runs/pretrain_r50_{ablation}/final")}
            return
        first = recipe("pretrain_r50").model
        assert found == {
            "model.checkpoint": (start, None),
            "model.backbone_init": (None, first.backbone_init),
            "model.text_init": (None, first.text_init),
        }
        # Without a checkpoint the network's shape is the recipe's own, so it must be that of pre-training.
        own = recipe(f"{task}_r50_{ablation}").model
        same = dataclasses.replace(own, freeze_backbone=first.freeze_backbone, feature_cache=first.feature_cache)
        assert same == first


class TestPaperRows:
    def test_every_run_has_its_recipe(self) -> None:
        stems = {file.stem for file in RECIPES}
        assert set(PAPER) <= stems
        others = {stem for stem in stems if re.search(r"_(r50|x152)", stem)} - set(PAPER)
        assert others == set()

    @pytest.mark.parametrize("name", PAPER)
    def test_what_it_starts_from_is_made_by_a_recipe(self, name: str) -> None:
        read = recipe(name)
        assert read.output == f"runs/{name}"
        if read.model.checkpoint:
            made_by = re.fullmatch(r"runs/(\w+)/final", read.model.checkpoint)
            assert made_by
            assert made_by[1] in PRETRAINING
            assert f"recipes/{made_by[1]}.yaml" in head(name)

    @pytest.mark.parametrize("name", TABLES)
    def test_its_commands_are_whole(self, name: str) -> None:
        """Train, then evaluate what was trained, on a split that is not learned from."""
        read = recipe(name)
        assert commands(head(name), "train") == [[f"recipes/{name}.yaml", "--output", read.output]]
        measured = [parse_evaluate(arguments) for arguments in commands(head(name), "evaluate")]
        assert measured
        folder, _, learned = read.data.train[0].partition(":")
        for arguments in measured:
            assert arguments.checkpoint == f"{read.output}/final"
            assert arguments.data == folder
            assert arguments.split not in learned.split(",")
            shown = shlex.split(f"pixelbert evaluate runs/NAME/final --data {folder} --split {arguments.split}")
            assert " ".join(shown) in REPRODUCE.read_text()
        if "coco" in name:
            assert [(a.split, a.folds, a.captions_per_image) for a in measured] == [("test", 5, 5)]

    @pytest.mark.parametrize("name", TABLES)
    def test_published_figures_stand_in_both_places(self, name: str) -> None:
        rows = "\n".join(published_rows(name))
        assert "Published" in head(name)
        for figure in TABLES[name]:
            assert figure in head(name)
            assert figure in rows

    def test_the_best_rows_stand_in_table_6_as_well(self) -> None:
        for cnn, figures in (("r50", ("71.35", "75.7", "59.8", "71.7")), ("x152", ("74.45", "87.0", "71.5", "76.5"))):
            vqa, tr, ir, nlvr2 = figures
            for task, text in zip(
                TASKS, (f"VQA test-dev {vqa}", f"val R@1 TR {tr}, IR {ir}", f"dev {nlvr2}"), strict=True
            ):
                assert any(text in row for row in published_rows(f"{task}_{cnn}"))

    @pytest.mark.parametrize("name", PAPER)
    def test_its_cost_is_the_pages(self, name: str) -> None:
        cost = re.search(
            r"estimated from FLOPs and not measured: (\S+) in all; (.+) on one GPU at 400 TFLOP/s,\s+(.+) on eight",
            head(name),
        )
        assert cost
        total, one, eight = cost.groups()
        assert f"| {total}: {one} / {eight} |" in "\n".join(published_rows(name))
        hours = {"minutes": 1 / 60, "hours": 1, "days": 24}
        for text, gpus in ((one, 1), (eight, 8)):
            number, unit = text.split()
            assert float(number) * hours[unit] == pytest.approx(float(total) / 4e14 / 3600 / gpus, rel=0.15, abs=0.05)


@pytest.mark.parametrize("file", [file for file in RECIPES if file.stem.startswith("retrieval_")], ids=lambda f: f.stem)
def test_recipes_are_of_the_task_that_their_name_says(file: Path) -> None:
    assert isinstance(recipe(file.stem).task, Retrieval)

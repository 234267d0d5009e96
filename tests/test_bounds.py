"""Every number of a recipe has its bound, declared beside it, and what lies outside is told by its dotted path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import pytest
import yaml

from pixelbert import PixelBertError, cli
from pixelbert.bounds import Bound, bound_of, bounded, check_fields, is_number
from pixelbert.data.prepare import prepare
from pixelbert.data.sources import SOURCES
from pixelbert.data.sources.folder import Folder
from pixelbert.serve.server import serve
from pixelbert.tasks.pretraining import Pretraining
from pixelbert.train.recipe import TASKS, DataRecipe, ModelRecipe, OptimizerRecipe, Recipe
from test_faults import RECIPE, train

Top = Annotated[int, Bound(ge=1)]
SECTIONS = {"": Recipe, "model.": ModelRecipe, "data.": DataRecipe, "optimizer.": OptimizerRecipe}


def numbers() -> Iterator[tuple[str, str, Any]]:
    """Each field of a recipe that may hold a number: the task's kind, the field's dotted path, its type."""
    of_tasks = [(kind, "task.", task) for kind, task in TASKS.items()]
    for kind, name, section in [*(("pretraining", *item) for item in SECTIONS.items()), *of_tasks]:
        hints = get_type_hints(section, include_extras=True)
        yield from ((kind, name + f.name, hints[f.name]) for f in fields(section) if is_number(hints[f.name]))


NUMBERS = list(numbers())


def outside(hint: Any) -> list[float]:
    """Numbers that a field must not take."""
    bound = bound_of(hint)
    assert bound is not None
    whole = "int" in repr(hint)
    values = [] if whole else [float("nan"), float("inf"), float("-inf")]
    values += [-1] if bound.ge is not None else []
    values += [bound.gt] if bound.gt is not None else []
    values += [bound.le + 1] if bound.le is not None else []
    values += [bound.lt] if bound.lt is not None else []
    return values


@pytest.mark.parametrize("command", [*SOURCES.values(), prepare, serve])
def test_each_number_of_other_commands_has_a_bound(command: Any) -> None:
    hints = get_type_hints(command.__init__ if isinstance(command, type) else command, include_extras=True)
    lacking = [name for name, hint in hints.items() if is_number(hint) and bound_of(hint) is None]
    assert lacking == []


def test_the_numbers_of_a_source_are_checked(tmp_path: Path) -> None:
    with pytest.raises(PixelBertError, match=r"val is 1\.5; expected 0 to 1"):
        prepare(Folder(images=tmp_path, val=1.5), tmp_path / "set")
    with pytest.raises(PixelBertError, match="waiting is 0; expected 1 to 10,000"):
        serve(waiting=0)


class TestRecipe:
    def test_there_are_numbers(self) -> None:
        assert {"seed", "optimizer.milestones", "model.hidden_size", "data.workers", "task.wrong"} <= {
            n[1] for n in NUMBERS
        }
        assert len(NUMBERS) > 40

    @pytest.mark.parametrize(
        ("kind", "path", "hint"), NUMBERS, ids=lambda value: value if isinstance(value, str) else ""
    )
    def test_each_has_a_bound_and_what_lies_outside_is_refused(self, kind: str, path: str, hint: Any) -> None:
        bound = bound_of(hint)
        assert bound is not None, f"{path} has no bound: declare it beside the field"
        assert bound.ge is not None or bound.gt is not None
        section, name = SECTIONS | {"task.": TASKS[kind]}, path.rpartition(".")[2]
        for value in outside(hint):
            with pytest.raises(PixelBertError) as raised:
                section[path.removesuffix(name)](**{name: [value] if "list" in repr(hint) else value})
            said = str(raised.value)
            assert said.startswith(f"{path} is {value}; expected ")
            assert str(bound) in said

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("--epochs", ".nan", "epochs is nan; expected a finite number, more than 0"),
            ("--epochs", ".inf", "epochs is inf; expected a finite number"),
            ("--seed", "-1", "seed is -1; expected 0 to 9,223,372,036,854,775,807"),
            ("--seed", "100000000000000000000000", "expected 0 to 9,223,372,036,854,775,807"),
            ("--data.workers", "-1", "data.workers is -1; expected 0 to 1,000"),
            ("--batch_size", "1000000000000", "batch_size is 1000000000000; expected 1 to 1,000,000"),
            ("--model.vocab_size", "0", "model.vocab_size is 0; expected 10 to 10,000,000"),
            ("--evaluate_every", "-5", "evaluate_every is -5; expected 0 to 2,147,483,647"),
            (
                "--optimizer.milestones",
                "[2, .nan]",
                "optimizer.milestones is nan; expected a finite number, at least",
            ),
            ("--optimizer.lr", ".inf", "optimizer.lr is inf; expected a finite number, at least 0"),
            ("--task.mask_probability", "1", "task.mask_probability is 1.0; expected more than 0 and less than 1"),
            ("--model.pixel_positions", "1", "data.longest_edge 128 gives grids of up to 2 pixels a side; expected 2"),
        ],
    )
    def test_the_command_line_tells(
        self, option: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        recipe = tmp_path / "run.yaml"
        recipe.write_text(yaml.safe_dump(RECIPE))
        with pytest.raises(SystemExit) as stop:
            cli.main(["train", str(recipe), "--output", str(tmp_path / "run"), option, value])
        assert stop.value.code == 2
        said = " ".join(capsys.readouterr().err.split())
        assert message in said
        assert "Traceback" not in said
        assert not (tmp_path / "run" / "metrics.jsonl").exists()

    @pytest.mark.parametrize(("batch_size", "told"), [(156, False), (158, True)])  # 78 sentences, each in two pairs
    def test_a_step_beyond_an_epoch_is_told(
        self, batch_size: int, told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        train(tmp_path / "run", batch_size=batch_size, epochs=1.0)
        said = " ".join(capsys.readouterr().err.split())
        assert ("A step takes 79 examples, and there are 78: some are in it more than once" in said) is told

    def test_null_is_no_number(self) -> None:
        with pytest.raises(PixelBertError, match=r"optimizer\.lr is null: leave it out"):
            OptimizerRecipe(lr=None)  # type: ignore[arg-type]
        assert OptimizerRecipe(clip=None).clip is None
        assert Pretraining(pixels=None).pixels is None


class TestBounds:
    @pytest.mark.parametrize(
        ("bound", "inside", "outside", "said"),
        [
            (Bound(ge=0, le=1), [0, 0.5, 1], [-1e-9, 1.1], "0 to 1"),
            (Bound(gt=0), [1e-300, 10**400], [0, -1], "more than 0"),
            (Bound(ge=1, lt=2_000), [1, 1_999.5], [0, 2_000], "at least 1 and less than 2,000"),
        ],
    )
    def test_limits(self, bound: Bound, inside: list[float], outside: list[float], said: str) -> None:
        assert all(value in bound for value in inside)
        assert not any(value in bound for value in outside)
        assert str(bound) == said

    def test_help_shows_them_in_words(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            cli.main(["prepare", "folder", "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert "Annotated[float, 0 to 1]" in said
        assert "Bound(" not in said

    def test_of_a_dataclass(self) -> None:
        @dataclass
        class Section:
            some: list[Annotated[int, Bound(ge=1)]] = field(default_factory=list)
            maybe: Annotated[float, Bound(gt=0)] | None = None
            yes: bool = True
            free: float = 0.0

        check_fields(Section([1, 2], 0.5))
        for wrong, said in (
            (Section([1, 0]), "s.some is 0; expected at least 1"),
            (Section(maybe=0.0), "s.maybe is 0.0; expected more than 0"),
            (Section(free=float("nan")), "s.free is nan; expected a finite number"),
        ):
            with pytest.raises(PixelBertError) as raised:
                check_fields(wrong, "s")
            assert str(raised.value) == said

    def test_of_a_function(self) -> None:
        @bounded
        def search(
            text: str, *, top: Annotated[int, Bound(ge=1)] = 5, also: Annotated[int, Bound(ge=1)] | None = None
        ) -> int:
            """Look."""
            return top

        assert search("a") == 5
        assert search("a", top=7, also=None) == 7
        assert search.__doc__ == "Look."
        with pytest.raises(PixelBertError, match=r"^top is 0; expected at least 1$"):
            search("a", top=0)

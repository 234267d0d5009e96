"""Every package that is installed is pinned, and docs/licences.md tells its licence."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from types import ModuleType

import pytest

from data_builders import ROOT, script

PAGE = ROOT / "docs" / "licences.md"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return script("tools/licences.py")


def rows() -> dict[str, tuple[str, str]]:
    """The tables of the page: version and licence of each package."""
    found = re.findall(r"^\| (\S+) \| (\d\S*) \| (.+?) \| .+ \|$", PAGE.read_text(), flags=re.MULTILINE)
    return {name: (version, licence) for name, version, licence in found}


def test_whatever_is_installed_is_pinned(tool: ModuleType) -> None:
    """As far as it is installed here: `make venv` leaves the docs' packages out, whose own needs are then unknown."""
    needed = tool.groups(ROOT / "pyproject.toml")
    assert {"torch", "pillow", "setuptools", "jinja2"} <= needed["core"]  # the last two are transitive
    assert "typeshed-client" in needed["core"]  # through an extra, jsonargparse[signatures]
    assert "pytest" not in needed["core"]
    assert set().union(*needed.values()) - set(tool.pinned(ROOT / "constraints.txt")) == set()


def test_the_page_has_every_pinned_package_in_its_version(tool: ModuleType) -> None:
    pinned = dict(tool.pinned(ROOT / "constraints.txt").values())
    assert len(pinned) > 100
    assert {name: version for name, (version, _) in rows().items()} == pinned


def test_the_page_says_of_licences_what_the_packages_say(tool: ModuleType) -> None:
    compared = 0
    for name, (version, licence) in rows().items():
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        if package.version.partition("+")[0] == version:  # PyTorch's say which build they are, after a plus
            assert tool.licence(package) == licence, name
            compared += 1
    assert compared, "no package is installed in its pinned version"


def test_the_page_speaks_of_whatever_is_copyleft() -> None:
    spoken_of = PAGE.read_text().split("## Copyleft")[1].split("\n## ")[0]
    copyleft = [name for name, (_, licence) in rows().items() if re.search("GPL|MPL|EPL|CDDL|EUPL|CC-BY-SA", licence)]
    assert len(copyleft) >= 4
    assert [name for name in copyleft if not re.search(rf"\b{name}\b", spoken_of)] == []

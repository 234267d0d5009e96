#!/usr/bin/env python3
"""The licences of everything that pixelbert installs, as the tables in docs/licences.md.

    make docs                                           # so that everything is installed
    python tools/licences.py --output docs/licences.md

Reads pyproject.toml (what is needed), constraints.txt (the versions) and what the installed packages say of themselves.
Replaces the tables in the page and leaves its other text. Fails when a pinned package is not installed in that version,
does not say its licence, or is needed by nothing; and when one that is needed is not pinned.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- tools/licences.py writes from here -->", "<!-- to here -->"
# What old metadata say, in the names of SPDX. What is not here has to be looked at by a person.
SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD",
    "BSD License": "BSD",
    "GNU General Public License (GPL)": "GPL",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Public Domain": "public domain",
    "Python Software Foundation License": "PSF-2.0",
}


def pinned(constraints: Path) -> dict[str, tuple[str, str]]:
    """The packages of constraints.txt: canonical name to name and version."""
    found = {}
    for line in constraints.read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            found[canonicalize_name(name)] = (name, version)
    return found


def installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def reached(requirements: list[str]) -> set[str]:
    """The packages that requirements install here, direct and transitive, by canonical name."""
    found: set[tuple[str, str]] = set()  # with the extra that was asked for
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, of_extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": of_extra}):
            continue
        for extra in {"", *requirement.extras}:
            wanted = (canonicalize_name(requirement.name), extra)
            if wanted not in found:
                found.add(wanted)
                there = installed(requirement.name)
                waiting += [(Requirement(text), extra) for text in (there.requires if there else None) or ()]
    return {name for name, _ in found}


def groups(pyproject: Path) -> dict[str, set[str]]:
    """The core and each extra: the packages that it installs."""
    project = tomllib.loads(pyproject.read_text())["project"]
    wanted = {"core": project["dependencies"], **project["optional-dependencies"]}
    return {group: reached(requirements) for group, requirements in wanted.items()}


def licence(package: Distribution) -> str | None:
    """What a package says of its licence, as an SPDX expression; None if nothing that is known."""
    said = package.metadata.get("License-Expression")
    if said:
        return said
    # All of the classifiers, or one that is copyleft could stand unseen behind one that isn't.
    lines = [line for line in package.metadata.get_all("Classifier") or () if line.startswith("License :: ")]
    kinds = [line.rpartition(" :: ")[2] for line in lines if line != "License :: OSI Approved"]
    if kinds and all(kind in SPDX for kind in kinds):
        return ", ".join(SPDX[kind] for kind in kinds)
    text = package.metadata.get("License") or ""
    with suppress(InvalidLicenseExpression):
        return None if kinds else SPDX.get(text) or canonicalize_license_expression(text)
    return None


def tables(root: Path) -> str:
    """The two tables: what users get, and what only work on the project needs.

    Raises:
        SystemExit: says of each package what is wrong.
    """
    versions, needed = pinned(root / "constraints.txt"), groups(root / "pyproject.toml")
    wrong = [f"{name} is installed and not pinned" for name in sorted(set().union(*needed.values()) - set(versions))]
    rows: dict[bool, list[str]] = {True: [], False: []}
    for name, (shown, version) in sorted(versions.items()):
        package, of = installed(name), [group for group, packages in needed.items() if name in packages]
        if package is None or package.version.partition("+")[0] != version:
            wrong.append(f"{shown} {version} is pinned and {package.version if package else 'nothing'} installed")
        elif not of:
            wrong.append(f"{shown} is pinned and nothing needs it")
        elif (said := licence(package)) is None:
            wrong.append(f"{shown} says nothing of its licence that is known: look at it, and add it to SPDX")
        else:
            for_users = [group for group in of if group not in ("docs", "dev")]
            by = "core" if "core" in of else ", ".join(for_users or of)
            rows[bool(for_users)].append(f"| {shown} | {version} | {said} | {by} |")
    if wrong:
        sys.exit("\n".join(wrong))
    head = "| package | version | licence | needed by |\n| --- | --- | --- | --- |\n"
    return (
        f"## With pixelbert\n\n{head}" + "\n".join(rows[True])
        + f"\n\n## For work on pixelbert\n\n{head}" + "\n".join(rows[False])
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the page whose tables are replaced")
    page = parser.parse_args().output
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{page} lacks the two comments that the tables stand between")
    page.write_text(f"{before}{BEGIN}\n\n{tables(ROOT)}\n\n{END}{after}")


if __name__ == "__main__":
    main()

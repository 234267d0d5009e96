"""The docs site (`make docs`): Sphinx over docs/*.md, which stay as GitHub shows them. Neither needs a network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import pixelbert

# What the sidebar lists. A page that is missing here fails the build.
NAVIGATION = {
    "Start": ["quickstart", "architecture"],
    "Tasks": [
        "tasks/pretraining",
        "tasks/question_answering",
        "tasks/reasoning",
        "tasks/retrieval",
        "tasks/attention",
        "tasks/search",
        "tasks/web",
        "tasks/export",
    ],
    "Reference": ["api", "data", "licences"],
    "Results": [
        "reproduce",
        "results/index",
        "results/shipped",
        "results/flickr8k",
        "results/fine_tuning",
        "results/search",
        "results/sharing",
        "results/table6",
        "results/bounded_memory",
        "reliability",
        "performance",
        "scale",
    ],
}

project = "pixelbert"
author = "The pixelbert authors"
copyright = "the pixelbert authors, Apache-2.0"
release = pixelbert.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 4
default_role = "code"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_attr_annotations = True

html_theme = "furo"
html_title = f"pixelbert {release}"
html_copy_source = False
html_theme_options: dict[str, Any] = {"navigation_with_keys": True}

INDENT = re.compile(r" *")
CODE = re.compile(r"`[^`\n]+`")
SPECIAL = re.compile(r"([*|\\])")


def as_site(app: Sphinx, page: str, source: list[str]) -> None:
    """What the site needs in a page and GitHub would not show as meant: links to Markdown files that are no pages are
    downloads, and the sidebar's lists stand in index.md."""
    here = (Path(app.srcdir) / page).parent

    def as_download(link: re.Match[str]) -> str:
        return link[0] if (here / link[1]).resolve().is_relative_to(app.srcdir) else f"](path:{link[1]})"

    source[0] = re.sub(r"\]\((\.\./[^)#]+\.md)\)", as_download, source[0])
    if page == "index":
        for caption, pages in NAVIGATION.items():
            source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])


def as_rst(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Docstrings, which are written like Markdown, as reStructuredText: stars and bars are themselves, and an indented
    block after a blank line is code. (napoleon then reads their sections.)"""
    result: list[str] = []
    code: int | None = None  # the indent of the text before a block of code
    for line in lines:
        blank, indent = not line.strip(), len(INDENT.match(line)[0])  # type: ignore[index]
        if code is not None and not blank and indent <= code:
            code = None
        if code is None and not blank and len(result) > 1 and not result[-1].strip():
            before = next((text for text in reversed(result) if text.strip()), "")
            if before.endswith(":") and indent > (of_text := len(INDENT.match(before)[0])):  # type: ignore[index]
                code = of_text
                result[-1:] = ["", " " * of_text + "::", ""]
        result.append(line if code is not None or blank else escaped(line))
    lines[:] = result


def escaped(line: str) -> str:
    """One line with what reStructuredText takes for markup escaped, except inside backticks."""
    parts = CODE.split(line)
    codes = [*CODE.findall(line), ""]
    return "".join(
        SPECIAL.sub(r"\\\1", text) + (f"`{code}`" if code else "") for text, code in zip(parts, codes, strict=True)
    )


def skip(app: Sphinx, what: str, name: str, thing: object, omit: bool, options: object) -> bool | None:
    """Leave out what a class says of its fields already: those of named tuples, which document themselves badly."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> None:
    app.connect("source-read", as_site)
    app.connect("autodoc-process-docstring", as_rst, priority=100)
    app.connect("autodoc-skip-member", skip)

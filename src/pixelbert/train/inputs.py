"""What a run is computed from beside its recipe: checksums of all that the recipe points at, kept in DIR/inputs.json.

The same command goes on with a run that was stopped. With other data, first weights or another vocabulary by then it
would be half one run and half another, so they are compared first; a difference is refused and named.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME, cached_file

from pixelbert.data.corpus import Corpus, split_source
from pixelbert.data.store import IMAGES, MANIFEST
from pixelbert.errors import PixelBertError
from pixelbert.files import file_sha256, read_json, write_json
from pixelbert.loading import TOKENIZER_FILES, TRAINED_ON, located, trained_on
from pixelbert.progress import console
from pixelbert.train.recipe import Recipe
from pixelbert.train.run_folder import INPUTS, TOKENIZER, forget, has_begun

Sums = dict[str, str]  # the checksum of each file
SAFE = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
# In a manifest, what tells of a data set's making and is not learned from. (Its files have checksums of their own.)
OF_THE_MAKING = (
    *("sources", "options", "skipped", "left_out", "notes", "merged_answers", "emptied_answers"),
    *("annotated", "counts", "pixelbert", "files"),
)


def hold(output: Path, found: dict[str, Sums], *, first: bool = True) -> None:
    """Note what a run is computed from, or compare it with what was noted.

    Args:
        found: the checksums of each of its inputs, by its field of the recipe and its name there.
        first: whether this is the first look, so that what a run derived from other data, and that has not begun, goes.

    Raises:
        PixelBertError: something is not as it was; names it.
    """
    file, noted = output / INPUTS, read_noted(output / INPUTS)
    if changes := [f"  {name}: {said}" for name in found if (said := difference(noted.get(name), found[name]))]:
        if has_begun(output):
            listed = "\n".join(changes)
            raise PixelBertError(
                f"{output} was begun with other things than its recipe points at now:\n{listed}\n"
                "Put back what was there to go on, or choose another --output to begin with what is there now."
            )
        if first:
            forget(output)
            noted = {}
    elif first and not noted and has_begun(output):
        console.print(
            f"{output} was begun by a version that kept no checksums of its data and first weights, so nobody can tell "
            "whether they are the same. Those of now are noted."
        )
    if noted != noted | found:
        write_json(file, noted | found)


def read_noted(file: Path) -> dict[str, Sums]:
    """What `hold` wrote; nothing if there is no such file."""
    try:
        noted = read_json(file) if file.exists() else {}
    except PixelBertError:
        noted = None
    if not isinstance(noted, dict) or not all(isinstance(sums, dict) for sums in noted.values()):
        raise PixelBertError(
            f"{file} is damaged: copy it again. Only if you know that data and first weights are as they were when the "
            "run began, remove it, and those of now are noted"
        )
    return noted


def difference(then: Sums | None, now: Sums) -> str | None:
    """What has changed of an input that was noted, if something has."""
    if then is None or then == now:
        return None
    changed = sorted(name for name in then.keys() & now.keys() if then[name] != now[name])
    parts = ((changed, "changed"), (then.keys() - now.keys(), "gone"), (now.keys() - then.keys(), "new"))
    return "; ".join(f"{', '.join(sorted(names))} {what}" for names, what in parts if names)


def of_recipe(recipe: Recipe, corpus: Corpus, validation: Corpus | None) -> dict[str, Sums]:
    """Checksums of a run's data and of the files that its first weights and its vocabulary come from."""
    found = {f"data.train {name}": sums for name, sums in of_corpus(recipe.data.train, corpus)}
    if validation:
        found |= {f"data.validation {name}": sums for name, sums in of_corpus(recipe.data.validation, validation)}
    model = recipe.model
    for field in ("checkpoint", "text_init", "tokenizer"):
        if (source := getattr(model, field)) and (sums := of_checkpoint(source)):
            found[f"model.{field} {source}"] = sums
    if model.backbone_init and (weights := Path(model.backbone_init)).is_file():
        found[f"model.backbone_init {weights}"] = {weights.name: file_sha256(weights)}
    return found


def of_corpus(names: Sequence[str], corpus: Corpus) -> Iterable[tuple[str, Sums]]:
    """Checksums of each data set that is read, by its name in the recipe.

    They are those that `prepare` noted: a table that no longer fits its own is refused where it is read.
    """
    for name, source, data in zip(names, corpus.sources, corpus.datasets, strict=True):
        tables = {IMAGES, *split_source(source)[1]}
        sums = {file: of["sha256"] for file, of in data.manifest["files"].items() if file.rsplit("-", 1)[0] in tables}
        facts = {key: value for key, value in data.manifest.items() if key not in OF_THE_MAKING}  # answers, say
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        yield name, {MANIFEST: digest, **dict(sorted(sums.items()))}


def of_checkpoint(source: str) -> Sums:
    """Checksums of the files of a trained model, a BERT or a tokenizer that are read, in a folder or from a hub.

    Nothing where they cannot be had: who reads them says why.
    """
    checkpoint = located(source)
    cached = partial(cached_file, checkpoint, _raise_exceptions_for_missing_entries=False)
    try:
        files = {name: cached(name) for name in (CONFIG_NAME, *TOKENIZER_FILES, TRAINED_ON, *SAFE)}
        if not any(files[name] for name in SAFE):
            files[WEIGHTS_NAME] = cached(WEIGHTS_NAME)
    except OSError:  # no such checkpoint, no network
        return {}
    return {name: file_sha256(Path(file)) for name, file in files.items() if file}


def of_vocabulary(output: Path) -> dict[str, Sums]:
    """Checksums of the vocabulary that a run learned, if it did."""
    files = sorted((output / TOKENIZER).glob("*"))
    return {"learned vocabulary": {f.name: file_sha256(f) for f in files}} if files else {}


def learned_from(output: Path, learned: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a run learns from and has learned from, kept in DIR/trained_on.json: it only ever grows.

    Args:
        learned: what it learns from now.
    """
    before = [row for folder in (output, output / "best") if folder.is_dir() for row in trained_on(folder)]
    rows: list[dict[str, Any]] = []
    for row in before + learned:
        if row not in rows:
            rows.append(row)
    if rows != trained_on(output):
        write_json(output / TRAINED_ON, rows)
    return rows

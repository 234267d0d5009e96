"""What words in tables and in the names of files mean: a value that is missing, a split."""

import math
import re
from pathlib import Path

from pixelbert.errors import PixelBertError

# What pandas, spreadsheets and databases write for a value that they don't have, alone in a field, in any capitals. A
# sentence in which such a word stands is a sentence.
MISSING = frozenset({"", "nan", "-nan", "none", "null", "na", "n/a", "<na>", "#na", "#n/a"})
# The same for answers, of which "none", "no", "NA" and "N/A" may be one: only what nobody answers.
MISSING_ANSWER = frozenset({"", "nan", "NaN", "NAN", "-nan", "null", "NULL", "<NA>", "#N/A", "#NA"})

SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "development"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words}


def is_missing(value: object) -> bool:
    """Whether a field holds no value, or only a marker of a missing one."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_missing_answer(value: object) -> bool:
    """The same of an answer."""
    return value.strip() in MISSING_ANSWER if isinstance(value, str) else is_missing(value)


def meant_split(written: str) -> str:
    """The split that a word in a table means: "val" for "Validation"; a name of one's own stays."""
    return _SPLIT_OF.get(written.strip().lower(), written.strip())


def split_in_name(path: Path) -> str:
    """The split that a whole word of a file's name says: val for captions_val2014.json.

    Raises:
        PixelBertError: none does, or several do; names the option.
    """
    words = re.findall(r"[a-z]+", path.stem.lower())
    found = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
    if len(found) != 1:
        why = "tells more than one split" if found else "does not tell the split by a whole word such as train or val"
        raise PixelBertError(f"{path}: the file's name {why}: give --split")
    return found.pop()

"""NLVR2 accuracy and consistency (paper section 4.2, Table 3), equal to the official script, as pure functions.

The definition is the official script's, github.com/lil-lab/nlvr, `nlvr2/eval/metrics.py`. A sentence stands with up to
four pairs of photos; it is consistent if all its examples are predicted right.
"""

from __future__ import annotations

from collections.abc import Mapping


def nlvr2_scores(predictions: Mapping[str, bool], labels: Mapping[str, bool]) -> dict[str, float]:
    """Accuracy over examples and consistency over sentences.

    Args:
        predictions: identifier -> whether the sentence is predicted to be true; exactly the identifiers of `labels`.
        labels: identifier, such as "dev-850-0-0" -> whether it is.

    Returns:
        "accuracy" and "consistency" in percent, unrounded.

    Raises:
        ValueError: no examples, predictions and labels are not of the same ones, or an identifier is of another form.
    """
    if not labels:
        raise ValueError("there are no examples to score")
    if different := predictions.keys() ^ labels.keys():
        raise ValueError(f"predictions and labels must be of the same examples; {min(different)!r} is in one only")
    right = {identifier: predictions[identifier] == label for identifier, label in labels.items()}
    consistent: dict[str, bool] = {}
    for identifier, is_right in right.items():
        group = sentence_group(identifier)
        consistent[group] = consistent.get(group, True) and is_right
    return {
        "accuracy": 100 * sum(right.values()) / len(right),
        "consistency": 100 * sum(consistent.values()) / len(consistent),
    }


def truth_of(label: object) -> bool | None:
    """What a label of NLVR2 says: true or false, as JSON or as text in any capitals, as the official script compares;
    None if it says neither."""
    if isinstance(label, str):
        return {"true": True, "false": False}.get(label.lower())
    return label if isinstance(label, bool) else None


def sentence_group(identifier: str) -> str:
    """What the examples of one sentence share: of split-set-pair-sentence, all but the pair.

    Raises:
        ValueError: there is no third part.
    """
    parts = identifier.split("-")
    if len(parts) < 3:
        raise ValueError(f"{identifier!r} is not of the form split-set-pair-sentence, such as dev-850-0-0")
    return "-".join([*parts[:2], "", *parts[3:]])

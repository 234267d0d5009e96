"""The tool that holds a change to its claim that it alters no result."""

from data_builders import script

tool = script("tools/compare_revisions.py")


def test_a_figure_that_differs_is_named_and_a_new_field_is_no_difference() -> None:
    before = {"metrics 1 loss": 0.5, "metrics 2 loss": 0.4, "tensor 0": "ab", "metrics 1 gone": 1}
    found = tool.compare(before, {"metrics 1 loss": 0.5, "metrics 2 loss": 0.4000001, "tensor 0": "ab", "new": 1})
    assert found["different"] == {"metrics 2 loss": [0.4, 0.4000001]}
    assert (found["compared"], found["steps"], found["tensors"]) == (3, 2, 1)
    assert (found["only_before"], found["only_after"]) == (["metrics 1 gone"], ["new"])

"""Macro and micro averages of a group of tasks, such as the 57 subjects of MMLU, from lm-eval's results.

lm-eval reports one of the two; papers mean either: over questions (micro) a subject counts by its questions, over
subjects (macro) each counts alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindllm_engine.errors import DataError


@dataclass(frozen=True)
class GroupAverages:
    """The means over tasks (`macro`) and over questions (`micro`), and how many there are of each."""

    macro: float
    micro: float
    tasks: int
    questions: int


def group_averages(results: Mapping[str, Any], group: str, metric: str) -> GroupAverages:
    """The averages of a group, subgroups opened.

    Args:
        results: what `lm_eval.simple_evaluate` returns, or its results.json.
        group: a group in it.
        metric: with its filter, as lm-eval writes it: "acc,none".

    Raises:
        DataError: no such group, or a task in it without the metric.
    """
    tasks = _tasks(results, group)
    if not tasks:
        raise DataError(f"no group {group} in the results; there are {', '.join(results.get('group_subtasks', {}))}")
    scores, sizes = [], []
    for task in tasks:
        found = results["results"][task]
        if metric not in found:
            there = ", ".join(name for name in found if "," in name and "stderr" not in name)
            raise DataError(f"task {task} has no metric {metric}; there are {there}")
        scores.append(float(found[metric]))
        sizes.append(int(found["sample_len"]))
    micro = sum(score * size for score, size in zip(scores, sizes, strict=True)) / sum(sizes)
    return GroupAverages(sum(scores) / len(scores), micro, len(scores), sum(sizes))


def _tasks(results: Mapping[str, Any], group: str) -> list[str]:
    """The tasks of a group, in order, each once."""
    children = results.get("group_subtasks", {})
    found: dict[str, None] = {}
    for child in children.get(group, []):
        found.update(dict.fromkeys(_tasks(results, child) if children.get(child) else [child]))
    return list(found)

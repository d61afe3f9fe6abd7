"""Two evaluations question by question: which differences are more than luck. `tools/compare_evaluations.py` calls it.

It reads what `tools/evaluate.py` leaves in `<out>/tasks`: an entry's settings, and its answers to every question.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from mindllm_engine.corpus.json_lines import read_json_lines
from mindllm_engine.errors import ConfigError, DataError
from mindllm_engine.evaluation.confidence import PairedDifference, paired_bootstrap

_SAMPLES = ".samples.jsonl.gz"

# (task, lm-eval's filter of answers, question)
_Question = tuple[str, str, int]


@dataclass
class CompareArguments:
    """Compare two evaluations of the same tasks, question by question."""

    a: str
    """Folder that tools/evaluate.py wrote (its --out)."""
    b: str
    """The folder to compare with."""
    rounds: int = 10_000
    """Resamples of the bootstrap over questions."""
    level: float = 0.95
    """How often the intervals hold the true difference."""


@dataclass(frozen=True)
class Comparison:
    """One figure of an entry: its metric with lm-eval's filter, both means, and a less b."""

    entry: str
    metric: str
    mean_a: float
    mean_b: float
    paired: PairedDifference


def compare(arguments: CompareArguments) -> tuple[list[Comparison], list[str]]:
    """Every entry that both evaluations have, and why others could not be compared.

    Raises:
        ConfigError: rounds or a level that cannot be.
        DataError: a folder that is none of tools/evaluate.py's, nothing in common, or an entry whose questions or
            prompts differ between the two.
    """
    if arguments.rounds < 1 or not 0 < arguments.level < 1:
        raise ConfigError("compare_evaluations: rounds must be 1 or more, and level between 0 and 1")
    entries_a, entries_b = _entries(arguments.a), _entries(arguments.b)
    shared = [name for name in entries_a if name in entries_b]
    if not shared:
        raise DataError(
            f"{arguments.a} ({', '.join(entries_a)}) and {arguments.b} ({', '.join(entries_b)}) have no task in "
            "common; evaluate both with one suite"
        )
    found: list[Comparison] = []
    notes = [f"{name}: only in one of the two" for name in sorted({*entries_a} ^ {*entries_b})]
    for name in shared:
        metric, other = _metric(entries_a[name]), _metric(entries_b[name])
        if metric != other:
            notes.append(f"{name}: a is scored by {metric}, b by {other}")
            continue
        scores_a, scores_b = (_scores(entries[name], metric) for entries in (entries_a, entries_b))
        _check_same(name, scores_a, scores_b)
        filters = sorted({of for _, of, _ in scores_a})
        for each in filters:
            questions = sorted(question for question in scores_a if question[1] == each)
            a, b = [[scores[question][1] for question in questions] for scores in (scores_a, scores_b)]
            if any(map(math.isnan, (*a, *b))):
                notes.append(f"{name}: {metric} has no score of single questions")
                break
            paired = paired_bootstrap(a, b, arguments.rounds, arguments.level)
            found.append(Comparison(name, f"{metric},{each}", sum(a) / len(a), sum(b) / len(b), paired))
    return found, notes


def comparison_table(comparisons: list[Comparison], level: float = 0.95) -> str:
    """The comparisons as a Markdown table; p is two-sided, of no difference."""
    lines = [
        f"| task | metric | questions | a | b | a - b | {100 * level:g} % interval | p | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in comparisons:
        paired = each.paired
        verdict = ("a is better" if paired.difference > 0 else "b is better") if paired.told_apart else "cannot be told"
        lines.append(
            f"| {each.entry} | {each.metric.removesuffix(',none')} | {paired.questions:,} | {each.mean_a:.4f} | "
            f"{each.mean_b:.4f} | {paired.difference:+.4f} | {paired.interval.low:+.4f} to "
            f"{paired.interval.high:+.4f} | {paired.p_value:.4f} | {verdict} |"
        )
    return "\n".join(lines)


def _entries(folder: str) -> dict[str, Path]:
    """Entry -> its file of settings, in the order of their names."""
    files = sorted((Path(folder) / "tasks").glob("*.json"))
    found = {path.stem: path for path in files if path.with_name(path.stem + _SAMPLES).is_file()}
    if not found:
        raise DataError(f"{folder}: no answers in {Path(folder) / 'tasks'}; give the --out of tools/evaluate.py")
    return found


def _metric(settings: Path) -> str:
    try:
        return str(orjson.loads(settings.read_bytes())["settings"]["entry"]["metric"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{settings}: not what tools/evaluate.py writes; evaluate this task again") from error


def _scores(settings: Path, metric: str) -> dict[_Question, tuple[str, float]]:
    """Question -> (what was asked, the score), NaN where the metric has none of single questions."""
    found: dict[_Question, tuple[str, float]] = {}
    for where, line in read_json_lines(settings.with_name(settings.stem + _SAMPLES)):
        try:
            question = (str(line["task"]), str(line["filter"]), int(line["doc_id"]))
            asked = f"{line['doc_hash']} {line['prompt_hash']}"
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{settings.parent / where}: not an answer of lm-eval's; evaluate this task again"
            ) from error
        found[question] = (asked, _number(line, metric))
    return found


def _number(line: Mapping[str, Any], metric: str) -> float:
    value = line.get(metric)
    return float(value) if isinstance(value, int | float) else math.nan


def _check_same(
    name: str,
    a: Mapping[_Question, tuple[str, float]],
    b: Mapping[_Question, tuple[str, float]],
) -> None:
    """Raises DataError where the two were not asked the same."""
    if a.keys() != b.keys():
        apart = len(a.keys() ^ b.keys())
        raise DataError(f"{name}: {apart:,} questions were asked of one only; evaluate both with the same limit")
    other = [question for question in a if a[question][0] != b[question][0]]
    if other:
        task, _, number = other[0]
        raise DataError(
            f"{name}: {len(other):,} of {len(a):,} questions differ, or the examples before them (the first is {task}, "
            f"question {number}); evaluate both with one suite, the same files and "
            "the same --chat"
        )

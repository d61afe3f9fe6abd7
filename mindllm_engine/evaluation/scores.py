"""What a suite's results say: each figure with its error, chance level and the paper's figure, and all readings.

`evaluate.py` beside this file gets the results from lm-eval.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mindllm_engine.evaluation.confidence import wilson
from mindllm_engine.evaluation.group_averages import group_averages
from mindllm_engine.evaluation.paper_tables import OTHERS, paper_value
from mindllm_engine.evaluation.readings import READINGS, CandidateScores
from mindllm_engine.evaluation.suites import Suite, SuiteTask

# Metrics that tables show in per cent: shares of the questions, but for tasks as TruthfulQA's mc2, which give each any
# score from 0 to 1.
SHARES = ("acc", "acc_norm", "exact_match")


@dataclass(frozen=True)
class ScoreOfEntry:
    """One figure of an entry.

    Attributes:
        metric: with lm-eval's filter, such as "acc,none".
        value: over all questions of the entry, each counted alike.
        macro: the mean over its tasks (subjects), None for a single task.
        stderr: one standard error; low, high: the 95 % interval. None where lm-eval has none for the metric.
        questions: how many.
        chance: what guessing gets, None where the suite does not say.
        at_chance: whether the interval holds the chance level: no better than guessing, as far as can be told.
    """

    metric: str
    value: float
    macro: float | None
    stderr: float | None
    low: float | None
    high: float | None
    questions: int
    chance: float | None
    at_chance: bool


def entry_scores(entry: SuiteTask, raw: Mapping[str, Any]) -> list[ScoreOfEntry]:
    """The figures of an entry's metric, one for each filter of answers, from what `lm_eval.simple_evaluate` gives."""
    groups = raw.get("group_subtasks", {})
    children = groups.get(entry.task) or []
    some_task = entry.task
    while groups.get(some_task):
        some_task = groups[some_task][0]
    if some_task not in raw["results"] or (not children and some_task != entry.task):  # a tag: its tasks alone
        some_task = next(iter(raw["samples"]))
    names = [name for name in raw["results"][some_task] if name.split(",")[0] == entry.metric]
    if not names:  # another metric than the suite says: the first there is
        names = [name for name in raw["results"][some_task] if "," in name and "_stderr" not in name][:1]
    return [_score(entry, raw, name, bool(children), some_task) for name in names]


def _score(entry: SuiteTask, raw: Mapping[str, Any], name: str, is_group: bool, task: str) -> ScoreOfEntry:
    results = raw["results"]
    macro: float | None = None
    if is_group:
        averages = group_averages(raw, entry.task, name)
        value, macro, questions = averages.micro, averages.macro, averages.questions
    else:
        value, questions = float(results[task][name]), int(results[task]["sample_len"])
    metric, filter_name = name.split(",", 1)
    low = high = stderr = None
    if metric in SHARES and all(line.get(metric, 0) in (0, 1) for lines in raw["samples"].values() for line in lines):
        stderr = math.sqrt(value * (1 - value) / questions)
        interval = wilson(value * questions, questions)
        low, high = interval.low, interval.high
    else:
        given = results[task].get(f"{metric}_stderr,{filter_name}")
        if isinstance(given, int | float) and math.isfinite(given) and not is_group:
            stderr = float(given)
            low, high = value - 1.96 * stderr, value + 1.96 * stderr
    chance = entry.chance
    at_chance = chance is not None and low is not None and high is not None and low <= chance <= high
    return ScoreOfEntry(name, value, macro, stderr, low, high, questions, chance, at_chance)


def readings_of(
    tasks: Mapping[str, Any],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    scores: Mapping[tuple[str, str], CandidateScores],
) -> dict[str, dict[str, Any]]:
    """Of each multiple-choice task: its questions, and how many are right by each reading.

    The task's own code says which answer is right: it is handed each reading's values in place of log-likelihoods.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, lines in samples.items():
        task = tasks.get(name)
        if task is None or task.OUTPUT_TYPE != "multiple_choice" or not lines:
            continue
        right = dict.fromkeys(READINGS, 0.0)
        for line in lines:
            candidates = [scores[pair[0], pair[1]] for pair in line["arguments"]]
            values = [candidate.values() for candidate in candidates]
            for reading in READINGS:
                as_likelihoods = [
                    (value[reading], candidate.is_greedy) for value, candidate in zip(values, candidates, strict=True)
                ]
                right[reading] += float(task.process_results(line["doc"], as_likelihoods)["acc"])
        found[name] = {"questions": len(lines), "right": right}
    return found


def markdown_table(results: Mapping[str, Any], suite: Suite, paper_model: str) -> str:
    """The results for reading: the paper's figures beside ours, what cannot be told from guessing, and the readings."""
    said = how_asked(results)
    lines = [
        f"# {results['checkpoint']}",
        "",
        *([f"**{said}**", ""] if said else []),
        "| task | shots | metric | questions | here | standard error | 95 % interval | chance | "
        f"paper ({paper_model}) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    at_chance = []
    for entry in suite.tasks:
        found = results["entries"][entry.task]
        for score in found["scores"]:
            lines.append(_row(entry, score, paper_model))
            if score["at_chance"]:
                at_chance.append(f"{entry.task} ({score['metric'].split(',')[0]})")
    if any(line.endswith(" * |") for line in lines):
        lines += ["", OTHERS]
    if at_chance:
        lines += ["", f"Indistinguishable from chance (the 95 % interval holds it): {', '.join(at_chance)}."]
    notes = [
        f"- {entry.task}: {note}: {count}"
        for entry in suite.tasks
        for note, count in results["entries"][entry.task]["notes"].items()
    ]
    lines += ["", "Requests that did not fit the network:", "", *notes] if notes else []
    return "\n".join([*lines, *_readings_table(results, suite)]) + "\n"


def how_asked(results: Mapping[str, Any]) -> str:
    """What of results.json's questions was left out, and whether they were asked in chats; "" where all were asked as
    plain text."""
    said = []
    entries = {name: found["settings"]["entry"].get("limit") for name, found in results["entries"].items()}
    limited = ", ".join(
        f"{name} (the first {limit:,} of each of its tasks)" for name, limit in entries.items() if limit
    )
    if results.get("limit"):
        said.append(f"Only the first {results['limit']:,} questions of each task were asked.")
    elif limited:
        said.append(f"Not all questions were asked of {limited}.")
    if results.get("chat", "none") != "none":
        examples = "as turns" if results["chat"] == "turns" else "in the question's message"
        said.append(f"Asked in the run's chat template, examples {examples}.")
    return " ".join(said)


def _row(entry: SuiteTask, score: Mapping[str, Any], paper_model: str) -> str:
    def percent(value: float | None) -> str:
        # Metrics that are no shares, such as BLEU, stand as they are.
        return "–" if value is None else f"{100 * value:.2f} %" if is_share else f"{value:.3f}"

    metric = score["metric"].split(",")[0]
    is_share = metric in SHARES
    published = paper_value(entry.paper, metric, entry.num_fewshot, paper_model) if entry.paper else None
    macro = "" if score["macro"] is None else f" (mean of tasks {percent(score['macro'])})"
    interval = "–" if score["low"] is None else f"{percent(score['low'])} to {percent(score['high'])}"
    shown = [
        entry.task,
        "–" if entry.num_fewshot is None else str(entry.num_fewshot),
        score["metric"].removesuffix(",none"),
        f"{score['questions']:,}",
        percent(score["value"]) + macro,
        percent(score["stderr"]),
        interval + (" = chance" if score["at_chance"] else ""),
        percent(score["chance"]),
        "–" if published is None else published.text,
    ]
    return "| " + " | ".join(shown) + " |"


def _readings_table(results: Mapping[str, Any], suite: Suite) -> list[str]:
    """Accuracy by each reading, over all questions of an entry."""
    rows = []
    for entry in suite.tasks:
        readings = results["entries"][entry.task].get("readings") or {}
        questions = sum(each["questions"] for each in readings.values())
        if questions:
            shares = [sum(each["right"][name] for each in readings.values()) / questions for name in READINGS]
            rows.append(f"| {entry.task} | " + " | ".join(f"{100 * share:.2f} %" for share in shares) + " |")
    if not rows:
        return []
    head = ["", "Accuracy by what is compared between candidates (log-probabilities):", ""]
    return [*head, "| task | " + " | ".join(READINGS) + " |", "|---" * (len(READINGS) + 1) + "|", *rows]

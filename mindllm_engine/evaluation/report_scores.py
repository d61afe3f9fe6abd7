"""The report's tables of evaluation: what `tools/evaluate.py` left in a run folder, "paper" beside "here"."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from mindllm_engine.errors import DataError
from mindllm_engine.evaluation.paper_tables import OTHERS, paper_value
from mindllm_engine.evaluation.scores import SHARES, how_asked
from mindllm_engine.html_page import number_cell, shown, table

# Of networks, by class: whose figures in the paper stand beside ours.
PAPER_MODELS = {"MindLLM": "MindLLM-3B", "GPTNeo": "MindLLM-1.3B"}


def read_evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    """The results in a run folder, by their folder's name: `evaluation/results.json`, `evaluation/<name>/results.json`.

    Raises:
        DataError: one of them is damaged.
    """
    files = [*folder.glob("evaluation*/results.json"), *folder.glob("evaluation*/*/results.json")]
    found = {}
    for file in sorted(files):
        try:
            found[str(file.parent.relative_to(folder))] = results = orjson.loads(file.read_bytes())
            list(evaluation_tables({"": results}, ""))  # what cannot be shown is no result
        except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file}: damaged; delete it, or ask again with tools/evaluate.py") from error
    return found


def evaluation_tables(evaluations: Mapping[str, dict[str, Any]], network: str) -> Iterator[str]:
    """As HTML, one table a folder of results."""
    model = PAPER_MODELS.get(network, "MindLLM-1.3B")
    header = ("task", "metric", "", "shots", "questions", "here", "95 % interval", "chance", f"paper ({model})")
    for name, results in evaluations.items():
        yield f"<h3>Evaluation: {shown(name)}</h3><p class=note>{shown(str(results.get('checkpoint', '')))}</p>"
        if said := how_asked(results):
            yield f"<p><b>{shown(said)}</b></p>"
        rows = [
            score_row(entry["settings"]["entry"], score, model)
            for entry in results["entries"].values()
            for score in entry["scores"]
        ]
        yield table(header, rows, numbers=6)
    if evaluations:
        yield (
            "<p class=note>= chance: the interval holds what guessing gets, so that nothing can be said to be known. "
            "The paper's networks have 1.3 and 3 billion parameters: beside smaller ones their figures say how far it "
            f"is, not what to expect. {OTHERS}. A dash: not to be found.</p>"
        )


def score_row(entry: Mapping[str, Any], score: Mapping[str, Any], model: str) -> str:
    """One figure."""
    metric = score["metric"].split(",")[0]
    is_share = metric in SHARES

    def figure(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f} %" if is_share else f"{value:.2f}"

    published = paper_value(entry["paper"], metric, entry["num_fewshot"], model) if entry.get("paper") else None
    interval = "–" if score["low"] is None else f"{figure(score['low'])} to {figure(score['high'])}"
    words = (entry["task"], score["metric"].removesuffix(",none"), "= chance" if score["at_chance"] else "")
    numbers = (
        "–" if entry["num_fewshot"] is None else str(entry["num_fewshot"]),
        f"{score['questions']:,}",
        figure(score["value"]),
        interval,
        figure(score["chance"]),
        "–" if published is None else published.text,
    )
    return "<tr>" + "".join(f"<td>{shown(word)}</td>" for word in words) + "".join(map(number_cell, numbers)) + "</tr>"

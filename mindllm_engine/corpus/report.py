"""What entered the corpus, what left it and why, by source and step, with examples: as one page for a person to judge
the filters by (report_page.py) and as JSON for a program, from the same sums (report_sums.py).
"""

from pathlib import Path
from typing import Any

import orjson

from mindllm_engine.corpus.report_page import report_page
from mindllm_engine.corpus.report_sums import (
    SourceReport,
    StepFlow,
    all_inconsistencies,
    entered_documents,
    most_first,
    reason_summaries,
    source_flow,
    table_1,
    total_flow,
)
from mindllm_engine.data.atomic_files import write_atomically


def corpus_report(sources: list[SourceReport], path: Path) -> None:
    """Write `path` (one HTML page that needs nothing else) and, beside it, the same as `.json`.

    Raises DataError where they cannot be written.
    """
    write_atomically(path.with_suffix(".json"), orjson.dumps(report_json(sources), option=orjson.OPT_INDENT_2))
    write_atomically(path, report_page(sources).encode(errors="replace"))


def report_json(sources: list[SourceReport]) -> dict[str, Any]:
    """The report as plain data."""
    return {
        "warnings": all_inconsistencies(sources),
        "all_sources": {
            "entered_documents": sum(entered_documents(source) for source in sources),
            "written_documents": sum(source.written_documents for source in sources),
            "written_chars": sum(source.written_chars for source in sources),
            "written_bytes": sum(source.written_bytes for source in sources),
            "steps": [flow_json(flow) for flow in total_flow(sources)],
        },
        "sources": [
            {
                "name": source.name,
                "category": source.category,
                "entered_documents": entered_documents(source),
                "written_documents": source.written_documents,
                "written_chars": source.written_chars,
                "written_bytes": source.written_bytes,
                "languages": {lang: vars(written) for lang, written in sorted(source.languages.items())},
                "tokens": source.tokens,
                "steps": [flow_json(flow) for flow in source_flow(source)],
            }
            for source in sources
        ],
        "table_1": [vars(row) for row in table_1(sources)],
        "reasons": [
            {**vars(reason), "examples": [vars(example) for example in reason.examples]}
            for reason in reason_summaries(sources)
        ],
    }


def flow_json(flow: StepFlow) -> dict[str, Any]:
    return {
        "stage": flow.stage,
        "step": flow.step,
        "entered_documents": flow.entered,
        "entered_chars": flow.entered_chars,
        "left_documents": flow.left,
        "left_chars": flow.left_chars,
        "dropped": {
            words: {"documents": reason.documents, "chars": reason.chars} for words, reason in most_first(flow.dropped)
        },
        "counts": dict(sorted(flow.counts.items())),
    }

"""Instruction records as plain text to pre-train on: JSON lines of {"text": ...}, as the `corpus` section of a run
reads them. Instructions that are mixed into pre-training (MiniCPM, arXiv 2404.06395, section 5) come from here.
"""

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mindllm_engine.errors import DataError
from mindllm_engine.tuning.record_files import refuse_to_overwrite, write_json_lines
from mindllm_engine.tuning.records import BadRecord, Record, read_records


@dataclass
class TextReport:
    """What became of the records.

    Attributes:
        written: documents.
        bad: reason -> records that were left out.
        first_bad: file and line of the first of them.
    """

    written: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    first_bad: str | None = None


def plain_text(record: Record) -> str:
    """A chat as a page of text, each message on a line of its own, without marks of who says it."""
    return "\n".join(message.content for message in record.messages)


def write_texts(paths: Iterable[str | Path], out: Path) -> TextReport:
    """Write one document a record, in the order of files and lines, all or nothing.

    Args:
        paths: files of instruction records in any of the shapes of tuning/records.py.
        out: the .jsonl to write.

    Raises:
        ConfigError: `out` is one of the files that are read.
        DataError: a file is missing or damaged, no record can be used, or `out` cannot be written.
    """
    paths, report = list(paths), TextReport()
    refuse_to_overwrite(paths, [out])

    rows: list[dict[str, str]] = []
    for record in itertools.chain.from_iterable(map(read_records, paths)):
        if isinstance(record, BadRecord):
            report.bad[record.reason] += 1
            report.first_bad = report.first_bad or record.where
        else:
            rows.append({"text": plain_text(record)})
    report.written = len(rows)
    if not rows:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.bad.most_common()) or "no lines"
        raise DataError(f"{', '.join(map(str, paths))}: not one record can be used ({reasons}); mend the files")
    write_json_lines(out, rows)
    return report

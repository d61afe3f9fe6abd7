"""Instruction records as text to pre-train on: `python tools/write_instruction_text.py --records
'["${MINDLLM_DATA}/instruct/alpaca_en.jsonl.gz"]' --out data/instruction_text/en.jsonl`."""

from dataclasses import dataclass
from pathlib import Path

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.corpus.prepare import expand_path
from mindllm_engine.corpus.readers import expand_paths
from mindllm_engine.tuning.texts import write_texts


@dataclass
class TextArguments:
    """Write instruction records as documents of plain text, which a run's `corpus` section can name as a source."""

    records: list[str]
    """Paths or globs of .jsonl, .jsonl.gz or .jsonl.zst files. `~` and ${MINDLLM_DATA} are expanded."""
    out: str
    """The .jsonl to write."""


def main() -> None:
    """Write the text and say what was left out."""
    arguments = parse_arguments(TextArguments, "Write instruction records as text to pre-train on.")
    paths = expand_paths([expand_path(path) for path in arguments.records])
    report = write_texts(paths, Path(arguments.out))
    print(f"{arguments.out}: {report.written:,} documents")
    for reason, count in report.bad.most_common():
        print(f"left out: {count:,} records with {reason}, the first bad one at {report.first_bad}")


if __name__ == "__main__":
    run_tool(main)

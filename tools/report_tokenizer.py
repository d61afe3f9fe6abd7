"""How much text a token holds, for each language and source: `python tools/report_tokenizer.py
--tokenizers.base base.model --tokenizers.extended extended.model --input.zh 'data/zh_*.jsonl.gz' --holdout 0.02`."""

from dataclasses import dataclass
from pathlib import Path

import orjson

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.corpus.balanced_sample import SampledSource
from mindllm_engine.corpus.open_tokenizer import open_tokenizer
from mindllm_engine.corpus.readers import expand_paths
from mindllm_engine.corpus.tokenizer_report import measure_tokenizers, table
from mindllm_engine.data.atomic_files import write_atomically


@dataclass
class ReportTokenizerArguments:
    """Characters, bytes and words a token, of one tokenizer or several side by side."""

    tokenizers: dict[str, str]
    """Name -> tokenizer file, SentencePiece or tokenizer.json."""
    input: dict[str, str]
    """Language -> path or glob of its text; each file is a source."""
    holdout: float = 0.0
    """Measure the documents that training with this `holdout` left out; 0 measures all."""
    max_bytes: int | None = None
    """Of each source at most about so many bytes of text."""
    text_field: str = "text"
    """The field or column of a record that holds its text."""
    json: str | None = None
    """File for the same figures as JSON."""


def main() -> None:
    """Measure, print the table and write the JSON."""
    arguments = parse_arguments(ReportTokenizerArguments, "How much text a token holds, for each language and source.")
    tokenizers = {name: open_tokenizer(path) for name, path in arguments.tokenizers.items()}
    sources = [
        SampledSource(Path(path).name.split(".")[0], lang, [path])
        for lang, pattern in arguments.input.items()
        for path in expand_paths(pattern)
    ]
    rows = measure_tokenizers(tokenizers, sources, arguments.holdout, arguments.text_field, arguments.max_bytes)
    print(table(rows))
    if arguments.json is not None:
        about = {name: {"vocab_size": t.vocab_size, "hash": t.hash} for name, t in tokenizers.items()}
        document = {"tokenizers": about, "holdout": arguments.holdout, "rows": [row.record() for row in rows]}
        write_atomically(Path(arguments.json), orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")


if __name__ == "__main__":
    run_tool(main)

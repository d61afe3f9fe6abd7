"""Tokenize one source: `python tools/tokenize_corpus.py --input 'my/*.jsonl.gz' --name mytext --lang en --category web
--tokenizer tokenizer.model --out data/tokens`."""

from dataclasses import dataclass

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.corpus.open_tokenizer import open_tokenizer
from mindllm_engine.corpus.readers import OnBadRecord
from mindllm_engine.corpus.tokenize import tokenize_source


@dataclass
class TokenizeArguments:
    """One source of text to token files."""

    input: str | list[str]
    """Path or glob of .jsonl, .json (one record a line), .jsonl.gz, .jsonl.zst or .parquet files; for several, a list:
    '["a/*.jsonl", "b/*.parquet"]'."""
    name: str
    """Name of the source; the files are called by it."""
    lang: str
    """Its language, such as zh or en."""
    category: str
    """The kind of its text, such as web, book or code."""
    tokenizer: str
    """A SentencePiece model or a tokenizer.json (tools/train_tokenizer.py and tools/extend_tokenizer.py make them)."""
    out: str
    """Folder for <name>.bin, .idx, .json and <name>.heldout.*; a stopped run leaves its finished parts in parts/."""
    holdout: float = 0.0
    """Share of the documents to keep from training for validation, from 0 to below 1."""
    text_field: str = "text"
    """The field or column of a record that holds its text."""
    on_bad_record: OnBadRecord = "skip"
    """Skip counts records that are malformed or have no text, by reason; error stops at the first."""
    workers: int | None = None
    """Processes; one a core by default. The output does not depend on it."""


def main() -> None:
    """Tokenize the source and print its counts."""
    arguments = parse_arguments(
        TokenizeArguments, "Tokenize one source of text into token files. A stopped run goes on."
    )
    source = tokenize_source(
        arguments.input,
        arguments.out,
        name=arguments.name,
        lang=arguments.lang,
        category=arguments.category,
        tokenizer=open_tokenizer(arguments.tokenizer),
        holdout=arguments.holdout,
        text_field=arguments.text_field,
        on_bad_record=arguments.on_bad_record,
        workers=arguments.workers,
    )
    print(source.summary() + (" (up to date)" if source.up_to_date else ""))


if __name__ == "__main__":
    run_tool(main)

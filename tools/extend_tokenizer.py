"""Append Chinese pieces to the tokenizer of another language: `python tools/extend_tokenizer.py
--base gpt2/tokenizer.json --input 'data/zh_*.jsonl.gz' --pieces 49743 --model tokenizer.json`."""

from dataclasses import dataclass
from pathlib import Path

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.corpus.balanced_sample import SampledSource, balanced_sample
from mindllm_engine.corpus.extend_tokenizer import extend_tokenizer
from mindllm_engine.corpus.readers import expand_paths


@dataclass
class ExtendTokenizerArguments:
    """The base language is encoded as before; the new ids follow the old ones."""

    base: str
    """The tokenizer to extend: a SentencePiece model (BPE or unigram), a tokenizer.json of byte-level BPE, or a folder
    with GPT-2's vocab.json and merges.txt."""
    input: str | list[str]
    """Path or glob of Chinese text, as .jsonl, .json (one record a line), .jsonl.gz, .jsonl.zst or .parquet files; for
    several, a list. Each file gives equal parts; what is not Chinese in it is passed over."""
    model: str
    """File to write the extended tokenizer to: a SentencePiece model, or else a tokenizer.json."""
    pieces: int
    """Number of Chinese pieces to append."""
    special_tokens: bool = False
    """Append tokens for personal data, which are kept whole in any text, and for chats."""
    train_bytes: int = 100_000_000
    """Bytes of text to train on. Training takes about 20 bytes of memory for each."""
    holdout: float = 0.0
    """Share of the documents to leave out, the same ones as tools/tokenize_corpus.py, for tools/report_tokenizer.py."""
    text_field: str = "text"
    """The field or column of a record that holds its text."""
    seed: int = 0
    """Names the choice of documents."""


def main() -> None:
    """Train the pieces and write the extended tokenizer."""
    arguments = parse_arguments(ExtendTokenizerArguments, "Append Chinese pieces to the tokenizer of another language.")
    sources = [SampledSource(Path(path).name, "zh", [path]) for path in expand_paths(arguments.input)]
    texts = balanced_sample(sources, arguments.train_bytes, arguments.seed, arguments.text_field, arguments.holdout)
    extended = extend_tokenizer(arguments.base, texts, arguments.pieces, arguments.model, arguments.special_tokens)
    print(f"{arguments.model}: {extended.vocab_size:,} ids, hash {extended.hash}")


if __name__ == "__main__":
    run_tool(main)

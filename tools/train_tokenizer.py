"""Train a tokenizer: `python tools/train_tokenizer.py --input.zh 'data/zh_*.jsonl.gz' --input.en 'data/en_*.jsonl.gz'
--model tokenizer.model --vocab_size 32000`. MindLLM-3B's: `--config configs/corpus/tokenizer_125700.yaml`."""

from dataclasses import dataclass
from pathlib import Path

from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.corpus.balanced_sample import SampledSource, balanced_sample
from mindllm_engine.corpus.readers import expand_paths
from mindllm_engine.corpus.tokenizer import train_tokenizer


@dataclass
class TrainTokenizerArguments:
    """A SentencePiece BPE tokenizer that gives every text back exactly."""

    input: dict[str, str]
    """Language -> path or glob of its text, as .jsonl, .json (one record a line), .jsonl.gz, .jsonl.zst or .parquet
    files. Each language gives equal parts, and in it each file."""
    model: str
    """File to write the tokenizer to."""
    vocab_size: int
    """Number of its ids. Below 65,500 a stored id takes 2 bytes, from there on 4."""
    special_tokens: bool = False
    """With tokens for personal data, which are kept whole in any text, and for chats."""
    train_bytes: int = 100_000_000
    """Bytes of text to train on. Training takes about 20 bytes of memory for each."""
    holdout: float = 0.0
    """Share of the documents to leave out, the same ones as tools/tokenize_corpus.py, for tools/report_tokenizer.py."""
    text_field: str = "text"
    """The field or column of a record that holds its text."""
    seed: int = 0
    """Names the choice of documents."""


def main() -> None:
    """Train and write the tokenizer."""
    arguments = parse_arguments(TrainTokenizerArguments, "Train a tokenizer on a balanced sample of text.")
    sources = [
        SampledSource(Path(path).name, lang, [path])
        for lang, pattern in arguments.input.items()
        for path in expand_paths(pattern)
    ]
    texts = balanced_sample(sources, arguments.train_bytes, arguments.seed, arguments.text_field, arguments.holdout)
    tokenizer = train_tokenizer(texts, arguments.vocab_size, arguments.model, arguments.special_tokens)
    print(f"{arguments.model}: {tokenizer.vocab_size:,} ids, hash {tokenizer.hash}")


if __name__ == "__main__":
    run_tool(main)

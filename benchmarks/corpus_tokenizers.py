"""How much text does a token hold, and what does extending a tokenizer by Chinese pieces cost and change?

    python benchmarks/corpus.py --only tokenizers

Characters a token are of documents that no tokenizer was trained on, beside byte-level BPE made as GPT-2's was, which
loses nothing of a text either, and joins digits. (SentencePiece as it comes drops line breaks and double spaces, so its
tokens seem to hold more.) Bases to extend are trained on the English text here. Takes some five minutes on two cores.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from benchmarks.process_memory import forget_peak, in_fresh_process, peak_bytes, resident_bytes
from mindllm_engine.corpus.balanced_sample import SampledSource, balanced_sample
from mindllm_engine.corpus.chinese_pieces import chinese_runs
from mindllm_engine.corpus.extend_tokenizer import extend_tokenizer
from mindllm_engine.corpus.holdout import is_held_out
from mindllm_engine.corpus.open_tokenizer import TextTokenizer, open_tokenizer
from mindllm_engine.corpus.readers import read_texts
from mindllm_engine.corpus.tokenizer import train_tokenizer
from mindllm_engine.corpus.tokenizer_report import ALL, measure_tokenizers

VOCAB, BASE_VOCAB, NEW_PIECES = 32_000, 32_000, 30_000
TRAIN_BYTES = 50_000_000
HOLDOUT = 0.03
REPETITIONS = 5
PEER = "byte-level BPE as GPT-2's"
Row = dict[str, Any]


def row(name: str, unit: str, ours: float, peer: float | None = None, peer_name: str = "-", **more: Any) -> Row:
    """More is better, but for rows without a peer."""
    figures = {"ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ours / peer if peer else None}
    return {"name": name, "unit": unit, **figures, "bar": None, "holds": None, "reason": None, **more}


def sources_of(data: Path, pattern: str) -> list[SampledSource]:
    paths = sorted(data.glob(f"{pattern}.jsonl.gz"))
    return [SampledSource(path.name.split(".")[0], path.name[:2], [str(path)]) for path in paths]


def sample(data: Path, pattern: str) -> Iterator[str]:
    return balanced_sample(sources_of(data, pattern), TRAIN_BYTES, seed=0, holdout=HOLDOUT)


def rows(data: Path, work: Path) -> Iterator[Row]:
    """Every row, as it is known; `data` holds <language>_<category>.jsonl.gz, `work` takes files."""
    yield from compression_rows(data, work)
    for kind, train in (("SentencePiece BPE", train_sentencepiece_base), ("byte-level BPE", train_byte_level_base)):
        base = in_fresh_process(train, data, work)
        yield from extension_rows(data, work, kind, base)


def compression_rows(data: Path, work: Path) -> Iterator[Row]:
    ours = train_tokenizer(sample(data, "*"), VOCAB, work / "ours.model", special_tokens=True)
    plain = train_tokenizer(sample(data, "*"), VOCAB, work / "plain.model")
    peer = open_tokenizer(train_byte_level(sample(data, "*"), VOCAB, work / "peer.json"))
    sides: dict[str, TextTokenizer] = {"ours": ours, "peer": peer}
    for measured in measure_tokenizers(sides, sources_of(data, "*"), HOLDOUT):
        figures = {name: measured.characters / count for name, count in measured.tokens.items()}
        source = "all sources" if measured.source == ALL else measured.source
        name = f"held-out text, {measured.lang}, {source}, {VOCAB:,} ids"
        more = {"bytes_a_token": measured.bytes / measured.tokens["ours"]}
        yield row(name, "characters a token", figures["ours"], figures["peer"], PEER, **more)
    texts = [text for source in sources_of(data, "*") for text in read_texts(source.paths)]
    rates = [(_rate(ours, texts), _rate(plain, texts)) for _ in range(REPETITIONS)]
    name = f"encoding with special tokens, taking turns, best of {REPETITIONS}"
    best, best_plain = map(max, zip(*rates, strict=True))
    yield row(name, "MB/s", best, best_plain, "the same tokenizer without them")


def _rate(tokenizer: TextTokenizer, texts: list[str]) -> float:
    begin = time.perf_counter()
    for first in range(0, len(texts), 256):
        tokenizer.encode_batch(texts[first : first + 256])
    return sum(len(text.encode()) for text in texts) / 1e6 / (time.perf_counter() - begin)


def train_sentencepiece_base(data: Path, work: Path) -> Path:
    return train_tokenizer(sample(data, "en_*"), BASE_VOCAB, work / "base.model").model_path


def train_byte_level_base(data: Path, work: Path) -> Path:
    return train_byte_level(sample(data, "en_*"), BASE_VOCAB, work / "base.json")


def train_byte_level(texts: Iterator[str], vocab_size: int, path: Path) -> Path:
    base = tokenizers.Tokenizer(tokenizers.models.BPE())
    base.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    base.train_from_iterator(texts, trainer)
    base.save(str(path))
    return path


def extension_rows(data: Path, work: Path, kind: str, base: Path) -> Iterator[Row]:
    extended = work / f"extended{base.suffix}"
    seconds, peak = in_fresh_process(_extend, data, base, extended)
    name = f"{kind} of {BASE_VOCAB:,} extended by {NEW_PIECES:,} Chinese pieces"
    yield row(f"{name}: time", "s", seconds)
    yield row(f"{name}: memory above that before", "MiB", peak / 2**20)
    old, new = open_tokenizer(base), open_tokenizer(extended)
    english = [text for source in sources_of(data, "en_*") for text in read_texts(source.paths)]
    english = [text for text in english if not chinese_runs(text)]
    changed = sum(old.encode(text) != new.encode(text) for text in english)
    yield row(f"{name}: of {len(english):,} English documents without a Chinese character, encoded anew", "", changed)
    chinese = [text for source in sources_of(data, "zh_*") for text in read_texts(source.paths)]
    chinese = [text for text in chinese if is_held_out(text.encode(), HOLDOUT)]
    characters = sum(map(len, chinese))
    after, before = (characters / len(tokenizer.encode_batch(chinese)[0]) for tokenizer in (new, old))
    yield row(f"{name}: held-out Chinese", "characters a token", after, before, "the base")


def _extend(data: Path, base: Path, extended: Path) -> tuple[float, int]:
    """Seconds, and bytes at the peak above those before; the texts are read before the clock starts."""
    texts = list(sample(data, "zh_*"))
    before = resident_bytes()
    forget_peak()
    begin = time.perf_counter()
    extend_tokenizer(base, texts, NEW_PIECES, extended)
    return time.perf_counter() - begin, peak_bytes() - before

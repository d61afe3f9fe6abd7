"""Our side of benchmarks/token_streams.py: the engine as training uses it."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.process_memory import anonymous_bytes, forget_peak, peak_bytes, resident_bytes
from benchmarks.token_stream_files import DTYPE, VOCAB, source_facts
from mindllm_engine.corpus.tokenize import tokenize_source
from mindllm_engine.corpus.tokenizer import Tokenizer
from mindllm_engine.data.loader import Batch, Loader
from mindllm_engine.data.plan import BlockConfig, Plan, SourceFacts
from mindllm_engine.data.token_file_builder import TokenFileBuilder
from mindllm_engine.data.token_files import TokenFile

TOKENIZING_PROCESSES = 2
MICRO_BATCHES_A_STEP = 16


def open_loader(prefixes: list[Path], samples: int, seq_len: int) -> Loader:
    """From files to a loader of one rank: one shuffled block over all sources, each by its size."""
    files = [TokenFile(prefix) for prefix in prefixes]
    sources = [SourceFacts.of(file.manifest.name, file.manifest) for file in files]
    plan = Plan(sources, [BlockConfig()], seq_len, seed=1, samples_needed=samples)
    return Loader(plan, files, VOCAB, rank=0, world_size=1)


def first_batch(loader: Loader, batch: int) -> Batch:
    return next(iter(loader.micro_batches(0, batch, batch)))


def batches(loader: Loader, batch: int) -> Iterator[Batch]:
    """Micro-batches as the training loop asks for them, step after step, to the end of the plan."""
    step = batch * MICRO_BATCHES_A_STEP
    for first in range(0, loader.plan.samples - step + 1, step):
        yield from loader.micro_batches(first, step, batch)


def rank_memory(prefixes: list[Path], warm_up: list[Path], samples: int, seq_len: int) -> tuple[float, int]:
    """Seconds from files to first micro-batch, and bytes of anonymous memory that this added to the process.

    Another loader has gone the same way before, so that what the libraries themselves take is not counted.
    """
    warm = open_loader(warm_up, 16, seq_len)
    first_batch(warm, 16)
    before = anonymous_bytes()
    begin = time.perf_counter()
    loader = open_loader(prefixes, samples, seq_len)
    first_batch(loader, 16)
    return time.perf_counter() - begin, anonymous_bytes() - before


def open_builder(prefix: Path) -> TokenFileBuilder:
    return TokenFileBuilder(prefix, DTYPE, **source_facts(prefix.name))


def peak_of_writing(prefix: Path, documents: int, tokens_each: int, piece: int) -> int:
    """By how many bytes the memory of this process grows at its peak while it writes a token file."""
    tokens, lengths = np.zeros(piece * tokens_each, np.uint16), np.full(piece, tokens_each)
    forget_peak()
    before = resident_bytes()
    with open_builder(prefix) as builder:
        for _ in range(documents // piece):
            builder.append_many(tokens, lengths, 0)
    return peak_bytes() - before


def tokenize(path: Path, folder: Path, model: Path, language: str) -> Path:
    """JSON lines to a token file; its prefix."""
    source = tokenize_source(
        str(path),
        folder,
        name=language,
        lang=language,
        category="web",
        tokenizer=Tokenizer(model),
        workers=TOKENIZING_PROCESSES,
    )
    return Path(source.train_prefix)

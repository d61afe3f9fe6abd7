"""The rows of benchmarks/token_streams.py: what is timed, how often, and against what bar.

Both sides of a row run in this process, in turns, and a figure is the median over the turns; memory alone is counted
in processes of its own. What a side reads is made outside its time, and what both make is compared.
"""

import contextlib
import filecmp
import os
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import packing_peers
from benchmarks import token_stream_files as files
from benchmarks import token_stream_ours as ours
from benchmarks import token_stream_peers as megatron
from benchmarks.process_memory import in_fresh_process
from mindllm_engine.corpus.balanced_sample import SampledSource, balanced_sample
from mindllm_engine.corpus.tokenizer import Tokenizer, train_tokenizer

SEQ_LEN, BATCH, SOURCES = 2048, 16, 18
DOCUMENTS, CORPUS_DOCUMENTS, WRITTEN_DOCUMENTS = 20_000_000, 2_000_000, 500_000
PACKED_DOCUMENTS, LARGEST = 2_000_000, 1_000_000_000
SHORT, PIECE = 8, 100_000  # tokens of a document where only their number counts, and how many are given at a time
EPOCH_SHARE = 0.99  # of one epoch is planned, so that neither side has to order a second
READS, BATCHES, LEAST_CORPUS = 2000, 300, 6000
STEP_SECONDS = 5e-3
RANKS = 8
SECONDS_BAR, NODE_BYTES_BAR = 60, 200e6
RANK_LIMIT_BYTES = 4 << 30
FLAT_BYTES = 32 << 20
VOCAB, SMALL_VOCAB, SMALL_TEXT, TOKENIZER_TEXT = 16_384, 800, 400_000, 16_000_000
MEMORY_DISK = Path("/dev/shm")

Row = dict[str, Any]


@dataclass
class Bench:
    """What the rows share.

    Attributes:
        folder: where files go; each row deletes its own.
        scale: sizes are multiplied by it.
        repetitions: turns of each side.
    """

    folder: Path
    scale: float
    repetitions: int

    def scaled(self, size: int, least: int = 1) -> int:
        return max(least, round(size * self.scale))

    @contextlib.contextmanager
    def own_folder(self, base: Path | None = None) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="token_streams_", dir=base or self.folder) as folder:
            yield Path(folder)

    @cached_property
    def corpus(self) -> Path:
        """A token file of random ids that the page cache holds; it stays to the end of the run."""
        documents = self.scaled(CORPUS_DOCUMENTS, LEAST_CORPUS)
        say(f"writing a corpus of {documents:,} documents of random ids")
        prefix = self.folder / "corpus"
        files.write_random_corpus(prefix, documents)
        shutil.copyfile(f"{prefix}.bin", os.devnull)
        return prefix


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def row(
    name: str, unit: str, ours: float | None, peer: float | None, peer_name: str, bar: float | None, **more: Any
) -> Row:
    """A line of the table: `ratio` is peer / ours for what should be little, and ours / peer for `.../s`."""
    ratio = None
    if ours is not None and peer is not None:
        ratio = ours / peer if unit.endswith("/s") else peer / ours
    holds = None if ratio is None or bar is None else ratio >= bar
    figures = {"ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ratio, "bar": bar, "holds": holds}
    return {"name": name, "unit": unit, **figures, "reason": None, **more}


def take_turns(sides: dict[str, Callable[[], float]], repetitions: int) -> dict[str, float]:
    """The median of what each side returns; the sides take turns."""
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, side in sides.items():
            figures[name].append(side())
    say("  " + "; ".join(f"{name}: {', '.join(f'{figure:.4g}' for figure in each)}" for name, each in figures.items()))
    return {name: median(each) for name, each in figures.items()}


def seconds_of(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """This thread, and those it starts, on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


# -- From files to the first batch; memory for addressing ---


def addressing_rows(bench: Bench) -> Iterator[Row]:
    """Opening, planning and the first batch of a mixture; what is held in memory for it."""
    with bench.own_folder() as folder:
        documents = bench.scaled(DOCUMENTS)
        say(f"writing the indices of {documents:,} documents")
        prefixes = files.write_hollow_sources(folder, documents, files.unequal_shares(SOURCES))
        (folder / "warm").mkdir()
        warm_up = files.write_hollow_sources(folder / "warm", 1000, [1.0])
        tokens = [float(os.path.getsize(f"{prefix}.bin") / files.ITEM_BYTES) for prefix in prefixes]
        samples = int(EPOCH_SHARE * sum(tokens)) // SEQ_LEN
        what = f"{documents:,} documents, {sum(tokens) / 1e9:.3g}B tokens, {SOURCES} sources (sizes fall as 1/rank)"

        def ours_side() -> float:
            return seconds_of(lambda: ours.first_batch(ours.open_loader(prefixes, samples, SEQ_LEN), BATCH))

        def peer_side(threads: int) -> float:
            return seconds_of(
                lambda: megatron.first_batch(megatron.build(prefixes, tokens, samples, SEQ_LEN, threads), BATCH)
            )

        say("from files to the first batch")
        sides = {f"megatron-core, {n} threads": partial(peer_side, n) for n in megatron.BUILDER_THREADS}
        figures = take_turns({"ours": ours_side, **sides}, bench.repetitions)
        best = min(sides, key=figures.__getitem__)
        yield row(f"from files to first batch: {what}", "s", figures["ours"], figures[best], best, 5)

        say("memory for addressing")
        loader = ours.open_loader(prefixes, samples, SEQ_LEN)
        ours.first_batch(loader, BATCH)
        arrays = megatron.index_bytes(megatron.build(prefixes, tokens, samples, SEQ_LEN))
        peer_name = "document, sample, shuffle, blending index"
        yield row(f"memory for addressing: {what}", "MB", loader.addressing_bytes() / 1e6, arrays / 1e6, peer_name, 100)
        _, grown = in_fresh_process(ours.rank_memory, prefixes, warm_up, samples, SEQ_LEN)
        peer_grown = in_fresh_process(megatron.rank_memory, prefixes, warm_up, tokens, samples, SEQ_LEN)
        name = "the same by growth of a process's anonymous memory (what the allocator rounds up included)"
        yield row(name, "MB", max(grown, 1) / 1e6, peer_grown / 1e6, "megatron-core", None)


# -- Reading ---


def random_read_rows(bench: Bench) -> Iterator[Row]:
    """Samples in random order from the page cache, on one core."""
    with one_core():
        samples = int(EPOCH_SHARE * os.path.getsize(f"{bench.corpus}.bin")) // files.ITEM_BYTES // SEQ_LEN
        dataset = megatron.build([bench.corpus], None, samples, SEQ_LEN)
        loader = ours.open_loader([bench.corpus], samples, SEQ_LEN)
        chosen = np.random.default_rng(1).permutation(samples)[: bench.scaled(READS, 64)]
        chosen = chosen[: len(chosen) // BATCH * BATCH]

        def rate(read: Callable[[Any], Any], items: Iterable[Any]) -> float:
            # Nothing is kept, as in training: memory is used again.
            return len(chosen) / seconds_of(lambda: deque(map(read, items), maxlen=0))

        numbers, singles, micro_batches = chosen.tolist(), chosen.reshape(-1, 1), chosen.reshape(-1, BATCH)
        sides = {
            "megatron-core": lambda: rate(dataset.__getitem__, numbers),
            "ours": lambda: rate(loader.read, singles),
            "ours by micro-batch": lambda: rate(loader.read, micro_batches),
        }
        say("random samples")
        figures = take_turns(sides, bench.repetitions)
    size = f"{os.path.getsize(f'{bench.corpus}.bin') / 1e9:.2g} GB in the page cache, one core"
    peer, name = figures["megatron-core"], f"random samples of {SEQ_LEN + 1} tokens"
    yield row(f"{name}, one at a time: {size}", "samples/s", figures["ours"], peer, "GPTDataset.__getitem__", 10)
    by_batch = figures["ours by micro-batch"]
    yield row(f"{name}, ours {BATCH} at a time: {size}", "samples/s", by_batch, peer, "GPTDataset.__getitem__", None)


def delivery_rows(bench: Bench) -> Iterator[Row]:
    """How long a step waits for its micro-batch."""
    samples = int(EPOCH_SHARE * os.path.getsize(f"{bench.corpus}.bin")) // files.ITEM_BYTES // SEQ_LEN
    dataset = megatron.build([bench.corpus], None, samples, SEQ_LEN)
    loader = ours.open_loader([bench.corpus], samples, SEQ_LEN)
    count = bench.scaled(BATCHES, 20)
    matrix = torch.randn(256, 256)
    products = max(1, round(STEP_SECONDS / seconds_of(lambda: [matrix @ matrix for _ in range(200)]) * 200))

    def compute() -> None:
        for _ in range(products):
            matrix @ matrix

    def idle() -> None:
        pass

    for step, doing, bar in ((idle, "nothing", 5), (compute, f"{STEP_SECONDS * 1e3:g} ms of computing", None)):
        say(f"micro-batches to a step of {doing}")
        sides = {
            f"DataLoader, {megatron.LOADER_WORKERS} workers, prefetch_factor {factor}": partial(
                waited, partial(megatron.batches, dataset, BATCH, factor), count, step
            )
            for factor in megatron.PREFETCH_FACTORS
        }
        ours_side = partial(waited, partial(ours.batches, loader, BATCH), count, step)
        figures = take_turns({"ours": ours_side, **sides}, bench.repetitions)
        best = min(sides, key=figures.__getitem__)
        name = f"waiting for a micro-batch of {BATCH} x {SEQ_LEN + 1}, steps of {doing}"
        yield row(name, "ms", figures["ours"], figures[best], best, bar)


def waited(start: Callable[[], Iterator[Any]], count: int, step: Callable[[], None]) -> float:
    """Milliseconds that a step waits for its batch: the mean of `count`, after as many have been taken as a loader may
    have had ready."""
    taken_before = 2 * megatron.LOADER_WORKERS * max(megatron.PREFETCH_FACTORS)
    batches = start()
    waiting = 0.0
    for number in range(taken_before + count):
        begin = time.perf_counter()
        next(batches)
        if number >= taken_before:
            waiting += time.perf_counter() - begin
        step()
    return waiting / count * 1e3


# -- Writing ---


def writing_rows(bench: Bench) -> Iterator[Row]:
    """Appending arrays, finishing many documents, and the memory of it."""
    yield from appending_rows(bench)
    with bench.own_folder() as folder:
        yield from finishing_rows(bench, folder)
        yield memory_of_writing(bench, folder)


def appending_rows(bench: Bench) -> Iterator[Row]:
    in_memory = os.access(MEMORY_DISK, os.W_OK)
    tokens, lengths = files.random_documents(files.PIECE, np.random.default_rng(2))
    calls = bench.scaled(WRITTEN_DOCUMENTS // files.PIECE)
    total = calls * len(tokens)
    with bench.own_folder(MEMORY_DISK if in_memory else None) as folder:

        def ours_side() -> float:
            with ours.open_builder(folder / "ours") as builder:
                seconds = seconds_of(lambda: [builder.append_many(tokens, lengths, 0) for _ in range(calls)])
            return total / seconds / 1e6

        def peer_side(add: Callable[..., None]) -> float:
            builder = megatron.open_builder(folder / "peer")
            seconds = seconds_of(lambda: [add(builder, tokens, lengths) for _ in range(calls)])
            builder.finalize(str(folder / "peer.idx"))
            return total / seconds / 1e6

        sides = {
            "ours": ours_side,
            "one by one": lambda: peer_side(megatron.add_one_by_one),
            "in bulk": lambda: peer_side(megatron.add_in_bulk),
        }
        say("writing arrays")
        figures = take_turns(sides, bench.repetitions)
        require_same_files(folder / "ours", folder / "peer")
    where = "a disk in memory" if in_memory else "disk"
    name = f"writing {total / 1e6:.3g}M tokens from arrays to {where} (ours with checksums)"
    unit, by_call = "M tokens/s", "add_document, a call a document"
    yield row(name, unit, figures["ours"], figures["one by one"], by_call, 3)
    by_bulk = "add_document, a call for many, then document_indices set by hand"
    yield row(name, unit, figures["ours"], figures["in bulk"], by_bulk, None)


def finishing_rows(bench: Bench, folder: Path) -> Iterator[Row]:
    piece = bench.scaled(PIECE, 100)
    documents = max(1, bench.scaled(DOCUMENTS) // piece) * piece
    tokens, lengths = np.zeros(piece * SHORT, np.uint16), np.full(piece, SHORT)
    flushed: list[float] = []

    def ours_side() -> float:
        with ours.open_builder(folder / "ours") as builder:
            for _ in range(documents // piece):
                builder.append_many(tokens, lengths, 0)
            begin = time.perf_counter()
        return time.perf_counter() - begin

    def peer_side() -> float:
        builder = megatron.open_builder(folder / "peer")
        for _ in range(documents // piece):
            megatron.add_in_bulk(builder, tokens, lengths)
        seconds = seconds_of(lambda: builder.finalize(str(folder / "peer.idx")))
        flushed.append(seconds + seconds_of(lambda: megatron.flush_to_disk(folder / "peer")))
        return seconds

    say(f"finishing {documents:,} documents")
    figures = take_turns({"ours": ours_side, "megatron-core": peer_side}, min(3, bench.repetitions))
    require_same_files(folder / "ours", folder / "peer")
    name = f"finishing a file of {documents:,} documents (ours with checksums, flushed to disk)"
    yield row(name, "s", figures["ours"], figures["megatron-core"], "IndexedDatasetBuilder.finalize", 3)
    yield row(name, "s", figures["ours"], median(flushed), "the same, flushed to disk as well", None)


def memory_of_writing(bench: Bench, folder: Path) -> Row:
    say("memory of writing")
    few, many = bench.scaled(DOCUMENTS // 10), bench.scaled(DOCUMENTS)
    piece = bench.scaled(PIECE, 100)
    peaks = {
        (side, documents): in_fresh_process(peak, folder / side, max(piece, documents), SHORT, piece) / 1e6
        for side, peak in (("ours", ours.peak_of_writing), ("peer", megatron.peak_of_writing))
        for documents in (few, many)
    }
    name = f"peak memory of writing {many:,} documents (of {few:,}: ours {peaks['ours', few]:.0f} MB, "
    name += f"the peer's {peaks['peer', few]:.0f} MB)"
    flat = (peaks["ours", many] - peaks["ours", few]) * 1e6 < FLAT_BYTES
    reason = f"holds if ours grows by less than {FLAT_BYTES >> 20} MiB"
    figures = (max(peaks["ours", many], 1e-3), max(peaks["peer", many], 1e-3))
    return row(name, "MB", *figures, "IndexedDatasetBuilder", None, holds=flat, reason=reason)


def require_same_files(a: Path, b: Path) -> None:
    for suffix in (".bin", ".idx"):
        if not filecmp.cmp(f"{a}{suffix}", f"{b}{suffix}", shallow=False):
            raise ValueError(f"{a}{suffix} and {b}{suffix} differ: the two sides did not write the same")


# -- Tokenising ---


def tokenizing_rows(bench: Bench) -> Iterator[Row]:
    """JSON lines of real text to token files, on two cores, start of processes included."""
    with bench.own_folder() as folder:
        texts = {language: folder / f"{language}.jsonl" for language in ("zh", "en")}
        if not all(files.write_plain_text(language, path, scale=bench.scale) for language, path in texts.items()):
            reason = f"no text under {files.text_folder()}; set MINDLLM_DATA"
            yield row("tokenising real text", "MB/s", None, None, "preprocess_data", 1.5, reason=reason)
            return
        tokenizer = train_bench_tokenizer(texts, folder / "tokenizer.model")
        for language, path in texts.items():
            yield tokenizing_row(bench, folder, path, tokenizer, language)


def train_bench_tokenizer(texts: dict[str, Path], model: Path) -> Tokenizer:
    size = sum(path.stat().st_size for path in texts.values())
    vocab_size = VOCAB if size > SMALL_TEXT else SMALL_VOCAB
    say(f"training a tokenizer of {vocab_size:,} ids")
    sources = [SampledSource(language, language, [str(path)]) for language, path in texts.items()]
    return train_tokenizer(balanced_sample(sources, TOKENIZER_TEXT, seed=0), vocab_size, model)


def tokenizing_row(bench: Bench, folder: Path, text: Path, tokenizer: Tokenizer, language: str) -> Row:
    megabytes = text.stat().st_size / 1e6
    special = (tokenizer.bos_id, tokenizer.eos_id)

    def ours_side() -> float:
        with bench.own_folder(folder) as output:
            seconds = seconds_of(lambda: ours.tokenize(text, output, tokenizer.model_path, language))
            for suffix in (".bin", ".idx"):
                (output / f"{language}{suffix}").replace(folder / f"ours{suffix}")
        return megabytes / seconds

    def peer_side(chunk_size: int) -> float:
        preprocess = partial(megatron.preprocess, text, folder / "peer", tokenizer.model_path, special, chunk_size)
        return megabytes / seconds_of(preprocess)

    say(f"tokenising {language}")
    sides = {f"preprocess_data, chunks of {size}": partial(peer_side, size) for size in megatron.CHUNK_SIZES}
    figures = take_turns({"ours": ours_side, **sides}, bench.repetitions)
    require_same_files(folder / "ours", folder / "peer")
    best = max(sides, key=figures.__getitem__)
    name = f"tokenising {megabytes:.3g} MB of {language} JSON lines on two cores, identical ids"
    return row(name, "MB/s", figures["ours"], figures[best], best, 1.5)


# -- Packing ---


def packing_rows(bench: Bench) -> Iterator[Row]:
    """Best-fit packing, measured by benchmarks/packing_peers.py."""
    say("best-fit packing")
    yield from packing_peers.packing_rows(bench.scaled(PACKED_DOCUMENTS, 1000), repetitions=min(3, bench.repetitions))


# -- As large as it gets ---


def largest_rows(bench: Bench) -> Iterator[Row]:
    """A plan over as many documents as the paper's corpus has, ours alone."""
    with bench.own_folder() as folder:
        room = shutil.disk_usage(folder).free * 0.8 / files.INDEX_BYTES
        documents = bench.scaled(min(LARGEST, int(room / bench.scale)))
        say(f"writing the indices of {documents:,} documents, {documents * files.INDEX_BYTES / 1e9:.3g} GB")
        prefixes = files.write_hollow_sources(folder, documents, [1 / SOURCES] * SOURCES)
        (folder / "warm").mkdir()
        warm_up = files.write_hollow_sources(folder / "warm", 1000, [1.0])
        tokens = sum(os.path.getsize(f"{prefix}.bin") for prefix in prefixes) // files.ITEM_BYTES
        samples = int(EPOCH_SHARE * tokens) // SEQ_LEN
        what = f"{documents:,} documents, {tokens / 1e9:.3g}B tokens, {SOURCES} sources"
        grown = 0
        for cache in ("cold", "warm"):
            say(f"from files to first batch with a {cache} page cache")
            turns = []
            try:
                for _ in range(min(3, bench.repetitions)):
                    if cache == "cold":
                        files.drop_from_page_cache(prefixes)
                    seconds, grown = in_fresh_process(
                        ours.rank_memory, prefixes, warm_up, samples, SEQ_LEN, limit_bytes=RANK_LIMIT_BYTES
                    )
                    turns.append(seconds)
            except MemoryError:
                reason = f"a rank needs more than {RANK_LIMIT_BYTES / 1e9:.2g} GB"
                yield row(what, "s", None, None, "none", None, holds=False, reason=reason)
                return
            say("  " + ", ".join(f"{seconds:.4g}" for seconds in turns))
            holds = median(turns) < SECONDS_BAR
            name = f"from files to first batch, {cache} page cache: {what}"
            alone = "ours alone; the bar is seconds"
            yield row(name, "s", median(turns), None, "none", SECONDS_BAR, holds=holds, reason=alone)
        holds = grown * RANKS < NODE_BYTES_BAR
        name = f"growth of anonymous memory of {RANKS} ranks: {what}"
        alone = f"ours alone, {RANKS} times that of one rank; the bar is megabytes"
        yield row(name, "MB", grown * RANKS / 1e6, None, "none", NODE_BYTES_BAR / 1e6, holds=holds, reason=alone)


ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "addressing": addressing_rows,
    "random_reads": random_read_rows,
    "delivery": delivery_rows,
    "writing": writing_rows,
    "tokenizing": tokenizing_rows,
    "packing": packing_rows,
    "largest": largest_rows,
}

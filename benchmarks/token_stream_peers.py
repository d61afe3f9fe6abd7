"""Megatron's side of benchmarks/token_streams.py: megatron-core's own code, set up as fast as it goes.

Nothing is cached on disk (`path_to_cache=""`, which neither looks for nor writes files); the .bin is mapped; no
attention mask is made (its default makes a dense one for each sample); ids within a sample are not reset or masked.
`preprocess` is the loop of Megatron-LM's tools/preprocess_data.py, which PyPI's package leaves out.
"""

import json
import logging
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from megatron.core.tokenizers.text.libraries.null_tokenizer import NullTokenizer
from torch.utils.data import DataLoader, default_collate

from benchmarks.process_memory import anonymous_bytes, forget_peak, peak_bytes, resident_bytes
from benchmarks.token_stream_files import DTYPE, VOCAB, Lengths

BUILDER_THREADS = (1, 2)
PREFETCH_FACTORS = (2, 4, 8)
CHUNK_SIZES = (32, 128)  # lines handed to a process at a time; Megatron's is 32
LOADER_WORKERS = TOKENIZING_PROCESSES = 2

logging.getLogger("megatron").setLevel(logging.ERROR)


def build(prefixes: list[Path], weights: list[float] | None, samples: int, seq_len: int, threads: int = 1) -> Any:
    """The dataset of a training run: a GPTDataset for one source, a BlendedDataset of them for several."""
    blend = ([str(prefix) for prefix in prefixes], weights)
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=seq_len,
        blend_per_split=[blend, None, None],
        num_dataset_builder_threads=threads,
        path_to_cache="",
        mmap_bin_files=True,
        tokenizer=NullTokenizer(VOCAB),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]


def first_batch(dataset: Any, batch: int) -> dict[str, torch.Tensor]:
    """The first samples of a dataset, as a DataLoader without processes collates them."""
    collated: dict[str, torch.Tensor] = default_collate([dataset[number] for number in range(batch)])
    return collated


def index_bytes(dataset: Any) -> int:
    """Bytes of the document, sample, shuffle and blending indices; of nothing else, though more is held."""
    blended = isinstance(dataset, BlendedDataset)
    arrays = [dataset.dataset_index, dataset.dataset_sample_index] if blended else []
    for part in dataset.datasets if blended else [dataset]:
        arrays += [part.document_index, part.sample_index, part.shuffle_index]
    return sum(array.nbytes for array in arrays)


def rank_memory(prefixes: list[Path], warm_up: list[Path], weights: list[float], samples: int, seq_len: int) -> int:
    """Bytes of anonymous memory that building the dataset adds to the process; another has been built before."""
    warm = build(warm_up, None, 16, seq_len)
    first_batch(warm, 16)
    before = anonymous_bytes()
    dataset = build(prefixes, weights, samples, seq_len)
    first_batch(dataset, 16)
    return anonymous_bytes() - before


def batches(dataset: Any, batch: int, prefetch_factor: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches in the dataset's order from torch's DataLoader."""
    return iter(DataLoader(dataset, batch, num_workers=LOADER_WORKERS, prefetch_factor=prefetch_factor, drop_last=True))


def open_builder(prefix: Path) -> IndexedDatasetBuilder:
    return IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.dtype(DTYPE).type)


def add_one_by_one(builder: IndexedDatasetBuilder, tokens: Any, lengths: Lengths) -> None:
    """Documents lying back to back, each by a call, as all of Megatron's own tools do it."""
    start = 0
    for length in lengths.tolist():
        builder.add_document(tokens[start : start + length], [length])
        start += length


def add_in_bulk(builder: IndexedDatasetBuilder, tokens: Any, lengths: Lengths) -> None:
    """Documents lying back to back, by one call, which makes one document of them; then its list of documents, which
    no method of the builder extends by several, is put right."""
    documents = len(builder.document_indices) - 1
    builder.add_document(tokens, lengths.tolist())
    builder.document_indices[-1:] = range(documents + 1, documents + len(lengths) + 1)


def peak_of_writing(prefix: Path, documents: int, tokens_each: int, piece: int) -> int:
    """By how many bytes the memory of this process grows at its peak while it writes a token file."""
    tokens, lengths = np.zeros(piece * tokens_each, np.uint16), np.full(piece, tokens_each)
    forget_peak()
    before = resident_bytes()
    builder = open_builder(prefix)
    for _ in range(documents // piece):
        add_in_bulk(builder, tokens, lengths)
    builder.finalize(f"{prefix}.idx")
    return peak_bytes() - before


def flush_to_disk(prefix: Path) -> None:
    """What the builder leaves to the system's own time, and ours waits for."""
    for suffix in (".bin", ".idx"):
        descriptor = os.open(f"{prefix}{suffix}", os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def preprocess(path: Path, prefix: Path, model: Path, special: tuple[int, int], chunk_size: int) -> None:
    """JSON lines to a token file: every document the ids of its text between `special`, the ids of `<s>`, `</s>`."""
    builder = open_builder(prefix)
    with (
        path.open(encoding="utf-8") as lines,
        multiprocessing.get_context("fork").Pool(
            TOKENIZING_PROCESSES, _Encoder.start, (str(model), special)
        ) as processes,
    ):
        for ids, sentence_lengths, _ in processes.imap(_Encoder.encode, lines, chunk_size):
            for key in ids:
                builder.add_document(ids[key], sentence_lengths[key])
    builder.finalize(f"{prefix}.idx")


class _Encoder:
    """Holds what a process of `preprocess` needs, as Megatron's class of this name does."""

    processor: Any = None
    special: tuple[int, int] = (0, 0)

    @classmethod
    def start(cls, model: str, special: tuple[int, int]) -> None:
        cls.processor = sentencepiece.SentencePieceProcessor(model_file=model)
        cls.special = special

    @classmethod
    def encode(cls, line: str) -> tuple[dict[str, list[int]], dict[str, list[int]], int]:
        data = json.loads(line)
        ids = [cls.special[0], *cls.processor.encode(data["text"]), cls.special[1]]
        return {"text": ids}, {"text": [len(ids)]}, len(line)


def read_documents(prefix: Path) -> IndexedDataset:
    """A token file as Megatron reads it, document by document."""
    return IndexedDataset(str(prefix))

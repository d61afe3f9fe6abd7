"""The loader against a brute-force reading of the same files: every token, border, position and source."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from mindllm_engine.data.loader import IGNORED, Loader, heldout_batches
from mindllm_engine.data.plan import BlockConfig, Plan, SourceFacts
from mindllm_engine.data.stream import SourceStream
from mindllm_engine.data.token_file_builder import TokenFileBuilder
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import DataError

VOCAB = 1000
SEQ_LEN = 16


def write_source(folder: Path, name: str, lengths: list[int], seed: int, top: int = VOCAB) -> TokenFile:
    """A token file of random documents of these lengths, each beginning with token 1."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, top, sum(lengths))
    starts = np.cumsum([0, *lengths[:-1]])
    tokens[[start for start, length in zip(starts, lengths, strict=True) if length]] = 1
    prefix = folder / name
    with TokenFileBuilder(
        prefix, "uint16", name=name, lang="en", category="web", tokenizer_hash="0" * 16, vocab_size=top
    ) as builder:
        builder.append_many(tokens, np.array(lengths), text_bytes=3 * sum(lengths))
    return TokenFile(prefix)


def random_lengths(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 40, count).tolist()


def stream_of_epochs(file: TokenFile, stream: SourceStream, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of so many epochs one document after the other, and whether each begins a document."""
    tokens, begins = [], []
    for epoch in range(epochs):
        order, _ = stream._order(epoch)
        assert sorted(order.tolist()) == list(range(file.documents))
        for document in order:
            ids = file.document(int(document)).astype(np.int64)
            tokens.append(ids)
            begins.append(np.arange(len(ids)) == 0)
    return np.concatenate(tokens), np.concatenate(begins)


def test_stream_reads_every_token_of_every_epoch(tmp_path: Path) -> None:
    file = write_source(tmp_path, "a", [0, 5, 0, 1, *random_lengths(60, 1), 0], seed=1)
    stream = SourceStream(file, SEQ_LEN, VOCAB, key=9)
    tokens, begins = stream_of_epochs(file, stream, epochs=4)
    for sample in range((len(tokens) - 1) // SEQ_LEN):
        got, borders = stream.read(sample)
        window = slice(sample * SEQ_LEN, sample * SEQ_LEN + SEQ_LEN + 1)
        assert np.array_equal(got, tokens[window])
        expected = np.flatnonzero(begins[window])
        assert borders.tolist() == expected[expected > 0].tolist()


def test_samples_can_be_longer_than_the_source_and_read_in_any_order(tmp_path: Path) -> None:
    file = write_source(tmp_path, "a", [3, 2, 2], seed=1)
    stream = SourceStream(file, SEQ_LEN, VOCAB, key=9)
    forward = [stream.read(sample)[0].tolist() for sample in range(20)]
    again = SourceStream(file, SEQ_LEN, VOCAB, key=9)
    assert [again.read(sample)[0].tolist() for sample in reversed(range(20))] == forward[::-1]


def test_batches_are_packed_right(tmp_path: Path) -> None:
    files = [write_source(tmp_path, name, random_lengths(80, seed), seed) for seed, name in enumerate("abc")]
    facts = [SourceFacts(name, "web", file.tokens) for name, file in zip("abc", files, strict=True)]
    plan = Plan(facts, [BlockConfig(tokens=100 * SEQ_LEN)], SEQ_LEN, 7, 0)
    loader = Loader(plan, files, VOCAB, rank=0, world_size=1)
    for batch in loader.micro_batches(first_sample=0, global_batch=96, micro_batch=8):
        assert (
            batch.tokens.shape
            == batch.targets.shape
            == batch.positions.shape
            == batch.source_ids.shape
            == (8 * SEQ_LEN,)
        )
        assert batch.cu_seqlens[0] == 0
        assert batch.cu_seqlens[-1] == 8 * SEQ_LEN
        assert set(range(0, 8 * SEQ_LEN, SEQ_LEN)) <= set(batch.cu_seqlens.tolist()), "a document ends with its row"
        bounds = batch.cu_seqlens.tolist()
        for begin, end in itertools.pairwise(bounds):
            assert end > begin
            assert batch.positions[begin:end].tolist() == list(range(end - begin))
            assert torch.equal(batch.targets[begin : end - 1], batch.tokens[begin + 1 : end])
            inside_row = end % SEQ_LEN != 0
            if inside_row:
                assert batch.targets[end - 1] == IGNORED
                assert batch.tokens[end] == 1, "a border is where a document begins"
        beginnings = torch.nonzero(batch.tokens == 1).flatten().tolist()
        assert set(beginnings) <= set(bounds)


def test_order_does_not_depend_on_ranks_or_micro_batches(tmp_path: Path) -> None:
    files = [write_source(tmp_path, name, random_lengths(80, seed), seed) for seed, name in enumerate("ab")]
    facts = [SourceFacts(name, "web", file.tokens) for name, file in zip("ab", files, strict=True)]
    plan = Plan(facts, [BlockConfig(tokens=48 * SEQ_LEN)], SEQ_LEN, 7, 0)

    def rows_of_step(world_size: int, micro_batch: int) -> set[tuple[int, ...]]:
        rows = set()
        for rank in range(world_size):
            for batch in Loader(plan, files, VOCAB, rank, world_size).micro_batches(24, 24, micro_batch):
                rows |= {tuple(row) for row in batch.tokens.view(-1, SEQ_LEN).tolist()}
        return rows

    expected = rows_of_step(1, 24)
    assert len(expected) == 24
    assert all(rows_of_step(world, micro) == expected for world, micro in ((1, 1), (2, 3), (3, 8), (4, 2)))


@pytest.mark.parametrize("max_tokens", [10**9, 333])
def test_heldout_scores_each_token_once(tmp_path: Path, max_tokens: int) -> None:
    file = write_source(tmp_path, "a", [0, *random_lengths(50, 4), 0, 7], seed=4)
    batches = heldout_batches(file, 3, SEQ_LEN, micro_batch=4, max_tokens=max_tokens)
    scored = torch.cat([batch.targets[batch.targets != IGNORED] for batch in batches]).tolist()
    tokens = file.read(0, min(file.tokens, max_tokens)).tolist()
    assert scored == [token for position, token in enumerate(tokens) if position and token != 1]
    assert all((batch.source_ids == 3).all() for batch in batches)


def test_id_beyond_the_vocabulary_names_the_document(tmp_path: Path) -> None:
    file = write_source(tmp_path, "a", [20, 20], seed=1, top=VOCAB)
    stream = SourceStream(file, SEQ_LEN, vocab_size=5, key=1)
    with pytest.raises(DataError, match=r"a\.bin: token id \d+ at position \d+ of document 0"):
        stream.read(0)

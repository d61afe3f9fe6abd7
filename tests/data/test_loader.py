"""The loader against a brute-force reading of the same files: every token, border, position and source, in any order
of steps and ranks, ahead of need or not, and what it says when a file fails under it."""

import gc
import itertools
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from mindllm_engine.data.loader import IGNORED, READ_AHEAD, Batch, Loader, heldout_batches, heldout_tokens
from mindllm_engine.data.plan import BlockConfig, Packing, Plan, SourceFacts
from mindllm_engine.data.stream import packed_windows
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


def random_lengths(count: int, seed: int, longest: int = 40) -> list[int]:
    return np.random.default_rng(seed).integers(0, longest, count).tolist()


def write_sources(folder: Path, names: str = "abc", count: int = 80) -> list[TokenFile]:
    return [write_source(folder, name, random_lengths(count, seed), seed) for seed, name in enumerate(names)]


def make_plan(files: list[TokenFile], blocks: list[BlockConfig], packing: Packing = "contiguous") -> Plan:
    seq_lens = {block.seq_len or SEQ_LEN for block in blocks}
    facts = []
    for file in files:
        samples = {n: packed_windows(file, n).samples for n in seq_lens} if packing == "best_fit" else {}
        facts.append(SourceFacts.of(file.manifest.name, file.manifest, samples))
    return Plan(facts, blocks, SEQ_LEN, 7, 0, packing)


def make_loader(plan: Plan, files: list[TokenFile], rank: int = 0, world_size: int = 1, verify: bool = False) -> Loader:
    return Loader(plan, files, VOCAB, rank, world_size, verify)


def expected_row(loader: Loader, files: list[TokenFile], sample: int) -> tuple[int, list[int], list[int], list[int]]:
    """Source, tokens, targets and the lengths of the pieces of one sample, in plain Python."""
    source, stretches = loader._reader.find(sample)
    seq_len = loader.plan.tokens_in(sample, 1)
    row: list[int | None] = []
    begins = []
    for document, in_document, _, count in stretches.tolist():
        begins.append(len(row))
        row += files[source].document(document)[in_document : in_document + count].tolist()
    if len(row) < seq_len + 1:
        begins.append(len(row))
        row += [None] * (seq_len + 1 - len(row))
    targets = [IGNORED if place + 1 in begins or row[place + 1] is None else row[place + 1] for place in range(seq_len)]
    begins = [begin for begin in begins if begin < seq_len]
    pieces = [end - begin for begin, end in itertools.pairwise([*begins, seq_len])]
    return source, [token or 0 for token in row[:seq_len]], targets, pieces


def assert_batch(batch: Batch, rows: list[tuple[int, list[int], list[int], list[int]]]) -> None:
    assert batch.tokens.tolist() == [token for _, tokens, _, _ in rows for token in tokens]
    assert batch.targets.tolist() == [target for _, _, targets, _ in rows for target in targets]
    assert batch.source_ids.tolist() == [source for source, tokens, _, _ in rows for _ in tokens]
    pieces = [length for _, _, _, lengths in rows for length in lengths]
    assert batch.cu_seqlens.tolist() == np.cumsum([0, *pieces]).tolist()
    assert batch.positions.tolist() == [place for length in pieces for place in range(length)]
    assert batch.cu_seqlens.dtype == torch.int32


@pytest.mark.parametrize("packing", ["contiguous", "best_fit"])
@pytest.mark.parametrize("order", ["shuffled", "blocked", "chunked"])
def test_batches_hold_what_the_files_hold(tmp_path: Path, packing: Packing, order: str) -> None:
    files = write_sources(tmp_path)
    blocks = [
        BlockConfig(tokens=40 * SEQ_LEN, order=order),
        BlockConfig(tokens=20 * 24, seq_len=24, order=order, weights={"a": 1, "c": 2}),
    ]
    plan = make_plan(files, blocks, packing)
    loader = make_loader(plan, files)
    read = 0
    for batch in loader.micro_batches(first_sample=0, global_batch=60, micro_batch=3):
        assert_batch(batch, [expected_row(loader, files, sample) for sample in range(read, read + 3)])
        read += 3
    assert read == 60
    mixed = np.array([39, 40, 2])  # two lengths in one batch
    assert_batch(loader.read(mixed), [expected_row(loader, files, sample) for sample in mixed.tolist()])


def test_one_epoch_of_best_fit_predicts_each_token_once(tmp_path: Path) -> None:
    files = [write_source(tmp_path, "a", random_lengths(300, 3, longest=60), seed=3)]
    samples = packed_windows(files[0], SEQ_LEN).samples
    plan = make_plan(files, [BlockConfig(tokens=samples * SEQ_LEN, max_epochs=1.0)], "best_fit")
    batch = make_loader(plan, files).read(np.arange(samples))
    found = sorted(batch.targets[batch.targets != IGNORED].tolist())
    documents = [files[0].document(number) for number in range(files[0].documents)]
    assert found == sorted(token for document in documents for token in document[1:].tolist())


def test_order_does_not_depend_on_ranks_or_micro_batches(tmp_path: Path) -> None:
    files = write_sources(tmp_path, "ab")
    plan = make_plan(files, [BlockConfig(tokens=48 * SEQ_LEN)])

    def rows_of_step(world_size: int, micro_batch: int) -> list[tuple[int, ...]]:
        """In the order of the samples."""
        rows = {}
        for rank in range(world_size):
            batches = make_loader(plan, files, rank, world_size).micro_batches(24, 24, micro_batch)
            for number, batch in enumerate(batches):
                first = rank * micro_batch + number * world_size * micro_batch
                rows |= {
                    first + i: tuple(row) for i, row in enumerate(batch.tokens.view(micro_batch, SEQ_LEN).tolist())
                }
        return [rows[i] for i in range(24)]

    expected = rows_of_step(1, 24)
    assert all(rows_of_step(world, micro) == expected for world, micro in ((1, 1), (2, 3), (3, 8), (4, 2)))


def test_steps_of_changing_size_follow_the_plan(tmp_path: Path) -> None:
    """What was read ahead for steps that do not come is dropped, and the samples go on without a gap."""
    files = write_sources(tmp_path)
    plan = make_plan(files, [BlockConfig(tokens=200 * SEQ_LEN)])
    loader = make_loader(plan, files)
    rows = []
    steps = [(0, 8, 2), (8, 8, 2), (16, 24, 4), (40, 24, 4), (64, 12, 6), (76, 4, 4), (80, 120, 8)]
    for first, global_batch, micro_batch in steps:
        for batch in loader.micro_batches(first, global_batch, micro_batch):
            rows += batch.tokens.view(-1, SEQ_LEN).tolist()
    assert rows == make_loader(plan, files).read(np.arange(200)).tokens.view(-1, SEQ_LEN).tolist()
    again = next(make_loader(plan, files, rank=1, world_size=2).micro_batches(100, 8, 4))
    assert again.tokens.view(-1, SEQ_LEN).tolist() == rows[104:108], "any sample can be the first"


def test_batches_stay_when_others_are_read(tmp_path: Path) -> None:
    files = write_sources(tmp_path)
    plan = make_plan(files, [BlockConfig(tokens=100 * SEQ_LEN)])
    loader = make_loader(plan, files)
    kept = list(loader.micro_batches(0, 96, 4))
    for number, batch in enumerate(kept):
        assert torch.equal(batch.tokens, loader.read(np.arange(4 * number, 4 * number + 4)).tokens)


def test_a_loader_may_be_dropped_while_it_reads_ahead(tmp_path: Path) -> None:
    files = write_sources(tmp_path)
    plan = make_plan(files, [BlockConfig(tokens=4096 * SEQ_LEN, max_epochs=1e9)])
    expected = make_loader(plan, files).read(np.arange(64)).tokens
    for _ in range(20):
        loader = make_loader(plan, files)
        batch = next(loader.micro_batches(0, 4096, 64))
        assert len(loader._pending) == READ_AHEAD
        del loader
        gc.collect()
        assert torch.equal(batch.tokens, expected)


def test_sources_that_no_block_reads_are_left_alone(tmp_path: Path) -> None:
    files = [*write_sources(tmp_path, "ab"), write_source(tmp_path, "tiny", [0, 3], seed=9)]
    plan = make_plan(files, [BlockConfig(tokens=20 * SEQ_LEN, weights={"a": 1})])
    assert set(make_loader(plan, files).read(np.arange(20)).source_ids.tolist()) == {0}


def test_addressing_takes_few_bytes(tmp_path: Path) -> None:
    files = write_sources(tmp_path, "ab", count=5000)
    plan = make_plan(files, [BlockConfig(tokens=1000 * SEQ_LEN)])
    loader = make_loader(plan, files)
    loader.read(np.arange(1000))
    assert 0 < loader.addressing_bytes() <= 2 * 8 * (5000 // 512 + 4)


def scored_tokens(file: TokenFile, max_tokens: int) -> list[int]:
    batches = heldout_batches(file, 3, SEQ_LEN, micro_batch=4, max_tokens=max_tokens)
    assert all((batch.source_ids == 3).all() for batch in batches)
    return torch.cat([batch.targets[batch.targets != IGNORED] for batch in batches]).tolist()


def test_heldout_scores_each_token_once(tmp_path: Path) -> None:
    file = write_source(tmp_path, "a", [0, *random_lengths(50, 4), 0, 7], seed=4)
    tokens = file.read(0, file.tokens).tolist()
    wanted = [token for position, token in enumerate(tokens) if position and token != 1]
    for enough in (file.tokens, file.tokens + 1, 10**9):
        assert scored_tokens(file, enough) == wanted
        assert heldout_tokens(file, SEQ_LEN, enough) == file.tokens


@pytest.mark.parametrize("max_tokens", [1, SEQ_LEN, 7 * SEQ_LEN, 8 * SEQ_LEN - 1])
def test_heldout_sample_is_spread_over_the_file(tmp_path: Path, max_tokens: int) -> None:
    file = write_source(tmp_path, "a", [SEQ_LEN * 100], seed=4)
    tokens = file.read(0, file.tokens).tolist()
    rows = [tokens[begin + 1 : begin + SEQ_LEN + 1] for begin in range(0, len(tokens) - 1, SEQ_LEN)]
    read = max(1, max_tokens // SEQ_LEN)
    scored = scored_tokens(file, max_tokens)
    found = [rows.index(scored[begin : begin + SEQ_LEN]) for begin in range(0, len(scored), SEQ_LEN)]
    gaps = {later - earlier for earlier, later in itertools.pairwise(found)}
    assert len(found) == read
    assert found[0] == 0
    assert gaps <= {len(rows) // read, len(rows) // read + 1}
    assert heldout_tokens(file, SEQ_LEN, max_tokens) == len(scored)


def read_everything(loader: Loader) -> None:
    for first in range(0, loader.plan.samples - 7, 8):
        for _ in loader.micro_batches(first, 8, 4):
            pass


@pytest.mark.parametrize("stray", [VOCAB - 1, -2])
def test_id_beyond_the_vocabulary_names_the_document(tmp_path: Path, stray: int) -> None:
    file = write_source(tmp_path, "a", [5, 0, 20, 20], seed=1)
    with (tmp_path / "a.bin").open("r+b") as data:
        data.seek(2 * (5 + 7))
        data.write(struct.pack("<H", stray & 0xFFFF))
    plan = make_plan([file], [BlockConfig(tokens=8 * SEQ_LEN)])
    with pytest.raises(DataError, match=rf"a\.bin: token id {stray & 0xFFFF} at position 7 of document 2 is outside"):
        read_everything(Loader(plan, [file], VOCAB - 1, rank=0, world_size=1))


@pytest.mark.parametrize(
    ("suffix", "message"), [("bin", r"a\.bin: cut short while it was read"), ("idx", r"a\.idx: cut short while")]
)
@pytest.mark.parametrize("verify", [False, True])
def test_a_file_cut_short_while_it_is_read(tmp_path: Path, suffix: str, message: str, verify: bool) -> None:
    file = write_source(tmp_path, "a", random_lengths(3000, 1), seed=1)
    plan = make_plan([file], [BlockConfig(tokens=2000 * SEQ_LEN)])
    loader = make_loader(plan, [file], verify=verify)
    next(loader.micro_batches(0, 8, 4))
    os.truncate(tmp_path / f"a.{suffix}", 4000)
    with pytest.raises(DataError, match=message) as caught:
        read_everything(loader)
    assert "\n" not in str(caught.value)


def test_verifying_names_the_chunk_and_its_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindllm_engine.data.token_file_builder.CHUNK_BYTES", 256)
    file = write_source(tmp_path, "a", [10] * 60, seed=1)
    plan = make_plan([file], [BlockConfig(tokens=36 * SEQ_LEN)])
    sound = make_loader(plan, [file], verify=True)
    read_everything(sound)
    with (tmp_path / "a.bin").open("r+b") as data:
        data.seek(700)
        byte = data.read(1)[0]
        data.seek(700)
        data.write(bytes([byte ^ 1]))
    read_everything(make_loader(plan, [file]))
    with pytest.raises(DataError, match=r"a\.bin: damaged: chunk 2, from byte 512 to 767, with documents 25 to 38"):
        read_everything(make_loader(plan, [file], verify=True))
    read_everything(sound)  # what has been checked once is not checked again

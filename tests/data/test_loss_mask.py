"""Loss masks against a brute-force reading: what is learnt, borders inside documents, held-out files, and damage; and
files without masks, which must be read as ever."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from mindllm_engine.data.loader import IGNORED, Batch, Loader, heldout_batches
from mindllm_engine.data.loss_mask import NEW_SEQUENCE, SUPERVISED
from mindllm_engine.data.manifest import Manifest
from mindllm_engine.data.plan import BlockConfig, Packing, Plan, SourceFacts
from mindllm_engine.data.stream import packed_windows
from mindllm_engine.data.token_file_builder import TokenFileBuilder
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import DataError

VOCAB = 1000
SEQ_LEN = 24


def write(prefix: Path, lengths: list[int], mask: np.ndarray | None, seed: int = 0) -> TokenFile:
    """A file of random documents."""
    tokens = np.random.default_rng(seed).integers(1, VOCAB, sum(lengths))
    with TokenFileBuilder(
        prefix, "uint16", name=prefix.name, lang="en", category="chat", tokenizer_hash="0" * 16, vocab_size=VOCAB,
        masked=mask is not None,
    ) as builder:  # fmt: skip
        half = len(lengths) // 2  # in two calls
        cut = sum(lengths[:half])
        for part, where in ((lengths[:half], slice(cut)), (lengths[half:], slice(cut, None))):
            builder.append_many(
                tokens[where], np.array(part, np.int64), len(part), None if mask is None else mask[where]
            )
    return TokenFile(prefix)


def random_mask(lengths: list[int], seed: int, borders: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = (rng.random(sum(lengths)) < 0.6).astype(np.uint8) * SUPERVISED
    if borders:
        mask |= (rng.random(len(mask)) < 0.1).astype(np.uint8) * NEW_SEQUENCE
    return mask


def lengths_of(count: int, seed: int, longest: int = 40) -> list[int]:
    return np.random.default_rng(seed).integers(0, longest, count).tolist()


def loader_of(files: list[TokenFile], packing: Packing, verify: bool = False) -> Loader:
    facts = []
    for file in files:
        samples = {SEQ_LEN: packed_windows(file, SEQ_LEN).samples} if packing == "best_fit" else {}
        facts.append(SourceFacts.of(file.manifest.name, file.manifest, samples))
    plan = Plan(facts, [BlockConfig(tokens=60 * SEQ_LEN)], SEQ_LEN, 7, 0, packing)
    return Loader(plan, files, VOCAB, 0, 1, verify)


def expected(loader: Loader, files: list[TokenFile], sample: int) -> tuple[list[int], list[int]]:
    """Targets and lengths of the sequences of one sample, token by token, from the files."""
    source, stretches = loader.find(sample)
    file = files[source]
    row: list[tuple[int, int, bool]] = []  # token, flags, whether a sequence begins at it
    for document, begin, _, count in stretches.tolist():
        before = sum(file.lengths[:document].tolist())
        for place in range(begin, begin + count):
            flags = SUPERVISED if file.mask is None else int(file.mask[before + place])
            row.append((int(file.document(document)[place]), flags, place == begin or bool(flags & NEW_SEQUENCE)))
    row += [(0, 0, place == 0) for place in range(SEQ_LEN + 1 - len(row))]
    targets = [token if flags & SUPERVISED and not begins else IGNORED for token, flags, begins in row[1 : SEQ_LEN + 1]]
    begins = [place for place, (_, _, begins) in enumerate(row[:SEQ_LEN]) if begins]
    return targets, [end - begin for begin, end in itertools.pairwise([*begins, SEQ_LEN])]


def assert_batch(batch: Batch, rows: list[tuple[list[int], list[int]]]) -> None:
    assert batch.targets.tolist() == [target for targets, _ in rows for target in targets]
    lengths = [length for _, lengths in rows for length in lengths]
    assert np.diff(batch.cu_seqlens.numpy()).tolist() == lengths
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.positions.tolist() == [place for length in lengths for place in range(length)]
    assert batch.positions.dtype == torch.int64


@pytest.mark.parametrize("packing", ["best_fit", "contiguous"])
@pytest.mark.parametrize("borders", [False, True])
@pytest.mark.parametrize("verify", [False, True])
def test_every_target_and_border_is_that_of_the_files(
    tmp_path: Path, packing: Packing, borders: bool, verify: bool
) -> None:
    files = []
    for number, masked in enumerate((True, False, True)):
        lengths = lengths_of(90, number)
        mask = random_mask(lengths, number, borders) if masked else None
        files.append(write(tmp_path / "abc"[number], lengths, mask, number))
    loader = loader_of(files, packing, verify)
    for first in range(0, 60, 6):
        batches = list(loader.micro_batches(first, 6, 3))
        for number, batch in enumerate(batches):
            samples = range(first + 3 * number, first + 3 * number + 3)
            assert_batch(batch, [expected(loader, files, sample) for sample in samples])
            again = loader.read(np.array(samples))
            assert torch.equal(again.targets, batch.targets)
            assert torch.equal(again.cu_seqlens, batch.cu_seqlens)


@pytest.mark.parametrize("packing", ["best_fit", "contiguous"])
def test_a_mask_of_ones_changes_nothing(tmp_path: Path, packing: Packing) -> None:
    lengths = lengths_of(120, 3)
    plain = write(tmp_path / "a", lengths, None)
    (tmp_path / "masked").mkdir()
    masked = write(tmp_path / "masked" / "a", lengths, np.full(sum(lengths), SUPERVISED, np.uint8))
    assert plain.mask is None
    assert masked.mask is not None
    assert Path(f"{plain.prefix}.bin").read_bytes() == Path(f"{masked.prefix}.bin").read_bytes()
    assert not Path(f"{plain.prefix}.mask").exists()
    loaders = [loader_of([file], packing) for file in (plain, masked)]
    for sample in range(0, 60, 4):
        batches = [loader.read(np.arange(sample, sample + 4)) for loader in loaders]
        for name in ("tokens", "targets", "positions", "cu_seqlens", "source_ids"):
            assert torch.equal(getattr(batches[0], name), getattr(batches[1], name))


@pytest.mark.parametrize("borders", [False, True])
@pytest.mark.parametrize("micro_batch", [1, 4])
def test_each_learnt_token_of_a_heldout_file_is_a_target_once_after_its_whole_document(
    tmp_path: Path, borders: bool, micro_batch: int
) -> None:
    lengths = lengths_of(70, 5, longest=SEQ_LEN + 2)  # all fit
    mask = random_mask(lengths, 5, borders)
    file = write(tmp_path / "h", lengths, mask)
    batches = heldout_batches(file, 2, SEQ_LEN, micro_batch, file.tokens)
    found = []
    for batch in batches:
        assert len(batch.tokens) == micro_batch * SEQ_LEN
        assert set(batch.source_ids.tolist()) == {2}
        for begin, end in itertools.pairwise(batch.cu_seqlens.tolist()):
            assert batch.positions[begin:end].tolist() == list(range(end - begin))
            for place in np.flatnonzero(batch.targets[begin:end].numpy() != IGNORED).tolist():
                context = batch.tokens[begin : begin + place + 1].tolist()
                found.append((*context, int(batch.targets[begin + place])))
    wanted = []
    start = 0
    for number, length in enumerate(lengths):
        document, flags = file.document(number).tolist(), mask[start : start + length]
        begins = [0, *(np.flatnonzero(flags[1:] & NEW_SEQUENCE) + 1).tolist(), length]
        for begin, end in itertools.pairwise(begins):
            wanted += [tuple(document[begin : place + 1]) for place in range(begin + 1, end) if flags[place] & 1]
        start += length
    assert sorted(found) == sorted(wanted)


def test_a_heldout_limit_keeps_whole_documents_and_one_at_least(tmp_path: Path) -> None:
    file = write(tmp_path / "h", [10, 12, 20], np.full(42, SUPERVISED, np.uint8))
    counted = {
        limit: sum(int((b.targets != IGNORED).sum()) for b in heldout_batches(file, 0, SEQ_LEN, 2, limit))
        for limit in (1, 10, 21, 22, 42, 100)
    }
    assert counted == {1: 9, 10: 9, 21: 9, 22: 20, 42: 39, 100: 39}


def test_documents_longer_than_a_row_lose_no_learnt_token(tmp_path: Path) -> None:
    lengths = [100, 3, 60, 25, 26, 24]
    file = write(tmp_path / "h", lengths, np.full(sum(lengths), SUPERVISED, np.uint8))
    targets = np.concatenate([b.targets.numpy() for b in heldout_batches(file, 0, SEQ_LEN, 2, file.tokens)])
    wanted = np.concatenate([file.document(number)[1:] for number in range(len(lengths))])
    assert sorted(targets[targets != IGNORED].tolist()) == sorted(wanted.tolist())


def test_damage_is_found(tmp_path: Path) -> None:
    lengths = [8] * 60
    mask = random_mask(lengths, 0, borders=True)
    prefix = tmp_path / "a"
    path = tmp_path / "a.mask"
    write(prefix, lengths, mask)
    assert list(TokenFile(prefix).find_damage()) == []
    np.testing.assert_array_equal(np.fromfile(path, np.uint8), mask)

    path.write_bytes(bytes([mask[0] ^ 1]) + mask.tobytes()[1:])
    with pytest.raises(DataError, match=r"a\.mask: damaged"):
        loader_of([TokenFile(prefix)], "best_fit")
    assert any(".mask: damaged" in str(damage) for damage in TokenFile(prefix).find_damage())
    path.write_bytes(mask.tobytes()[:-1])
    with pytest.raises(DataError, match="has 479 bytes for 480 tokens"):
        TokenFile(prefix)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.mask"):
        TokenFile(prefix)


def test_a_mask_is_part_of_what_a_source_is(tmp_path: Path) -> None:
    lengths = [8] * 40
    facts = set()
    for seed in (None, 1, 2):
        mask = None if seed is None else random_mask(lengths, seed, borders=False)
        manifest = write(tmp_path / "a", lengths, mask).manifest
        facts.add((SourceFacts.of("a", manifest).content, manifest.content))
        assert (tmp_path / "a.mask").exists() == (mask is not None)
    assert len({content for content, _ in facts}) == len({content for _, content in facts}) == 3


def test_builders_want_a_byte_a_token_and_leave_nothing_behind_after_an_error(tmp_path: Path) -> None:
    for masked, mask in ((True, None), (True, np.zeros(3, np.uint8)), (False, np.zeros(4, np.uint8))):
        with (
            pytest.raises(ValueError, match="byte a token"),
            TokenFileBuilder(
                tmp_path / "a", "uint16", name="a", lang="en", category="x", tokenizer_hash="0", vocab_size=9,
                masked=masked,
            ) as builder,
        ):  # fmt: skip
            builder.append_many(np.array([1, 2, 3, 4]), np.array([4]), 4, mask)
        assert list(tmp_path.iterdir()) == []


def test_shards_are_joined_with_their_masks(tmp_path: Path) -> None:
    masks = [random_mask([9] * 20, seed, borders=True) for seed in (0, 1)]
    for number, mask in enumerate(masks):
        write(tmp_path / f"part{number}", [9] * 20, mask, number)
    plain = write(tmp_path / "plain", [9] * 20, None)

    def joined(masked: bool) -> TokenFileBuilder:
        return TokenFileBuilder(
            tmp_path / "all", "uint16", name="all", lang="en", category="x", tokenizer_hash="0" * 16,
            vocab_size=VOCAB, masked=masked,
        )  # fmt: skip

    with joined(masked=True) as builder:
        for number in (0, 1):
            builder.append_file(tmp_path / f"part{number}")
    mask = TokenFile(tmp_path / "all").mask
    assert mask is not None
    np.testing.assert_array_equal(mask, np.concatenate(masks))
    with pytest.raises(DataError, match="cannot be joined"), joined(masked=True) as builder:
        builder.append_file(plain.prefix)
    with pytest.raises(DataError, match="cannot be joined"), joined(masked=False) as builder:
        builder.append_file(tmp_path / "part0")


def test_manifests_without_a_mask_are_as_they_were(tmp_path: Path) -> None:
    write(tmp_path / "a", [5, 5], None)
    assert '"mask"' not in (tmp_path / "a.json").read_text()
    assert Manifest.load(tmp_path / "a").mask == ""

"""Target `samples`: any .idx through the sources, mixtures and batches of csrc/, with files that change under them.

The oracle (`lengths_of`) is a numpy reading of the same .idx. A sample must consist of stretches of its documents, or
be refused; what an index says wrongly must be refused when it is opened. Batches are compared with plain Python.
"""

import contextlib
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mindllm_engine._native as native
import numpy as np
import numpy.typing as npt

from tests.fuzz.choices import Choices
from tests.fuzz.reader_target import write_pair
from tests.fuzz.targets import Target
from tests.fuzz.token_file_inputs import DATA, HEADER_BYTES, ITEM_BYTES, Index, data_bytes, index_and_size

LONGEST = (1 << 24) - 1  # of all samples, in tokens
MOST_EPOCHS = 1 << 16  # in one sample
FEW = 1 << 12  # samples or tokens: more are not looked at one by one
IGNORED = -100
DAMAGED = (ValueError, IndexError, OSError)
SEQ_LENS = [1, 1, 2, 3, 7, 16, 16, 16, 64, 255, 2048]
RARE_SEQ_LENS = [1 << 16, LONGEST - 1, LONGEST, LONGEST + 1, 1 << 40, 0, -1, 2**63 - 1, -(2**63)]


def seeds() -> list[bytes]:
    """Decisions for valid files, and every byte once for each place."""
    varied = [
        bytes((place * step + start) % 256 for place in range(300)) for step in (1, 7, 31) for start in (0, 8, 99)
    ]
    many = [bytes([15, place, place + 1, 3, *range(40)]) for place in range(0, 250, 25)]
    return [bytes(64), *(bytes([value]) * 200 for value in range(0, 256, 5)), *varied, *many]


def make(folder: Path) -> Target:
    """The target, which overwrites one pair of files for each input."""
    prefix = folder / "samples"

    def run(data: bytes) -> None:
        choices = Choices(data)
        content, size = many_documents(choices) if choices.chance(16) else index_and_size(choices)
        if choices.chance(4):
            call_numbers(choices)
        write_pair(prefix, content, size)
        lengths = lengths_of(content, size)
        try:
            reader = native.TokenFileReader(prefix, thorough=False)
        except ValueError:
            return
        case = Case(prefix, reader, lengths, size, content[17])
        case.open(choices)
        if not case.sources:
            return
        for _ in range(1 + choices.below(6)):
            CALLS[choices.below(len(CALLS))](case, choices)

    return run


def many_documents(choices: Choices) -> tuple[bytes, int]:
    """A valid .idx of several groups or windows of short documents, one sequence each or several."""
    count = choices.of([511, 512, 513, 1500, 4095, 4096, 4097, 5000])
    step, top = 1 + choices.byte(), 1 + choices.of([1, 2, 9, 40])
    lengths = [step * i % top for i in range(count)]
    starts = list(range(0, count + 1, 1 + choices.chance(3)))
    starts[-1] = count
    code = choices.of([3, 4, 8])
    ends = np.cumsum(np.array([0, *lengths], np.int64)) * ITEM_BYTES[code]
    index = Index(code, lengths, ends[:-1].tolist(), starts, count)
    if choices.chance(3):
        index.lengths[choices.below(count)] += 1
    return index.to_bytes(), data_bytes(index)


def lengths_of(content: bytes, size: int) -> npt.NDArray[np.int64] | None:
    """The oracle: the tokens of each document by the lengths and the starts alone; None if they fit no such .bin."""
    if len(content) < HEADER_BYTES or content[17] not in ITEM_BYTES:
        return None
    sequences, count = struct.unpack_from("<QQ", content, 18)
    if count == 0 or len(content) != HEADER_BYTES + 12 * sequences + 8 * count:
        return None
    parts = np.frombuffer(content, "<i4", sequences, HEADER_BYTES).astype(np.int64)
    starts = np.frombuffer(content, "<i8", count, HEADER_BYTES + 12 * sequences)
    whole = (starts[0], starts[-1]) == (0, sequences) and bool(np.all(starts[1:] >= starts[:-1]))
    if not whole or parts.min(initial=0) < 0 or int(parts.sum()) * ITEM_BYTES[content[17]] != size:
        return None
    return np.diff(np.cumsum([0, *parts])[starts])


@dataclass
class Case:
    """A file that has opened, its sources, and what they should give."""

    prefix: Path
    reader: Any
    lengths: npt.NDArray[np.int64] | None
    size: int
    code: int
    sources: list[tuple[Any, int, int]] = field(default_factory=list)
    """(source, seq_len, samples an epoch, or 0 of a contiguous one)."""
    changed: bool = False
    """The files are not what they were when they were opened."""

    @property
    def tokens(self) -> int:
        """The tokens in the .bin."""
        return self.size // ITEM_BYTES[self.code]

    def open(self, choices: Choices) -> None:
        """Open both kinds of sources, which must fail for a damaged index and for no other."""
        path, key = f"{self.prefix}.idx", choices.byte()
        right = self.lengths is not None and self.tokens > 0
        source = attempt(lambda: native.ContiguousSource(path, self.reader, key))
        assert (source is not None) == right
        seq_len = seq_len_of(choices)
        packing = attempt(lambda: native.PackedWindows(path, self.reader, seq_len))
        fits = 1 <= seq_len <= LONGEST
        assert (packing is not None) == (fits and self.lengths is not None)
        if source is not None:
            self.sources.append((source, seq_len_of(choices), 0))
        if packing is not None:
            assert (packing.samples > 0) == (self.tokens > 0)
            self.check_packing(packing.samples, seq_len)
            if packing.samples and seq_len <= 1 << 16:  # each packing of a longer one takes a part of a second
                self.sources.append((native.BestFitSource([packing], key), seq_len, packing.samples))

    def check_packing(self, samples: int, seq_len: int) -> None:
        """At least the samples that are full of one document, at most one more for each document."""
        assert self.lengths is not None
        long = self.lengths > seq_len
        full = int(((self.lengths - 1) // seq_len)[long].sum())
        assert full <= samples <= full + np.count_nonzero(self.lengths)
        assert samples * (seq_len + 1) >= self.tokens

    def check_stretches(self, stretches: npt.NDArray[np.int64]) -> None:
        """They lie inside the file and, while that is as it was, inside their documents."""
        documents, in_document, starts, counts = stretches.T
        assert counts.min(initial=1) > 0
        assert starts.min(initial=0) >= 0
        assert (starts + counts).max(initial=0) <= self.tokens
        if self.changed:
            return
        assert self.lengths is not None
        begins = np.cumsum(self.lengths) - self.lengths
        assert np.array_equal(begins[documents] + in_document, starts)
        assert np.all(in_document + counts <= self.lengths[documents])

    def find(self, source: Any, seq_len: int, samples: int, position: int) -> npt.NDArray[np.int64] | None:
        """The stretches of a sample, checked; None if it was refused, which must have a reason."""
        right = 1 <= seq_len <= LONGEST and 0 <= position < 2**63 - 1 - seq_len
        right = right and (samples > 0 or (seq_len + 1) // self.tokens < MOST_EPOCHS)
        found = attempt(lambda: source.find(position, seq_len))
        assert found is None or right, "a wrong position was answered"
        assert found is not None or not right or self.changed, "a right position was refused"
        if found is None:
            return None
        self.check_stretches(found)
        total = int(found[:, 3].sum())
        assert 0 < total <= seq_len + 1
        if samples == 0 and not self.changed:
            assert total == seq_len + 1
            assert self.lengths is not None
            assert np.all(found[1:, 1] == 0), "a document within a sample begins at its beginning"
            ends = found[:-1, 1] + found[:-1, 3]
            assert np.array_equal(ends, self.lengths[found[:-1, 0]]), "and goes on to its end"
        return found


def attempt(call: Callable[[], Any]) -> Any:
    """What a call gives, None for an error that it may raise."""
    with contextlib.suppress(*DAMAGED):
        return call()
    return None


def seq_len_of(choices: Choices) -> int:
    """Mostly a usual one; the large take a large part of a second."""
    if choices.chance(256):
        return choices.of(RARE_SEQ_LENS)
    return choices.of(SEQ_LENS)


def call_find(case: Case, choices: Choices) -> None:
    source, seq_len, samples = choices.of(case.sources)
    position = choices.int64(choices.below(16) * (samples or case.tokens))
    if choices.chance(8) and samples == 0:
        seq_len = seq_len_of(choices)
    case.find(source, seq_len, samples, position)


def call_find_of_other_length(case: Case, choices: Choices) -> None:
    source, seq_len, samples = case.sources[-1]
    if samples:
        other = choices.int64(seq_len)
        found = attempt(lambda: source.find(0, other))
        assert other == seq_len or found is None, "a length without a packing was answered"
        assert other != seq_len or found is not None or case.changed


def call_epoch(case: Case, choices: Choices) -> None:
    """A whole epoch holds each prediction once (best fit), or each document once (contiguous)."""
    source, seq_len, samples = choices.of(case.sources)
    if case.changed or case.tokens > FEW or samples > 200 or seq_len < 1:
        return
    assert case.lengths is not None
    epoch = choices.of([0, 1, 70, 10**9])
    if samples:
        found = [case.find(source, seq_len, samples, epoch * samples + number) for number in range(samples)]
        assert sum(int((part[:, 3] - 1).sum()) for part in found) == int(np.maximum(case.lengths - 1, 0).sum())
        keys = {(row[0], row[1]) for part in found for row in part.tolist()}
        assert len(keys) == sum(len(part) for part in found)
    elif case.tokens > 1:
        found = case.find(source, case.tokens - 1, 0, epoch * case.tokens)
        assert sorted(found[:, 0].tolist()) == np.flatnonzero(case.lengths).tolist()


def block_of(case: Case, choices: Choices, seq_len: int, samples: int, quota: int) -> Any:
    """A block of the one source, somewhere in its stream."""
    first = choices.below(20) * (samples or case.tokens) + choices.below(50)
    return native.BlockSpec(
        first_sample=0,
        seq_len=seq_len,
        order=choices.of([native.Order.shuffled, native.Order.blocked, native.Order.chunked]),
        samples_per_chunk=1 + choices.below(5),
        key=choices.byte(),
        quotas=[0, quota],
        firsts=[0, first],
        categories=[[1]],
    )


def batch_reader(case: Case, choices: Choices, vocab_size: int, quota: int) -> tuple[Any, int]:
    """A reader of two sources, the first of them unread, and the seq_len of its samples."""
    source, seq_len, samples = choices.of(case.sources)
    if not 1 <= seq_len <= FEW:
        source, seq_len, samples = case.sources[0][0], 5, 0
    mixture = native.Mixture([block_of(case, choices, seq_len, samples, quota)], 2, by_token=samples == 0)
    data = native.LocalBytes(f"{case.prefix}.bin")
    parts = [("none", case.reader, data, None), (str(case.prefix), case.reader, data, source)]
    return native.BatchReader(mixture, parts, vocab_size), seq_len


def arrays_of(tokens: int) -> list[npt.NDArray[Any]]:
    return [*(np.full(tokens, 77, np.int64) for _ in range(4)), np.full(tokens + 1, 77, np.int32)]


def expected_batch(case: Case, reader: Any, samples: list[int], seq_len: int) -> list[list[int]] | None:
    """The arrays of a batch in plain Python, None if an id is negative."""
    width, tokens, targets, positions, borders = ITEM_BYTES[case.code], [], [], [], [0]
    for sample in samples:
        row: list[int] = []
        places: list[int] = []
        begins = set()
        for _, _, start, count in reader.find(sample)[1].tolist():
            begins.add(len(row))
            raw = DATA[start * width : (start + count) * width].ljust(count * width, b"\0")
            row += np.frombuffer(raw, case.reader.dtype).tolist()
            places += range(count)
        begins.add(len(row))
        padding = seq_len + 1 - len(row)
        ignored = len(row) - 1
        if min(row) < 0:
            return None
        row += [0] * padding
        places += range(padding)
        tokens += row[:seq_len]
        targets += [
            IGNORED if at + 1 in begins or (at >= ignored and padding) else row[at + 1] for at in range(seq_len)
        ]
        positions += places[:seq_len]
        first = borders.pop()
        borders += [first + begin for begin in sorted(begins) if begin < seq_len]
        borders.append(first + seq_len)
    return [tokens, targets, positions, [1] * len(tokens), borders]


def call_read(case: Case, choices: Choices) -> None:
    """A batch, at once and ahead of need, against plain Python; one id too large for the vocabulary is refused."""
    quota = 1 + choices.below(40)
    vocab_size = choices.of([2**63 - 1, 1 << 16, 200, 1])
    try:
        reader, seq_len = batch_reader(case, choices, vocab_size, quota)
    except DAMAGED:
        assert case.changed
        return
    samples = [choices.below(quota) for _ in range(choices.below(5))]
    if seq_len * len(samples) > FEW:
        return
    batch = arrays_of(seq_len * len(samples))
    borders = attempt(lambda: reader.read(np.array(samples, np.int64), *batch))
    if not case.changed:
        expected = expected_batch(case, reader, samples, seq_len)
        # The last target of a sample may be an ignored one, so that not every id that is read can be seen here.
        seen = expected is not None and max([*expected[0], *expected[1]], default=0) < vocab_size
        assert borders is None or seen, "an id outside the vocabulary was let through"
        assert borders is not None or not seen or vocab_size < 2**16
        if borders is not None:
            assert [part.tolist() for part in batch[:4]] == expected[:4]
            assert batch[4][:borders].tolist() == expected[4]
    if choices.chance(4):
        read_ahead(reader, samples, seq_len, batch, borders, choices)


def read_ahead(
    reader: Any, samples: list[int], seq_len: int, batch: list[Any], borders: int | None, choices: Choices
) -> None:
    """The same batch by threads; some are dropped with their arrays before they are read, or the threads are."""
    ahead = native.ReadAhead(reader, 1 + choices.below(3))
    pending = []
    for _ in range(1 + choices.below(6)):
        arrays = arrays_of(seq_len * len(samples))
        waiting = ahead.submit(np.array(samples, np.int64), *arrays)
        if not choices.chance(3):
            pending.append((waiting, arrays))
        del waiting, arrays
    if choices.chance(3):
        del ahead
        for waiting, _ in pending:
            with contextlib.suppress(RuntimeError, *DAMAGED):  # RuntimeError: it was not begun
                waiting.wait()
        return
    for waiting, arrays in pending:
        again = attempt(waiting.wait)
        assert again == borders
        if borders is not None:
            assert all(np.array_equal(a, b) for a, b in zip(arrays, batch, strict=True))


def call_read_of_wrong_arrays(case: Case, choices: Choices) -> None:
    try:
        reader, seq_len = batch_reader(case, choices, 2**63 - 1, 3)
    except DAMAGED:
        return
    batch = arrays_of(seq_len)
    at = choices.below(5)
    array = batch[at]
    read_only = array.copy()
    read_only.flags.writeable = False
    wrong = [
        array[:-1],
        np.append(array, array[:1]),
        array.astype(np.int32 if at < 4 else np.int64),
        array.astype(float),
        np.repeat(array, 2)[::2],
        array.reshape(-1, 1),
        array.astype(array.dtype.newbyteorder(">")),
        np.frombuffer(bytearray(array.nbytes + 1), array.dtype, offset=1),
        read_only,
        array.tolist(),
        None,
    ]
    batch[at] = choices.of(wrong) if seq_len > 1 else read_only
    samples = choices.of([[0], [0], [0, 1], [3], [-1], [2**62]])
    refused = False
    try:
        reader.read(np.array(samples, np.int64), *batch)
    except (TypeError, *DAMAGED):
        refused = True
    assert refused, "wrong arrays were taken"


def cut_file(case: Case, choices: Choices) -> None:
    """Another process cuts a file short while it is open; then restores it."""
    suffix = choices.of([".bin", ".idx"])
    path = Path(f"{case.prefix}{suffix}")
    content = path.read_bytes() if path.stat().st_size <= 1 << 20 else None
    if not content:
        return
    reader = attempt(lambda: batch_reader(case, choices, 2**63 - 1, 9))
    size = choices.below(len(content))
    os.truncate(path, size)
    source, seq_len, _ = choices.of(case.sources)
    if suffix == ".idx":
        found = attempt(lambda: source.find(choices.below(99), seq_len))
        if found is not None:
            case.check_stretches(found)
    elif reader is not None and reader[1] <= FEW:
        refused = attempt(lambda: reader[0].read(np.array([2], np.int64), *arrays_of(reader[1]))) is None
        assert refused, "a file cut short was read"
    with open(path, "r+b", 0) as file:
        file.write(content)
    if suffix == ".bin":
        write_pair(case.prefix, Path(f"{case.prefix}.idx").read_bytes(), case.size)


def change_index(case: Case, choices: Choices) -> None:
    """Another process overwrites a part of the open index, or puts two lengths in each other's places."""
    path = f"{case.prefix}.idx"
    content = bytearray(Path(path).read_bytes())
    if choices.chance(2):
        at = HEADER_BYTES + 4 * choices.below(case.reader.documents + 1)
        content[at : at + 8] = content[at + 4 : at + 8] + content[at : at + 4]
    else:
        at = HEADER_BYTES + choices.below(len(content) - HEADER_BYTES - 7)
        content[at : at + 8] = (choices.number() % 2**64).to_bytes(8, "little")
    with open(path, "r+b", 0) as file:
        file.write(content)
    case.changed = True


def call_numbers(choices: Choices) -> None:
    """What takes numbers alone: permutations and mixtures."""
    choices.of([permute, mix])(choices)


def permute(choices: Choices) -> None:
    size, key = choices.int64(1 + choices.below(300)), choices.int64() % 2**64
    positions = [choices.int64(size) for _ in range(choices.below(6))]
    right = size >= 0 and all(0 <= position < size for position in positions)
    places = attempt(lambda: native.permute(np.array(positions, np.int64), size, key))
    assert (places is not None) == right
    if places is not None:
        assert np.all((places >= 0) & (places < max(size, 1)))
        assert len(set(places.tolist())) == len(set(positions))
        if size <= 300:
            assert sorted(native.permute(np.arange(size), size, key).tolist()) == list(range(size))


def mix(choices: Choices) -> None:
    """Blocks with absurd numbers: refused, or each of the first samples is one of its own."""
    sources, by_token = 1 + choices.below(3), choices.chance(2)
    blocks, first_sample, right = [], 0, True
    for _ in range(1 + choices.below(3)):
        usual = {"first_sample": first_sample, "seq_len": choices.of(SEQ_LENS), "samples_per_chunk": choices.below(9)}
        quotas = [choices.below(30) for _ in range(sources)]
        firsts = [choices.below(99) for _ in range(sources)]
        if choices.chance(3):
            name = choices.of(list(usual))
            usual[name] = choices.int64(usual[name])
        if choices.chance(3):
            choices.of([quotas, firsts])[choices.below(sources)] = choices.int64(
                2**62 // usual["seq_len"] if usual["seq_len"] else 5
            )
        members = [[source] for source in range(sources) if quotas[source] != 0]
        if choices.chance(8):
            members.append([choices.int64(sources)])
        order = native.Order(choices.of([0, 1, 2, 0, 1, 2, 3, 77]))
        numbers = [*quotas, *firsts, usual["seq_len"] - 1, usual["samples_per_chunk"] - 1]
        advance = usual["seq_len"] if by_token else 1
        right &= min(numbers) >= 0 and usual["first_sample"] == first_sample and usual["seq_len"] <= LONGEST
        right &= int(order) < 3 and len(members) == sum(quota != 0 for quota in quotas)
        right &= all(
            first + quota * advance + usual["seq_len"] < 2**63 - 1 for first, quota in zip(firsts, quotas, strict=True)
        )
        spec = native.BlockSpec(
            **usual, order=order, key=choices.byte(), quotas=quotas, firsts=firsts, categories=members
        )
        first_sample += sum(quotas)
        blocks.append((spec, quotas, firsts, advance, first_sample))
        if not 0 <= first_sample < 2**63:
            right = False
            break
    mixture = attempt(lambda: native.Mixture([block[0] for block in blocks], sources, by_token))
    assert (mixture is not None) == right
    if mixture is None:
        return
    assert mixture.samples == first_sample
    begin = 0
    for _, quotas, firsts, advance, end in blocks:
        numbers = sorted({*range(begin, min(begin + 60, end)), *range(max(begin, end - 5), end)})
        places = list(zip(*(part.tolist() for part in mixture.locate(np.array(numbers, np.int64))), strict=True))
        assert len(set(places)) == len(numbers)
        for source, position, _ in places:
            count, rest = divmod(position - firsts[source], advance)
            assert rest == 0
            assert 0 <= count < quotas[source]
        begin = end
    assert attempt(lambda: mixture.locate(np.array([choices.of([-1, first_sample])], np.int64))) is None


CALLS: list[Callable[[Case, Choices], None]] = [
    call_find,
    call_find,
    call_find_of_other_length,
    call_epoch,
    call_read,
    call_read,
    call_read_of_wrong_arrays,
    cut_file,
    change_index,
]

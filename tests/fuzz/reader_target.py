"""Target `reader`: any .idx beside a .bin of any size, through every method of the native reader, opened both ways.

The oracle knows what a right index says (`documents_of`): such files must be read without an error and to the byte.
Others must be refused when all is checked on opening. When little is, each call gives an error or stays inside.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mindllm_engine._native as native
import numpy as np
import numpy.typing as npt

from tests.fuzz.choices import Choices
from tests.fuzz.targets import Target
from tests.fuzz.token_file_inputs import DATA, HEADER_BYTES, ITEM_BYTES, documents_of, index_and_size

FEW = 1 << 14  # tokens; what scans a whole file, or copies it, is called for smaller ones only
REFUSED = (ValueError, IndexError)


def seeds() -> list[bytes]:
    """Decisions for valid files, and every byte once for each place."""
    varied = [
        bytes((place * step + start) % 256 for place in range(300)) for step in (1, 7, 31) for start in (0, 8, 99)
    ]
    return [bytes(64), *(bytes([value]) * 200 for value in range(0, 256, 5)), *varied]


def make(folder: Path) -> Target:
    """The target, which overwrites one pair of files for each input."""
    prefix = folder / "reader"

    def run(data: bytes) -> None:
        choices = Choices(data)
        thorough = not choices.chance(2)
        calls = [choices.take(2) for _ in range(choices.below(7))]  # first, lest the index take all that is left
        content, size = index_and_size(choices)
        write_pair(prefix, content, size)
        documents = documents_of(content, size)
        try:
            reader = native.TokenFileReader(prefix, thorough=thorough)
        except ValueError:
            assert documents is None, "valid files were refused"
            return
        assert documents is not None or not thorough, "damaged files were accepted"
        case = Case(prefix, reader, documents, size, content[17])
        for call, seed in calls:
            CALLS[call % len(CALLS)](case, Choices(bytes([seed]) + data[-seed:]))

    return run


def write_pair(prefix: Path, index: bytes, size: int) -> None:
    """Write the .idx, and a .bin of `size` bytes that begins with `DATA` and ends in zeros."""
    with open(f"{prefix}.idx", "wb", 0) as file:
        file.write(index)
    with open(f"{prefix}.bin", "wb", 0) as file:
        file.write(DATA[:size])
        if size > len(DATA):
            file.truncate(size)


@dataclass
class Case:
    """A reader that has opened, and what it should say: `documents` is None for a damaged index."""

    prefix: Path
    reader: Any
    documents: list[tuple[int, int]] | None
    size: int
    code: int

    @property
    def tokens(self) -> int:
        """The tokens in the .bin."""
        return self.size // ITEM_BYTES[self.code]

    def ids(self, start: int, count: int) -> bytes:
        """The bytes of a range of the stream."""
        width = ITEM_BYTES[self.code]
        return DATA[start * width : (start + count) * width].ljust(count * width, b"\0")

    def expect(self, right: bool, call: Callable[[], Any]) -> Any:
        """What a call gives, which must be an error if what is asked for is not `right`.

        It must be none if it is and the index is whole; of a damaged index either will do.
        """
        try:
            answer = call()
        except REFUSED:
            assert not right or self.documents is None, "a right call was refused"
            return None
        assert right, "a wrong call was answered"
        return answer

    def check_view(self, view: npt.NDArray[Any], start: int, count: int) -> None:
        """The view holds the range; of a large one, its ends do."""
        assert view.size == count
        assert not view.flags.writeable
        if count <= FEW:
            assert view.tobytes() == self.ids(start, count)
        else:
            assert view[:9].tobytes() + view[-9:].tobytes() == self.ids(start, 9) + self.ids(start + count - 9, 9)


def call_lengths(case: Case, choices: Choices) -> None:
    lengths = case.expect(True, lambda: case.reader.lengths)
    if lengths is not None:
        assert lengths.min(initial=0) >= 0
        assert case.documents is None or lengths.tolist() == [length for _, length in case.documents]


def call_document(case: Case, choices: Choices) -> None:
    number = choices.int64(case.reader.documents)
    view = case.expect(0 <= number < case.reader.documents, lambda: case.reader.document(number))
    if view is not None:
        start = case.documents[number][0] if case.documents else case.reader.document_start(number)
        case.check_view(view, start, case.documents[number][1] if case.documents else view.size)


def call_document_start(case: Case, choices: Choices) -> None:
    number = choices.int64(case.reader.documents)
    start = case.expect(0 <= number <= case.reader.documents, lambda: case.reader.document_start(number))
    if start is not None:
        assert 0 <= start <= case.tokens
        ends = [*(start for start, _ in case.documents), case.tokens] if case.documents is not None else None
        assert ends is None or start == ends[number]


def call_document_of(case: Case, choices: Choices) -> None:
    token = choices.int64(case.tokens)
    number = case.expect(0 <= token < case.tokens, lambda: case.reader.document_of(token))
    if number is not None:
        assert 0 <= number < case.reader.documents
        if case.documents is not None:
            start, length = case.documents[number]
            assert start <= token < start + length


def call_read(case: Case, choices: Choices) -> None:
    start, count = choices.int64(), choices.int64(case.tokens)
    inside = start >= 0 and count >= 0 and start + count <= case.tokens
    view = case.expect(inside, lambda: case.reader.read(start, count))
    if view is not None:
        case.check_view(view, start, count)


def call_gather(case: Case, choices: Choices) -> None:
    ranges = [(choices.int64(), choices.int64(choices.below(8))) for _ in range(choices.below(5))]
    starts, counts = (np.array([part[side] for part in ranges], np.int64) for side in (0, 1))
    room = sum(count for _, count in ranges) + choices.of([0, 0, 0, 0, 1, -1])
    out = np.full(room if 0 <= room <= FEW else 5, 77, choices.of([np.int64, np.int32]))
    right = out.size == sum(count for _, count in ranges)
    right &= all(start >= 0 and count >= 0 and start + count <= case.tokens for start, count in ranges)
    ids = [np.frombuffer(case.ids(*part), case.reader.dtype) for part in ranges] if right else []
    expected = np.concatenate([np.empty(0, np.int64), *ids])
    right &= bool((expected.astype(out.dtype) == expected).all())
    if case.expect(right, lambda: (case.reader.gather(starts, counts, out),)) is not None:
        assert out.tolist() == expected.tolist()


def call_gather_of_wrong_arrays(case: Case, choices: Choices) -> None:
    starts, counts = np.zeros(3, np.int64), np.ones(3, np.int64)
    out: Any = np.zeros(3, np.int32)
    read_only = np.zeros(3, np.int32)
    read_only.flags.writeable = False
    arguments = choices.of(
        [
            (starts, counts[:2], out),
            (starts.astype(float), counts, out),
            (starts.reshape(3, 1), counts, out),
            (starts, counts, np.zeros(3, np.uint16)),
            (starts, counts, np.zeros(6, np.int32)[::2]),
            (starts, counts, np.zeros((3, 1), np.int64)),
            (starts, counts, np.zeros(3, ">i4")),
            (starts, counts, read_only),
            (starts.astype(">i8") + 2**62, counts, out),
            (starts.astype(np.uint64) + 2**63, counts, out),
        ]
    )
    refused = False
    try:
        case.reader.gather(*arguments)
    except (TypeError, *REFUSED):
        refused = True
    assert refused, "arrays of a wrong type were taken"


def call_scans(case: Case, choices: Choices) -> None:
    if case.tokens > FEW:
        return
    ids = np.frombuffer(case.ids(0, case.tokens), case.reader.dtype).astype(np.int64)
    assert case.expect(True, case.reader.max_token) == ids.max(initial=-1 if ids.size == 0 else ids[0])
    vocab_size = choices.int64(int(ids.max(initial=0)))
    stray = case.expect(True, lambda: case.reader.find_stray(vocab_size))
    strays = np.flatnonzero((ids < 0) | (ids >= vocab_size))
    if case.documents is not None:
        assert (stray is not None) == bool(strays.size)
        if stray is not None:
            document, position, token = stray
            start, length = case.documents[document]
            assert position < length
            assert (start + position, token) == (strays[0], ids[strays[0]])


def call_check_index(case: Case, choices: Choices) -> None:
    assert case.expect(case.documents is not None, lambda: (case.reader.check_index(),)) or case.documents is None


def call_read_data(case: Case, choices: Choices) -> None:
    offset, out = choices.int64(case.size), np.full(choices.below(200), 77, np.uint8)
    inside = offset >= 0 and offset + out.size <= case.size
    if case.expect(inside, lambda: (case.reader.read_data(offset, out),)) is not None:
        assert out.tobytes() == DATA[offset : offset + out.size].ljust(out.size, b"\0")


def cut_data(case: Case, choices: Choices) -> None:
    """Another process cuts the data short while it is read, which does not go through the map; then restores it."""
    size = choices.below(case.size + 1)
    os.truncate(f"{case.prefix}.bin", size)
    out = np.full(8, 77, np.uint8)
    offset = choices.below(case.size + 1)
    inside = offset + out.size <= size
    answer = None
    with contextlib.suppress(*REFUSED):
        answer = case.reader.read_data(offset, out), True
    assert (answer is not None) == inside
    write_pair(case.prefix, Path(f"{case.prefix}.idx").read_bytes(), case.size)


def change_index(case: Case, choices: Choices) -> None:
    """Another process overwrites a part of the open index; its header has been read, and no longer counts."""
    path = f"{case.prefix}.idx"
    content = bytearray(Path(path).read_bytes())
    at = HEADER_BYTES + choices.below(len(content) - HEADER_BYTES - 7)
    content[at : at + 8] = (choices.number() % 2**64).to_bytes(8, "little")
    with open(path, "r+b", 0) as file:
        file.write(content)
    case.documents = documents_of(bytes(content), case.size)


def cut_index(case: Case, choices: Choices) -> None:
    """Another process cuts the index short while it is checked, which does not go through the map; then restores it."""
    path = f"{case.prefix}.idx"
    content = Path(path).read_bytes()
    os.truncate(path, choices.below(len(content)))
    for call in (case.reader.check_index, lambda: case.reader.document_of(choices.int64(case.tokens))):
        with contextlib.suppress(*REFUSED):
            call()
    with open(path, "r+b", 0) as file:
        file.write(content)


CALLS: list[Callable[[Case, Choices], None]] = [
    call_lengths,
    call_document,
    call_document_start,
    call_document_of,
    call_read,
    call_gather,
    call_gather_of_wrong_arrays,
    call_scans,
    call_check_index,
    call_read_data,
    cut_data,
    change_index,
    cut_index,
]

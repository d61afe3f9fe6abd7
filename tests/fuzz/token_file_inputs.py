"""Token files as the fuzz targets need them: the valid index of some documents, damage to one, and what it says.

Written from the format alone (the first lines of csrc/token_format.hpp), with nothing of the code under test.
"""

import struct
from dataclasses import dataclass
from itertools import accumulate, pairwise

from tests.fuzz.choices import Choices

MAGIC = b"MMIDIDX\0\0"
HEADER_BYTES = 34
ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 8: 2}
"""The bytes of an id, by the format's type code."""
NAMES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
LARGEST_BIN = 1 << 42
"""Larger .bin files are not made, not even sparse ones."""
DATA = bytes((7 * i + i // 11) % 256 for i in range(4096))
"""What a .bin begins with; beyond it there are zeros, which a sparse file need not store."""


@dataclass
class Index:
    """The fields of an .idx, as numbers that need not fit one another."""

    code: int
    lengths: list[int]  # of each sequence, in tokens
    offsets: list[int]  # of each sequence, in bytes
    starts: list[int]  # the first sequence of each document, and the number of sequences
    sequences: int
    version: int = 1

    def to_bytes(self) -> bytes:
        """The file; numbers beyond their field are wrapped."""
        lengths = b"".join(struct.pack("<I", length % 2**32) for length in self.lengths)
        rest = b"".join(struct.pack("<Q", number % 2**64) for number in [*self.offsets, *self.starts])
        header = struct.pack(
            "<9sQBQQ", MAGIC, self.version % 2**64, self.code % 256, self.sequences % 2**64, len(self.starts) % 2**64
        )
        return header + lengths + rest


def valid_index(choices: Choices) -> Index:
    """Up to 15 documents of up to 3 sequences each, most of them short."""
    code = choices.of(list(ITEM_BYTES))
    lengths: list[int] = []
    starts = [0]
    for _ in range(choices.below(16)):
        for _ in range(choices.of([1, 1, 1, 0, 2, 3])):
            lengths.append(choices.number() % 2**31 if choices.chance(40) else choices.below(24))
        starts.append(len(lengths))
    ends = list(accumulate((length * ITEM_BYTES[code] for length in lengths), initial=0))
    return Index(code, lengths, ends[:-1], starts, len(lengths))


def data_bytes(index: Index) -> int:
    """The size of the .bin that belongs to a valid index."""
    return sum(index.lengths) * ITEM_BYTES[index.code]


def damage_fields(choices: Choices, index: Index) -> None:
    """Change one number of the index, or add or remove one."""
    size = data_bytes(index) if index.code in ITEM_BYTES else 0
    table, near = choices.of([(index.lengths, 4), (index.offsets, size), (index.starts, index.sequences)])
    kind = choices.below(8)
    if kind == 0:
        index.code = choices.below(10)
    elif kind == 1:
        index.sequences = choices.number(index.sequences)
    elif kind == 2:
        index.version = choices.number(1)
    elif kind == 3:
        table.insert(choices.below(len(table) + 1), choices.number(near))
    elif table:
        at = choices.below(len(table))
        if kind == 4:
            del table[at]
        elif kind == 5:
            other = choices.below(len(table))
            table[at], table[other] = table[other], table[at]
        else:
            table[at] = choices.number(table[at])


def damage_bytes(choices: Choices, content: bytes) -> bytes:
    """Cut the file short, lengthen it, overwrite a number anywhere, or go on as another valid one."""
    at = choices.below(len(content) + 1)
    kind = choices.below(5)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content + choices.take(choices.below(32))
    if kind == 2:
        return content[:at] + valid_index(choices).to_bytes()[choices.below(200) :]
    if kind == 3:  # counts that fit the size of the file once their products have wrapped
        sequences, starts = struct.unpack_from("<QQ", content.ljust(HEADER_BYTES, b"\0"), 18)
        shift = choices.number() * (1 << choices.below(62))
        counts = struct.pack("<QQ", (sequences + 2 * shift) % 2**64, (starts - 3 * shift) % 2**64)
        return content[:18] + counts + content[HEADER_BYTES:]
    width = choices.of([1, 4, 8])
    return content[:at] + (choices.number() % 2**64).to_bytes(8, "little")[:width] + content[at + width :]


def index_and_size(choices: Choices) -> tuple[bytes, int]:
    """An .idx, valid or with up to three damages, or raw bytes; and the size of its .bin, which may not fit."""
    if choices.chance(8):
        size = choices.below(256)
        return choices.rest(), size
    index = valid_index(choices)
    size = data_bytes(index)
    damages = choices.of([0, 1, 1, 2, 3])
    in_bytes = choices.below(damages + 1)
    for _ in range(damages - in_bytes):
        damage_fields(choices, index)
    content = index.to_bytes()
    for _ in range(in_bytes):
        content = damage_bytes(choices, content)
    if choices.chance(8):
        size = choices.number(size)
    elif choices.chance(4):  # as the damaged index wants it
        size = wanted_size(content)
    return content, size if 0 <= size <= LARGEST_BIN else 0


def wanted_size(content: bytes) -> int:
    """Where the last sequence of an index ends, in bytes; 0 if it has none."""
    if len(content) < HEADER_BYTES or content[17] not in ITEM_BYTES:
        return 0
    (sequences,) = struct.unpack_from("<Q", content, 18)
    if sequences == 0 or HEADER_BYTES + 12 * sequences > len(content):
        return 0
    (length,) = struct.unpack_from("<i", content, HEADER_BYTES + 4 * (sequences - 1))
    (offset,) = struct.unpack_from("<q", content, HEADER_BYTES + 4 * sequences + 8 * (sequences - 1))
    return offset + length * ITEM_BYTES[content[17]]


def documents_of(content: bytes, size: int) -> list[tuple[int, int]] | None:
    """The oracle: (first token, length) of each document, or None if the .idx and a .bin of `size` do not fit."""
    if len(content) < HEADER_BYTES:
        return None
    magic, version, code, sequences, count = struct.unpack_from("<9sQBQQ", content)
    fits = len(content) == HEADER_BYTES + 12 * sequences + 8 * count
    if magic != MAGIC or version != 1 or code not in ITEM_BYTES or count == 0 or not fits:
        return None
    lengths = struct.unpack_from(f"<{sequences}i", content, HEADER_BYTES)
    offsets = struct.unpack_from(f"<{sequences}q", content, HEADER_BYTES + 4 * sequences)
    starts = struct.unpack_from(f"<{count}q", content, HEADER_BYTES + 12 * sequences)
    tokens = list(accumulate(lengths, initial=0))
    right = (
        all(length >= 0 for length in lengths)
        and all(offset == ITEM_BYTES[code] * token for offset, token in zip(offsets, tokens, strict=False))
        and tokens[-1] * ITEM_BYTES[code] == size
        and (starts[0], starts[-1]) == (0, sequences)
        and all(a <= b for a, b in pairwise(starts))
    )
    return [(tokens[a], tokens[b] - tokens[a]) for a, b in pairwise(starts)] if right else None

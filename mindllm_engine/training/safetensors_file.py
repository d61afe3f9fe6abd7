"""safetensors files, written piece by piece and hashed on the way: the library wants all tensors in memory, twice."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

import orjson
import torch
import xxhash
from torch import Tensor

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "U8": torch.uint8}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def safetensors_header(
    entries: Iterable[tuple[str, torch.dtype, Sequence[int]]], **metadata: str
) -> tuple[bytes, list[int]]:
    """What a safetensors file of these (name, dtype, shape) begins with, and the byte at which each tensor begins."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    starts, end = [], 0
    for name, dtype, shape in entries:
        starts.append(end)
        end += prod(shape) * dtype.itemsize
        table[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [starts[-1], end]}
    text = orjson.dumps(table)
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, [len(header) + start for start in starts]


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.detach().view(torch.uint8).numpy().data


@dataclass
class Shard:
    """A written file.

    Attributes:
        bytes: its length.
        xxh3: of all of it.
        blocks: of every block of it.
    """

    bytes: int
    xxh3: str
    blocks: list[str]


class HashedFile:
    """Writes a file, hashing on the way.

    Args:
        block_bytes: so many bytes share a checksum.
    """

    def __init__(self, file: BinaryIO, block_bytes: int) -> None:
        self.file = file
        self.block_bytes = block_bytes
        self.whole = xxhash.xxh3_64()
        self.block = xxhash.xxh3_64()
        self.blocks: list[str] = []
        self.bytes = 0

    def write(self, data: memoryview) -> None:
        """Append. Holds the interpreter's lock for no longer than a block takes to be hashed, if at all."""
        while data:
            part = data[: self.block_bytes - self.bytes % self.block_bytes]
            self.file.write(part)
            self.whole.update(part)
            self.block.update(part)
            self.bytes += len(part)
            if self.bytes % self.block_bytes == 0:
                self.end_block()
            data = data[len(part) :]

    def end_block(self) -> None:
        """The next byte begins another block."""
        self.blocks.append(self.block.hexdigest())
        self.block.reset()

    def finish(self) -> Shard:
        """Bring what was written to the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        if self.bytes % self.block_bytes:
            self.end_block()
        return Shard(self.bytes, self.whole.hexdigest(), self.blocks)

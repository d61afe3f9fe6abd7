"""Decisions read from the bytes of a fuzzer's input, one after another; zeros once they have run out."""

from typing import TypeVar

Item = TypeVar("Item")

SIZES = [0, 1, 2, 3, 7, 8, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**60, 2**61, 2**62, 2**63 - 1]
"""Numbers at which counts and sums overflow; `number` adds the neighbours, the negatives and those above 2^63."""


class Choices:
    """Every method takes as few bytes as it needs, so that a mutated byte changes one decision."""

    def __init__(self, data: bytes) -> None:
        """`data`: the input."""
        self._data = data
        self._at = 0

    def byte(self) -> int:
        """An integer in [0, 256)."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def below(self, limit: int) -> int:
        """An integer in [0, limit); of one byte up to a limit of 256, of four beyond."""
        return (self.byte() if limit <= 256 else int.from_bytes(self.take(4), "little")) % limit

    def chance(self, one_in: int) -> bool:
        """True for one byte in about `one_in`; never once the input has run out."""
        return self.byte() % one_in == one_in - 1

    def of(self, items: list[Item]) -> Item:
        """One of `items`."""
        return items[self.below(len(items))]

    def take(self, count: int) -> bytes:
        """The next `count` bytes, filled up with zeros."""
        data = self._data[self._at : self._at + count]
        self._at += count
        return data.ljust(count, b"\0")

    def rest(self) -> bytes:
        """All that is left."""
        data = self._data[self._at :]
        self._at = len(self._data)
        return data

    def number(self, near: int = 0) -> int:
        """Any integer of 64 bits, signed or not: one close to `near`, one where sums overflow, or eight raw bytes."""
        kind = self.below(8)
        if kind < 3:
            return near + self.below(9) - 4
        if kind < 5:
            return self.of(SIZES) + self.below(3) - 1
        if kind == 5:
            return -self.of(SIZES)
        if kind == 6:
            return 2**64 - 1 - self.of(SIZES)
        return int.from_bytes(self.take(8), "little", signed=True)

    def int64(self, near: int = 0) -> int:
        """`number`, wrapped into int64."""
        return (self.number(near) + 2**63) % 2**64 - 2**63

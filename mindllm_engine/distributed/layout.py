"""Where every parameter lies in ZeRO-1's flat buffers: pure arithmetic on names, shapes, an order and the number of
ranks, with no tensor and no process group.

    flat buffer   | bucket 0: matrices | bucket 1: matrices | ... | last bucket: vectors |
    a bucket      | slice of rank 0 | slice of rank 1 | ... |          all of the same length

Matrices, which decay, come in the order in which backward finishes their gradients, so that a bucket's reduce-scatter
can start while backward goes on. A bucket holds whole parameters up to `bucket_elements`; a parameter larger than that
is cut across buckets of its own. Vectors, which do not decay, are small and share the last bucket. A network may scale
the learning rate of some parameters (MiniCPM's matrices); those of another scale lie in other buckets, behind. So each
slice decays as a whole or not at all and has one learning rate: it is one launch of AdamW.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

# Elements to which parameters and slices are aligned: 128 bytes of bf16, which 128-bit accesses and NCCL want.
ALIGNMENT = 64


@dataclass(frozen=True)
class Slot:
    """Where one parameter lies in the flat buffers: elements [start, stop)."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        return self.start + prod(self.shape)


@dataclass(frozen=True)
class Bucket:
    """What is communicated at once: elements [start, stop) of the flat buffers, a slice for each rank.

    Attributes:
        index: position in the order of launching.
        names: parameters that have elements in it.
        decays: whether weight decay applies to it.
        shards: ranks that share it.
        lr_scale: what the learning rate is multiplied by.
    """

    index: int
    start: int
    stop: int
    names: tuple[str, ...]
    decays: bool
    shards: int
    lr_scale: float = 1.0

    @property
    def slice_elements(self) -> int:
        return (self.stop - self.start) // self.shards

    def slice_of(self, shard: int) -> slice:
        """The elements of the flat buffers whose optimizer state this shard holds."""
        first = self.start + shard * self.slice_elements
        return slice(first, first + self.slice_elements)


@dataclass(frozen=True)
class Piece:
    """A part of one parameter, in the parameter's own terms: elements [first, stop) of it, flattened.

    Attributes:
        shape: of the whole parameter.
        flat: where the part begins in the flat buffers.
    """

    name: str
    shape: tuple[int, ...]
    first: int
    stop: int
    flat: int

    @property
    def elements(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True)
class Layout:
    """Slots by parameter, and the buckets, which cover the buffers without gaps or overlaps."""

    slots: tuple[Slot, ...]
    buckets: tuple[Bucket, ...]
    shards: int

    @property
    def elements(self) -> int:
        """Length of the flat buffers, padding included."""
        return self.buckets[-1].stop

    @property
    def shard_elements(self) -> int:
        """Elements whose optimizer state one rank holds, padding included."""
        return self.elements // self.shards

    def pieces(self, shard: int) -> list[Piece]:
        """The parts of parameters in this shard's slices, in the order of the flat buffers; padding is in none."""
        slots = iter(sorted(self.slots, key=lambda slot: slot.start))
        slot = next(slots, None)
        pieces: list[Piece] = []
        for bucket in self.buckets:
            own = bucket.slice_of(shard)
            while slot is not None and slot.start < own.stop:
                start, stop = max(slot.start, own.start), min(slot.stop, own.stop)
                if start < stop:
                    pieces.append(Piece(slot.name, slot.shape, start - slot.start, stop - slot.start, start))
                if slot.stop > own.stop:  # the rest lies in another shard's slice, or in a later one of ours
                    break
                slot = next(slots, None)
        return pieces


def decays(shape: Sequence[int]) -> bool:
    """Weight decay applies to matrices (embeddings included) and not to norms and biases."""
    return len(shape) >= 2


def make_layout(
    shapes: Mapping[str, tuple[int, ...]],
    order: Sequence[str],
    shards: int,
    bucket_elements: int,
    lr_scales: Mapping[str, float] | None = None,
) -> Layout:
    """Lay out parameters of these shapes for `shards` ranks.

    Args:
        shapes: shape of each parameter by name; a tied parameter stands once.
        order: all the names, in the order in which backward finishes their gradients.
        bucket_elements: what a bucket holds at most, up to alignment, where the vectors together are not more.
        lr_scales: what the learning rate of a parameter is multiplied by, where that is not 1.

    Raises ValueError where `order` does not name each parameter once.
    """
    if sorted(order) != sorted(shapes) or not shapes:
        raise ValueError("the order must name each parameter once")
    unit = shards * ALIGNMENT
    limit = max(unit, bucket_elements // unit * unit)
    slots: list[Slot] = []
    buckets: list[Bucket] = []
    kinds: dict[tuple[bool, float], list[str]] = {}  # (matrices or vectors, scale) -> names, in order
    for name in order:
        kinds.setdefault((decays(shapes[name]), (lr_scales or {}).get(name, 1.0)), []).append(name)
    for matrices, lr_scale in sorted(kinds, key=lambda kind: not kind[0]):  # stable: scales as they first come
        group: list[Slot] = []  # parameters of the bucket under way, which begins where the last one ended
        for name in kinds[matrices, lr_scale]:
            first = buckets[-1].stop if buckets else 0
            start = aligned(group[-1].stop, ALIGNMENT) if group else first
            if group and matrices and start + prod(shapes[name]) > first + limit:
                buckets += cut(group, first, len(buckets), matrices, unit, limit, shards, lr_scale)
                group, start = [], buckets[-1].stop
            group.append(Slot(name, shapes[name], start))
            slots.append(group[-1])
        if group:
            first = buckets[-1].stop if buckets else 0
            buckets += cut(group, first, len(buckets), matrices, unit, limit if matrices else 0, shards, lr_scale)
    return Layout(tuple(slots), tuple(buckets), shards)


def cut(
    group: list[Slot], first: int, index: int, matrices: bool, unit: int, limit: int, shards: int, lr_scale: float
) -> list[Bucket]:
    """The buckets of neighbouring parameters: one; or several where a single parameter exceeds `limit` (0: none)."""
    stop = first + aligned(group[-1].stop - first, unit)
    step = limit or stop - first
    borders = [*range(first, stop, step), stop]
    names = tuple(slot.name for slot in group)
    return [
        Bucket(index + number, start, end, names, matrices, shards, lr_scale)
        for number, (start, end) in enumerate(pairwise(borders))
    ]


def aligned(elements: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-elements // unit) * unit

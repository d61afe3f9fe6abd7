"""How many bytes does each operator move, against the least possible? Answered without a GPU.

Triton's interpreter runs every operator at the networks' widths, and each load and store is counted. `moved` are the
distinct bytes that a launch reads plus the distinct bytes that it writes: what passes through device memory if the
caches keep what one launch touches again. `requested` counts repeated accesses too. Both are taken at two numbers of
tokens, and the line through them gives the figure at 16,384 tokens; what does not grow with the tokens (partial sums)
is that of 132 multiprocessors. What torch does beside the kernels is not counted: of these operators the embedding's
backward sorts the tokens, and fills a dense gradient of the table with zeros where there is no main gradient.

    python benchmarks/memory_traffic.py             # count, and compare with the committed table
    python benchmarks/memory_traffic.py --write     # count, and commit a new table

Exit code 1 and one line a finding where an operator moves over 1 % more than the committed table says, or stands in the
table alone.
"""

import argparse
import csv
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from triton.runtime import interpreter

from benchmarks.operator_cases import OperatorCase, model_cases
from mindllm_engine.kernels import launch
from mindllm_engine.kernels.backend import select_kernels

TABLE = Path(__file__).parent / "results" / "memory_traffic.csv"
# Few enough for the interpreter, and more than the programs that one multiprocessor holds.
FEW, MANY = 8, 24
TOKENS = 16384
GROWTH = 1.01


@dataclass(frozen=True)
class Row:
    """Bytes of one pass of an operator on 16,384 tokens in bf16."""

    operator: str
    shape: str
    direction: str
    least: int
    moved: int
    requested: int
    ratio: float


class Counter:
    """Bytes of the launches since it was made."""

    def __init__(self) -> None:
        self.moved = 0
        self.requested = 0
        self.read: list[np.ndarray] = []
        self.written: list[np.ndarray] = []
        self.size: dict[int, int] = {}

    def count(self, pointers: Any, mask: Any, into: list[np.ndarray]) -> None:
        """Note the addresses of one load or store."""
        size = pointers.get_element_ty().primitive_bitwidth // 8
        addresses = np.atleast_1d(pointers.data)[np.atleast_1d(mask.data).astype(bool)]
        self.requested += addresses.size * size
        # The size of an element goes into the low bits of its address, which its alignment leaves free.
        into.append(addresses.astype(np.uint64) // np.uint64(size) * np.uint64(16) + np.uint64(size))

    def end_launch(self) -> None:
        """Add up the distinct addresses of the launch that has just ended."""
        read, written = (
            np.unique(np.concatenate(parts)) if parts else np.empty(0, np.uint64) for parts in (self.read, self.written)
        )
        self.moved += int((read % np.uint64(16)).sum() + (written % np.uint64(16)).sum())
        self.read, self.written = [], []


class _Launches(interpreter.GridExecutor):
    """Runs a launch as the interpreter does, and tells the counter when it ends."""

    counter: Counter | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        super().__call__(*args, **kwargs)
        if _Launches.counter is not None:
            _Launches.counter.end_launch()


class _Memory(interpreter.InterpreterBuilder):
    """The interpreter's loads and stores, counted."""

    def create_masked_load(self, ptrs: Any, mask: Any, other: Any, *options: Any) -> Any:
        counter = _Launches.counter
        if counter is not None:
            counter.count(ptrs, mask, counter.read)
        return super().create_masked_load(ptrs, mask, other, *options)

    def create_masked_store(self, ptrs: Any, value: Any, mask: Any, *options: Any) -> Any:
        counter = _Launches.counter
        if counter is not None:
            counter.count(ptrs, mask, counter.written)
        return super().create_masked_store(ptrs, value, mask, *options)


def count_from_now_on() -> None:
    """Put the counting classes in the interpreter's place."""
    interpreter.GridExecutor = _Launches
    interpreter.interpreter_builder.__class__ = _Memory
    launch.H100_MULTIPROCESSORS = 1  # so that few tokens show what grows with them


@contextmanager
def counting() -> Any:
    """Count within."""
    _Launches.counter = Counter()
    try:
        yield _Launches.counter
    finally:
        _Launches.counter = None


def passes(case: OperatorCase, tokens: int) -> dict[str, Counter]:
    """Count the forward and the backward of a case."""
    torch.manual_seed(0)
    arguments = case.make(tokens, torch.device("cpu"), torch.bfloat16)
    counters = {}
    with counting() as counters["forward"]:
        out = case.ours(*arguments)
    if case.backward_bytes is not None:
        outputs = out if isinstance(out, tuple) else (out,)
        gradients = [torch.randn(output.shape).to(output.dtype) for output in outputs]
        with counting() as counters["backward"]:
            torch.autograd.backward(outputs, gradients)
    return counters


def rows_of(case: OperatorCase) -> list[Row]:
    """One row for each direction."""
    few, many = passes(case, FEW), passes(case, MANY)
    rows = []
    for direction in few:
        least_of: Callable[[int, int], int] | None = (
            case.forward_bytes if direction == "forward" else case.backward_bytes
        )
        assert least_of is not None
        least = least_of(TOKENS, 2)
        moved, requested = (
            extrapolate(getattr(few[direction], name), getattr(many[direction], name))
            for name in ("moved", "requested")
        )
        rows.append(Row(case.operator, case.shape, direction, least, moved, requested, round(moved / least, 4)))
    return rows


def extrapolate(few: int, many: int) -> int:
    """The line through both counts at TOKENS, its constant once for each multiprocessor."""
    slope = (many - few) / (MANY - FEW)
    return round(slope * TOKENS + (few - slope * FEW) * 132)


def findings(rows: list[Row], committed: list[Row]) -> list[str]:
    """One line for each operator that moves more than it did."""
    before = {(row.operator, row.shape, row.direction): row for row in committed}
    gone = before.keys() - {(row.operator, row.shape, row.direction) for row in rows}
    lines = [f"{' '.join(key)}: in the committed table alone; run with --write" for key in sorted(gone)]
    for row in rows:
        old = before.get((row.operator, row.shape, row.direction))
        if old is None:
            lines.append(f"{row.operator} {row.shape} {row.direction}: not in the committed table; run with --write")
        elif row.moved > old.moved * GROWTH:
            lines.append(f"{row.operator} {row.shape} {row.direction}: moves {row.moved:,} bytes, before {old.moved:,}")
    return lines


def read_table() -> list[Row]:
    """The committed table; empty where there is none."""
    if not TABLE.exists():
        return []
    kinds = {field.name: field.type for field in fields(Row)}
    with TABLE.open(newline="") as file:
        return [Row(**{name: kinds[name](text) for name, text in line.items()}) for line in csv.DictReader(file)]


def write_table(rows: list[Row]) -> None:
    """Replace the committed table."""
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the committed table by this count")
    parser.add_argument("--only", default="", help="count the operators whose name contains this")
    arguments = parser.parse_args()
    select_kernels("triton")
    count_from_now_on()
    cases = [case for case in model_cases() if arguments.only in case.operator and case.flops is None]
    rows = [row for case in cases for row in rows_of(case)]
    if arguments.write:
        others = [row for row in read_table() if arguments.only not in row.operator] if arguments.only else []
        write_table([*others, *rows])
    for row in rows:
        print(
            f"{row.operator:22} {row.shape:6} {row.direction:9} {row.moved / 1e6:9.1f} MB moved, "
            f"{row.ratio:.3f} of the least; {row.requested / 1e6:9.1f} MB requested"
        )
    found = findings(rows, [row for row in read_table() if arguments.only in row.operator])
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

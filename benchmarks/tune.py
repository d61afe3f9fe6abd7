"""What would other launch constants gain? On one GPU, in about six minutes.

Every constant below is set to other values while its kernel is checked against fp64 and timed as in `kernels.py`, at
16,384 tokens. The committed value comes first and last: what differs between those two is noise. Rows are printed, and
written with `--output FILE` as CSV, as they come. Nothing is changed: a better value goes into the kernel's file by
hand, and `results/machine_code.csv` is made anew.

    python benchmarks/tune.py                                  # on a GPU
    TRITON_INTERPRET=1 python benchmarks/tune.py --only square_norm  # without one: toy sizes, tests the harness

The order is that of the gain to be expected. A row that could not be measured says why.
"""

import argparse
import csv
import importlib
import pkgutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # instead of this folder, whose names others may look for
    sys.path[0] = str(Path(__file__).parent.parent)

import torch

from benchmarks.correctness import Variant, check, own_peers
from benchmarks.kernels import CPU_TOKENS, GPU_TOKENS, say, time_case
from benchmarks.operator_cases import OperatorCase, model_cases
from benchmarks.peers import one_line
from benchmarks.results_files import NO_GPU, Measurement, number
from benchmarks.timing import still_works
from mindllm_engine import kernels
from mindllm_engine.kernels.backend import interpreted, select_kernels

COLUMNS = ("operator", "shape", "constant", "value", "mode", "ms", "ms_20", "ms_80", "GB/s", "TFLOP/s", "MB", "note")


@dataclass(frozen=True)
class Trial:
    """Values to try for one constant of the files under `mindllm_engine/kernels/`, timed with one operator."""

    operator: str
    constant: str
    values: tuple[int, ...]


TRIALS = (
    # Programs that share the rows, in warps a multiprocessor: too few leave loads out of flight, too many add partials.
    Trial("deepnorm_residual", "ACCUMULATING_WARPS", (8, 16, 32, 48)),
    Trial("rms_norm", "ACCUMULATING_WARPS", (8, 16, 32, 48)),
    # Rows of logits at a time: memory against traffic of dweight.
    Trial("linear_cross_entropy_main_grad", "SMALLEST_CHUNK", (1024, 1664, 3328)),
    Trial("rotary", "THREAD_ELEMENTS", (8, 16, 64)),
    Trial("rotary", "TILE_ELEMENTS", (2048, 4096, 16384)),
    Trial("geglu", "GATED_BLOCK", (512, 2048, 4096)),
    Trial("cross_entropy", "BLOCK", (8192, 16384, 65536)),
    Trial("adamw", "BLOCK", (512, 2048, 4096)),
    Trial("embedding_norm", "CHUNK", (8, 16, 64)),
    Trial("embedding_norm", "SUM_TILE", (256, 1024)),
    Trial("embedding_norm", "LIGHT_WARPS", (16, 48)),
    Trial("residual_layer_norm", "LIGHT_WARPS", (16, 24, 48)),
    Trial("bias_gelu", "FORWARD_ROWS", (1, 2, 8)),
    Trial("bias_gelu", "BACKWARD_ROWS", (1, 4)),
    Trial("square_norm", "CHUNK", (1 << 14, 1 << 15, 1 << 17)),
)


def modules_of(trial: Trial) -> list[Any]:
    """The files that know the constant: the operator's own where that has it, otherwise all that share it."""
    names = [info.name for info in pkgutil.iter_modules(kernels.__path__)]
    modules = [importlib.import_module(f"{kernels.__name__}.{name}") for name in names]
    own = [m for m in modules if m.__name__.endswith(f".{trial.operator}") and trial.constant in vars(m)]
    return own or [module for module in modules if trial.constant in vars(module)]


@contextmanager
def constant_set(trial: Trial, value: int) -> Iterator[None]:
    """The constant at another value, and programs built anew."""
    modules = modules_of(trial)
    before = [getattr(module, trial.constant) for module in modules]
    try:
        for module in modules:
            setattr(module, trial.constant, value)
        forget_programs()
        yield
    finally:
        for module, old in zip(modules, before, strict=True):
            setattr(module, trial.constant, old)
        forget_programs()


def forget_programs() -> None:
    """Programs are kept by shape."""
    for info in pkgutil.iter_modules(kernels.__path__):
        for function in vars(importlib.import_module(f"{kernels.__name__}.{info.name}")).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()


def rows_of(case: OperatorCase, tokens: int, device: torch.device) -> list[Measurement]:
    """The operator's times as it now is; raises where it is wrong."""
    failure = check(case, [], device).failure
    if failure is not None:
        raise ValueError(failure)
    return time_case(case, tokens, [Variant(own_peers(case)[0])], device)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="operators whose name contains this")
    parser.add_argument("--output", type=Path, help="write the rows here")
    parser.add_argument("--budget-minutes", type=float, default=8.0, help="begin no new constant after so many minutes")
    arguments = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    select_kernels("triton" if device.type == "cuda" or interpreted() else "reference")
    if device.type != "cuda":
        say(NO_GPU)
    tokens = GPU_TOKENS[0] if device.type == "cuda" else CPU_TOKENS[0]
    writer = None
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        file = arguments.output.open("w", newline="", buffering=1)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
    start, works = time.monotonic(), True
    for trial in TRIALS:
        if arguments.only not in trial.operator:
            continue
        if not works or time.monotonic() - start > 60 * arguments.budget_minutes:
            say(f"left out: {trial.operator} {trial.constant}")
            continue
        case = next(case for case in model_cases() if case.operator == trial.operator)
        committed = getattr(modules_of(trial)[0], trial.constant)
        for value in (committed, *trial.values, committed):
            for cells in trial_rows(trial, value, case, tokens, device):
                say("  ".join(str(cell) for cell in cells))
                if writer is not None:
                    writer.writerow(cells)
            works = works and still_works(device)
    return 0


def trial_rows(
    trial: Trial, value: int, case: OperatorCase, tokens: int, device: torch.device
) -> Iterator[tuple[Any, ...]]:
    """A row for each direction; one with the reason where the kernel does not work with this value."""
    place = (trial.operator, case.shape, trial.constant, value)
    try:
        with constant_set(trial, value):
            rows = rows_of(case, tokens, device)
    except Exception as error:
        yield *place, *[""] * 7, one_line(error)
        return
    for row in rows:
        times = [1e3 * t for t in (row.seconds.median, row.seconds.low, row.seconds.high)] if row.seconds else []
        rates = [(row.bytes_per_second or 0) / 1e9, (row.flops_per_second or 0) / 1e12]
        figures = [f"{x:.5g}" for x in (*times, *rates)] if times else [""] * 5
        yield *place, row.mode, *figures, number(row.memory, 2**-20), row.note


if __name__ == "__main__":
    sys.exit(main())

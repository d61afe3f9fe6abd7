"""How fast is each kernel, beside every other implementation that imports? On one GPU, in about five minutes.

First every kernel is checked against fp64 on fresh random inputs: its error may be twice that of torch eager in the
same dtype. Then it is timed side by side with its peers in the same run (`timing.py`): GPU time, wall time, GB/s, share
of the copy bandwidth measured in this run, TFLOP/s, peak memory and error, for both networks at 8k, 16k and 32k tokens
and over widths. Results go to `benchmarks/results/<device>/`, and to disk as they come; when the time budget is spent
no new case is begun, and those left out are named.

    python benchmarks/kernels.py                               # on a GPU
    TRITON_INTERPRET=1 python benchmarks/kernels.py            # without one: toy sizes, tests the harness

Exit code 1 where a kernel is wrong or cannot run.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # instead of this folder, whose names others may look for
    sys.path[0] = str(Path(__file__).parent.parent)

import torch
import torch._functorch.config
from torch import Tensor

from benchmarks import results_files
from benchmarks.bars import bars, compared, ratio_of, seconds_of
from benchmarks.correctness import DTYPE, Checked, Inputs, Variant, check, differentiable, fits, run_once, upstream_of
from benchmarks.operator_cases import OperatorCase, model_cases, sweep_cases
from benchmarks.peers import compiled, one_line, peers_of, rms_norm_implementation
from benchmarks.results_files import Ceilings, CsvFile, Measurement, markdown_table, number
from benchmarks.timing import (
    copy_bandwidth,
    empty_cache,
    extra_memory,
    gemm_flops,
    measure,
    rotation,
    still_works,
    tensors_in,
    wall_seconds,
)
from mindllm_engine.kernels.backend import interpreted, select_kernels

VOCAB_3B = 125700
# The size of the bars first.
GPU_TOKENS, CPU_TOKENS = (16384, 8192, 32768), (4,)
# An interpreted kernel takes a second a row beyond this width.
WIDEST_ON_CPU = 8192
# torch.compile tunes to the utmost until it has taken the first share of the budget, and stops at the second.
COMPILE_SHARES = (0.25, 0.5)


class Budget:
    """Minutes that the run may take."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self.start = time.monotonic()
        self.compiling = 0.0

    @property
    def used(self) -> float:
        return time.monotonic() - self.start

    @property
    def spent(self) -> bool:
        return self.used > self.seconds

    @property
    def compile_mode(self) -> str | None:
        """How torch.compile tunes the next case."""
        utmost, most = (share * self.seconds for share in COMPILE_SHARES)
        if self.compiling > most:
            return None
        return "max-autotune-no-cudagraphs" if self.compiling < utmost else "default"


# ------------------------------------------------------------------------------------------------------ timing


def input_sets(case: OperatorCase, tokens: int, device: torch.device) -> list[tuple[Any, ...]]:
    """Sets of arguments that calls rotate over, so that the cache holds none of the next."""
    first = case.make(tokens, device, DTYPE)
    size = sum(x.numel() * x.element_size() for x in tensors_in(first))
    return [first, *(case.make(tokens, device, DTYPE) for _ in range(rotation(size, device) - 1))]


class Directions:
    """The calls of one variant in each direction, a call for each set of inputs.

    Attributes:
        forward, backward, full: `backward` goes through a graph that stays; it is empty where that cannot be gone
            through twice, and then timed as `full` less `forward`. An operator that overwrites what it has saved is
            gone through again all the same: its time does not depend on the values.
    """

    def __init__(self, variant: Variant, sets: list[Inputs], modes: tuple[str, ...]) -> None:
        self.forward = [inputs.bind(variant.peer) for inputs in sets]
        self.backward: list[Callable[[], Any]] = []
        self.full: list[Callable[[], Any]] = []
        if variant.peer.no_grad:
            self.full, self.forward = self.forward, []
        elif modes != ("forward",):
            for inputs, forward in zip(sets, self.forward, strict=True):
                outputs = differentiable(forward())
                upstream = upstream_of(outputs, random=True)
                self.full.append(partial(both_ways, forward, inputs.leaves, upstream))
                if "backward" in modes:
                    self.backward.append(partial(backward_again, outputs, inputs.leaves, upstream))
            if self.backward and not stays_finite(self.backward[0]):
                self.backward = []
        (self.full or self.forward)[0]()


def both_ways(forward: Callable[[], Any], leaves: list[Tensor], upstream: list[Tensor]) -> Any:
    """Forward and backward."""
    return torch.autograd.grad(differentiable(forward()), leaves, upstream, allow_unused=True)


def backward_again(outputs: list[Tensor], leaves: list[Tensor], upstream: list[Tensor]) -> Any:
    """Backward through a graph that stays."""
    return torch.autograd.grad(outputs, leaves, upstream, retain_graph=True, allow_unused=True)


def stays_finite(backward: Callable[[], Any]) -> bool:
    """Whether one graph can be gone through again and again."""
    try:
        backward()
        return all(bool(x.isfinite().all()) for x in tensors_in(backward()))
    except RuntimeError:
        return False


def modes_of(case: OperatorCase) -> tuple[str, ...]:
    """The directions worth a row: where products bound an operator, its gradients may be made in either."""
    if case.backward_bytes is None:
        return ("forward",)
    return ("full",) if case.flops is not None else ("forward", "backward")


def time_case(case: OperatorCase, tokens: int, variants: list[Variant], device: torch.device) -> list[Measurement]:
    """A row for each variant and direction; not interleaved where memory does not hold all of them at once, or one of
    them fails. That one's rows then have no time, and the reason."""
    if len(variants) > 1:
        try:
            return time_together(case, tokens, variants, device)
        except Exception:
            pass  # which one it was is seen when each has its own turn
    rows = []
    for variant in variants:
        empty_cache(device)
        if len(variants) > 1:
            variant = replace(variant, peer=replace(variant.peer, note=f"{variant.peer.note} (timed alone)".strip()))
        try:
            rows += time_together(case, tokens, [variant], device)
        except Exception as error:
            reason = one_line(error)
            rows += [row_of(case, tokens, variant, mode, {}, {}, reason, device) for mode in modes_of(case)]
    return rows


def time_together(case: OperatorCase, tokens: int, variants: list[Variant], device: torch.device) -> list[Measurement]:
    """A row for each variant and direction, interleaved."""
    shared = input_sets(case, tokens, device)
    directions: dict[str, Directions] = {}
    reasons: dict[str, str] = {}
    for variant in variants:
        try:
            # One that overwrites its inputs must not change the others'; an optimizer does so by its nature.
            own = variant.mutates and case.backward_bytes is not None
            sets = input_sets(case, tokens, device) if own else shared
            directions[variant.name] = Directions(variant, [Inputs(args) for args in sets], modes_of(case))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reasons[variant.name] = one_line(error)
    rows = []
    for mode in modes_of(case):
        calls = {name: getattr(found, mode) for name, found in directions.items() if getattr(found, mode)}
        spreads = measure(calls, device)
        if mode == "backward":
            spreads |= backward_by_difference(directions, device)
        rows += [
            row_of(case, tokens, variant, mode, directions, spreads, reasons.get(variant.name, ""), device)
            for variant in variants
        ]
    return rows


def backward_by_difference(directions: dict[str, Directions], device: torch.device) -> dict[str, Any]:
    """Times of the variants whose graph cannot be gone through twice."""
    rest = {name: found for name, found in directions.items() if found.full and found.forward and not found.backward}
    full = measure({name: found.full for name, found in rest.items()}, device)
    forward = measure({name: found.forward for name, found in rest.items()}, device)
    return {name: full[name].minus(forward[name]) for name in rest}


def row_of(
    case: OperatorCase,
    tokens: int,
    variant: Variant,
    mode: str,
    directions: dict[str, Directions],
    spreads: dict[str, Any],
    reason: str,
    device: torch.device,
) -> Measurement:
    """A variant's row in one direction, with its wall time and memory."""
    found, spread = directions.get(variant.name), spreads.get(variant.name)
    size = torch.empty((), dtype=DTYPE).element_size()
    forward_bytes = case.forward_bytes(tokens, size)
    backward_bytes = case.backward_bytes(tokens, size) if case.backward_bytes else 0
    notes = [variant.peer.note, reason]
    wall = memory = None
    if found is not None and spread is not None:
        calls = getattr(found, mode) or found.full
        wall = wall_seconds(calls[0], device)
        memory = extra_memory((found.full or found.forward)[0], device)
        notes += ["host-bound: launch gaps within"] if spread.host_bound else []
        notes += ["forward and backward less forward"] if mode == "backward" and not found.backward else []
    return Measurement(
        operator=case.operator,
        shape=case.shape,
        width=case.width,
        tokens=tokens,
        provider=variant.name,
        mode=mode,
        seconds=spread,
        wall=wall,
        bytes={"forward": forward_bytes, "backward": backward_bytes, "full": forward_bytes + backward_bytes}[mode],
        flops=case.flops(tokens) if case.flops and mode == "full" else None,
        memory=memory,
        error=variant.error,
        note="; ".join(note for note in notes if note),
        bound=variant.peer.bound,
    )


# ------------------------------------------------------------------------------------------------------- a run


class Run:
    """A run of the benchmark: what it has found so far, and where it writes it."""

    def __init__(self, folder: Path, device: torch.device, budget: Budget) -> None:
        self.folder, self.device, self.budget = folder, device, budget
        self.rows: list[Measurement] = []
        self.absent: dict[str, str] = {}
        self.failures: list[str] = []
        self.left_out: list[str] = []
        self.right: list[str] = []
        self.checks: dict[tuple[str, str], Checked] = {}
        self.csv = CsvFile(folder / "kernels.csv", device)
        try:
            self.rms_norm = rms_norm_implementation(device)
        except Exception as error:  # the profiler may not run on every machine
            self.rms_norm = one_line(error)
        self.ceilings = Ceilings(copy_bandwidth(device), gemm_flops(device))

    def case(self, case: OperatorCase, tokens: int) -> None:
        """Check and time one operator at one shape."""
        name = f"{case.operator} {case.shape}, {tokens} tokens"
        variants = [*self.check(case).variants, *self.compile(case, tokens)]
        rows = time_case(case, tokens, variants, self.device)
        self.rows += rows
        self.csv.add(rows, self.ceilings)
        for row in rows:
            if row.provider == "ours" and row.seconds is None:
                self.fail(f"{name}, {row.mode}: {row.note}")
        shown = " ".join(
            f"{row.provider}/{row.mode} {number(row.seconds.median if row.seconds else None, 1e3, 4)}" for row in rows
        )
        say(f"[{self.budget.used:5.0f} s] {name}: {shown} ms")

    def check(self, case: OperatorCase) -> Checked:
        """Every implementation of a case against fp64, once."""
        key = (case.operator, case.shape)
        if key not in self.checks:
            checked = self.checks[key] = check(case, peers_of(case, self.device), self.device)
            absent = (peer for peer in checked.absent if peer.name != "ours")
            self.absent.update({f"{case.operator}: {peer.name}": peer.note for peer in absent})
            name = f"{case.operator} {case.shape}"
            if checked.failure is not None:
                self.fail(f"{name}: {checked.failure}")
            else:
                error = next(variant.error for variant in checked.variants if variant.name == "ours")
                self.right.append(
                    f"{name}: relative error {error:.2g} beside {checked.truth} on {checked.tokens} tokens"
                )
        return self.checks[key]

    def compile(self, case: OperatorCase, tokens: int) -> list[Variant]:
        """torch.compile of the case at this shape, where it can."""
        peer = compiled(case, self.device, self.budget.compile_mode)
        reason = peer.note
        if peer.bind is not None:
            started = time.monotonic()
            try:
                run_once(peer, case.make(tokens, self.device, DTYPE))
                return [Variant(peer)]
            except Exception as error:
                reason = one_line(error)
            finally:
                self.budget.compiling += time.monotonic() - started
        self.absent[f"{case.operator}: {peer.name}"] = reason
        return []

    def fail(self, line: str) -> None:
        """Note, and say at once, that a kernel is wrong or cannot run."""
        self.failures.append(line)
        say(f"FAIL {line}")

    def bars(self) -> list[dict[str, Any]]:
        operators = list(dict.fromkeys(case.operator for case in model_cases()))
        return bars(self.rows, self.ceilings, operators, self.device.type == "cuda", VOCAB_3B)

    def write(self) -> None:
        """The report and the rows; after each case, so that a kill loses little. The CSV is written as it comes."""
        (self.folder / "kernels.md").write_text(self.markdown())
        results_files.write_json(self.folder / "kernels.json", self.device, self.json_rows())

    def plot(self) -> None:
        """The plots; a second or two each, so only at the end."""
        measured = self.device.type == "cuda"
        results_files.plot_operators(self.folder, self.rows, self.ceilings, measured)
        results_files.plot_sweep(self.folder, self.rows, self.ceilings, measured)

    def json_rows(self) -> list[dict[str, Any]]:
        """The bars, ours beside the best peer of each shape, and every absent peer with its reason."""
        rows = self.bars()
        measured = self.rows if self.device.type == "cuda" else []
        for operator in dict.fromkeys(row.operator for row in measured):
            for ours, peer in compared(measured, operator):
                ratio = ratio_of((ours, peer))
                rows.append(
                    {
                        "name": f"{operator} {ours.shape}, {ours.tokens} tokens, {ours.mode}",
                        "unit": "ms",
                        "ours": 1e3 * seconds_of(ours),
                        "peer": 1e3 * seconds_of(peer),
                        "peer_name": peer.provider,
                        "ratio": ratio,
                        "bar": 0.97,
                        "holds": ratio >= 0.97,
                    }
                )
        for name, reason in self.absent.items():
            empty = {"unit": "ms", "ours": None, "peer": None, "ratio": None, "bar": None, "holds": None}
            rows.append({"name": name, "peer_name": name.split(": ")[1], **empty, "reason": reason})
        return rows

    def markdown(self) -> str:
        """The report."""
        measured = self.device.type == "cuda"
        parts = [f"# Kernels on {results_files.device_name(self.device)}", f"Made by `{command_line()}`."]
        if not measured:
            parts.append(f"**{results_files.NO_GPU}**")
        found = ", ".join(f"{name} {version}" for name, version in results_files.version_lines(self.device).items())
        parts.append(f"{found}. `F.rms_norm`: {self.rms_norm}.")
        parts.append(
            f"Ceilings of this run: copy {self.ceilings.copy / 1e9:.0f} GB/s (read and written), bf16 product "
            f"{self.ceilings.gemm / 1e12:.3g} TFLOP/s."
        )
        header = ("bar", "ours", "beside", "", "unit", "ratio", "aim", "holds", "")
        rows = (
            (
                row["name"],
                number(row["ours"], 1, 4),
                row["peer_name"],
                number(row["peer"], 1, 4),
                row["unit"],
                number(row["ratio"]),
                str(row["bar"]),
                {True: "yes", False: "NO", None: "not measured"}[row["holds"]],
                row["reason"] or "",
            )
            for row in self.bars()
        )
        parts += ["## Bars", markdown_table(header, rows)]
        parts += ["## Correctness", bullets([*(f"WRONG: {line}" for line in self.failures), *self.right])]
        parts += ["## Absent peers", bullets(f"{name}: {reason}" for name, reason in self.absent.items())]
        parts += ["## Left out", bullets(self.left_out)]
        parts += ["## All rows", results_files.measurement_table(self.rows, self.ceilings)]
        return "\n\n".join(parts) + "\n"


def command_line() -> str:
    """What was run, without the machine's paths."""
    return " ".join(["python benchmarks/kernels.py", *("..." if "/" in part else part for part in sys.argv[1:])])


def bullets(lines: Any) -> str:
    return "\n".join(f"- {line}" for line in lines) or "None."


def say(line: str) -> None:
    print(line, flush=True)


def work_list(
    models: list[OperatorCase], sweep: list[OperatorCase], token_counts: Sequence[int], device: torch.device
) -> list[tuple[OperatorCase, int]]:
    """What to time, the bars first: the networks at the first number of tokens, the sweep, then other numbers."""
    first, *others = token_counts
    work = [(case, first) for case in sorted(models, key=lambda case: not case.shape.startswith("3B"))]
    # The sweep keeps the elements of a tensor constant.
    elements = first * 4096 if device.type == "cuda" else first * 1024
    work += [(case, max(1, elements // case.width)) for case in sweep]
    return work + [(case, tokens) for tokens in others for case in models]


def main(
    argv: Sequence[str] | None = None,
    models: list[OperatorCase] | None = None,
    sweep: list[OperatorCase] | None = None,
) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", help="numbers of tokens, the bars' first")
    parser.add_argument("--only", default="", help="operators whose name contains this")
    parser.add_argument("--output", type=Path, help="folder of the results")
    parser.add_argument("--budget-minutes", type=float, default=4.6, help="begin no new case after so many minutes")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    arguments = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seed = time.time_ns() % (1 << 31)
    torch.manual_seed(seed)
    say(f"random inputs of seed {seed}")
    torch._functorch.config.donated_buffer = False  # compiled graphs are gone through backward more than once
    select_kernels("triton" if device.type == "cuda" or interpreted() else "reference")
    if device.type != "cuda":
        say(results_files.NO_GPU)
    run = Run(arguments.output or results_files.results_folder(device), device, Budget(arguments.budget_minutes))
    tokens = arguments.tokens or (GPU_TOKENS if device.type == "cuda" else CPU_TOKENS)
    work = work_list(
        model_cases() if models is None else models, sweep_cases() if sweep is None else sweep, tokens, device
    )
    works = True
    for case, count in work:
        name = f"{case.operator} {case.shape}, {count} tokens"
        if arguments.only not in case.operator:
            continue
        if not works:
            run.left_out.append(f"{name}: the GPU had failed")
            continue
        if run.budget.spent:
            run.left_out.append(f"{name}: the time budget was spent")
            continue
        if device.type != "cuda" and (case.width > WIDEST_ON_CPU or not fits(case, count, device)):
            run.left_out.append(f"{name}: too large for a CPU")
            continue
        try:
            run.case(case, count)
        except Exception as error:  # one case that cannot run (out of memory, say) must not cost the others
            run.fail(f"{name}: {one_line(error)}")
        run.write()
        works = still_works(device)
    run.write()
    try:
        run.plot()
    except Exception as error:
        say(f"no plots: {one_line(error)}")
    if arguments.json:
        results_files.write_json(arguments.json, device, run.json_rows())
    say(run.markdown().split("## All rows")[0])
    say(f"{len(run.rows)} rows in {run.folder.name}/, {len(run.failures)} failures, {len(run.left_out)} left out")
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())

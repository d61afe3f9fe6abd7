"""What a run of the benchmarks leaves: rows as CSV (Liger's columns), Markdown, JSON, and plots."""

import csv
import json
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import versions
from benchmarks.timing import Spread

RESULTS = Path(__file__).parent / "results"
# The columns of benchmark/data/all_benchmark_data.csv of linkedin/Liger-Kernel.
COLUMNS = (
    "kernel_name",
    "kernel_provider",
    "kernel_operation_mode",
    "metric_name",
    "metric_unit",
    "x_name",
    "x_label",
    "x_value",
    "y_value_50",
    "y_value_20",
    "y_value_80",
    "extra_benchmark_config_str",
    "gpu_name",
    "timestamp",
    "liger_version",
)
NO_GPU = (
    "No GPU was at hand: kernels were interpreted on the CPU at toy sizes. This run tests the harness; its times say "
    "nothing about any device and no bar is measured."
)


@dataclass(frozen=True)
class Measurement:
    """One implementation of one operator at one shape in one direction.

    Attributes:
        mode: "forward", "backward" or "full" (both).
        seconds: device time of a call; None where it could not be measured, for which `note` has the reason.
        wall: seconds of one eager call on the host's clock, from idle to idle.
        bytes, flops: the least that the operator must move and compute in that direction.
        memory: bytes at the peak beyond inputs, outputs and gradients.
        error: the largest relative error against fp64 over outputs and gradients.
        bound: does less than the operator.
    """

    operator: str
    shape: str
    width: int
    tokens: int
    provider: str
    mode: str
    seconds: Spread | None = None
    wall: float | None = None
    bytes: int = 0
    flops: int | None = None
    memory: int | None = None
    error: float | None = None
    note: str = ""
    bound: bool = False

    @property
    def bytes_per_second(self) -> float | None:
        return self.bytes / self.seconds.median if self.seconds and self.seconds.median and self.bytes else None

    @property
    def flops_per_second(self) -> float | None:
        return self.flops / self.seconds.median if self.seconds and self.seconds.median and self.flops else None


@dataclass(frozen=True)
class Ceilings:
    """What the machine reached in this run: bytes/s of a copy, FLOP/s of a bf16 product."""

    copy: float
    gemm: float


def device_name(device: torch.device) -> str:
    """The GPU's name, or what the CPU's kernels run on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}), interpreted kernels"


def results_folder(device: torch.device) -> Path:
    """`benchmarks/results/<device>`."""
    name = device_name(device) if device.type == "cuda" else "cpu-interpreter"
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


class CsvFile:
    """Rows in Liger's layout, on disk as soon as they are known."""

    def __init__(self, path: Path, device: torch.device) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("w", newline="")
        self.writer = csv.DictWriter(self.file, COLUMNS, lineterminator="\n")
        self.writer.writeheader()
        self.gpu = device_name(device)
        self.liger = dict(versions())["liger-kernel"]

    def add(self, rows: Iterable[Measurement], ceilings: Ceilings) -> None:
        for row in rows:
            for metric, unit, values in metrics_of(row, ceilings):
                self.writer.writerow(self.cells(row, metric, unit, values))
        self.file.flush()

    def cells(self, row: Measurement, metric: str, unit: str, values: Sequence[float]) -> dict[str, Any]:
        sweep = row.shape.startswith("width")
        extra = {"shape": row.shape, "tokens": row.tokens, "width": row.width, "dtype": "bfloat16", "note": row.note}
        numbers = (*(("H", "hidden size", row.width) if sweep else ("T", "tokens", row.tokens)), *values)
        return dict(
            zip(
                COLUMNS,
                (
                    row.operator,
                    row.provider,
                    row.mode,
                    metric,
                    unit,
                    *numbers,
                    json.dumps(extra),
                    self.gpu,
                    datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
                    self.liger,
                ),
                strict=True,
            )
        )


def metrics_of(row: Measurement, ceilings: Ceilings) -> Iterable[tuple[str, str, tuple[float, float, float]]]:
    """(metric, unit, (median, 20th, 80th percentile)) of everything a row holds."""
    if row.seconds is not None:
        times = (row.seconds.median, row.seconds.low, row.seconds.high)
        yield "speed", "ms", tuple(1e3 * t for t in times)
        for metric, unit, amount, scale in (
            ("bandwidth", "GB/s", row.bytes, 1e-9),
            ("copy_share", "%", row.bytes, 100 / ceilings.copy),
            ("throughput", "TFLOP/s", row.flops, 1e-12),
        ):
            if amount and min(times) > 0:
                yield metric, unit, tuple(amount / t * scale for t in (times[0], times[2], times[1]))
    for metric, unit, value in (
        ("wall", "ms", None if row.wall is None else 1e3 * row.wall),
        ("memory", "MB", None if row.memory is None else row.memory / 2**20),
        ("error", "relative", row.error),
    ):
        if value is not None:
            yield metric, unit, (value, value, value)


def number(value: float | None, scale: float = 1.0, digits: int = 3) -> str:
    """A figure for a table; a dash where there is none."""
    return (
        "-" if value is None else f"{value * scale:.{digits}g}" if abs(value * scale) < 1000 else f"{value * scale:.0f}"
    )


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def measurement_table(rows: Iterable[Measurement], ceilings: Ceilings) -> str:
    """All rows as Markdown."""
    header = ("operator", "shape", "tokens", "mode", "provider", "GPU ms", "wall ms", "GB/s", "% of copy", "TFLOP/s")
    return markdown_table(
        (*header, "extra MB", "error", "note"),
        (
            (
                row.operator,
                row.shape,
                str(row.tokens),
                row.mode,
                row.provider,
                number(row.seconds.median if row.seconds else None, 1e3, 4),
                number(row.wall, 1e3, 4),
                number(row.bytes_per_second, 1e-9, 4),
                number(row.bytes_per_second, 100 / ceilings.copy),
                number(row.flops_per_second, 1e-12, 4),
                number(row.memory, 2**-20, 4),
                number(row.error, 1.0, 2),
                row.note,
            )
            for row in rows
        ),
    )


def version_lines(device: torch.device) -> dict[str, str]:
    """Versions of everything that took part."""
    found = dict(versions()) | {"python": sys.version.split()[0]}
    if device.type == "cuda":
        found["cuda"] = str(torch.version.cuda)
    return found


def write_json(path: Path, device: torch.device, rows: list[dict[str, Any]]) -> None:
    """The format every benchmark of this project shares."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": device_name(device), "versions": version_lines(device), "rows": rows}
    path.write_text(json.dumps(document, indent=1) + "\n")


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files; None where it is not installed."""
    if find_spec("matplotlib") is None:
        return None
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def plot_sweep(folder: Path, rows: list[Measurement], ceilings: Ceilings, measured: bool) -> None:
    """GB/s over width, a panel for each operator and direction, a line for each provider."""
    plt = pyplot()
    swept = [row for row in rows if row.shape.startswith("width") and row.bytes_per_second and not row.bound]
    panels = sorted({(row.operator, row.mode) for row in swept}, key=lambda panel: (panel[0], panel[1] != "forward"))
    if plt is None or not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), squeeze=False, sharey=True)
    for axis, (operator, mode) in zip(axes[0], panels, strict=True):
        chosen = [row for row in swept if (row.operator, row.mode) == (operator, mode)]
        for provider in sorted({row.provider for row in chosen}, key=lambda name: name != "ours"):
            line = sorted((row for row in chosen if row.provider == provider), key=lambda row: row.width)
            values = [(row.bytes_per_second or 0.0) / 1e9 for row in line]
            axis.plot([row.width for row in line], values, "o-", label=provider, lw=2.2 if provider == "ours" else 1)
        axis.axhline(ceilings.copy / 1e9, color="grey", ls="--", lw=1, label="copy")
        axis.set(title=f"{operator}, {mode}", xlabel="columns", xscale="log")
        axis.set_xscale("log", base=2)
    axes[0][0].set_ylabel("GB/s")
    axes[0][0].legend(fontsize=7)
    save_figure(plt, figure, folder / "sweep.png", measured)


def plot_operators(folder: Path, rows: list[Measurement], ceilings: Ceilings, measured: bool) -> None:
    """Share of the copy bandwidth, a bar for each provider, grouped by operator and direction."""
    plt = pyplot()
    chosen = [
        row for row in rows if row.shape.startswith("3B") and row.bytes_per_second and not row.bound and not row.flops
    ]
    if not chosen:
        chosen = [row for row in rows if row.bytes_per_second and not row.bound and not row.flops]
    if plt is None or not chosen:
        return
    first = (chosen[0].tokens,)
    chosen = [row for row in chosen if row.tokens == first[0]]
    groups = list(dict.fromkeys((row.operator, row.shape, row.mode) for row in chosen))
    providers = sorted({row.provider for row in chosen}, key=lambda name: name != "ours")
    figure, axis = plt.subplots(figsize=(1.6 + 1.1 * len(groups), 4))
    for index, provider in enumerate(providers):
        found = {(r.operator, r.shape, r.mode): r.bytes_per_second or 0.0 for r in chosen if r.provider == provider}
        heights = [100 * found.get(group, 0.0) / ceilings.copy for group in groups]
        width = 0.8 / len(providers)
        axis.bar([place + index * width for place in range(len(groups))], heights, width, label=provider)
    names = [f"{operator}\n{mode}" + ("" if shape == "3B" else f"\n{shape}") for operator, shape, mode in groups]
    axis.set_xticks([place + 0.4 for place in range(len(groups))], names, fontsize=7)
    axis.set(ylabel="% of the copy bandwidth", title=f"{first[0]} tokens")
    axis.legend(fontsize=7)
    save_figure(plt, figure, folder / "operators.png", measured)


def save_figure(plt: Any, figure: Any, path: Path, measured: bool) -> None:
    """Write a figure; one that was not measured on a GPU says so."""
    if not measured:
        figure.suptitle("no GPU: interpreted at toy sizes, no measurement", fontsize=8, color="red")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)

"""Where the device's time goes: the kernels of some steps, by what they are for."""

import importlib
import pkgutil
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType

from benchmarks.results_files import markdown_table, number, pyplot, save_figure
from benchmarks.timing import synchronize

OPTIMIZER = "optimizer"
# Our modules whose kernels belong to the optimizer's step.
OPTIMIZER_MODULES = ("adamw", "square_norm")
# The first pattern that a kernel's name contains decides; ours are known by name.
CATEGORIES = (
    ("attention", r"flash|fmha|attention|sdpa"),
    ("matrix products", r"gemm|cutlass|nvjet|cublas|xmma|wgmma|\bb?mm\b|addb?mm|matmul"),
    (OPTIMIZER, r"adam|multi_tensor|foreach"),
    ("Inductor's and Liger's kernels", r"^triton_|liger|^_triton_rope|^_(rms_norm|layer_norm|swiglu)_(for|back)ward"),
    ("copies and fills", r"memcpy|memset|copy|fill|zero"),
)
OTHER, IDLE = "other", "idle"
LONGEST_LIST = 12


@dataclass(frozen=True)
class Breakdown:
    """Seconds of a step by category, idle included, and the longest kernels as (name, category, seconds)."""

    seconds: dict[str, float]
    kernels: list[tuple[str, str, float]]

    def table(self) -> str:
        """Both as Markdown."""
        total = sum(self.seconds.values())
        rows = [(name, number(s, 1e3, 4), number(s / total, 100)) for name, s in self.seconds.items()]
        longest = [(f"`{name[:90]}`", category, number(s, 1e3, 4)) for name, category, s in self.kernels]
        return (
            markdown_table(("what", "ms a step", "%"), rows)
            + "\n\n"
            + markdown_table(("kernel", "what", "ms a step"), longest)
        )


@cache
def our_kernels() -> dict[str, str]:
    """Name of each Triton kernel of this project -> its operator's module. No two share a name."""
    import mindllm_engine.kernels as package

    found: dict[str, str] = {}
    for module_info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{module_info.name}")
        for value in vars(module).values():
            function = getattr(value, "fn", None)
            if function is not None and getattr(function, "__module__", "") == module.__name__:
                found[function.__name__] = module_info.name
    return found


def category_of(kernel: str) -> str:
    """What a kernel is for, by its name."""
    module = our_kernels().get(kernel)
    if module is not None:
        return OPTIMIZER if module in OPTIMIZER_MODULES else f"ours: {module}"
    for category, pattern in CATEGORIES:
        if re.search(pattern, kernel, re.IGNORECASE):
            return category
    return OTHER


def breakdown_of(run: Callable[[], Any], steps: int, device: torch.device) -> Breakdown:
    """Profile `run`, which takes some steps. On a CPU, torch's own operators stand for kernels."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
    synchronize(device)
    start = time.perf_counter()
    with torch.profiler.profile(activities=activities) as profile:
        run()
        synchronize(device)
        wall = time.perf_counter() - start
    kernels: Counter[str] = Counter()
    ends = []
    for event in profile.events():
        if event.is_user_annotation:  # torch's optimizers mark their steps, which kernels already fill
            continue
        if device.type == "cuda" and event.device_type == DeviceType.CUDA:
            kernels[event.name] += event.time_range.elapsed_us()
            ends += [event.time_range.start, event.time_range.end]
        elif device.type != "cuda":
            kernels[event.name] += event.self_cpu_time_total
    # On a GPU the span of all kernels is the steps' time: what the profiler does before and after is not.
    span = (max(ends) - min(ends)) / 1e6 if ends else wall
    seconds: Counter[str] = Counter()
    for name, microseconds in kernels.items():
        seconds[category_of(name)] += microseconds / 1e6 / steps
    ordered = dict(seconds.most_common())
    ordered[IDLE] = max(0.0, span / steps - sum(seconds.values()))
    longest = [(name, category_of(name), us / 1e6 / steps) for name, us in kernels.most_common(LONGEST_LIST)]
    return Breakdown(ordered, longest)


def plot_breakdowns(path: Path, breakdowns: dict[str, Breakdown], measured: bool) -> None:
    """A stacked bar for each implementation, in milliseconds a step."""
    plt = pyplot()
    if plt is None or not breakdowns:
        return
    categories = [*dict.fromkeys(name for b in breakdowns.values() for name in b.seconds if name != IDLE), IDLE]
    figure, axis = plt.subplots(figsize=(3 + 1.6 * len(breakdowns), 5))
    colours = plt.get_cmap("tab20").colors
    bottoms = [0.0] * len(breakdowns)
    for index, category in enumerate(categories):
        heights = [1e3 * b.seconds.get(category, 0.0) for b in breakdowns.values()]
        colour = "lightgrey" if category == IDLE else colours[index % len(colours)]
        axis.bar(range(len(breakdowns)), heights, bottom=bottoms, label=category, color=colour)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    axis.set_xticks(range(len(breakdowns)), list(breakdowns), fontsize=7)
    axis.set_ylabel("ms a step")
    axis.legend(fontsize=7, bbox_to_anchor=(1.0, 1.0), loc="upper left")
    save_figure(plt, figure, path, measured)

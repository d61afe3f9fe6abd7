"""A run planned for clusters of several sizes: as tables, and drawn."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.distributed.memory_plan import MemoryBytes
from mindllm_engine.distributed.simulated_cluster import (
    MODES,
    Message,
    Plan,
    memory_of_mode,
    quicker_settings,
    ways_to_fit,
)

GIB = 2**30
MEMORY_KINDS = ("parameters", "gradients", "optimizer", "activations", "working", "wire")
STEP_KINDS = (
    "forward_backward",
    "pack_and_sum",
    "wait_for_gradients",
    "wait_for_scalars",
    "update",
    "wait_for_parameters",
)


def report(plans: Sequence[Plan], tokens: float) -> str:
    """The plans side by side, then what they rest on. `tokens` are those of the whole run."""
    first = plans[0]
    lines = [
        f"{first.layout.elements:,} elements of parameters (padding included), {first.flops_per_token / 1e9:.2f} GFLOP "
        f"a token, on {first.hardware.name}; {tokens / 1e9:,.0f} B tokens",
        "",
        table(plans, tokens),
    ]
    for plan in plans:
        lines += [f"{plan.gpus} GPUs: {note}" for note in plan.notes]
        if not plan.fits:
            ways = ways_to_fit(plan)
            lines.append(
                f"{plan.gpus} GPUs: does not fit; one of these would: {'; '.join(ways) or 'none of one change'}"
            )
        for text, other in quicker_settings(plan)[:2]:
            lines.append(
                f"{plan.gpus} GPUs: {text} would give an MFU of {other.mfu:.1%} in place of {plan.mfu:.1%}, at a "
                f"peak of {other.memory.peak / GIB:.1f} GiB"
            )
    return "\n".join([*lines, "", sources(first)])


def table(plans: Sequence[Plan], tokens: float) -> str:
    """Rows of what is planned, a column a cluster."""
    rows: list[tuple[str, list[str]]] = [
        ("GPUs", [f"{plan.gpus:,}" for plan in plans]),
        ("global batch, samples", [f"{plan.workload.global_batch_size:,}" for plan in plans]),
        (
            "micro-batch x accumulation",
            [f"{plan.workload.micro_batch_size} x {plan.grad_accum_steps}" for plan in plans],
        ),
        ("ranks that share the optimizer", [f"{plan.layout.shards:,}" for plan in plans]),
        ("GiB a rank", ["" for _ in plans]),
    ]
    rows += [(f"  {kind}", [f"{getattr(plan.memory, kind) / GIB:.2f}" for plan in plans]) for kind in MEMORY_KINDS]
    rows += [("  peak", [peak(plan.memory, plan) for plan in plans])]
    rows += [
        (f"  peak, checkpointing {mode}", [peak(memory_of_mode(plan, mode), plan) for plan in plans]) for mode in MODES
    ]
    rows.append(("sent a step and rank", ["" for _ in plans]))
    for sort in dict.fromkeys(message.kind for plan in plans for message in plan.messages):
        rows.append((f"  {sort}", [sent([m for m in plan.messages if m.kind == sort]) for plan in plans]))
    rows.append(("ms a step", ["" for _ in plans]))
    for kind in STEP_KINDS:
        rows.append((f"  {kind.replace('_', ' ')}", [f"{1e3 * getattr(plan.step, kind):,.1f}" for plan in plans]))
    rows += [
        ("  in all", [f"{1e3 * plan.step.total:,.1f}" for plan in plans]),
        ("tokens/s", [f"{plan.tokens_per_second:,.0f}" for plan in plans]),
        ("tokens/s/GPU", [f"{plan.tokens_per_second / plan.gpus:,.0f}" for plan in plans]),
        ("MFU", [f"{plan.mfu:.1%}" for plan in plans]),
        ("days", [f"{plan.days(tokens):,.2f}" for plan in plans]),
        ("dollars", [f"{plan.dollars(tokens):,.0f}" for plan in plans]),
    ]
    left = max(len(name) for name, _ in rows)
    width = max(len(cell) for _, cells in rows for cell in cells)
    return "\n".join(f"{name:{left}}  " + "  ".join(f"{cell:>{width}}" for cell in cells) for name, cells in rows)


def peak(memory: MemoryBytes, plan: Plan) -> str:
    """The peak, and whether the GPU has as much."""
    verdict = "fits" if memory.peak <= plan.hardware.memory_bytes.value else "DOES NOT FIT"
    return f"{memory.peak / GIB:.1f} of {plan.hardware.memory_bytes.value / GIB:.0f} {verdict}"


def sent(messages: Sequence[Message]) -> str:
    """How many, and the bytes that a rank sends."""
    return f"{len(messages)}: {sum(message.sent for message in messages) / 1e9:.3g} GB" if messages else "0"


def sources(plan: Plan) -> str:
    """The constants that the times rest on, the assumed ones marked."""
    lines = [f"constants of {plan.hardware.name} (* assumed)"]
    for name, constant in plan.hardware.constants().items():
        lines.append(f"{'*' if constant.assumed else ' '} {name:22} {constant.value:<12.4g} {constant.source}")
    lines.append("How far the model is off published runs: python benchmarks/plan_anchors.py")
    return "\n".join(lines)


def draw(plans: Sequence[Plan], tokens: float, path: Path) -> None:
    """Write a PNG: MFU and days against GPUs, the step by what it waits for, memory by kind. Raises DataError if it
    cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    speed, step, memory = figure.subplots(1, 3)
    gpus = [plan.gpus for plan in plans]
    speed.plot(gpus, [100 * plan.mfu for plan in plans], "o-", color="tab:blue")
    speed.set(xscale="log", xlabel="GPUs", ylabel="MFU, %", ylim=(0, None), title=plans[0].hardware.name)
    speed.set_xticks(gpus, [f"{count:,}" for count in gpus])
    speed.minorticks_off()
    days = speed.twinx()
    days.plot(gpus, [plan.days(tokens) for plan in plans], "s--", color="tab:red")
    days.set(yscale="log")
    days.set_ylabel(f"days for {tokens / 1e9:,.0f} B tokens", color="tab:red")
    labels = [f"{count:,}" for count in gpus]
    shares = {
        kind.replace("_", " "): [100 * getattr(plan.step, kind) / plan.step.total for plan in plans]
        for kind in STEP_KINDS
    }
    stack(step, labels, shares)
    step.set(xlabel="GPUs", ylabel="share of a step, %", title="step")
    stack(memory, labels, {kind: [getattr(plan.memory, kind) / GIB for plan in plans] for kind in MEMORY_KINDS})
    memory.plot(labels, [plan.memory.peak / GIB for plan in plans], "k_", markersize=24, label="peak")
    memory.set(xlabel="GPUs", ylabel="GiB a rank", title="memory")
    for axes in (step, memory):
        axes.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.17), ncol=3)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=80)
    write_atomically(path, image.getvalue())


def stack(axes: Any, labels: Sequence[str], kinds: dict[str, list[float]]) -> None:
    """Bars that stand on each other."""
    bottom = [0.0] * len(labels)
    for kind, values in kinds.items():
        axes.bar(labels, values, bottom=bottom, label=kind)
        bottom = [low + value for low, value in zip(bottom, values, strict=True)]

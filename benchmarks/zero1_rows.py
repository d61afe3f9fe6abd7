"""The rows of `zero1.py`: ours beside every peer, and whether the bars hold."""

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from benchmarks.zero1_messages import Message
from benchmarks.zero1_peers import Variant
from benchmarks.zero1_ranks import Memory
from benchmarks.zero1_task import Task

Row = dict[str, Any]
ENGINES = {
    "ours": "ours",
    "deepspeed": "DeepSpeed stage 1",
    "fsdp": "FSDP2 as ZeRO-1",
    "ddp_zero": "DDP + ZeroRedundancyOptimizer",
    "ddp": "plain DDP",
}
# Time and bytes at most this share of DeepSpeed's; time at most that of the best of the others.
TIME_SHARE, BYTES_SHARE, OTHERS_SHARE = 0.9, 0.55, 1.0
EARLY_SHARE = 0.8
# fp32 master weights and two moments; slices are padded by less than this share.
STATE_BYTES, PADDING = 12, 0.01
# Losses differ by less than this, relatively.
LOSS_TOLERANCE = {torch.bfloat16: 2e-3, torch.float32: 1e-5}
# The interface counts headers and acknowledgements as well.
COUNTING_TOLERANCE = 0.05


@dataclass
class Result:
    """What was measured of one engine on one task; `reason` where it could not be, or does not count.

    Attributes:
        seconds: of a step, by turn.
        processor_seconds: the same of processors, the mean over ranks: what a machine that is not idle can tell.
        sent: bytes a rank and step that went over the network; None where that was not counted.
        losses: the mean over ranks, by step.
    """

    variant: Variant
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    sent: float | None = None
    messages: list[Message] = field(default_factory=list)
    memory: Memory | None = None
    losses: list[float] = field(default_factory=list)
    reason: str | None = None

    def add_turn(self, by_rank: list[tuple[float, float]]) -> None:
        """Take over what `Rank.time` returned on each rank; the slowest rank's time counts."""
        self.seconds.append(max(seconds for seconds, _ in by_rank))
        self.processor_seconds.append(sum(seconds for _, seconds in by_rank) / len(by_rank))

    @property
    def counts(self) -> bool:
        return self.reason is None

    @property
    def step_seconds(self) -> float:
        """Median over turns; infinite where there are none."""
        return median(self.seconds) if self.seconds else math.inf

    @property
    def seconds_text(self) -> str:
        return f"{1e3 * self.step_seconds:.0f} ms, of processors {1e3 * median(self.processor_seconds):.0f} ms a rank"

    @property
    def early(self) -> float:
        """Share of the gradients' bytes that were begun before backward had computed the last gradient."""
        gradients = [message for message in self.messages if message.carries_gradients]
        return sum(message.bytes for message in gradients if message.early) / sum(m.bytes for m in gradients)

    @property
    def state_bytes(self) -> int:
        assert self.memory is not None
        return sum(self.memory.kinds[kind] for kind in ("master weights", "moments"))

    def by_messages(self, ranks: int, gradients_only: bool = False) -> float:
        """Bytes a rank must send in a step for the messages it takes part in."""
        gloo = not torch.cuda.is_available()
        chosen = [message for message in self.messages if message.carries_gradients or not gradients_only]
        return sum(message.sent_by_a_rank(ranks, gloo) for message in chosen)

    def summary(self) -> dict[str, Any]:
        seconds = self.step_seconds if self.seconds else None
        return {
            "engine": ENGINES[self.variant.engine],
            "variant": self.variant.name,
            "step_seconds": seconds,
            "processor_seconds": median(self.processor_seconds) if self.seconds else None,
            "reason": self.reason,
        }

    def detail(self) -> dict[str, Any]:
        """Everything, for the JSON."""
        kinds = None if self.memory is None else self.memory.kinds | {"peak": self.memory.peak}
        messages: dict[str, dict[str, int]] = {}
        for message in self.messages:
            of_kind = messages.setdefault(message.kind, {"count": 0, "bytes": 0, "early_bytes": 0})
            of_kind["count"] += 1
            of_kind["bytes"] += message.bytes
            of_kind["early_bytes"] += message.bytes * message.early
        more = {"seconds": self.seconds, "bytes_sent": self.sent, "messages": messages, "memory_bytes": kinds}
        return self.summary() | more | {"losses": self.losses}


def rows_of(task: Task, results: dict[str, Result], ranks: int) -> list[Row]:
    """All rows of one task."""
    parameters = task.build(torch.device("meta")).num_parameters()
    loss_rows = compare_losses(task, results)
    found = loss_rows + time_rows(task, results)
    for name, amount in (("bytes sent", sent_bytes), ("of these gradients", gradients)):
        found += amount_rows(f"{name}, {task.name}", "MB a rank and step", results, BYTES_SHARE, amount, ranks)
    found += amount_rows(f"peak memory, {task.name}", "MB a rank", results, None, peak, ranks)
    return found + state_rows(task, results, ranks, parameters) + early_rows(task, results)


def compare_losses(task: Task, results: dict[str, Result]) -> list[Row]:
    """Each engine's losses beside plain DDP's; one that differs does not count in any other row."""
    found = []
    reference, tolerance = results["ddp"], LOSS_TOLERANCE[task.dtype]
    for engine, result in results.items():
        if engine == "ddp" or not result.counts or not reference.counts:
            continue
        losses, expected = (torch.tensor(each.losses, dtype=torch.float64) for each in (result, reference))
        difference = ((losses - expected).abs() / expected).max().item()  # NaN where one is
        holds = difference < tolerance
        name = f"losses of {ENGINES[engine]} over {len(result.losses)} steps, {task.name}"
        note = f"largest difference; the bar is the tolerance; from {result.losses[0]:.4f} to {result.losses[-1]:.4f}"
        found.append(row(name, "relative", difference, None, ENGINES["ddp"], tolerance, holds=holds, reason=note))
        if not holds:
            result.reason = f"void: its losses differ from those of {ENGINES['ddp']} by {difference:.2g}"
    return found


def row(
    name: str, unit: str, ours: float | None, peer: float | None, peer_name: str, bar: float | None, **more: Any
) -> Row:
    """A line of the table; without a word on it, `ratio` is peer / ours: how many times less ours is."""
    ratio = peer / ours if ours and peer is not None else None
    holds = None if ratio is None or bar is None else ratio >= bar
    figures = {"ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ratio, "bar": bar, "holds": holds}
    return {"name": name, "unit": unit, **figures, "reason": None, **more}


def named(result: Result) -> str:
    return f"{ENGINES[result.variant.engine]} ({result.variant.name})"


def time_rows(task: Task, results: dict[str, Result]) -> list[Row]:
    """Step time beside each peer; of those other than DeepSpeed, the fastest has a bar."""
    ours = results["ours"]
    others = [result for engine, result in results.items() if engine not in ("ours", "deepspeed") and result.counts]
    best = min(others, key=lambda result: result.step_seconds, default=None)
    found = []
    for result in results.values():
        if result is ours:
            continue
        bar = 1 / TIME_SHARE if result.variant.engine == "deepspeed" else 1 / OTHERS_SHARE if result is best else None
        name = f"step, {task.name}"
        if not (ours.counts and result.counts):
            found.append(row(name, "ms", None, None, named(result), bar, reason=ours.reason or result.reason))
            continue
        ratios = [theirs / mine for mine, theirs in zip(ours.seconds, result.seconds, strict=True)]
        used = [1e3 * median(side.processor_seconds) for side in (ours, result)]
        note = f"ours: {ours.variant.name}; ratio by turn {min(ratios):.3f} to {max(ratios):.3f}; "
        note += f"processor time of a rank, ms: ours {used[0]:.0f}, peer {used[1]:.0f}"
        times = (1e3 * ours.step_seconds, 1e3 * result.step_seconds)
        found.append(row(name, "ms", *times, named(result), bar, ratio=median(ratios), reason=note))
        if bar is not None:
            found[-1]["holds"] = median(ratios) >= bar
    return found


def sent_bytes(result: Result, ranks: int) -> tuple[float, str | None]:
    expected = result.by_messages(ranks)
    if result.sent is None:
        return expected, "by messages; not counted on the network"
    note = f"by messages {expected / 1e6:.1f} MB"
    if abs(result.sent / expected - 1) > COUNTING_TOLERANCE:
        note += ", which differs: its collectives send more than they must"
    return result.sent, note


def gradients(result: Result, ranks: int) -> tuple[float, str | None]:
    return result.by_messages(ranks, gradients_only=True), "by messages"


def peak(result: Result, ranks: int) -> tuple[float, str | None]:
    assert result.memory is not None
    kept = ", ".join(f"{kind} {size / 1e6:.0f}" for kind, size in result.memory.kinds.items())
    return result.memory.peak, f"kept from step to step, MB: {kept}"


def amount_rows(
    name: str, unit: str, results: dict[str, Result], share: float | None, amount: Any, ranks: int
) -> list[Row]:
    """Something to have little of, in megabytes, beside each peer; `share` is the bar against DeepSpeed."""
    ours = results["ours"]
    found = []
    for result in results.values():
        if result is ours:
            continue
        bar = 1 / share if share and result.variant.engine == "deepspeed" else None
        if not (ours.counts and result.counts):
            found.append(row(name, unit, None, None, named(result), bar, reason=ours.reason or result.reason))
            continue
        (mine, my_note), (theirs, note) = amount(ours, ranks), amount(result, ranks)
        notes = f"ours: {my_note}; peer: {note}"
        found.append(row(name, unit, mine / 1e6, theirs / 1e6, named(result), bar, reason=notes))
    return found


def state_rows(task: Task, results: dict[str, Result], ranks: int, parameters: int) -> list[Row]:
    """fp32 optimizer state: ours beside what ZeRO-1 must keep, and beside each peer."""
    ours, name, unit = results["ours"], f"optimizer state, {task.name}", "bytes a parameter and rank"
    if not ours.counts:
        return [row(name, unit, None, None, f"{STATE_BYTES} / {ranks}", 1 - PADDING, reason=ours.reason)]
    mine = ours.state_bytes / parameters
    found = [row(name, unit, mine, STATE_BYTES / ranks, f"{STATE_BYTES} / {ranks}", 1 - PADDING)]
    peers = [result for result in results.values() if result is not ours and result.counts]
    return found + [row(name, unit, mine, peer.state_bytes / parameters, named(peer), None) for peer in peers]


def early_rows(task: Task, results: dict[str, Result]) -> list[Row]:
    """Communication begun during backward."""
    name, unit = f"gradients whose sending began before the last was computed, {task.name}", "share of bytes"
    ours = results["ours"]
    if not ours.counts:
        return [row(name, unit, None, None, "none", EARLY_SHARE, reason=ours.reason)]
    verdict = {"ratio": ours.early / EARLY_SHARE, "holds": ours.early > EARLY_SHARE, "reason": "the bar is the share"}
    found = [row(name, unit, ours.early, None, "none", EARLY_SHARE, **verdict)]
    for peer in results.values():
        if peer is not ours and peer.counts:
            ratio = ours.early / peer.early if peer.early else None
            found.append(row(name, unit, ours.early, peer.early, named(peer), None, ratio=ratio))
    return found

"""What an engine sends during one step, message by message, and when: from torch's profiler.

Every collective passes through torch's dispatcher as an operator `c10d::...`, whoever calls it, DDP's reducer in C++
included. The profiler keeps its time, shapes and, for gloo, the dtype; none of the engines takes part.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from mindllm_engine.models import mindllm

# Operator -> what it is called here, and which argument is the whole message.
OPERATORS = {
    "c10d::allreduce_": ("all_reduce", 0),
    "c10d::reduce_": ("reduce", 0),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", 1),
    "c10d::alltoall_base_": ("all_to_all", 1),
    "c10d::_allgather_base_": ("all_gather", 0),
    "c10d::broadcast_": ("broadcast", 0),
    "c10d::send": ("send", 0),
}
ITEM_BYTES = {"c10::BFloat16": 2, "c10::Half": 2, "float": 4, "double": 8, "long int": 8, "int": 4}
# Shorter messages are norms and flags.
SHORT_BYTES = 1024
PARAMETER_KINDS = ("all_gather", "broadcast")
# Whatever is sent while this stands in the recording is parameters.
SPREADING = "zero1: parameters are sent"
LAST_GRADIENT = "zero1: the last gradient is complete"


@dataclass(frozen=True)
class Message:
    """One collective.

    Attributes:
        kind: what it does.
        bytes: the message as a whole: what all ranks together contribute to, or get from it.
        carries_gradients: or parameters.
        early: begun before backward had computed the last gradient.
    """

    kind: str
    bytes: int
    carries_gradients: bool
    early: bool

    def sent_by_a_rank(self, ranks: int, gloo: bool) -> float:
        """Bytes that a rank must send for it, in the mean over ranks. Gloo's reduce-scatter is an all-reduce inside."""
        if self.kind == "send":
            return self.bytes
        twice = self.kind == "all_reduce" or (self.kind == "reduce_scatter" and gloo)
        return (2 if twice else 1) * self.bytes * (ranks - 1) / ranks


def record_messages(step: Callable[[], None]) -> list[Message]:
    """All messages of one call but the short ones."""
    activities = [ProfilerActivity.CPU]
    with mark_last_gradient(), profile(activities=activities, record_shapes=True, acc_events=True) as recording:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recording.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return read_trace([event for event in events if event.get("ph") == "X"])


@contextlib.contextmanager
def mark_last_gradient() -> Iterator[None]:
    """Put a mark in the recording each time backward has computed what comes last: the embedding's gradient."""
    unmarked = mindllm.embedding_norm

    def mark(*arguments: Any) -> None:
        with record_function(LAST_GRADIENT):
            pass

    def marked(*arguments: Any) -> Tensor:
        x = unmarked(*arguments)
        if x.grad_fn is not None:
            x.grad_fn.register_hook(mark)
        return x

    mindllm.embedding_norm = marked
    try:
        yield
    finally:
        mindllm.embedding_norm = unmarked


def read_trace(events: list[dict[str, Any]]) -> list[Message]:
    """Messages by time, from the complete events of a trace in Chrome's format."""
    events = sorted(events, key=lambda event: float(event["ts"]))
    last_gradient = max(float(event["ts"]) for event in events if event["name"] == LAST_GRADIENT)
    item_bytes = {elements_of(event, 0): bytes_of_item(event) for event in events if event["name"].startswith("gloo:")}
    spreading = [(float(e["ts"]), float(e["ts"]) + float(e["dur"])) for e in events if e["name"] == SPREADING]
    found = []
    for event in events:
        if event["name"] in OPERATORS:
            begun = float(event["ts"])
            kind, argument = OPERATORS[event["name"]]
            elements = elements_of(event, argument)
            size = bytes_of_item(event, argument) or item_bytes.get(elements) or 0
            assert size or elements * 8 < SHORT_BYTES, f"no dtype known of {event}"
            if elements * size >= SHORT_BYTES:
                spreads = kind in PARAMETER_KINDS or any(first <= begun <= last for first, last in spreading)
                found.append(Message(kind, elements * size, not spreads, begun < last_gradient))
    return found


def elements_of(event: dict[str, Any], argument: int) -> int:
    """Elements of an argument: a tensor's sizes, or a list of such."""
    sizes = event["args"]["Input Dims"][argument]
    return sum(prod(each) for each in sizes) if sizes and isinstance(sizes[0], list) else prod(sizes)


def bytes_of_item(event: dict[str, Any], argument: int = 0) -> int | None:
    """Bytes of an element, where the recording says of which dtype."""
    return ITEM_BYTES.get(event["args"]["Input type"][argument])

"""How much of a training step is the loop's own work, beside that of the network and the optimizer? For `zero1.py`.

The loop's own work is what `training.loop.train` does in a step while neither the network nor the backend runs: reading
the batch, counting losses, the schedule, watching for faults, the record written for every step. In one process, by the
host's clock. It is told as a share of a step of a bare torch loop: the same network under torch's fused AdamW over fp32
masters, on batches that lie ready.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import cycle, pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from benchmarks.zero1_peers import ADAMW, MasterAdamW, by_decay, mean_loss
from benchmarks.zero1_task import CLIP_NORM, LEARNING_RATE, Task
from mindllm_engine.command_line import parse_arguments
from mindllm_engine.data.token_file_builder import TokenFileBuilder
from mindllm_engine.distributed.process_group import environment_world, start_processes
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.garbage import ManualCollection
from mindllm_engine.training.loop import train
from mindllm_engine.training.setup import Run, build_run, check_before_data, open_data
from mindllm_engine.training.stage import Stage
from mindllm_engine.training.stopping import StopSignal

Row = dict[str, Any]
BAR = 0.01
SOURCES, DOCUMENTS, MEAN_LENGTH = 2, 400, 400
# Steps that begin with empty caches.
FIRST_STEPS = 3


def overhead_rows(task: Task, steps: int) -> list[Row]:
    """The loop's own work in the median of so many steps, as a share of a bare step. For a process of its own."""
    start_processes()
    bare = seconds_of_bare_steps(task, steps)
    with tempfile.TemporaryDirectory(prefix="loop_") as folder:
        own = own_seconds(make_run(task, Path(folder), FIRST_STEPS + steps))
    ours, peer = median(own), median(bare)
    return [
        {
            "name": "the loop's own work, a step",
            "unit": "ms",
            "ours": 1e3 * ours,
            "peer": 1e3 * peer,
            "peer_name": "a step of a bare torch loop",
            "ratio": peer / ours,
            "bar": 1 / BAR,
            "holds": ours < BAR * peer,
            "reason": f"{100 * ours / peer:.3f} % of it; in the mean over steps {100 * mean(own) / mean(bare):.3f} %",
        }
    ]


class Periods:
    """Seconds between the ends of steps in which none of the watched calls was running.

    Attributes:
        outside: of each step but the first.
    """

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.inside: list[float] = [0.0]

    @property
    def outside(self) -> list[float]:
        return [
            end - begin - inside for (begin, end), inside in zip(pairwise(self.ends), self.inside[1:], strict=False)
        ]

    def watched(self, call: Callable[..., Any], ends_step: bool = False) -> Callable[..., Any]:
        """The call, its time kept; `ends_step`: a step ends where it returns."""

        def timed(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            returned = call(*arguments, **options)
            end = time.perf_counter()
            self.inside[-1] += end - begin
            if ends_step:
                self.ends.append(end)
                self.inside.append(0.0)
            return returned

        return timed


def own_seconds(run: Run) -> list[float]:
    """Train to the end; seconds of each step in which neither network nor backend ran."""
    periods = Periods()
    backend: Any = run.backend
    run.model.forward = periods.watched(run.model.forward)
    backend.backward = periods.watched(backend.backward)
    backend.step = periods.watched(backend.step, ends_step=True)
    with StopSignal() as stop, ManualCollection(run.config.train.gc_every) as collection:
        train(run, stop, time.monotonic(), collection)
    run.checkpointer.close()
    return periods.outside[FIRST_STEPS - 1 :]


def seconds_of_bare_steps(task: Task, steps: int) -> list[float]:
    """Seconds of each step, after one that is not counted."""
    step = bare_step(task)
    step()
    ends = [time.perf_counter()]
    for _ in range(steps):
        step()
        ends.append(time.perf_counter())
    return [end - begin for begin, end in pairwise(ends)]


def make_run(task: Task, folder: Path, steps: int) -> Run:
    """A run over random token files with one sample a step, as `tools/pretrain.py` builds it."""
    generator = np.random.default_rng(0)
    sources = {}
    for number in range(SOURCES):
        prefix = folder / f"source{number}"
        lengths = generator.integers(2, 2 * MEAN_LENGTH, DOCUMENTS)
        facts = {"lang": "en", "category": "web", "tokenizer_hash": "0" * 16, "vocab_size": task.network.vocab_size}
        with TokenFileBuilder(prefix, "uint16", name=prefix.name, **facts) as builder:
            builder.append_many(generator.integers(0, task.network.vocab_size, lengths.sum()), lengths, 0)
        sources[prefix.name] = str(prefix)
    config = {
        "run": {"dir": str(folder / "run")},
        "model": {"mindllm": asdict(task.network)},
        "data": {"seq_len": task.tokens, "sources": sources, "blocks": [{"max_epochs": 1000}]},
        "optim": {"lr": LEARNING_RATE, "clip_grad_norm": CLIP_NORM},
        "train": {
            "steps": steps,
            "global_batch_size": 1,
            "micro_batch_size": 1,
            "precision": "bf16" if task.dtype == torch.bfloat16 else "fp32",
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    parsed = parse_arguments(RunConfig, "", ["--config", str(path)])
    check_before_data(parsed, environment_world().world_size)
    return build_run(parsed, open_data(parsed), None, environment_world(), Stage())


def bare_step(task: Task) -> Callable[[], Tensor]:
    """What one writes with torch alone around the same network."""
    device = environment_world().device
    model = task.build(device)
    parameters = list(model.parameters())
    optimizer = MasterAdamW(by_decay(parameters), **ADAMW)
    batches = cycle(task.batches(0, device))

    def step() -> Tensor:
        for batch in next(batches):
            loss = mean_loss(model, batch, task)
            loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step

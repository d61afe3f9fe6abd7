"""How much of a training step is the loop's own work, beside that of the network and the optimizer? For `zero1.py`.

The loop's own work is what `training/loop.py` does in a step beyond network and backend: reading the batch, counting
losses, the schedule, the record written for every step. It depends on the tokens, not on the network, so it is taken
where it is a large part of the step: one process, a network of one narrow layer, the loop in turns with the same
network and backend called by hand on the same batches, which lie ready. The bare torch loop that it is a share of is
torch's fused AdamW, over fp32 masters, on the network of `zero1.py`.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path
from statistics import median
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
from mindllm_engine.training.loop import is_not_finite, report_step, train_step
from mindllm_engine.training.setup import Run, build_run, check_before_data, open_data
from mindllm_engine.training.throughput import Stopwatch

Row = dict[str, Any]
BAR = 0.01
SOURCES, DOCUMENTS, MEAN_LENGTH = 2, 400, 400


def overhead_rows(task: Task, toy: bool = False) -> list[Row]:
    """The loop's work a step as a share of a bare step, and whole steps beside each other. For a process of its own."""
    start_processes()
    with tempfile.TemporaryDirectory(prefix="loop_") as folder:
        sizes = {"hidden_size": 16, "ffn_size": 16, "n_heads": 1, "n_layers": 1, "vocab_size": 64}
        narrow = replace(task, network=replace(task.network, **sizes))
        turns = 8 if toy else 200
        runs = [make_run(narrow, Path(folder, name)) for name in ("loop", "hand")]
        loop_seconds, hand_seconds = take_turns([loop_step(runs[0]), step_by_hand(runs[1], turns + 1)], turns)
        own = median(a - b for a, b in zip(loop_seconds, hand_seconds, strict=True))
        run = make_run(task, Path(folder, "whole"))
        whole, bare = take_turns([loop_step(run), bare_step(task)], turns=3 if toy else 15)
    ratios = [theirs / ours for ours, theirs in zip(whole, bare, strict=True)]
    share = f"{100 * own / median(bare):.3f} % of it"
    spread = f"by turn {min(ratios):.3f} to {max(ratios):.3f}; the loop's has the engine's AdamW and clipping"
    return [
        row("the loop's own work, a step", own, median(bare), median(bare) / own, 1 / BAR, share),
        row("a whole step, one process", median(whole), median(bare), median(ratios), None, spread),
    ]


def row(name: str, ours: float, peer: float, ratio: float, bar: float | None, reason: str) -> Row:
    figures = {"ours": 1e3 * ours, "peer": 1e3 * peer, "peer_name": "a step of a bare torch loop", "ratio": ratio}
    return {"name": name, "unit": "ms", **figures, "bar": bar, "holds": bar and ratio >= bar, "reason": reason}


def take_turns(steps: Sequence[Callable[[], Any]], turns: int) -> list[list[float]]:
    """Seconds of each step by turn, after one of each that is not counted."""
    seconds: list[list[float]] = [[] for _ in steps]
    for turn in range(turns + 1):
        for step, found in zip(steps, seconds, strict=True):
            begin = time.perf_counter()
            step()
            if turn:
                found.append(time.perf_counter() - begin)
    return seconds


def loop_step(run: Run) -> Callable[[], None]:
    """One turn of the training loop, its record included."""
    stopwatch = Stopwatch()
    batch_size = run.config.train.global_batch_size

    def step() -> None:
        totals = train_step(run)
        stopwatch.count(run.data.plan.tokens_in(run.next_sample, batch_size))
        run.step += 1
        run.next_sample += batch_size
        report_step(run, totals, stopwatch)

    return step


def step_by_hand(run: Run, steps: int) -> Callable[[], None]:
    """The same step by network and backend alone."""
    model, backend = run.model, run.backend
    batches = iter([run.loader.read(np.array([sample])) for sample in range(steps)])

    def step() -> None:
        batch = next(batches)
        count = batch.tokens.numel()
        losses = model(batch.tokens, batch.positions, batch.cu_seqlens, targets=batch.targets, grad_scale=1 / count)
        total = losses.sum()
        backend.backward(total / count, last=True)
        sums = torch.stack((total.detach().double(), (batch.targets >= 0).sum().double()))
        backend.step(LEARNING_RATE, count, sums, is_not_finite)

    return step


def make_run(task: Task, folder: Path) -> Run:
    """A run over random token files with one sample a step, as `tools/pretrain.py` builds it."""
    folder.mkdir()
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
            "steps": 1000,
            "global_batch_size": 1,
            "micro_batch_size": 1,
            "precision": "bf16" if task.dtype == torch.bfloat16 else "fp32",
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    parsed = parse_arguments(RunConfig, "", ["--config", str(path)])
    check_before_data(parsed, environment_world().world_size)
    return build_run(parsed, open_data(parsed), None, environment_world())


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

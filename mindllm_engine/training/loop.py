"""The training loop. One for pre-training, transfer and tuning; it waits for the device only where a number is
printed."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mindllm_engine.data.loader import heldout_tokens
from mindllm_engine.distributed import watchdog
from mindllm_engine.distributed.process_group import (
    any_rank,
    environment_world,
    start_processes,
    stop_processes,
)
from mindllm_engine.distributed.replicas import refuse_different_replicas
from mindllm_engine.errors import DivergedError
from mindllm_engine.optim.schedules import learning_rate
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.faults import RollBacks
from mindllm_engine.training.garbage import ManualCollection
from mindllm_engine.training.losses import SourceLosses, heldout_losses
from mindllm_engine.training.profiling import StepProfiler
from mindllm_engine.training.setup import (
    Run,
    build_run,
    check_before_data,
    check_run_folder,
    checkpoint_state,
    open_data,
    refuse_different_data,
    select_implementations,
)
from mindllm_engine.training.stage import Stage
from mindllm_engine.training.stopping import StopSignal, TimeLimit
from mindllm_engine.training.throughput import Stopwatch, peak_memory_gib


def pretrain(config: RunConfig, stage: Stage | None = None) -> None:
    """Train from the beginning or from the newest checkpoint in the run folder, to the last step or a stop.

    Args:
        stage: what is done in another way than in pre-training.

    Raises:
        MindLLMError: the configuration, the data, a checkpoint or the machine (a full disk) does not allow it.
    """
    started = time.monotonic()
    check_before_data(config, environment_world().world_size)
    select_implementations(config)
    data = open_data(config)
    checkpoint = check_run_folder(config, data)
    run = None
    try:
        world = start_processes(config.distributed.timeout_minutes)
        watched = watchdog.watching(config.distributed.timeout_minutes)
        with StopSignal() as stop, watched, ManualCollection(config.train.gc_every) as collection:
            refuse_different_data(data, world)
            run = build_run(config, data, checkpoint, world, stage or Stage())
            train(run, stop, started, collection)
    finally:
        if run is not None:
            run.checkpointer.close()
        if run is not None and run.progress is not None and run.metrics is not None:
            run.progress.close()
            run.metrics.close()
        stop_processes()


def train(run: Run, stop: StopSignal, started: float, collection: ManualCollection) -> None:
    """Steps until the last one, `stop_after`, a signal or the time limit (`started` is by `time.monotonic`); then the
    run is saved."""
    config, faults = run.config.train, run.config.faults
    if run.step == 0:
        report_heldout(run)
    elif run.progress is not None:
        run.progress.say(f"{run.config.run.dir} goes on from step {run.step} of {config.steps}")
    roll_backs = RollBacks(run)
    say = run.progress.say if run.progress is not None else None
    folder = Path(run.config.run.dir) / "profile"
    profiler = StepProfiler(run.config.profile, folder, run.world, run.model, run.backend, say)
    limit = TimeLimit(config.time_limit_minutes, started, sum(x.numel() for x in run.model.parameters()))
    stopwatch = Stopwatch()
    while run.step < config.steps:
        roll_backs.before_step(run)
        profiler.before_step(run.step + 1)
        totals = train_step(run)
        profiler.after_step(run.step + 1)
        collection.after_step(run.step + 1)
        stopwatch.count(run.data.plan.tokens_in(run.next_sample, config.global_batch_size))
        run.step += 1
        run.next_sample += config.global_batch_size
        last = run.step == config.steps
        if run.step % config.log_every == 0 or last:
            report_step(run, totals, stopwatch)
        if last or is_due(run.step, config.eval_every):
            report_heldout(run)
            stopwatch.restart()
        roll_backs.after_step(run)
        if is_due(run.step, faults.check_replicas_every):
            run.backend.wait_for_parameters()
            refuse_different_replicas(run.model, run.step)
        stopping = (
            any_rank(stop.requested or limit.is_near(run.checkpointer.longest_save)) or run.step == config.stop_after
        )
        # Amid skipped steps there is nothing new to save, and what is there may be what they come from.
        if last or stopping or (is_due(run.step, config.checkpoint_every) and roll_backs.in_a_row == 0):
            refuse_broken_weights(run)
            watchdog.mark("saving")
            run.checkpoint_pause = run.checkpointer.save(checkpoint_state(run))
            stopwatch.restart()
        if stopping:
            break
    watchdog.mark("waiting for the last checkpoint")
    run.checkpointer.wait()
    profiler.close()


@dataclass(frozen=True)
class StepTotals:
    """What a step leaves on the device to be read if it is reported."""

    losses: SourceLosses
    grad_norm: Tensor
    learning_rate: float


def train_step(run: Run) -> StepTotals:
    """One optimizer step over the global batch: forward and backward a micro-batch at a time, reduce, update.

    The gradient is that of the mean loss over the supervised tokens of the whole global batch, however they fall on
    ranks and micro-batches.
    """
    config = run.config
    batch_size = config.train.global_batch_size
    batch_tokens = run.data.plan.tokens_in(run.next_sample, batch_size)
    grad_accum_steps = batch_size // (config.train.micro_batch_size * run.world.world_size)
    losses = SourceLosses(len(run.data.sources), run.stage, run.world.device)
    micro_batches = run.loader.micro_batches(run.next_sample, batch_size, config.train.micro_batch_size)
    watchdog.begin_step(run.step + 1)
    for number, batch in enumerate(micro_batches, start=1):
        watchdog.mark("forward")
        batch = batch.to(run.world.device)
        # The number of supervised tokens is known only after the last micro-batch; until then all tokens stand for it.
        scored = run.stage.losses(run.model, batch, grad_scale=1 / batch_tokens)
        losses.add(scored)
        watchdog.mark("backward")
        run.backend.backward(scored.values.sum() / batch_tokens, last=number == grad_accum_steps)
        watchdog.mark("data")
    rate = learning_rate(config.optim.schedule, config.optim.lr, run.step, config.train.steps)
    watchdog.mark("update")
    result = run.backend.step(rate, batch_tokens, losses.totals(), run.guard)
    return StepTotals(losses, result.grad_norm, rate)


def report_step(run: Run, totals: StepTotals, stopwatch: Stopwatch) -> None:
    """Write the record of the step just done. Waits for the device."""
    watchdog.mark("reporting")
    by_source, extras = totals.losses.over_all_ranks(), totals.losses.extras_over_all_ranks()
    grad_norm = totals.grad_norm.item()
    tokens_per_second = stopwatch.restart()
    counted = max(1, sum(count for _, count in by_source))
    loss = sum(nats for nats, _ in by_source) / counted
    if run.metrics is None or run.progress is None:
        return
    plan, batch_size = run.data.plan, run.config.train.global_batch_size
    seq_len = plan.tokens_in(run.next_sample - batch_size, batch_size) // batch_size
    flops = tokens_per_second * run.model.flops_per_token(seq_len)
    record: dict[str, Any] = {
        "step": run.step,
        "tokens": plan.tokens_in(0, run.next_sample),
        "loss": loss,
        "lr": totals.learning_rate,
        "grad_norm": grad_norm,
        "skipped_steps": int(run.guard.skipped),
        "tokens_per_second": tokens_per_second,
        "mfu": flops / (run.peak_flops * run.world.world_size) if run.peak_flops else None,
        "memory": peak_memory_gib(run.world.device),
        "reduce_overlap": run.backend.overlap if run.world.world_size > 1 else None,
    }
    for name, (nats, count) in zip(run.data.names, by_source, strict=True):
        if count:
            record[f"loss/{name}"] = nats / count
    record |= {name: value / counted for name, value in extras.items()}
    if run.checkpoint_pause is not None:
        record["checkpoint_pause_seconds"], run.checkpoint_pause = run.checkpoint_pause, None
    run.metrics.write(record)
    run.progress.show(record)


@torch.no_grad()
def refuse_broken_weights(run: Run) -> None:
    """End the run before weights that are lost are saved over good ones. All ranks hold the same. Waits for the device.

    Raises:
        DivergedError: a weight is not finite.
    """
    run.backend.wait_for_parameters()
    if not torch.stack([parameter.isfinite().all() for parameter in run.model.parameters()]).all():
        raise DivergedError(
            f"step {run.step}: a weight is not finite; lower optim.lr or look at the data, and go on from the newest "
            "checkpoint, which is from before it"
        )


def report_heldout(run: Run) -> None:
    """Evaluate the held-out data and write loss (nats a token) and bits per byte of each source and of all of them; of
    a stage that counts something else, its loss and its extras."""
    losses = heldout_losses(run.stage, run.model, run.heldout, len(run.data.sources), run.world.device)
    by_source, extras = losses.over_all_ranks(), losses.extras_over_all_ranks()
    if run.metrics is None or run.progress is None:
        return
    record: dict[str, Any] = {
        "step": run.step,
        "tokens": run.data.plan.tokens_in(0, run.next_sample),
    }
    all_nats, all_count, all_bytes = 0.0, 0, 0.0
    for name, file, (nats, count) in zip(run.data.names, run.data.heldout, by_source, strict=True):
        if file is None or count == 0:
            continue
        # Where eval_tokens takes a sample of the file, its bytes are taken to be in proportion.
        read = heldout_tokens(file, run.config.data.seq_len, run.config.train.eval_tokens or file.tokens)
        text_bytes = file.manifest.text_bytes * read / file.tokens
        record[f"heldout_loss/{name}"] = nats / count
        if run.stage.counts == "token":
            record[f"heldout_bpb/{name}"] = nats / math.log(2) / text_bytes
        all_nats, all_count, all_bytes = all_nats + nats, all_count + count, all_bytes + text_bytes
    if all_count == 0:
        return
    record["heldout_loss"] = all_nats / all_count
    if run.stage.counts == "token":
        record["heldout_bpb"] = all_nats / math.log(2) / all_bytes
    further = {f"heldout_{name}": value / all_count for name, value in extras.items()}
    run.metrics.write(record | further)
    line = f"step {run.step}: held-out loss {record['heldout_loss']:.4f} nats a {run.stage.counts}"
    if "heldout_bpb" in record:
        line += f", {record['heldout_bpb']:.4f} bits per byte"
    run.progress.say(line + "".join(f", {name} {value:.4f}" for name, value in further.items()))


def is_due(step: int, every: int) -> bool:
    """Whether something done every so many steps (0: never) is due after this one."""
    return every > 0 and step % every == 0

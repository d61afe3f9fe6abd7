"""Brings the trials of a grid to their end: by worker processes on this machine, or by the ranks of torchrun.

Several calls of the same study, such as the tasks of a Slurm array, share its trials by locks on their folders; each
ends when all trials have. What has ended is not trained again; a failure (a full disk, a killed process) is tried again
by the next call.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mindllm_engine.distributed.process_group import environment_world
from mindllm_engine.errors import MindLLMError
from mindllm_engine.studies.trials import PlannedTrial
from mindllm_engine.studies.worker import (
    LOG_FILE,
    OUTCOME_FILE,
    read_outcome,
    tasks_of,
    trains,
    work,
    write_list,
    write_outcome,
)
from mindllm_engine.training.metrics import read_metrics

SECONDS_BETWEEN_LOOKS = 0.5


def run_trials(planned: list[PlannedTrial], folder: Path, workers: int) -> None:
    """Train what has not ended yet.

    Args:
        folder: of the study.
        workers: processes on this machine; under torchrun its ranks train each trial together instead.

    Raises:
        MindLLMError: a trial failed (the others were trained first), or a stop was asked for.
    """
    world = environment_world()
    if world.is_first:
        for trial in planned:
            outcome = read_outcome(trial.folder)
            if outcome is not None and outcome["kind"] == "failed":
                (trial.folder / OUTCOME_FILE).unlink(missing_ok=True)
    open_ones = [trial for trial in planned if read_outcome(trial.folder) is None]
    if world.world_size > 1:
        work(tasks_of(planned))
    elif open_ones:
        with tempfile.TemporaryDirectory(prefix="mindllm_study.") as temporary:
            _run_workers(planned, Path(temporary) / "trials.json", min(workers, len(open_ones)))
    ended = [(trial, read_outcome(trial.folder)) for trial in planned]
    failed = [(trial, outcome) for trial, outcome in ended if outcome is not None and outcome["kind"] == "failed"]
    if failed:
        trial, outcome = failed[0]
        more = f" ({len(failed)} trials failed)" if len(failed) > 1 else ""
        raise MindLLMError(f"trial {trial.name}: {outcome['reason']}; see {trial.folder / LOG_FILE}{more}")
    if any(can_begin(trial) and read_outcome(trial.folder) is None for trial in planned):
        raise MindLLMError(f"{folder}: stopped before all trials had ended; the same command goes on from there")


def can_begin(trial: PlannedTrial) -> bool:
    """Whether the trial that this one needs, if any, has not ended badly."""
    outcome = read_outcome(trial.parent.folder) if trial.parent else None
    return outcome is None or outcome["kind"] == "finished"


def _run_workers(planned: list[PlannedTrial], listed: Path, workers: int) -> None:
    """Start workers on the list of trials, written to `listed`, and wait for them, with a bar or lines on stderr."""
    write_list(tasks_of(planned), listed)
    command = [sys.executable, "-m", "mindllm_engine.studies.worker", str(listed)]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, env=_environment(number, workers)) for number in range(workers)
    ]

    def stop(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with _Display(planned) as display:
            while any(process.poll() is None for process in processes):
                display.update()
                time.sleep(SECONDS_BETWEEN_LOOKS)
            display.update()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    for process in processes:
        if process.returncode:
            _blame(process, planned)


def _blame(process: "subprocess.Popen[bytes]", planned: list[PlannedTrial]) -> None:
    """Write that the trial which a process was training failed with it."""
    code = process.returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    hint = " (out of memory? lower study.workers)" if code == -signal.SIGKILL else ""
    for trial in planned:
        if trains(process.pid, trial.folder) and read_outcome(trial.folder) is None:
            write_outcome(trial.folder, "failed", f"the process that trained it {how}{hint}", 0.0)


def _environment(number: int, workers: int) -> dict[str, str]:
    """A worker's part of the machine: its GPU, or its share of the cores."""
    environment = dict(os.environ)
    gpus = torch.cuda.device_count()
    if gpus:
        visible = environment.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        environment["CUDA_VISIBLE_DEVICES"] = visible[number % len(visible)]
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // workers)))
    return environment


class _Display:
    """How far the trials are: a bar on a terminal, a line for each that ends elsewhere."""

    def __init__(self, planned: list[PlannedTrial]) -> None:
        self.planned = planned
        self.told = {trial.name for trial in planned if read_outcome(trial.folder) is not None}
        self.bar: Progress | None = None

    def __enter__(self) -> "_Display":
        if sys.stderr.isatty():
            columns = (TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.row = self.bar.add_task("trials", total=len(self.planned), completed=len(self.told))
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self) -> None:
        """Tell of the trials that have ended since the last call."""
        for trial in self.planned:
            if trial.name in self.told or (outcome := read_outcome(trial.folder)) is None:
                continue
            self.told.add(trial.name)
            self._say(f"trial {len(self.told)}/{len(self.planned)}  {trial.name}: {_summary(trial, outcome)}")
            if self.bar is not None:
                self.bar.update(self.row, completed=len(self.told))

    def _say(self, line: str) -> None:
        if self.bar is not None:
            self.bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)


def _summary(trial: PlannedTrial, outcome: dict[str, object]) -> str:
    if outcome["kind"] != "finished":
        return f"{outcome['kind']}: {outcome['reason']}"
    evaluated = [record for record in read_metrics(trial.folder) if "heldout_loss" in record]
    loss = f"held-out loss {evaluated[-1]['heldout_loss']:.4f}, " if evaluated else ""
    return f"{loss}{outcome['seconds']:.0f} s"

"""A process that trains trials until none is left: `python -m mindllm_engine.studies.worker FILE`.

FILE is a list of trials (`write_list`). Every worker of every call, on this machine, in a Slurm array or the ranks of
torchrun, walks through the same list: a trial is taken by locking its folder, and is finished once it has OUTCOME_FILE.
Ranks of one torchrun train each trial together, the one that rank 0 takes.

Whoever starts a worker holds its standard input open; when that ends, so does the worker, after saving.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from mindllm_engine.command_line import parse_mapping, run_tool
from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.distributed.process_group import environment_world, start_processes, stop_processes, value_of_rank_0
from mindllm_engine.errors import DataError, DivergedError, MindLLMError
from mindllm_engine.studies.trials import PlannedTrial
from mindllm_engine.training.checkpoint import checkpoint_of, newest_checkpoint, step_of
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.loop import pretrain

OUTCOME_FILE = "outcome.json"
LOG_FILE = "log.txt"
LOCK_FILE = ".training"
SECONDS_BETWEEN_LOOKS = 0.3
MINUTES_TO_AGREE = 24 * 60


@dataclass(frozen=True)
class Task:
    """What a worker needs to know of a trial.

    Attributes:
        config: its resolved configuration, as a mapping.
        last_step: after which it is finished.
        needs: folder of the trial to wait for.
        continues: step of that one's checkpoint to go on from; None to begin anew.
    """

    name: str
    folder: str
    identity: str
    config: dict[str, Any]
    last_step: int
    needs: str | None
    continues: int | None


def tasks_of(planned: list[PlannedTrial]) -> list[Task]:
    """Tasks in the order in which workers should take them: the long ones first, so that none is left over at the
    end, but those that others wait for with all the work that hangs on them."""
    weight = {trial.name: trial.flops for trial in planned}
    for trial in reversed(planned):
        if trial.parent is not None and trial.parent.name in weight:
            weight[trial.parent.name] = max(weight[trial.parent.name], trial.parent.flops + weight[trial.name])
    return [
        Task(
            trial.name,
            str(trial.folder),
            trial.identity,
            asdict(trial.config),
            trial.last_step,
            str(trial.parent.folder) if trial.parent else None,
            trial.trial.continues[1] if trial.trial.continues else None,
        )
        for trial in sorted(planned, key=lambda trial: -weight[trial.name])
    ]


def write_list(tasks: list[Task], path: Path) -> None:
    """Write the file that `main` reads. Raises DataError."""
    write_atomically(path, orjson.dumps([asdict(task) for task in tasks]))


def trains(process: int, folder: Path) -> bool:
    """Whether a process of this host is the one that has last taken the trial in `folder`."""
    try:
        return (folder / LOCK_FILE).read_text() == _name_of(process)
    except (OSError, UnicodeDecodeError):
        return False


def _name_of(process: int) -> str:
    """What no process of another host has: two may well have the same number, in an array of containers."""
    return f"{socket.gethostname()}:{process}"


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """{"kind": "finished" | "diverged" | "failed", "reason": str, "seconds": float} of a trial; None if it has not
    ended, or ended in a failure that the next call tries again."""
    try:
        outcome = orjson.loads((folder / OUTCOME_FILE).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return outcome if isinstance(outcome, dict) and "kind" in outcome else None


def write_outcome(folder: Path, kind: str, reason: str, seconds: float) -> None:
    """Write how a trial ended, and the seconds that this took since it was last taken up. Raises DataError."""
    write_atomically(folder / OUTCOME_FILE, orjson.dumps({"kind": kind, "reason": reason, "seconds": seconds}))


def work(tasks: list[Task]) -> None:
    """Take and train trials until all have ended, or a stop is asked for. Under torchrun all ranks call it."""
    world = environment_world()
    with _stop_flag() as stop:
        while True:
            number, lock = _take(tasks, stop) if world.is_first else (len(tasks), None)
            if world.world_size > 1:
                number = _agree(number)
            if number == len(tasks):
                break
            try:
                _train(tasks[number], world.is_first, stop)
            finally:
                if lock is not None:
                    lock.close()


def _take(tasks: list[Task], stop: threading.Event) -> tuple[int, BinaryIO | None]:
    """The number of a trial that is ready, and the lock on its folder. Waits for those that others train, which may
    leave them unfinished; len(tasks) once all have ended or can never begin, or a stop was asked for."""
    while not stop.is_set():
        open_ones = [number for number, task in enumerate(tasks) if read_outcome(Path(task.folder)) is None]
        may_begin = [number for number in open_ones if _parent_state(tasks[number]) in (None, "finished")]
        if not may_begin:
            break
        for number in may_begin:
            folder = Path(tasks[number].folder)
            lock = _try_lock(folder) if _parent_state(tasks[number]) == "finished" else None
            if lock is not None and read_outcome(folder) is None and _has_its_checkpoint(tasks[number]):
                return number, lock
            if lock is not None:
                lock.close()
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return len(tasks), None


def _has_its_checkpoint(task: Task) -> bool:
    """Put the checkpoint that a trial goes on from into its folder, before any rank looks there; or write that it
    failed."""
    folder = Path(task.folder)
    if task.needs is None or task.continues is None or newest_checkpoint(folder / "checkpoints") is not None:
        return True
    try:
        link_checkpoint(Path(task.needs), task.continues, folder)
    except DataError as error:
        write_outcome(folder, "failed", str(error), 0.0)
        return False
    return True


def _parent_state(task: Task) -> str | None:
    """How the trial that this one needs has ended; None while it has not."""
    if task.needs is None:
        return "finished"
    outcome = read_outcome(Path(task.needs))
    return outcome["kind"] if outcome else None


def _try_lock(folder: Path) -> BinaryIO | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        file.truncate(0)
        file.write(_name_of(os.getpid()).encode())
        file.flush()
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be locked ({error.strerror}); check study.dir and its permissions"
        ) from error
    return file


def _agree(number: int) -> int:
    """The number that rank 0 has, which may be hours in coming."""
    start_processes(timeout_minutes=MINUTES_TO_AGREE)
    try:
        return value_of_rank_0(number)
    finally:
        stop_processes()


def _train(task: Task, is_first: bool, stop: threading.Event) -> None:
    """Train one trial, or go on with it, and write how it ended. A stop leaves it to the next call."""
    folder, began = Path(task.folder), time.monotonic()
    kind, reason = "finished", ""
    with _output_to(folder / LOG_FILE):
        try:
            config = parse_mapping(RunConfig, task.config, task.name)
            pretrain(config)
        except DivergedError as error:
            kind, reason = "diverged", str(error)
        except MindLLMError as error:
            kind, reason = "failed", str(error)
    newest = newest_checkpoint(folder / "checkpoints")
    if kind == "finished" and (newest is None or step_of(newest) < task.last_step):
        stop.set()  # by a signal that the run heeded; it is saved, and not finished
        return
    if is_first:
        write_outcome(folder, kind, reason, time.monotonic() - began)


def link_checkpoint(parent: Path, step: int, folder: Path) -> None:
    """Put another run's checkpoint into a run folder, as links to the same files where the file system has them.

    Raises:
        DataError: it is not there, or cannot be linked.
    """
    source = checkpoint_of(parent / "checkpoints", step)
    target = checkpoint_of(folder / "checkpoints", step)
    staged = target.with_name(f".{target.name}.tmp")
    try:
        if not source.is_dir():
            raise DataError(f"{source}: is not there; delete {parent / OUTCOME_FILE} to have it trained again")
        shutil.rmtree(staged, ignore_errors=True)
        shutil.copytree(source, staged, copy_function=_link_or_copy)
        staged.rename(target)
    except OSError as error:
        raise DataError(f"{target}: cannot be linked to {source} ({error.strerror})") from error


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send what this process prints, Python or not, to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)


@contextlib.contextmanager
def _stop_flag() -> Iterator[threading.Event]:
    """Set by SIGTERM between trials; within one the run itself heeds it."""
    stop = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)


def _end_with_starter() -> None:
    """Ask this process to save and end when its standard input does."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Train what the list named on the command line holds."""
    _end_with_starter()
    work([Task(**task) for task in orjson.loads(Path(sys.argv[1]).read_bytes())])


if __name__ == "__main__":
    run_tool(main)

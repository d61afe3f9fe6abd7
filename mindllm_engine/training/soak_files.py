"""What `soak.py` reads in a run folder: where the run is, while it goes on; and whether all is as it should be, after
a kill and at the end."""

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import orjson

from mindllm_engine.errors import CheckpointError
from mindllm_engine.training.checkpoint import checkpoints, load_state, newest_checkpoint, step_of, verify
from mindllm_engine.training.metrics import METRICS_FILE

Phase = Literal["start-up", "training", "saving", "ending"]
PHASES: tuple[Phase, ...] = ("start-up", "training", "saving", "ending")
# A record is shorter.
TAIL_BYTES = 1 << 14


class SoakFailure(Exception):
    """What a kill must not bring about, in one line."""


class RunWatch:
    """Where a run is, by the files it writes: quick enough to be asked a thousand times a second.

    Args:
        folder: the run folder.
        steps: the run's last step.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = folder
        self.steps = steps
        self.metrics = folder / METRICS_FILE
        self.begin()

    def begin(self) -> None:
        """The run is about to start, or to start again."""
        self.old_leftovers = self.leftovers()
        self.old_file = self.metrics_file()
        self.first_step = newest_step(self.folder)
        self.read_size: int | None = None
        self.step = self.first_step

    def metrics_file(self) -> tuple[int, int] | None:
        """Which file it is (a run that goes on begins another), and its size."""
        try:
            stat = self.metrics.stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_size

    def leftovers(self) -> set[tuple[str, int]]:
        """Unfinished checkpoints, with the time of their last change."""
        found = set()
        try:
            for entry in os.scandir(self.folder / "checkpoints"):
                if entry.name.startswith(".step_"):
                    found.add((entry.name, entry.stat().st_mtime_ns))
        except FileNotFoundError:  # the folder, or an entry that has just been renamed
            pass
        return found

    def look(self) -> Phase:
        """Where the run is now; `step` is then the last one it has recorded since `begin`, or the one it goes on
        from."""
        file = self.metrics_file()
        if file is not None and self.old_file is not None and file[0] == self.old_file[0]:
            return "start-up"
        if file is not None and file[1] != self.read_size:
            self.read_size = file[1]
            self.step = max(self.first_step, last_step(self.metrics))
        if self.step == self.first_step:
            return "start-up"
        if self.leftovers() - self.old_leftovers:
            return "saving"
        return "ending" if self.step >= self.steps else "training"


def last_step(metrics: Path) -> int:
    """Of the last whole record; 0 without one."""
    with metrics.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]
    try:
        return int(orjson.loads(lines[-1])["step"])
    except (IndexError, orjson.JSONDecodeError):
        return 0


def newest_step(folder: Path) -> int:
    """The step of a run's newest checkpoint; 0 without one."""
    newest = newest_checkpoint(folder / "checkpoints")
    return step_of(newest) if newest is not None else 0


def numbers_of(folder: Path) -> list[dict[str, Any]]:
    """What the run's records say about the mathematics: not how fast it went. A last line cut short is left out.

    Raises:
        SoakFailure: another line is no record.
    """
    path = folder / METRICS_FILE
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise SoakFailure(f"{path}:{number}: not a record: {line[:80]!r}") from error
        records.append(
            {
                name: value
                for name, value in record.items()
                if name in ("step", "tokens", "lr", "grad_norm") or name.startswith(("loss", "heldout"))
            }
        )
    return records


def check_after_kill(folder: Path, reference: list[dict[str, Any]], checkpoint_every: int) -> tuple[int, int]:
    """What must hold when a run has been killed: every checkpoint is whole, and every record so far is the reference's.

    Returns:
        The step of the newest checkpoint, and the last step recorded: those between will be repeated.

    Raises:
        SoakFailure: it does not hold.
    """
    for checkpoint in checkpoints(folder / "checkpoints"):
        try:
            verify(checkpoint)
        except CheckpointError as error:
            raise SoakFailure(f"a published checkpoint is not whole: {error}") from error
    records = numbers_of(folder)
    check_records(folder, records, reference)
    newest, last = newest_step(folder), records[-1]["step"] if records else 0
    if last < newest:
        raise SoakFailure(f"{folder}: the records end at step {last}, before the newest checkpoint's step {newest}")
    # While one checkpoint is being written the run goes on, but not beyond the next.
    if last - newest > 2 * checkpoint_every:
        raise SoakFailure(f"{folder}: {last - newest} steps are lost, with a checkpoint every {checkpoint_every}")
    return newest, last


def check_records(folder: Path, records: list[dict[str, Any]], reference: list[dict[str, Any]]) -> None:
    """Raises `SoakFailure` naming the first record that is not, to the last bit, the reference's."""
    if len(records) > len(reference):
        raise SoakFailure(f"{folder}: {len(records)} records, more than the reference's {len(reference)}")
    for record, expected in zip(records, reference, strict=False):
        if record != expected:
            name = next(name for name in {**expected, **record} if record.get(name) != expected.get(name))
            raise SoakFailure(
                f"{folder}: step {record['step']}: {name} is {record.get(name)}, {expected.get(name)} in the reference "
                f"(step {expected['step']})"
            )


def check_at_end(folder: Path, reference_folder: Path, reference: list[dict[str, Any]]) -> None:
    """What must hold when a run has ended: the reference's records and last checkpoint, and nothing half-written.

    Raises:
        SoakFailure: it does not hold.
    """
    records = numbers_of(folder)
    check_records(folder, records, reference)
    if len(records) < len(reference):
        raise SoakFailure(f"{folder}: has ended with {len(records)} records of {len(reference)}")
    left = [path.name for path in (folder / "checkpoints").glob(".*")]
    if left:
        raise SoakFailure(f"{folder}: has ended and left {', '.join(sorted(left))}")
    ours, theirs = (newest_checkpoint(run / "checkpoints") for run in (folder, reference_folder))
    if ours is None or theirs is None:
        raise SoakFailure(f"{folder}: has ended without a checkpoint")
    # A state holds a checksum of each file: weights, moments and random generators, besides the position in the data.
    found, expected = asdict(load_state(ours)), asdict(load_state(theirs))
    different = [name for name in expected if found[name] != expected[name]]
    if different:
        raise SoakFailure(f"{ours}: not the reference's: {', '.join(different)}")


def resumed_at(log: Path, offset: int) -> int | None:
    """The step that a run said, in what it printed after `offset` bytes, it goes on from; None where it said nothing.

    The last one, should the agent have started its ranks several times.
    """
    with log.open("rb") as file:
        file.seek(offset)
        said = re.findall(rb"goes on from step (\d+) of", file.read())
    return int(said[-1]) if said else None

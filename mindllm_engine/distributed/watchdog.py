"""Says which rank holds the others up, and in which operation, when a collective hangs or a rank is gone.

The training thread says what it is about to do with `mark`, an assignment. A thread beside it tells the run's TCPStore
every second or two where this rank is, which also shows that the process lives. A rank without progress for the
timeout, or one whose collective failed, reads where all ranks are, and ends with one line about those that are behind.

On the CPU (gloo) a collective is waited for where it is marked. On a GPU the host runs ahead of the device and stops
some launches after the one that hangs, or where it next reads a number: there the step is sure, the operation is the
host's.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch.distributed as dist

from mindllm_engine.command_line import USER_ERROR_EXIT_CODE, printable
from mindllm_engine.distributed.rendezvous import connect
from mindllm_engine.ranks import is_mine_to_tell, record_failure, within

# Seconds between two signs of life of a rank, at most, and how many of them a rank may miss before it counts as gone.
SECONDS_BETWEEN_BEATS = 2.0
BEATS_MISSED = 3
# For all ranks' places, from a store that may be gone.
SECONDS_TO_ANSWER = 10.0
# Ranks that a message names.
NAMED = 8


@dataclass(frozen=True)
class Place:
    """Where a rank is: the operation it began last, and how many operations of that step came before it."""

    step: int
    position: int
    operation: str

    def __str__(self) -> str:
        return f"step {self.step}, {self.operation}"


@dataclass(frozen=True)
class Beat:
    """What a rank tells the others.

    Attributes:
        number: counts up while the process lives.
        has_left: whether it has ended, by an error of its own or because of another rank.
    """

    place: Place
    number: int
    has_left: bool


# Where this process is, and how often it has said so. Assigned whole, so that a thread never reads half of one.
_here = (Place(0, 0, "starting"), 0)


def mark(operation: str) -> None:
    """Say what this rank is about to do: "forward", "reduce-scatter of bucket 5 (layers.3.qkv ...)".

    All ranks mark the same operations of a step in the same order, so that the rank with the fewest is behind; those
    that only one rank does, too. The same words again are a sign of life and no further: for loops whose length differs
    among ranks. Costs a microsecond, and nothing is sent. Called before a collective is launched and before it is
    waited for.
    """
    global _here
    place, marks = _here
    if operation != place.operation:
        place = Place(place.step, place.position + 1, operation)
    _here = (place, marks + 1)


def begin_step(step: int) -> None:
    """Say that this rank begins a step, counted as in the run's records (the first is 1)."""
    global _here
    _here = (Place(step, 0, "beginning"), _here[1] + 1)


@contextmanager
def watching(timeout_minutes: float) -> Iterator[None]:
    """Watch over the ranks of the default process group while entered; a world of one needs no watching.

    A process without a mark for `timeout_minutes`, and one whose collective fails because a rank is gone, ends with
    exit code 2; one of them prints the line. The process group's own timeout should be longer than this one.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield
        return
    watchdog = Watchdog(timeout_minutes * 60)
    try:
        yield
    except BaseException as error:
        if is_of_a_collective(error) and (found := watchdog.missing_ranks()):
            watchdog.say(f"{_here[0]}: {found}")
            watchdog.leave()
            raise SystemExit(USER_ERROR_EXIT_CODE) from error
        watchdog.leave()
        raise
    watchdog.leave()


def is_of_a_collective(error: BaseException) -> bool:
    """Whether an error may have come from a collective that lost a rank: gloo's are plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL", "onnection", "peer"))
    )


class Watchdog:
    """The thread that tells where this rank is, and ends the process when nothing moves.

    Sends, every other second: where this rank is, some 100 bytes, to the store. Reads those of all ranks when something
    is wrong.
    """

    def __init__(self, timeout: float) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.timeout = timeout
        self.interval = min(SECONDS_BETWEEN_BEATS, timeout / 10)
        self.store = dist.PrefixStore("watchdog", connect(max(5.0, 5 * self.interval)))
        self.store_is_gone = False
        self.beats = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.publish(has_left=False)
        self.thread = threading.Thread(target=self.watch, name="watchdog", daemon=True)
        self.thread.start()

    def watch(self) -> None:
        """Until `leave`: a sign of life at each interval; the end of the process after the timeout without a mark.

        Time is counted in intervals, so that a process that was stopped and goes on is given its time again.
        """
        seen, idle = _here, 0.0
        while not self.ended.wait(self.interval):
            self.publish(has_left=False)
            idle = idle + self.interval if _here is seen else 0.0
            seen = _here
            if idle >= self.timeout:
                found = self.missing_ranks() or self.ranks_behind()
                if _here is seen and not self.ended.is_set():
                    self.say(f"{seen[0]}: no progress for {self.timeout / 60:g} minutes: {found}")
                    os._exit(USER_ERROR_EXIT_CODE)

    def publish(self, has_left: bool) -> None:
        """Tell where this rank is. A store that is gone is no error yet: the collectives go another way."""
        if self.store_is_gone:
            return
        with self.lock:
            self.beats += 1
            beat = Beat(_here[0], self.beats, has_left)
            try:
                self.store.set(str(self.rank), json.dumps(asdict(beat)))
            except RuntimeError:
                return

    def leave(self) -> None:
        """End the thread, and tell the others that this rank has left."""
        self.ended.set()
        self.publish(has_left=True)

    def read(self) -> list[Beat | None]:
        """What each rank has told last; None for one that has not told anything yet.

        Raises RuntimeError where the store does not answer.
        """
        beats: list[Beat | None] = []
        for rank in range(self.world_size):
            key = str(rank)
            with self.lock:
                told = json.loads(self.store.get(key)) if self.store.check([key]) else None
            beats.append(told and Beat(Place(**told["place"]), told["number"], told["has_left"]))
        return beats

    def missing_ranks(self) -> str:
        """The ranks that give no sign of life, or else those that have left; empty where all are there."""
        try:
            before = within(SECONDS_TO_ANSWER, self.read)
            self.live_on()
            after = within(SECONDS_TO_ANSWER, self.read)
        except RuntimeError:
            self.store_is_gone = True
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            return f"the store of the run at {address} does not answer: its process or machine is gone"
        silent = [
            rank
            for rank, (old, new) in enumerate(zip(before, after, strict=True))
            if rank != self.rank and old == new and not (new and new.has_left)
        ]
        left = [rank for rank, beat in enumerate(after) if beat and beat.has_left]
        if silent:
            return describe(silent, after, "no sign of life, last heard of in")
        return describe(left, after, "has ended, in")

    def live_on(self) -> None:
        """Give as many signs of life as another rank may miss."""
        for _ in range(BEATS_MISSED):
            time.sleep(self.interval)
            self.publish(has_left=False)

    def ranks_behind(self) -> str:
        """The ranks that have come least far."""
        beats = [beat or Beat(Place(0, 0, "starting"), 0, False) for beat in self.read()]
        places = [(beat.place.step, beat.place.position) for beat in beats]
        behind = [rank for rank, place in enumerate(places) if place == min(places)]
        if len(behind) == self.world_size:
            return f"all {self.world_size} ranks live and are in the same place: look at the network between them"
        return describe(behind, beats, "behind, in")

    def say(self, line: str) -> None:
        """Print a line, if no other rank has said one and the rank that it is about has not told why itself; where the
        store is gone, each host says its own."""
        line = printable(
            f"error: rank {self.rank} in {line}; start the run again: it goes on from its newest checkpoint"
        )
        record_failure(line)
        if is_mine_to_tell(line, of_another_rank=True):  # all ranks wait in it, so that none ends the one that tells
            print(line, file=sys.stderr, flush=True)
        if self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            for _ in range(2):  # it holds the store, where the others look for what has been said
                self.live_on()


def describe(ranks: Sequence[int], beats: Sequence[Beat | None], how: str) -> str:
    """ "rank 3: <how> step 12, forward; rank 5: ...": the first of these ranks, and how many more there are."""
    named = [f"rank {rank}: {how} {beat.place if (beat := beats[rank]) else 'starting'}" for rank in ranks[:NAMED]]
    return "; ".join(named) + (f"; and {len(ranks) - NAMED} more" if len(ranks) > NAMED else "")

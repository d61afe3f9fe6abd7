"""What ends a run before its last step, saved and with exit code 0: a signal, or a limit on its time."""

import signal
import time
from types import FrameType

# SIGTERM comes from torchrun, Kubernetes and Slurm; SIGUSR1 where a Slurm script asks for it (--signal=USR1@300).
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# What a first save is taken to need: a fixed part, and bytes a parameter over bytes a second of a slow network disk.
SECONDS_A_SAVE = 2.0
SECONDS_A_PARAMETER = 12 / 100e6
# Steps and saves may take this much longer than the longest so far.
ROOM = 1.5


class StopSignal:
    """While it is entered, a signal asks the run to end after the step under way.

    A second one asks for nothing more: torchrun and cluster managers often send several. SIGKILL ends a run at once.
    Who handled the signal before hears of it too: a study's worker, which has further runs to begin.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopSignal":
        self.previous = {number: signal.signal(number, self.request) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def request(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.requested = True
        before = self.previous[signal.Signals(number)]
        if callable(before):
            before(number, frame)


class TimeLimit:
    """Whether the run must be saved now to end in time: another step and then a save, each measured, would no longer
    fit.

    Args:
        minutes: None for no limit.
        started: when the run began, by `time.monotonic()`.
        parameters: of the model; the first save is guessed by it.
    """

    def __init__(self, minutes: float | None, started: float, parameters: int) -> None:
        self.end = None if minutes is None else started + 60 * minutes
        self.guessed_save = SECONDS_A_SAVE + parameters * SECONDS_A_PARAMETER
        self.longest_step = 0.0
        self.last_look = time.monotonic()

    def is_near(self, longest_save: float | None) -> bool:
        """Look at the clock, once after each step.

        Args:
            longest_save: seconds from the beginning of a save until the checkpoint was in its place; None before the
                first.
        """
        now = time.monotonic()
        self.longest_step = max(self.longest_step, now - self.last_look)
        self.last_look = now
        save = self.guessed_save if longest_save is None else longest_save
        return self.end is not None and now + ROOM * (self.longest_step + save) > self.end

"""What `soak.py` kills: torchrun's agent and the ranks it starts, as /proc shows them (Linux)."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process and when it started (clock ticks since boot), which no other process ever has in common with it."""

    pid: int
    started: int


class Stat(NamedTuple):
    """What /proc tells of a process."""

    state: str
    parent: int
    started: int


def read_stat(pid: int) -> Stat | None:
    """None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold anything
    return Stat(fields[0], int(fields[1]), int(fields[19]))


def is_alive(process: Process) -> bool:
    """Whether it runs; one that has ended and that nobody has asked about (a zombie) does not."""
    stat = read_stat(process.pid)
    return stat is not None and stat.started == process.started and stat.state not in "ZX"


def children(parent: int) -> list[Process]:
    """The processes that a process has started, by process id."""
    found = []
    for entry in os.scandir("/proc"):
        stat = read_stat(int(entry.name)) if entry.name.isdecimal() else None
        if stat is not None and stat.parent == parent:
            found.append(Process(int(entry.name), stat.started))
    return sorted(found)


def is_rank(process: Process) -> bool:
    """Whether torchrun has made it a rank: before it has become one, it has its agent's environment."""
    try:
        return b"\0RANK=" in b"\0" + Path(f"/proc/{process.pid}/environ").read_bytes()
    except OSError:
        return False


def send(process: Process, number: signal.Signals) -> None:
    """A signal, unless the process has ended."""
    if is_alive(process):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


class Launch:
    """One start of a command under torchrun. What it prints is appended to `log`."""

    def __init__(self, command: list[str], log: Path) -> None:
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": "1"} | os.environ,
                start_new_session=True,
            )
        stat = read_stat(self.popen.pid)
        self.agent = Process(self.popen.pid, stat.started if stat else 0)

    def ranks(self) -> list[Process]:
        """The ranks that run now."""
        return [process for process in children(self.agent.pid) if is_rank(process) and is_alive(process)]

    def has_ended(self) -> bool:
        """Whether the agent has."""
        return self.popen.poll() is not None

    def kill_agent(self) -> list[Process]:
        """Kill the agent alone; returns what it had started."""
        send(self.agent, signal.SIGSTOP)  # so that it starts nothing more
        orphans = children(self.agent.pid)
        self.popen.kill()
        self.popen.wait()
        return orphans

    def end(self) -> None:
        """Kill all of it at once."""
        for process in self.kill_agent():
            send(process, signal.SIGKILL)

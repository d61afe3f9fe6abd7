"""Ranks that stop, die or hang in real processes: the others end in time, with one line that says who and where."""

import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch.distributed as dist

from mindllm_engine.distributed import watchdog
from mindllm_engine.distributed.watchdog import Beat, Place, describe
from tests.training.tiny_run import ROOT, environment

WORKER = str(Path(__file__).with_name("watched_worker.py"))
TIMEOUT = 3.0
PLACE = r"step \d+, (beginning|(backward|reduce-scatter) of bucket [0-2]( \(layers\.[0-2]\.qkv\))?)"


@contextmanager
def ranks(count: int, *options: str, has_agent: bool = True) -> Iterator[list[subprocess.Popen[str]]]:
    """Worker processes on this machine, killed at the end; with the store in this process, as torchrun's agent holds
    it, or in that of rank 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = environment() | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if has_agent:
        shared["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    arguments = [sys.executable, WORKER, str(TIMEOUT / 60), *options]
    processes = [
        subprocess.Popen(
            arguments,
            env=shared | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()
        if has_agent:
            del store


def wait_until_under_way(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "is under way" in line, process.communicate()[1]


def errors_of(processes: list[subprocess.Popen[str]]) -> list[str]:
    """The lines that processes which end by themselves say, after a check of their exit codes."""
    lines = []
    for process in processes:
        stderr = process.communicate(timeout=60)[1]
        assert process.returncode == 2, stderr
        lines += [line for line in stderr.splitlines() if line.startswith("error:")]
    return lines


@pytest.mark.parametrize("seed", [1, 2])
def test_a_stopped_rank_is_named(seed: int) -> None:
    rng = random.Random(seed)
    with ranks(3) as processes:
        wait_until_under_way(processes)
        time.sleep(rng.random())
        stopped = rng.randrange(3)
        processes[stopped].send_signal(signal.SIGSTOP)
        start = time.monotonic()
        (error,) = errors_of([process for rank, process in enumerate(processes) if rank != stopped])
        assert TIMEOUT <= time.monotonic() - start < TIMEOUT + 10
    expected = (
        rf"error: rank \d in {PLACE}: no progress for 0.05 minutes: rank {stopped}: no sign of life, last heard of in "
        rf"{PLACE}; start the run again: it goes on from its newest checkpoint"
    )
    assert re.fullmatch(expected, error), error


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_rank_is_named(seed: int) -> None:
    rng = random.Random(seed)
    with ranks(3) as processes:
        wait_until_under_way(processes)
        time.sleep(rng.random())
        killed = rng.randrange(3)
        processes[killed].kill()
        start = time.monotonic()
        (error,) = errors_of([process for rank, process in enumerate(processes) if rank != killed])
        assert time.monotonic() - start < TIMEOUT + 10
    assert re.fullmatch(rf"error: rank \d in {PLACE}: rank {killed}: no sign of life, last heard .*", error), error


def test_the_rank_that_holds_the_store_may_die() -> None:
    with ranks(2, has_agent=False) as processes:
        wait_until_under_way(processes)
        processes[0].kill()
        (error,) = errors_of(processes[1:])
    assert re.search(r"the store of the run at 127\.0\.0\.1:\d+ does not answer: its process or machine is gone", error)


def test_a_rank_that_lives_but_hangs_is_named() -> None:
    with ranks(3, "HANG") as processes:
        errors = errors_of(processes)
    (error,) = errors
    behind = r"no progress for 0.05 minutes: rank 1: behind, in step 20, backward of bucket 1; start"
    assert re.search(behind, error), error


def test_marks_say_how_far_a_rank_is() -> None:
    watchdog.begin_step(7)
    assert str(watchdog._here[0]) == "step 7, beginning"
    watchdog.mark("forward")
    place, marks = watchdog._here
    assert place == Place(7, 1, "forward")
    watchdog.mark("forward")
    assert watchdog._here == (place, marks + 1), "the same words are a sign of life, no step further"
    watchdog.mark("backward")
    assert watchdog._here[0] == Place(7, 2, "backward")


def test_a_message_names_some_of_many_ranks() -> None:
    beats = [Beat(Place(3, rank, "forward"), 1, False) for rank in range(20)]
    text = describe(range(4, 20), [*beats[:5], None, *beats[6:]], "behind, in")
    assert text.startswith("rank 4: behind, in step 3, forward; rank 5: behind, in starting; rank 6: ")
    assert text.endswith("rank 11: behind, in step 3, forward; and 8 more")


def test_a_world_of_one_is_not_watched() -> None:
    with watchdog.watching(1e-9):
        time.sleep(0.01)
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())

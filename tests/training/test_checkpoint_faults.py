"""Saving under trouble: slow ranks, full disks, SIGKILL. Training goes on, and the last checkpoint stays good."""

import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mindllm_engine.distributed.process_group import World
from mindllm_engine.errors import CheckpointError
from mindllm_engine.training.checkpoint import checkpoint_of, checkpoints, verify
from tests.training.checkpoint_ranks import SHAPES, KnownBackend, Ranks, checkpointer, load, make_state, save


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.kill()


def train_while_the_other_is_slow(world: World, folder: Path) -> tuple[float, int, float]:
    """Pause, steps done until the checkpoint is there, and seconds that took. Rank 1 comes to save late."""
    backend = KnownBackend(SHAPES, world)
    backend.fill(3)
    saving = checkpointer(folder, backend, world)
    if world.rank == 1:
        time.sleep(1.5)
    start = time.monotonic()
    pause = saving.save(make_state(3))
    steps = 0
    while not checkpoint_of(folder, 3).exists():
        backend.fill(1000 + steps)  # a step, which changes the state
        steps += 1
        assert time.monotonic() - start < 60
    seconds = time.monotonic() - start
    saving.wait()
    return pause, steps, seconds


def test_training_goes_on_while_a_slow_rank_writes(ranks: Ranks, tmp_path: Path) -> None:
    (pause, steps, seconds), _ = ranks.run(2, train_while_the_other_is_slow, tmp_path)
    assert seconds > 1
    assert pause < seconds / 4
    assert steps > 100
    assert [answer[:2] for answer in ranks.run(1, load, tmp_path, 3)] == [(None, True)], "of the moment of saving"


def save_with_little_room(world: World, folder: Path, limits: list[int]) -> list[str]:
    """Save step 8 with a limit on the size of a rank's files, then train on until the next save and the end."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    backend = KnownBackend(SHAPES, world)
    saving = checkpointer(folder, backend, world)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits[world.rank], resource.RLIM_INFINITY))
    messages = []
    try:
        backend.fill(8)
        saving.save(make_state(8))
        for finish in (lambda: saving.save(make_state(9)), saving.wait):
            try:
                finish()
            except CheckpointError as error:
                messages.append(str(error))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    saving.save(make_state(10))
    saving.wait()
    return messages


@pytest.mark.parametrize("full", [0, 1])
def test_one_ranks_disk_is_full(ranks: Ranks, tmp_path: Path, full: int) -> None:
    ranks.run(2, save, tmp_path, 4)
    limits = [resource.RLIM_INFINITY] * 2
    limits[full] = 8_000
    messages = ranks.run(2, save_with_little_room, tmp_path, limits)
    assert len(messages[0]) == 1, "at the next save, once"
    assert messages[0] == messages[1]
    assert f"step_00000008: cannot save the checkpoint (rank {full}: " in messages[0][0]
    assert messages[0][0].endswith("to go on from " + str(checkpoint_of(tmp_path, 4)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000004", "step_00000010"]
    for step in (4, 10):
        verify(checkpoint_of(tmp_path, step))


def fill_the_disk(world: World, folder: Path) -> str:
    backend = KnownBackend({"w": (300, 100)}, world)
    saving = checkpointer(folder, backend, world)
    try:
        for step in range(1, 20):
            backend.fill(step)
            saving.save(make_state(step))
        saving.wait()
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_file_system_that_is_really_full(ranks: Ranks, tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1600k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not allow mounting a file system")
    try:
        messages = ranks.run(2, fill_the_disk, tmp_path / "checkpoints")
        assert messages[0] == messages[1]
        assert "No space left on device" in messages[0]
        assert "\n" not in messages[0]
        kept = checkpoints(tmp_path / "checkpoints")
        assert [path.name for path in kept] == [path.name for path in sorted((tmp_path / "checkpoints").iterdir())]
        assert len(kept) >= 2
        for checkpoint in kept:
            verify(checkpoint)
        assert messages[0].endswith(f"to go on from {kept[-1]}")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_folder_that_cannot_be_written(ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for message in ranks.run(2, fill_the_disk, tmp_path / "file"):
        assert "file/step_00000001: cannot save the checkpoint (rank 0: " in message
        assert message.endswith("to go on from the beginning")


def save_for_ever(world: World, folder: Path, first: int) -> None:
    backend = KnownBackend({"w": (500, 100), **SHAPES}, world)
    saving = checkpointer(folder, backend, world, keep=2)
    for step in range(first, 10**6):
        backend.fill(step)
        saving.save(make_state(step))


def test_killed_at_random_moments_while_saving(tmp_path: Path) -> None:
    """Six times: the newest checkpoint is whole, and of the step it says; the next run removes what was half done."""
    rng = random.Random(4)
    step, half_done = 0, 0
    for number in range(6):
        victims = Ranks(2)
        victims.begin(2, save_for_ever, tmp_path, step + 1)
        deadline = time.monotonic() + 100
        while len(checkpoints(tmp_path)) < 2 or int(checkpoints(tmp_path)[-1].name[5:]) < step + 2:
            assert time.monotonic() < deadline, "no checkpoint was saved"
            time.sleep(0.01)
        time.sleep(0.3 * rng.random())
        while number % 2 and not list(tmp_path.glob(".step_*.tmp")):  # every other time, while one is being written
            assert time.monotonic() < deadline, "nothing is written"
        time.sleep(0.01 * rng.random())
        victims.kill()
        newest = checkpoints(tmp_path)[-1]
        step = int(newest.name[5:])
        half_done += len(list(tmp_path.glob(".step_*.tmp")))
        for checkpoint in checkpoints(tmp_path):
            verify(checkpoint)
        world = World(0, 1, 0, torch.device("cpu"))
        assert load(world, tmp_path, step, {"w": (500, 100), **SHAPES})[:2] == (None, True)
    assert half_done > 0, "some were killed in the middle of a checkpoint"
    save(World(0, 1, 0, torch.device("cpu")), tmp_path, step + 1)
    assert not list(tmp_path.glob(".step_*.tmp"))

"""A run that is stopped after any of its steps goes on as if nothing had happened: on the same ranks to the last bit,
and on other ranks or another backend with the same losses."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.rank_pool import RankPool
from tests.training.tiny_run import launch, losses, records, write_config

STEPS = 20


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    with RankPool(4) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A global batch that 1, 2, 3 and 4 ranks share evenly, in several micro-batches each, and several buckets."""
    return write_config(
        tmp_path_factory.mktemp("matrix"),
        train__steps=STEPS,
        train__global_batch_size=12,
        train__micro_batch_size=1,
        train__eval_every=5,
        train__checkpoint_every=0,
        distributed={"bucket_elements": 5000},
    )


@pytest.fixture(scope="module")
def whole(pool: RankPool, config: Path) -> Path:
    """The run folder of two ranks that were not interrupted."""
    folder = config.parent / "whole"
    pool.pretrain(2, config, "--run.dir", str(folder))
    assert [record["step"] for record in records(folder) if "loss" in record] == [*range(1, STEPS + 1)]
    return folder


@pytest.fixture(scope="module")
def stopped(pool: RankPool, config: Path) -> dict[int, Path]:
    """The folders of runs of two ranks that were stopped after each step but the last."""
    folders = {step: config.parent / f"stopped_{step}" for step in range(1, STEPS)}
    for step, folder in folders.items():
        pool.pretrain(2, config, "--run.dir", str(folder), "--train.stop_after", str(step))
        assert losses(folder)[-1][0] == step
    return folders


def tensors(checkpoint: Path) -> dict[str, Any]:
    """All that a checkpoint holds, part by part: weights, moments and random generators of each rank."""
    return {
        f"{path.stem}/{name}": tensor
        for path in checkpoint.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def state(checkpoint: Path) -> dict[str, Any]:
    """Position in the data and in training."""
    fields = json.loads((checkpoint / "state.json").read_text())
    return {name: fields[name] for name in ("step", "next_sample", "updates", "plan", "extra")}


def assert_equal(folder: Path, whole: Path) -> None:
    """Records, weights, moments, random generators and the position in the data, bit for bit."""
    assert losses(folder) == losses(whole)
    ours, theirs = (path / "checkpoints" / f"step_{STEPS:08d}" for path in (folder, whole))
    assert state(ours) == state(theirs)
    found, expected = tensors(ours), tensors(theirs)
    assert found.keys() == expected.keys()
    assert {name.split("/")[1].split(".")[0] for name in found} >= {"master", "m", "v", "generator"}
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def assert_close(folder: Path, whole: Path) -> None:
    """Losses, those of sources and held-out ones included, to 1e-6; gradient norms are sums of far more terms."""
    found, expected = (torch.tensor(losses(path), dtype=torch.float64) for path in (folder, whole))
    torch.testing.assert_close(found[:, :3], expected[:, :3], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[:, 3], expected[:, 3], rtol=1e-5, atol=0)


def test_same_ranks_bit_for_bit(pool: RankPool, config: Path, whole: Path, stopped: dict[int, Path]) -> None:
    for folder in stopped.values():
        resumed = shutil.copytree(folder, folder.with_name(f"same_{folder.name}"))
        pool.pretrain(2, config, "--run.dir", str(resumed))
        assert_equal(resumed, whole)


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_stopping_at_every_step_is_bit_for_bit_the_same(pool: RankPool, config: Path, ranks: int) -> None:
    unbroken, broken = config.parent / f"unbroken_{ranks}", config.parent / f"broken_{ranks}"
    pool.pretrain(ranks, config, "--run.dir", str(unbroken))
    for step in range(1, STEPS + 1):
        pool.pretrain(ranks, config, "--run.dir", str(broken), "--train.stop_after", str(step))
    assert_equal(broken, unbroken)


def go_on(pool: RankPool, config: Path, folder: Path, name: str, step: int, legs: list[tuple[int, str]]) -> Path:
    """Copy a run stopped after `step`, and go on for one step on each of these (ranks, backend), on the last to the
    end; returns the new folder."""
    moved = shutil.copytree(folder, folder.with_name(f"{name}_{step}"))
    for ranks, backend in legs[:-1]:
        step += 1
        if step < STEPS:
            stop = ("--train.stop_after", str(step))
            pool.pretrain(ranks, config, "--run.dir", str(moved), "--distributed.backend", backend, *stop)
            assert losses(moved)[-1][0] == step
    ranks, backend = legs[-1]
    pool.pretrain(ranks, config, "--run.dir", str(moved), "--distributed.backend", backend)
    return moved


def test_2_to_4_to_3_to_1_ranks(pool: RankPool, config: Path, whole: Path, stopped: dict[int, Path]) -> None:
    for step, folder in stopped.items():
        moved = go_on(pool, config, folder, "ranks", step, [(4, "native"), (3, "native"), (1, "native")])
        assert_close(moved, whole)


def test_native_to_deepspeed_to_native(pool: RankPool, config: Path, whole: Path, stopped: dict[int, Path]) -> None:
    pytest.importorskip("deepspeed")
    for step, folder in stopped.items():
        assert_close(go_on(pool, config, folder, "backends", step, [(2, "deepspeed"), (2, "native")]), whole)


def test_ranks_and_backend_change_at_every_step(pool: RankPool, config: Path, whole: Path) -> None:
    pytest.importorskip("deepspeed")
    folder = config.parent / "nomad"
    for step in range(1, STEPS + 1):
        ranks, backend = (2, 4, 3, 1)[step % 4], ("native", "deepspeed", "deepspeed", "native", "native")[step % 5]
        options = ("--distributed.backend", backend, "--train.stop_after", str(step))
        pool.pretrain(ranks, config, "--run.dir", str(folder), *options)
    assert_close(folder, whole)


def test_torchrun_does_the_same(config: Path, whole: Path) -> None:
    """Under torchrun, with two stops; also shows that the pool trains as torchrun does."""
    folder = config.parent / "torchrun"
    for ranks, options in ((2, ("--train.stop_after", "7")), (2, ())):
        done = launch(config, "--run.dir", str(folder), *options, ranks=ranks)
        assert done.returncode == 0, done.stderr
    assert_equal(folder, whole)

"""A run that is stopped after any of its steps goes on as if nothing had happened: on the same ranks to the last bit,
and on other ranks or another backend with the same losses."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mindllm_engine.command_line import parse_arguments
from mindllm_engine.training.config import RunConfig
from tests.training.rank_pool import RankPool
from tests.training.tiny_run import launch, losses, records, write_config

STEPS = 20
pytestmark = pytest.mark.timeout(900)  # a few hundred runs


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    with RankPool(4) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A global batch that 1, 2, 3 and 4 ranks share evenly, in several micro-batches each, and several buckets."""
    return write_config(
        tmp_path_factory.mktemp("matrix"),
        train__steps=STEPS,
        train__global_batch_size=12,
        train__micro_batch_size=1,
        train__eval_every=5,
        train__checkpoint_every=0,
        train__gc_every=0,
        distributed={"bucket_elements": 5000},
    )


class Trainer:
    """Trains the run of a configuration in a folder, on some ranks, to its end or until after a step."""

    def __init__(self, pool: RankPool, yaml: Path) -> None:
        self.pool = pool
        self.folder = yaml.parent
        self.config = parse_arguments(RunConfig, "", ["--config", str(yaml)])

    def __call__(self, folder: Path, ranks: int, stop: int | None = None, backend: Any = "native") -> None:
        self.pool.pretrain(
            ranks,
            replace(
                self.config,
                run=replace(self.config.run, dir=str(folder)),
                train=replace(self.config.train, stop_after=stop),
                distributed=replace(self.config.distributed, backend=backend),
            ),
        )
        assert losses(folder)[-1][0] == (stop or STEPS)


@pytest.fixture(scope="module")
def train(pool: RankPool, yaml: Path) -> Trainer:
    return Trainer(pool, yaml)


@pytest.fixture(scope="module")
def whole(train: Trainer) -> Path:
    """The run folder of two ranks that were not interrupted."""
    folder = train.folder / "whole"
    train(folder, 2)
    assert [record["step"] for record in records(folder) if "loss" in record] == [*range(1, STEPS + 1)]
    return folder


@pytest.fixture(scope="module")
def stopped(train: Trainer) -> dict[int, Path]:
    """The folders of runs of two ranks that were stopped after each step but the last."""
    folders = {step: train.folder / f"stopped_{step}" for step in range(1, STEPS)}
    for step, folder in folders.items():
        train(folder, 2, stop=step)
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


def test_same_ranks_bit_for_bit(train: Trainer, whole: Path, stopped: dict[int, Path]) -> None:
    for folder in stopped.values():
        resumed = shutil.copytree(folder, folder.with_name(f"same_{folder.name}"))
        train(resumed, 2)
        assert_equal(resumed, whole)


@pytest.mark.parametrize("ranks", [1, 3])
def test_stopped_after_every_step_bit_for_bit(train: Trainer, ranks: int) -> None:
    unbroken, broken = train.folder / f"unbroken_{ranks}", train.folder / f"broken_{ranks}"
    train(unbroken, ranks)
    for step in range(1, STEPS + 1):
        train(broken, ranks, stop=step)
    assert_equal(broken, unbroken)


def go_on(train: Trainer, folder: Path, name: str, step: int, legs: list[tuple[int, str]]) -> Path:
    """Copy a run stopped after `step`, and go on for one step on each of these (ranks, backend), on the last to the
    end; returns the new folder."""
    moved = shutil.copytree(folder, folder.with_name(f"{name}_{step}"))
    for ranks, backend in legs[:-1]:
        step += 1
        if step < STEPS:
            train(moved, ranks, step, backend)
    ranks, backend = legs[-1]
    train(moved, ranks, backend=backend)
    return moved


def test_2_to_4_to_3_to_1_ranks(train: Trainer, whole: Path, stopped: dict[int, Path]) -> None:
    for step, folder in stopped.items():
        assert_close(go_on(train, folder, "ranks", step, [(4, "native"), (3, "native"), (1, "native")]), whole)


def test_native_to_deepspeed_to_native(train: Trainer, whole: Path, stopped: dict[int, Path]) -> None:
    pytest.importorskip("deepspeed")
    for step, folder in stopped.items():
        assert_close(go_on(train, folder, "backends", step, [(2, "deepspeed"), (2, "native")]), whole)


def test_ranks_and_backend_change_after_every_step(train: Trainer, whole: Path) -> None:
    pytest.importorskip("deepspeed")
    folder = train.folder / "nomad"
    for step in range(1, STEPS + 1):
        backend = ("native", "deepspeed", "deepspeed", "native", "native")[step % 5]
        train(folder, (2, 4, 3, 1)[step % 4], step, backend)
    assert_close(folder, whole)


def test_torchrun_does_the_same(yaml: Path, whole: Path) -> None:
    """Stopped and resumed under torchrun, to the last bit as in the pool."""
    folder = yaml.parent / "torchrun"
    for options in (("--train.stop_after", "7"), ()):
        done = launch(yaml, "--run.dir", str(folder), *options, ranks=2)
        assert done.returncode == 0, done.stderr
    assert_equal(folder, whole)

"""A run of MiniCPM, whose matrices have a learning rate of their own: stopped and resumed on other ranks, and with
DeepSpeed, it has the same losses."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.training.rank_pool import RankPool
from tests.training.test_resume_matrix import STEPS, Trainer, assert_close, assert_equal
from tests.training.tiny_run import VOCAB, losses, write_config

MODEL = {
    "minicpm": {
        "vocab_size": VOCAB, "hidden_size": 32, "ffn_size": 48, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2,
        "max_seq_len": 32, "scale_emb": 3.0, "scale_depth": 1.4, "width_base": 8, "init_std": 0.1,
    }
}  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    with RankPool(3) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def train(pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    config = write_config(
        tmp_path_factory.mktemp("minicpm"),
        model=MODEL,
        train__steps=STEPS,
        train__global_batch_size=12,
        train__micro_batch_size=1,
        train__eval_every=5,
        train__checkpoint_every=0,
        distributed={"bucket_elements": 3000},
    )
    return Trainer(pool, config)


@pytest.fixture(scope="module")
def whole(train: Trainer) -> Path:
    """Two ranks that were not interrupted."""
    folder = train.folder / "whole"
    train(folder, 2)
    return folder


@pytest.fixture(scope="module")
def stopped(train: Trainer) -> Path:
    """Two ranks that were stopped in the middle."""
    folder = train.folder / "stopped"
    train(folder, 2, stop=7)
    return folder


@pytest.mark.parametrize(("ranks", "backend"), [(1, "native"), (2, "native"), (3, "native"), (2, "deepspeed")])
def test_a_stopped_run_goes_on(train: Trainer, whole: Path, stopped: Path, ranks: int, backend: str) -> None:
    resumed = Path(shutil.copytree(stopped, stopped.with_name(f"{backend}_{ranks}")))
    train(resumed, ranks, backend=backend)
    if (ranks, backend) == (2, "native"):
        assert_equal(resumed, whole)
    else:
        assert_close(resumed, whole)


def test_it_learns(whole: Path) -> None:
    found = torch.tensor(losses(whole))[:, 1]
    assert found[-1] < found[0] - 0.05

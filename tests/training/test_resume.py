"""A run that was stopped, killed or moved and resumed logs the losses of one that was not."""

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from mindllm_engine.errors import CheckpointError
from tests.training.tiny_run import command, environment, launch, losses, records, train_here, write_config


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_stopped_and_resumed_is_bit_for_bit_the_same(tmp_path: Path, precision: str, stop: int) -> None:
    config = write_config(tmp_path, train__precision=precision)
    train_here(config, "--run.dir", str(tmp_path / "whole"))
    parts = ("--run.dir", str(tmp_path / "parts"))
    train_here(config, *parts, "--train.stop_after", str(stop))
    assert losses(tmp_path / "parts")[-1][0] == stop
    train_here(config, *parts)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_masters_may_be_kept_another_way_on_resuming(tmp_path: Path) -> None:
    config = write_config(tmp_path, train__precision="bf16")
    split = ("--optim.master", "bf16_and_bits")
    train_here(config, "--run.dir", str(tmp_path / "plain"))
    train_here(config, "--run.dir", str(tmp_path / "split"), *split)
    moved = ("--run.dir", str(tmp_path / "moved"))
    train_here(config, *moved, "--train.stop_after", "3")
    train_here(config, *moved, *split, "--train.stop_after", "7")
    train_here(config, *moved)
    # They differ where a master lies halfway between two bf16 numbers, which is rare.
    for name in ("split", "moved"):
        torch.testing.assert_close(
            torch.tensor(losses(tmp_path / name)), torch.tensor(losses(tmp_path / "plain")), rtol=1e-3, atol=0
        )
    parts = ("--run.dir", str(tmp_path / "parts"), *split)
    train_here(config, *parts, "--train.stop_after", "5")
    train_here(config, *parts)
    assert losses(tmp_path / "parts") == losses(tmp_path / "split")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_ranks_resume_bit_for_bit(tmp_path: Path, precision: str) -> None:
    config = write_config(tmp_path, train__precision=precision)
    for folder, options in (("whole", []), ("parts", ["--train.stop_after", "5"]), ("parts", [])):
        done = launch(config, "--run.dir", str(tmp_path / folder), *options, ranks=2)
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_number_of_ranks_and_micro_batches_does_not_matter(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    train_here(config, "--run.dir", str(tmp_path / "one"))
    train_here(config, "--run.dir", str(tmp_path / "large"), "--train.micro_batch_size", "8")
    done = launch(config, "--run.dir", str(tmp_path / "two"), ranks=2)
    assert done.returncode == 0, done.stderr
    expected = torch.tensor(losses(tmp_path / "one"))
    torch.testing.assert_close(torch.tensor(losses(tmp_path / "large")), expected, rtol=2e-6, atol=0)
    torch.testing.assert_close(torch.tensor(losses(tmp_path / "two")), expected, rtol=2e-6, atol=0)


def test_resumes_on_another_number_of_ranks(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    train_here(config, "--run.dir", str(tmp_path / "whole"))
    moved = ("--run.dir", str(tmp_path / "moved"))
    assert launch(config, *moved, "--train.stop_after", "5", ranks=2).returncode == 0
    train_here(config, *moved)
    torch.testing.assert_close(
        torch.tensor(losses(tmp_path / "moved")), torch.tensor(losses(tmp_path / "whole")), rtol=2e-6, atol=0
    )


def start(config: Path, *options: str, ranks: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(config, *options, ranks=ranks),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "metrics.jsonl").exists() and any(record["step"] >= step for record in records_so_far(folder)):
            return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"{folder} did not reach step {step}: {process.communicate()[1]}")


def records_so_far(folder: Path) -> list[dict[str, float]]:
    try:
        return records(folder)
    except ValueError:  # a line is being written
        return []


def test_sigterm_saves_and_exits_0(tmp_path: Path) -> None:
    config = write_config(
        tmp_path, train__steps=3000, train__checkpoint_every=0, train__eval_every=0, data__blocks=[{"max_epochs": 1000}]
    )
    process = start(config)
    wait_for_step(process, tmp_path / "run", 20)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    last = losses(tmp_path / "run")[-1][0]
    assert 20 <= last < 3000
    train_here(config, "--train.stop_after", str(last + 10))
    train_here(config, "--run.dir", str(tmp_path / "whole"), "--train.stop_after", str(last + 10))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_at_a_random_moment_loses_nothing_but_steps(tmp_path: Path, seed: int) -> None:
    config = write_config(tmp_path, train__steps=150, train__checkpoint_every=5, train__eval_every=50)
    rng = random.Random(seed)
    process = start(config)
    wait_for_step(process, tmp_path / "run", rng.randrange(10, 60))
    time.sleep(rng.random() * 0.1)
    process.kill()
    process.communicate()
    train_here(config)
    train_here(config, "--run.dir", str(tmp_path / "whole"))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert not list((tmp_path / "run" / "checkpoints").glob(".*")), "nothing half-written stays"


def test_what_a_kill_left_at_the_end_goes_when_the_run_is_started_again(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    train_here(config)
    leftover = tmp_path / "run" / "checkpoints" / ".step_00000004.tmp"
    leftover.mkdir()
    (leftover / "rank_00000.safetensors").write_bytes(b"half of it")
    before = losses(tmp_path / "run")
    train_here(config)  # there is nothing left to do
    assert not leftover.exists()
    assert losses(tmp_path / "run") == before


def test_saved_config_starts_the_same_run_again(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    train_here(config, "--optim.lr", "1e-3", "--train.steps", "5")
    train_here(tmp_path / "run" / "config.yaml", "--run.dir", str(tmp_path / "again"))
    assert losses(tmp_path / "again") == losses(tmp_path / "run")


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    train_here(write_config(tmp_path, train__checkpoint_every=2))
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step_00000010", "step_00000012"]


def test_every_nth_checkpoint_is_kept_for_ever(tmp_path: Path) -> None:
    train_here(write_config(tmp_path, train__checkpoint_every=2, train__keep_checkpoints=1, train__keep_every=4))
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step_00000004", "step_00000008", "step_00000012"]


def test_the_pause_of_a_checkpoint_is_recorded(tmp_path: Path) -> None:
    train_here(write_config(tmp_path, train__checkpoint_every=4))
    rows = [record for record in records(tmp_path / "run") if "loss" in record]
    assert [row["step"] for row in rows if "checkpoint_pause_seconds" in row] == [5, 9]
    assert all(0 < row.get("checkpoint_pause_seconds", 1) < 10 for row in rows)


def test_another_runs_folder_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    train_here(config, "--train.stop_after", "4")
    for options, message in (
        (["--model.mindllm.n_layers", "3"], "model.mindllm.n_layers was 2 and is 3"),
        (["--run.seed", "4"], "seed was 3 and is 4"),
        (["--data.blocks", '[{"order": "blocked"}]'], "block 0"),
        (["--train.steps", "3"], r"beyond train\.steps"),
        (["--run.resume", "never"], "holds a run already"),
    ):
        with pytest.raises(CheckpointError, match=message):
            train_here(config, *options)


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    train_here(config, "--train.stop_after", "6")
    newest = tmp_path / "run" / "checkpoints" / "step_00000006"
    content = bytearray((newest / "rank_00000.safetensors").read_bytes())
    content[-5] ^= 1
    (newest / "rank_00000.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step_00000006/rank_00000\.safetensors: damaged.*from step_00000004"):
        train_here(config)
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    train_here(config)
    train_here(config, "--run.dir", str(tmp_path / "whole"))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_another_global_batch_goes_on_with_the_next_sample(tmp_path: Path) -> None:
    config = write_config(tmp_path, data__blocks=[{"tokens": 40 * 8 * 32, "max_epochs": 50}], train__eval_every=0)
    train_here(config, "--train.stop_after", "4")
    train_here(config, "--train.global_batch_size", "16", "--train.stop_after", "8")
    steps = [record for record in records(tmp_path / "run") if "loss" in record]
    assert [record["tokens"] // 32 for record in steps] == [8, 16, 24, 32, 48, 64, 80, 96]
    with pytest.raises(CheckpointError, match="the plan has 224 left"):
        train_here(config, "--train.steps", "40")


def test_another_global_batch_within_a_block_without_a_budget(tmp_path: Path) -> None:
    """The block stays as large as it was when it began, and so does its order."""
    config = write_config(tmp_path, train__eval_every=0)  # 12 steps of 8
    train_here(config, "--run.dir", str(tmp_path / "whole"))
    train_here(config, "--train.stop_after", "4")
    train_here(config, "--train.global_batch_size", "4", "--train.steps", "16", "--train.stop_after", "6")
    train_here(config, "--train.global_batch_size", "8", "--train.steps", "13")
    steps = [record for record in records(tmp_path / "run") if "loss" in record]
    assert [record["tokens"] // 32 for record in steps] == [8, 16, 24, 32, 36, 40, 48, 56, 64, 72, 80, 88, 96]
    plans = [
        json.loads(next((tmp_path / run / "checkpoints").glob(f"step_*{step}/state.json")).read_text())["plan"]
        for run, step in (("whole", 12), ("run", 13))
    ]
    assert plans[0] == plans[1]
    with pytest.raises(CheckpointError, match="needs 8 samples more and the plan has 0 left; append a block"):
        train_here(config, "--train.steps", "14")
    blocks = json.dumps([{"tokens": 96 * 32}, {"order": "shuffled"}])  # as the line says
    train_here(config, "--train.steps", "14", "--data.blocks", blocks)
    assert records(tmp_path / "run")[-1]["tokens"] == 104 * 32


def test_a_copy_beside_the_checkpoints_is_left_alone(tmp_path: Path) -> None:
    config = write_config(tmp_path, train__keep_checkpoints=1)
    train_here(config, "--train.stop_after", "4")
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(folder / "step_00000004", folder / "step_00000004.bak")
    train_here(config)
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000004.bak", "step_00000012"]


@pytest.mark.parametrize("damage", [{"plan": {}}, {"files": None}, {"step": "x"}, {"step": 2}, {"next_sample": -1}])
def test_damaged_state_is_named(tmp_path: Path, damage: dict[str, object]) -> None:
    config = write_config(tmp_path)
    train_here(config, "--train.stop_after", "4")
    path = tmp_path / "run" / "checkpoints" / "step_00000004" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(CheckpointError, match=r"state\.json: not a checkpoint of this engine, or a damaged one"):
        train_here(config)

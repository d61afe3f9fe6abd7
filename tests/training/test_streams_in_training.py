"""Runs over packed, remote and verified token files, and files that fail under a run: one line, exit 2, and a run that
goes on once they are mended."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mindllm_engine.errors import ConfigError, DataError
from tests.data.remote_servers import range_server
from tests.training.tiny_run import (
    command,
    environment,
    launch,
    losses,
    records,
    train_here,
    write_config,
    write_tokens,
)


def test_a_packed_run_learns_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = write_config(tmp_path, data__packing="best_fit")
    train_here(config, "--run.dir", str(tmp_path / "whole"))
    steps = [record for record in records(tmp_path / "whole") if "loss" in record]
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.1
    train_here(config, "--run.dir", str(tmp_path / "stopped"), "--train.stop_after", "5")
    train_here(config, "--run.dir", str(tmp_path / "stopped"))
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_packed_runs_do_not_depend_on_ranks(tmp_path: Path) -> None:
    config = write_config(tmp_path, data__packing="best_fit", train__steps=6)
    train_here(config, "--run.dir", str(tmp_path / "one"))
    done = launch(config, "--run.dir", str(tmp_path / "two"), ranks=2)
    assert done.returncode == 0, done.stderr
    for left, right in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert left == pytest.approx(right, rel=1e-5)


@pytest.mark.parametrize("packing", ["contiguous", "best_fit"])
def test_a_remote_run_is_the_local_one(tmp_path: Path, packing: str) -> None:
    config = write_config(tmp_path, data__packing=packing)
    train_here(config, "--run.dir", str(tmp_path / "local"), "--data.verify", "true")
    with range_server(tmp_path) as server:
        remote = write_config(
            tmp_path,
            data__packing=packing,
            data__sources={"en": f"{server.url}/en", "zh": str(tmp_path / "zh")},
            data__heldout={"en": f"{server.url}/en.heldout", "zh": str(tmp_path / "zh.heldout")},
            data__cache=str(tmp_path / "cache"),
        )
        train_here(remote, "--run.dir", str(tmp_path / "remote"))
    assert losses(tmp_path / "remote") == losses(tmp_path / "local")


def test_a_remote_source_needs_a_cache(tmp_path: Path) -> None:
    config = write_config(tmp_path, data__sources={"en": "http://127.0.0.1:9/en"}, data__heldout={})
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9/en: a remote source needs a folder .*; set data\.cache"):
        train_here(config)
    with pytest.raises(ConfigError, match=r"data\.cache_bytes: 0 must be at least 1"):
        train_here(config, "--data.cache", str(tmp_path / "cache"), "--data.cache_bytes", "0")


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_ends_a_verified_run(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    flip(tmp_path / "en.bin", 5000)
    train_here(config, "--run.dir", str(tmp_path / "not_verified"))
    done = launch(config, "--data.verify", "true")
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == done.stderr.splitlines()[-1:]
    assert "en.bin: damaged: chunk 0, from byte 0 to" in done.stderr
    assert "with documents 0 to 299" in done.stderr


@pytest.mark.parametrize(("suffix", "size"), [("bin", 4096), ("idx", 600)])
def test_a_file_cut_short_under_a_run(tmp_path: Path, suffix: str, size: int) -> None:
    """What a clumsy copy over a running job does. The run ends with one line, and goes on where its newest checkpoint
    is, to the same end as a run that nothing happened to."""
    config = write_config(tmp_path, train__steps=300, train__checkpoint_every=5, train__eval_every=0)
    shutil.copy(tmp_path / f"en.{suffix}", tmp_path / "good")
    process = subprocess.Popen(
        command(config), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        checkpoints = tmp_path / "run" / "checkpoints"
        deadline = time.monotonic() + 120
        while not (checkpoints.exists() and any(checkpoints.glob("step_*"))) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.truncate(tmp_path / f"en.{suffix}", size)
        _, errors = process.communicate(timeout=120)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.returncode == 2, errors
    assert sum(line.startswith("error:") for line in errors.splitlines()) == 1
    assert f"en.{suffix}: cut short while it was read" in errors
    shutil.copy(tmp_path / "good", tmp_path / f"en.{suffix}")
    reached = max(int(path.name.removeprefix("step_")) for path in checkpoints.glob("step_*"))
    train_here(config, "--train.stop_after", str(reached + 10))
    train_here(config, "--run.dir", str(tmp_path / "whole"), "--train.stop_after", str(reached + 10))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


OTHER_FILES = """
import os, sys
from mindllm_engine.command_line import parse_arguments, run_tool
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.loop import pretrain
config = parse_arguments(RunConfig, "", ["--config", sys.argv[1]])
if os.environ["RANK"] == "1":
    config.data.sources["en"] += "_elsewhere"
run_tool(lambda: pretrain(config))
"""


def test_ranks_that_see_different_files_are_refused(tmp_path: Path) -> None:
    """As when a folder of token files was copied to the disks of several hosts, and to one of them wrongly."""
    config = write_config(tmp_path)
    for suffix in ("bin", "idx", "json"):
        shutil.copy(tmp_path / f"en.{suffix}", tmp_path / f"en_elsewhere.{suffix}")
    script = tmp_path / "script.py"
    script.write_text(OTHER_FILES)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = [*torchrun, str(script), str(config)]
    same = subprocess.run(run, capture_output=True, text=True, env=environment(), timeout=240)
    assert same.returncode == 0, same.stderr
    write_tokens(tmp_path / "en_elsewhere", "en", documents=300, seed=77)
    shutil.rmtree(tmp_path / "run")
    other = subprocess.run(run, capture_output=True, text=True, env=environment(), timeout=240)
    errors = [line for line in other.stderr.splitlines() if line.startswith("error:")]
    assert errors, other.stderr
    assert "data.sources: rank 1 of 2 and rank 0 see different token files; give all hosts the same ones" in errors[0]
    assert not (tmp_path / "run").exists()

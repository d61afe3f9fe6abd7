"""tools/soak.py: kills real runs, and notices what it is there to notice."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from mindllm_engine.command_line import parse_arguments
from mindllm_engine.errors import ConfigError
from mindllm_engine.training.soak import SoakConfig
from mindllm_engine.training.soak_files import (
    RunWatch,
    SoakFailure,
    check_after_kill,
    check_at_end,
    newest_step,
    numbers_of,
    resumed_at,
)
from tests.training.tiny_run import ROOT, environment, train_here, write_config

SOAK = ROOT / "tools" / "soak.py"
STEPS = 12


def soak(config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SOAK), "--config", str(config), *options],
        capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=280,
    )  # fmt: skip


@pytest.mark.slow
def test_three_kills(tmp_path: Path) -> None:
    """Two ranks, of which torchrun's agent starts killed ones again once; the fourth launch at the latest finishes."""
    config = write_config(tmp_path, train__steps=40, train__checkpoint_every=4, train__eval_every=20)
    result = tmp_path / "tally.json"
    done = soak(config, "--kills", "3", "--seed", "5", "--max_restarts", "1", "--json", str(result))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failures" in done.stdout
    tally = json.loads(result.read_text())
    assert len(tally["kills"]) == 3
    assert tally["failures"] == []
    assert tally["runs_finished"] >= 1
    assert tally["launches"] + tally["agent_restarts"] <= 3 + tally["runs_finished"]
    for kill in tally["kills"]:
        assert kill["newest_checkpoint"] in range(0, 41, 4)
        assert 0 <= kill["step"] - kill["newest_checkpoint"] <= 8
        assert kill["seconds_until_gone"] < 60
    assert tally["steps_repeated"] == sum(kill["step"] - kill["newest_checkpoint"] for kill in tally["kills"])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml", "reference", "reference.log"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kills", "0"], "kills: 0 must be at least 1"),
        (["--train.checkpoint_every", "0"], "train.checkpoint_every: killed runs need checkpoints"),
        (["--train.log_every", "2"], "train.log_every: must be 1"),
        (["--ranks", "3"], "train.global_batch_size: 8 is not a multiple"),
        (["--run.dir", "."], "run.dir: . exists; delete it, or choose another"),
        (["--json", "nowhere/tally.json"], "json: there is no folder for nowhere/tally.json"),
        (["--kils", "3"], "did you mean kills?"),
    ],
)
def test_bad_input_names_the_key(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_arguments(SoakConfig, "", ["--config", str(write_config(tmp_path)), *options]).validate_soak()


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    done = soak(write_config(tmp_path), "--kills", "0")
    assert (done.returncode, done.stderr) == (2, "error: kills: 0 must be at least 1\n")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("soak")
    train_here(write_config(folder, train__steps=STEPS), "--run.dir", str(folder / "reference"))
    return folder / "reference"


@pytest.fixture
def run(reference: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(reference, tmp_path / "run")


def keep_lines(run: Path, lines: int, rest: bytes = b"") -> None:
    content = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(content[:lines]) + rest)


def test_a_sound_run_passes(run: Path, reference: Path) -> None:
    numbers = numbers_of(reference)
    assert [record["step"] for record in numbers] == [0, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11, 12, 12]
    assert check_after_kill(run, numbers, 4) == (12, 12)
    check_at_end(run, reference, numbers)
    # Killed after step 9 was recorded, in the middle of the next record.
    shutil.rmtree(run / "checkpoints" / "step_00000012")
    keep_lines(run, 11, b'{"step":10,"lo')
    assert check_after_kill(run, numbers, 4) == (8, 9)


def test_another_loss_is_found(run: Path, reference: Path) -> None:
    numbers = numbers_of(reference)
    lines = (run / "metrics.jsonl").read_bytes().splitlines()
    record = orjson.loads(lines[9])
    record["loss"] *= 1 + 2**-52
    lines[9] = orjson.dumps(record)
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    for check in (lambda: check_after_kill(run, numbers, 4), lambda: check_at_end(run, reference, numbers)):
        with pytest.raises(SoakFailure, match=r"step 8: loss is .* in the reference"):
            check()


def test_a_repeated_or_missing_record_is_found(run: Path, reference: Path) -> None:
    numbers = numbers_of(reference)
    keep_lines(run, 9)
    with pytest.raises(SoakFailure, match="the records end at step 7, before the newest checkpoint's step 12"):
        check_after_kill(run, numbers, 4)
    with pytest.raises(SoakFailure, match="has ended with 9 records of 15"):
        check_at_end(run, reference, numbers)
    lines = (reference / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join([*lines[:5], lines[4], *lines[5:]]))
    with pytest.raises(SoakFailure, match="16 records, more than the reference's 15"):
        check_after_kill(run, numbers, 4)
    keep_lines(run, 3, b"nonsense\n")
    with pytest.raises(SoakFailure, match=r"metrics\.jsonl:4: not a record: b'nonsense'"):
        check_after_kill(run, numbers, 4)


def test_a_damaged_checkpoint_is_found(run: Path, reference: Path) -> None:
    path = next((run / "checkpoints" / "step_00000008").glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(SoakFailure, match=r"not whole: .*step_00000008/rank_00000\.safetensors"):
        check_after_kill(run, numbers_of(reference), 4)


def test_lost_checkpoints_are_found(run: Path, reference: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(SoakFailure, match="12 steps are lost, with a checkpoint every 4"):
        check_after_kill(run, numbers_of(reference), 4)
    with pytest.raises(SoakFailure, match="has ended without a checkpoint"):
        check_at_end(run, reference, numbers_of(reference))


def test_leftovers_and_other_weights_are_found(run: Path, reference: Path, tmp_path: Path) -> None:
    leftover = run / "checkpoints" / ".step_00000004.tmp"
    leftover.mkdir()
    with pytest.raises(SoakFailure, match=r"has ended and left \.step_00000004\.tmp"):
        check_at_end(run, reference, numbers_of(reference))
    leftover.rmdir()
    other = tmp_path / "other"
    train_here(write_config(tmp_path, train__steps=STEPS), "--run.dir", str(other), "--optim.lr", "1e-3")
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    with pytest.raises(SoakFailure, match="step_00000012: not the reference's: extra, files"):
        check_at_end(run, reference, numbers_of(reference))


def test_watch_tells_the_phases_apart(run: Path) -> None:
    """As a run that goes on from step 8 writes its files."""
    shutil.rmtree(run / "checkpoints" / "step_00000012")
    leftover = run / "checkpoints" / ".step_00000012.tmp"
    leftover.mkdir()
    metrics, whole = run / "metrics.jsonl", (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    watch = RunWatch(run, STEPS)
    assert (watch.look(), watch.step) == ("start-up", 8), "the old records go beyond"
    (run / "new").write_bytes(b"".join(whole[:10]))
    (run / "new").rename(metrics)
    assert (watch.look(), watch.step) == ("start-up", 8), "cut back to the checkpoint"
    with metrics.open("ab") as file:
        file.write(whole[10])
    assert (watch.look(), watch.step) == ("training", 9), "the leftover is old"
    leftover.rmdir()
    leftover.mkdir()
    assert watch.look() == "saving"
    leftover.rename(run / "checkpoints" / "step_00000012")
    with metrics.open("ab") as file:
        file.write(b"".join(whole[11:]) + b'{"step":13')
    assert (watch.look(), watch.step, newest_step(run)) == ("ending", 12, 12)


def test_the_step_a_run_went_on_from_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("runs/a goes on from step 4 of 12\nstep 5/12\n")
    offset = log.stat().st_size
    assert (resumed_at(log, 0), resumed_at(log, offset)) == (4, None)
    with log.open("a") as file:
        file.write("runs/a goes on from step 8 of 12\n")
    assert resumed_at(log, offset) == 8

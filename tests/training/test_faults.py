"""Runs that meet bad steps, drifting replicas, killed workers and the end of their time: each against what the run
should have been."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mindllm_engine.command_line import parse_arguments
from mindllm_engine.data.loader import Loader
from mindllm_engine.errors import ConfigError
from mindllm_engine.optim.schedules import learning_rate
from mindllm_engine.training.checkpoint import checkpoints, load_state
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.setup import open_data
from tests.training.test_resume import start, wait_for_step
from tests.training.tiny_run import ROOT, VOCAB, command, environment, launch, losses, records, train_here, write_config

POISONED = str(Path(__file__).with_name("poisoned_run.py"))


def launch_poisoned(faults: dict[str, Any], config: Path, *options: str, ranks: int = 2) -> subprocess.CompletedProcess:
    launcher, (_, *arguments) = [sys.executable], command(config, *options, ranks=ranks)
    at = next(number for number, argument in enumerate(arguments) if argument.endswith("pretrain.py"))
    launcher += [*arguments[:at], POISONED, json.dumps(faults), *arguments[at + 1 :]]
    return subprocess.run(launcher, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=240)


def plain_losses(path: Path, dropped: set[int], back: dict[int, int]) -> dict[int, float]:
    """Losses of a run in plain torch by step (from 1), in which the steps `dropped` change nothing but the count of
    updates, and after a step of `back` weights and moments are those after another step again."""
    config = parse_arguments(RunConfig, "", ["--config", str(path)])
    data = open_data(config)
    loader = Loader(data.plan, data.sources, VOCAB, rank=0, world_size=1)
    model = config.model.build(device=torch.device("cpu"), dtype=torch.float32, seed=config.run.seed)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=config.optim.betas, eps=config.optim.eps)
    found, kept = {}, {}

    def state() -> list[torch.Tensor]:
        moments = [optimizer.state[p][name] for p in model.parameters() for name in ("exp_avg", "exp_avg_sq")]
        return [p.data for p in model.parameters()] + moments

    for step in range(1, config.train.steps + 1):
        batch = loader.read(np.arange((step - 1) * 8, step * 8))
        logits = model(batch.tokens, batch.positions, batch.cu_seqlens)
        loss = F.cross_entropy(logits, batch.targets, ignore_index=-100)
        found[step] = loss.item()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optim.schedule, config.optim.lr, step - 1, config.train.steps)
        if step in dropped:
            for moments in optimizer.state.values():
                moments["step"] += 1
        else:
            optimizer.step()
        optimizer.zero_grad()
        kept[step] = [x.clone() for x in state()] if step in back.values() else []
        for x, old in zip(state(), kept[back[step]] if step in back else [], strict=step in back):
            x.copy_(old)
    return found


def step_records(folder: Path) -> list[dict[str, Any]]:
    return [record for record in records(folder) if "loss" in record]


def step_losses(folder: Path) -> list[tuple[float, ...]]:
    return [(record["step"], record["loss"], record["grad_norm"]) for record in step_records(folder)]


def test_bad_steps_leave_no_trace(tmp_path: Path) -> None:
    """NaN in one rank's losses early on, and a spike of a finite size when the guard knows what is normal."""
    bad = {"3": "nan", "4": "inf", "90": 10.0}
    config = write_config(tmp_path, train__steps=100, train__eval_every=0, train__checkpoint_every=0)
    done = launch_poisoned({"losses": bad}, config)
    assert done.returncode == 0, done.stderr
    expected = plain_losses(config, {3, 4, 90}, {})
    found = step_records(tmp_path / "run")
    assert [record["step"] for record in found] == list(range(1, 101))
    for record in found:
        if str(record["step"]) not in bad:
            assert record["loss"] == pytest.approx(expected[record["step"]], rel=1e-5), record["step"]
    assert [found[step - 1]["loss"] for step in (3, 4)] == [None, None]
    assert found[89]["loss"] > 4 * expected[90]
    assert [found[step - 1]["skipped_steps"] for step in (2, 3, 4, 89, 90, 100)] == [0, 1, 2, 2, 3, 3]


def test_goes_back_after_several_and_past_their_data(tmp_path: Path) -> None:
    bad = {"losses": {str(step): "nan" for step in range(10, 15)}}
    config = write_config(tmp_path, train__steps=24, train__eval_every=0)
    options = ("--faults.roll_back_after", "3")
    done = launch_poisoned(bad, config, *options)
    assert done.returncode == 0, done.stderr
    expected = plain_losses(config, set(range(10, 15)), {12: 8})
    for record in step_records(tmp_path / "run"):
        if not 10 <= record["step"] < 15:
            assert record["loss"] == pytest.approx(expected[record["step"]], rel=1e-5), record["step"]
    (back,) = [record for record in records(tmp_path / "run") if "rolled_back_to" in record]
    assert back == {"step": 12, "rolled_back_to": 8, "skipped_steps": 3}
    assert step_records(tmp_path / "run")[-1]["skipped_steps"] == 5
    (line,) = [line for line in done.stderr.splitlines() if "again" in line]
    assert line == (
        "step 12: loss or gradient of 3 steps in a row were not finite or far above normal: "
        "weights of step 8 again, and on with new data"
    )
    newest = load_state(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert (newest.step, newest.next_sample) == (24, 24 * 8)
    # Stopped amid skipped steps, after going back and later, it ends the same, bit for bit.
    for stop in ("11", "13", "17"):
        done = launch_poisoned(
            bad, config, *options, "--run.dir", str(tmp_path / "stopped"), "--train.stop_after", stop
        )
        assert done.returncode == 0, done.stderr
    done = launch_poisoned(bad, config, *options, "--run.dir", str(tmp_path / "stopped"))
    assert done.returncode == 0, done.stderr
    assert step_losses(tmp_path / "stopped") == step_losses(tmp_path / "run")


def test_nothing_to_go_back_to(tmp_path: Path) -> None:
    config = write_config(tmp_path, train__steps=24)
    bad = {"losses": {str(step): "nan" for step in range(1, 25)}}
    done = launch_poisoned(bad, config, "--faults.roll_back_after", "4", ranks=1)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2
    assert len(errors) == 1
    assert errors[0].startswith("error: step 4: loss or gradient of 4 steps in a row were not finite or far above")
    assert "there is no checkpoint from before them; lower optim.lr" in errors[0]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_going_back_that_does_not_help_ends(tmp_path: Path) -> None:
    config = write_config(tmp_path, train__steps=40, train__eval_every=0)
    bad = {"losses": {str(step): "nan" for step in range(6, 41)}}
    options = ("--faults.roll_back_after", "3", "--faults.max_roll_backs", "2")
    done = launch_poisoned(bad, config, *options, ranks=1)
    assert done.returncode == 2
    assert "error: step 14: " in done.stderr
    assert "also after going back to step 4 2 times; lower optim.lr" in done.stderr
    backs = [record for record in records(tmp_path / "run") if "rolled_back_to" in record]
    assert [(record["step"], record["rolled_back_to"]) for record in backs] == [(8, 4), (11, 4)]


def test_drifting_replicas_end_the_run(tmp_path: Path) -> None:
    config = write_config(tmp_path, train__eval_every=0)
    done = launch_poisoned({"flips": {"6": 1}}, config, "--faults.check_replicas_every", "2")
    assert done.returncode != 0
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert error.startswith(
        "error: step 6: the weights of rank 1 differ from those of rank 0, first in layers.1.ffn_out; look at"
    )
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step_00000004"


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    done = launch_poisoned({"nans": {"8": 0}}, write_config(tmp_path), "--faults.check_replicas_every", "2", ranks=1)
    assert done.returncode == 2
    assert "error: step 8: a weight is not finite; lower optim.lr or look at the data" in done.stderr
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step_00000004"


ENDLESS = {
    "train__steps": 100_000, "train__eval_every": 0, "train__checkpoint_every": 0, "data__blocks": [{"max_epochs": 1e6}]
}  # fmt: skip


def test_saves_before_its_time_is_over(tmp_path: Path) -> None:
    config = write_config(tmp_path, **ENDLESS)
    start = time.monotonic()
    train_here(config, "--train.time_limit_minutes", "0.1")
    assert 1 < time.monotonic() - start < 6
    last = losses(tmp_path / "run")[-1][0]
    train_here(config, "--train.stop_after", str(last + 5))
    train_here(config, "--run.dir", str(tmp_path / "whole"), "--train.stop_after", str(last + 5))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_run_without_time_still_makes_a_step_at_a_time(tmp_path: Path) -> None:
    config = write_config(tmp_path, train__steps=3)
    for step in (1, 2, 3):
        train_here(config, "--train.time_limit_minutes", "1e-9")
        assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == f"step_0000000{step}"
    train_here(config, "--run.dir", str(tmp_path / "whole"))
    assert losses(tmp_path / "run")[-2:] == losses(tmp_path / "whole")[-2:]


def test_slurms_signal_saves_and_exits_0(tmp_path: Path) -> None:
    process = start(write_config(tmp_path, **ENDLESS))
    wait_for_step(process, tmp_path / "run", 5)
    process.send_signal(signal.SIGUSR1)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert checkpoints(tmp_path / "run" / "checkpoints")


def test_the_elastic_agent_restarts_and_the_run_resumes(tmp_path: Path) -> None:
    config = write_config(tmp_path, train__steps=80, train__checkpoint_every=5, train__eval_every=40)
    launcher = command(config, ranks=2)
    launcher.insert(launcher.index("--standalone"), "--max-restarts=2")
    process = subprocess.Popen(launcher, env=environment(), stderr=subprocess.PIPE, text=True, cwd=ROOT)
    wait_for_step(process, tmp_path / "run", random.Random(1).randrange(10, 40))
    workers = [int(pid) for pid in children_of(process.pid)]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "rank 1: no sign of life" in stderr
    assert "goes on from step" in stderr
    whole = launch(config, "--run.dir", str(tmp_path / "whole"), ranks=2)
    assert whole.returncode == 0, whole.stderr
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def children_of(pid: int) -> list[str]:
    tasks = (Path(f"/proc/{pid}/task/{task}/children") for task in os.listdir(f"/proc/{pid}/task"))
    return list(itertools.chain.from_iterable(path.read_text().split() for path in tasks))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--faults.sigma", "-1", "faults.sigma: -1.0 must be a finite number of at least 0"),
        ("--faults.sigma", ".inf", "faults.sigma: inf must be a finite number of at least 0"),
        ("--faults.roll_back_after", "-1", "faults.roll_back_after: -1 must not be negative"),
        ("--faults.max_roll_backs", "-2", "faults.max_roll_backs: -2 must not be negative"),
        ("--faults.check_replicas_every", "-1", "faults.check_replicas_every: -1 must not be negative"),
        ("--train.time_limit_minutes", "0", "train.time_limit_minutes: 0.0 must be above 0"),
        ("--train.time_limit_minutes", ".nan", "train.time_limit_minutes: nan must be above 0"),
    ],
)
def test_impossible_values_are_refused(tmp_path: Path, option: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        train_here(write_config(tmp_path), option, value)
    assert message in str(error.value)

"""Options of a run by config: those that change no number change no bit, in real runs; the files that a profile leaves;
what is refused."""

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mindllm_engine.errors import ConfigError
from mindllm_engine.training.garbage import ManualCollection
from tests.training.tiny_run import launch, losses, train_here, write_config


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A run without options: its config, and what it reports."""
    folder = tmp_path_factory.mktemp("plain")
    config = write_config(folder, train__steps=4, train__eval_every=2, train__checkpoint_every=2)
    train_here(config)
    return config, losses(folder / "run")


@pytest.mark.parametrize(
    "options",
    [
        ["--train.activation_checkpointing", "selective"],
        ["--train.activation_checkpointing", "full"],
        ["--optim.offload", "true"],
        ["--train.gc_every", "1"],
        ["--train.gc_every", "0"],
        ["--profile.first_step", "2", "--profile.last_step", "3"],
    ],
)
def test_options_change_no_bit(plain: tuple[Path, list[Any]], options: list[str], tmp_path: Path) -> None:
    config, expected = plain
    train_here(config, "--run.dir", str(tmp_path / "run"), *options)
    assert losses(tmp_path / "run") == expected
    assert gc.isenabled()


def test_an_offloaded_run_goes_on_from_its_checkpoint(plain: tuple[Path, list[Any]], tmp_path: Path) -> None:
    config, expected = plain
    for stop in (["--train.stop_after", "2"], []):
        train_here(config, "--run.dir", str(tmp_path / "run"), "--optim.offload", "true", *stop)
    assert losses(tmp_path / "run") == expected


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_run_learns_the_same(plain: tuple[Path, list[Any]], tmp_path: Path) -> None:
    config, expected = plain
    train_here(config, "--run.dir", str(tmp_path / "run"), "--train.compile", "true")
    found = losses(tmp_path / "run")
    assert len(found) == len(expected)
    assert found != expected, "nothing was compiled"
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_two_deterministic_runs_on_two_ranks_are_the_same_bits(tmp_path: Path) -> None:
    config = write_config(tmp_path, train__steps=3, train__precision="bf16")
    found = []
    for name in ("a", "b"):
        options = ["--run.dir", str(tmp_path / name), "--deterministic", "true", "--train.activation_checkpointing"]
        result = launch(config, *options, "selective", ranks=2)
        assert result.returncode == 0, result.stderr
        files = sorted((tmp_path / name / "checkpoints").rglob("*"))
        tensors = {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files if path.is_file()}
        found.append((losses(tmp_path / name), {key: value for key, value in tensors.items() if "json" not in key}))
    assert found[0] == found[1]
    assert found[0][1]


def test_a_trace_holds_the_parts_of_its_steps(plain: tuple[Path, list[Any]], tmp_path: Path) -> None:
    config, _ = plain
    section = ["--profile.first_step", "2", "--profile.last_step", "3", "--profile.ranks", "[1]"]
    section += ["--profile.memory", "true", "--train.eval_every", "0"]
    result = launch(config, "--run.dir", str(tmp_path / "run"), *section, ranks=2)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "run" / "profile"
    assert [path.name for path in folder.iterdir()] == ["trace_rank1.json"]
    names = [event.get("name", "") for event in json.loads((folder / "trace_rank1.json").read_text())["traceEvents"]]
    # Two steps of 2 micro-batches each on a rank; torch labels what gloo does.
    assert [names.count(label) for label in ("forward", "backward", "optimizer step")] == [4, 4, 2]
    assert names.count("begin reduce-scatter") == names.count("begin all-gather") > 0
    # To and from the other rank, of each bucket its gradients and its parameters.
    messages = 2 * names.count("begin reduce-scatter")
    assert names.count("gloo:send") == names.count("gloo:recv") == messages


def test_without_a_gpu_there_is_no_snapshot_of_memory(
    plain: tuple[Path, list[Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, _ = plain
    section = ["--profile.first_step", "1", "--profile.last_step", "9", "--profile.memory", "true"]
    train_here(config, "--run.dir", str(tmp_path / "run"), "--train.steps", "9", "--train.stop_after", "1", *section)
    assert "profile.memory: torch keeps no record of a CPU's memory" in capfd.readouterr().err
    # A run that ends early leaves what it has traced.
    assert [path.name for path in (tmp_path / "run" / "profile").iterdir()] == ["trace_rank0.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train.activation_checkpointing", "half"], r"train\.activation_checkpointing: .*selective"),
        (
            ["--train.compile", "true", "--train.activation_checkpointing", "selective"],
            r"train\.activation_checkpointing: selective does nothing in compiled layers",
        ),
        (["--train.gc_every", "-1"], r"train\.gc_every: -1 must not be negative"),
        (["--profile.first_step", "3"], r"profile: first_step 3 and last_step 0"),
        (["--profile.first_step", "3", "--profile.last_step", "2"], r"profile: first_step 3 and last_step 2"),
        (["--profile.first_step", "3", "--profile.last_step", "5"], r"train\.steps = 4"),
        (
            ["--profile.first_step", "1", "--profile.last_step", "1", "--profile.ranks", "[1]"],
            r"profile\.ranks: there is no rank 1 among 1",
        ),
        (
            ["--optim.offload", "true", "--distributed.backend", "deepspeed"],
            r"optim\.offload: .*distributed\.deepspeed_config",
        ),
    ],
)
def test_impossible_options_are_refused(
    plain: tuple[Path, list[Any]], options: list[str], message: str, tmp_path: Path
) -> None:
    config, _ = plain
    with pytest.raises(ConfigError, match=message) as caught:
        train_here(config, "--run.dir", str(tmp_path / "run"), *options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_compiling_without_a_compiler_is_refused(
    plain: tuple[Path, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = plain
    monkeypatch.setenv("CXX", str(tmp_path / "none" / "g++"))
    with pytest.raises(ConfigError, match=r"train\.compile: there is no C\+\+ compiler, .*none/g\+\+"):
        train_here(config, "--run.dir", str(tmp_path / "run"), "--train.compile", "true")


def test_garbage_is_collected_when_it_is_due_and_not_before() -> None:
    class Node:
        alive = 0

        def __init__(self) -> None:
            Node.alive += 1
            self.itself = self

        def __del__(self) -> None:
            Node.alive -= 1

    with ManualCollection(every=3) as collection:
        found = []
        for step in range(1, 7):
            Node()
            [[] for _ in range(20_000)]  # enough for Python to collect by itself
            collection.after_step(step)
            found.append(Node.alive)
        assert found == [1, 2, 0, 1, 2, 0]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0

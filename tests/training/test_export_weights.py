"""Weights alone: the file holds the checkpoint's master weights, whoever wrote them, rounded as asked."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mindllm_engine.command_line import parse_arguments
from mindllm_engine.errors import CheckpointError
from mindllm_engine.training.config import RunConfig
from mindllm_engine.training.export import export_weights
from mindllm_engine.training.weights import load_model, model_config
from tests.training.tiny_run import ROOT, environment, launch, train_here, write_config

TOOL = ROOT / "tools" / "export_weights.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps on two ranks."""
    folder = tmp_path_factory.mktemp("export")
    done = launch(write_config(folder), "--train.stop_after", "6", ranks=2)
    assert done.returncode == 0, done.stderr
    return folder


def export(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *options], capture_output=True, text=True, env=environment(), cwd=ROOT
    )


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_file_holds_the_weights_of_two_ranks(run: Path, tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "new" / "weights.safetensors"
    done = export("--run", str(run / "run"), "--out", str(out), "--dtype", dtype)
    assert done.returncode == 0, done.stderr
    assert "step_00000006" in done.stdout
    model, config = load_model(run / "run", torch.device("cpu"))
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(out)
    assert metadata["step"] == "6"
    assert model_config(json.loads(metadata["config"])) == config
    network = config.build(device=torch.device("cpu"), dtype=torch.float32, seed=8)
    missing = network.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys
    for name, parameter in model.named_parameters():
        expected = parameter if dtype == "fp32" else parameter.bfloat16()
        assert torch.equal(tensors[name], expected)
    assert tensors.keys() == dict(model.named_parameters()).keys()
    assert list(out.parent.iterdir()) == [out]


def test_the_weights_are_those_that_training_had(tmp_path: Path) -> None:
    """A second run that starts from the first one's weights evaluates as the first one ended."""
    config = write_config(tmp_path)
    train_here(config, "--train.steps", "6")
    train_here(config, "--run.dir", str(tmp_path / "next"), "--run.init_from", str(tmp_path / "run"))
    ends = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    begins = json.loads((tmp_path / "next" / "metrics.jsonl").read_text().splitlines()[0])
    assert begins["heldout_loss"] == pytest.approx(ends[-1]["heldout_loss"], rel=1e-6)
    assert parse_arguments(RunConfig, "", ["--config", str(tmp_path / "run" / "config.yaml")]).train.steps == 6


def test_bad_input_is_one_line(run: Path, tmp_path: Path) -> None:
    done = export("--run", str(tmp_path), "--out", str(tmp_path / "x"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {tmp_path}: holds no checkpoint; expected a run folder with checkpoints/ or one of its checkpoints\n"
    )
    damaged = tmp_path / "step_00000006"
    shutil.copytree(run / "run" / "checkpoints" / "step_00000006", damaged)
    out = tmp_path / "out.safetensors"
    out.write_text("as it was")
    content = bytearray((damaged / "rank_00001.safetensors").read_bytes())
    content[5000] ^= 1
    (damaged / "rank_00001.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rank_00001\.safetensors: damaged: .*no earlier one that is whole"):
        export_weights(damaged, out, torch.float32, lambda _: None)
    with pytest.raises(CheckpointError, match="cannot be written"):
        export_weights(run / "run", out / "below" / "a file", torch.float32, lambda _: None)
    assert out.read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.safetensors", "step_00000006"]

"""The config keys that say what operators and attention run on."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mindllm_engine.kernels.attention import select_attention
from mindllm_engine.kernels.backend import select_kernels
from tests.training.tiny_run import command, records, train_here, write_config

STEPS = 50
GPT_NEO = {
    "gpt_neo": {
        "vocab_size": 97, "hidden_size": 32, "ffn_size": 48, "n_layers": 2, "n_heads": 2, "max_seq_len": 32,
        "window_size": 8,
    }
}  # fmt: skip


@pytest.fixture(autouse=True)
def restore_choices() -> Iterator[None]:
    yield
    select_kernels("auto")
    select_attention("auto")
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("network", ["mindllm", "gpt_neo"])
def test_fifty_steps_on_the_kernels_follow_the_reference(network: str, tmp_path: Path) -> None:
    sizes = {"train__steps": STEPS, "train__global_batch_size": 2, "train__micro_batch_size": 1}
    sizes |= {"data__seq_len": 8, "train__eval_tokens": 16}
    if network == "gpt_neo":
        sizes["model"] = GPT_NEO
    config = write_config(tmp_path, **sizes)
    losses = {}
    for kernels in ("reference", "triton"):
        run = tmp_path / kernels
        train_here(config, "--kernels", kernels, "--run.dir", str(run), "--train.eval_every", "0")
        losses[kernels] = torch.tensor([record["loss"] for record in records(run) if "loss" in record])
    assert len(losses["triton"]) == STEPS
    # fp32 rounding: two ways of adding the same numbers, over fifty updates.
    torch.testing.assert_close(losses["triton"], losses["reference"], rtol=1e-4, atol=1e-5)
    assert losses["reference"][-5:].mean() < losses["reference"][:5].mean() - 0.1


def test_a_choice_that_the_machine_has_not_is_one_line(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = write_config(tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    for option, value, said in (
        ("--kernels", "triton", "needs a GPU"),
        ("--kernels", "cuda", "kernels"),
        ("--attention", "flash_attn", "attention cannot be pinned to flash_attn"),
    ):
        done = subprocess.run(
            command(config, option, value), env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 2, done.stderr
        assert said in done.stderr.strip().splitlines()[-1], done.stderr
    assert not (tmp_path / "run").exists()


def test_deterministic_runs_train(tmp_path: Path) -> None:
    config = write_config(tmp_path, train__steps=2)
    train_here(config, "--deterministic", "true", "--kernels", "reference")
    assert torch.are_deterministic_algorithms_enabled()
    assert [record["step"] for record in records(tmp_path / "run") if "loss" in record] == [1, 2]

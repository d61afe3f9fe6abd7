"""DeepSpeed's stage 1 behind the loop's interface: 1 to 4 real ranks against one process with `torch.optim.AdamW`,
state by parameter, and mistakes in the configuration. The oracle knows no ranks, no flat buffers and no partitions."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mindllm_engine.distributed.backend import DistributedConfig
from mindllm_engine.distributed.deepspeed_backend import check_deepspeed
from mindllm_engine.errors import ConfigError
from mindllm_engine.optim.optimizer import OptimConfig
from tests.distributed import deepspeed_worker
from tests.distributed.deepspeed_worker import (
    CASES,
    MATRIX_LR_SCALE,
    OPTIM,
    Case,
    global_batch,
    learning_rate,
    whole_state,
)
from tests.training.tiny_run import ROOT, environment, launch, losses, write_config

# Launches for one to four ranks wait for each other on a busy machine.
pytestmark = pytest.mark.timeout(600)

# Ours and torch's sums differ in their order only.
FP32 = 1e-6
# With bf16 weights a last bit of a master weight now and then turns the rounding of a weight: 2^-9 of it. And the tied
# embedding's two gradients are added in bf16 before they reach the fp32 sum, here as in the oracle.
BF16 = 2**-9
FROM_THE_BEGINNING = [name for name, case in CASES.items() if case.source is None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all ranks have left their results: one launch for all cases of a number of ranks that can run at once."""
    folder = tmp_path_factory.mktemp("deepspeed")
    for ranks in (2, 3, 4):
        run_worker(ranks, folder, *(name for name in FROM_THE_BEGINNING if CASES[name].ranks == ranks))
    run_worker(1, folder, "part_2", "bf16_part_2", *(name for name in FROM_THE_BEGINNING if CASES[name].ranks == 1))
    run_worker(2, folder, "part_3", "bf16_part_3")
    return folder


def run_worker(ranks: int, folder: Path, *cases: str) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    launcher = [sys.executable, *(torchrun if ranks > 1 else [])]
    command = [*launcher, "-m", deepspeed_worker.__name__, str(folder), *cases]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    # Nothing is said but that steps were skipped.
    noise = [line for line in (done.stdout + done.stderr).splitlines() if line and "OVERFLOW! Skipping" not in line]
    assert noise == []


def oracle(case: Case) -> tuple[list[tuple[float, float]], dict[tuple[str, str], Tensor]]:
    """(loss, gradient norm) of each step from the beginning, and the optimizer state after the last, by (kind,
    parameter): a model, its fp32 copy, and AdamW on that. Skipped steps count for the bias correction."""
    model = case.model()
    masters = {name: p.detach().float().clone().requires_grad_() for name, p in model.named_parameters()}
    scale = MATRIX_LR_SCALE[case.network]
    inside = [p for name, p in masters.items() if p.ndim >= 2 and name.startswith("layers.")]
    outside = [p for name, p in masters.items() if p.ndim >= 2 and not name.startswith("layers.")]
    vectors = [p for p in masters.values() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": outside, "weight_decay": OPTIM.weight_decay, "scale": 1.0},
            {"params": inside, "weight_decay": OPTIM.weight_decay, "scale": scale},
            {"params": vectors, "weight_decay": 0.0, "scale": 1.0},
        ],
        betas=OPTIM.betas,
        eps=OPTIM.eps,
    )
    numbers = []
    for step in range(case.stop):
        batches = global_batch(step, case.micro_batches)
        supervised = sum(int((targets >= 0).sum()) for *_, targets in batches)
        loss = 0.0
        for master in masters.values():
            master.grad = torch.zeros_like(master)
        for tokens, positions, cu_seqlens, targets in batches:
            model.zero_grad()
            nats = model(tokens, positions, cu_seqlens, targets=targets).sum()
            (nats / supervised).backward()
            loss += nats.item() / supervised
            for name, p in model.named_parameters():
                masters[name].grad += p.grad  # type: ignore[operator]
        norm = torch.nn.utils.clip_grad_norm_(masters.values(), OPTIM.clip_grad_norm).item()
        numbers.append((loss, norm))
        if step in (case.refuse, case.spoil):
            for state in optimizer.state.values():
                state["step"] += 1
            continue
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step) * group["scale"]
        optimizer.step()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(masters[name])
    final = {("master", name): p.detach() for name, p in masters.items()}
    for kind, key in (("m", "exp_avg"), ("v", "exp_avg_sq")):
        final |= {(kind, name): optimizer.state[p][key] for name, p in masters.items()}
    return numbers, final


def records(folder: Path, name: str, rank: int = 0) -> list[dict[str, Any]]:
    return torch.load(folder / f"{name}_{rank}.pt")["records"]


@pytest.mark.parametrize("name", FROM_THE_BEGINNING)
def test_losses_and_norms_are_those_of_one_process_with_torch_adamw(folder: Path, name: str) -> None:
    case = CASES[name]
    ours = records(folder, name)
    expected, _ = oracle(case)
    skipped = [step for step in (case.refuse, case.spoil) if step is not None]
    assert [step for step, record in enumerate(ours) if record["skipped"]] == skipped
    is_fp32 = case.dtype == torch.float32
    for step, (record, (loss, norm)) in enumerate(zip(ours, expected, strict=True)):
        assert record["loss"] == pytest.approx(loss, rel=FP32 if is_fp32 else BF16), step
        if step != case.spoil:
            assert record["grad_norm"] == pytest.approx(norm, rel=10 * FP32 if is_fp32 else 8 * BF16), step
        else:
            assert not record["grad_norm"] < float("inf")
    assert ours[-1]["loss"] < ours[0]["loss"]  # it learns, so that equal losses mean something
    for rank in range(1, case.ranks):
        assert str(records(folder, name, rank)) == str(ours)


@pytest.mark.parametrize(
    "name", ["mindllm", "gpt_neo", "minicpm", "skips", "offload", "mindllm_bf16", "skips_bf16", "offload_bf16"]
)
def test_state_by_parameter_is_that_of_torch_adamw(folder: Path, name: str) -> None:
    """Of every element once, whichever rank holds it; and the weights are the rounded masters on both ranks."""
    case = CASES[name]
    whole = whole_state(folder, name, ranks=2)
    _, expected = oracle(case)
    assert whole.keys() == expected.keys()
    for key, tensor in expected.items():
        assert not whole[key].isnan().any(), key
        limit = (1e-4 if case.dtype == torch.float32 else 0.1) * tensor.abs().max()
        assert (whole[key] - tensor).abs().max() <= limit, key
    for rank in range(2):
        for parameter, weights in torch.load(folder / f"{name}_{rank}.pt")["parameters"].items():
            assert torch.equal(weights, whole["master", parameter].to(case.dtype)), parameter


def test_pieces_lie_where_the_flat_buffers_have_them(folder: Path) -> None:
    """Matrices, then vectors, each padded to equal parts; no two pieces overlap."""
    spans = []
    for rank in range(2):
        for _, _, first, stop, flat in torch.load(folder / f"gpt_neo_{rank}.pt")["pieces"]:
            spans.append((flat, flat + stop - first))
    spans.sort()
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
    parameters = sum(p.numel() for p in CASES["gpt_neo"].model().parameters())
    assert sum(stop - start for start, stop in spans) == parameters


@pytest.mark.parametrize("prefix", ["", "bf16_"])
def test_state_moves_between_numbers_of_ranks_bit_for_bit(folder: Path, prefix: str) -> None:
    """2 ranks -> 1 -> 2, with offloading in one of the parts: the state is the same bits (the worker compares them), so
    are the weights that it stands for, and training goes on as if nothing had happened."""
    case = CASES[f"{prefix}part_3"]
    for part, before, ranks in (("part_2", "part_1", 2), ("part_3", "part_2", 1)):
        ended_with = torch.load(folder / f"{prefix}{before}_0.pt")["parameters"]
        for rank in range(3 - ranks):
            begun_with = torch.load(folder / f"{prefix}{part}_{rank}.pt")["begun_with"]
            assert all(torch.equal(begun_with[name], weights) for name, weights in ended_with.items())
    ours = [record for part in (1, 2, 3) for record in records(folder, f"{prefix}part_{part}")]
    expected, _ = oracle(replace(case, first=0))
    limit = FP32 if case.dtype == torch.float32 else BF16
    assert [record["loss"] for record in ours] == pytest.approx([loss for loss, _ in expected], rel=limit)


def test_training_tool_gives_the_losses_of_the_native_backend(tmp_path: Path) -> None:
    """Two ranks, uneven documents, two micro-batches a step; then native -> DeepSpeed -> native in one run."""
    config = write_config(tmp_path)
    native = launch(config, "--run.dir", str(tmp_path / "native"), ranks=2)
    assert native.returncode == 0, native.stderr
    deepspeed = launch(config, "--run.dir", str(tmp_path / "deepspeed"), "--distributed.backend", "deepspeed", ranks=2)
    assert deepspeed.returncode == 0, deepspeed.stderr
    expected = [number for record in losses(tmp_path / "native") for number in record]
    assert [number for record in losses(tmp_path / "deepspeed") for number in record] == pytest.approx(
        expected, rel=1e-6
    )
    said = (deepspeed.stdout + deepspeed.stderr).splitlines()
    assert [line for line in said if line and not line.startswith("step ")] == []  # DeepSpeed says nothing
    turns = (("native", "4", 1), ("deepspeed", "7", 2), ("native", "12", 2))
    for backend, stop, ranks in turns:
        options = ["--run.dir", str(tmp_path / "turns"), "--train.stop_after", stop, "--distributed.backend", backend]
        done = launch(config, *options, ranks=ranks)
        assert done.returncode == 0, done.stderr
    assert [number for record in losses(tmp_path / "turns") for number in record] == pytest.approx(expected, rel=1e-6)


# As if the package were not installed: the finder of installed packages does not find it.
WITHOUT_DEEPSPEED = """
import importlib.machinery, runpy, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "deepspeed" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_missing_package_is_one_line_before_anything_starts(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    tool = [str(ROOT / "tools" / "pretrain.py"), "--config", str(config), "--distributed.backend"]
    command = [sys.executable, "-c", WITHOUT_DEEPSPEED, *tool]
    done = subprocess.run([*command, "deepspeed"], capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: distributed.backend: the package deepspeed is not installed; pip install "
        "'mindllm-engine[deepspeed]', or set distributed.backend to native"
    ]
    assert not (tmp_path / "run").exists()
    done = subprocess.run(
        [*command, "native", "--train.stop_after", "1"], capture_output=True, text=True, env=environment(), cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "has no section zero_optimization"),
        ("{}", "has no section zero_optimization"),
        ('{"zero_optimization": 1}', "has no section zero_optimization"),
        ('{"zero_optimization": {"stage": 2}}', "zero_optimization.stage follows from this run's own configuration"),
        ('{"zero_optimization": {}, "train_batch_size": 8}', "train_batch_size follows from this run's own"),
        ('{"zero_optimization": {"round_robin_gradients": true}}', "zero_optimization.round_robin_gradients follows"),
    ],
)
def test_file_that_contradicts_the_run_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "options.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        check_deepspeed(DistributedConfig(backend="deepspeed", deepspeed_config=str(path)), OptimConfig())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_impossible_combinations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        check_deepspeed(DistributedConfig(deepspeed_config=str(tmp_path / "no.json")), OptimConfig())
    with pytest.raises(ConfigError, match=r"distributed\.shard_group: DeepSpeed"):
        check_deepspeed(DistributedConfig(shard_group=2), OptimConfig())
    with pytest.raises(ConfigError, match=r"optim\.master: DeepSpeed"):
        check_deepspeed(DistributedConfig(), OptimConfig(master="bf16_and_bits"))
    with pytest.raises(ConfigError, match=r"needs distributed\.backend deepspeed"):
        DistributedConfig(deepspeed_config="options.json").validate(world_size=1)
    check_deepspeed(DistributedConfig(), OptimConfig())


def test_option_that_deepspeed_refuses_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "options.json"
    path.write_text(json.dumps({"zero_optimization": {"offload_optimizer": {"device": "moon"}}}))
    options = ("--distributed.backend", "deepspeed", "--distributed.deepspeed_config", str(path))
    done = launch(write_config(tmp_path), *options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: distributed.deepspeed_config: DeepSpeed refuses it")
    assert "moon" in done.stderr
    assert len(done.stderr.splitlines()) == 1

"""The benchmark harness at toy sizes in Triton's interpreter: what it writes, what it refuses, what it leaves out."""

import csv
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.bars import BAR_TOKENS, bars
from benchmarks.breakdown import category_of
from benchmarks.results_files import COLUMNS, Ceilings, Measurement
from benchmarks.timing import Spread, measure

ROOT = Path(__file__).parents[2]
# Liger's layout, as the first line of the files under benchmark/data/ of its repository gives it.
LIGER_HEADER = (
    "kernel_name,kernel_provider,kernel_operation_mode,metric_name,metric_unit,x_name,x_label,x_value,y_value_50,"
    "y_value_20,y_value_80,extra_benchmark_config_str,gpu_name,timestamp,liger_version"
)
PNG = b"\x89PNG"

# An operator that returns a tuple, one that takes integers, an optimizer that writes in place, one bound by products.
CASES = """
import sys
import torch
import torch.nn.functional as F
from benchmarks import kernels
from benchmarks.operator_cases import OperatorCase, activations, deepnorm_residual_case, rms_norm_case


def case(operator, make, ours, eager=None, backward=True, flops=None):
    traffic = lambda tokens, size: 2 * tokens * 8 * size
    return OperatorCase(
        operator, "3B", 8, make, ours, eager or ours, traffic, traffic if backward else None, flops
    )


def update(weight, gradient, step):
    weight.sub_(gradient * step)


two = lambda tokens, device, dtype: tuple(activations(2, 8)(tokens, device, dtype))
one = lambda tokens, device, dtype: tuple(activations(1, 8)(tokens, device, dtype))
labelled = lambda tokens, device, dtype: (*one(tokens, device, dtype), torch.arange(tokens, device=device) % 8)
RIGHT = [
    rms_norm_case("3B", 48),
    case("pair", two, lambda x, y: (x + y, x * y)),
    case("loss", labelled, lambda x, t: F.cross_entropy(x, t, reduction="none"), flops=lambda tokens: 6 * tokens),
    case("update", lambda n, d, t: (torch.randn(n, device=d), torch.randn(n, device=d), 0.5), update, backward=False),
]
WRONG = [
    case("scaled", one, lambda x: 1.01 * torch.sigmoid(x), torch.sigmoid),
    case("not_a_number", one, lambda x: torch.where(x == x.max(), torch.nan, x), lambda x: x.clone()),
    case("gradient", one, lambda x: x.detach() * 2 - x, lambda x: x.clone()),
    case("raises", one, lambda x: x @ x, lambda x: x.clone()),
    case("raises_when_timed", one, lambda x: x @ x if len(x) == 4 else x.clone(), lambda x: x.clone()),
    case("wrong_update", lambda n, d, t: (torch.randn(n, device=d),), lambda x: x.mul_(2), lambda x: x.mul_(3), False),
]
"""


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """A benchmark in its own process, which interprets kernels."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def run_cases(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """kernels.py on the cases above."""
    return run(["-c", CASES + code, "--tokens", "4", "--output", str(folder), "--json", str(folder / "rows.json")])


@pytest.fixture(scope="module")
def kernels_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run over right operators leaves."""
    folder = tmp_path_factory.mktemp("kernels")
    done = run_cases("sys.exit(kernels.main(models=RIGHT, sweep=[deepnorm_residual_case('width 32', 32)]))", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_csv_has_ligers_columns_and_a_row_for_each_direction(kernels_folder: Path) -> None:
    assert ",".join(COLUMNS) == LIGER_HEADER
    with (kernels_folder / "kernels.csv").open(newline="") as file:
        assert file.readline().strip() == LIGER_HEADER
        rows = list(csv.DictReader(file, COLUMNS))
    speeds = {
        (row["kernel_name"], row["kernel_provider"], row["kernel_operation_mode"])
        for row in rows
        if row["metric_name"] == "speed"
    }
    directions = {"rms_norm": ("forward", "backward"), "pair": ("forward", "backward"), "loss": ("full",)}
    directions |= {"update": ("forward",), "deepnorm_residual": ("forward", "backward")}
    expected = {
        (name, who, way) for name, ways in directions.items() for way in ways for who in ("ours", "torch eager")
    }
    assert speeds == expected
    assert all(float(row["y_value_50"]) >= 0 for row in rows)
    assert {row["x_name"] for row in rows} == {"T", "H"}
    assert json.loads(rows[0]["extra_benchmark_config_str"])["dtype"] == "bfloat16"


def test_report_says_that_nothing_was_measured_and_names_absent_peers(kernels_folder: Path) -> None:
    text = (kernels_folder / "kernels.md").read_text()
    assert "No GPU was at hand" in text
    for peer in ("torch.compile", "liger", "flash-attn", "quack", "apex", "transformer-engine"):
        assert f"- rms_norm: {peer}: needs a GPU" in text
    assert "WRONG" not in text
    assert "| rms_norm forward, 16384 tokens of 3B, bf16 | - |" in text


def test_json_rows_hold_no_figure_without_a_gpu(kernels_folder: Path) -> None:
    document = json.loads((kernels_folder / "rows.json").read_text())
    assert document["versions"]["torch"]
    bar_rows = [row for row in document["rows"] if row["bar"] is not None]
    assert len(bar_rows) >= 14
    for row in bar_rows:
        assert {"name", "unit", "ours", "peer", "peer_name", "ratio", "bar", "holds"} <= row.keys()
        assert row["ours"] is row["ratio"] is row["holds"] is None
        assert row["reason"] == "no GPU"


def test_plots_are_drawn(kernels_folder: Path) -> None:
    for name in ("operators.png", "sweep.png"):
        assert (kernels_folder / name).read_bytes().startswith(PNG)


def test_wrong_kernels_fail_the_run_and_are_named(tmp_path: Path) -> None:
    done = run_cases("sys.exit(kernels.main(models=WRONG + RIGHT[:1], sweep=[]))", tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    failed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAIL ")}
    assert failed == {"scaled", "not_a_number", "gradient", "raises", "raises_when_timed", "wrong_update"}
    assert "FAIL raises_when_timed 3B, 4 tokens, forward: RuntimeError: mat1 and mat2" in done.stdout
    assert "- rms_norm 3B: relative error" in (tmp_path / "kernels.md").read_text()


def test_spent_budget_leaves_the_rest_out_by_name(tmp_path: Path) -> None:
    done = run(["benchmarks/kernels.py", "--only", "rms_norm", "--budget-minutes", "0", "--output", str(tmp_path)])
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "kernels.md").read_text()
    assert "- rms_norm 3B, 4 tokens: the time budget was spent" in text
    assert (tmp_path / "kernels.csv").read_text().strip() == LIGER_HEADER


def test_tuning_tries_each_value_and_ends_with_the_committed_one(tmp_path: Path) -> None:
    done = run(["benchmarks/tune.py", "--only", "square_norm", "--output", str(tmp_path / "tune.csv")])
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "tune.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["value"]) for row in rows] == [65536, 16384, 32768, 131072, 65536]
    assert all(float(row["ms"]) > 0 and not row["note"] for row in rows)


def test_training_step_of_a_toy_network(tmp_path: Path) -> None:
    output = ["--only", "3B", "--output", str(tmp_path), "--json", str(tmp_path / "rows.json")]
    done = run(["benchmarks/train_step.py", *output])
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "train_step.md").read_text()
    assert "No GPU was at hand" in text
    assert "MFU = tokens/s * FLOPs a token / 989e12" in text
    for name in (
        "kernels: auto | whole",
        "kernels: auto | mixed",
        "kernels: reference | whole",
        "Transformers | whole",
    ):
        line = next(line for line in text.splitlines() if name in line)
        assert " - | - | - |" not in line.split("whole")[0], line
        assert "Error" not in line
    assert "| 3B | Transformers + Liger + torch.compile | whole | - |" in text
    assert "matrix products" in text
    assert (tmp_path / "train_step.png").read_bytes().startswith(PNG)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert rows
    assert all(row["ours"] is row["peer"] is row["holds"] is None for row in rows)


class FakeEvent:
    """A CUDA event on the host's clock; the device is never ahead of the host."""

    def __init__(self, enable_timing: bool) -> None:
        self.time = 0.0

    def record(self) -> None:
        self.time = time.perf_counter()

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "FakeEvent") -> float:
        return 1e3 * (end.time - self.time)


def test_gpu_timing_interleaves_variants_and_rotates_their_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    calls: list[str] = []

    def call(name: str, seconds: float) -> None:
        calls.append(name)
        time.sleep(seconds)

    variants = {
        "slow": [lambda: call("s0", 4e-3), lambda: call("s1", 4e-3)],
        "fast": [lambda: call("f0", 1e-3), lambda: call("f1", 1e-3)],
    }
    spreads = measure(variants, torch.device("cuda"))
    assert 4e-3 <= spreads["slow"].low <= spreads["slow"].median <= spreads["slow"].high
    assert 1e-3 <= spreads["fast"].median < spreads["slow"].median
    assert not spreads["fast"].host_bound
    turns = [name for name, _ in itertools.groupby(name[0] for name in calls)]
    assert len(turns) >= 10  # slow, fast, slow, fast, ...
    assert abs(calls.count("f0") - calls.count("f1")) <= 1


def test_gpu_timing_tells_when_the_host_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    holds: list[int] = []
    monkeypatch.setattr(FakeEvent, "query", lambda self: True)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "_sleep", holds.append)
    spread = measure({"one": [lambda: time.sleep(1e-3)]}, torch.device("cuda"))["one"]
    assert spread.host_bound
    assert max(holds) > 10 * min(hold for hold in holds if hold)  # the device was held longer before giving up


def measured(provider: str, seconds: float, **other: Any) -> Measurement:
    """A row of rms_norm as a GPU would give it."""
    values = {"operator": "rms_norm", "shape": "3B", "width": 2560, "tokens": BAR_TOKENS, "mode": "forward"}
    spread = Spread(seconds, seconds, seconds)
    return Measurement(**(values | {"provider": provider, "seconds": spread, "bytes": 100} | other))


def bar_named(rows: list[Measurement], part: str) -> dict[str, Any]:
    found = bars(rows, Ceilings(copy=100.0, gemm=1.0), ["rms_norm"], measured=True, vocab=1000)
    return next(row for row in found if part in row["name"])


@pytest.mark.parametrize(("seconds", "holds"), [(1.05, True), (1.2, False)])
def test_copy_bar_holds_at_its_share_of_the_copy(seconds: float, holds: bool) -> None:
    row = bar_named([measured("ours", seconds)], "rms_norm forward")
    assert row["holds"] is holds
    assert row["ratio"] == pytest.approx(1 / seconds)


def test_peer_bar_fails_for_one_slow_shape_and_ignores_bounds() -> None:
    rows = [measured("ours", 1.0), measured("liger", 2.0), measured("torch eager", 3.0)]
    rows += [measured("three", 0.1, bound=True)]
    assert bar_named(rows, "best peer")["holds"] is True
    slow = [measured("ours", 1.0, tokens=1), measured("liger", 0.9, tokens=1)]
    row = bar_named(rows + slow, "best peer")
    assert row["ratio"] > 1
    assert row["holds"] is False
    assert "0.900" in row["reason"]


def test_loss_bars_compare_with_bare_products_liger_and_the_logits() -> None:
    alone = {"operator": "linear_cross_entropy", "mode": "full"}
    in_training = {"operator": "linear_cross_entropy_main_grad", "mode": "full"}
    logits = BAR_TOKENS * 1000 * 2
    rows = [measured("ours", 1.0, **alone), measured("liger", 4.0, **alone)]
    rows += [measured("ours", 1.0, memory=logits // 50, **in_training)]
    rows += [measured("three bare GEMMs", 0.95, bound=True, **in_training)]
    found = bars(rows, Ceilings(1.0, 1.0), [], measured=True, vocab=1000)[-3:]
    assert [row["holds"] for row in found] == [True, True, False]


def test_rows_of_one_run_are_not_taken_for_bars_without_a_gpu() -> None:
    found = bars([measured("ours", 1.0)], Ceilings(100.0, 1.0), ["rms_norm"], measured=False, vocab=1000)
    assert all(row["ours"] is None and row["holds"] is None and row["reason"] == "no GPU" for row in found)


@pytest.mark.parametrize(
    ("kernel", "category"),
    [
        ("void flash_fwd_kernel<Flash_fwd_kernel_traits<128, cutlass::bfloat16_t>>", "attention"),
        ("nvjet_tst_256x128_64x4_2x1_v_bz_coopA_TNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "matrix products"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("Memcpy DtoD (Device -> Device)", "copies and fills"),
        ("triton_poi_fused_add_0", "Inductor's and Liger's kernels"),
        ("void at::native::vectorized_elementwise_kernel<4>", "other"),
    ],
)
def test_kernels_are_sorted_by_what_they_are_for(kernel: str, category: str) -> None:
    assert category_of(kernel) == category


def test_our_kernels_are_known_by_name() -> None:
    assert "rms_norm" in category_of("rms_norm_wide_backward_kernel")
    assert category_of("rms_norm_wide_backward_kernel").startswith("ours: ")


def test_tuning_tries_every_value_and_leaves_the_constant_alone(tmp_path: Path) -> None:
    done = run(["benchmarks/tune.py", "--only", "square_norm", "--output", str(tmp_path / "tune.csv")])
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader((tmp_path / "tune.csv").open()))
    assert [row["value"] for row in rows] == ["65536", "16384", "32768", "131072", "65536"]
    assert all(float(row["ms"]) > 0 and not row["note"] for row in rows)

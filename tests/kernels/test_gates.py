"""The gates that hold kernels where there is no GPU: machine code, addresses, memory traffic and host time, each a
program of benchmarks/ that compares with a committed table. They run in processes of their own, since Triton compiles
only where it does not interpret."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="gates stand in for a GPU, and need none")
ROOT = Path(__file__).parent.parent.parent


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=850
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("gate", ["machine_code", "address_arithmetic", "memory_traffic"])
def test_gate(gate: str) -> None:
    done = run(f"benchmarks/{gate}.py")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_call_is_measured_for_every_operator(tmp_path: Path) -> None:
    done = run("benchmarks/host_cost.py", "--json", str(tmp_path / "host.json"))
    rows = json.loads((tmp_path / "host.json").read_text())["rows"]
    assert rows, done.stderr
    # The bar of 10 us is for an idle machine, and the table says whether it holds; tests share theirs.
    assert all(0 < row["ours"] < 100 for row in rows), rows


WRONG_KERNELS = """
import sys
import torch, triton, triton.language as tl
from mindllm_engine.kernels.launch import Program
from benchmarks import {gate} as gate, machine_code, operator_cases

@triton.jit
def _kernel(x_ptr, y_ptr, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    {body}

def operator(x):
    Program(_kernel, num_warps=1, WIDTH=x.shape[1], BLOCK=4096)({grid}, x, torch.empty_like(x), x.stride(0))
    return x

case = operator_cases.OperatorCase(
    "wrong", "3B", 2560, lambda tokens, device, dtype: (torch.empty(tokens, 2560, device=device, dtype=dtype),),
    operator, operator, lambda tokens, size: 1, None)
gate.model_cases = machine_code.model_cases = lambda: [case]
machine_code.sweep_cases = lambda: []
sys.argv = ["gate"]
sys.exit(gate.main())
"""
NARROW = """columns = columns * 2
    x = tl.load(x_ptr + row.to(tl.int64) * stride + columns, mask=columns < WIDTH)
    tl.store(y_ptr + row.to(tl.int64) * stride + columns, x, mask=columns < WIDTH)"""
SPILLING = """total = tl.zeros((BLOCK,), tl.float32)
    held = tl.load(x_ptr + columns).to(tl.float32)
    other = tl.load(x_ptr + columns + BLOCK).to(tl.float32)
    for i in range(0, stride):
        new = tl.load(x_ptr + i * BLOCK + columns).to(tl.float32)
        total += new * held + tl.sum(new * other, axis=0)
    tl.store(y_ptr + columns, total)"""
OVERFLOWING = """x = tl.load(x_ptr + row * stride + columns, mask=columns < WIDTH)
    tl.store(y_ptr + row * stride + columns, x, mask=columns < WIDTH)"""
ROWS, ROWS_ALONG_Y = "(x.shape[0], 1, 1)", "(1, x.shape[0], 1)"


@pytest.mark.parametrize(
    ("gate", "body", "grid", "finding"),
    [
        ("machine_code", NARROW, ROWS, "narrow loads"),
        ("machine_code", SPILLING, ROWS, "spills"),
        ("machine_code", OVERFLOWING, ROWS, "in the committed table alone"),
        ("address_arithmetic", OVERFLOWING, ROWS, "may reach"),
        ("address_arithmetic", OVERFLOWING, ROWS_ALONG_Y, "is not launched"),
    ],
    ids=["narrow", "spilling", "forgotten", "overflowing", "too many"],
)
def test_gates_find_wrong_kernels(gate: str, body: str, grid: str, finding: str, tmp_path: Path) -> None:
    program = tmp_path / "wrong.py"
    code = WRONG_KERNELS.format(gate=gate, body=body, grid=grid)
    program.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n" + code)
    done = run(str(program), cwd=tmp_path)
    assert finding in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1


TWO_LAUNCHES = """
from dataclasses import replace
from benchmarks.machine_code import Row, findings
small = Row("kernel", "operator", "3B", "bfloat16", 90, 0, 4, 40, 0, 0, 128, 128, 0, 0, True)
large = replace(small, launch=1, registers=80)
assert findings([small, large], [small, large]) == []
print(*findings([replace(small, registers=80), large], [small, large]), sep="; ")
"""


def test_each_launch_of_a_kernel_is_compared_with_itself() -> None:
    done = run("-c", TWO_LAUNCHES)
    assert done.stdout.count("registers grew from 40 to 80") == 1, done.stdout + done.stderr


MAIN_GRADIENTS = """
from benchmarks.machine_code import jobs
print(*sorted({(job.kernel, dict(job.constants).get("ADD")) for job in jobs()}, key=str), sep="; ")
"""


def test_both_ways_to_give_a_gradient_are_compiled() -> None:
    done = run("-c", MAIN_GRADIENTS)
    for kernel in ("_sum_rows_kernel", "_embedding_norm_finish_runs_kernel"):
        assert all(f"('{kernel}', {add})" in done.stdout for add in (False, True)), done.stdout + done.stderr

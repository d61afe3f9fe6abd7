"""How long does a call of each operator keep the host busy? Answered without a GPU.

The kernels are compiled for an H100 and everything of a call runs except what the CUDA driver does: Python, torch's
allocations, autograd, the look-up of the compiled kernel, and Triton's Python launcher; the driver itself
(cuLaunchKernel, about 2 us) is replaced by nothing. Tensors hold one token, so that torch's own call beside it spends
its time on dispatch as well.

    python benchmarks/host_cost.py [--json FILE]
"""

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import triton
from triton.backends.compiler import GPUTarget

from benchmarks.operator_cases import OperatorCase, model_cases
from mindllm_engine.kernels import backend

BAR_MICROSECONDS = 10.0
CALLS, REPETITIONS = 2000, 7


class _NoUtilities:
    """Stands for Triton's binding to the CUDA driver."""

    def load_binary(self, *arguments: Any) -> tuple[int, int, int, int, int]:
        return 1, 2, 32, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232_448, "multiprocessor_count": 132}


class _NoLauncher:
    def __init__(self, source: Any, metadata: Any) -> None:
        pass

    def __call__(self, *arguments: Any) -> None:
        pass


class _NoDriver:
    """A CUDA driver that compiles for sm_90 and launches nothing."""

    utils = _NoUtilities()
    launcher_cls = _NoLauncher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class _NoDevice:
    def __init__(self, device: torch.device) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def stand_in_for_the_driver() -> None:
    """Make CPU tensors pass for tensors on the current GPU."""
    triton.runtime.driver.set_active(_NoDriver())
    torch.cuda.current_device = lambda: -1  # what get_device() says of a CPU tensor
    torch.cuda.device = _NoDevice
    torch._C._cuda_getCurrentRawStream = lambda device: 0
    backend._choice = "triton"
    backend.interpreted = lambda: True  # or a tensor on the CPU would be taken for one offloaded from a GPU


def microseconds(call: Callable[[], Any]) -> float:
    """The least over repetitions of the mean of many calls: other work on the machine only adds.

    As in the standard library's timeit, the garbage collector is off.
    """
    call()
    times = []
    gc.disable()
    for _ in range(REPETITIONS):
        begin = time.process_time()
        for _ in range(CALLS):
            call()
        times.append((time.process_time() - begin) / CALLS * 1e6)
    gc.enable()
    return min(times)


def row(case: OperatorCase) -> dict[str, Any]:
    """One line of the table: the operator's forward against torch's."""
    arguments = case.make(1, torch.device("cpu"), torch.bfloat16)
    ours = microseconds(lambda: case.ours(*arguments))
    peer = microseconds(lambda: case.eager(*arguments))
    return {
        "name": f"{case.operator} {case.shape}",
        "unit": "us a call",
        "ours": round(ours, 2),
        "peer": round(peer, 2),
        "peer_name": "torch eager, CPU, one token",
        "ratio": round(peer / ours, 2),
        "bar": BAR_MICROSECONDS,
        "holds": ours < BAR_MICROSECONDS,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stand_in_for_the_driver()
    rows = [row(case) for case in model_cases() if case.flops is None]
    for line in rows:
        verdict = "" if line["holds"] else f"  above {BAR_MICROSECONDS:g} us"
        print(f"{line['name']:28} {line['ours']:7.2f} us   torch eager {line['peer']:7.2f} us{verdict}")
    if arguments.json:
        versions = {"torch": torch.__version__, "triton": triton.__version__, "python": sys.version.split()[0]}
        arguments.json.write_text(json.dumps({"machine": "CPU", "versions": versions, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

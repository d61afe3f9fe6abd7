"""How well is each kernel compiled? Answered without a GPU.

Every operator runs on meta tensors at the shapes of `operator_cases.py`, which records the launches that a GPU would
get; each is compiled ahead of time for sm_80, sm_90 and sm_100 (the sweep of widths for sm_90), and the machine code is
read: registers, bytes of stack (spills), shared memory, the widths of loads and stores.

    python benchmarks/machine_code.py             # compile, and compare with the committed table
    python benchmarks/machine_code.py --write     # compile, and commit a new table

Exit code 1 and one line a finding for a spill, a narrow load on an aligned row, a figure that grew by more than 10 %
over the committed table `results/machine_code.csv`, or a row there that nothing is compiled for any more.
"""

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # the compiler does not run in a process that interprets
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.operator_cases import OperatorCase, model_cases, sweep_cases
from mindllm_engine.kernels import backend
from mindllm_engine.kernels.launch import Launch, recording

TABLE = Path(__file__).parent / "results" / "machine_code.csv"
CAPABILITIES, SWEEP_CAPABILITIES = (80, 90, 100), (90,)
TOKENS = 16384
MODEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# A figure of the table may grow by this before the gate fails.
GROWTH = 1.10
# Kernels whose narrow accesses cost nothing, and why.
NARROW_BY_NATURE = {
    "sum_rows_kernel": "writes one vector of a few KB a call, an element a thread",
    "cross_entropy_losses_kernel": "reads one logit of a row by itself, the target's",
}
TYPE_NAMES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


@dataclass(frozen=True, order=True)
class Row:
    """The machine code of one kernel, compiled for one launch.

    Attributes:
        kernel, operator, shape, dtype, capability: what it is; `dtype` that of the activations.
        launch: which of the launches of that kernel, whose constants or types differ, in the order they are made.
        warps, registers, stack, shared: warps a program, registers a thread, bytes of stack a thread, bytes of shared
            memory a program.
        load_bits, store_bits: widest global access, in bits a thread.
        narrow_loads, narrow_stores: global accesses of under 32 bits a thread.
        aligned: whether the rows of all tensors begin on 16 bytes, so that narrow accesses have no excuse.
    """

    kernel: str
    operator: str
    shape: str
    dtype: str
    capability: int
    launch: int
    warps: int
    registers: int
    stack: int
    shared: int
    load_bits: int
    store_bits: int
    narrow_loads: int
    narrow_stores: int
    aligned: bool


@dataclass(frozen=True)
class Job:
    """One compilation: a launch reduced to what decides its machine code, in plain data for another process."""

    module: str
    kernel: str
    operator: str
    shape: str
    dtype: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[int, ...]
    warps: int
    stages: int
    aligned: bool
    capabilities: tuple[int, ...]
    launch: int = 0


def jobs() -> list[Job]:
    """Every distinct kernel of every case: the networks' shapes in three dtypes, the sweep of widths in bf16."""
    found: dict[tuple[Any, ...], Job] = {}
    launches: Counter[tuple[str, ...]] = Counter()
    select_triton()
    for case, dtype in cases_and_dtypes():
        for launched in launches_of(case, dtype, TOKENS):
            job = job_of(launched, case, dtype)
            key = (job.module, job.kernel, job.signature, repr(job.constants), job.divisible, job.warps, job.stages)
            if key not in found:
                name = (job.kernel, job.operator, job.shape, job.dtype)
                found[key] = replace(job, launch=launches[name])
                launches[name] += 1
    return list(found.values())


def select_triton() -> None:
    """Let operators on meta tensors take their Triton path, which `select_kernels` refuses where there is no GPU."""
    backend._choice = "triton"


def cases_and_dtypes() -> Iterator[tuple[OperatorCase, torch.dtype]]:
    """What is compiled."""
    for case in model_cases():
        for dtype in MODEL_DTYPES:
            yield case, dtype
    for case in sweep_cases():
        yield case, torch.bfloat16


def launches_of(case: OperatorCase, dtype: torch.dtype, tokens: int) -> list[Launch]:
    """What forward and backward of a case would launch, without main gradients and with them."""
    with recording() as launches:
        for has_main_grad in (False, True):
            arguments = case.make(tokens, torch.device("meta"), dtype)
            for argument in arguments:
                if has_main_grad and isinstance(argument, Tensor) and argument.requires_grad:
                    argument.main_grad = torch.empty_like(argument, dtype=torch.float32)
            outputs = case.ours(*arguments)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            if case.backward_bytes is not None:
                # Losses are summed, which sends one number back to all of them.
                gradients = [torch.empty_like(out if out.ndim > 1 else out[:1]).expand(out.shape) for out in outputs]
                torch.autograd.backward(outputs, gradients)
    return launches


def job_of(launched: Launch, case: OperatorCase, dtype: torch.dtype) -> Job:
    """The types and alignments that Triton would specialise on, with every tensor's memory on a 16-byte boundary."""
    names = launched.kernel.arg_names
    signature, constants, divisible, aligned = {}, dict(launched.constants), [], True
    for index, (name, value) in enumerate(zip(names, launched.args, strict=False)):
        if isinstance(value, Tensor):
            signature[name] = TYPE_NAMES[value.dtype]
            if value.storage_offset() * value.element_size() % 16 == 0:
                divisible.append(index)
            if value.ndim > 1 and any(size * value.element_size() % 16 for size in value.shape[-1:]):
                aligned = False
        elif isinstance(value, int) and value == 1:
            constants[name] = 1
        elif isinstance(value, int):
            signature[name] = "i64" if value.bit_length() > 31 else "i32"
            if value % 16 == 0:
                divisible.append(index)
        else:
            signature[name] = "fp32"
    return Job(
        module=launched.kernel.fn.__module__,
        kernel=launched.kernel.fn.__name__,
        operator=case.operator,
        shape=case.shape,
        dtype=str(dtype).removeprefix("torch."),
        signature=tuple((name, signature.get(name, "constexpr")) for name in names),
        constants=tuple((name, constants[name]) for name in names if name in constants),
        divisible=tuple(divisible),
        warps=launched.num_warps,
        stages=launched.num_stages,
        aligned=aligned,
        capabilities=SWEEP_CAPABILITIES if case.shape.startswith("width") else CAPABILITIES,
    )


def compile_job(job: Job) -> list[Row]:
    """The rows of one kernel, one a capability."""
    return [read_machine_code(job, capability, compiled(job, capability)) for capability in job.capabilities]


def compiled(job: Job, capability: int) -> Any:
    """The kernel as Triton compiles it for that launch."""
    module = __import__(job.module, fromlist=[job.kernel])
    source = ASTSource(
        getattr(module, job.kernel),
        dict(job.signature),
        dict(job.constants),
        {(index,): [["tt.divisibility", 16]] for index in job.divisible},
    )
    options = {"num_warps": job.warps, "num_stages": job.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def read_machine_code(job: Job, capability: int, kernel: Any) -> Row:
    """Registers, stack and the widths of memory accesses, from the disassembly."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = disassemble("-res-usage", file.name)
        loads, stores = access_widths(disassemble("-sass", file.name))
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    return Row(
        kernel=job.kernel.strip("_"),
        operator=job.operator,
        shape=job.shape,
        dtype=job.dtype,
        capability=capability,
        launch=job.launch,
        warps=job.warps,
        registers=registers,
        stack=stack,
        shared=kernel.metadata.shared,
        load_bits=max(loads, default=0),
        store_bits=max(stores, default=0),
        narrow_loads=sum(count for bits, count in loads.items() if bits < 32),
        narrow_stores=sum(count for bits, count in stores.items() if bits < 32),
        aligned=job.aligned,
    )


def disassemble(option: str, cubin: str) -> str:
    """What `cuobjdump` says of a cubin."""
    command = [str(NVIDIA_TOOLS / "cuobjdump"), option, cubin]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def access_widths(sass: str) -> tuple[Counter[int], Counter[int]]:
    """Bits a thread of each global load and store instruction."""
    counts: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    for which, modifiers in re.findall(r"\b(LDG|STG)\.([\w.]+)", sass):
        parts = modifiers.split(".")
        bits = next((int(part) for part in parts if part in ("64", "128", "256")), None)
        narrow = next((int(part[1:]) for part in parts if part in ("U8", "S8", "U16", "S16")), None)
        counts[which == "STG"][bits or narrow or 32] += 1
    return counts


def findings(rows: list[Row], committed: list[Row]) -> list[str]:
    """One line for each row that the gate does not let pass."""
    before = {key_of(row): row for row in committed}
    lines = [f"{name_of(before[key])}: in the committed table alone" for key in before.keys() - set(map(key_of, rows))]
    for row in rows:
        name = name_of(row)
        if row.stack:
            lines.append(f"{name}: spills, {row.stack} bytes of stack a thread")
        if row.aligned and row.kernel not in NARROW_BY_NATURE and (row.narrow_loads or row.narrow_stores):
            lines.append(f"{name}: {row.narrow_loads} narrow loads and {row.narrow_stores} narrow stores")
        old = before.get(key_of(row))
        if old is None:
            lines.append(f"{name}: not in the committed table; run with --write")
            continue
        for figure in ("registers", "shared"):
            was, now = getattr(old, figure), getattr(row, figure)
            if now > was * GROWTH:
                lines.append(f"{name}: {figure} grew from {was} to {now}")
        for figure in ("load_bits", "store_bits"):
            was, now = getattr(old, figure), getattr(row, figure)
            if now < was:
                lines.append(f"{name}: {figure} fell from {was} to {now}")
    return lines


def key_of(row: Row) -> tuple[Any, ...]:
    """What a row is found by in another table."""
    return astuple(row)[:6]


def name_of(row: Row) -> str:
    """A row in a finding."""
    launch = f", launch {row.launch}" if row.launch else ""
    return f"{row.kernel} ({row.operator} {row.shape}, {row.dtype}, sm_{row.capability}{launch})"


def read_table(path: Path) -> list[Row]:
    """The committed table; empty where there is none."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        kinds = {field.name: field.type for field in fields(Row)}
        return [Row(**{name: parse(kinds[name], text) for name, text in line.items()}) for line in csv.DictReader(file)]


def parse(kind: Any, text: str) -> Any:
    """A cell of the table."""
    return text == "True" if kind is bool else kind(text)


def write_table(path: Path, rows: list[Row]) -> None:
    """Replace the committed table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in sorted(rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the committed table by this compilation")
    parser.add_argument("--only", default="", help="compile the operators whose name contains this")
    arguments = parser.parse_args()
    work = [job for job in jobs() if arguments.only in job.operator]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        rows = [row for rows in pool.map(compile_job, work) for row in rows]
    if arguments.write:
        others = [row for row in read_table(TABLE) if arguments.only not in row.operator] if arguments.only else []
        write_table(TABLE, [*others, *rows])
    found = findings(rows, [row for row in read_table(TABLE) if arguments.only in row.operator])
    print("\n".join(found))
    print(f"{len(work)} kernels, {len(rows)} times compiled: {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

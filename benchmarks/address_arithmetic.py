"""Do the kernels' addresses stay exact beyond 2^31 elements? Answered without a GPU.

Every operator runs on meta tensors of more than 2^31 elements, which records the launches that a GPU would get. Each
kernel is compiled to PTX, and every 32-bit integer that a global address is computed from is followed back to where it
comes from: the program's and thread's number, the launch's integers, constants. Its largest possible value is
computed on the way; one that may pass 2^31 - 1, or whose bound is not found, is a finding. 64-bit arithmetic cannot
overflow here. So is a grid that CUDA does not launch.

    python benchmarks/address_arithmetic.py
"""

import argparse
import os
import re
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks.machine_code import Job, compiled, job_of, launches_of, select_triton
from benchmarks.operator_cases import model_cases

LIMIT = 2**31 - 1
# Programs that CUDA launches at most, along x, y and z.
GRID_LIMITS = (LIMIT, 65535, 65535)
CAPABILITY = 90
# "add.s32 %r1, %r2, 4": the operation with its modifiers, and the operands.
INSTRUCTION = re.compile(r"^(?:@!?%p\d+\s+)?([a-z][\w.]*)\s+(.*)$", re.S)


@dataclass(frozen=True)
class LargeLaunch:
    """A launch on more than 2^31 elements: how it compiles, and the numbers it is given."""

    job: Job
    grid: tuple[int, ...]
    integers: tuple[int | None, ...]  # by position among the compiled kernel's parameters; None for others


@dataclass(frozen=True)
class Instruction:
    """`operation` writes the first operand and reads the others."""

    operation: str
    operands: tuple[str, ...]


def large_launches() -> list[LargeLaunch]:
    """For every distinct kernel of the networks' cases in bf16, the launch with the largest grid."""
    select_triton()
    found: dict[Job, LargeLaunch] = {}
    for case in model_cases():
        tokens = 2**31 // case.width + 5
        for launched in launches_of(case, torch.bfloat16, tokens):
            job = job_of(launched, case, torch.bfloat16)
            kinds = dict(job.signature)
            integers = tuple(
                value if isinstance(value, int) else None
                for name, value in zip(launched.kernel.arg_names, launched.args, strict=False)
                if kinds[name] != "constexpr"
            )
            new = LargeLaunch(job, launched.grid, integers)
            old = found.get(job)
            if old is None or old.grid < new.grid:
                found[job] = new
    return list(found.values())


def check(launch: LargeLaunch) -> list[str]:
    """One line for each 32-bit number behind an address of this kernel that may overflow."""
    lines = Slice(compiled(launch.job, CAPABILITY).asm["ptx"], launch).findings()
    if any(size > limit for size, limit in zip(launch.grid, GRID_LIMITS, strict=True)):
        lines.append(f"its grid of {launch.grid} is not launched")
    return [f"{launch.job.kernel} ({launch.job.operator} {launch.job.shape}): {line}" for line in lines]


class Slice:
    """The instructions behind the global addresses of one kernel, and bounds on its 32-bit registers."""

    def __init__(self, ptx: str, launch: LargeLaunch) -> None:
        self.launch = launch
        self.writers: dict[str, list[Instruction]] = defaultdict(list)
        self.addresses: set[str] = set()
        self.compares: list[Instruction] = []
        self.bounds: dict[str, int] = {}
        self.pending: set[str] = set()
        for line in ptx[ptx.index("{") :].splitlines():
            self.read(line.split("//")[0].strip().removesuffix(";"))

    def read(self, statement: str) -> None:
        """File one instruction under what it writes, and the addresses it uses."""
        if "ld.global" in statement or "st.global" in statement or "atom.global" in statement:
            self.addresses |= set(re.findall(r"\[\s*(%rd\d+)", statement))
            return
        match = INSTRUCTION.match(statement)
        if not match or match[1].startswith("."):
            return
        operands = tuple(part.strip() for part in match[2].replace("\n", " ").split(","))
        instruction = Instruction(match[1], operands)
        if match[1].startswith("setp"):
            self.compares.append(instruction)
        elif operands and operands[0].startswith("%"):
            self.writers[operands[0]].append(instruction)

    def findings(self) -> list[str]:
        """Follow every address back through 64-bit arithmetic to the 32-bit registers it starts from."""
        lines, seen, open_registers = [], set(), list(self.addresses)
        while open_registers:
            register = open_registers.pop()
            if register in seen:
                continue
            seen.add(register)
            for instruction in self.writers[register]:
                for operand in instruction.operands[1:]:
                    if re.fullmatch(r"%rd\d+", operand):
                        open_registers.append(operand)
                    elif re.fullmatch(r"%r\d+", operand) and operand not in seen:
                        seen.add(operand)
                        bound = self.bound(operand)
                        if bound is None or bound > LIMIT:
                            reason = "has no bound that was found" if bound is None else f"may reach {bound:,}"
                            lines.append(f"{operand} {reason}: {self.describe(operand)}")
        return lines

    def describe(self, register: str) -> str:
        """The instructions that write a register."""
        return "; ".join(f"{i.operation} {', '.join(i.operands)}" for i in self.writers[register]) or "never written"

    def bound(self, operand: str) -> int | None:
        """The largest absolute value that a 32-bit operand can have; None where none is found."""
        if re.fullmatch(r"-?\d+", operand):
            return abs(int(operand))
        if operand in self.bounds:
            return self.bounds[operand]
        if operand in self.pending:  # met again on the way: a loop, whose bound comes from its comparison
            return None
        self.pending.add(operand)
        bound = self.computed_bound(operand)
        self.pending.remove(operand)
        if bound is not None:
            self.bounds[operand] = bound
        return bound

    def computed_bound(self, operand: str) -> int | None:
        special = self.special(operand)
        if special is not None:
            return special
        writers = self.writers[operand]
        if not writers:
            return None
        if len(writers) > 1:
            return self.loop_bound(operand)
        return self.result(writers[0])

    def special(self, operand: str) -> int | None:
        """Bounds of the numbers of programs and threads."""
        grid = dict(zip("xyz", self.launch.grid, strict=False))
        match = re.fullmatch(r"%(ctaid|nctaid|tid|ntid)\.([xyz])", operand)
        if match is None:
            return None
        if match[1] in ("ctaid", "nctaid"):
            return grid.get(match[2], 1)
        return self.launch.job.warps * 32 if match[2] == "x" else 1

    def loop_bound(self, register: str) -> int | None:
        """A register written at several places: the larger of its starts and of what a comparison holds it below."""
        starts, steps = [], []
        for writer in self.writers[register]:
            sources = [self.bound(operand) for operand in writer.operands[1:]]
            if writer.operation.startswith("mov") and sources[0] is not None:
                starts.append(sources[0])
            elif writer.operation.startswith("add"):
                steps.append(max((s for s in sources if s is not None), default=0))
        limits = []
        related = {register} | {op for w in self.writers[register] for op in w.operands[1:] if op.startswith("%r")}
        for compare in self.compares:
            inside = related & set(compare.operands[1:])
            others = [self.bound(operand) for operand in compare.operands[1:] if operand not in inside]
            if inside:
                limits += [other for other in others if other is not None]
        if not limits:
            return None
        # The last addition may step over the limit by one step, and a step is bounded by the limit's own size here.
        return max([*starts, max(limits) + max(steps, default=max(limits))])

    def result(self, instruction: Instruction) -> int | None:
        """The bound of what an instruction writes, from the bounds of what it reads."""
        name = instruction.operation.split(".")[0]
        if name == "ld":  # from global memory: a token's number, a position; or a parameter
            return self.parameter(instruction.operands[1])
        sources = [self.bound(operand) for operand in instruction.operands[1:]]
        if name == "and":
            known = [bound for bound in sources if bound is not None]
            return min(known) if known else None
        if name == "rem":
            return sources[1]
        if name == "selp":
            sources = sources[:2]
        if any(bound is None for bound in sources):
            return None
        known = [bound for bound in sources if bound is not None]
        if name in ("mov", "cvt", "neg", "abs", "not", "div", "bfe", "shfl"):
            return known[0]
        if name == "shr":
            return known[0] >> int(instruction.operands[2]) if instruction.operands[2].isdigit() else known[0]
        if name == "sub" and (divisor := self.divisor_of_remainder(instruction)) is not None:
            return divisor - 1
        if name in ("add", "sub"):
            return known[0] + known[1]
        if name == "mul":  # the high half: a division by a constant that is no power of 2
            return known[0] * known[1] >> (32 if ".hi." in instruction.operation else 0)
        if name in ("mad", "fma"):
            return known[0] * known[1] + known[2]
        if name == "shl":
            return known[0] << known[1]
        if name in ("or", "xor"):
            return (1 << max(known).bit_length()) - 1
        if name in ("min", "max", "selp"):
            return max(known)
        return None

    def divisor_of_remainder(self, subtraction: Instruction) -> int | None:
        """c where an instruction takes `n / c * c` from n, the quotient being the high half of n times a constant m:
        exact while n (m c - 2^32) < 2^32."""
        _, n, multiple = subtraction.operands
        multiples = [writer for writer in self.writers[multiple] if writer.operation.startswith("mul.lo")]
        if len(multiples) != 1 or not multiples[0].operands[2].isdigit():
            return None
        _, quotient, divisor = multiples[0].operands
        quotients = [writer for writer in self.writers[quotient] if writer.operation == "mul.hi.u32"]
        if len(quotients) != 1 or quotients[0].operands[1] != n or not quotients[0].operands[2].isdigit():
            return None
        largest, excess = self.bound(n), int(quotients[0].operands[2]) * int(divisor) - 2**32
        return int(divisor) if largest is not None and excess >= 0 and largest * excess < 2**32 else None

    def parameter(self, operand: str) -> int | None:
        """The integer that the launch gives a parameter; what is read from memory is any 31-bit number."""
        match = re.search(r"_param_(\d+)", operand)
        if match is None:
            return LIMIT
        return self.launch.integers[int(match[1])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    launches = large_launches()
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = [line for lines in pool.map(check, launches) for line in lines]
    print("\n".join(found))
    print(f"{len(launches)} kernels on more than 2^31 elements: {len(found)} findings")
    return 1 if found or not launches else 0


if __name__ == "__main__":
    sys.exit(main())

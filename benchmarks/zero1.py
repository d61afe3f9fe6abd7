"""Is ZeRO-1 of this engine faster than the field's, and does it send and keep less? Two ranks, one run.

    python benchmarks/zero1.py [--json FILE] [--toy]

Peers: DeepSpeed's stage 1, FSDP2 set up as ZeRO-1, DDP with ZeroRedundancyOptimizer, plain DDP. All train the same
network on the same batches (zero1_task.py), each in the fastest of its variants (zero1_peers.py), which a first round
finds. Then the engines take turns in processes of their own (zero1_ranks.py), and each is counted:

    step time      median of the turns, steady state
    bytes sent     by the loopback interface of a network namespace that nothing else uses; beside it, what the messages
                   add up to (zero1_messages.py)
    memory         growth of a rank's resident memory to its peak; what the engine keeps, by kind
    early          share of the gradients' bytes whose sending began before backward had computed the last gradient
    losses         of every step; an engine that does not have plain DDP's is void

and last the loop's own work in a step (loop_overhead.py). Without GPUs: gloo, one thread a rank, so that two ranks and
gloo's threads share the cores: keep the machine idle. With two GPUs: NCCL; there no bytes are counted on the network.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYTHONWARNINGS", "ignore")
if sys.path[0] == str(Path(__file__).parent):  # the project instead of this folder, whose names others may look for
    sys.path[0] = str(Path(__file__).parent.parent)

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

from benchmarks.loop_overhead import overhead_rows
from benchmarks.network_namespace import enter_own_network
from benchmarks.process_memory import in_fresh_process
from benchmarks.token_streams import line, machine
from benchmarks.zero1_peers import variants
from benchmarks.zero1_ranks import EngineFailed, Rank, Ranks
from benchmarks.zero1_rows import ENGINES, Result, Row, rows_of
from benchmarks.zero1_task import Task
from mindllm_engine.models.mindllm import MindLLMConfig

RANKS = 2
PACKAGES = ("torch", "deepspeed", "numpy")
# A hundredth of MindLLM-3B (configs/mindllm_3b.yaml): 30.2 M parameters, of which the embedding is 10.2 %, as there.
NETWORK = MindLLMConfig(vocab_size=6000, hidden_size=512, ffn_size=1280, n_layers=9, n_heads=8, max_seq_len=1024)
TINY = MindLLMConfig(vocab_size=192, hidden_size=64, ffn_size=96, n_layers=3, n_heads=2, max_seq_len=64)


@dataclass(frozen=True)
class Size:
    """How much is measured: tasks with the turns and steps a turn of each, steps to choose variants by, and steps of
    the training loop."""

    tasks: tuple[tuple[Task, int, int], ...]
    warm_up: Task
    steps_to_choose: int
    loop_steps: int


FULL = Size(
    (
        (Task(NETWORK, 1024, 1, torch.bfloat16), 9, 3),
        (Task(NETWORK, 1024, 4, torch.bfloat16), 5, 2),
    ),
    Task(TINY, 64, 1, torch.bfloat16),
    steps_to_choose=2,
    loop_steps=30,
)
TOY = Size(((Task(TINY, 64, 2, torch.float32), 2, 2),), Task(TINY, 64, 2, torch.float32), 1, loop_steps=8)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Bench:
    """One run: starts engines, and keeps what their processes print."""

    def __init__(self, size: Size, log: Path) -> None:
        self.size = size
        self.log = log

    def start(self) -> Ranks:
        return Ranks(RANKS, self.size.warm_up, self.log)

    def choose(self, task: Task) -> dict[str, list[Result]]:
        """The variants of each engine, the fastest first and those that cannot run last; in a toy run, the first."""
        found: dict[str, list[Result]] = {}
        for engine in ENGINES:
            results = [Result(variant) for variant in variants(task) if variant.engine == engine]
            if self.size is TOY:
                found[engine] = results[:1]
                continue
            self.try_variants(task, results)
            found[engine] = sorted(results, key=lambda result: result.step_seconds)
        return found

    def try_variants(self, task: Task, results: list[Result]) -> None:
        """Take a turn of each variant, one after the other in the same processes."""
        ranks: Ranks | None = None
        for result in results:
            ranks = ranks or self.start()
            try:
                ranks.call(Rank.build, result.variant, task)
                result.add_turn(ranks.call(Rank.time, self.size.steps_to_choose))
            except EngineFailed as error:  # its processes may be in any state
                result.reason = str(error)
                ranks.close(failed=True)
                ranks = None
            say(f"  {result.variant.engine}, {result.variant.name}: {result.reason or result.seconds_text}")
        if ranks is not None:
            ranks.close()

    def measure(self, task: Task, turns: int, steps: int, ranked: dict[str, list[Result]]) -> dict[str, Result]:
        """Every engine's fastest variant on a task, in turns."""
        results = {engine: Result(candidates[0].variant) for engine, candidates in ranked.items()}
        running: dict[str, Ranks] = {}
        try:
            for engine, candidates in ranked.items():
                for candidate in candidates:
                    results[engine] = Result(candidate.variant, reason=candidate.reason)
                    if candidate.counts and self.begin(results[engine], task, running):
                        break
            for _ in range(turns):
                for engine, ranks in running.items():
                    attempt(take_turn, results[engine], ranks, steps)
            while running:  # recordings are large: who has been counted makes room
                engine, ranks = next(iter(running.items()))
                attempt(count, results[engine], ranks, steps)
                running.pop(engine).close(failed=results[engine].reason is not None)
        finally:
            for ranks in running.values():
                ranks.close()
        return results

    def begin(self, result: Result, task: Task, running: dict[str, Ranks]) -> bool:
        """Start a variant's processes and add them to `running`; whether they run."""
        ranks = self.start()
        try:
            ranks.call(Rank.build, result.variant, task)
            ranks.call(Rank.time, 1)
        except EngineFailed as error:
            result.reason = str(error)
            ranks.close(failed=True)
            return False
        running[result.variant.engine] = ranks
        return True


def attempt(measure: Callable[[Result, Ranks, int], None], result: Result, ranks: Ranks, steps: int) -> None:
    """Measure an engine that has not failed; one that does is void from here on, with the reason."""
    try:
        if result.reason is None:
            measure(result, ranks, steps)
    except EngineFailed as error:
        result.reason = str(error)


def take_turn(result: Result, ranks: Ranks, steps: int) -> None:
    result.add_turn(ranks.call(Rank.time, steps))


def count(result: Result, ranks: Ranks, steps: int) -> None:
    """What is not time."""
    result.memory = max(ranks.call(Rank.memory), key=lambda memory: memory.peak)
    result.sent = ranks.call(Rank.sent, steps)[0]
    result.messages = ranks.call(Rank.messages)[0]
    by_rank = ranks.call(Rank.loss_of_each_step)
    result.losses = [sum(losses) / RANKS for losses in zip(*by_rank, strict=True)]


def rows(bench: Bench, details: list[dict[str, Any]]) -> Iterator[Row]:
    """Every row of the table; `details` gets what is behind them."""
    ranked: dict[str, list[Result]] = {}
    for task, turns, steps in bench.size.tasks:
        if not ranked:
            say(f"choosing variants: {task.name}")
            ranked = bench.choose(task)
        say(f"measuring: {task.name}")
        results = bench.measure(task, turns, steps, ranked)
        tried = [result.summary() for results_of_engine in ranked.values() for result in results_of_engine]
        measured = {engine: result.detail() for engine, result in results.items()}
        details.append({"task": task.name, "measured": measured, "tried on the first task": tried})
        yield from rows_of(task, results, RANKS)
    say("the loop's own work")
    task = replace(bench.size.tasks[0][0], micro_batches=1)
    yield from in_fresh_process(overhead_rows, task, bench.size.loop_steps)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--toy", action="store_true", help="tiny sizes and one variant each: tests the benchmark")
    arguments = parser.parse_args()
    if 0 < torch.cuda.device_count() < RANKS:
        parser.error(f"needs {RANKS} GPUs, or none (CUDA_VISIBLE_DEVICES= hides those there are)")
    own_network = enter_own_network()
    size = TOY if arguments.toy else FULL
    parameters = size.tasks[0][0].build(torch.device("meta")).num_parameters()
    details: list[dict[str, Any]] = []
    document: dict[str, Any] = {
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else machine(),
        "versions": {"python": sys.version.split()[0]} | {name: version_of(name) for name in PACKAGES},
        "network": f"{parameters:,} parameters, {RANKS} ranks",
        "counted_on": "a network namespace of its own" if own_network else "the machine's loopback interface",
        "rows": [],
        "details": details,
    }
    with tempfile.TemporaryDirectory(prefix="zero1_") as folder:
        log = Path(folder) / "ranks.log"
        try:
            for row in rows(Bench(size, log), details):
                print(line(row), flush=True)
                document["rows"].append(row)
                if arguments.json:  # after each row: a long run that fails leaves what it has
                    arguments.json.write_text(json.dumps(document, indent=1) + "\n")
        except Exception:
            with contextlib.suppress(OSError):
                say(log.read_text()[-4000:])
            raise
    return 0


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())

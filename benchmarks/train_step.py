"""How fast is a whole training step of both networks at real size, and where does its time go? On one GPU.

Forward, backward and optimizer as the training loop does them: bf16 parameters, fp32 main gradients and master weights,
random tokens in packed documents. Reports tokens/s, the model FLOPs utilisation, peak memory, and the device time by
kernel; with the Triton kernels and with the PyTorch references, beside the same sizes in Transformers with Liger and
torch.compile (`train_peers.py`). Results go to `benchmarks/results/<device>/`.

    python benchmarks/train_step.py                            # on a GPU
    TRITON_INTERPRET=1 python benchmarks/train_step.py         # without one: toy sizes, tests the harness

    MFU = tokens/s * FLOPs a token / 989e12, FLOPs a token = 6 N + 12 L D S (PaLM, arXiv 2204.02311, appendix B): N
    parameters of matrices, the tied embedding once; L layers; D hidden size; S the mean over tokens of their document's
    length, at most the window in local layers; the causal mask is not taken off. 989e12: dense bf16 of H100 and H200.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # instead of this folder, whose names others may look for
    sys.path[0] = str(Path(__file__).parent.parent)

import torch
import yaml
from torch import Tensor

from benchmarks import results_files
from benchmarks.breakdown import Breakdown, breakdown_of, plot_breakdowns
from benchmarks.peers import one_line
from benchmarks.results_files import markdown_table, number
from benchmarks.timing import empty_cache, still_works, synchronize
from benchmarks.train_peers import Absent, peer_steps
from mindllm_engine.distributed.backend import DistributedConfig, is_not_finite
from mindllm_engine.distributed.execution_order import definition_order
from mindllm_engine.distributed.process_group import World
from mindllm_engine.distributed.zero1 import Zero1
from mindllm_engine.kernels.backend import KernelChoice, interpreted, select_kernels
from mindllm_engine.models import ModelConfig
from mindllm_engine.models.gpt_neo import GPTNeoConfig
from mindllm_engine.models.mindllm import MindLLMConfig
from mindllm_engine.optim.optimizer import OptimConfig

CONFIGS = Path(__file__).parent.parent / "configs"
PEAK_FLOPS = 989e12
WARMUP_STEPS, TIMED_STEPS, PROFILED_STEPS = 3, 10, 2
BATCHES = 4
SHORTEST_DOCUMENT = 64
LEARNING_RATE = 1e-4
# Where kernels are interpreted, a row takes a millisecond.
TOY: dict[str, Any] = {"hidden_size": 32, "ffn_size": 48, "n_layers": 2, "n_heads": 2, "vocab_size": 96}
TOY_LENGTH = 8


@dataclass(frozen=True)
class Network:
    """A network to train: its name in the tables, its config, and the micro-batches to try, in samples."""

    name: str
    config: MindLLMConfig | GPTNeoConfig
    seq_len: int
    micro_batches: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Packed documents on the device, as the loader gives them; all tensors but the offsets are (tokens,)."""

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    cu_seqlens: Tensor


@dataclass
class StepResult:
    """One implementation's training step of one network."""

    network: str
    implementation: str
    documents: str
    micro_batch: int = 0
    tokens: int = 0
    seconds: float | None = None
    mfu: float | None = None
    memory: int | None = None
    breakdown: Breakdown | None = None
    note: str = ""

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.seconds else None


def networks(toy: bool) -> list[Network]:
    """Both networks from their configs; tiny ones of the same shape where `toy`."""
    found = []
    for name, file, micro_batches in (
        ("3B", "mindllm_3b.yaml", (8, 4, 2, 1)),
        ("1.3B", "mindllm_1.3b_transfer.yaml", (32, 16, 8, 4)),
    ):
        document = yaml.safe_load((CONFIGS / file).read_text())
        model = ModelConfig(
            **{
                key: (MindLLMConfig if key == "mindllm" else GPTNeoConfig)(**sizes)
                for key, sizes in document["model"].items()
            }
        )
        config, length = model.selected, document["data"]["seq_len"]
        if toy:
            config, length, micro_batches = replace(config, max_seq_len=TOY_LENGTH, **TOY), TOY_LENGTH, (2,)
        found.append(Network(name, config, length, micro_batches))
    return found


def make_batch(network: Network, micro_batch: int, mixed: bool, device: torch.device, seed: int) -> Batch:
    """Random tokens; documents of the whole sequence, or of lengths log-uniform from 64 to it, cut at samples' ends."""
    generator = torch.Generator().manual_seed(seed)
    lengths: list[int] = []
    for _ in range(micro_batch):
        left = network.seq_len
        while left:
            length = left
            if mixed:
                shortest = min(SHORTEST_DOCUMENT, network.seq_len)
                exponent = torch.rand((), generator=generator).item()
                length = min(left, round(shortest * (network.seq_len / shortest) ** exponent))
            lengths.append(length)
            left -= length
    tokens = torch.randint(network.config.vocab_size, (sum(lengths) + 1,), generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return Batch(*(x.to(device) for x in (tokens[:-1], tokens[1:], positions, offsets)))


def mean_length(batch: Batch) -> int:
    """The mean over tokens of the length of their document."""
    lengths = batch.cu_seqlens.diff().double()
    return round((lengths.square().sum() / lengths.sum()).item())


def engine_step(network: Network, device: torch.device) -> Callable[[Batch], Any]:
    """A training step of the engine's network with fresh parameters."""
    model = network.config.build(device="meta", dtype=torch.bfloat16).to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, parameter.shape[1] ** -0.5)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    world, config = World(0, 1, 0, device), DistributedConfig()
    backend = Zero1(model, world, OptimConfig(lr=LEARNING_RATE), config, torch.bfloat16, definition_order(model))

    def step(batch: Batch) -> Tensor:
        count = batch.tokens.shape[0]
        losses = model(batch.tokens, batch.positions, batch.cu_seqlens, targets=batch.targets, grad_scale=1 / count)
        backend.backward(losses.sum() / count, last=True)
        sums = torch.stack((losses.detach().sum(), losses.new_tensor(count))).double()
        backend.step(LEARNING_RATE, count, sums, is_not_finite)
        return losses

    return step


def time_steps(
    network: Network, result: StepResult, make_step: Callable[[], Callable[[Batch], Any]], device: torch.device
) -> StepResult:
    """Fill in a result, with the largest micro-batch that fits."""
    for micro_batch in network.micro_batches:
        release(device)
        try:
            time_micro_batch(network, result, micro_batch, make_step(), device)
            return result
        except torch.OutOfMemoryError:
            result.note = f"micro-batch {micro_batch} did not fit"
    return result


def time_micro_batch(
    network: Network, result: StepResult, micro_batch: int, step: Callable[[Batch], Any], device: torch.device
) -> None:
    """Some steps to warm up, some timed, two profiled."""
    real = device.type == "cuda"
    warmup, timed, profiled = (WARMUP_STEPS, TIMED_STEPS, PROFILED_STEPS) if real else (1, 1, 1)
    mixed = result.documents == "mixed"
    batches = [make_batch(network, micro_batch, mixed, device, seed) for seed in range(BATCHES)]

    def steps(count: int) -> None:
        for index in range(count):
            step(batches[index % BATCHES])
        synchronize(device)

    steps(warmup)
    start = time.perf_counter()
    steps(timed)
    result.seconds = (time.perf_counter() - start) / timed
    result.micro_batch, result.tokens = micro_batch, batches[0].tokens.shape[0]
    if real:
        length = round(sum(mean_length(batch) for batch in batches) / len(batches))
        flops = network.config.build(device="meta").flops_per_token(length)
        result.mfu = result.tokens / result.seconds * flops / PEAK_FLOPS
        result.memory = torch.cuda.max_memory_allocated(device)
    if not mixed:
        result.breakdown = breakdown_of(lambda: steps(profiled), profiled, device)


def release(device: torch.device) -> None:
    """Give back the memory of whatever ran before."""
    empty_cache(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


@dataclass
class Job:
    """One thing to time; `run` fills in the result and may raise. `absent`: it cannot run here and says why."""

    result: StepResult
    run: Callable[[], StepResult]
    absent: bool = False


def engine_job(network: Network, kernels: KernelChoice, documents: str, device: torch.device) -> Job:
    """The engine's own step, with the Triton kernels or the references."""
    result = StepResult(network.name, f"engine, kernels: {kernels}", documents)

    def run() -> StepResult:
        choice: KernelChoice = "triton" if kernels == "auto" and device.type != "cuda" and interpreted() else kernels
        select_kernels(choice)
        try:
            return time_steps(network, result, lambda: engine_step(network, device), device)
        finally:
            select_kernels("auto")

    return Job(result, run)


def peer_jobs(network: Network, device: torch.device) -> Iterator[Job]:
    """The same sizes in Transformers, strongest first; absent ones note the reason when they are run."""
    for name, make_step in peer_steps(network.config, device):
        result = StepResult(network.name, name, "whole")

        def run(result: StepResult = result, make_step: Any = make_step) -> StepResult:
            if isinstance(make_step, Absent):
                result.note = make_step.reason
                return result
            time_steps(network, result, make_step, device)
            result.note = "; ".join(part for part in (result.note, make_step.note) if part)
            return result

        yield Job(result, run, isinstance(make_step, Absent))


def jobs(found: list[Network], device: torch.device) -> list[Job]:
    """What to time, what matters most first."""
    peers = [sorted(peer_jobs(network, device), key=lambda job: job.absent) for network in found]
    work = [engine_job(network, "auto", "whole", device) for network in found]
    work += [jobs_of_network[0] for jobs_of_network in peers if jobs_of_network]
    work += [engine_job(network, "reference", "whole", device) for network in found]
    work += [engine_job(network, "auto", "mixed", device) for network in found]
    return work + [job for jobs_of_network in peers for job in jobs_of_network[1:]]


def json_rows(results: list[StepResult], measured: bool) -> list[dict[str, Any]]:
    """The engine beside everything else of its network, tokens/s."""
    rows = []
    for network in dict.fromkeys(result.network for result in results):
        steps = [result for result in results if result.network == network and result.documents == "whole"]
        own = next((result for result in steps if result.implementation == "engine, kernels: auto"), None)
        if own is None:
            continue
        for other in steps:
            if other is own:
                continue
            ours, peer = own.tokens_per_second, other.tokens_per_second
            ratio = ours / peer if measured and ours and peer else None
            rows.append(
                {
                    "name": f"training step of {network}",
                    "unit": "tokens/s",
                    "ours": ours if measured else None,
                    "peer": peer if measured else None,
                    "peer_name": other.implementation,
                    "ratio": ratio,
                    "bar": 1.0,
                    "holds": None if ratio is None else ratio >= 1.0,
                    "reason": other.note if measured else "no GPU",
                }
            )
    return rows


def report(results: list[StepResult], left_out: list[str], device: torch.device) -> str:
    """The Markdown of a run."""
    measured = device.type == "cuda"
    parts = [f"# Training step on {results_files.device_name(device)}", "Made by `python benchmarks/train_step.py`."]
    if not measured:
        parts.append(f"**{results_files.NO_GPU}**")
    parts.append(", ".join(f"{name} {version}" for name, version in results_files.version_lines(device).items()) + ".")
    parts.append("```\n" + (__doc__ or "").split("\n\n")[-1].strip("\n") + "\n```")
    header = ("network", "implementation", "documents", "samples", "tokens", "ms", "tokens/s", "MFU %", "GiB", "note")
    rows = (
        (
            r.network,
            r.implementation,
            r.documents,
            str(r.micro_batch or "-"),
            str(r.tokens or "-"),
            number(r.seconds, 1e3, 4),
            number(r.tokens_per_second, 1.0, 4),
            number(r.mfu, 100.0),
            number(r.memory, 2**-30, 4),
            r.note,
        )
        for r in results
    )
    parts.append(markdown_table(header, rows))
    for result in results:
        if result.breakdown is not None:
            parts += [f"## {result.network}, {result.implementation}", result.breakdown.table()]
    parts += ["## Left out", "\n".join(f"- {line}" for line in left_out) or "None."]
    return "\n\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="the networks whose name begins with this")
    parser.add_argument("--output", type=Path, help="folder of the results")
    parser.add_argument("--budget-minutes", type=float, default=2.7, help="begin nothing new after so many minutes")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    arguments = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = arguments.output or results_files.results_folder(device)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    found = [n for n in networks(toy=device.type != "cuda") if n.name.startswith(arguments.only)]
    results: list[StepResult] = []
    left_out: list[str] = []
    failed, works = False, True
    for job in jobs(found, device):
        name = f"{job.result.network}, {job.result.implementation}, {job.result.documents} documents"
        if time.monotonic() - start > 60 * arguments.budget_minutes:
            left_out.append(f"{name}: the time budget was spent")
            continue
        if not works:
            left_out.append(f"{name}: the GPU had failed")
            continue
        try:
            results.append(job.run())
        except Exception as error:  # one that cannot run must not cost the others; only our own is a failure
            failed |= job.result.implementation.startswith("engine")
            job.result.note = one_line(error)
            results.append(job.result)
        works = still_works(device)
        seen = results[-1]
        rate, mfu = number(seen.tokens_per_second, 1.0, 5), number(seen.mfu, 100.0)
        print(f"[{time.monotonic() - start:5.0f} s] {name}: {rate} tokens/s, MFU {mfu} %; {seen.note}", flush=True)
        (folder / "train_step.md").write_text(report(results, left_out, device))
        results_files.write_json(folder / "train_step.json", device, json_rows(results, device.type == "cuda"))
    (folder / "train_step.md").write_text(report(results, left_out, device))
    rows = json_rows(results, device.type == "cuda") if results else []
    results_files.write_json(folder / "train_step.json", device, rows)
    if arguments.json:
        results_files.write_json(arguments.json, device, rows)
    bars = {f"{r.network}\n{r.implementation}": r.breakdown for r in results if r.breakdown is not None}
    plot_breakdowns(folder / "train_step.png", bars, device.type == "cuda")
    print(report(results, left_out, device))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""What each rank of tests/distributed/test_deepspeed_backend.py runs, and the training that it shares with the oracle
there: `python -m tests.distributed.deepspeed_worker FOLDER CASE...`, with or without torchrun."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mindllm_engine.distributed.backend import DistributedConfig, StepGuard, is_not_finite
from mindllm_engine.distributed.deepspeed_backend import DeepSpeedZero1
from mindllm_engine.distributed.process_group import World, start_processes, stop_processes
from mindllm_engine.models.gpt_neo import GPTNeoConfig
from mindllm_engine.models.mindllm import MindLLMConfig
from mindllm_engine.models.minicpm import MiniCPMConfig
from mindllm_engine.optim.optimizer import OptimConfig
from tests.models.packing import pack

VOCAB = 97
STEPS = 50
NETWORKS = {
    "mindllm": MindLLMConfig(vocab_size=VOCAB, hidden_size=32, ffn_size=48, n_layers=2, n_heads=2, max_seq_len=32),
    "gpt_neo": GPTNeoConfig(vocab_size=VOCAB, hidden_size=32, ffn_size=64, n_layers=2, n_heads=2, max_seq_len=32),
    "minicpm": MiniCPMConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        ffn_size=48,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        max_seq_len=32,
        width_base=8,
        init_std=0.1,
    ),
}
# Of the learning rate of MiniCPM's matrices in layers, which are four times as wide as its base.
MATRIX_LR_SCALE = {"mindllm": 1.0, "gpt_neo": 1.0, "minicpm": 0.25}
OPTIM = OptimConfig(lr=3e-3, weight_decay=0.1, clip_grad_norm=0.5)
OFFLOAD = {"stage": 1, "offload_optimizer": {"device": "cpu"}}


@dataclass(frozen=True)
class Case:
    """One training run.

    Attributes:
        first, stop: its steps, of `STEPS`.
        source: case and number of ranks whose saved state it goes on from.
        refuse: the step that the guard refuses.
        spoil: the step in which a gradient of the last rank is not finite.
        options: `zero_optimization` of a DeepSpeed configuration.
        ranks: that it runs on.
        micro_batches: in a global batch; the ranks share them evenly.
    """

    network: Literal["mindllm", "gpt_neo", "minicpm"] = "mindllm"
    dtype: torch.dtype = torch.float32
    wire: torch.dtype = torch.float32
    first: int = 0
    stop: int = STEPS
    source: tuple[str, int] | None = None
    bucket_elements: int = 1 << 25
    refuse: int | None = None
    spoil: int | None = None
    options: dict[str, Any] | None = None
    ranks: int = 2
    micro_batches: int = 4

    def model(self) -> nn.Module:
        return NETWORKS[self.network].build(dtype=self.dtype, seed=1)


BF16 = torch.bfloat16
CASES = {
    "mindllm": Case(),
    "gpt_neo": Case("gpt_neo"),
    "minicpm": Case("minicpm"),
    "mindllm_bf16": Case(dtype=BF16),
    "gpt_neo_bf16": Case("gpt_neo", dtype=BF16),
    "bf16_wire": Case(dtype=BF16, wire=BF16, stop=12),
    "small_buckets": Case(stop=5, bucket_elements=1000),
    "overlap": Case(stop=5, options={"overlap_comm": True}),
    "skips": Case(stop=12, refuse=3, spoil=6),
    "skips_bf16": Case(dtype=BF16, stop=12, refuse=3, spoil=6),
    "offload": Case(stop=12, refuse=3, spoil=6, options=OFFLOAD),
    "offload_bf16": Case(dtype=BF16, stop=12, refuse=3, spoil=6, options=OFFLOAD),
    "mindllm_1": Case(ranks=1),
    "gpt_neo_1": Case("gpt_neo", ranks=1),
    "minicpm_1": Case("minicpm", ranks=1),
    "mindllm_3": Case(ranks=3, micro_batches=6),
    "gpt_neo_3": Case("gpt_neo", ranks=3, micro_batches=6),
    "mindllm_bf16_3": Case(dtype=BF16, stop=12, ranks=3, micro_batches=6),
    "mindllm_4": Case(ranks=4),
    "gpt_neo_4": Case("gpt_neo", ranks=4),
    "gpt_neo_bf16_4": Case("gpt_neo", dtype=BF16, stop=12, ranks=4),
    # One after the other; the figures are ranks.
    "part_1": Case(stop=8),
    "part_2": Case(first=8, stop=12, source=("part_1", 2), ranks=1),
    "part_3": Case(first=12, stop=16, source=("part_2", 1), options=OFFLOAD),
    "bf16_part_1": Case(dtype=BF16, stop=8),
    "bf16_part_2": Case(dtype=BF16, first=8, stop=12, source=("bf16_part_1", 2), options=OFFLOAD, ranks=1),
    "bf16_part_3": Case(dtype=BF16, first=12, stop=16, source=("bf16_part_2", 1)),
}


def global_batch(step: int, micro_batches: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The micro-batches of a step, with very different numbers of tokens and of supervised ones."""
    batches = []
    for number in range(micro_batches):
        lengths = [5 + 3 * number, 12 - number, 7]
        tokens, positions, cu_seqlens, _ = pack(lengths, VOCAB, seed=100 * step + number)
        targets = (tokens * 3 + 1) % VOCAB  # something to learn
        targets[: 6 * ((step + number) % 4)] = -100
        batches.append((tokens, positions, cu_seqlens, targets))
    return batches


def learning_rate(step: int) -> float:
    return OPTIM.lr * (step + 1) / STEPS


def train(case: Case, backend: DeepSpeedZero1, model: nn.Module, world: World) -> Iterator[dict[str, Any]]:
    """The loop, as training/loop.py has it."""
    for step in range(case.first, case.stop):
        batches = global_batch(step, case.micro_batches)
        batch_tokens = sum(len(tokens) for tokens, *_ in batches)
        own = batches[world.rank :: world.world_size]
        sums = torch.zeros(2, dtype=torch.float64)
        for number, (tokens, positions, cu_seqlens, targets) in enumerate(own, start=1):
            losses = model(tokens, positions, cu_seqlens, targets=targets, grad_scale=1 / batch_tokens)
            sums += torch.stack((losses.detach().double().sum(), (targets >= 0).double().sum()))
            loss = losses.sum() / batch_tokens
            if case.spoil == step and number == 1 and world.rank == world.world_size - 1:
                loss = loss + torch.inf * sum(p.sum() for p in model.parameters()) * 0
            backend.backward(loss, last=number == len(own))
        guard: StepGuard = refuse if case.refuse == step else is_not_finite
        result = backend.step(learning_rate(step), batch_tokens, sums, guard)
        backend.wait_for_parameters()
        yield {"loss": result.loss.item(), "grad_norm": result.grad_norm.item(), "skipped": result.skipped.item()}


def refuse(loss: Tensor, grad_norm: Tensor) -> Tensor:
    return loss.isfinite()


def make_backend(case: Case, model: nn.Module, world: World, folder: Path) -> DeepSpeedZero1:
    config = DistributedConfig(backend="deepspeed", bucket_elements=case.bucket_elements)
    if case.options is not None:
        path = folder / f"options_{world.rank}.json"
        path.write_text(json.dumps({"zero_optimization": case.options}))
        config.deepspeed_config = str(path)
    return DeepSpeedZero1(model, world, OPTIM, config, case.wire)


def whole_state(folder: Path, name: str, ranks: int) -> dict[tuple[str, str], Tensor]:
    """(kind, parameter) -> optimizer state, put together from what the ranks of a case saved. NaN where none did."""
    whole: dict[tuple[str, str], Tensor] = {}
    for rank in range(ranks):
        saved = torch.load(folder / f"{name}_{rank}.pt")
        for kind, tensors in saved["state"].items():
            for (parameter, shape, first, stop, _), tensor in zip(saved["pieces"], tensors, strict=True):
                flat = whole.setdefault((kind, parameter), torch.full(shape, torch.nan)).view(-1)
                assert flat[first:stop].isnan().all(), f"{parameter} [{first}, {stop}) is held twice"
                flat[first:stop] = tensor
    return whole


def main(folder: Path, names: list[str]) -> None:
    world = start_processes()
    for name in names:
        case = CASES[name]
        model = case.model()
        if not world.is_first:  # rank 0's are to be sent to all
            with torch.no_grad():
                next(model.parameters()).zero_()
        backend = make_backend(case, model, world, folder)
        if case.source is not None:
            whole = whole_state(folder, *case.source)
            state: Any = {
                kind: [whole[kind, p.name].view(-1)[p.first : p.stop] for p in backend.pieces()]
                for kind in ("master", "m", "v")
            }
            backend.write_state(state, updates=case.first)
            loaded = {kind: [x.clone() for x in tensors] for kind, tensors in backend.read_state().items()}
            assert all(torch.equal(x, y) for kind in state for x, y in zip(loaded[kind], state[kind], strict=True))
        begun_with = {name: p.detach().clone() for name, p in model.named_parameters()}
        records = list(train(case, backend, model, world))
        assert backend.updates == case.stop
        torch.save(
            {
                "records": records,
                "pieces": [(p.name, p.shape, p.first, p.stop, p.flat) for p in backend.pieces()],
                "state": {kind: [x.clone() for x in tensors] for kind, tensors in backend.read_state().items()},
                "begun_with": begun_with,
                "parameters": {name: p.detach().clone() for name, p in model.named_parameters()},
            },
            folder / f"{name}_{world.rank}.pt",
        )
    stop_processes()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""A few networks, batches and training steps, with ZeRO-1 on any number of ranks and in plain torch on one."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mindllm_engine.distributed.backend import DistributedConfig, is_not_finite
from mindllm_engine.distributed.execution_order import record_execution_order
from mindllm_engine.distributed.process_group import World
from mindllm_engine.distributed.zero1 import Zero1
from mindllm_engine.models.gpt_neo import GPTNeoConfig
from mindllm_engine.models.mindllm import MindLLMConfig
from mindllm_engine.models.minicpm import MiniCPMConfig
from mindllm_engine.optim.optimizer import OptimConfig

VOCAB = 101
NETWORKS: dict[str, Any] = {
    "mindllm": MindLLMConfig(VOCAB, hidden_size=32, ffn_size=48, n_layers=3, n_heads=2, max_seq_len=24),
    "gpt_neo": GPTNeoConfig(VOCAB, hidden_size=32, ffn_size=64, n_layers=3, n_heads=2, max_seq_len=24, window_size=6),
    "minicpm": MiniCPMConfig(
        VOCAB,
        hidden_size=32,
        ffn_size=48,
        n_layers=3,
        n_heads=4,
        n_kv_heads=2,
        max_seq_len=24,
        scale_emb=3.0,
        scale_depth=1.4,
        width_base=8,
        init_std=0.1,
    ),
}
# Of the learning rate of the layers' matrices: MiniCPM's are four times as wide as its base.
MATRIX_LR_SCALE = {"mindllm": 1.0, "gpt_neo": 1.0, "minicpm": 0.25}
MICRO_BATCHES = 12  # a step; 1, 2, 3 and 4 ranks share them evenly
OPTIM = OptimConfig(lr=3e-3)


def micro_batch(step: int, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Packed documents of uneven lengths, with an uneven number of ignored targets: tokens, targets, positions,
    cu_seqlens. Tokens count upwards, so that there is something to learn."""
    generator = torch.Generator().manual_seed(1000 * step + number)
    lengths = torch.randint(2, 20, (1 + number % 3,), generator=generator)
    starts = torch.randint(0, VOCAB, (len(lengths),), generator=generator)
    tokens = torch.cat([(start + torch.arange(n + 1)) % VOCAB for start, n in zip(starts, lengths, strict=True)])
    keep = torch.ones(len(tokens), dtype=torch.bool)
    keep[(lengths + 1).cumsum(0) - 1] = False  # the last token of a document is a target only
    targets = tokens.roll(-1)[keep].clone()
    targets[torch.rand(len(targets), generator=generator) < 0.1 * (number % 4)] = -100
    positions = torch.cat([torch.arange(int(n)) for n in lengths])
    offsets = torch.cat((torch.zeros(1, dtype=torch.long), lengths.cumsum(0))).to(torch.int32)
    return tokens[keep], targets, positions, offsets


def zero1(
    model: nn.Module, world: World, wire: torch.dtype = torch.float32, optim: OptimConfig = OPTIM, **config: Any
) -> Zero1:
    """Over many small buckets, in the recorded order."""
    tokens, targets, positions, offsets = micro_batch(0, world.rank)
    order = record_execution_order(model, lambda: model(tokens, positions, offsets, targets=targets).sum())
    return Zero1(model, world, optim, DistributedConfig(**{"bucket_elements": 3000} | config), wire, order)


def zero1_step(model: nn.Module, backend: Any, world: World, step: int, lr: float = 3e-3) -> tuple[float, float]:
    """One step over all micro-batches, of which this rank takes its share; loss and gradient norm."""
    batch_tokens = 100 * MICRO_BATCHES
    mine = range(world.rank, MICRO_BATCHES, world.world_size)
    sums = torch.zeros(2, dtype=torch.float64)
    for number in mine:
        tokens, targets, positions, offsets = micro_batch(step, number)
        losses = model(tokens, positions, offsets, targets=targets, grad_scale=1 / batch_tokens)
        sums += torch.stack((losses.detach().double().sum(), (targets != -100).double().sum()))
        backend.backward(losses.sum() / batch_tokens, last=number == mine[-1])
    result = backend.step(lr, batch_tokens, sums, is_not_finite)
    return result.loss.item(), result.grad_norm.item()


def plain_steps(
    network: str, steps: int, dtype: torch.dtype, clip: float = OPTIM.clip_grad_norm
) -> list[tuple[float, float]]:
    """The same with torch's operators and AdamW in one process, all micro-batches in one batch. In bf16, the network
    computes with rounded copies of the fp32 weights that AdamW updates."""
    masters = NETWORKS[network].build(dtype=dtype, seed=1).float()
    model = NETWORKS[network].build(dtype=dtype, seed=1)
    lr, matrix_lr = 3e-3, 3e-3 * MATRIX_LR_SCALE[network]
    outside = [p for name, p in masters.named_parameters() if p.dim() >= 2 and not name.startswith("layers.")]
    inside = [p for name, p in masters.named_parameters() if p.dim() >= 2 and name.startswith("layers.")]
    groups = [
        {"params": outside, "weight_decay": OPTIM.weight_decay, "lr": lr},
        {"params": inside, "weight_decay": OPTIM.weight_decay, "lr": matrix_lr},
        {"params": [p for p in masters.parameters() if p.dim() < 2], "weight_decay": 0.0, "lr": lr},
    ]
    optimizer = torch.optim.AdamW(groups, betas=OPTIM.betas, eps=OPTIM.eps)
    found = []
    for step in range(steps):
        batches = [micro_batch(step, number) for number in range(MICRO_BATCHES)]
        supervised = sum(int((targets != -100).sum()) for _, targets, _, _ in batches)
        nats = 0.0
        for master in masters.parameters():
            master.grad = torch.zeros_like(master)
        for tokens, targets, positions, offsets in batches:
            logits = model(tokens, positions, offsets).float()
            loss = F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
            nats += loss.item()
            gradients = torch.autograd.grad(loss / supervised, list(model.parameters()))
            for master, gradient in zip(masters.parameters(), gradients, strict=True):
                assert master.grad is not None
                master.grad += gradient
        norm = torch.nn.utils.clip_grad_norm_(masters.parameters(), clip)
        optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(model.parameters(), masters.parameters(), strict=True):
                parameter.copy_(master)
        found.append((nats / supervised, norm.item()))
    return found

"""The output projection and its cross-entropy, without ever holding the logits of all tokens.

Traffic: of `tokens * vocab` logits only one chunk exists at a time, in one scratch buffer that the gradient overwrites.
What bounds it: three GEMMs of `2 * tokens * hidden * vocab` operations, and on a CPU two passes of exponentials beside
them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mindllm_engine.kernels.cross_entropy import cross_entropy
from mindllm_engine.kernels.reference import accumulate_, row_blocks, statistics_dtype

# Bytes of logits in a chunk. Larger chunks pass over dweight less often, smaller ones stay in the last cache: on a CPU
# 32 MiB (1,024 tokens of 16,384 in bf16) measured best; on a GPU it is the chunks of several thousand tokens that win.
CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 1 << 30}
# Bytes of fp32 scratch in which a bf16 chunk's softmax is taken, a few rows at a time.
SOFTMAX_BYTES = {"cpu": 2 << 20, "cuda": 1 << 30}
# Above this loss the target's fp32 probability underflows, and the loss is taken from the logits once more.
LARGEST_EXACT_LOSS = 80.0


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Losses of single tokens, `cross_entropy(hidden @ weight.T, targets)`.

    `hidden` is (T, D), `weight` (V, D) of the same dtype, `targets` (T,) integers in [0, V) or `ignore_index`. Returns
    (T,) in fp32 (fp64 for fp64 inputs), 0 where the target is `ignore_index`. The logits of bf16 inputs are rounded to
    bf16 by the GEMM; the softmax over them is taken in fp32, and dweight is summed in fp32.

    The gradients are made in the forward, for an upstream gradient of one, and scaled in the backward. Where the
    upstream gradients of the tokens differ from each other (a weighted loss), the backward computes them again.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        raise ValueError(
            "linear_cross_entropy needs hidden (T, D), weight (V, D) and targets (T,), "
            f"got {tuple(hidden.shape)}, {tuple(weight.shape)} and {tuple(targets.shape)}"
        )
    needs_gradients = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _LinearCrossEntropy.apply(hidden, weight, targets, ignore_index, needs_gradients)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, needs_gradients: bool
    ) -> Tensor:
        upstream = (targets != ignore_index).to(statistics_dtype(hidden.dtype)) if needs_gradients else None
        losses, grad_hidden, grad_weight = _losses_and_gradients(hidden, weight, targets, ignore_index, upstream)
        ctx.ignore_index = ignore_index
        ctx.save_for_backward(hidden, weight, targets, grad_hidden, grad_weight)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, grad_hidden, grad_weight = ctx.saved_tensors
        valid = targets != ctx.ignore_index
        used = upstream[valid]
        if used.numel() and not bool((used == used[0]).all()):
            _, grad_hidden, grad_weight = _losses_and_gradients(
                hidden, weight, targets, ctx.ignore_index, upstream * valid
            )
            return grad_hidden, grad_weight.to(weight.dtype), None, None, None  # type: ignore[union-attr]
        factor = used[0] if used.numel() else upstream.new_zeros(())
        scaled_weight = torch.mul(grad_weight, factor, out=torch.empty_like(weight))  # fp32 to bf16 in one pass
        return (grad_hidden * factor).to(hidden.dtype), scaled_weight, None, None, None


def _losses_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, upstream: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Losses (T,), and where `upstream` (T,) is given (0 at ignored tokens) the gradients (T, D) and (V, D)."""
    (tokens, width), vocab = hidden.shape, weight.shape[0]
    wide = statistics_dtype(hidden.dtype)
    device = hidden.device
    ignored = targets == ignore_index
    labels = targets.masked_fill(ignored, 0).unsqueeze(1)  # (T, 1)
    losses = torch.empty(tokens, dtype=wide, device=device)
    chunk = _rows_within(CHUNK_BYTES, vocab, hidden)
    logits_scratch = torch.empty(min(chunk, tokens), vocab, dtype=hidden.dtype, device=device)
    grad_hidden = grad_weight = chunk_grad_weight = None
    if upstream is not None:
        grad_hidden = torch.empty(tokens, width, dtype=hidden.dtype, device=device)
        grad_weight = torch.zeros(vocab, width, dtype=wide, device=device)
        chunk_grad_weight = torch.empty(vocab, width, dtype=hidden.dtype, device=device)

    for part in row_blocks(tokens, chunk):
        logits = logits_scratch[: part.stop - part.start]  # (chunk, V)
        torch.mm(hidden[part], weight.t(), out=logits)
        losses[part] = _softmax_in_place(logits, labels[part], wide).log_().neg_()
        far = losses[part] > LARGEST_EXACT_LOSS
        if bool(far.any()):
            losses[part][far] = cross_entropy(hidden[part][far] @ weight.t(), labels[part][far].squeeze(1))
        if upstream is None or grad_hidden is None or grad_weight is None or chunk_grad_weight is None:
            continue
        # The chunk now holds probabilities p. dlogits = upstream * (p - onehot): the one-hot part touches one entry a
        # row, in fp32 before it is rounded, and the factor goes onto the narrow sides of the two products.
        rows = torch.arange(logits.shape[0], device=device)
        logits[rows, labels[part].squeeze(1)] = torch.expm1(-losses[part]).to(logits.dtype)  # scatter_ copies it all
        scale = upstream[part].unsqueeze(1)  # (chunk, 1)
        torch.mul(torch.mm(logits, weight), scale, out=grad_hidden[part])
        torch.mm(logits.t(), (hidden[part] * scale).to(hidden.dtype), out=chunk_grad_weight)
        accumulate_(grad_weight, chunk_grad_weight)
    return losses.masked_fill_(ignored, 0), grad_hidden, grad_weight


def _softmax_in_place(logits: Tensor, labels: Tensor, wide: torch.dtype) -> Tensor:
    """Overwrite `logits` (rows, V) with its softmax, taken in `wide`; returns the probabilities (rows,) of `labels`."""
    chosen = torch.empty(logits.shape[0], dtype=wide, device=logits.device)
    block = min(_rows_within(SOFTMAX_BYTES, logits.shape[1], chosen), logits.shape[0])
    scratch = None if logits.dtype == wide else torch.empty(block, logits.shape[1], dtype=wide, device=logits.device)
    for part in row_blocks(logits.shape[0], block):
        rows = logits[part]
        probabilities = rows if scratch is None else scratch[: rows.shape[0]]
        if scratch is not None:
            probabilities.copy_(rows)
        torch.softmax(probabilities, dim=1, out=probabilities)
        chosen[part] = probabilities.gather(1, labels[part]).squeeze(1)
        if scratch is not None:
            rows.copy_(probabilities)
    return chosen


def _rows_within(budget: dict[str, int], vocab: int, like: Tensor) -> int:
    """How many rows of `vocab` elements of `like`'s dtype fit into the budget of its device."""
    return max(1, budget.get(like.device.type, budget["cpu"]) // (vocab * like.element_size()))

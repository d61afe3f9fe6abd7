"""The output projection and its cross-entropy, without ever holding the logits of all tokens.

Three GEMMs of `2 * tokens * hidden * vocab` operations bound it. The tokens are taken in chunks: one GEMM writes the
chunk's logits into a scratch, a kernel (`cross_entropy.py`) turns them in place into the losses' gradients, two GEMMs
make of these the chunk's rows of dhidden and its share of dweight, which is summed in fp32. So the gradients are made
in the forward, for an upstream gradient of one, and the backward scales them.

Bytes beside the GEMMs, in bf16: 6 a logit for the kernel in between (it reads the chunk twice, the second time mostly
from the L2 cache, and writes it), and 8 an element of weight and chunk for adding to dweight. At 16,384 tokens, a
vocabulary of 125,700 and a hidden size of 2,560, for an H200 that moves 4.3 TB/s and computes 750 TFLOP/s:

    rows a chunk                                    768     1024     1664     2048     3328     4096
    scratch, of the bf16 logits                   4.7 %    6.2 %   10.2 %   12.5 %   20.3 %   25.0 %
    the sum of dweight, ms of traffic              13.2      9.6      6.0      4.8      3.0      2.4
    the same of one chunk, ms                      0.60     0.60     0.60     0.60     0.60     0.60
    dweight's GEMM of one chunk, ms                0.66     0.88     1.43     1.76     2.86     3.51
    tiles of dhidden, 128 x 256                      60       80      130      160      260      320
    tiles of dhidden, 128 x 128                     120      160      260      320      520      640

against 42.2 ms for the three GEMMs of all tokens and 1.9 ms for the kernel (2.9 where L2 keeps nothing); 132 tiles run
at once. Small chunks are bounded by the sum of dweight where its GEMM does not hide it, large ones cost memory. A chunk
is a twentieth of the batch, and not under 768 rows, below which the sum takes longer than the GEMM. Both numbers follow
from this arithmetic, not from a measurement: how much the GEMM hides is what a GPU must tell.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mindllm_engine.kernels.backend import use_triton
from mindllm_engine.kernels.cross_entropy import check_targets, cross_entropy, launch_losses
from mindllm_engine.kernels.operator import Operator, differentiable
from mindllm_engine.kernels.reference import accumulate_, row_blocks, statistics_dtype
from mindllm_engine.kernels.rows import as_rows, main_grad

# Rows of a chunk: the share of the batch, in whole GEMM tiles, but not fewer than the smallest chunk.
CHUNK_SHARE = 20
CHUNK_TILE = 256
SMALLEST_CHUNK = 768
# The scratch's rows begin on multiples of 128 bytes: vectors of 128 bits, and the GEMMs' copy engine, need multiples of
# 16, and rows of 125,700 bf16 logits would begin on multiples of 8.
ROW_ELEMENTS = 64
# How far the upstream gradient may be from the one that was promised, as a share of it.
PROMISE_TOLERANCE = 1e-5

# The reference on a CPU. Bytes of logits in a chunk: larger chunks pass over dweight less often, smaller ones stay in
# the last cache; 32 MiB (1,024 tokens of 16,384 in bf16) measured best.
CPU_CHUNK_BYTES = 32 << 20
# Bytes of fp32 scratch in which a bf16 chunk's softmax is taken, a few rows at a time.
CPU_SOFTMAX_BYTES = 2 << 20
# Above this loss the target's fp32 probability underflows, and the loss is taken from the logits once more.
LARGEST_EXACT_LOSS = 80.0


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int = -100,
    *,
    z_loss: float = 0.0,
    grad_scale: float | None = None,
) -> Tensor:
    """Losses of single tokens, `cross_entropy(hidden @ weight.T, targets)`. The kernels never wait for the device.

    The logits of bf16 inputs are rounded to bf16 by the GEMM; the softmax over them is taken in fp32, and dweight is
    summed in fp32. Under autocast both matrices are cast as `F.linear` would.

    The gradients come from the forward where all tokens have the same upstream gradient, which is told by its stride of
    0: `losses.sum()`, times or divided by anything. Any other upstream gradient (weighted losses, and `losses.mean()`,
    whose gradient torch writes out) is as exact, but dweight is then computed once more, by two further GEMMs.

    Args:
        hidden: (T, D).
        weight: (V, D), of the same dtype. Where it carries a `main_grad` (fp32), the kernels add to that and return no
            gradient for it.
        targets: (T,) integers in [0, V), or `ignore_index` where there is no loss. Another number is an error: the
            kernels make the loss and its gradients NaN, the reference raises IndexError.
        z_loss: adds `z_loss * logsumexp(logits)^2` to each loss (PaLM, arXiv 2204.02311, section 5).
        grad_scale: a promise that one backward will follow in which every token's upstream gradient is this number.
            The kernels then add to `weight.main_grad` in the forward, and hold no dweight of their own. Backward
            checks it, on the device; under activation checkpointing, which runs a forward twice, it must not be given.

    Returns (T,) in fp32 (fp64 for fp64 inputs), 0 where the target is `ignore_index`.

    Raises:
        ValueError: shapes or dtypes do not match.
        RuntimeError: in backward, where the promise was broken; on a GPU when the device comes to check it.
    """
    _check(hidden, weight, targets)
    into = main_grad(weight)
    hidden, weight = _cast_for_autocast(hidden), _cast_for_autocast(weight)
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden and weight must have the same dtype, got {hidden.dtype} and {weight.dtype}")
    recording = torch.is_grad_enabled()
    wanted = recording and hidden.requires_grad, recording and weight.requires_grad
    if not use_triton(hidden):
        return _Reference.apply(hidden, weight, targets, ignore_index, z_loss, any(wanted), wanted[1])
    if into is not None and grad_scale is not None and wanted[1]:
        return _apply_promised(hidden, weight, targets, ignore_index, z_loss, grad_scale, into)
    return _apply_linear_cross_entropy(hidden, weight, targets, ignore_index, z_loss, *wanted, into)


def _check(hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        raise ValueError(
            "linear_cross_entropy needs hidden (T, D), weight (V, D) and targets (T,), "
            f"got {tuple(hidden.shape)}, {tuple(weight.shape)} and {tuple(targets.shape)}"
        )
    check_targets(targets)


def _cast_for_autocast(x: Tensor) -> Tensor:
    """Autocast leaves fp64 as it is."""
    device = x.device.type
    if x.dtype == torch.float64 or device == "meta" or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        ignore_index: int,
        z_loss: float,
        wants_hidden: bool,
        wants_weight: bool,
        into: Tensor | None,
    ) -> Tensor:
        losses, grad_hidden, grad_weight = _forward_operator(
            hidden, weight, targets, ignore_index, z_loss, wants_hidden, wants_weight
        )
        if wants_hidden or wants_weight:
            ctx.save_for_backward(hidden, weight, targets, grad_hidden, grad_weight)
        ctx.options, ctx.wanted, ctx.into = (ignore_index, z_loss), (wants_hidden, wants_weight), into
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, unit_hidden, unit_weight = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.wanted
        if ctx.into is not None and wants_weight:
            _add_weight_gradient(upstream, hidden, weight, targets, unit_weight, ctx.into, *ctx.options)
            wants_weight, unit_weight = False, hidden.new_empty(0)
        grad_hidden, grad_weight = _backward_operator(
            upstream, hidden, weight, targets, unit_hidden, unit_weight, *ctx.options
        )
        return grad_hidden if wants_hidden else None, grad_weight if wants_weight else None, *[None] * 6


class _PromisedLinearCrossEntropy(torch.autograd.Function):
    """With the weight's gradient already where it belongs when the forward returns."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        ignore_index: int,
        z_loss: float,
        grad_scale: float,
        into: Tensor,
    ) -> Tensor:
        losses, grad_hidden, _ = _allocate_forward(hidden, weight, targets, ignore_index, z_loss, True, False)
        _run_chunks(hidden, weight, targets, ignore_index, z_loss, losses, grad_hidden, into, hidden, grad_scale)
        ctx.save_for_backward(grad_hidden)
        ctx.grad_scale, ctx.kept = grad_scale, False
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad_hidden,) = ctx.saved_tensors
        if ctx.kept:
            raise RuntimeError("linear_cross_entropy was promised one backward and got a second: leave out grad_scale")
        ctx.kept = True
        _check_promise(upstream, ctx.grad_scale)
        return _scale_rows(grad_hidden, upstream), *[None] * 6


_apply_linear_cross_entropy = differentiable(_LinearCrossEntropy)
_apply_promised = differentiable(_PromisedLinearCrossEntropy)


def _check_promise(upstream: Tensor, grad_scale: float) -> None:
    if upstream.numel() == 0:
        return
    if not _is_uniform(upstream):
        raise RuntimeError(
            f"linear_cross_entropy was promised an upstream gradient of {grad_scale} for every token and got one that "
            "differs from token to token: do not give grad_scale"
        )
    kept = (upstream[0] - grad_scale).abs() <= PROMISE_TOLERANCE * abs(grad_scale)
    torch._assert_async(kept, f"linear_cross_entropy was promised an upstream gradient of {grad_scale}, got another")


def _is_uniform(upstream: Tensor) -> bool:
    """Whether all tokens are seen to share one number, without looking at it."""
    return upstream.numel() <= 1 or upstream.stride(0) == 0


def _run_forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    z_loss: float,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    losses, grad_hidden, grad_weight = _allocate_forward(
        hidden, weight, targets, ignore_index, z_loss, wants_hidden, wants_weight
    )
    _run_chunks(
        hidden,
        weight,
        targets,
        ignore_index,
        z_loss,
        losses,
        grad_hidden if wants_hidden else None,
        grad_weight.zero_() if wants_weight else None,
        hidden,
    )
    return losses, grad_hidden, grad_weight


def _allocate_forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    z_loss: float,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, dhidden, and dweight in fp32 (fp64); what is not wanted has no elements."""
    wide = statistics_dtype(hidden.dtype)
    device = hidden.device
    losses = torch.empty(hidden.shape[0], dtype=wide, device=device)
    grad_hidden = torch.empty(hidden.shape if wants_hidden else 0, dtype=hidden.dtype, device=device)
    return losses, grad_hidden, torch.empty(weight.shape if wants_weight else 0, dtype=wide, device=device)


def scratch_shape(tokens: int, vocab: int) -> tuple[int, int]:
    """Rows and columns of the kernels' scratch: the logits of a chunk, in the dtype of `hidden`."""
    chunk = max(SMALLEST_CHUNK, tokens // CHUNK_SHARE // CHUNK_TILE * CHUNK_TILE)
    return min(chunk, tokens), -(-vocab // ROW_ELEMENTS) * ROW_ELEMENTS


def _run_chunks(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    z_loss: float,
    losses: Tensor,
    grad_hidden: Tensor | None,
    grad_weight: Tensor | None,
    weighted_hidden: Tensor,
    grad_scale: float = 1.0,
) -> None:
    """Write `losses` (T,) and `grad_hidden` (T, D); add `grad_scale * dlogits.T @ weighted_hidden` to `grad_weight`."""
    hidden, weight, weighted_hidden = as_rows(hidden), as_rows(weight), as_rows(weighted_hidden)
    tokens, vocab = hidden.shape[0], weight.shape[0]
    chunk, columns = scratch_shape(tokens, vocab)
    scratch = torch.empty(chunk, columns, dtype=hidden.dtype, device=hidden.device)
    write_gradients = grad_hidden is not None or grad_weight is not None
    for part in row_blocks(tokens, chunk):
        rows = scratch[: part.stop - part.start]
        logits = rows[:, :vocab]  # (chunk, V)
        torch.mm(hidden[part], weight.t(), out=logits)
        launch_losses(
            rows, vocab, targets[part], losses[part], ignore_index, z_loss, write_gradients=write_gradients
        )  # of these logits remain their gradients
        if grad_hidden is not None:
            torch.mm(logits, weight, out=grad_hidden[part])
        if grad_weight is not None:
            _add_product_(grad_weight, logits.t(), weighted_hidden[part], grad_scale)


def _add_product_(total: Tensor, a: Tensor, b: Tensor, alpha: float) -> None:
    """`total += alpha * a @ b` with `total` in fp32, whatever the dtype of `a` and `b`.

    On CUDA one GEMM adds the fp32 products of bf16 or fp16 matrices (`out_dtype`, which takes a fp32 `total` from torch
    2.10 on; on meta tensors torch 2.11 has not got it). Elsewhere torch has no such GEMM, and the product is rounded to
    the dtype of `a` before it is added.
    """
    if total.is_meta:
        return
    if total.dtype == a.dtype:
        total.addmm_(a, b, alpha=alpha)
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, alpha=alpha, out=total)
    else:
        total.add_(torch.mm(a, b), alpha=alpha)


def _run_backward(
    upstream: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    unit_hidden: Tensor,
    unit_weight: Tensor,
    ignore_index: int,
    z_loss: float,
) -> tuple[Tensor, Tensor]:
    """Gradients from those for an upstream gradient of one; empty where these are empty."""
    grad_hidden, grad_weight = torch.empty_like(unit_hidden), torch.empty_like(unit_weight, dtype=weight.dtype)
    if unit_hidden.numel():
        grad_hidden = _scale_rows(unit_hidden, upstream.masked_fill(targets == ignore_index, 0))
    if unit_weight.numel() and _is_uniform(upstream):
        torch.mul(unit_weight, upstream[:1].sum(), out=grad_weight)  # fp32 to bf16 in one pass
    elif unit_weight.numel():
        total = torch.zeros_like(unit_weight)
        _add_weight_gradient(upstream, hidden, weight, targets, unit_weight, total, ignore_index, z_loss)
        grad_weight.copy_(total)
    return grad_hidden, grad_weight


def _allocate_backward(
    upstream: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    unit_hidden: Tensor,
    unit_weight: Tensor,
    ignore_index: int,
    z_loss: float,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(unit_hidden), torch.empty_like(unit_weight, dtype=weight.dtype)


def _add_weight_gradient(
    upstream: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    unit_weight: Tensor,
    total: Tensor,
    ignore_index: int,
    z_loss: float,
) -> None:
    """Add dweight to `total` (V, D) fp32; the factors of single tokens go onto the narrow side of the product."""
    if _is_uniform(upstream):
        total.addcmul_(unit_weight, upstream[:1].sum())
        return
    losses = torch.empty(hidden.shape[0], dtype=statistics_dtype(hidden.dtype), device=hidden.device)
    weighted_hidden = _scale_rows(hidden, upstream.masked_fill(targets == ignore_index, 0))
    _run_chunks(hidden, weight, targets, ignore_index, z_loss, losses, None, total, weighted_hidden)


def _scale_rows(x: Tensor, factors: Tensor) -> Tensor:
    """`x` (T, D) with each row times its factor (T,) in fp32, rounded to the dtype of `x` in the same pass."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return torch.mul(x, factors.unsqueeze(1), out=out)


class _Reference(torch.autograd.Function):
    """The same in PyTorch, in chunks and blocks for a CPU's caches. On a GPU it waits for the device."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        ignore_index: int,
        z_loss: float,
        needs_gradients: bool,
        wants_weight: bool,
    ) -> Tensor:
        upstream = (targets != ignore_index).to(statistics_dtype(hidden.dtype)) if needs_gradients else None
        losses, grad_hidden, grad_weight = _reference_chunks(
            hidden, weight, targets, ignore_index, z_loss, upstream, wants_weight
        )
        ctx.options = ignore_index, z_loss
        ctx.save_for_backward(hidden, weight, targets, grad_hidden, grad_weight)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, grad_hidden, grad_weight = ctx.saved_tensors
        ignored = targets == ctx.options[0]
        used = upstream[~ignored]
        if used.numel() and not bool((used == used[0]).all()):
            ignore_index, z_loss = ctx.options
            _, grad_hidden, grad_weight = _reference_chunks(
                hidden, weight, targets, ignore_index, z_loss, upstream.masked_fill(ignored, 0), grad_weight is not None
            )
            return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), *[None] * 5
        factor = used[0] if used.numel() else upstream.new_zeros(())
        if grad_weight is not None:
            grad_weight = torch.mul(grad_weight, factor, out=torch.empty_like(weight))  # fp32 to bf16 in one pass
        return (grad_hidden * factor).to(hidden.dtype), grad_weight, *[None] * 5


def _reference_chunks(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignore_index: int,
    z_loss: float,
    upstream: Tensor | None,
    wants_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Losses (T,), and where `upstream` (T,) is given (0 at ignored tokens) the gradients (T, D) and, if it is wanted,
    (V, D)."""
    (tokens, width), vocab = hidden.shape, weight.shape[0]
    wide = statistics_dtype(hidden.dtype)
    device = hidden.device
    ignored = targets == ignore_index
    labels = targets.masked_fill(ignored, 0).unsqueeze(1)  # (T, 1)
    losses = torch.empty(tokens, dtype=wide, device=device)
    chunk = _rows_within(CPU_CHUNK_BYTES, vocab, hidden)
    logits_scratch = torch.empty(min(chunk, tokens), vocab, dtype=hidden.dtype, device=device)
    grad_hidden = grad_weight = chunk_grad_weight = None
    if upstream is not None:
        grad_hidden = torch.empty(tokens, width, dtype=hidden.dtype, device=device)
    if upstream is not None and wants_weight:
        grad_weight = torch.zeros(vocab, width, dtype=wide, device=device)
        chunk_grad_weight = torch.empty(vocab, width, dtype=hidden.dtype, device=device)

    for part in row_blocks(tokens, chunk):
        logits = logits_scratch[: part.stop - part.start]  # (chunk, V)
        torch.mm(hidden[part], weight.t(), out=logits)
        chosen = logits.gather(1, labels[part]).squeeze(1).to(wide) if z_loss else None
        loss = _softmax_in_place(logits, labels[part], wide).log_().neg_()  # (chunk,)
        far = loss > LARGEST_EXACT_LOSS
        if bool(far.any()):
            loss[far] = cross_entropy(hidden[part][far] @ weight.t(), labels[part][far].squeeze(1))
        logsumexp = None if chosen is None else loss + chosen
        losses[part] = loss if logsumexp is None else loss + z_loss * logsumexp.square()
        if upstream is None or grad_hidden is None:
            continue
        # The chunk now holds probabilities p; dlogits = upstream * (p * (1 + 2 z logsumexp) - onehot). The one-hot part
        # touches one entry a row, in fp32 before it is rounded; upstream goes onto the narrow sides of the products.
        of_target = torch.expm1(-loss)
        if logsumexp is not None:
            logits.mul_((1 + 2 * z_loss * logsumexp).unsqueeze(1))
            of_target += torch.exp(-loss) * (2 * z_loss * logsumexp)
        rows = torch.arange(logits.shape[0], device=device)
        logits[rows, labels[part].squeeze(1)] = of_target.to(logits.dtype)  # scatter_ copies it all
        scale = upstream[part].unsqueeze(1)  # (chunk, 1)
        torch.mul(torch.mm(logits, weight), scale, out=grad_hidden[part])
        if grad_weight is not None and chunk_grad_weight is not None:
            torch.mm(logits.t(), (hidden[part] * scale).to(hidden.dtype), out=chunk_grad_weight)
            accumulate_(grad_weight, chunk_grad_weight)
    return losses.masked_fill_(ignored, 0), grad_hidden, grad_weight


def _softmax_in_place(logits: Tensor, labels: Tensor, wide: torch.dtype) -> Tensor:
    """Overwrite `logits` (rows, V) with its softmax, taken in `wide`; returns the probabilities (rows,) of `labels`."""
    chosen = torch.empty(logits.shape[0], dtype=wide, device=logits.device)
    block = min(_rows_within(CPU_SOFTMAX_BYTES, logits.shape[1], chosen), logits.shape[0])
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


def _rows_within(budget: int, vocab: int, like: Tensor) -> int:
    """How many rows of `vocab` elements of `like`'s dtype fit into a budget of bytes."""
    return max(1, budget // (vocab * like.element_size()))


_forward_operator = Operator(
    "linear_cross_entropy",
    "(Tensor hidden, Tensor weight, Tensor targets, int ignore_index, float z_loss, bool wants_hidden, "
    "bool wants_weight) -> (Tensor, Tensor, Tensor)",
    _run_forward,
    _allocate_forward,
)
_backward_operator = Operator(
    "linear_cross_entropy_backward",
    "(Tensor upstream, Tensor hidden, Tensor weight, Tensor targets, Tensor unit_hidden, Tensor unit_weight, "
    "int ignore_index, float z_loss) -> (Tensor, Tensor)",
    _run_backward,
    _allocate_backward,
)

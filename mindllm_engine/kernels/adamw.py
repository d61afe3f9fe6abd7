"""AdamW over one flat slice of parameters: unscale, clip, moments, decoupled decay, and the cast to the parameters'
dtype. Loshchilov and Hutter, arXiv 1711.05101, algorithm 2.

Reads gradient, master, m and v, writes master, m, v and the parameter: 30 bytes an element with an fp32 gradient and
bf16 parameters, 28 with a bf16 gradient. Bound by memory bandwidth; one launch, whatever part of the slice decays.

The master may be split: its upper half is the bf16 parameter itself, and 16 extra bits hold the rest. That takes 2
bytes an element less of memory, and 2 less of traffic.

A gradient scale of NaN says that this step is to be skipped: nothing else is read then and nothing is written, and the
host need not know what the device has decided.
"""

from functools import cache
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from mindllm_engine.kernels.backend import use_triton
from mindllm_engine.kernels.launch import Program, cdiv
from mindllm_engine.kernels.operator import Operator

# Elements that the reference updates at a time: five fp32 arrays of this size stay in a core's second-level cache.
CHUNK = 1 << 16
# Elements a program of 4 warps: 8 a thread, which has two 128-bit loads of each of four fp32 arrays in flight.
BLOCK = 1024


@torch.no_grad()
def adamw(
    param: Tensor,
    master: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decayed: int,
    step: int,
    grad_scale: Tensor,
) -> None:
    """Update `master`, `m`, `v` in place and write `master` rounded to `param`'s dtype.

    Args:
        param, master, grad, m, v: (elements,) contiguous slices of the same range; m and v fp32, grad fp32 or bf16.
            `master` is fp32, or int16 beside a bf16 `param`: then the master weights are `join_master(param, master)`.
            Fastest where all begin on 16 bytes.
        decayed: elements [0, decayed) decay, the rest do not.
        eps: 0 makes an element NaN whose gradients were all 0, as in torch.
        step: updates so far, this one included (1 at the first), for the bias correction.
        grad_scale: () fp32 on the same device: what the gradient is multiplied by (normalisation and clipping). NaN
            leaves `param`, `master`, `m` and `v` as they are, bit for bit.

    Raises ValueError for slices that do not fit together.
    """
    _check(param, master, grad, m, v, decayed, grad_scale)
    beta1, beta2 = betas
    if param.device.type == "cpu" and not use_triton(param):
        _update_on_cpu(param, master, grad, m, v, grad_scale, decayed, lr, weight_decay, step, beta1, beta2, eps)
        return
    step_size = lr / (1 - beta1**step)
    inverse_root_correction = (1 - beta2**step) ** -0.5
    update = _adamw_operator if use_triton(param) else _reference
    update(
        param,
        master,
        grad,
        m,
        v,
        grad_scale,
        decayed,
        lr * weight_decay,
        step_size,
        inverse_root_correction,
        beta1,
        beta2,
        eps,
    )


def split_master(weights: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 weights as bf16 parameters and the 16 bits (int16) that these leave out, in the same shape.

    The parameter is the weight rounded to nearest. Exact ties go away from zero, where torch's cast takes the even
    neighbour: the remainder, -32768 to 32767 units of the weight's last place, then fits 16 bits. `join_master` gives
    every weight back bit for bit, those that round to infinity included; a NaN comes back as the one NaN 0x7FC00000.
    """
    bits = weights.view(torch.int32)
    upper = (bits + 0x8000) >> 16
    lower = bits - (upper << 16)
    is_nan = weights.isnan()  # their sum may have run over into the sign
    upper.masked_fill_(is_nan, 0x7FC0)
    lower.masked_fill_(is_nan, 0)
    return upper.to(torch.int16).view(torch.bfloat16), lower.to(torch.int16)


def join_master(param: Tensor, extra_bits: Tensor) -> Tensor:
    """The fp32 weights that `split_master` has split."""
    return ((param.view(torch.int16).int() << 16) + extra_bits).view(torch.float32)


def _check(param: Tensor, master: Tensor, grad: Tensor, m: Tensor, v: Tensor, decayed: int, grad_scale: Tensor) -> None:
    slices = {"param": param, "master": master, "grad": grad, "m": m, "v": v}
    for name, x in slices.items():
        if x.ndim != 1 or x.shape != param.shape or not x.is_contiguous():
            raise ValueError(
                f"{name} must be a contiguous slice of {param.numel()} elements, got {tuple(x.shape)} with strides "
                f"{x.stride()}"
            )
    if master.dtype != torch.float32 and (master.dtype, param.dtype) != (torch.int16, torch.bfloat16):
        raise ValueError(
            f"master must be fp32, or int16 beside a bf16 param, got {master.dtype} beside a param of {param.dtype}"
        )
    if grad.dtype not in (torch.float32, torch.bfloat16) or m.dtype != torch.float32 or v.dtype != torch.float32:
        raise ValueError(f"grad must be fp32 or bf16, m and v must be fp32, got {grad.dtype}, {m.dtype} and {v.dtype}")
    if grad_scale.shape != () or grad_scale.dtype != torch.float32:
        raise ValueError(f"grad_scale must be one fp32 number, got {tuple(grad_scale.shape)} {grad_scale.dtype}")
    if not 0 <= decayed <= param.numel():
        raise ValueError(f"decayed must lie in 0 to {param.numel()}, got {decayed}")


def _update_on_cpu(
    param: Tensor,
    master: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    grad_scale: Tensor,
    decayed: int,
    lr: float,
    weight_decay: float,
    step: int,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """The reference on a CPU, by torch's own loop (that of `torch.optim.AdamW(fused=True)`). It takes half the time of
    `_reference`, which passes over the arrays once for each operation."""
    if grad_scale.isnan():
        return
    split = master.dtype == torch.int16
    steps = [torch.tensor(float(step))]
    borders = sorted({*range(0, param.numel(), CHUNK), decayed, param.numel()})
    for start, stop in pairwise(borders):
        part = slice(start, stop)
        weights = join_master(param[part], master[part]) if split else master[part]
        torch._fused_adamw_(
            [weights],
            [grad[part].float() * grad_scale],
            [m[part]],
            [v[part]],
            [],
            steps,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=weight_decay if start < decayed else 0.0,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )
        if split:
            param[part], master[part] = split_master(weights)
        else:
            param[part].copy_(weights)


def _reference(
    param: Tensor,
    master: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    grad_scale: Tensor,
    decayed: int,
    decay: float,
    step_size: float,
    inverse_root_correction: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    split = master.dtype == torch.int16
    is_skipped = grad_scale.isnan()
    for start in range(0, param.numel(), CHUNK):
        part = slice(start, start + CHUNK)
        # The host would have to wait for the GPU to learn whether the step is skipped: what was is put back.
        before = [x[part].clone() for x in (param, master, m, v)]
        g = grad[part].float() * grad_scale
        m[part].lerp_(g, 1 - beta1)
        v[part].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        denominator = v[part].sqrt().mul_(inverse_root_correction).add_(eps)
        weights = join_master(param[part], master[part]) if split else master[part]
        weights[: max(0, decayed - start)].mul_(1 - decay)
        weights.addcdiv_(m[part], denominator, value=-step_size)
        if split:
            param[part], master[part] = split_master(weights)
        else:
            param[part].copy_(weights)
        for x, old in zip((param, master, m, v), before, strict=True):
            x[part] = torch.where(is_skipped, old, x[part])


def _run(
    param: Tensor,
    master: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    grad_scale: Tensor,
    decayed: int,
    decay: float,
    step_size: float,
    inverse_root_correction: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    numbers = (param.numel(), decayed, decay, step_size, inverse_root_correction)
    program = _program(beta1, beta2, eps, master.dtype == torch.int16)
    program((cdiv(param.numel(), BLOCK), 1, 1), param, master, grad, m, v, grad_scale, *numbers)


@cache
def _program(beta1: float, beta2: float, eps: float, split: bool) -> Program:
    return Program(_adamw_kernel, BETA1=beta1, BETA2=beta2, EPS=eps, SPLIT=split, BLOCK=BLOCK)


def _allocate(*args: object) -> None:
    """Everything is updated in place."""


@triton.jit
def _adamw_kernel(
    param_ptr,
    master_ptr,
    grad_ptr,
    m_ptr,
    v_ptr,
    grad_scale_ptr,
    elements,
    decayed,
    decay,
    step_size,
    inverse_root_correction,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK elements a program."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    # Four neighbours a thread, 128 bits of fp32. Left to itself the compiler gives it eight, 128 bits of bf16, and then
    # exchanges all that is stored through shared memory.
    offsets = tl.max_contiguous(offsets, 4)
    # 0 at the elements that do not decay.
    decays = tl.where(offsets < decayed, decay, 0.0)
    # Where the step is skipped no element is inside. A flag beside the mask would take registers instead; the programs
    # in flight are enough to hide this load before the others.
    grad_scale = tl.load(grad_scale_ptr)
    written = tl.where(grad_scale == grad_scale, elements, 0)
    if (tl.program_id(0).to(tl.int64) + 1) * BLOCK <= written:
        # Without a mask, accesses are of 128 bits whatever the number of elements.
        _update(
            param_ptr + offsets,
            master_ptr + offsets,
            grad_ptr + offsets,
            m_ptr + offsets,
            v_ptr + offsets,
            grad_scale,
            None,
            decays,
            step_size,
            inverse_root_correction,
            BETA1,
            BETA2,
            EPS,
            SPLIT,
        )
    else:
        _update(
            param_ptr + offsets,
            master_ptr + offsets,
            grad_ptr + offsets,
            m_ptr + offsets,
            v_ptr + offsets,
            grad_scale,
            offsets < written,
            decays,
            step_size,
            inverse_root_correction,
            BETA1,
            BETA2,
            EPS,
            SPLIT,
        )


@triton.jit
def _update(
    param_ptrs,
    master_ptrs,
    grad_ptrs,
    m_ptrs,
    v_ptrs,
    grad_scale,
    inside,
    decays,
    step_size,
    inverse_root_correction,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    grad = tl.load(grad_ptrs, mask=inside)
    m = tl.load(m_ptrs, mask=inside)
    v = tl.load(v_ptrs, mask=inside)
    if SPLIT:
        upper = tl.load(param_ptrs, mask=inside).to(tl.int16, bitcast=True)
        weights = _join(upper, tl.load(master_ptrs, mask=inside))
    else:
        weights = tl.load(master_ptrs, mask=inside)
    g = grad.to(tl.float32) * grad_scale
    m = BETA1 * m + (1 - BETA1) * g
    v = BETA2 * v + (1 - BETA2) * (g * g)
    # Decay as a difference: 1 - decay would keep few of decay's digits in fp32.
    weights -= decays * weights
    weights -= step_size * (m / (tl.sqrt(v) * inverse_root_correction + EPS))
    tl.store(m_ptrs, m, mask=inside)
    tl.store(v_ptrs, v, mask=inside)
    if SPLIT:
        upper, lower = _split(weights)
        tl.store(param_ptrs, upper.to(tl.bfloat16, bitcast=True), mask=inside)
        tl.store(master_ptrs, lower, mask=inside)
    else:
        tl.store(master_ptrs, weights, mask=inside)
        tl.store(param_ptrs, weights.to(param_ptrs.dtype.element_ty), mask=inside)


@triton.jit
def _split(weights):
    """What `split_master` does."""
    bits = weights.to(tl.int32, bitcast=True)
    upper = (bits + 0x8000) >> 16
    lower = bits - (upper << 16)
    is_nan = weights != weights
    upper = tl.where(is_nan, 0x7FC0, upper)
    lower = tl.where(is_nan, 0, lower)
    return upper.to(tl.int16), lower.to(tl.int16)


@triton.jit
def _join(upper, lower):
    """What `join_master` does."""
    return ((upper.to(tl.int32) << 16) + lower.to(tl.int32)).to(tl.float32, bitcast=True)


_adamw_operator = Operator(
    "adamw",
    "(Tensor(a!) param, Tensor(b!) master, Tensor grad, Tensor(c!) m, Tensor(d!) v, Tensor grad_scale, int decayed, "
    "float decay, float step_size, float inverse_root_correction, float beta1, float beta2, float eps) -> ()",
    _run,
    _allocate,
)

"""AdamW over one flat slice of parameters: unscale, clip, moments, decoupled decay, and the cast to the parameters'
dtype.

Reads gradient, master, m and v, writes master, m, v and the parameter: 16 + 12 + 2 = 30 bytes an element with an fp32
gradient and bf16 parameters. Bound by memory bandwidth. Loshchilov and Hutter, arXiv 1711.05101, algorithm 2.
"""

import torch
from torch import Tensor

# Elements updated at a time: five fp32 arrays of this size stay in a core's second-level cache.
CHUNK = 1 << 16


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
    step: int,
    grad_scale: Tensor,
) -> None:
    """Update `master`, `m`, `v` (fp32) in place and write `master` rounded to `param`'s dtype.

    Args:
        param, master, grad, m, v: (elements,) contiguous slices of the same range.
        step: updates so far, this one included (1 at the first), for the bias correction.
        grad_scale: () fp32 on the same device: what the gradient is multiplied by (normalisation and clipping).
    """
    beta1, beta2 = betas
    step_size = lr / (1 - beta1**step)
    inverse_root_correction = (1 - beta2**step) ** -0.5
    for start in range(0, master.numel(), CHUNK):
        part = slice(start, start + CHUNK)
        g = grad[part].float() * grad_scale
        m[part].lerp_(g, 1 - beta1)
        v[part].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        denominator = v[part].sqrt().mul_(inverse_root_correction).add_(eps)
        master[part].mul_(1 - lr * weight_decay).addcdiv_(m[part], denominator, value=-step_size)
        param[part].copy_(master[part])

"""RMSNorm (arXiv 1910.07467, equation 4) and the DeepNorm residual around it (arXiv 2203.00555, section 4)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mindllm_engine.kernels.reference import row_blocks, rows_per_block, statistics_dtype


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension.

    `x` is (..., width) of any float dtype, `weight` (width,). Everything is computed in fp32 (fp64 for fp64 inputs) and
    rounded once, to the dtype of `x`.
    """
    return _RMSNorm.apply(x, weight, eps)


def deepnorm_residual(x: Tensor, f: Tensor, weight: Tensor, alpha: float, eps: float) -> Tensor:
    """The DeepNorm residual `rms_norm(alpha * x + f)`; `x` and the branch's output `f` are (..., width).

    The sum is rounded to the dtype of `x` before it is normalised.
    """
    return rms_norm(torch.add(f, x, alpha=alpha), weight, eps)


class _RMSNorm(torch.autograd.Function):
    """Forward reads x and writes y; backward reads x and dy and writes dx: each tensor passes through memory once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # (rows, width)
        wide = statistics_dtype(x.dtype)
        w = weight.to(wide)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        y_rows = y.view(rows.shape)
        rstd = torch.empty(rows.shape[0], 1, dtype=wide, device=x.device)
        block = rows_per_block(rows.shape[0], rows.shape[1], x.device)
        scratch = torch.empty(2, block, rows.shape[1], dtype=wide, device=x.device)
        for part in row_blocks(rows.shape[0], block):
            x_wide, square = scratch[:, : part.stop - part.start]
            x_wide.copy_(rows[part])
            torch.mul(x_wide, x_wide, out=square)
            rstd[part] = square.mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
            y_rows[part] = x_wide.mul_(rstd[part]).mul_(w)
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, None]:
        """dx = rstd * (g - x_hat * mean(g * x_hat)), g = dy * weight, x_hat = x * rstd; dweight = sum(dy * x_hat)."""
        x, weight, rstd = ctx.saved_tensors
        rows, grad_rows = x.reshape(-1, x.shape[-1]), grad_y.reshape(-1, x.shape[-1])
        wide = rstd.dtype
        w = weight.to(wide)
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        grad_x_rows = grad_x.view(rows.shape)
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=x.device)
        block = rows_per_block(rows.shape[0], rows.shape[1], x.device)
        scratch = torch.empty(3, block, rows.shape[1], dtype=wide, device=x.device)
        for part in row_blocks(rows.shape[0], block):
            x_hat, grad, product = scratch[:, : part.stop - part.start]
            torch.mul(rows[part], rstd[part], out=x_hat)
            grad.copy_(grad_rows[part])
            grad_weight += torch.mul(grad, x_hat, out=product).sum(dim=0)
            grad.mul_(w)
            mean = torch.mul(grad, x_hat, out=product).mean(dim=-1, keepdim=True)
            grad_x_rows[part] = grad.addcmul_(x_hat, mean, value=-1).mul_(rstd[part])
        return grad_x, grad_weight.to(weight.dtype), None

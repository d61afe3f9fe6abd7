"""SwiGLU, the gated feed-forward activation `silu(gate) * up` (arXiv 2002.05202, equation 6), of MiniCPM's layers. Its
kernels are in gated_linear_unit.py."""

from torch import Tensor

from mindllm_engine.kernels.gated_linear_unit import check_packed, gated_linear_unit


def swiglu(gate_up: Tensor, *, overwrite: bool = False) -> Tensor:
    """`silu(gate) * up` of both projections in one tensor, (..., 2 * ffn) with the gate first.

    `overwrite`, the result (..., ffn) and its rounding are those of `geglu`.
    """
    check_packed("swiglu", gate_up)
    return gated_linear_unit("silu", overwrite, gate_up)

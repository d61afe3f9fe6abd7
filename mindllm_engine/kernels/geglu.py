"""GeGLU, the gated feed-forward activation `gelu(gate) * up` (arXiv 2002.05202, equation 6), of MindLLM's layers. Its
kernels are in gated_linear_unit.py."""

from torch import Tensor

from mindllm_engine.kernels.activations import check_gelu
from mindllm_engine.kernels.gated_linear_unit import check_packed, gated_linear_unit


def geglu(gate_up: Tensor, approximate: str = "tanh", *, overwrite: bool = False) -> Tensor:
    """`gelu(gate) * up` of both projections in one tensor.

    Args:
        gate_up: (..., 2 * ffn) of any float dtype, the gate first.
        approximate: the form of the GELU, "tanh" or "none" (erf), as in `torch.nn.functional.gelu`.
        overwrite: let the backward write the gradient over the memory of `gate_up` instead of allocating its own. The
            caller promises that nobody needs `gate_up` once the backward has begun; a second backward through a
            retained graph raises RuntimeError. Compiled graphs ignore it, as do inputs with elements that share memory.

    Returns (..., ffn) in the dtype of `gate_up`, computed in fp32 (fp64 for fp64 inputs) and rounded once.
    """
    check_gelu(approximate)
    check_packed("geglu", gate_up)
    return gated_linear_unit(approximate, overwrite, gate_up)


def geglu_split(gate: Tensor, up: Tensor, approximate: str = "tanh", *, overwrite: bool = False) -> Tensor:
    """`gelu(gate) * up` of two tensors (..., ffn), which may be strided; else as `geglu`.

    With `overwrite` the gradients lie in the memory of `gate` and of `up`, which must have no element in common.
    """
    check_gelu(approximate)
    if gate.ndim == 0 or gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            f"gate and up must agree, got {tuple(gate.shape)} {gate.dtype} and {tuple(up.shape)} {up.dtype}"
        )
    return gated_linear_unit(approximate, overwrite, gate, up)

"""Activation checkpointing: less kept for backward, and computed again there, bit for bit. `layer_options` applies it
to a built network; what it saves is in `activation_memory`.

`selective` keeps what matrix products and attention give, and computes the outputs of norms, GeGLU and GELU again: a
read and a write of memory each, no product. `full` keeps what enters a layer, and runs the layer's forward again, a
third more arithmetic. Nothing is added twice to a main gradient: operators add to it in backward, which runs once,
and the loss, which may add to it in its forward, lies outside the layers.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from mindllm_engine.kernels.again import can_compute_again, compute_again
from mindllm_engine.models.activation_memory import ActivationCheckpointing

Forward = Callable[..., Any]


def checkpointed(forward: Forward, mode: ActivationCheckpointing) -> Forward:
    """A layer's forward that keeps less for its backward. Its gradients are recorded, and it has no KV cache, which a
    second forward would extend again."""
    if mode == "none":
        return forward

    def full(*args: Any) -> Any:
        # No operator draws random numbers.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False)

    def selective(*args: Any) -> Any:
        with saved_tensors_hooks(_pack, _unpack):
            return forward(*args)

    return full if mode == "full" else selective


def _pack(tensor: Tensor) -> Any:
    """What is kept in a saved tensor's place: the node that can make it again, or else the tensor and its version."""
    if can_compute_again(tensor):
        return tensor.grad_fn
    # Detached: a node that saves its own output would hold itself.
    return tensor.detach(), tensor._version


def _unpack(kept: Any) -> Tensor:
    if not isinstance(kept, tuple):
        return compute_again(kept)
    tensor: Tensor = kept[0]
    if tensor._version != kept[1]:  # hooks take this check off autograd
        raise RuntimeError(
            f"a tensor {tuple(tensor.shape)} {tensor.dtype} that backward needs was changed in place after it was saved"
        )
    return tensor

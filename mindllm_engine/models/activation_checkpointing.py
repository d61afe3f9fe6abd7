"""Activation checkpointing: less kept for backward, and computed again there, bit for bit. Applied to a built network
from outside; what it saves is in `activation_memory`.

`selective` keeps what matrix products and attention give, and computes the outputs of norms, GeGLU and GELU again: a
read and a write of memory each, no product. `full` keeps what enters a layer, and runs the layer's forward again, a
third more arithmetic. Nothing is added twice to a main gradient: operators add to it in backward, which runs once,
and the loss, which may add to it in its forward, lies outside the layers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from mindllm_engine.kernels.again import can_compute_again, compute_again
from mindllm_engine.models.activation_memory import ActivationCheckpointing
from mindllm_engine.models.gpt_neo import GPTNeo
from mindllm_engine.models.kv_cache import KVCache
from mindllm_engine.models.mindllm import MindLLM


def checkpoint_activations(model: MindLLM | GPTNeo, mode: ActivationCheckpointing) -> None:
    """Let each layer of `model` keep less for backward from now on.

    Only the layers' `forward` is replaced: module hooks (ZeRO-1 waits for parameters in one) run once. Forwards without
    gradients or with a KV cache are as before.
    """
    if mode == "none":
        return
    wrap = _full if mode == "full" else _selective
    for layer in model.layers:
        layer.forward = training_only(wrap(layer.forward), layer.forward)


def training_only(in_training: Callable[..., Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's forward: `in_training` where gradients are recorded and there is no KV cache, which a second forward
    would extend again; otherwise `forward`."""

    def choose(*args: Any) -> Any:
        plain = not torch.is_grad_enabled() or any(isinstance(arg, KVCache) for arg in args)
        return (forward if plain else in_training)(*args)

    return choose


def _full(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        # No operator draws random numbers.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False)

    return run


def _selective(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        with saved_tensors_hooks(_pack, _unpack):
            return forward(*args)

    return run


def _pack(tensor: Tensor) -> Any:
    """What is kept in a saved tensor's place: the node that can make it again, or else the tensor and its version."""
    if can_compute_again(tensor):
        return tensor.grad_fn
    # Detached: a node that saves its own output would hold itself.
    return tensor.detach(), tensor._version


def _unpack(kept: Any) -> Tensor:
    if not isinstance(kept, tuple):
        return compute_again(kept)
    tensor, version = kept
    if tensor._version != version:  # hooks take this check off autograd
        raise RuntimeError(
            f"a tensor {tuple(tensor.shape)} {tensor.dtype} that backward needs was changed in place after it was saved"
        )
    kept_tensor: Tensor = tensor
    return kept_tensor

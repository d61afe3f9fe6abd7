"""What a run may apply to the layers of a built network from outside: activation checkpointing and compilation.

Only a layer's `forward` is replaced, not its call: module hooks, in one of which ZeRO-1 waits for parameters, run once,
and outside of compiled graphs.
"""

import inspect
import os
import shutil
from types import MethodType
from typing import Any

import torch

from mindllm_engine.errors import ConfigError
from mindllm_engine.kernels.attention import end_graphs_before_attention
from mindllm_engine.models import Network
from mindllm_engine.models.activation_checkpointing import Forward, checkpointed
from mindllm_engine.models.activation_memory import ActivationCheckpointing
from mindllm_engine.models.kv_cache import AttentionCache


def apply_layer_options(model: Network, checkpointing: ActivationCheckpointing, compiled: bool) -> None:
    """Let the layers of `model` train with these options from now on, in the place of earlier ones.

    Forwards without gradients (evaluation), or with a KV cache, stay as they are without options.

    A compiled layer is two graphs with attention between them. MindLLM's layers share both; GPT-Neo's have one more,
    for its local layers, and so have MiniCPM's, for the first. Another number of tokens in a micro-batch compiles them
    once more, other documents do not.
    """
    if compiled:
        end_graphs_before_attention()
    for layer in model.layers:
        forward = MethodType(type(layer).forward, layer)
        in_training = checkpointed(compiled_forward(forward) if compiled else forward, checkpointing)
        layer.forward = training_only(in_training, forward)


def check_compiler() -> None:
    """Raise ConfigError where `torch.compile` would find no C++ compiler, which it needs beside a GPU as well."""
    wanted = [os.environ["CXX"].split()[0]] if os.environ.get("CXX", "").strip() else ["g++", "c++", "clang++"]
    if not any(shutil.which(name) for name in wanted):
        raise ConfigError(f"train.compile: there is no C++ compiler, {wanted[0]}; install it, or leave the key out")


def training_only(in_training: Forward, forward: Forward) -> Forward:
    """`in_training` where gradients are recorded and there is no KV cache; otherwise `forward`."""

    def choose(*args: Any) -> Any:
        is_training = torch.is_grad_enabled() and not any(isinstance(arg, AttentionCache) for arg in args)
        return (in_training if is_training else forward)(*args)

    return choose


def compiled_forward(forward: Forward) -> Forward:
    """A layer's forward, compiled when it first runs. The length of `cu_seqlens`, the number of documents, is no
    constant of its graphs."""
    run = torch.compile(forward)
    place = list(inspect.signature(forward).parameters).index("cu_seqlens")

    def compiled(*args: Any) -> Any:
        torch._dynamo.maybe_mark_dynamic(args[place], 0)
        return run(*args)

    return compiled

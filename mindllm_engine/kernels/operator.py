"""How an operator is registered with torch, so that compiled graphs hold it as one node.

An operator that differentiates is a pair of functions on tensors, forward and backward, each wrapped in `Operator`, and
a `torch.autograd.Function` that calls them. In eager mode the wrapper calls the Python function itself, since going
through torch's dispatcher costs 2 us more a call; while `torch.compile` traces it calls `torch.ops.mindllm.<name>`,
which the compiler does not look into.
"""

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("mindllm", "DEF")


class Operator:
    """A function on tensors, registered as `torch.ops.mindllm.<name>`.

    Args:
        name, schema: as for `torch.library.define`, such as "rms_norm" and "(Tensor x, Tensor weight, float eps) ->
            (Tensor, Tensor)".
        run: computes it, on CUDA tensors or, under the interpreter, on CPU tensors.
        allocate: takes the same arguments and gives uninitialised outputs; what the compiler uses for shapes.
    """

    def __init__(self, name: str, schema: str, run: Callable[..., Any], allocate: Callable[..., Any]) -> None:
        _library.define(name + schema)
        _library.impl(name, run, "CUDA")
        _library.impl(name, run, "CPU")
        torch.library.register_fake(f"mindllm::{name}", allocate, lib=_library)
        self.run = run
        self.registered = getattr(torch.ops.mindllm, name).default

    def __call__(self, *args: Any) -> Any:
        return self.registered(*args) if torch.compiler.is_compiling() else self.run(*args)


def differentiable(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`function.apply`, in eager mode without its look at every argument for functorch's sake: 1.5 us a call."""
    eager = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def apply(*args: Any) -> Any:
        return function.apply(*args) if torch.compiler.is_compiling() else eager(*args)

    return apply

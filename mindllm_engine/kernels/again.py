"""Outputs that backward computes again, bit for bit, instead of having them kept: those of operators that are bound by
memory traffic, from what their own nodes keep anyway.

The autograd Function of such an operator says which of its outputs that is, `again_output`, and has a static method
`again(ctx)`. Whoever saves tensors for backward (`models.activation_checkpointing`) may then keep the node in the
output's place: a node's backward, which lets go of what it keeps, runs after that of everyone who has used its outputs.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def can_compute_again(tensor: Tensor) -> bool:
    """Whether `compute_again` takes the node that `tensor` comes from."""
    node: Any = tensor.grad_fn
    if node is None:
        return False
    function = getattr(node, "_forward_cls", None)
    if function is None:
        return bool(node.name() == "GeluBackward0")
    return getattr(function, "again_output", None) == tensor.output_nr


def compute_again(node: Any) -> Tensor:
    """The output of `node`, from the tensors that it has saved."""
    function = getattr(node, "_forward_cls", None)
    if function is None:  # torch's GELU, of which the reference of bias_gelu is made
        return F.gelu(node._saved_self, approximate=node._saved_approximate)
    output: Tensor = function.again(node)
    return output

"""A model's flat parameters and their optimizer on one rank, without the exchanges of ZeRO-1."""

import torch
from torch import Tensor, nn

from mindllm_engine.distributed.execution_order import definition_order
from mindllm_engine.distributed.flat_parameters import FlatParameters
from mindllm_engine.distributed.layout import make_layout
from mindllm_engine.optim.optimizer import AdamW, OptimConfig, ParameterSlice


def flat_parameters(model: nn.Module, bucket_elements: int = 1 << 25) -> FlatParameters:
    """Laid out in the order in which backward may be expected to finish gradients."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    layout = make_layout(shapes, definition_order(model).gradients, shards=1, bucket_elements=bucket_elements)
    return FlatParameters(model, layout, finished=lambda name: None)


def optimizer_of(flat: FlatParameters, config: OptimConfig) -> AdamW:
    """One slice a bucket."""
    parts = [(slice(bucket.start, bucket.stop), bucket.decays) for bucket in flat.layout.buckets]
    return config.build([ParameterSlice(flat.params[part], flat.grads[part], decays) for part, decays in parts])


def take_step(optimizer: AdamW, lr: float, grad_scale: Tensor) -> Tensor:
    """Clip, update all slices, clear the gradients; returns the norm before clipping."""
    grad_norm = optimizer.square_norm().sqrt() * grad_scale
    optimizer.updates += 1
    for index, part in enumerate(optimizer.slices):
        optimizer.update(index, lr, optimizer.config.clip(grad_scale, grad_norm))
        part.grads.zero_()
    return grad_norm


def master_weights(optimizer: AdamW) -> Tensor:
    """Of all slices, one after the other."""
    return torch.cat([optimizer.master_weights(index) for index in range(len(optimizer.slices))])

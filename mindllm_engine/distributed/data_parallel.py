"""Plain data parallelism: every rank holds the whole model and optimizer, and gradients are summed after backward.

ZeRO-1 takes this place; what it must keep is this interface.
"""

import torch.distributed as dist
from torch import Tensor

from mindllm_engine.distributed.process_group import all_reduce_sum
from mindllm_engine.optim.flat_parameters import FlatParameters


class DataParallel:
    """Keeps the replicas of one model equal.

    Sends, when made: the parameters, once, from rank 0. Sends each step, in `sum_gradients`: one all-reduce of the flat
    fp32 main gradient, 4 bytes an element, after the last micro-batch.
    """

    def __init__(self, flat: FlatParameters) -> None:
        self.flat = flat
        if dist.is_initialized():
            dist.broadcast(flat.params, src=0)

    def sum_gradients(self, target_count: Tensor) -> None:
        """Sum the main gradients and `target_count` (() fp32, the supervised tokens of this rank) over all ranks, in
        place."""
        all_reduce_sum(self.flat.grads)
        all_reduce_sum(target_count)

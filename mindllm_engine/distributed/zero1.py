"""ZeRO-1 (arXiv 1910.02054, stage 1): all ranks hold all parameters and gradients, and each holds and updates a share
of the optimizer state.

    backward, last micro-batch   a bucket's gradients are complete -> its reduce-scatter begins
    step                         one all-reduce of three numbers; then bucket by bucket, in the order in which forward
                                 will need them: AdamW on this rank's slice -> the bucket's all-gather begins
    next forward                 before a module runs, wait for the buckets that hold its parameters
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mindllm_engine.distributed import watchdog
from mindllm_engine.distributed.backend import DistributedConfig, StateKind, StepGuard, StepResult
from mindllm_engine.distributed.collectives import Reduction, begin_all_gather, make_shard_groups
from mindllm_engine.distributed.execution_order import ExecutionOrder
from mindllm_engine.distributed.flat_parameters import FlatParameters, learning_rate_scales, trained_parameters
from mindllm_engine.distributed.layout import Bucket, Piece, decays, make_layout
from mindllm_engine.distributed.process_group import World, all_reduce_sum
from mindllm_engine.optim.optimizer import OptimConfig, ParameterSlice

# Reduce-scatters in a stage at most: their scratch (twice a bucket in the wire's dtype) is bounded by this.
MAX_IN_FLIGHT = 4


class Zero1:
    """The native backend (see `backend.Backend` for what the loop calls).

    Sends, when made: the parameters that train, once, from rank 0 (frozen ones must be equal already). Each step, per
    rank, of N such parameters over d ranks:
    reduce-scatter of gradients, N (d - 1) / d elements in the wire's dtype; all-gather of parameters, as many in the
    model's dtype; one all-reduce of three fp64 numbers. Never waits for the device.

    Buckets are sent in their order on all ranks, whatever happens. Where backward does not follow the recorded order
    the sums stay right, a bucket merely waits for those before it; `overlap` then falls, which the metrics show.

    Args:
        wire: dtype in which gradients travel.
        order: of this network, the same on all ranks (`record_execution_order`).

    Attributes:
        overlap: share of the elements whose reduce-scatter began before the last matrix's gradient was complete.
    """

    def __init__(
        self,
        model: nn.Module,
        world: World,
        optim: OptimConfig,
        config: DistributedConfig,
        wire: torch.dtype,
        order: ExecutionOrder,
    ) -> None:
        self.optim = optim
        self.wire = wire
        self.groups = make_shard_groups(world, config.shard_group)
        shapes = {name: tuple(parameter.shape) for name, parameter in trained_parameters(model).items()}
        self.layout = make_layout(
            shapes, order.gradients, self.groups.shards, config.bucket_elements, learning_rate_scales(model)
        )
        self.flat = FlatParameters(model, self.layout, self.finished)
        if dist.is_initialized():
            dist.broadcast(self.flat.params, src=0)
        self.slices = [bucket.slice_of(self.groups.shard) for bucket in self.layout.buckets]
        self.optimizer = optim.build(
            [
                ParameterSlice(self.flat.params[part], self.flat.grads[part], bucket.decays, bucket.lr_scale)
                for part, bucket in zip(self.slices, self.layout.buckets, strict=True)
            ]
        )
        self.saves_state = world.rank < self.groups.shards
        self.buckets_of: dict[str, list[Bucket]] = {name: [] for name in shapes}
        for bucket in self.layout.buckets:
            for name in bucket.names:
                self.buckets_of[name].append(bucket)
        needed = (bucket.index for name in order.forward for bucket in self.buckets_of[name])
        self.gather_order = list(dict.fromkeys(needed))
        self.gathers: dict[int, dist.Work] = {}
        self.wait_before_modules(model)
        self.labels = [f"bucket {bucket.index} ({bucket.names[0]} ...)" for bucket in self.layout.buckets]
        self.matrices = {name for name, shape in shapes.items() if decays(shape)}
        self.reducing = False
        self.reductions: list[Reduction] = []
        self.overlap: float | None = 0.0

    @property
    def updates(self) -> int:
        return self.optimizer.updates

    def backward(self, loss: Tensor, last: bool) -> None:
        """See `backend.Backend`."""
        if last:
            self.begin_reducing()
        loss.backward()

    # Gradients

    def begin_reducing(self) -> None:
        """From here on a gradient that backward finishes is the step's."""
        self.reducing = True
        self.unfinished = [set(bucket.names) for bucket in self.layout.buckets]
        self.names_left = set(self.buckets_of)
        self.reductions = []
        self.matrices_left: list[int] = []

    def finished(self, name: str) -> None:
        """Backward has finished the gradient of a parameter: send the buckets that are complete with it.

        Raises RuntimeError where its bucket has gone already (a second backward in the last micro-batch).
        """
        if not self.reducing:
            return
        if name not in self.names_left:
            raise RuntimeError(
                f"{name} received a second gradient in the last micro-batch of a step, when the first may be gone"
            )
        self.names_left.remove(name)
        for bucket in self.buckets_of[name]:
            self.unfinished[bucket.index].discard(name)
        while len(self.reductions) < len(self.unfinished) and not self.unfinished[len(self.reductions)]:
            self.reduce_next()

    def reduce_next(self) -> None:
        """Begin the reduce-scatter of the next bucket."""
        index = len(self.reductions)
        bucket = self.layout.buckets[index]
        self.matrices_left.append(self.count_matrices_left())
        for stage in (1, 2):  # on the node and, where there are several, between nodes
            if index >= stage * MAX_IN_FLIGHT:
                self.advance(index - stage * MAX_IN_FLIGHT)
        watchdog.mark(f"reduce-scatter of {self.labels[index]}")
        grads = self.flat.grads[bucket.start : bucket.stop]
        self.reductions.append(Reduction(grads, self.flat.grads[self.slices[index]], self.wire, self.groups))

    def advance(self, index: int) -> bool:
        """Take the reduce-scatter of a bucket a stage further; returns whether it is done."""
        watchdog.mark(f"waiting for the reduce-scatter of {self.labels[index]}")
        return self.reductions[index].advance()

    def count_matrices_left(self) -> int:
        """Matrices whose gradient is not complete. Vectors do not count: a norm's beside the embedding's, which comes
        last, would make the embedding's reduce-scatter look hidden."""
        return len(self.names_left & self.matrices)

    def finish_reducing(self) -> None:
        """Send what is left (parameters without a gradient hold their bucket back), and wait for all sums."""
        self.flat.clear_old_gradients()
        while len(self.reductions) < len(self.layout.buckets):
            self.reduce_next()
        unfinished = list(range(len(self.reductions)))
        while unfinished:  # stage by stage, so that the exchanges of all buckets are under way together
            unfinished = [index for index in unfinished if not self.advance(index)]
        self.reductions = []
        self.reducing = False
        early = (
            bucket.stop - bucket.start
            for bucket, left in zip(self.layout.buckets, self.matrices_left, strict=True)
            if left > self.count_matrices_left()  # those that are left now never came
        )
        self.overlap = sum(early) / self.layout.elements

    # Update and parameters

    def step(self, lr: float, batch_tokens: int, sums: Tensor, guard: StepGuard) -> StepResult:
        """See `backend.Backend`."""
        self.wait_for_parameters()  # those of modules that this step's forward did not call
        self.finish_reducing()
        square_norm = self.optimizer.square_norm().double() / self.groups.replicas
        watchdog.mark("all-reduce of the loss and the gradient norm")
        totals = all_reduce_sum(torch.cat((sums, square_norm[None])))  # (3,) nats, supervised tokens, squares
        supervised = totals[1].clamp(min=1)
        loss = (totals[0] / supervised).float()
        scale = (batch_tokens / supervised).float()
        grad_norm = totals[2].sqrt().float() * scale
        skipped = guard(loss, grad_norm)
        # A NaN makes AdamW leave everything as it was.
        grad_scale = self.optim.clip(scale, grad_norm).masked_fill(skipped, torch.nan)
        self.optimizer.updates += 1
        for index in self.gather_order:
            self.optimizer.update(index, lr, grad_scale)
            self.begin_gather(index)
        self.flat.begin_step()
        return StepResult(loss, grad_norm, skipped)

    def begin_gather(self, index: int) -> None:
        """Begin to collect a bucket's parameters."""
        bucket = self.layout.buckets[index]
        params = self.flat.params[bucket.start : bucket.stop]
        work = begin_all_gather(params, self.flat.params[self.slices[index]], self.groups)
        if work is not None:
            self.gathers[index] = work

    def wait_before_modules(self, model: nn.Module) -> None:
        """Before a module runs, wait for the buckets that hold its own parameters."""
        names = {parameter: name for name, parameter in trained_parameters(model).items()}
        for module in model.modules():
            own = [names[parameter] for parameter in module.parameters(recurse=False) if parameter in names]
            buckets = sorted({bucket.index for name in own for bucket in self.buckets_of[name]})
            if buckets:
                module.register_forward_pre_hook(lambda module, args, buckets=buckets: self.wait_for(buckets))

    def wait_for(self, buckets: list[int]) -> None:
        """Wait for the all-gathers of these buckets, where they are under way."""
        for index in buckets:
            work = self.gathers.pop(index, None)
            if work is not None:
                watchdog.mark(f"waiting for the all-gather of {self.labels[index]}")
                work.wait()

    def wait_for_parameters(self) -> None:
        """See `backend.Backend`."""
        self.wait_for(list(self.gathers))

    # State, for checkpoints

    def pieces(self) -> list[Piece]:
        """See `backend.Backend`."""
        return self.layout.pieces(self.groups.shard)

    def place(self, piece: Piece) -> tuple[int, slice]:
        """The bucket that a piece lies in, and its elements within this rank's slice of it."""
        index = next(n for n, part in enumerate(self.slices) if part.start <= piece.flat < part.stop)
        first = piece.flat - self.slices[index].start
        return index, slice(first, first + piece.elements)

    def read_state(self) -> dict[StateKind, list[Tensor]]:
        """See `backend.Backend`."""
        state: dict[StateKind, list[Tensor]] = {"master": [], "m": [], "v": []}
        masters = [self.optimizer.master_weights(index) for index in range(len(self.slices))]
        for piece in self.pieces():
            index, part = self.place(piece)
            state["master"].append(masters[index][part])
            state["m"].append(self.optimizer.m[index][part])
            state["v"].append(self.optimizer.v[index][part])
        return state

    def write_state(self, state: dict[StateKind, list[Tensor]], updates: int) -> None:
        """See `backend.Backend`."""
        self.wait_for_parameters()
        for piece, master, m, v in zip(self.pieces(), state["master"], state["m"], state["v"], strict=True):
            index, part = self.place(piece)
            self.optimizer.write(index, part.start, master, m, v)
        self.optimizer.updates = updates
        for index in self.gather_order:
            self.begin_gather(index)
        self.wait_for_parameters()

"""The engines of `zero1.py`: ours, DeepSpeed's stage 1, FSDP2, DDP with ZeroRedundancyOptimizer, and plain DDP.

Every engine runs the same network with weights of the task's dtype, fp32 master weights and moments, torch's or its own
fused AdamW, decay on matrices only, and clipping by the global norm. Each comes in several variants, of which the
fastest is quoted.

    engine      gradients sent             parameters sent             state a rank keeps in fp32
    ours        reduce-scatter             all-gather, in forward      a share of masters and moments
    deepspeed   all-reduce                 all-gather, after update    a share of masters and moments
    fsdp        reduce-scatter             all-gather, in forward      a share of masters and moments
    ddp_zero    all-reduce                 broadcast, after update     a share of masters and moments
    ddp         all-reduce                 none                        all of it

Gloo's reduce-scatter is an all-reduce inside.
"""

import contextlib
import functools
import importlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import record_function

from benchmarks.zero1_messages import SPREADING
from benchmarks.zero1_task import BETAS, CLIP_NORM, EPS, LEARNING_RATE, WEIGHT_DECAY, Batch, Task
from mindllm_engine.distributed.backend import DistributedConfig
from mindllm_engine.distributed.execution_order import record_execution_order
from mindllm_engine.distributed.process_group import World
from mindllm_engine.distributed.zero1 import Zero1
from mindllm_engine.optim.optimizer import OptimConfig

Options = dict[str, Any]
ADAMW: Options = {"lr": LEARNING_RATE, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}


@dataclass(frozen=True)
class Engine:
    """One data-parallel engine with a network on this rank.

    Attributes:
        step: takes a step over micro-batches; returns this rank's mean loss, or that of all ranks, () on the device.
        finish: returns when nothing is under way any more.
        tensors: what it keeps from step to step, by kind; tensors may share storage.
    """

    step: Callable[[Sequence[Batch]], Tensor]
    finish: Callable[[], None]
    tensors: Callable[[], dict[str, list[Tensor]]]


@dataclass(frozen=True)
class Variant:
    """A name for the tables, and the options of the engine's maker."""

    engine: str
    name: str
    options: Options


def variants(task: Task) -> list[Variant]:
    """What is tried of each engine; the first of each is what its documentation suggests."""
    elements = sum(parameter.numel() for parameter in task.network.build(device="meta").parameters())
    few, many = max(1, elements // 6), max(1, elements // 15)  # about six and fifteen buckets
    megabytes = elements * task.dtype.itemsize / 2**20

    def zero1(name: str, **options: Any) -> Variant:
        return Variant("ours", name, options)

    def deepspeed(name: str, optimizer: str = "fused", **zero: Any) -> Variant:
        extra = {key: zero.pop(key) for key in ("communication_data_type", "data_types") if key in zero}
        return Variant("deepspeed", name, {"zero": zero, "optimizer": optimizer, "extra": extra})

    def fsdp(name: str, **options: Any) -> Variant:
        return Variant("fsdp", name, {"layers": 1, "reduce_dtype": task.dtype, "prefetch": 0} | options)

    def ddp(name: str, engine: str = "ddp", **options: Any) -> Variant:
        return Variant(engine, name, {"gradient_as_bucket_view": True} | options)

    overlap: Options = {"overlap_comm": True}
    found = [
        zero1("6 buckets", bucket_elements=few),
        zero1("15 buckets", bucket_elements=many),
        deepspeed("default"),
        deepspeed("overlap_comm", **overlap),
        deepspeed("overlap_comm, 6 buckets", **overlap, reduce_bucket_size=few),
        deepspeed("reduce_scatter off", reduce_scatter=False),
        deepspeed("both of these, 6 buckets", **overlap, reduce_scatter=False, reduce_bucket_size=few),
        deepspeed("use_multi_rank_bucket_allreduce off", use_multi_rank_bucket_allreduce=False),
        deepspeed("contiguous_gradients off", contiguous_gradients=False),
        deepspeed("its CPU-built FusedAdam", optimizer="deepspeed"),
        deepspeed("DeepSpeedCPUAdam", optimizer="cpu_adam"),
        fsdp("a layer a group"),
        fsdp("a layer a group, prefetching 2", prefetch=2),
        fsdp("three layers a group", layers=3),
        fsdp("all layers in one group", layers=task.network.n_layers),
        ddp("parameters as bucket views", "ddp_zero", zero={"parameters_as_bucket_view": True}),
        ddp("parameter by parameter", "ddp_zero", zero={}),
        ddp("bucket views, static graph", "ddp_zero", zero={"parameters_as_bucket_view": True}, static_graph=True),
        ddp("default buckets"),
        ddp("6 buckets", bucket_cap_mb=megabytes / 6),
        ddp("static graph", static_graph=True),
        ddp("one bucket", bucket_cap_mb=2 * megabytes),
    ]
    if task.dtype == torch.bfloat16:
        found += [
            deepspeed("gradients summed and sent in fp32", data_types={"grad_accum_dtype": "fp32"}),
            deepspeed("gradients sent in fp32", communication_data_type="fp32"),
            fsdp("a layer a group, gradients sent in fp32", reduce_dtype=torch.float32),
        ]
    return found


def make(variant: Variant, task: Task, world: World) -> Engine:
    """The engine, ready for its first step. All ranks must call this alike."""
    return MAKERS[variant.engine](task, world, **variant.options)


def mean_loss(model: nn.Module, batch: Batch, task: Task) -> Tensor:
    """The mean loss of a micro-batch, as its share of the step's: the sum over a step's is the mean over its tokens."""
    losses = model(batch.tokens, batch.positions, batch.cu_seqlens, targets=batch.targets)
    return losses.sum() / task.tokens


def by_decay(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """Parameter groups: matrices decay, vectors do not."""
    listed = list(parameters)
    return [
        {"params": [p for p in listed if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in listed if p.ndim < 2], "weight_decay": 0.0},
    ]


def state_tensors(optimizers: Iterable[torch.optim.Optimizer]) -> list[Tensor]:
    """Every tensor in the state of some optimizers, those of DTensors local ones."""
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return [local(value) for state in states for value in state.values() if isinstance(value, Tensor) and value.ndim]


def local(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


# ------------------------------------------------------------------------------------------------------------- ours


def ours(task: Task, world: World, bucket_elements: int) -> Engine:
    model = task.build(world.device)
    batch = task.batches(world.rank, world.device)[0][0]
    order = record_execution_order(model, lambda: mean_loss(model, batch, task))
    optim = OptimConfig(LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY, CLIP_NORM)
    config = DistributedConfig(bucket_elements=bucket_elements)
    zero1 = Zero1(model, world, optim, config, task.dtype, order)
    mark_spreading(zero1)
    batch_tokens = task.tokens * world.world_size

    def guard(loss: Tensor, grad_norm: Tensor) -> Tensor:
        return ~(loss + grad_norm).isfinite()

    def step(batches: Sequence[Batch]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=world.device)
        for number, batch in enumerate(batches, start=1):
            losses = model(
                batch.tokens, batch.positions, batch.cu_seqlens, targets=batch.targets, grad_scale=1 / batch_tokens
            )
            total += losses.detach().sum()
            zero1.backward(losses.sum() / batch_tokens, last=number == len(batches))
        sums = torch.stack((total, torch.full_like(total, task.tokens)))
        return zero1.step(LEARNING_RATE, batch_tokens, sums, guard).loss

    def tensors() -> dict[str, list[Tensor]]:
        optimizer = zero1.optimizer
        state = {"master weights": optimizer.master, "moments": [*optimizer.m, *optimizer.v]}
        return {"parameters": [zero1.flat.params], "gradients": [zero1.flat.grads], **state}

    return Engine(step, zero1.wait_for_parameters, tensors)


def mark_spreading(zero1: Zero1) -> None:
    """Have recordings tell its parameters from its gradients: both may travel by the same operator."""
    begin_gather = zero1.begin_gather

    def marked(index: int) -> None:
        with record_function(SPREADING):
            begin_gather(index)

    zero1.begin_gather = marked


# -------------------------------------------------------------------------------------------------------- deepspeed


def deepspeed(task: Task, world: World, zero: Options, optimizer: str, extra: Options) -> Engine:
    """`optimizer`: torch's fused AdamW, DeepSpeed's FusedAdam, or DeepSpeedCPUAdam; the last two are compiled here."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    package = importlib.import_module("deepspeed")
    adam = importlib.import_module("deepspeed.ops.adam")
    make_optimizer = {
        "fused": functools.partial(torch.optim.AdamW, fused=True),
        "deepspeed": functools.partial(adam.FusedAdam, adam_w_mode=True),
        "cpu_adam": functools.partial(adam.DeepSpeedCPUAdam, adamw_mode=True),
    }[optimizer]
    model = task.build(world.device)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": task.micro_batches,
        "gradient_clipping": CLIP_NORM,
        "bf16": {"enabled": task.dtype == torch.bfloat16},
        "zero_optimization": {"stage": 1, **zero},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **extra,
    }
    engine, optimizer_of_it, _, _ = package.initialize(
        model=model,
        optimizer=make_optimizer(by_decay(model.parameters()), **ADAMW),
        config=config,
        dist_init_required=False,
    )

    def step(batches: Sequence[Batch]) -> Tensor:
        total = torch.zeros((), device=world.device)
        for batch in batches:
            loss = mean_loss(engine, batch, task)
            total += loss.detach()
            engine.backward(loss * len(batches))  # which it divides by the number of micro-batches
            engine.step()
        return total

    def tensors() -> dict[str, list[Tensor]]:
        masters = getattr(optimizer_of_it, "single_partition_of_fp32_groups", None)
        if masters is None:  # its BF16_Optimizer
            masters = optimizer_of_it.fp32_groups_flat_partition
        gradients = getattr(optimizer_of_it, "fp32_groups_gradients_flat", [])
        state = {"master weights": list(masters), "moments": state_tensors([optimizer_of_it.optimizer])}
        return {"parameters": list(model.parameters()), "gradients": list(gradients), **state}

    return Engine(step, lambda: None, tensors)


# ------------------------------------------------------------------------------------------------------------- fsdp


def fsdp(task: Task, world: World, layers: int, reduce_dtype: torch.dtype, prefetch: int) -> Engine:
    """FSDP2 as ZeRO-1: parameters are gathered once a step, gradients scattered with the last micro-batch.

    Args:
        layers: how many make a group that is communicated at once; the rest of the network is another.
        prefetch: groups whose all-gather is begun ahead of need.
    """
    package = importlib.import_module("torch.distributed.fsdp")
    model = task.build(world.device, torch.float32)
    policy = package.MixedPrecisionPolicy(param_dtype=task.dtype, reduce_dtype=reduce_dtype)
    groups = [list(model.layers[first : first + layers]) for first in range(0, len(model.layers), layers)]
    mesh = dist.init_device_mesh(world.device.type, (world.world_size,))
    for group in groups:
        package.fully_shard(group, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    package.fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    if prefetch:
        for number, group in enumerate(groups):
            ahead = [layer for later in groups[number + 1 : number + 1 + prefetch] for layer in later]
            group[0].set_modules_to_forward_prefetch(ahead)
    optimizer = torch.optim.AdamW(by_decay(model.parameters()), **ADAMW, fused=True)

    def step(batches: Sequence[Batch]) -> Tensor:
        total = torch.zeros((), device=world.device)
        for number, batch in enumerate(batches, start=1):
            model.set_requires_gradient_sync(number == len(batches))
            model.set_reshard_after_backward(number == len(batches))
            loss = mean_loss(model, batch, task)
            total += loss.detach()
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    def tensors() -> dict[str, list[Tensor]]:
        masters = [local(parameter) for parameter in model.parameters()]
        return {"master weights": masters, "moments": state_tensors([optimizer])}

    return Engine(step, lambda: None, tensors)


# -------------------------------------------------------------------------------------------------------------- ddp


class MasterAdamW(torch.optim.Optimizer):
    """torch's fused AdamW over fp32 copies of low-precision parameters, which are rounded from them after each step.

    What users of bf16 networks under DDP write; torch has no such optimizer.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, options)
        self.masters: list[nn.Parameter] = []
        self.low: list[nn.Parameter] = []
        groups = []
        for group in self.param_groups:
            masters = [nn.Parameter(p.detach().to(torch.float32, copy=True)) for p in group["params"]]
            groups.append({**group, "params": masters})
            self.masters += masters
            self.low += group["params"]
        self.inner = torch.optim.AdamW(groups, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for master, low in zip(self.masters, self.low, strict=True):
            assert low.grad is not None
            master.grad = low.grad.float()
        self.inner.step()
        torch._foreach_copy_(self.low, self.masters)
        for master in self.masters:
            master.grad = None


def ddp(task: Task, world: World, zero: Options | None = None, **options: Any) -> Engine:
    """DDP; with `zero`, ZeroRedundancyOptimizer's options, each rank updates a share of the parameters and sends it."""
    model = task.build(world.device)
    wrapped = nn.parallel.DistributedDataParallel(model, **options)
    parameters = list(model.parameters())
    optimizer: Any
    if zero is None:
        optimizer = MasterAdamW(by_decay(parameters), **ADAMW)
        inner = optimizer
    else:
        make_sharded = importlib.import_module("torch.distributed.optim").ZeroRedundancyOptimizer
        optimizer = make_sharded(by_decay(parameters), MasterAdamW, **ADAMW, **zero)
        inner = optimizer.optim

    def step(batches: Sequence[Batch]) -> Tensor:
        total = torch.zeros((), device=world.device)
        for number, batch in enumerate(batches, start=1):
            with contextlib.nullcontext() if number == len(batches) else wrapped.no_sync():
                loss = mean_loss(wrapped, batch, task)
                total += loss.detach()
                loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    def tensors() -> dict[str, list[Tensor]]:
        state = {"master weights": list(inner.masters), "moments": state_tensors([inner.inner])}
        return {"parameters": [parameter.detach() for parameter in parameters], **state}

    return Engine(step, lambda: None, tensors)


MAKERS: dict[str, Callable[..., Engine]] = {
    "ours": ours,
    "deepspeed": deepspeed,
    "fsdp": fsdp,
    "ddp_zero": functools.partial(ddp),
    "ddp": ddp,
}

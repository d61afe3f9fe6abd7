"""DeepSpeed's stage 1 behind the interface of `backend.Backend`, for those who want its offloading or already run it.

DeepSpeed keeps the parameters, sums the gradients, holds this rank's part of the optimizer state and gathers the new
parameters. What must agree with `zero1.Zero1` to the last digit stays here: the gradient is that of the mean over the
supervised tokens of the global batch, it is clipped by the same formula, and a step can be skipped.

DeepSpeed is imported when a run asks for it. It needs no compiler, MPI or numactl here: none of its C++ operators is
used, not even with offloading, where torch's fused AdamW runs on the CPU.

Where it differs from Zero1: the host waits for the device once a step or more, since DeepSpeed decides there whether to
skip; with bf16 on the wire gradients are also summed in bf16; with `train.precision` bf16 every rank holds the whole
fp32 gradient, and operators hand their gradients over in bf16, micro-batch by micro-batch.
"""

import contextlib
import importlib.util
import io
import json
import os
import warnings
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mindllm_engine.distributed.backend import DistributedConfig, StateKind, StepGuard, StepResult
from mindllm_engine.distributed.flat_parameters import learning_rate_scales, trained_parameters
from mindllm_engine.distributed.layout import Piece, decays
from mindllm_engine.distributed.process_group import World, all_reduce_sum
from mindllm_engine.errors import ConfigError
from mindllm_engine.optim.optimizer import OptimConfig

INSTALL = "pip install 'mindllm-engine[deepspeed]', or set distributed.backend to native"
# What a file of `distributed.deepspeed_config` may set under `zero_optimization`; the rest follows from the run's own
# configuration.
USER_KEYS = ("offload_optimizer", "overlap_comm")


def check_deepspeed(config: DistributedConfig, optim: OptimConfig) -> None:
    """Whatever can be found wrong before a process group starts.

    Raises:
        ConfigError: the package is missing, the file of `deepspeed_config` cannot be used, or another key contradicts.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(f"distributed.backend: the package deepspeed is not installed; {INSTALL}")
    if config.shard_group is not None:
        raise ConfigError("distributed.shard_group: DeepSpeed's stage 1 shards over all ranks; leave the key out")
    if optim.master != "fp32":
        raise ConfigError(f"optim.master: DeepSpeed keeps fp32 master weights, not {optim.master}; set it to fp32")
    read_zero_options(config.deepspeed_config)


def read_zero_options(path: str | None) -> dict[str, Any]:
    """The `zero_optimization` section of a user's DeepSpeed configuration, without what is set anyway.

    Raises:
        ConfigError: the file cannot be read, or sets what this engine sets itself.
    """
    if path is None:
        return {}
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"distributed.deepspeed_config: {path} cannot be read as JSON ({error})") from error
    section = content.get("zero_optimization") if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise ConfigError(
            f"distributed.deepspeed_config: {path} has no section zero_optimization; add it, or leave the key out"
        )
    options = {key: value for key, value in section.items() if (key, value) != ("stage", 1)}
    others = [key for key in content if key != "zero_optimization"]
    others += [f"zero_optimization.{key}" for key in options if key not in USER_KEYS]
    if others:
        raise ConfigError(
            f"distributed.deepspeed_config: {path}: {others[0]} follows from this run's own configuration; remove it "
            f"(zero_optimization.{' and .'.join(USER_KEYS)} may be set)"
        )
    return options


def deepspeed_config(config: DistributedConfig, model_dtype: torch.dtype, wire: torch.dtype) -> dict[str, Any]:
    """What DeepSpeed is told. Batch sizes are for its own bookkeeping: the loop says which micro-batch is the last."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {
            "stage": 1,
            "reduce_bucket_size": config.bucket_elements,
            **read_zero_options(config.deepspeed_config),
        },
        "zero_force_ds_cpu_optimizer": False,  # offloading runs torch's AdamW, which needs no compiler
        # A gradient goes into the fp32 sum as soon as it is complete; a step without a finite gradient norm is skipped.
        "bf16": {
            "enabled": model_dtype == torch.bfloat16,
            "immediate_grad_update": True,
            "check_grad_overflow": True,
        },
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "bf16" if wire == torch.bfloat16 else "fp32",
        "gradient_allreduce_op": "sum",
        "gradient_clipping": 0.0,  # `step` clips
        "timers": {"throughput": {"enabled": False}},  # it waits for the device at every forward
    }


class DeepSpeedZero1:
    """Data parallelism by DeepSpeed: each rank keeps an equal part of the fp32 master weights and moments.

    Sends, when made: the parameters, once, from rank 0. Sends each step: an all-reduce of the gradients, two scalars,
    and an all-gather of the parameters; all of it outside backward unless `overlap_comm` is set.

    Takes over the storage of `model`'s parameters. They must have no attribute `main_grad`: gradients come by autograd.

    Attributes:
        updates, saves_state, overlap: as for `Backend`.
        engine: DeepSpeed's own.
        lr_scales: of its parameter groups, what the learning rate is multiplied by.
    """

    def __init__(
        self, model: nn.Module, world: World, optim: OptimConfig, config: DistributedConfig, wire: torch.dtype
    ) -> None:
        """`wire`: the dtype in which gradients travel.

        Raises:
            ConfigError: as `check_deepspeed`, or DeepSpeed refuses the options of `deepspeed_config`.
        """
        check_deepspeed(config, optim)
        self.updates = 0
        self.saves_state = True
        self.overlap: float | None = None
        self.optim = optim
        self.device = world.device
        names = {parameter: name for name, parameter in trained_parameters(model).items()}
        assert not any(hasattr(parameter, "main_grad") for parameter in names)
        model_dtype = next(iter(names)).dtype
        scales = learning_rate_scales(model)
        kinds: dict[tuple[bool, float], list[nn.Parameter]] = {}  # (matrices or vectors, scale of the learning rate)
        for parameter, name in names.items():
            kinds.setdefault((decays(parameter.shape), scales[name]), []).append(parameter)
        ordered = sorted(kinds, key=lambda kind: not kind[0])
        self.lr_scales = [scale for _, scale in ordered]
        groups = [{"params": kinds[kind], "weight_decay": optim.weight_decay if kind[0] else 0.0} for kind in ordered]
        adamw = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
        self.engine = start_engine(model, adamw, deepspeed_config(config, model_dtype, wire), world)
        # DeepSpeed has one optimizer for bf16 without offloading, which holds the whole fp32 gradient, and another for
        # the rest; they name the same things differently.
        self.optimizer = self.engine.optimizer
        self.is_bf16 = hasattr(self.optimizer, "bf16_groups")
        self.parameters = self.optimizer.bf16_groups if self.is_bf16 else self.optimizer.bit16_groups
        self.masters: list[Tensor] = (  # this rank's part of each group's flat buffer, (elements,) fp32
            self.optimizer.fp32_groups_flat_partition
            if self.is_bf16
            else self.optimizer.single_partition_of_fp32_groups
        )
        self.parts = [
            list_pieces([(names[parameter], tuple(parameter.shape)) for parameter in group], world.rank, master.numel())
            for group, master in zip(self.parameters, self.masters, strict=True)
        ]
        self.world = world
        for master in self.masters:  # before the first step, so that a checkpoint can be read into it
            self.optimizer.state[master] = {
                "step": torch.zeros((), device=master.device),
                "exp_avg": torch.zeros_like(master),
                "exp_avg_sq": torch.zeros_like(master),
            }

    def backward(self, loss: Tensor, last: bool) -> None:
        """Backward of one micro-batch. The upstream gradient of `loss` is exactly 1; with the `last` one of a step the
        gradients are summed over the ranks."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self, lr: float, batch_tokens: int, sums: Tensor, guard: StepGuard) -> StepResult:
        """Scale and clip the summed gradient, update, gather the parameters; see `Backend.step`.

        A step to be skipped, for the guard or for a gradient that is not finite, gets NaN for its gradients: DeepSpeed
        then drops them, and leaves weights and moments as they were. The host waits for the device.
        """
        gradients = self.own_gradients()
        square_norm = torch.nn.utils.get_total_norm(gradients).to(self.device, torch.float64).square()
        totals = all_reduce_sum(torch.cat((sums, square_norm[None])))  # (3,) nats, supervised tokens, squares
        supervised = totals[1].clamp(min=1)
        loss = (totals[0] / supervised).float()
        scale = (batch_tokens / supervised).float()
        grad_norm = totals[2].sqrt().float() * scale
        skip = guard(loss, grad_norm) | ~grad_norm.isfinite()
        self.scale_gradients(gradients, self.optim.clip(scale, grad_norm).masked_fill(skip, torch.nan))
        for group, lr_scale in zip(self.optimizer.param_groups, self.lr_scales, strict=True):
            group["lr"] = lr * lr_scale
        for master in self.masters:  # bias correction counts skipped steps too, as Zero1's does
            self.optimizer.state[master]["step"].fill_(self.updates)
        self.engine.step()
        self.updates += 1
        applied = self.engine.was_step_applied()
        if not applied and not self.is_bf16:
            for index in self.optimizer.averaged_gradients:  # with offloading it would add the next step's to them
                self.optimizer.averaged_gradients[index] = None
        return StepResult(loss, grad_norm, torch.full((), not applied, device=self.device))

    def own_gradients(self) -> list[Tensor]:
        """This rank's part of the gradient summed over the ranks, fp32, where DeepSpeed's optimizer will read it."""
        if self.is_bf16:
            return list(self.optimizer.fp32_groups_gradient_flat_partition)
        if self.optimizer.cpu_offload:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # the gradients are still on their way to the host
            return [master.grad for master in self.masters if master.grad is not None]
        return [gradient for group in self.optimizer.averaged_gradients.values() for gradient in group]

    def scale_gradients(self, gradients: list[Tensor], factor: Tensor) -> None:
        """Multiply them by `factor` (() fp32), NaN to have the step skipped."""
        tensors = list(gradients)
        if not self.is_bf16 and self.optimizer.cpu_offload:  # norms taken on the device, which decide about skipping
            tensors += self.optimizer.norm_for_param_grads.values()
        by_device = {device: factor.to(device) for device in {tensor.device for tensor in tensors}}
        for tensor in tensors:
            tensor.mul_(by_device[tensor.device])

    def wait_for_parameters(self) -> None:
        """They are up to date after `step`."""

    def pieces(self) -> list[Piece]:
        """The parts of parameters whose optimizer state this rank holds; padding is in none."""
        starts = [0]
        for master in self.masters:
            starts.append(starts[-1] + master.numel() * self.world.world_size)
        return [
            Piece(piece.name, piece.shape, piece.first, piece.stop, start + piece.flat)
            for start, group in zip(starts, self.parts, strict=False)
            for piece in group
        ]

    def read_state(self) -> dict[StateKind, list[Tensor]]:
        """Views of the optimizer state of `pieces()`, each (piece.elements,) fp32."""
        return {
            "master": self.views([master.detach() for master in self.masters]),
            "m": self.views([self.optimizer.state[master]["exp_avg"] for master in self.masters]),
            "v": self.views([self.optimizer.state[master]["exp_avg_sq"] for master in self.masters]),
        }

    def write_state(self, state: dict[StateKind, list[Tensor]], updates: int) -> None:
        """Take over optimizer state of `pieces()`, on all ranks, and gather the parameters it stands for."""
        for kind, views in self.read_state().items():
            for view, tensor in zip(views, state[kind], strict=True):
                view.copy_(tensor)
        self.updates = updates
        self.optimizer.update_lp_params()

    def views(self, flats: list[Tensor]) -> list[Tensor]:
        """The parts of this rank's flat tensors, one a group, that are pieces."""
        views = []
        for flat, group in zip(flats, self.parts, strict=True):
            first = self.world.rank * flat.numel()
            views += [flat[piece.flat - first : piece.flat - first + piece.elements] for piece in group]
        return views


def list_pieces(parameters: list[tuple[str, tuple[int, ...]]], rank: int, partition: int) -> list[Piece]:
    """The parts of parameters, (name, shape) in the order of a flat buffer without gaps, that lie in elements
    [rank * partition, (rank + 1) * partition) of it."""
    first, stop = rank * partition, (rank + 1) * partition
    pieces = []
    start = 0
    for name, shape in parameters:
        end = start + prod(shape)
        begin, until = max(start, first), min(end, stop)
        if begin < until:
            pieces.append(Piece(name, shape, begin - start, until - start, begin))
        start = end
    return pieces


def start_engine(model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any], world: World) -> Any:
    """A DeepSpeed engine on the process group of the run, or on one of this process alone, and without its chatter.

    Raises:
        ConfigError: the package cannot be imported, or it refuses the configuration.
    """
    os.environ.setdefault("DS_ACCELERATOR", world.device.type)
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # it insists on this one, in a run without torchrun too
    try:
        import deepspeed
        from deepspeed.utils import groups
    except ImportError as error:
        raise ConfigError(
            f"distributed.backend: the package deepspeed cannot be imported ({error}); {INSTALL}"
        ) from error
    deepspeed.ops.__compatible_ops__ = {}  # else it looks for a compiler, and builds an operator that is not used
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    warnings.filterwarnings(
        "ignore", "`torch.distributed.all_gather_into_tensor` is deprecated", FutureWarning
    )  # its call
    groups._WORLD_GROUP = dist.group.WORLD  # else it makes a copy of the group, with a timeout of its own
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its use of memory; warnings come all the same
            engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    except ValueError as error:  # pydantic's, over several lines
        reason = " ".join(str(error).split())
        raise ConfigError(f"distributed.deepspeed_config: DeepSpeed refuses it ({reason})") from error
    return engine

"""What attention can run on: the facts that decide it, the decision, and the call of each implementation.

`ranking` and `choose` are pure functions of a `Case` and a `Machine`, so the whole dispatch is tested without a GPU.
kernels/attention.py builds the facts and calls what was chosen.

All of these kernels are one algorithm, FlashAttention-2 or -3 (arXiv 2307.08691, 2407.08608): scores never leave the
chip, and the forward keeps q, k, v, its output and a log-sum-exp a query and head. They differ in who built them.
"""

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mindllm_engine.errors import ConfigError

Backend = Literal["flash_attention_3", "flash_attn", "varlen", "sdpa", "reference"]
# In order of speed. FlashAttention-3 reaches 1.7 times the TFLOP/s of FlashAttention-2 on an H100 at head_dim 128; the
# package's FlashAttention-2 is newer than the copy in torch; SDPA launches the same kernel as `varlen`, on fewer cases.
BACKENDS: tuple[Backend, ...] = get_args(Backend)

# FlashAttention-3 is called through its own package and not through torch.nn.attention.activate_flash_attention_impl:
# that imports the same package, and then replaces torch's kernels for the whole process.
_FUNCTIONS: dict[Backend, tuple[str, str]] = {
    "flash_attention_3": ("flash_attn_interface", "flash_attn_varlen_func"),
    "flash_attn": ("flash_attn", "flash_attn_varlen_func"),
    "varlen": ("torch.nn.attention.varlen", "varlen_attn"),
}


# Until October 2025 its deterministic backward missed semaphores for windows and packed sequences
# (Dao-AILab/flash-attention#1893), and the package's version, which would tell the builds apart, did not change.
FLASH_ATTENTION_3_VARIES = "flash_attention_3 is not known to have a deterministic backward"


@dataclass(frozen=True)
class Machine:
    """What a process can run on, the same for all its calls.

    Attributes:
        capability: Compute capability of the GPU, None where torch sees none.
        missing: For each backend whose code is not there, why.
    """

    capability: tuple[int, int] | None
    missing: Mapping[Backend, str]


NO_GPU = Machine(capability=None, missing={})


@dataclass(frozen=True)
class Case:
    """What a call asks for.

    Attributes:
        on_gpu: Whether the tensors are on a GPU.
        dtype: Of q, k and v.
        head_dim: Their last size.
        has_window: Whether a query's keys are limited to the left.
        has_cache: Whether a sequence has more keys than queries.
        equal_lengths: Whether the pack's sequences have one length, as a single sequence does.
        deterministic: Whether the backward must give the same bits each time.
        torch_deterministic: Whether `torch.use_deterministic_algorithms(True)` is in force, and not only to warn.
    """

    on_gpu: bool
    dtype: torch.dtype
    head_dim: int
    has_window: bool
    has_cache: bool
    equal_lengths: bool
    deterministic: bool
    torch_deterministic: bool


class Pack(NamedTuple):
    """What the kernels are told besides q, k and v; the fields are those of `attention`."""

    cu_seqlens: Tensor
    cu_seqlens_k: Tensor
    max_seqlen: int
    max_seqlen_k: int
    window: tuple[int, int]
    scale: float
    deterministic: bool


def machine_obstacle(backend: Backend, machine: Machine) -> str | None:
    """Why `machine` cannot run `backend` in any case, None where it can."""
    if backend == "reference":
        return None
    if machine.capability is None:
        return "torch sees no NVIDIA GPU"
    major, minor = machine.capability
    if backend == "flash_attention_3" and (major, minor) != (9, 0):
        return f"flash_attention_3 needs a GPU of compute capability 9.0 and this one has {major}.{minor}"
    if major < 8:
        return f"FlashAttention needs a GPU of compute capability 8.0 and this one has {major}.{minor}"
    return machine.missing.get(backend)


def case_obstacle(backend: Backend, case: Case) -> str | None:
    """Why no machine can serve `case` with `backend`, None where one can."""
    if backend == "reference":
        return None
    if not case.on_gpu:
        return "the tensors are on the CPU"
    if case.dtype not in (torch.bfloat16, torch.float16):
        return f"FlashAttention takes bf16 and fp16 and not {str(case.dtype).removeprefix('torch.')}"
    if case.head_dim % 8 or case.head_dim > 256:
        return f"FlashAttention takes a head_dim that is a multiple of 8 up to 256 and not {case.head_dim}"
    if case.deterministic and backend == "flash_attention_3":
        return FLASH_ATTENTION_3_VARIES
    if case.deterministic and backend in ("varlen", "sdpa") and not case.torch_deterministic:
        return f"{backend} is deterministic only after torch.use_deterministic_algorithms(True)"
    if backend == "sdpa" and case.has_window:
        return "sdpa has no window"
    if backend == "sdpa" and case.has_cache:
        return "sdpa aligns its causal mask with the first key, a cache needs it at the last"
    if backend == "sdpa" and not case.equal_lengths:
        return "sdpa takes sequences of one length"
    return None


def ranking(case: Case, machine: Machine) -> list[tuple[Backend, str | None]]:
    """The backends in order of speed, each with what keeps it from serving `case` (None for those that can)."""
    return [(backend, case_obstacle(backend, case) or machine_obstacle(backend, machine)) for backend in BACKENDS]


def choose(case: Case, machine: Machine, wanted: Backend | Literal["auto"]) -> tuple[Backend, str]:
    """The backend for `case`, and why: `wanted`, or with "auto" the first that can serve it.

    Raises ConfigError where `wanted` cannot.
    """
    ranked = ranking(case, machine)
    if wanted != "auto":
        obstacle = dict(ranked)[wanted]
        if obstacle is not None:
            raise ConfigError(f"attention is pinned to {wanted}, but {obstacle}; pin another backend, or auto")
        return wanted, "select_attention pinned it"
    reasons: list[str] = []
    for backend, obstacle in ranked:
        if obstacle is None:
            # A fact that rules out several backends is said once.
            return backend, "; ".join(dict.fromkeys(reasons)) or "nothing faster exists"
        reasons.append(obstacle)
    raise AssertionError("the reference serves every case")


@lru_cache(maxsize=1)
def read_machine() -> Machine:
    """This process's machine. Imports the packages to see whether they do: one built for another torch does not."""
    if not torch.cuda.is_available():
        return NO_GPU
    missing = {backend: reason for backend in BACKENDS if (reason := _missing(backend))}
    return Machine(torch.cuda.get_device_capability(), missing)


def _missing(backend: Backend) -> str | None:
    if backend in ("varlen", "sdpa") and not torch.backends.cuda.is_flash_attention_available():
        return f"torch {torch.__version__} is built without FlashAttention"
    if backend not in _FUNCTIONS:
        return None
    module, name = _FUNCTIONS[backend]
    try:
        function = getattr(importlib.import_module(module), name, None)
    except (ImportError, OSError, RuntimeError) as error:  # the last two where a shared library does not load
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            return f"{module} is not installed" if backend != "varlen" else f"torch {torch.__version__} has no {module}"
        return f"{module} does not import: {' '.join(str(error).split())}"
    if function is None:
        return f"{module} has no {name}"
    if backend == "flash_attn" and "deterministic" not in inspect.signature(function).parameters:
        return "flash_attn is older than 2.4.1"
    return None


def run_flash_attention_3(q: Tensor, k: Tensor, v: Tensor, pack: Pack) -> Tensor:
    out = importlib.import_module("flash_attn_interface").flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q=pack.cu_seqlens,
        cu_seqlens_k=pack.cu_seqlens_k,
        max_seqlen_q=pack.max_seqlen,
        max_seqlen_k=pack.max_seqlen_k,
        softmax_scale=pack.scale,
        causal=True,
        window_size=pack.window,
    )
    # Builds until the middle of 2025 give the log-sum-exp as well.
    return out[0] if isinstance(out, tuple) else out


def run_flash_attn(q: Tensor, k: Tensor, v: Tensor, pack: Pack) -> Tensor:
    out: Tensor = importlib.import_module("flash_attn").flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q=pack.cu_seqlens,
        cu_seqlens_k=pack.cu_seqlens_k,
        max_seqlen_q=pack.max_seqlen,
        max_seqlen_k=pack.max_seqlen_k,
        softmax_scale=pack.scale,
        causal=True,
        window_size=pack.window,
        deterministic=pack.deterministic,
    )
    return out


def run_varlen(q: Tensor, k: Tensor, v: Tensor, pack: Pack) -> Tensor:
    """Deterministic where `torch.use_deterministic_algorithms(True)` is in force during the backward."""
    varlen_attn = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    grouped = {}
    if q.shape[1] != k.shape[1]:
        if _varlen_groups_heads():
            grouped = {"enable_gqa": True}
        else:
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    out: Tensor = varlen_attn(
        q,
        k,
        v,
        pack.cu_seqlens,
        pack.cu_seqlens_k,
        pack.max_seqlen,
        pack.max_seqlen_k,
        scale=pack.scale,
        window_size=pack.window,
        **grouped,
    )
    return out


@lru_cache(maxsize=1)
def _varlen_groups_heads() -> bool:
    """False in torch 2.11, whose `varlen_attn` has no `enable_gqa`."""
    function = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    return "enable_gqa" in inspect.signature(function).parameters


def run_sdpa(q: Tensor, k: Tensor, v: Tensor, pack: Pack) -> Tensor:
    """As `run_varlen` for sequences of one length. Pinned to one kernel, since cuDNN's backward has given NaN
    (pytorch#196678)."""
    # (sequences, heads, length, head_dim)
    dense_q, dense_k, dense_v = (x.unflatten(0, (-1, pack.max_seqlen)).transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = F.scaled_dot_product_attention(
            dense_q, dense_k, dense_v, is_causal=True, scale=pack.scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    return out.transpose(1, 2).flatten(0, 1)

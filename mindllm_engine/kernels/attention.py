"""Causal attention over packed sequences, with a left window and a softmax scale: the public function and its choices.

What can run it, and which of it comes first, is in kernels/attention_backends.py; the mathematics that needs no GPU is
in kernels/attention_reference.py.
"""

import logging
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from mindllm_engine.errors import ConfigError
from mindllm_engine.kernels.attention_backends import (
    BACKENDS,
    FLASH_ATTENTION_3_VARIES,
    NO_GPU,
    Backend,
    Case,
    Pack,
    choose,
    machine_obstacle,
    read_machine,
    run_flash_attention_3,
    run_flash_attn,
    run_sdpa,
    run_varlen,
)
from mindllm_engine.kernels.attention_reference import reference_attention

logger = logging.getLogger(__name__)

_RUN = {
    "flash_attention_3": run_flash_attention_3,
    "flash_attn": run_flash_attn,
    "varlen": run_varlen,
    "sdpa": run_sdpa,
}


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    *,
    cu_seqlens_k: Tensor | None = None,
    window: tuple[int, int] = (-1, 0),
    scale: float | None = None,
) -> Tensor:
    """`softmax(scale * q k^T + causal mask) v` within each packed sequence.

    Args:
        q: (tokens, heads, head_dim), like `k` and `v` possibly a view of a packed tensor, its last dimension dense.
        k, v: (tokens_k, kv_heads, head_dim); `kv_heads` divides `heads` (grouped-query attention: key head j serves
            query heads j * heads / kv_heads and on).
        cu_seqlens: (sequences + 1,) int32, the offsets of the sequences in `q`, from 0 to `tokens`.
        cu_seqlens_k: The same for `k` and `v` where they hold more tokens than `q` (a KV cache). The mask is aligned
            bottom-right: a sequence's last query sees its last key.
        window: (left, 0): a query at position i sees keys i - left to i; left = -1 is no limit. GPT-Neo's local layers,
            which see 256 keys with their own, are (255, 0).
        scale: Factor of the scores, by default head_dim^(-1/2).

    Returns (tokens, heads, head_dim) in the dtype of `q`. bf16 and fp16 on a GPU go to the fastest FlashAttention that
    is there, or the one that `select_attention` pinned; all else to `reference_attention`. The first call with a tensor
    of offsets on a GPU waits for it to be read (see `remember_offsets`); later ones, in other layers, do not.

    Raises ValueError for a window that is not causal, heads that do not divide, offsets that do not end at the tokens,
    or a sequence with fewer keys than queries; ConfigError where the pinned backend does not serve the call.
    """
    if _untraced is not None and torch.compiler.is_compiling():
        return _untraced(q, k, v, cu_seqlens, cu_seqlens_k=cu_seqlens_k, window=window, scale=scale)
    heads, kv_heads = q.shape[1], k.shape[1]
    if window[1] != 0 or window[0] < -1:
        raise ValueError(f"attention is causal: its window is (left, 0) with left >= -1, got {window}")
    if heads % kv_heads:
        raise ValueError(f"the {heads} query heads are no multiple of the {kv_heads} key heads")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    has_cache = cu_seqlens_k is not None
    offsets = _read_offsets(cu_seqlens, q.shape[0])
    offsets_k = offsets if cu_seqlens_k is None else _read_offsets(cu_seqlens_k, k.shape[0])
    ends = (offsets.values[-1], offsets_k.values[-1])
    if ends != (q.shape[0], k.shape[0]):
        raise ValueError(f"offsets end at {ends[0]} and {ends[1]}, tokens at {q.shape[0]} and {k.shape[0]}")
    if has_cache:
        _check_cache(offsets.values, offsets_k.values)
    case = _case(q, offsets, window, has_cache)
    backend = _choices.get(case) or _choose(case)
    if backend == "reference":
        return reference_attention(q, k, v, offsets.values, offsets_k.values, has_cache, window[0], scale)
    pack = Pack(
        cu_seqlens,
        cu_seqlens if cu_seqlens_k is None else cu_seqlens_k,
        offsets.longest,
        offsets_k.longest,
        window,
        scale,
        case.deterministic,
    )
    return _RUN[backend](q, k, v, pack)


_untraced: Callable[..., Tensor] | None = None


def end_graphs_before_attention() -> None:
    """From now on `torch.compile` calls `attention` between two graphs and does not look into it: its course depends on
    the offsets' values, which differ from batch to batch, and each would be compiled anew."""
    global _untraced
    _untraced = torch.compiler.disable(attention)


class _Offsets(NamedTuple):
    """Offsets of sequences on the host, and what the kernels need to know of them."""

    values: list[int]
    longest: int
    equal: bool  # all sequences have the length of the longest


_offsets_on_gpu = WeakTensorKeyDictionary()  # tensor of offsets -> (its version, _Offsets)


def remember_offsets(cu_seqlens: Tensor, values: list[int]) -> None:
    """Tell `attention` what a tensor of offsets on a GPU holds, so that it need not wait for the device to read it."""
    if cu_seqlens.is_cuda and not cu_seqlens.is_inference():
        _offsets_on_gpu[cu_seqlens] = (cu_seqlens._version, _measured(values))


def _read_offsets(cu_seqlens: Tensor, tokens: int) -> _Offsets:
    """The offsets in `cu_seqlens`, read from a GPU once for each tensor and not once a layer."""
    if not cu_seqlens.is_cuda:
        return _measured(cu_seqlens.tolist())
    if cu_seqlens.is_inference():
        # Such a tensor does not tell whether it was changed since. Decoding has one sequence, which needs no reading.
        return _measured([0, tokens] if len(cu_seqlens) == 2 else cu_seqlens.tolist())
    known = _offsets_on_gpu.get(cu_seqlens)
    if known is None or known[0] != cu_seqlens._version:
        known = (cu_seqlens._version, _measured(cu_seqlens.tolist()))
        _offsets_on_gpu[cu_seqlens] = known
    offsets: _Offsets = known[1]
    return offsets


def _measured(values: list[int]) -> _Offsets:
    lengths = [end - start for start, end in pairwise(values)]
    longest = max(lengths, default=0)
    return _Offsets(values, longest, min(lengths, default=0) == longest)


def _check_cache(offsets: list[int], offsets_k: list[int]) -> None:
    for (start, end), (start_k, end_k) in zip(pairwise(offsets), pairwise(offsets_k), strict=True):
        if end_k - start_k < end - start:
            raise ValueError(f"a sequence has {end - start} queries and only {end_k - start_k} keys")


class _Selection(NamedTuple):
    backend: Backend | Literal["auto"]
    deterministic: bool


_selection = _Selection("auto", False)
_choices: dict[Case, Backend] = {}  # what was chosen under the present selection


def select_attention(backend: Backend | Literal["auto"] = "auto", deterministic: bool = False) -> None:
    """Say what `attention` runs on from now on in this process.

    Args:
        backend: "auto" is, call by call, the fastest of "flash_attention_3" (package flash_attn_interface, compute
            capability 9.0), "flash_attn" (package, from 2.4.1 on), "varlen" (torch.nn.attention.varlen), "sdpa"
            (torch's FlashAttention kernel on sequences of one length, without window or cache) and "reference" (plain
            PyTorch, for any device and dtype). Another name pins it.
        deterministic: Whether gradients must be the same bits each time. "varlen" and "sdpa" can do so only while
            `torch.use_deterministic_algorithms(True)` is in force, up to the end of the backward;
            "flash_attention_3" cannot. That setting of torch alone has the same effect as this one.

    Raises ConfigError where this machine cannot run a pinned backend. A call that a pinned backend does not serve (its
    dtype, head_dim, window, cache or lengths) raises one as well, instead of running on another.
    """
    global _selection
    if backend not in ("auto", *BACKENDS):
        raise ConfigError(f"attention has no backend {backend!r}; choose auto or one of {', '.join(BACKENDS)}")
    if backend != "auto":
        obstacle = machine_obstacle(backend, read_machine())
        if obstacle is None and deterministic and backend == "flash_attention_3":
            obstacle = FLASH_ATTENTION_3_VARIES
        if obstacle is not None:
            raise ConfigError(f"attention cannot be pinned to {backend}: {obstacle}; choose auto or another backend")
    _selection = _Selection(backend, deterministic)
    _choices.clear()


def _case(q: Tensor, offsets: _Offsets, window: tuple[int, int], has_cache: bool) -> Case:
    # With warn_only, torch's kernels stay as they are.
    torch_deterministic = (
        torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    )
    return Case(
        on_gpu=q.is_cuda,
        dtype=q.dtype,
        head_dim=q.shape[-1],
        has_window=window[0] >= 0,
        has_cache=has_cache,
        equal_lengths=offsets.equal,
        deterministic=_selection.deterministic or torch_deterministic,
        torch_deterministic=torch_deterministic,
    )


def _choose(case: Case) -> Backend:
    backend, reason = choose(case, read_machine() if case.on_gpu else NO_GPU, _selection.backend)
    _log_choice(backend, reason)
    _choices[case] = backend
    return backend


@lru_cache(maxsize=64)
def _log_choice(backend: Backend, reason: str) -> None:
    logger.info("attention runs on %s: %s", backend, reason)

"""Every backend of attention that this machine has, forward and backward, against fp64.

On a GPU those are all that `select_attention` can pin; elsewhere the reference alone, which also shows that the
yardstick itself is right. An error may be twice that of torch's mathematical attention in the same dtype, plus 1e-4.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mindllm_engine.kernels.attention import attention, remember_offsets, select_attention
from mindllm_engine.kernels.attention_backends import BACKENDS, Backend, machine_obstacle, read_machine

HEAD_DIM = 128  # of both networks
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")


def backend_parameters() -> list[object]:
    """All backends; those that are not here are skipped with what keeps them from running."""
    machine = read_machine()
    obstacles = {backend: machine_obstacle(backend, machine) for backend in BACKENDS}
    return [
        pytest.param(backend, marks=pytest.mark.skipif(obstacle is not None, reason=f"{backend}: {obstacle}"))
        for backend, obstacle in obstacles.items()
    ]


@dataclass(frozen=True)
class Shape:
    """A call of `attention`, by the lengths of its sequences."""

    name: str
    lengths: tuple[int, ...]
    lengths_k: tuple[int, ...] | None = None
    kv_heads: int = 4
    window: tuple[int, int] = (-1, 0)
    scale: float | None = None

    def queries(self) -> int:
        return sum(self.lengths)

    def keys(self) -> int:
        return sum(self.lengths_k or self.lengths)


HEADS = 4
ODD = (1, 7, 130, 255, 256, 257, 700)
PACKED = [
    Shape("documents", ODD),
    Shape("gpt_neo_local", ODD, window=(255, 0), scale=1.0),
    Shape("gpt_neo_global", ODD, scale=1.0),
    Shape("short_window", ODD, window=(16, 0)),
    Shape("groups", ODD, kv_heads=2),
    Shape("one_key_head", ODD, kv_heads=1, window=(255, 0)),
    Shape("cache", (1, 5, 64, 1), (300, 5, 500, 1)),
    Shape("cache_local", (1, 5, 64, 1), (300, 5, 500, 1), window=(255, 0), scale=1.0),
]
# What SDPA serves.
DENSE = [
    Shape("one_sequence", (700,)),
    Shape("equal_lengths", (257, 257, 257)),
    Shape("dense_groups", (257, 257), kv_heads=2, scale=1.0),
]


@pytest.fixture(autouse=True)
def automatic() -> Iterator[None]:
    yield
    select_attention()


def offsets(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=DEVICE)


def inputs(shape: Shape, dtype: torch.dtype) -> list[Tensor]:
    """Leaves, q apart from k and v: (tokens, 1, heads, head_dim) and (tokens_k, 2, kv_heads, head_dim). Attention sees
    views of them. Without the usual factor, q is made small instead, so that scores stay in the range of a network's.
    """
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(shape.queries(), 1, HEADS, HEAD_DIM, generator=generator)
    kv = torch.randn(shape.keys(), 2, shape.kv_heads, HEAD_DIM, generator=generator)
    if shape.scale == 1.0:
        q *= HEAD_DIM**-0.5
    return [x.to(DEVICE, dtype).requires_grad_() for x in (q, kv)]


def visible(shape: Shape) -> Tensor:
    """(tokens, tokens_k), True where a query sees a key: by document and position, not by blocks."""
    lengths_k = shape.lengths_k or shape.lengths
    document = torch.repeat_interleave(torch.arange(len(shape.lengths)), torch.tensor(shape.lengths))
    document_k = torch.repeat_interleave(torch.arange(len(lengths_k)), torch.tensor(lengths_k))
    position = torch.cat([torch.arange(n_k - n, n_k) for n, n_k in zip(shape.lengths, lengths_k, strict=True)])
    position_k = torch.cat([torch.arange(n_k) for n_k in lengths_k])
    distance = position[:, None] - position_k
    seen = (document[:, None] == document_k) & (distance >= 0)
    if shape.window[0] >= 0:
        seen &= distance <= shape.window[0]
    return seen.to(DEVICE)


def dense_attention(shape: Shape, q: Tensor, kv: Tensor) -> Tensor:
    """torch's mathematical attention over the whole pack under a mask, computed in the dtype of its inputs."""
    k, v = (x.repeat_interleave(HEADS // shape.kv_heads, dim=1) for x in kv.unbind(1))
    heads_first = (x.transpose(0, 1)[None] for x in (q[:, 0], k, v))  # (1, heads, tokens, head_dim)
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    # Otherwise torch computes half precision in fp32 there, and only its result would be rounded.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            out = F.scaled_dot_product_attention(*heads_first, attn_mask=visible(shape), scale=shape.scale)
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)
    return out[0].transpose(0, 1)


def packed_attention(shape: Shape, q: Tensor, kv: Tensor) -> Tensor:
    cu_seqlens_k = None if shape.lengths_k is None else offsets(shape.lengths_k)
    return attention(
        q[:, 0],
        *kv.unbind(1),
        offsets(shape.lengths),
        cu_seqlens_k=cu_seqlens_k,
        window=shape.window,
        scale=shape.scale,
    )


def with_gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(out.shape, generator=generator).to(torch.bfloat16).to(out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, upstream)]


def assert_accurate(shape: Shape, dtype: torch.dtype) -> None:
    leaves = inputs(shape, dtype)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    truth = with_gradients(dense_attention(shape, *exact), exact)
    peer = with_gradients(dense_attention(shape, *leaves), leaves)
    ours = with_gradients(packed_attention(shape, *leaves), leaves)
    for name, true, own, reference in zip(("output", "dq", "dk and dv"), truth, ours, peer, strict=True):
        assert torch.isfinite(own).all(), name
        for statistic in (Tensor.amax, Tensor.mean):
            error, allowed = (statistic((value.double() - true).abs()).item() for value in (own, reference))
            assert error <= 2 * allowed + 1e-4, f"{name}: {error} against torch's {allowed} ({statistic.__name__})"


def named(shape: object) -> str | None:
    return shape.name if isinstance(shape, Shape) else None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*PACKED, *DENSE], ids=named)
@pytest.mark.parametrize("backend", backend_parameters())
def test_errors_against_fp64(backend: Backend, shape: Shape, dtype: torch.dtype) -> None:
    if backend == "sdpa" and shape not in DENSE:
        pytest.skip("sdpa serves sequences of one length without window or cache")
    select_attention(backend)
    assert_accurate(shape, dtype)


@pytest.mark.parametrize("shape", PACKED[1:5], ids=named)
def test_fp32_is_served_without_being_asked_for(shape: Shape) -> None:
    assert_accurate(shape, torch.float32)


@pytest.mark.parametrize("backend", backend_parameters())
def test_the_windows_edge(backend: Backend) -> None:
    """With equal scores a query averages what it sees: key 100 is seen by queries 100 to 355 and by no other."""
    if backend == "sdpa":
        pytest.skip("sdpa has no window")
    select_attention(backend)
    dtype = torch.bfloat16
    qk = torch.zeros(700, 2, 1, HEAD_DIM, device=DEVICE, dtype=dtype)
    v = torch.zeros(700, 1, HEAD_DIM, device=DEVICE, dtype=dtype)
    v[100] = 1
    out = attention(*qk.unbind(1), v, offsets((700,)), window=(255, 0), scale=1.0)
    seen = 1 / torch.arange(1, 701).clamp(max=256)
    seen[:100] = 0
    seen[356:] = 0
    expected = seen[:, None, None].expand_as(out).to(DEVICE, dtype)
    torch.testing.assert_close(out, expected, rtol=2**-7, atol=0)


@pytest.fixture
def torch_is_deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("torch_is_deterministic")
@pytest.mark.parametrize("shape", [PACKED[0], PACKED[1], PACKED[4], DENSE[1]], ids=named)
@pytest.mark.parametrize("backend", backend_parameters())
def test_deterministic_gradients_repeat_bit_for_bit(backend: Backend, shape: Shape) -> None:
    if backend == "sdpa" and shape not in DENSE:
        pytest.skip("sdpa serves sequences of one length without window or cache")
    if backend == "flash_attention_3":
        pytest.skip("flash_attention_3 is refused in deterministic mode")
    select_attention(backend, deterministic=True)
    leaves = inputs(shape, torch.bfloat16)
    first = with_gradients(packed_attention(shape, *leaves), leaves)
    for _ in range(20 if DEVICE == "cuda" else 1):
        again = with_gradients(packed_attention(shape, *leaves), leaves)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@needs_gpu
def test_flash_attn_is_deterministic_without_torchs_setting() -> None:
    obstacle = machine_obstacle("flash_attn", read_machine())
    if obstacle is not None:
        pytest.skip(obstacle)
    select_attention("flash_attn", deterministic=True)
    leaves = inputs(PACKED[0], torch.bfloat16)
    first = with_gradients(packed_attention(PACKED[0], *leaves), leaves)
    for _ in range(20):
        again = with_gradients(packed_attention(PACKED[0], *leaves), leaves)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@needs_gpu
@pytest.mark.parametrize("backend", backend_parameters())
def test_layers_after_the_first_do_not_wait_for_the_gpu(backend: Backend) -> None:
    if backend == "reference":
        pytest.skip("the reference does not read the offsets again, but builds its masks as it goes")
    select_attention(backend)
    shape = DENSE[1]
    q, kv = inputs(shape, torch.bfloat16)
    cu_seqlens = offsets(shape.lengths)
    attention(q[:, 0], *kv.unbind(1), cu_seqlens).sum().backward()  # the first layer, and the libraries' own start
    torch.cuda.set_sync_debug_mode("error")
    try:
        attention(q[:, 0], *kv.unbind(1), cu_seqlens).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_offsets_that_are_told_are_never_read() -> None:
    q, kv = inputs(Shape("", (600,)), torch.bfloat16)
    cu_seqlens = offsets((10, 590))
    expected = attention(q[:, 0], *kv.unbind(1), offsets((10, 590)))
    remember_offsets(cu_seqlens, [0, 10, 600])
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = attention(q[:, 0], *kv.unbind(1), cu_seqlens)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(out, expected)


@needs_gpu
def test_offsets_changed_in_place_are_read_again() -> None:
    q, kv = inputs(Shape("", (600,)), torch.bfloat16)
    cu_seqlens = offsets((10, 590))
    attention(q[:, 0], *kv.unbind(1), cu_seqlens)
    cu_seqlens.copy_(offsets((300, 300)))
    out = attention(q[:, 0], *kv.unbind(1), cu_seqlens)
    assert torch.equal(out, attention(q[:, 0], *kv.unbind(1), offsets((300, 300))))


@needs_gpu
def test_decoding_in_inference_mode() -> None:
    """Offsets made there count no versions: one sequence needs no reading, several are read each time."""
    for lengths, lengths_k in (((1,), (300,)), ((1, 5), (300, 5))):
        shape = Shape("", lengths, lengths_k)
        q, kv = inputs(shape, torch.bfloat16)
        with torch.inference_mode():
            inferred = packed_attention(shape, q, kv)
        torch.testing.assert_close(inferred, packed_attention(shape, q, kv), rtol=0, atol=0)

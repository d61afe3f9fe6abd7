"""Rotary positions, reference and kernel, against rotation by complex numbers and against Transformers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mindllm_engine.kernels import reference
from mindllm_engine.kernels import rotary as rotary_file
from mindllm_engine.kernels.rotary import document_positions, rotary, rotary_table
from tests.kernels.errors import assert_error_within_twice_torch, assert_same_non_finite, poisoned_memory

BASE, MAX_LEN = 10000.0, 100
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# (heads, kv_heads, head_dim): equal and grouped heads, channels below, at and beside powers of two.
SHAPES = [(3, 3, 8), (4, 1, 6), (1, 1, 2), (5, 2, 80)]
Outputs = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(params=[False, True], ids=["half-split", "interleaved"])
def interleaved(request: pytest.FixtureRequest) -> bool:
    return request.param


def rotate_by_complex_numbers(x: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    """Channels i and i + head_dim / 2, or 2i and 2i + 1, are a complex number, turned by position * base^(-2i/d)."""
    half = x.shape[-1] // 2
    wide = x.double()
    first, second = (wide[..., 0::2], wide[..., 1::2]) if interleaved else (wide[..., :half], wide[..., half:])
    frequencies = BASE ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
    angles = positions[:, None].double() * frequencies
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)[:, None]
    if interleaved:
        return torch.stack((turned.real, turned.imag), dim=-1).flatten(-2).to(x.dtype)
    return torch.cat((turned.real, turned.imag), dim=-1).to(x.dtype)


def positions_of(tokens: int, device: str) -> Tensor:
    return torch.arange(tokens, device=device) * 37 % MAX_LEN


def packed(tokens: int, heads: int, kv_heads: int, head_dim: int, device: str) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(tokens, heads + 2 * kv_heads, head_dim, dtype=torch.float64, device=device)


def ours(kv_heads: int, interleaved: bool = False) -> Callable[[Tensor], Outputs]:
    """In place on a copy, as on the output of a projection."""

    def operator(qkv: Tensor) -> Outputs:
        return out_of_place(kv_heads, interleaved)(qkv.clone())

    return operator


def out_of_place(kv_heads: int, interleaved: bool = False) -> Callable[[Tensor], Outputs]:
    """On the tensor itself: out of place where that is a leaf that requires a gradient."""

    def operator(qkv: Tensor) -> Outputs:
        dtype = torch.float64 if qkv.dtype == torch.float64 else torch.float32
        table = rotary_table(MAX_LEN, qkv.shape[-1], BASE, qkv.device, dtype)
        positions = positions_of(qkv.shape[0], qkv.device)
        return rotary(qkv, positions, table, kv_heads=kv_heads, interleaved=interleaved)

    return operator


def torchs(kv_heads: int, interleaved: bool = False) -> Callable[[Tensor], Outputs]:
    def operator(qkv: Tensor) -> Outputs:
        heads = qkv.shape[1] - 2 * kv_heads
        positions = positions_of(qkv.shape[0], qkv.device)
        q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
        q, k = (rotate_by_complex_numbers(x, positions, interleaved) for x in (q, k))
        return q, k, v.clone()

    return operator


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_complex_rotation(shape: tuple[int, int, int], interleaved: bool, device: str) -> None:
    qkv = packed(7, *shape, device)
    expected = torchs(shape[1], interleaved)(qkv)
    torch.testing.assert_close(ours(shape[1], interleaved)(qkv), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("implementation")
def test_equals_transformers(interleaved: bool, device: str) -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    gptj = pytest.importorskip("transformers.models.gptj.modeling_gptj")
    qkv = packed(9, 4, 2, 16, device)
    q, k, v = qkv.clone().split((4, 2, 2), dim=1)
    angles = positions_of(9, device)[:, None] * BASE ** (-torch.arange(8, device=device).double() / 8)
    cos, sin = angles.cos(), angles.sin()  # (tokens, head_dim / 2)
    if interleaved:
        expected = tuple(gptj.apply_rotary_pos_emb(x[None], sin[None], cos[None])[0] for x in (q, k))
    else:
        cos, sin = (torch.cat((part, part), dim=-1)[None] for part in (cos, sin))
        expected = tuple(x[0] for x in llama.apply_rotary_pos_emb(q[None], k[None], cos, sin, unsqueeze_dim=2))
    torch.testing.assert_close(ours(2, interleaved)(qkv), (*expected, v), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("implementation")
def test_scores_depend_on_the_distance_alone(interleaved: bool, device: str) -> None:
    one = packed(1, 1, 1, 8, device)
    table = rotary_table(MAX_LEN, 8, BASE, device, torch.float64)

    def score(q_position: int, k_position: int) -> Tensor:
        positions = torch.tensor([q_position, k_position], device=device)
        q, k, _ = rotary(one.repeat(2, 1, 1), positions, table, interleaved=interleaved)
        return (q[0] * k[1]).sum()

    for near, far in ((0, 5), (17, 17), (50, 3)):
        torch.testing.assert_close(score(near, far), score(near + 40, far + 40), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("operator", [ours, out_of_place])
def test_gradients_are_those_of_finite_differences(
    operator: Callable[[int, bool], Callable[[Tensor], Outputs]], interleaved: bool, device: str
) -> None:
    qkv = packed(3, 2, 1, 4, device).requires_grad_()
    assert torch.autograd.gradcheck(operator(1, interleaved), qkv)


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize("operator", [ours, out_of_place])
@pytest.mark.parametrize(
    "shape", [*SHAPES, (20, 20, 128), (24, 8, 64), (33, 3, 256), (7, 7, 96), (1, 1, 1128), (2, 1, 2730)]
)
def test_errors_of_the_kernel(
    shape: tuple[int, int, int],
    operator: Callable[[int, bool], Callable[[Tensor], Outputs]],
    interleaved: bool,
    device: str,
) -> None:
    for dtype in DTYPES:
        qkv = packed(3, *shape, device)
        assert_error_within_twice_torch(operator(shape[1], interleaved), torchs(shape[1], interleaved), (qkv,), dtype)


@pytest.mark.usefixtures("implementation")
def test_errors_over_many_tokens(interleaved: bool, device: str) -> None:
    qkv = packed(199, 3, 3, 64, device)
    assert_error_within_twice_torch(ours(3, interleaved), torchs(3, interleaved), (qkv,))


@pytest.mark.usefixtures("triton_kernels")
def test_heads_in_several_blocks(interleaved: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotary_file, "TILE_ELEMENTS", 16 * 8)
    for shape in ((20, 20, 8), (16, 16, 8), (40, 3, 8)):  # blocks of 16 heads, within and across the three parts
        qkv = packed(3, *shape, device)
        assert_error_within_twice_torch(ours(shape[1], interleaved), torchs(shape[1], interleaved), (qkv,))


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch, interleaved: bool) -> None:
    qkv = packed(50, 3, 2, 6, "cpu").requires_grad_()
    whole = torch.autograd.grad(sum(out.square().sum() for out in ours(2, interleaved)(qkv)), qkv)
    monkeypatch.setattr(reference, "CPU_BLOCK_ELEMENTS", 5 * 6 * 7)  # seven tokens a block: the last holds one
    blocked = torch.autograd.grad(sum(out.square().sum() for out in ours(2, interleaved)(qkv)), qkv)
    torch.testing.assert_close(blocked, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("position_dtype", [torch.int32, torch.int64])
def test_any_positions(position_dtype: torch.dtype, device: str) -> None:
    qkv, table = packed(4, 2, 2, 8, device), rotary_table(MAX_LEN, 8, BASE, device, torch.float64)
    positions = torch.tensor([99, -1, 0, -1, 41, -1, 41, -1], device=device, dtype=position_dtype)[::2]
    expected = rotate_by_complex_numbers(qkv[:, :4], positions, interleaved=False)
    q, k, _ = rotary(qkv, positions, table)
    torch.testing.assert_close(torch.cat((q, k), dim=1), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_projection_is_rotated_where_it_lies(mode: Callable[[], object], device: str) -> None:
    weight = torch.randn(5 * 8, 6, device=device, requires_grad=True)
    x, table = torch.randn(4, 6, device=device), rotary_table(MAX_LEN, 8, BASE, device)
    with mode():
        qkv = torch.nn.functional.linear(x, weight).view(4, 5, 8)
        expected = torchs(1)(qkv.detach().clone())
        q, k, v = rotary(qkv, positions_of(4, device), table, kv_heads=1)
    start, size = qkv.data_ptr(), 4 * 8
    assert [part.data_ptr() - start for part in (q, k, v)] == [0, 3 * size, 4 * size]
    assert q.stride() == k.stride() == v.stride() == qkv.stride()
    torch.testing.assert_close((q, k, v), expected, rtol=1e-5, atol=1e-5)
    assert q.requires_grad == (mode is torch.enable_grad)


@pytest.mark.usefixtures("implementation")
def test_a_projection_gets_the_gradient_of_its_weight(device: str) -> None:
    weight = torch.randn(9 * 4, 6, device=device, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5, 6, device=device, dtype=torch.float64)
    gradients = [
        torch.autograd.grad(sum(out.pow(3).sum() for out in operator((x @ weight.t()).view(5, 9, 4))), weight)
        for operator in (out_of_place(3), torchs(3))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("implementation")
def test_a_leaf_that_requires_a_gradient_stays_as_it_is(device: str) -> None:
    leaf = packed(4, 2, 1, 8, device).requires_grad_()
    before = leaf.detach().clone()
    view = leaf.flatten().view(4, 4, 8)
    for qkv in (leaf, view):
        outputs = out_of_place(1)(qkv)
        torch.testing.assert_close(outputs, torchs(1)(before), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        out_of_place(1)(leaf)
    assert torch.equal(leaf, before)


@pytest.mark.usefixtures("implementation")
def test_autograd_notices_that_the_projection_was_consumed(device: str) -> None:
    qkv = packed(4, 2, 1, 8, device).requires_grad_().clone()
    squares = qkv.square()  # saves qkv for its backward
    q, _, _ = out_of_place(1)(qkv)
    with pytest.raises(RuntimeError, match="inplace operation"):
        torch.autograd.grad((squares, q), qkv, (torch.ones_like(squares), torch.ones_like(q)))
    with pytest.raises(RuntimeError, match="modified inplace"):
        q.mul_(2)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: torch.cat((x, x), dim=1)[:, : x.shape[1]],
        lambda x: x[:1].expand(x.shape),
        lambda x: x[:, :1].expand(x.shape),
    ],
    ids=["heads first", "channels apart", "tokens apart", "one token many times", "one head many times"],
)
def test_strided_projections_and_expanded_gradients(
    view: Callable[[Tensor], Tensor], interleaved: bool, device: str
) -> None:
    qkv = packed(5, 3, 1, 8, device)
    strided, plain = view(qkv).detach().requires_grad_(), view(qkv).contiguous().requires_grad_()
    before = strided.detach().clone()
    with poisoned_memory():
        outputs = out_of_place(1, interleaved)(strided.view_as(strided))
        sum(out.sum() for out in outputs).backward()  # gradients of stride 0
    expected = torchs(1, interleaved)(plain)
    sum(out.sum() for out in expected).backward()
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(strided.grad, plain.grad, rtol=1e-12, atol=1e-12)
    assert torch.equal(strided, before)


@pytest.mark.usefixtures("implementation")
def test_gradients_of_any_layout_come_together(device: str) -> None:
    qkv = packed(5, 3, 2, 8, device).requires_grad_()
    together, heads_first = (torch.randn_like(qkv) for _ in range(2))
    layouts = (
        together.split((3, 2, 2), dim=1),  # views of one buffer
        heads_first.transpose(0, 1).contiguous().transpose(0, 1).split((3, 2, 2), dim=1),
        tuple(part.contiguous() for part in together.split((3, 2, 2), dim=1)),
        (together[:1, :3].expand(5, 3, 8), together[:, 3:4].expand(5, 2, 8), together[:, 5:]),
    )
    for upstream in layouts:
        before = [part.clone() for part in upstream]
        with poisoned_memory():
            gradient = torch.autograd.grad(ours(2)(qkv), qkv, upstream)[0]
        assert gradient.is_contiguous()
        torch.testing.assert_close(gradient, torch.autograd.grad(torchs(2)(qkv), qkv, before)[0], rtol=1e-12, atol=0)
        assert all(torch.equal(part, was) for part, was in zip(upstream, before, strict=True))


@pytest.mark.usefixtures("implementation")
def test_outputs_without_a_gradient_count_as_zero(device: str) -> None:
    qkv = packed(5, 2, 2, 8, device).requires_grad_()
    for index in range(3):
        gradient, expected = (
            torch.autograd.grad(operator(2)(qkv)[index].square().sum(), qkv)[0] for operator in (ours, torchs)
        )
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_with_its_pair(value: float, interleaved: bool, device: str) -> None:
    qkv = packed(4, 2, 1, 6, device).float()
    qkv[1, 0, 2] = qkv[2, 2, 5] = qkv[3, 3, 1] = value
    assert_same_non_finite(ours(1, interleaved), torchs(1, interleaved), (qkv,))
    upstream = tuple(part.float() for part in packed(4, 2, 1, 6, device).split((2, 1, 1), dim=1))
    upstream[2][0, 0, 3] = value  # a value's gradient is copied as it is
    leaf = qkv.zero_().requires_grad_()
    gradient = torch.autograd.grad(ours(1, interleaved)(leaf), leaf, upstream)[0]
    assert torch.equal(gradient[:, 3:].nan_to_num(7.0), upstream[2].nan_to_num(7.0))
    assert gradient[:, :3].isfinite().all()


@pytest.mark.usefixtures("implementation")
def test_no_tokens(device: str) -> None:
    qkv = packed(0, 3, 2, 8, device).requires_grad_()
    q, k, v = ours(2)(qkv)
    assert (q.shape, k.shape, v.shape) == ((0, 3, 8), (0, 2, 8), (0, 2, 8))
    (q.sum() + k.sum() + v.sum()).backward()
    assert qkv.grad.shape == qkv.shape


@pytest.mark.usefixtures("implementation")
def test_repeats_bit_for_bit(interleaved: bool, device: str) -> None:
    qkv = packed(9, 5, 2, 16, device).bfloat16().requires_grad_()
    upstream = tuple(part.bfloat16() for part in packed(9, 5, 2, 16, device).split((5, 2, 2), dim=1))
    runs = []
    for operator in (ours, ours, out_of_place):
        outputs = operator(2, interleaved)(qkv)
        runs.append((*outputs, *torch.autograd.grad(outputs, qkv, upstream)))
    assert all(torch.equal(value, first) for run in runs[1:] for value, first in zip(run, runs[0], strict=True))


def test_document_positions(device: str) -> None:
    cu_seqlens = torch.tensor([0, 3, 3, 4, 9], dtype=torch.int32, device=device)  # the second document is empty
    positions = document_positions(cu_seqlens, 11)
    assert positions.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4, 0, 1]
    assert positions.dtype == torch.int32
    assert positions.device == cu_seqlens.device
    assert document_positions(cu_seqlens[:1], 0).shape == (0,)
    assert document_positions(torch.empty(5, dtype=torch.int32, device="meta"), 11).shape == (11,)


def test_a_table_is_made_once(device: str) -> None:
    first, again = (rotary_table(MAX_LEN, 8, BASE, device) for _ in range(2))
    assert first is again


def test_bad_arguments_are_refused() -> None:
    qkv, positions, table = torch.zeros(4, 6, 8), torch.arange(4), rotary_table(4, 8, BASE, "cpu")
    with pytest.raises(ValueError, match="even"):
        rotary_table(4, 7, BASE, "cpu")
    with pytest.raises(ValueError, match=r"\(4, 48\)"):
        rotary(qkv.flatten(1), positions, table)
    with pytest.raises(ValueError, match="even"):
        rotary(qkv[..., :7], positions, table)
    with pytest.raises(ValueError, match="give kv_heads"):
        rotary(qkv[:, :5], positions, table)
    for kv_heads in (0, 3):
        with pytest.raises(ValueError, match="do not hold"):
            rotary(qkv, positions, table, kv_heads=kv_heads)
    with pytest.raises(ValueError, match="4 tokens"):
        rotary(qkv, positions[:3], table)
    with pytest.raises(ValueError, match="4 tokens"):
        rotary(qkv, positions.float(), table)
    with pytest.raises(ValueError, match="no table"):
        rotary(qkv, positions, table[:, :4])

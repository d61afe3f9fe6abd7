"""Rotary positions against rotation by complex numbers."""

import pytest
import torch
from torch import Tensor

from mindllm_engine.kernels import reference
from mindllm_engine.kernels.rotary import rotary, rotary_table
from tests.kernels.errors import assert_error_within_twice_torch

BASE = 10000.0


def rotate_by_complex_numbers(x: Tensor, positions: Tensor) -> Tensor:
    """Channels i and i + head_dim / 2 are a complex number, turned by position * base^(-2i/d)."""
    half = x.shape[-1] // 2
    wide = x.double()
    numbers = torch.complex(wide[..., :half], wide[..., half:])
    angles = positions[:, None].double() * BASE ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = numbers * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1).to(x.dtype)


def case(tokens: int = 10, head_dim: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q = torch.randn(tokens, 3, head_dim, dtype=torch.float64)
    k = torch.randn(tokens, 1, head_dim, dtype=torch.float64)
    positions = torch.arange(tokens) * 37 % 100
    return q, k, positions, rotary_table(100, head_dim, BASE, "cpu", torch.float64)


def test_equals_complex_rotation() -> None:
    q, k, positions, table = case()
    rotated_q, rotated_k = rotary(q, k, positions, table)
    torch.testing.assert_close(rotated_q, rotate_by_complex_numbers(q, positions), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rotated_k, rotate_by_complex_numbers(k, positions), rtol=1e-12, atol=1e-12)


def test_scores_depend_on_the_distance_alone() -> None:
    q, k, positions, table = case()
    q, k = q[:1, :1].expand(10, 1, 8), k[:1].expand(10, 1, 8)
    near_q, _ = rotary(q, k, positions + 0, table)
    _, near_k = rotary(q, k, torch.zeros_like(positions), table)
    far_q, _ = rotary(q, k, (positions + 0).clamp(max=59) + 40, table)
    _, far_k = rotary(q, k, torch.full_like(positions, 40), table)
    same = positions < 60
    scores, shifted = (near_q * near_k).sum(-1), (far_q * far_k).sum(-1)
    torch.testing.assert_close(scores[same], shifted[same], rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "CPU_BLOCK_ELEMENTS", 3 * 8 * 4)
    q, k, positions, table = case()
    assert torch.autograd.gradcheck(
        lambda q, k: rotary(q, k, positions, table), (q.requires_grad_(), k.requires_grad_())
    )


def test_bf16_errors() -> None:
    q, _, positions, _ = case(100, 64)
    table = rotary_table(100, 64, BASE, "cpu")
    assert_error_within_twice_torch(
        lambda q: rotary(q, q, positions, table)[0], lambda q: rotate_by_complex_numbers(q, positions), (q,)
    )


def test_an_odd_head_has_no_table() -> None:
    with pytest.raises(ValueError, match="even"):
        rotary_table(4, 7, BASE, "cpu")

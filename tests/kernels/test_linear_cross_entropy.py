"""The fused projection and loss against torch's cross-entropy of full logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mindllm_engine.kernels import linear_cross_entropy as module
from mindllm_engine.kernels.cross_entropy import cross_entropy
from mindllm_engine.kernels.linear_cross_entropy import linear_cross_entropy
from tests.kernels.errors import assert_error_within_twice_torch

TOKENS, WIDTH, VOCAB = 23, 6, 11


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, the last one partial, and several softmax blocks in each."""
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", 5 * VOCAB * 8)
    monkeypatch.setitem(module.SOFTMAX_BYTES, "cpu", 2 * VOCAB * 4)


def case() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCAB, WIDTH, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, VOCAB, (TOKENS,))
    targets[[2, 7, 8]] = -100
    return hidden, weight, targets


def torchs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.t(), targets, reduction="none")


def test_losses_equal_torch_and_ignored_ones_are_zero() -> None:
    hidden, weight, targets = case()
    losses = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(losses, torchs(hidden, weight, targets), rtol=1e-12, atol=1e-12)
    assert losses[[2, 7, 8]].tolist() == [0, 0, 0]
    assert linear_cross_entropy(hidden.float(), weight.float(), targets).dtype == torch.float32
    torch.testing.assert_close(cross_entropy(hidden @ weight.t(), targets), losses)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_equal_torch(weighted: bool) -> None:
    hidden, weight, targets = case()
    upstream = torch.rand(TOKENS, dtype=torch.float64) if weighted else torch.full((TOKENS,), 0.3, dtype=torch.float64)
    ours = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), (hidden, weight), upstream)
    theirs = torch.autograd.grad(torchs(hidden, weight, targets), (hidden, weight), upstream)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    hidden, weight, targets = case()
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets), (hidden, weight))
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets).mean(), (hidden, weight))


def test_backward_twice_gives_the_same() -> None:
    hidden, weight, targets = case()
    loss = linear_cross_entropy(hidden, weight, targets).mean()
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_improbable_targets_keep_finite_losses(dtype: torch.dtype) -> None:
    hidden = torch.tensor([[100.0], [1.0]], dtype=dtype, requires_grad=True)
    weight = torch.tensor([[4.0], [-4.0]], dtype=dtype, requires_grad=True)
    losses = linear_cross_entropy(hidden, weight, torch.tensor([1, 0]))
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([800.0, 0.000335406], rel=1e-2)
    assert hidden.grad is not None
    assert hidden.grad.flatten().tolist() == pytest.approx([8.0, -0.00268], rel=2e-2)


def test_all_ignored_has_no_gradient() -> None:
    hidden, weight, targets = case()
    losses = linear_cross_entropy(hidden, weight, torch.full_like(targets, -100))
    losses.sum().backward()
    assert losses.abs().max() == 0
    assert hidden.grad is not None
    assert hidden.grad.abs().max() == 0


def test_one_frozen_side_and_no_grad() -> None:
    hidden, weight, targets = case()
    linear_cross_entropy(hidden, weight.detach(), targets).sum().backward()
    assert hidden.grad is not None
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, targets).requires_grad


def test_shapes_that_do_not_match_are_refused() -> None:
    hidden, weight, targets = case()
    with pytest.raises(ValueError, match="linear_cross_entropy needs"):
        linear_cross_entropy(hidden, weight[:, :-1], targets)
    with pytest.raises(ValueError, match="linear_cross_entropy needs"):
        linear_cross_entropy(hidden, weight, targets[:-1])


@pytest.mark.parametrize("weighted", [False, True])
def test_bf16_errors(weighted: bool) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(64, 32, dtype=torch.float64), 0.3 * torch.randn(500, 32, dtype=torch.float64)
    targets = torch.randint(0, 500, (64,))
    scale = torch.rand(64) if weighted else torch.ones(64)
    assert_error_within_twice_torch(
        lambda h, w: (linear_cross_entropy(h, w, targets) * scale).sum(),
        lambda h, w: (F.cross_entropy((h @ w.t()).to(_wide(h)), targets, reduction="none") * scale).sum(),
        (hidden, weight),
    )


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32

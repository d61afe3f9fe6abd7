"""Cross-entropy of given logits, reference and kernels, against torch."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mindllm_engine.kernels import cross_entropy as module
from mindllm_engine.kernels.cross_entropy import cross_entropy
from tests.kernels.errors import assert_error_within_twice_torch, assert_same_non_finite, poisoned_memory

Z = 0.01


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a few hundred columns take several tiles."""
    monkeypatch.setattr(module, "BLOCK", 64)


def torchs(logits: Tensor, targets: Tensor, z_loss: float = Z) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(wide, targets, reduction="none")
    return losses + z_loss * (wide.logsumexp(dim=1).square() * (targets != -100) if z_loss else 0)


def case(tokens: int, vocab: int, device: str, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits in fp64, and targets of which the third is ignored."""
    torch.manual_seed(0)
    targets = torch.randint(0, vocab, (tokens,), device=device)
    targets[2:3] = -100
    return scale * torch.randn(tokens, vocab, dtype=torch.float64, device=device), targets


@pytest.mark.usefixtures("implementation", "small_tiles")
@pytest.mark.parametrize("shape", [(5, 7), (4, 64), (3, 200), (1, 1), (0, 4)])
def test_equals_torch_in_fp64(shape: tuple[int, int], device: str) -> None:
    logits, targets = case(*shape, device)
    logits.requires_grad_()
    upstream = torch.rand(shape[0], dtype=torch.float64, device=device)
    for z_loss in (0.0, Z):
        with poisoned_memory():
            losses = cross_entropy(logits, targets, z_loss=z_loss)
            grad = torch.autograd.grad(losses, logits, upstream)
        expected = torchs(logits, targets, z_loss)
        torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grad, torch.autograd.grad(expected, logits, upstream), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("implementation")
def test_gradients_are_those_of_finite_differences(device: str) -> None:
    logits, targets = case(4, 5, device)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets, z_loss=Z), logits.requires_grad_())


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize("vocab", [1, 7, 1000, 8192, 50257 + 300, 125700])
def test_errors_of_the_kernels(vocab: int, device: str) -> None:
    logits, targets = case(4, vocab, device)
    targets[0], targets[1] = 0, vocab - 1
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert_error_within_twice_torch(
            lambda x: cross_entropy(x, targets, z_loss=Z), lambda x: torchs(x, targets), (logits,), dtype
        )


@pytest.mark.usefixtures("implementation", "small_tiles")
def test_errors_of_large_logits(device: str) -> None:
    logits, targets = case(30, 300, device, scale=1e4)
    for dtype in (torch.bfloat16, torch.float32):
        assert_error_within_twice_torch(
            lambda x: cross_entropy(x, targets), lambda x: torchs(x, targets, 0.0), (logits,), dtype
        )


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: torch.cat((x, x), dim=1)[:, : x.shape[1]],
        lambda x: x[:1].expand(x.shape),
    ],
    ids=["columns first", "rows apart", "one row many times"],
)
def test_strided_logits_and_expanded_gradients(view: Callable[[Tensor], Tensor], device: str) -> None:
    logits, targets = case(6, 9, device)
    strided = view(logits).detach().requires_grad_()
    plain = view(logits).contiguous().requires_grad_()
    with poisoned_memory():
        cross_entropy(strided, torch.stack((targets, targets), dim=1)[:, 0], z_loss=Z).sum().backward()
    torchs(plain, targets).sum().backward()
    torch.testing.assert_close(strided.grad, plain.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("triton_kernels", "small_tiles")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_in_its_row(value: float, device: str) -> None:
    logits, targets = case(6, 150, device)
    logits = logits.float()
    logits[1, 70] = value
    logits[4] = value
    assert_same_non_finite(lambda x: cross_entropy(x, targets), lambda x: torchs(x, targets, 0.0), (logits,))
    logits[2, 70] = value  # an ignored row: nothing of it counts, where torch's gradient is NaN
    losses = cross_entropy(logits.requires_grad_(), targets)
    assert losses[2] == 0
    assert torch.autograd.grad(losses.sum(), logits)[0][2].abs().max() == 0


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize("target", [9, -1, 1 << 40])
def test_a_target_outside_the_vocabulary_is_loud_and_alone(target: int, device: str) -> None:
    logits, targets = case(6, 9, device)
    targets[4] = target
    losses = cross_entropy(logits.requires_grad_(), targets)
    losses.sum().backward()
    assert losses.isnan().nonzero().tolist() == [[4]]
    assert logits.grad is not None
    assert logits.grad.isnan().any(dim=1).nonzero().tolist() == [[4]]


@pytest.mark.usefixtures("triton_kernels")
def test_gradients_repeat_bit_for_bit(device: str) -> None:
    logits, targets = case(6, 3000, device)
    logits = logits.bfloat16().requires_grad_()
    first, second = (torch.autograd.grad(cross_entropy(logits, targets).sum(), logits)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="cross_entropy needs"):
        cross_entropy(torch.zeros(3, 4), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="targets must be integers"):
        cross_entropy(torch.zeros(3, 4), torch.zeros(3))

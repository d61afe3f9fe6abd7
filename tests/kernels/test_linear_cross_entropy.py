"""The fused projection and loss, reference and kernels, against torch's cross-entropy of full logits."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mindllm_engine.kernels import linear_cross_entropy as module
from mindllm_engine.kernels.backend import select_kernels
from mindllm_engine.kernels.linear_cross_entropy import linear_cross_entropy
from tests.kernels.errors import assert_error_within_twice_torch, assert_same_non_finite, poisoned_memory

TOKENS, WIDTH, VOCAB = 23, 6, 11
IGNORED = [2, 7, 8]
Z = 0.01


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, the last one partial, and for the reference several softmax blocks in each."""
    monkeypatch.setattr(module, "SMALLEST_CHUNK", 5)
    monkeypatch.setattr(module, "CPU_CHUNK_BYTES", 5 * VOCAB * 8)
    monkeypatch.setattr(module, "CPU_SOFTMAX_BYTES", 2 * VOCAB * 4)


def case(device: str, tokens: int = TOKENS, vocab: int = VOCAB) -> tuple[Tensor, Tensor, Tensor]:
    """hidden and weight in fp64 that require gradients, and targets, some of them ignored where there are many."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, dtype=torch.float64, device=device, requires_grad=True)
    weight = torch.randn(vocab, WIDTH, dtype=torch.float64, device=device, requires_grad=True)
    targets = torch.randint(0, vocab, (tokens,), device=device)
    if tokens == TOKENS:
        targets[IGNORED] = -100
    return hidden, weight, targets


def torchs(hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
    logits = hidden @ weight.t()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(logits, targets, reduction="none")
    return losses + z_loss * logits.logsumexp(dim=1).square() * (targets != -100)


@pytest.mark.usefixtures("implementation")
def test_losses_equal_torch_and_ignored_ones_are_zero(device: str) -> None:
    hidden, weight, targets = case(device)
    with poisoned_memory():
        losses = linear_cross_entropy(hidden, weight, targets, z_loss=Z)
    torch.testing.assert_close(losses, torchs(hidden, weight, targets, Z), rtol=1e-12, atol=1e-12)
    assert losses[IGNORED].tolist() == [0, 0, 0]
    assert linear_cross_entropy(hidden.float(), weight.float(), targets).dtype == torch.float32


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("tokens", [0, 1, 4, 5, 6, 10, TOKENS])
@pytest.mark.parametrize("reduction", ["weighted", "sum", "mean", "scaled sum"])
def test_gradients_equal_torch(tokens: int, reduction: str, device: str) -> None:
    hidden, weight, targets = case(device, tokens)
    weights = torch.rand(tokens, dtype=torch.float64, device=device)

    def reduced(losses: Tensor) -> Tensor:
        return {
            "weighted": lambda: (losses * weights).sum(),
            "sum": losses.sum,
            "mean": losses.mean,
            "scaled sum": lambda: losses.sum() / 7,
        }[reduction]()

    with poisoned_memory():
        ours = torch.autograd.grad(reduced(linear_cross_entropy(hidden, weight, targets, z_loss=Z)), (hidden, weight))
    theirs = torch.autograd.grad(reduced(torchs(hidden, weight, targets, Z)), (hidden, weight))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_gradients_are_those_of_finite_differences(z_loss: float, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALLEST_CHUNK", 2)
    hidden, weight, targets = case(device, tokens=3, vocab=4)
    targets[1] = -100
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets, z_loss=z_loss), (hidden, weight), fast_mode=True
    )
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets, z_loss=z_loss).sum() / 3, (hidden, weight)
    )


@pytest.mark.usefixtures("implementation")
def test_backward_twice_gives_the_same_bits(device: str) -> None:
    hidden, weight, targets = case(device)
    hidden, weight = (x.detach().bfloat16().requires_grad_() for x in (hidden, weight))
    for weights in (torch.ones(TOKENS, device=device), torch.rand(TOKENS, device=device)):
        losses = linear_cross_entropy(hidden, weight, targets)
        for loss in (losses.sum() * 0.3, (losses * weights).sum()):
            first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
            second = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_improbable_targets_keep_finite_losses(dtype: torch.dtype, device: str) -> None:
    hidden = torch.tensor([[100.0], [1.0]], dtype=dtype, device=device, requires_grad=True)
    weight = torch.tensor([[4.0], [-4.0]], dtype=dtype, device=device, requires_grad=True)
    losses = linear_cross_entropy(hidden, weight, torch.tensor([1, 0], device=device))
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([800.0, 0.000335406], rel=1e-2)
    assert hidden.grad is not None
    assert hidden.grad.flatten().tolist() == pytest.approx([8.0, -0.00268], rel=2e-2)


@pytest.mark.usefixtures("implementation")
def test_logits_of_ten_thousand(device: str) -> None:
    hidden, weight, targets = case(device)
    inputs = 100 * hidden.detach(), 100 * weight.detach()
    assert (inputs[0] @ inputs[1].t()).abs().max() > 1e4
    for dtype in (torch.bfloat16, torch.float32):
        assert_error_within_twice_torch(
            lambda h, w: linear_cross_entropy(h, w, targets), lambda h, w: torchs(h, w, targets), inputs, dtype
        )


@pytest.mark.usefixtures("implementation")
def test_all_ignored_has_no_gradient(device: str) -> None:
    hidden, weight, targets = case(device)
    losses = linear_cross_entropy(hidden, weight, torch.full_like(targets, -100), z_loss=Z)
    losses.sum().backward()
    assert losses.abs().max() == 0
    assert hidden.grad is not None
    assert weight.grad is not None
    assert hidden.grad.abs().max() == 0
    assert weight.grad.abs().max() == 0


@pytest.mark.usefixtures("implementation")
def test_one_frozen_side_and_no_grad(device: str) -> None:
    hidden, weight, targets = case(device)
    expected = torch.autograd.grad(torchs(hidden, weight, targets).sum(), (hidden, weight))
    linear_cross_entropy(hidden, weight.detach(), targets).sum().backward()
    torch.testing.assert_close(hidden.grad, expected[0])
    linear_cross_entropy(hidden.detach(), weight, targets).sum().backward()
    torch.testing.assert_close(weight.grad, expected[1])
    with torch.no_grad():
        losses = linear_cross_entropy(hidden, weight, targets)
    assert not losses.requires_grad
    torch.testing.assert_close(losses, torchs(hidden, weight, targets).detach())


@pytest.mark.usefixtures("implementation")
def test_another_number_is_ignored(device: str) -> None:
    hidden, weight, targets = case(device)
    losses = linear_cross_entropy(hidden, weight, targets.masked_fill(targets == -100, 3), ignore_index=3)
    assert losses[IGNORED].tolist() == [0, 0, 0]
    assert torch.equal(losses != 0, (targets != 3) & (targets != -100))


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize("target", [VOCAB, -1, 1 << 40])
def test_a_target_outside_the_vocabulary_is_loud_and_alone(target: int, device: str) -> None:
    hidden, weight, targets = case(device)
    targets[4] = target
    losses = linear_cross_entropy(hidden, weight, targets)
    losses.sum().backward()
    assert losses.isnan().nonzero().tolist() == [[4]]
    assert hidden.grad is not None
    assert hidden.grad.isnan().any(dim=1).nonzero().tolist() == [[4]]


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_in_its_row(value: float, device: str) -> None:
    hidden, weight, targets = case(device)
    hidden = hidden.detach().float()
    hidden[3, 1] = value
    weight = weight.detach().float()
    assert_same_non_finite(
        lambda h: linear_cross_entropy(h, weight, targets), lambda h: torchs(h, weight, targets), (hidden,)
    )


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize("vocab", [1, 7, 1000, 50257 + 300, 125700])
def test_errors_of_the_kernels(vocab: int, device: str) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(7, 16, dtype=torch.float64, device=device)
    weight = 0.5 * torch.randn(vocab, 16, dtype=torch.float64, device=device)
    targets = torch.tensor([0, vocab - 1, vocab // 2, -100, vocab // 3, vocab - 1, 0], device=device)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert_error_within_twice_torch(
            lambda h, w: linear_cross_entropy(h, w, targets, z_loss=Z),
            lambda h, w: torchs(h, w, targets, Z),
            (hidden, weight),
            dtype,
            summands=vocab,
        )


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("weighted", [False, True])
def test_bf16_errors(weighted: bool, device: str) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(64, 32, dtype=torch.float64, device=device)
    weight = 0.3 * torch.randn(500, 32, dtype=torch.float64, device=device)
    targets = torch.randint(0, 500, (64,), device=device)
    scale = torch.rand(64, device=device) if weighted else torch.ones((), device=device)
    assert_error_within_twice_torch(
        lambda h, w: (linear_cross_entropy(h, w, targets, z_loss=Z) * scale).sum(),
        lambda h, w: (torchs(h, w, targets, Z) * scale).sum(),
        (hidden, weight),
    )


@pytest.mark.usefixtures("implementation")
def test_strided_and_expanded_inputs(device: str) -> None:
    hidden, weight, targets = case(device)
    columns_first = hidden.detach().t().contiguous().t().requires_grad_()
    rows_apart = torch.cat((weight, weight), dim=1).detach()[:, :WIDTH].requires_grad_()
    every_second = torch.stack((targets, targets), dim=1)[:, 0]
    ours = torch.autograd.grad(
        linear_cross_entropy(columns_first, rows_apart, every_second).sum(), (columns_first, rows_apart)
    )
    torch.testing.assert_close(ours, torch.autograd.grad(torchs(hidden, weight, targets).sum(), (hidden, weight)))
    one = hidden.detach()[:1].requires_grad_()
    ours = torch.autograd.grad(linear_cross_entropy(one.expand(TOKENS, -1), weight, targets).sum(), one)
    theirs = torch.autograd.grad(torchs(one.expand(TOKENS, -1), weight, targets).sum(), one)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("implementation")
def test_under_autocast_matrices_are_cast(device: str) -> None:
    hidden, weight, targets = case(device)
    hidden, weight = (x.detach().float().requires_grad_() for x in (hidden, weight))
    with torch.autocast(device, torch.bfloat16):
        losses = linear_cross_entropy(hidden, weight, targets)
    losses.sum().backward()
    narrow = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), targets)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, narrow)
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize("grad_scale", [None, 0.25])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_weight_adds_to_its_main_gradient(grad_scale: float | None, dtype: torch.dtype, device: str) -> None:
    hidden, weight, targets = case(device)
    hidden, weight = (x.detach().to(dtype).requires_grad_() for x in (hidden, weight))
    plain = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets).sum() / 4, (hidden, weight))
    weight.main_grad = torch.full(weight.shape, 2.0, device=device)
    (linear_cross_entropy(hidden, weight, targets, grad_scale=grad_scale).sum() / 4).backward()
    assert weight.grad is None
    assert torch.equal(hidden.grad, plain[0])
    torch.testing.assert_close(weight.main_grad - 2, plain[1].float(), rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("triton_kernels")
def test_a_weighted_loss_adds_to_the_main_gradient(device: str) -> None:
    hidden, weight, targets = case(device)
    weights = torch.rand(TOKENS, device=device)
    expected = torch.autograd.grad((torchs(hidden, weight, targets) * weights).sum(), weight)[0]
    weight.main_grad = torch.full_like(weight, 2.0)
    (linear_cross_entropy(hidden, weight, targets) * weights).sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(weight.main_grad - 2, expected)


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize("grad_scale", [None, 0.5])
def test_two_uses_of_a_tied_weight_add_up(grad_scale: float | None, device: str) -> None:
    """The projection twice over, as in two micro-batches, and the embedding's own gradient beside it."""
    hidden, weight, targets = case(device)
    tokens = torch.arange(TOKENS, device=device) % VOCAB

    def loss(project: Any) -> Tensor:
        x = hidden + F.embedding(tokens, weight)
        return (project(x, weight, targets).sum() + project(x.tanh(), weight, targets).sum()) / 2

    expected = torch.autograd.grad(loss(torchs), weight)[0]
    weight.main_grad = torch.zeros_like(weight)
    loss(lambda h, w, t: linear_cross_entropy(h, w, t, grad_scale=grad_scale)).backward()
    torch.testing.assert_close(weight.main_grad + weight.grad, expected)


@pytest.mark.usefixtures("triton_kernels")
def test_a_broken_promise_raises(device: str) -> None:
    hidden, weight, targets = case(device)
    weight.main_grad = torch.zeros_like(weight)

    def losses() -> Tensor:
        return linear_cross_entropy(hidden, weight, targets, grad_scale=0.25)

    with pytest.raises(RuntimeError, match="differs from token to token"):
        (losses() * torch.rand(TOKENS, device=device)).sum().backward()
    if device == "cpu":  # on a GPU a failed assertion ends the process's use of it
        with pytest.raises(RuntimeError, match=r"promised an upstream gradient of 0\.25"):
            (losses().sum() * 0.2501).backward()
    (losses().sum() * (0.25 * (1 + 1e-6))).backward()
    retained = losses().sum() / 4
    retained.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward and got a second"):
        retained.backward()


def test_promises_need_a_main_gradient_and_the_kernels(device: str) -> None:
    """Elsewhere the gradient is right whatever was promised."""
    hidden, weight, targets = case(device)
    expected = torch.autograd.grad(torchs(hidden, weight, targets).sum(), weight)[0]
    for choice in ("reference", "triton"):
        select_kernels(choice)
        try:
            ours = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, grad_scale=0.25).sum(), weight)
        finally:
            select_kernels("auto")
        torch.testing.assert_close(ours[0], expected)


class Watch(TorchDispatchMode):
    """The operators that were called, and the elements of the largest tensor that one of them allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.called.add(func._schema.name)
        before = {storage(x) for x in (*args, *(kwargs or {}).values()) if isinstance(x, Tensor)}
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor) and storage(value) not in before:
                self.largest = max(self.largest, value.numel())
        return out


def storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize("promised", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_memory_and_waiting(promised: bool, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, where nothing can be waited for, at the size of a real micro-batch."""
    monkeypatch.undo()
    select_kernels("triton")
    tokens, width, vocab = 16384, 2560, 125700
    hidden = torch.empty(tokens, width, device="meta", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.empty(vocab, width, device="meta", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.empty(tokens, device="meta", dtype=torch.int64)
    if promised:
        weight.main_grad = torch.empty(vocab, width, device="meta")
    with Watch() as watch:
        losses = linear_cross_entropy(hidden, weight, targets, grad_scale=0.5 if promised and not weighted else None)
        (losses * torch.empty(tokens, device="meta") if weighted else losses).sum().mul(0.5).backward()
    scratch = module.SMALLEST_CHUNK * (vocab + 60)  # rows of 125,760
    assert scratch <= 0.05 * tokens * vocab
    assert watch.largest == (scratch if promised and not weighted else vocab * width)
    assert not watch.called & {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::_to_copy"}


def test_shapes_and_dtypes_that_do_not_match_are_refused() -> None:
    hidden, weight, targets = case("cpu")
    with pytest.raises(ValueError, match="linear_cross_entropy needs"):
        linear_cross_entropy(hidden, weight[:, :-1], targets)
    with pytest.raises(ValueError, match="linear_cross_entropy needs"):
        linear_cross_entropy(hidden, weight, targets[:-1])
    with pytest.raises(ValueError, match="targets must be integers"):
        linear_cross_entropy(hidden, weight, targets == 0)
    with pytest.raises(ValueError, match="same dtype"):
        linear_cross_entropy(hidden, weight.float(), targets)

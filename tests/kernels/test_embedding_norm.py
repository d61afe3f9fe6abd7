"""The embedding with its RMSNorm, reference and kernels, against torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mindllm_engine.kernels import embedding_norm as embedding_norm_file
from mindllm_engine.kernels.embedding_norm import embedding_norm
from tests.kernels.errors import assert_error_within_twice_torch, assert_same_non_finite, poisoned_memory

EPS = 1e-5
WIDTHS = (1, 7, 199, 760, 1128, 2560, 2730, 6826, 8192, 10240)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Of a vocabulary of 11, chunks being of 4: what is hard for the sums over equal tokens.
TOKENS = {
    "all distinct": [7, 3, 10, 0, 4, 1, 9, 2, 8],
    "one token everywhere": [5] * 21,
    "runs across chunks": [2, 9, 2, 1, 9, 2, 2, 9, 1, 2, 2, 2, 9, 9, 1, 10, 10, 0],
    "a run of whole chunks": [0, 0, 0, 0, 3, 3, 3, 3, 3, 3, 3, 3, 4],
    "first and last of the vocabulary": [10, 0, 10, 0, 10],
    "one": [6],
    "none": [],
}


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_norm_file, "CHUNK", 4)


def torch_embedding_norm(tokens: Tensor, table: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(F.embedding(tokens, table), weight.shape, weight, EPS)


def ours(tokens: Tensor, table: Tensor, weight: Tensor) -> Tensor:
    return embedding_norm(tokens, table, weight, EPS)


def parameters(vocab: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """A table and a weight in fp64."""
    table, weight = (torch.randn(shape, dtype=torch.float64, device=device) for shape in ((vocab, width), (width,)))
    return table, weight


@pytest.mark.usefixtures("implementation", "few_programs", "short_chunks")
@pytest.mark.parametrize("case", TOKENS)
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_equals_torch_in_fp64(case: str, index_dtype: torch.dtype, device: str) -> None:
    tokens = torch.tensor(TOKENS[case], dtype=index_dtype, device=device)
    table, weight = (value.requires_grad_() for value in parameters(11, 6, device))
    grad_y = torch.randn(len(tokens), 6, dtype=torch.float64, device=device)
    with poisoned_memory():
        y = ours(tokens, table, weight)
        gradients = torch.autograd.grad(y, (table, weight), grad_y)
    truth = torch_embedding_norm(tokens, table, weight)
    torch.testing.assert_close(y, truth, rtol=1e-13, atol=1e-13)
    exact = torch.autograd.grad(truth, (table, weight), grad_y)
    torch.testing.assert_close(gradients, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("implementation", "short_chunks")
def test_gradients_are_those_of_finite_differences(device: str) -> None:
    tokens = torch.tensor([4, 1, 4, 0, 4, 4, 4], device=device)
    table, weight = (value.requires_grad_() for value in parameters(5, 6, device))
    assert torch.autograd.gradcheck(lambda table, weight: ours(tokens, table, weight), (table, weight))


@pytest.mark.usefixtures("triton_kernels", "few_programs", "short_chunks")
@pytest.mark.parametrize("width", WIDTHS)
def test_errors_of_the_kernels(width: int, device: str) -> None:
    tokens = torch.tensor([1, 0, 1, 1, 4, 1, 1], device=device)
    for dtype in DTYPES:
        table, weight = parameters(5, width, device)
        assert_error_within_twice_torch(ours, torch_embedding_norm, (tokens, table, weight), dtype)


@pytest.mark.usefixtures("implementation", "few_programs")
def test_errors_over_a_large_vocabulary(device: str) -> None:
    tokens = torch.randint(125_700, (100,), device=device)
    tokens[::3] = 125_699  # a third of the batch is one token
    table, weight = parameters(125_700, 16, device)
    assert_error_within_twice_torch(ours, torch_embedding_norm, (tokens, table, weight))


@pytest.mark.usefixtures("implementation")
def test_strided_inputs_and_expanded_gradients(device: str) -> None:
    tokens = torch.tensor([[3, 0], [3, 0], [1, 0]], device=device)[:, 0]
    table, weight = parameters(4, 8, device)
    strided = torch.cat((table, table), dim=1)[:, :8].requires_grad_()
    plain = table.clone().requires_grad_()
    with poisoned_memory():
        ours(tokens, strided, weight).sum().backward()  # a gradient of stride 0
    torch_embedding_norm(tokens, plain, weight).sum().backward()
    torch.testing.assert_close(strided.grad, plain.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(value: float, device: str) -> None:
    table, weight = (part.float() for part in parameters(4, 33, device))
    table[2, 7] = value
    tokens = torch.tensor([1, 2, 1, 0, 2], device=device)
    assert_same_non_finite(ours, torch_embedding_norm, (tokens, table, weight))


@pytest.mark.usefixtures("triton_kernels", "short_chunks")
def test_tokens_beyond_the_vocabulary_give_nan_and_touch_nothing(device: str) -> None:
    table, weight = (part.float().requires_grad_() for part in parameters(4, 8, device))
    tokens = torch.tensor([1, 4, -1, 3, -1, -1, 2**40, 3, 4, 4, -7], device=device)
    known = (tokens >= 0) & (tokens < 4)
    y = ours(tokens, table, weight)
    assert torch.equal(y.isnan().any(dim=1), ~known)
    torch.testing.assert_close(y[known], torch_embedding_norm(tokens[known], table, weight))
    grad_table = torch.autograd.grad(y.sum(), table)[0]
    exact = torch.autograd.grad(torch_embedding_norm(tokens[known], table, weight).sum(), table)[0]
    torch.testing.assert_close(grad_table, exact)


@pytest.mark.usefixtures("triton_kernels", "few_programs", "short_chunks")
def test_parameters_add_to_their_main_gradients(device: str) -> None:
    tokens = torch.tensor(TOKENS["runs across chunks"], device=device)
    table, weight = (value.bfloat16().requires_grad_() for value in parameters(40, 64, device))
    exact = [value.detach().double().requires_grad_() for value in (table, weight)]
    grad_y = torch.randn(len(tokens), 64, device=device).bfloat16()
    torch_embedding_norm(tokens, *exact).backward(grad_y.double())
    before = torch.randn(40, 64, device=device)
    table.main_grad, weight.main_grad = before.clone(), torch.full((64,), 2.0, device=device)
    ours(tokens, table, weight).backward(grad_y)
    assert table.grad is None
    assert weight.grad is None
    torch.testing.assert_close((table.main_grad - before).double(), exact[0].grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((weight.main_grad - 2).double(), exact[1].grad, rtol=1e-4, atol=1e-4)
    untouched = [token for token in range(40) if token not in tokens]
    assert torch.equal(table.main_grad[untouched], before[untouched])


@pytest.mark.usefixtures("triton_kernels", "few_programs", "short_chunks")
def test_gradients_repeat_bit_for_bit(device: str) -> None:
    tokens = torch.randint(6, (60,), device=device)
    table, weight = (value.bfloat16().requires_grad_() for value in parameters(8, 200, device))
    first, second = (
        torch.autograd.grad(ours(tokens, table, weight).float().square().sum(), (table, weight)) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_arguments_that_do_not_agree_are_refused() -> None:
    tokens, table = torch.zeros(3, dtype=torch.int64), torch.zeros(5, 4)
    with pytest.raises(ValueError, match="tokens"):
        embedding_norm(tokens.float(), table, torch.zeros(4), EPS)
    with pytest.raises(ValueError, match="tokens"):
        embedding_norm(tokens[None], table, torch.zeros(4), EPS)
    with pytest.raises(ValueError, match="weight"):
        embedding_norm(tokens, table, torch.zeros(3), EPS)

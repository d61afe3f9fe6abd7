"""Packed attention against a brute-force mask over all pairs of tokens."""

import pytest
import torch
from torch import Tensor

from mindllm_engine.kernels.attention import attention
from mindllm_engine.kernels.attention_reference import QUERY_BLOCK, SHARED_ROWS
from tests.kernels.errors import assert_error_within_twice_torch


def brute_force(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int], lengths_k: list[int], left: int, scale: float
) -> Tensor:
    """One query at a time: which keys it sees, by its place in its document counted from the end."""
    out = []
    group = q.shape[1] // k.shape[1]
    start_q = start_k = 0
    for length, length_k in zip(lengths, lengths_k, strict=True):
        for row in range(length):
            position = length_k - length + row
            first = 0 if left < 0 else max(0, position - left)
            seen = slice(start_k + first, start_k + position + 1)
            heads = []
            for head in range(q.shape[1]):
                scores = scale * (k[seen, head // group] @ q[start_q + row, head])
                heads.append(torch.softmax(scores, dim=0) @ v[seen, head // group])
            out.append(torch.stack(heads))
        start_q, start_k = start_q + length, start_k + length_k
    return torch.stack(out)


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def tensors(tokens: int, tokens_k: int, heads: int, kv_heads: int, head_dim: int) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((tokens, heads), (tokens_k, kv_heads), (tokens_k, kv_heads))
    return [torch.randn(*shape, head_dim, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("left", [-1, 0, 3, 255])
def test_packed_documents_windows_and_groups(left: int, kv_heads: int) -> None:
    lengths = [1, 9, 4, 17]
    q, k, v = tensors(sum(lengths), sum(lengths), 4, kv_heads, 6)
    ours = attention(q, k, v, offsets(lengths), window=(left, 0))
    theirs = brute_force(q, k, v, lengths, lengths, left, 6**-0.5)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (q, k, v), upstream), torch.autograd.grad(theirs, (q, k, v), upstream)
    )


@pytest.mark.parametrize("left", [-1, 3, 100])
@pytest.mark.parametrize(
    "lengths", [[60, 68, 1, 90, 38, 5], [5, 0, 123, 2, 129, 7], [SHARED_ROWS, 1], [SHARED_ROWS + 1, 1]]
)
def test_short_documents_share_blocks(lengths: list[int], left: int) -> None:
    q, k, v = tensors(sum(lengths), sum(lengths), 1, 1, 4)
    ours = attention(q, k, v, offsets(lengths), window=(left, 0))
    theirs = brute_force(q, k, v, lengths, lengths, left, 0.5)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (q, k, v), upstream), torch.autograd.grad(theirs, (q, k, v), upstream)
    )


@pytest.mark.parametrize("left", [-1, 100, 255, 300])
def test_documents_longer_than_a_block_of_queries(left: int) -> None:
    lengths = [2 * QUERY_BLOCK + 7, QUERY_BLOCK, QUERY_BLOCK + 1]
    q, k, v = tensors(sum(lengths), sum(lengths), 1, 1, 4)
    ours = attention(q, k, v, offsets(lengths), window=(left, 0), scale=1.0)
    starts = [0, lengths[0], lengths[0] + lengths[1]]
    theirs = []
    for start, length in zip(starts, lengths, strict=True):
        distance = torch.arange(length)[:, None] - torch.arange(length)
        hidden = (distance < 0) | ((distance > left) if left >= 0 else torch.tensor(False))
        part = slice(start, start + length)
        scores = (q[part, 0] @ k[part, 0].t()).masked_fill(hidden, -torch.inf)
        theirs.append((torch.softmax(scores, dim=-1) @ v[part, 0]).unsqueeze(1))
    expected = torch.cat(theirs)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)
    upstream = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (q, k, v), upstream), torch.autograd.grad(expected, (q, k, v), upstream)
    )


@pytest.mark.parametrize("left", [-1, 4])
def test_queries_continue_a_cache(left: int) -> None:
    lengths, lengths_k = [1, 3, 5], [8, 3, 20]
    q, k, v = tensors(sum(lengths), sum(lengths_k), 2, 1, 4)
    ours = attention(q, k, v, offsets(lengths), cu_seqlens_k=offsets(lengths_k), window=(left, 0), scale=0.7)
    torch.testing.assert_close(ours, brute_force(q, k, v, lengths, lengths_k, left, 0.7), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("left", [-1, 2])
def test_gradients_are_those_of_finite_differences(left: int) -> None:
    q, k, v = tensors(7, 7, 2, 1, 2)
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, offsets([3, 4]), window=(left, 0)), (q, k, v))


def test_views_and_expanded_gradients() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(12, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    attention(*qkv.unbind(1), offsets([5, 7])).sum().backward()
    by_hand = brute_force(*qkv.unbind(1), [5, 7], [5, 7], -1, 0.5).sum()
    torch.testing.assert_close(qkv.grad, torch.autograd.grad(by_hand, qkv)[0])


def test_large_scores_stay_finite() -> None:
    q, k, v = (1e4 * x.detach() for x in tensors(6, 6, 1, 1, 4))
    assert torch.isfinite(attention(q, k, v, offsets([6]), scale=1.0)).all()


@pytest.mark.parametrize("scale", [8**-1, 1.0])
def test_bf16_errors(scale: float) -> None:
    length = 2 * QUERY_BLOCK + 100

    def torchs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True, scale=scale)
        return out[0].transpose(0, 1)

    assert_error_within_twice_torch(
        lambda q, k, v: attention(q, k, v, offsets([length]), scale=scale), torchs, tensors(length, length, 2, 2, 64)
    )


def test_impossible_arguments_are_refused() -> None:
    q, k, v = tensors(4, 4, 3, 2, 2)
    with pytest.raises(ValueError, match="multiple"):
        attention(q, k, v, offsets([4]))
    with pytest.raises(ValueError, match="window"):
        attention(q[:, :2], k, v, offsets([4]), window=(-1, 3))
    with pytest.raises(ValueError, match="queries"):
        attention(q[:, :2], k[:3], v[:3], offsets([4]), cu_seqlens_k=offsets([3]))
    with pytest.raises(ValueError, match="offsets end at 3"):
        attention(q[:, :2], k, v, offsets([3]))

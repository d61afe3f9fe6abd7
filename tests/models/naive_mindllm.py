"""MindLLM written a second time, from the paper alone: one document at a time, one head at a time, explicit masks.

Shares no code with the package. Queries, keys and values are separate matrices, positions are complex rotations, the
norms and the loss are spelled out. For fp64.
"""

import math

import torch
from torch import Tensor

NaiveParameters = dict[str, Tensor]


def naive_logits(
    parameters: NaiveParameters, tokens: Tensor, n_layers: int, n_heads: int, base: float, eps: float
) -> Tensor:
    """Logits (length, vocab) of one document."""
    alpha = (2 * n_layers) ** 0.25
    x = norm(parameters["embedding"][tokens], parameters["embedding_norm"], eps)
    for layer in range(n_layers):
        weights = {name.removeprefix(f"{layer}."): value for name, value in parameters.items() if name[0] == str(layer)}
        x = norm(alpha * x + attend(x, weights, n_heads, base), weights["attention_norm"], eps)
        gate, up = x @ weights["gate"].T, x @ weights["up"].T
        gelu = gate / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        x = norm(alpha * x + (gelu * up) @ weights["ffn_out"].T, weights["ffn_norm"], eps)
    return x @ parameters["embedding"].T


def naive_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p of each target, 0 where it is -100."""
    losses = []
    for row, target in zip(logits, targets.tolist(), strict=True):
        losses.append(row.new_zeros(()) if target == -100 else row.exp().sum().log() - row[target])
    return torch.stack(losses)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps) * weight


def attend(x: Tensor, weights: NaiveParameters, n_heads: int, base: float) -> Tensor:
    length, hidden = x.shape
    head_dim = hidden // n_heads
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    heads = []
    for head in range(n_heads):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        query, key, value = (x @ weights[name][rows].T for name in ("query", "key", "value"))
        scores = rotate(query, base) @ rotate(key, base).T / math.sqrt(head_dim)
        heads.append(torch.softmax(scores.masked_fill(later, -math.inf), dim=-1) @ value)
    return torch.cat(heads, dim=-1) @ weights["attention_out"].T


def rotate(x: Tensor, base: float) -> Tensor:
    """Row p of (length, head_dim): channels (i, i + head_dim / 2) are a complex number turned by p * base^(-2i/d)."""
    length, head_dim = x.shape
    half = head_dim // 2
    numbers = torch.complex(x[:, :half], x[:, half:])
    rows = []
    for position in range(length):
        angles = torch.tensor([position * base ** (-2 * i / head_dim) for i in range(half)], dtype=torch.float64)
        rows.append(numbers[position] * torch.exp(1j * angles))
    turned = torch.stack(rows)
    return torch.cat((turned.real, turned.imag), dim=-1)

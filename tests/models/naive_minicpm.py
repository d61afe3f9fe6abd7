"""MiniCPM a second time, as its paper reads (arXiv 2404.06395, section 3 and Table 7): one document, whole matrices of
scores, keys and values repeated, every factor where the paper names it. It shares nothing with the package."""

import math
from typing import Any

import torch
from torch import Tensor


def naive_logits(parameters: dict[str, Tensor], tokens: Tensor, config: Any) -> Tensor:
    """(T, vocab_size) logits of one document; `parameters` under the model's names, `config` with its keys."""
    branch_factor = 1.0 if config.scale_depth is None else config.scale_depth / math.sqrt(config.n_layers)
    logits_factor = 1.0 if config.width_base is None else 1.0 / (config.hidden_size / config.width_base)
    count, width = len(tokens), config.hidden_size // config.n_heads
    ones_below = torch.ones(count, count, dtype=torch.bool).tril()
    x = config.scale_emb * parameters["embedding"][tokens]
    for index in range(config.n_layers):
        p = {name.split(".")[-1]: value for name, value in parameters.items() if name.startswith(f"layers.{index}.")}
        normed = _norm(x, p["attention_norm"], config.norm_eps)
        queries = config.n_heads * width
        keys = config.n_kv_heads * width
        q = (normed @ p["qkv"][:queries].T).reshape(count, config.n_heads, width)
        k = (normed @ p["qkv"][queries : queries + keys].T).reshape(count, config.n_kv_heads, width)
        v = (normed @ p["qkv"][queries + keys :].T).reshape(count, config.n_kv_heads, width)
        q, k = _rotate(q, config.rope_base), _rotate(k, config.rope_base)
        heads = []
        for head in range(config.n_heads):
            shared = head // (config.n_heads // config.n_kv_heads)
            scores = q[:, head] @ k[:, shared].T / math.sqrt(width)
            heads.append(scores.masked_fill(~ones_below, -math.inf).softmax(dim=-1) @ v[:, shared])
        x = x + branch_factor * (torch.cat(heads, dim=-1) @ p["attention_out"].T)
        normed = _norm(x, p["ffn_norm"], config.norm_eps)
        gate, up = normed @ p["gate_up"][: config.ffn_size].T, normed @ p["gate_up"][config.ffn_size :].T
        x = x + branch_factor * ((gate * torch.sigmoid(gate) * up) @ p["ffn_out"].T)
    return logits_factor * (_norm(x, parameters["final_norm"], config.norm_eps) @ parameters["embedding"].T)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps) * weight


def _rotate(x: Tensor, base: float) -> Tensor:
    """Channels i and i + width / 2 as a complex number, turned by position * base^(-2i / width)."""
    half = x.shape[-1] // 2
    angle = torch.outer(torch.arange(len(x), dtype=x.dtype), base ** (-torch.arange(half, dtype=x.dtype) / half))
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat((turned.real, turned.imag), dim=-1)

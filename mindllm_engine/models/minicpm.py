"""MiniCPM's network (arXiv 2404.06395, section 3): Llama's layers, with the factors of a width-independent training.

Pre-RMSNorm, rotary positions, SwiGLU, grouped-query attention, tied embeddings, no biases. Table 7's factors let what
is good for a narrow network be good for a wide one: the embedding's output times `scale_emb`, each branch times
`scale_depth / sqrt(n_layers)`, and with m = hidden_size / width_base logits divided by m, the initial deviation of the
layers' matrices by sqrt(m), and their learning rate by m. Without the factors it is Llama with tied embeddings.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindllm_engine.errors import ConfigError
from mindllm_engine.kernels.attention import attention
from mindllm_engine.kernels.linear_cross_entropy import linear_cross_entropy
from mindllm_engine.kernels.reference import statistics_dtype
from mindllm_engine.kernels.rms_norm import deepnorm_residual, deepnorm_residual_and_sum, rms_norm
from mindllm_engine.kernels.rotary import rotary, rotary_table
from mindllm_engine.kernels.swiglu import swiglu
from mindllm_engine.models.initialization import count_parameters, matrix_flops, normal_
from mindllm_engine.models.kv_cache import AttentionCache, KVCache
from mindllm_engine.models.lora import AdaptableLayer


@dataclass
class MiniCPMConfig:
    """Sizes and factors of a MiniCPM network; the paper's are in configs/. The defaults of the factors give a Llama."""

    vocab_size: int
    """Rows of the embedding, which is also the output projection."""
    hidden_size: int
    """Width of the residual stream."""
    ffn_size: int
    """Width inside the feed-forward, after the gate."""
    n_layers: int
    """Layers, each an attention and a feed-forward residual."""
    n_heads: int
    """Heads of queries, each hidden_size / n_heads wide, which must be even."""
    n_kv_heads: int
    """Heads of keys and of values; each serves n_heads / n_kv_heads heads of queries."""
    max_seq_len: int
    """Positions that the rotary table covers: the longest document that the network takes."""
    scale_emb: float = 1.0
    """Factor of the embedding's output."""
    scale_depth: float | None = None
    """Each branch counts scale_depth / sqrt(n_layers) times in the residual stream; null counts it once."""
    width_base: int | None = None
    """Width at which `init_std` and the learning rate hold as they are; null is the network's own."""
    init_std: float = 0.02
    """Standard deviation of the fresh embedding, and of the layers' matrices at `width_base`."""
    rope_base: float = 10000.0
    """Base of the rotary frequencies (arXiv 2104.09864, section 3.2.2)."""
    norm_eps: float = 1e-5
    """Added to the mean square in every RMSNorm."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.n_heads

    @property
    def residual_scale(self) -> float:
        """Factor of a branch where it joins the residual stream."""
        return 1.0 if self.scale_depth is None else self.scale_depth / math.sqrt(self.n_layers)

    @property
    def width_multiplier(self) -> float:
        """How many times as wide the network is as the base."""
        return 1.0 if self.width_base is None else self.hidden_size / self.width_base

    def validate(self) -> None:
        """Raise ConfigError, naming the key, for sizes that make no network."""
        for key in ("vocab_size", "hidden_size", "ffn_size", "n_layers", "n_heads", "n_kv_heads", "max_seq_len"):
            if getattr(self, key) < 1:
                raise ConfigError(f"model.minicpm.{key} must be at least 1, not {getattr(self, key)}")
        for key in ("scale_emb", "scale_depth", "width_base", "init_std", "rope_base", "norm_eps"):
            value = getattr(self, key)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"model.minicpm.{key} must be above 0, not {value}")
        for whole, part in (("hidden_size", "n_heads"), ("n_heads", "n_kv_heads")):
            if getattr(self, whole) % getattr(self, part):
                raise ConfigError(
                    f"model.minicpm.{part} {getattr(self, part)} does not divide model.minicpm.{whole} "
                    f"{getattr(self, whole)}"
                )
        if self.head_dim % 2:
            raise ConfigError(
                "model.minicpm.hidden_size / model.minicpm.n_heads must be even for rotary positions, not "
                f"{self.head_dim}"
            )

    def build(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None, seed: int | None = None
    ) -> "MiniCPM":
        """A network with fresh parameters (on the meta device, without any). The same `seed` gives the same parameters
        on every device; None draws another network each time."""
        self.validate()
        model = MiniCPM(self, device=device, dtype=dtype)
        if not model.embedding.is_meta:
            model.reset_parameters(seed)
        return model


class MiniCPM(nn.Module):
    """Embedding * scale_emb -> n_layers of `x += s attention(norm(x))`, `x += s ffn(norm(x))` -> norm -> logits / m.

    s is `residual_scale`, m `width_multiplier`. Each addition to the residual stream is one pass with the norm that
    follows it, so a branch's output travels beside the stream until the next norm. Build it through
    `MiniCPMConfig.build`.
    """

    def __init__(self, config: MiniCPMConfig, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size, device=device, dtype=dtype))
        self.layers = nn.ModuleList(MiniCPMLayer(config, index, device, dtype) for index in range(config.n_layers))
        self.final_norm = nn.Parameter(torch.empty(config.hidden_size, device=device, dtype=dtype))

    def reset_parameters(self, seed: int | None) -> None:
        """The embedding from N(0, init_std^2), the layers' matrices from N(0, init_std^2 / m), norm weights 1."""
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        config = self.config
        normal_(self.embedding, config.init_std, generator)
        for layer in self.layers:
            for parameter in layer.parameters():
                if parameter.ndim == 2:
                    normal_(parameter, config.init_std / math.sqrt(config.width_multiplier), generator)
                else:
                    nn.init.ones_(parameter)
        nn.init.ones_(self.final_norm)

    def learning_rate_scales(self) -> dict[str, float]:
        """What the learning rate of a parameter is multiplied by, where that is not 1: of the layers' matrices 1 / m.

        Table 7 says "two-dimensional tensors" and gives the others the full rate and `init_std`; the embedding is
        taken for one of those others, since its fan-in does not grow with the width.
        """
        scale = 1 / self.config.width_multiplier
        if scale == 1:
            return {}
        return {
            f"layers.{index}.{name}": scale
            for index, layer in enumerate(self.layers)
            if isinstance(layer, MiniCPMLayer)
            for name in layer.linear_parts
        }

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        targets: Tensor | None = None,
        cache: AttentionCache | None = None,
        last_only: bool = False,
        grad_scale: float | None = None,
    ) -> Tensor:
        """Logits, or losses where targets are given, of packed documents; arguments and results as in `MindLLM`."""
        normed = self.hidden_states(tokens, positions, cu_seqlens, cache, last_only)
        if targets is not None:
            return linear_cross_entropy(normed, self.embedding, targets, grad_scale=grad_scale)
        return F.linear(normed, self.embedding)

    def hidden_states(
        self,
        tokens: Tensor,
        positions: Tensor,
        cu_seqlens: Tensor,
        cache: AttentionCache | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """What the embedding projects to logits, (T, hidden), divided by m; the arguments are those of
        `MindLLM.forward`."""
        config = self.config
        wide = statistics_dtype(self.embedding.dtype)
        table = rotary_table(config.max_seq_len, config.head_dim, config.rope_base, tokens.device, wide)
        x = F.embedding(tokens, self.embedding) * config.scale_emb  # (T, hidden)
        branch = None
        for layer in self.layers:
            x, branch = layer(x, branch, positions, table, cu_seqlens, cache)
        assert branch is not None
        if cache is not None:
            cache.advance(tokens.shape[0])
        if last_only:
            x, branch = x[-1:], branch[-1:]
        # The norm's weight takes the logits' factor, unrounded: that is hidden_size numbers, and no pass over x.
        weight = self.final_norm if config.width_base is None else self.final_norm.to(wide) / config.width_multiplier
        return deepnorm_residual(branch, x, weight, config.residual_scale, config.norm_eps)

    def new_cache(self, max_seq_len: int | None = None) -> KVCache:
        """An empty cache for `max_seq_len` tokens, by default the longest sequence that the network takes."""
        config = self.config
        length = config.max_seq_len if max_seq_len is None else max_seq_len
        weight = self.embedding
        return KVCache(config.n_layers, length, config.n_kv_heads, config.head_dim, weight.device, weight.dtype)

    def num_parameters(self) -> int:
        """All parameters; the embedding, which is also the projection, counts once."""
        return count_parameters(self)

    def flops_per_token(self, seq_len: int) -> int:
        """Operations of a token's forward and backward: `6 N + 12 L D S` (PaLM, arXiv 2204.02311, appendix B), as
        `MindLLM` counts them. Sharing keys and values saves memory, and of operations those that make them."""
        return matrix_flops(self) + 12 * self.config.n_layers * self.config.hidden_size * seq_len


class MiniCPMLayer(AdaptableLayer):
    """One attention and one feed-forward residual. Matrices are (out, in); packed ones hold their parts in order."""

    linear_parts: ClassVar[dict[str, int]] = {"qkv": 3, "attention_out": 1, "gate_up": 2, "ffn_out": 1}

    def __init__(
        self, config: MiniCPMConfig, index: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.config = config
        self.index = index
        hidden, ffn, kv = config.hidden_size, config.ffn_size, config.n_kv_heads * config.head_dim

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.attention_norm = parameter(hidden)
        self.qkv = parameter(hidden + 2 * kv, hidden)  # query, key, value
        self.attention_out = parameter(hidden, hidden)
        self.ffn_norm = parameter(hidden)
        self.gate_up = parameter(2 * ffn, hidden)  # gate, up
        self.ffn_out = parameter(hidden, ffn)

    def part_rows(self, name: str) -> list[int]:
        """See `AdaptableLayer`: keys and values have fewer rows than queries."""
        if name == "qkv":
            kv = self.config.n_kv_heads * self.config.head_dim
            return [self.config.hidden_size, kv, kv]
        return super().part_rows(name)

    def forward(
        self,
        x: Tensor,
        branch: Tensor | None,
        positions: Tensor,
        table: Tensor,
        cu_seqlens: Tensor,
        cache: AttentionCache | None,
    ) -> tuple[Tensor, Tensor]:
        """The residual stream and the branch yet to be added to it (None before the first layer), each (T, hidden), to
        those after this layer; the other arguments are those of `MindLLM.forward`."""
        config = self.config
        scale, eps = config.residual_scale, config.norm_eps
        if branch is None:
            normed = rms_norm(x, self.attention_norm, eps)
        else:
            normed, x = deepnorm_residual_and_sum(branch, x, self.attention_norm, scale, eps)
        # (T, heads + 2 kv_heads, head_dim)
        qkv = self.linear("qkv", normed).view(-1, config.n_heads + 2 * config.n_kv_heads, config.head_dim)
        q, k, v = rotary(qkv, positions, table, kv_heads=config.n_kv_heads)
        # (T, heads, head_dim)
        heads = attention(q, k, v, cu_seqlens) if cache is None else cache.attend(self.index, q, k, v, cu_seqlens)
        branch = self.linear("attention_out", heads.flatten(1))
        normed, x = deepnorm_residual_and_sum(branch, x, self.ffn_norm, scale, eps)
        # The projection's output has no other reader: a linear layer keeps its input and its weight for backward.
        return x, self.linear("ffn_out", swiglu(self.linear("gate_up", normed), overwrite=True))

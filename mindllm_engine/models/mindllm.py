"""MindLLM-3B's network (arXiv 2310.15777, section 3.1): DeepNorm, rotary positions, GeGLU, tied embeddings."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindllm_engine.errors import ConfigError
from mindllm_engine.kernels.attention import attention
from mindllm_engine.kernels.embedding_norm import embedding_norm
from mindllm_engine.kernels.geglu import geglu
from mindllm_engine.kernels.linear_cross_entropy import linear_cross_entropy
from mindllm_engine.kernels.reference import statistics_dtype
from mindllm_engine.kernels.rms_norm import deepnorm_residual
from mindllm_engine.kernels.rotary import rotary, rotary_table
from mindllm_engine.models.initialization import count_parameters, matrix_flops, normal_, xavier_normal_
from mindllm_engine.models.kv_cache import AttentionCache, KVCache
from mindllm_engine.models.lora import AdaptableLayer


@dataclass
class MindLLMConfig:
    """Sizes of a MindLLM network. MindLLM-3B's (Table 2) are in configs/; heads and layers there are our assumption."""

    vocab_size: int
    """Rows of the embedding, which is also the output projection."""
    hidden_size: int
    """Width of the residual stream."""
    ffn_size: int
    """Width inside the feed-forward, after the gate."""
    n_layers: int
    """Layers, each an attention and a feed-forward residual."""
    n_heads: int
    """Attention heads, each hidden_size / n_heads wide, which must be even."""
    max_seq_len: int
    """Positions that the rotary table covers: the longest document that the network takes."""
    rope_base: float = 10000.0
    """Base of the rotary frequencies (arXiv 2104.09864, section 3.2.2)."""
    norm_eps: float = 1e-5
    """Added to the mean square in every RMSNorm."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.n_heads

    @property
    def deepnorm_alpha(self) -> float:
        """Factor of the residual stream (arXiv 2203.00555, table for decoder-only networks)."""
        return (2 * self.n_layers) ** 0.25

    @property
    def deepnorm_beta(self) -> float:
        """Initial gain of the value, output and feed-forward matrices (the same table)."""
        return (8 * self.n_layers) ** -0.25

    def validate(self) -> None:
        """Raise ConfigError, naming the key, for sizes that make no network."""
        for key in ("vocab_size", "hidden_size", "ffn_size", "n_layers", "n_heads", "max_seq_len"):
            if getattr(self, key) < 1:
                raise ConfigError(f"model.mindllm.{key} must be at least 1, not {getattr(self, key)}")
        for key in ("rope_base", "norm_eps"):
            if not (math.isfinite(getattr(self, key)) and getattr(self, key) > 0):
                raise ConfigError(f"model.mindllm.{key} must be above 0, not {getattr(self, key)}")
        if self.hidden_size % self.n_heads:
            raise ConfigError(
                f"model.mindllm.n_heads {self.n_heads} does not divide model.mindllm.hidden_size {self.hidden_size}"
            )
        if self.head_dim % 2:
            raise ConfigError(
                "model.mindllm.hidden_size / model.mindllm.n_heads must be even for rotary positions, not "
                f"{self.head_dim}"
            )

    def build(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None, seed: int | None = None
    ) -> "MindLLM":
        """A network with fresh parameters (on the meta device, without any). The same `seed` gives the same parameters
        on every device; None draws another network each time."""
        self.validate()
        model = MindLLM(self, device=device, dtype=dtype)
        if not model.embedding.is_meta:
            model.reset_parameters(seed)
        return model


class MindLLM(nn.Module):
    """Embedding -> RMSNorm -> n_layers of `x = RMSNorm(alpha x + attention(x))`, `x = RMSNorm(alpha x + ffn(x))` ->
    logits.

    The norm of the last layer feeds the output projection; there is no final norm, no bias, and the projection is the
    embedding. Build it through `MindLLMConfig.build`.
    """

    def __init__(self, config: MindLLMConfig, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size, device=device, dtype=dtype))
        self.embedding_norm = nn.Parameter(torch.empty(config.hidden_size, device=device, dtype=dtype))
        self.layers = nn.ModuleList(MindLLMLayer(config, index, device, dtype) for index in range(config.n_layers))

    def reset_parameters(self, seed: int | None) -> None:
        """DeepNorm's initialisation; the embedding from N(0, 1 / hidden_size^2); norm weights 1.

        The norm after the embedding makes its scale free on the input side. On the output side a token's logit for
        itself begins near std * hidden_size, since the residual stream keeps its direction: with the customary std
        of 0.02 that is 51 at 2560, and training begins by unlearning it. 1 / hidden_size makes it 1.
        """
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        normal_(self.embedding, 1 / self.config.hidden_size, generator)
        nn.init.ones_(self.embedding_norm)
        for layer in self.layers:
            assert isinstance(layer, MindLLMLayer)
            layer.reset_parameters(self.config.deepnorm_beta, generator)

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
        """Logits, or losses where targets are given, of packed documents that do not see each other.

        Args:
            tokens: (T,) integers below vocab_size.
            positions: (T,) integers below max_seq_len, from 0 in every document.
            cu_seqlens: (documents + 1,) int32 offsets of the documents, from 0 to T.
            targets: (T,) next tokens, -100 where there is no loss.
            cache: What came before, for a single sequence (a `KVCache`) or several; the call extends it by `tokens`.
            last_only: Give the logits of the last token alone, (1, vocab_size).
            grad_scale: A promise that backward will follow and that the upstream gradient of every loss will be this
                number (see `linear_cross_entropy`).

        Returns (T, vocab_size) logits in the parameters' dtype, or (T,) losses in fp32.
        """
        x = self.hidden_states(tokens, positions, cu_seqlens, cache)
        if targets is not None:
            return linear_cross_entropy(x, self.embedding, targets, grad_scale=grad_scale)
        return F.linear(x[-1:] if last_only else x, self.embedding)

    def hidden_states(
        self, tokens: Tensor, positions: Tensor, cu_seqlens: Tensor, cache: AttentionCache | None = None
    ) -> Tensor:
        """What the embedding projects to logits, (T, hidden); the arguments are those of `forward`."""
        config = self.config
        table = rotary_table(
            config.max_seq_len, config.head_dim, config.rope_base, tokens.device, statistics_dtype(self.embedding.dtype)
        )
        x = embedding_norm(tokens, self.embedding, self.embedding_norm, config.norm_eps)  # (T, hidden)
        for layer in self.layers:
            x = layer(x, positions, table, cu_seqlens, cache)
        if cache is not None:
            cache.advance(tokens.shape[0])
        return x

    def new_cache(self, max_seq_len: int | None = None) -> KVCache:
        """An empty cache for `max_seq_len` tokens, by default the longest sequence that the network takes."""
        config = self.config
        length = config.max_seq_len if max_seq_len is None else max_seq_len
        weight = self.embedding
        return KVCache(config.n_layers, length, config.n_heads, config.head_dim, weight.device, weight.dtype)

    def num_parameters(self) -> int:
        """All parameters; the embedding, which is also the projection, counts once."""
        return count_parameters(self)

    def flops_per_token(self, seq_len: int) -> int:
        """Operations of a token's forward and backward: `6 N + 12 L D S` (PaLM, arXiv 2204.02311, appendix B).

        N are the parameters of matrices that multiply every token: all layers, and the embedding once, as the
        projection; those that are frozen count 4 times. L layers, D hidden_size, S `seq_len`; the causal mask is not
        taken off.
        """
        return matrix_flops(self) + 12 * self.config.n_layers * self.config.hidden_size * seq_len


class MindLLMLayer(AdaptableLayer):
    """One attention and one feed-forward residual. Matrices are (out, in); packed ones hold their parts in order."""

    linear_parts: ClassVar[dict[str, int]] = {"qkv": 3, "attention_out": 1, "gate_up": 2, "ffn_out": 1}

    def __init__(
        self, config: MindLLMConfig, index: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.config = config
        self.index = index
        hidden, ffn = config.hidden_size, config.ffn_size

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.qkv = parameter(3 * hidden, hidden)  # query, key, value
        self.attention_out = parameter(hidden, hidden)
        self.attention_norm = parameter(hidden)
        self.gate_up = parameter(2 * ffn, hidden)  # gate, up
        self.ffn_out = parameter(hidden, ffn)
        self.ffn_norm = parameter(hidden)

    def reset_parameters(self, beta: float, generator: torch.Generator) -> None:
        """Each part of a packed matrix is drawn by itself: Xavier's variance depends on the part's shape."""
        query, key, value = self.qkv.chunk(3)
        gate, up = self.gate_up.chunk(2)
        for weight, gain in ((query, 1.0), (key, 1.0), (value, beta), (self.attention_out, beta)):
            xavier_normal_(weight, gain, generator)
        for weight in (gate, up, self.ffn_out):
            xavier_normal_(weight, beta, generator)
        nn.init.ones_(self.attention_norm)
        nn.init.ones_(self.ffn_norm)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        table: Tensor,
        cu_seqlens: Tensor,
        cache: AttentionCache | None,
    ) -> Tensor:
        """(T, hidden) to (T, hidden); the arguments are those of `MindLLM.forward`."""
        config = self.config
        qkv = self.linear("qkv", x).view(-1, 3 * config.n_heads, config.head_dim)  # (T, 3 heads, head_dim)
        q, k, v = rotary(qkv, positions, table)
        # (T, heads, head_dim)
        heads = attention(q, k, v, cu_seqlens) if cache is None else cache.attend(self.index, q, k, v, cu_seqlens)
        branch = self.linear("attention_out", heads.flatten(1))
        x = deepnorm_residual(x, branch, self.attention_norm, config.deepnorm_alpha, config.norm_eps)
        # The projection's output has no other reader: a linear layer keeps its input and its weight for backward.
        branch = self.linear("ffn_out", geglu(self.linear("gate_up", x), overwrite=True))
        return deepnorm_residual(x, branch, self.ffn_norm, config.deepnorm_alpha, config.norm_eps)

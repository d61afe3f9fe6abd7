"""GPT-Neo (EleutherAI 2021), which MindLLM-1.3B continues (arXiv 2310.15777, section 3.2).

Pre-LayerNorm, learned positions, global attention in even layers and local attention in odd ones, no 1/sqrt(head_dim)
in the scores, GELU in its tanh form, tied embeddings.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindllm_engine.errors import CheckpointError, ConfigError
from mindllm_engine.kernels.attention import attention
from mindllm_engine.kernels.bias_gelu import bias_gelu
from mindllm_engine.kernels.layer_norm import residual_layer_norm
from mindllm_engine.kernels.linear_cross_entropy import linear_cross_entropy
from mindllm_engine.models.initialization import count_parameters, matrix_flops, normal_
from mindllm_engine.models.kv_cache import AttentionCache, KVCache
from mindllm_engine.models.lora import AdaptableLayer

# Standard deviation of GPT-Neo's fresh matrices and embeddings (`initializer_range` of its published configuration).
INITIAL_STD = 0.02


@dataclass
class GPTNeoConfig:
    """Sizes of a GPT-Neo network; the defaults are those of GPT-Neo-1.3B."""

    vocab_size: int = 50257
    """Rows of the token embedding, which is also the output projection."""
    hidden_size: int = 2048
    """Width of the residual stream."""
    ffn_size: int = 8192
    """Width inside the feed-forward."""
    n_layers: int = 24
    """Layers; even ones (from 0) attend globally, odd ones within the window."""
    n_heads: int = 16
    """Attention heads, each hidden_size / n_heads wide."""
    max_seq_len: int = 2048
    """Rows of the position embedding: the longest document that the network takes."""
    window_size: int = 256
    """Keys that a query of a local layer sees, its own included."""
    norm_eps: float = 1e-5
    """Added to the variance in every LayerNorm."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.n_heads

    def validate(self) -> None:
        """Raise ConfigError, naming the key, for sizes that make no network."""
        sizes = ("vocab_size", "hidden_size", "ffn_size", "n_layers", "n_heads", "max_seq_len", "window_size")
        for key in sizes:
            if getattr(self, key) < 1:
                raise ConfigError(f"model.gpt_neo.{key} must be at least 1, not {getattr(self, key)}")
        if not (math.isfinite(self.norm_eps) and self.norm_eps > 0):
            raise ConfigError(f"model.gpt_neo.norm_eps must be above 0, not {self.norm_eps}")
        if self.hidden_size % self.n_heads:
            raise ConfigError(
                f"model.gpt_neo.n_heads {self.n_heads} does not divide model.gpt_neo.hidden_size {self.hidden_size}"
            )

    def build(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None, seed: int | None = None
    ) -> "GPTNeo":
        """A network with fresh parameters (on the meta device, without any). The same `seed` gives the same parameters
        on every device; None draws another network each time."""
        self.validate()
        model = GPTNeo(self, device=device, dtype=dtype)
        if not model.embedding.is_meta:
            model.reset_parameters(seed)
        return model


class GPTNeo(nn.Module):
    """Token + position embedding -> n_layers of `x += attention(norm(x))`, `x += ffn(norm(x))` -> norm -> logits.

    Each addition to the residual stream is one pass with the norm that follows it. A branch's output therefore travels
    beside the stream until the next norm; the first "branch" is the position embedding.

    Build it through `GPTNeoConfig.build`, or read a published one with
    `evaluation.gpt_neo_checkpoint.load_hf_checkpoint`.
    """

    def __init__(self, config: GPTNeoConfig, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, hidden, device=device, dtype=dtype))
        self.position_embedding = nn.Parameter(torch.empty(config.max_seq_len, hidden, device=device, dtype=dtype))
        self.layers = nn.ModuleList(GPTNeoLayer(config, index, device, dtype) for index in range(config.n_layers))
        self.final_norm_weight = nn.Parameter(torch.empty(hidden, device=device, dtype=dtype))
        self.final_norm_bias = nn.Parameter(torch.empty(hidden, device=device, dtype=dtype))

    def reset_parameters(self, seed: int | None) -> None:
        """Matrices and embeddings from N(0, 0.02^2), norm weights 1, biases 0."""
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                normal_(parameter, INITIAL_STD, generator)
            else:
                nn.init.constant_(parameter, 1.0 if name.endswith("norm_weight") else 0.0)

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
        """What the embedding projects to logits, (T, hidden); the arguments are those of `MindLLM.forward`."""
        x = F.embedding(tokens, self.embedding)  # (T, hidden)
        branch = F.embedding(positions, self.position_embedding)  # (T, hidden)
        for layer in self.layers:
            x, branch = layer(x, branch, cu_seqlens, cache)
        if cache is not None:
            cache.advance(tokens.shape[0])
        if last_only:
            x, branch = x[-1:], branch[-1:]
        _, normed = residual_layer_norm(x, branch, self.final_norm_weight, self.final_norm_bias, self.config.norm_eps)
        return normed

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
        projection; those that are frozen count 4 times. L layers, D hidden_size, S `seq_len`; a local layer counts
        `min(seq_len, window_size)` for S, and the causal mask is not taken off.
        """
        config = self.config
        local = config.n_layers // 2
        spans = (config.n_layers - local) * seq_len + local * min(seq_len, config.window_size)
        return matrix_flops(self, without=self.position_embedding) + 12 * config.hidden_size * spans


class GPTNeoLayer(AdaptableLayer):
    """One attention and one feed-forward residual. Matrices are (out, in); `qkv` packs query, key and value."""

    linear_parts: ClassVar[dict[str, int]] = {"qkv": 3, "attention_out": 1, "ffn_in": 1, "ffn_out": 1}

    def __init__(
        self, config: GPTNeoConfig, index: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.config = config
        self.index = index
        self.window = (-1, 0) if index % 2 == 0 else (config.window_size - 1, 0)
        hidden, ffn = config.hidden_size, config.ffn_size

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.attention_norm_weight = parameter(hidden)
        self.attention_norm_bias = parameter(hidden)
        self.qkv = parameter(3 * hidden, hidden)
        self.attention_out = parameter(hidden, hidden)
        self.attention_out_bias = parameter(hidden)
        self.ffn_norm_weight = parameter(hidden)
        self.ffn_norm_bias = parameter(hidden)
        self.ffn_in = parameter(ffn, hidden)
        self.ffn_in_bias = parameter(ffn)
        self.ffn_out = parameter(hidden, ffn)
        self.ffn_out_bias = parameter(hidden)

    def forward(
        self, x: Tensor, branch: Tensor, cu_seqlens: Tensor, cache: AttentionCache | None
    ) -> tuple[Tensor, Tensor]:
        """The residual stream and the branch yet to be added to it, each (T, hidden), to those after this layer; the
        other arguments are those of `MindLLM.forward`."""
        config = self.config
        x, normed = residual_layer_norm(
            x, branch, self.attention_norm_weight, self.attention_norm_bias, config.norm_eps
        )
        qkv = self.linear("qkv", normed).view(-1, 3, config.n_heads, config.head_dim)  # (T, 3, heads, head_dim)
        q, k, v = qkv.unbind(1)
        if cache is None:
            heads = attention(q, k, v, cu_seqlens, window=self.window, scale=1.0)
        else:
            heads = cache.attend(self.index, q, k, v, cu_seqlens, window=self.window, scale=1.0)
        branch = self.linear("attention_out", heads.flatten(1), self.attention_out_bias)
        x, normed = residual_layer_norm(x, branch, self.ffn_norm_weight, self.ffn_norm_bias, config.norm_eps)
        # The projection's output has no other reader: a linear layer keeps its input and its weight for backward.
        inner = bias_gelu(self.linear("ffn_in", normed), self.ffn_in_bias, overwrite=True)
        return x, self.linear("ffn_out", inner, self.ffn_out_bias)


# Parameters outside the layers, and of one layer, under the names of transformers' GPTNeoForCausalLM.
_HF_NAMES = {
    "embedding": "transformer.wte.weight",
    "position_embedding": "transformer.wpe.weight",
    "final_norm_weight": "transformer.ln_f.weight",
    "final_norm_bias": "transformer.ln_f.bias",
}
_HF_LAYER_NAMES = {
    "attention_norm_weight": "ln_1.weight",
    "attention_norm_bias": "ln_1.bias",
    "attention_out": "attn.attention.out_proj.weight",
    "attention_out_bias": "attn.attention.out_proj.bias",
    "ffn_norm_weight": "ln_2.weight",
    "ffn_norm_bias": "ln_2.bias",
    "ffn_in": "mlp.c_fc.weight",
    "ffn_in_bias": "mlp.c_fc.bias",
    "ffn_out": "mlp.c_proj.weight",
    "ffn_out_bias": "mlp.c_proj.bias",
}
_HF_QKV = ("attn.attention.q_proj.weight", "attn.attention.k_proj.weight", "attn.attention.v_proj.weight")
# The modules of a layer that the parts of our matrices are.
HF_LINEAR_NAMES = {"qkv": tuple(name.removesuffix(".weight") for name in _HF_QKV)} | {
    name: (_HF_LAYER_NAMES[name].removesuffix(".weight"),) for name in ("attention_out", "ffn_in", "ffn_out")
}
# Present in old checkpoints without being parameters: the masks, and the projection that is tied to the embedding.
_HF_IGNORED_SUFFIXES = ("attn.attention.bias", "attn.attention.masked_bias")
_HF_TIED = "lm_head.weight"


def to_hf_state_dict(model: GPTNeo) -> dict[str, Tensor]:
    """The model's parameters under the names of transformers' GPTNeoForCausalLM; the tied projection is left out.

    Values are views of the parameters where these are not packed.
    """
    state = {hf: getattr(model, name).detach() for name, hf in _HF_NAMES.items()}
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, GPTNeoLayer)
        prefix = f"transformer.h.{index}."
        state.update({prefix + hf: getattr(layer, name).detach() for name, hf in _HF_LAYER_NAMES.items()})
        state.update({prefix + hf: part for hf, part in zip(_HF_QKV, layer.qkv.detach().chunk(3), strict=True)})
    return state


def from_hf_state_dict(model: GPTNeo, state: Mapping[str, Tensor]) -> None:
    """Copy the parameters of a GPTNeoForCausalLM into `model`, converting them to its dtype.

    Raises CheckpointError for a tensor that is missing, of another shape, or unknown.
    """
    targets = to_hf_state_dict(model)  # views of the model's own storage: copying into them fills it
    missing = [name for name in targets if name not in state]
    if missing:
        raise CheckpointError(f"the GPT-Neo checkpoint lacks {len(missing)} tensors, the first is {missing[0]}")
    for name, tensor in state.items():
        if name == _HF_TIED or name.endswith(_HF_IGNORED_SUFFIXES):
            continue
        if name not in targets:
            raise CheckpointError(f"the GPT-Neo checkpoint has a tensor {name} that the network has not")
        if tensor.shape != targets[name].shape:
            raise CheckpointError(
                f"tensor {name} of the GPT-Neo checkpoint is {tuple(tensor.shape)}, "
                f"the network needs {tuple(targets[name].shape)}"
            )
        targets[name].copy_(tensor)
    tied = state.get(_HF_TIED)
    if tied is not None and not torch.equal(tied, state[_HF_NAMES["embedding"]]):
        raise CheckpointError(f"the GPT-Neo checkpoint has a {_HF_TIED} of its own; here it is tied to the embedding")

"""MindLLM (arXiv 2310.15777, section 3.1) in plain PyTorch for Transformers: DeepNorm, rotary positions, GeGLU.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

Attention is PyTorch's scaled_dot_product_attention, or written out with `attn_implementation="eager"`. Sequences may be
padded on either side: what `attention_mask` masks is not seen, and positions count from the first token that is.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_mindllm import MindLLMConfig


class MindLLMRMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight`, computed in fp32 and rounded once."""

    def __init__(self, config: MindLLMConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps = config.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight.float()).to(x.dtype)


class MindLLMLayer(nn.Module):
    """`x = norm(alpha x + attention(x))`, then `x = norm(alpha x + ffn(x))`."""

    def __init__(self, config: MindLLMConfig, index: int) -> None:
        super().__init__()
        hidden, ffn = config.hidden_size, config.intermediate_size
        self.config = config
        self.index = index
        self.alpha = (2 * config.num_hidden_layers) ** 0.25
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)  # query, key, value
        self.attention_out = nn.Linear(hidden, hidden, bias=False)
        self.attention_norm = MindLLMRMSNorm(config)
        self.gate_up = nn.Linear(hidden, 2 * ffn, bias=False)  # gate, up
        self.ffn_out = nn.Linear(ffn, hidden, bias=False)
        self.ffn_norm = MindLLMRMSNorm(config)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], seen: Tensor | None, cache: Cache | None) -> Tensor:
        """x (batch, tokens, hidden); `seen` (batch, 1, tokens, keys) says which keys a token sees, None all before."""
        batch, tokens, hidden = x.shape
        heads = self.config.num_attention_heads
        qkv = self.qkv(x).view(batch, tokens, 3, heads, hidden // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, tokens, head_dim)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.update(k, v, self.index)
        attend = eager_attention if self.config._attn_implementation == "eager" else F.scaled_dot_product_attention
        mixed = attend(q, k, v, attn_mask=seen, is_causal=seen is None)
        branch = self.attention_out(mixed.transpose(1, 2).reshape(batch, tokens, hidden))
        x = self.attention_norm(self.add(x, branch))
        gate, up = self.gate_up(x).float().chunk(2, dim=-1)
        branch = self.ffn_out((F.gelu(gate, approximate="tanh") * up).to(x.dtype))
        return self.ffn_norm(self.add(x, branch))

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        return (self.alpha * x.float() + branch.float()).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channels i and i + head_dim / 2 of (batch, heads, tokens, head_dim) together."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def eager_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
    """scaled_dot_product_attention, written out."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    assert attn_mask is not None
    scores = scores.masked_fill(~attn_mask, float("-inf"))
    return torch.softmax(scores.float(), dim=-1).to(v.dtype) @ v


class MindLLMPreTrainedModel(PreTrainedModel):
    config_class = MindLLMConfig
    base_model_prefix = "model"
    _no_split_modules = ["MindLLMLayer"]
    _supports_sdpa = True


class MindLLMModel(MindLLMPreTrainedModel):
    """Embedding -> RMSNorm -> layers; the norm of the last layer is the last one."""

    def __init__(self, config: MindLLMConfig) -> None:
        super().__init__(config)
        self.embedding: nn.Module = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embedding_norm = MindLLMRMSNorm(config)
        self.layers = nn.ModuleList(MindLLMLayer(config, index) for index in range(config.num_hidden_layers))
        self._rotary: Tensor | None = None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states (batch, tokens, hidden). `attention_mask` is (batch, keys): 0 for padding."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give input_ids or inputs_embeds, one of the two")
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(f"attention_mask must be (batch, tokens), not of shape {tuple(attention_mask.shape)}")
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        x = self.embedding_norm(x)
        if use_cache is None:
            use_cache = self.config.use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        tokens = x.shape[1]
        if past + tokens > self.config.max_position_embeddings:
            raise ValueError(
                f"the sequence has {past + tokens} tokens, and the network takes {self.config.max_position_embeddings}"
            )
        if position_ids is None:
            position_ids = self.positions(attention_mask, past, tokens, x.device)
        seen = self.seen(attention_mask, past, tokens, x.device)
        cos, sin = self.rotary_table(x.device)[:, position_ids].unsqueeze(2)  # each (batch, 1, tokens, head_dim / 2)
        for layer in self.layers:
            x = layer(x, (cos, sin), seen, past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=past_key_values if use_cache else None)

    def positions(self, attention_mask: Tensor | None, past: int, tokens: int, device: torch.device) -> Tensor:
        """(batch or 1, tokens): how many tokens that are no padding stand before each."""
        if attention_mask is None:
            return torch.arange(past, past + tokens, device=device)[None]
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -tokens:]

    def seen(self, attention_mask: Tensor | None, past: int, tokens: int, device: torch.device) -> Tensor | None:
        """Which keys each token sees, (batch or 1, 1, tokens, past + tokens); None for those before it and itself.

        A token always sees itself, so that padding, which sees nothing else, makes no NaN.
        """
        if attention_mask is None and past == 0:
            return None
        keys = torch.arange(past + tokens, device=device)
        queries = keys[past:, None]
        causal = keys <= queries
        if attention_mask is None:
            return causal[None, None]
        return (causal & attention_mask.bool()[:, None, None, :]) | (keys == queries)

    def rotary_table(self, device: torch.device) -> Tensor:
        """Cosines and sines (2, max_position_embeddings, head_dim / 2) in fp32.

        Angles are taken in fp64 and rounded once; no buffer, since Transformers would make it in the model's dtype.
        """
        if self._rotary is None or self._rotary.device != device:
            width = self.config.hidden_size // self.config.num_attention_heads
            with torch.inference_mode(False), torch.device("cpu"):
                frequencies = self.config.rope_base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
                places = torch.arange(self.config.max_position_embeddings, dtype=torch.float64)
                angles = torch.outer(places, frequencies)
                self._rotary = torch.stack((angles.cos(), angles.sin())).float().to(device)
        return self._rotary


class MindLLMForCausalLM(MindLLMPreTrainedModel, GenerationMixin):
    """The network with its projection to the vocabulary, which is the embedding."""

    # Transformers 5 wants to know what each is tied to; 4.57 looks at the names alone.
    _tied_weights_keys = {"lm_head.weight": "model.embedding.weight"}

    def __init__(self, config: MindLLMConfig) -> None:
        super().__init__(config)
        self.model = MindLLMModel(config)
        self.lm_head: nn.Module = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (batch, tokens, vocab_size), of the last `logits_to_keep` tokens alone where that is given; with
        `labels` (batch, tokens), -100 where nothing is learnt, the mean loss of the next tokens too."""
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
        )
        logits = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])  # [-0:] is everything
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=output.past_key_values)

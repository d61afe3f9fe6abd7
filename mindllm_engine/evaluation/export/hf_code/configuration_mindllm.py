"""Sizes of a MindLLM network (arXiv 2310.15777, section 3.1) for Transformers."""

from typing import Any

from transformers import PretrainedConfig


class MindLLMConfig(PretrainedConfig):
    """DeepNorm residuals, rotary positions, GeGLU, RMSNorm after the embedding, tied embeddings, no biases.

    Args:
        vocab_size: rows of the embedding, which is also the output projection.
        hidden_size: width of the residual stream.
        intermediate_size: width inside the feed-forward, after the gate.
        num_hidden_layers: layers, each an attention and a feed-forward residual.
        num_attention_heads: heads, each hidden_size / num_attention_heads wide.
        max_position_embeddings: tokens in the longest sequence, padding included.
        rope_base: base of the rotary frequencies.
        rms_norm_eps: added to the mean square in every RMSNorm.
    """

    model_type = "mindllm"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 125700,
        hidden_size: int = 2560,
        intermediate_size: int = 8192,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 20,
        max_position_embeddings: int = 2048,
        rope_base: float = 10000.0,
        rms_norm_eps: float = 1e-5,
        use_cache: bool = True,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.rope_base = rope_base
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        super().__init__(**{"tie_word_embeddings": tie_word_embeddings, **kwargs})

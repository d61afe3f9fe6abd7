"""Bytes of activations that a micro-batch leaves for its backward: pure arithmetic on a network's sizes.

What a layer keeps, in elements of the activations' dtype a token, h = hidden_size, f = ffn_size, k = what the heads of
keys take of h (all of it without sharing); behind each tensor, who needs it in backward:

    MindLLM   x h (qkv), qkv 3h (attention), heads h (attention, attention_out), sum h (norm), norm h (gate_up),
              gate_up 2f (GeGLU), GeGLU f (ffn_out), sum h (norm)
    GPT-Neo   sum h (norm), norm h (qkv), qkv 3h (attention), heads h (attention, attention_out), sum h (norm),
              norm h (ffn_in), ffn_in f (GELU), GELU f (ffn_out)
    MiniCPM   sum h (norm), norm h (qkv), qkv h + 2k (attention), heads h (attention, attention_out), sum h (norm),
              norm h (gate_up), gate_up 2f (SwiGLU), SwiGLU f (ffn_out)

Norms keep fp32 statistics of each row besides, and attention a log-sum-exp of each head. With activation checkpointing
`selective` the norms' and the activation's outputs are computed again; with `full` a layer keeps what enters it.
The two optional `reference` switches are for runs on a CPU, whose operators keep other things.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mindllm_engine.kernels.attention_reference import kept_elements
from mindllm_engine.kernels.linear_cross_entropy import scratch_shape
from mindllm_engine.models import NetworkConfig
from mindllm_engine.models.gpt_neo import GPTNeoConfig
from mindllm_engine.models.mindllm import MindLLMConfig
from mindllm_engine.models.minicpm import MiniCPMConfig

ActivationCheckpointing = Literal["none", "selective", "full"]

# (h, f) elements a token that a layer keeps, attention's qkv and heads (2h + 2k) left out.
_KEPT: dict[type, dict[ActivationCheckpointing, tuple[int, int]]] = {
    MindLLMConfig: {"none": (4, 3), "selective": (2, 2)},
    GPTNeoConfig: {"none": (4, 2), "selective": (2, 1)},
    MiniCPMConfig: {"none": (4, 3), "selective": (2, 2)},
}


@dataclass(frozen=True)
class ActivationBytes:
    """Bytes of one micro-batch on one rank.

    Attributes:
        layers: what the forward of all layers leaves for backward.
        ends: what embedding, final norm and loss leave.
        working: the most that is held besides for a while: the loss's logits, or, in one layer's backward, what is
            computed again and the gradients in flight (an estimate: the largest tensors of them).
    """

    layers: int
    ends: int
    working: int

    @property
    def kept(self) -> int:
        """At the end of the forward."""
        return self.layers + self.ends

    @property
    def peak(self) -> int:
        return self.kept + self.working


def activation_bytes(
    model: NetworkConfig,
    tokens: int,
    mode: ActivationCheckpointing = "none",
    *,
    itemsize: int = 2,
    reference_kernels: bool = False,
    reference_attention: Sequence[int] | None = None,
) -> ActivationBytes:
    """Activations of a micro-batch of `tokens` tokens.

    Args:
        mode: `train.activation_checkpointing`.
        itemsize: bytes of an element of the parameters' dtype: 2 for bf16, 4 for fp32.
        reference_kernels: operators run on their PyTorch references (as on a CPU) and not on Triton kernels.
        reference_attention: where attention runs on its reference and not on FlashAttention: the lengths of the packed
            documents, which add up to `tokens`.
    """
    layers = [
        _layer_bytes(model, index, tokens, mode, itemsize, reference_kernels, reference_attention)
        for index in range(model.n_layers)
    ]
    whole = max(
        _layer_bytes(model, index, tokens, "none", itemsize, reference_kernels, reference_attention)
        for index in range(min(2, model.n_layers))  # GPT-Neo's layers alternate
    )
    h, f = model.hidden_size, model.ffn_size
    if mode == "full":
        again = whole - layers[0]
    elif mode == "selective":
        again = tokens * f * itemsize
    else:
        again = 0
    # Gradients of a residual's two sides and of the feed-forward's activation, and the latter's weight gradient.
    in_flight = (tokens * (2 * h + f) + h * f) * itemsize
    loss = _loss_working_bytes(model, tokens, itemsize, reference_kernels)
    return ActivationBytes(
        sum(layers), _end_bytes(model, tokens, itemsize, reference_kernels), max(loss, again + in_flight)
    )


def _layer_bytes(
    model: NetworkConfig,
    index: int,
    tokens: int,
    mode: ActivationCheckpointing,
    itemsize: int,
    reference_kernels: bool,
    reference_attention: Sequence[int] | None,
) -> int:
    h = model.hidden_size
    if mode == "full":
        # Beside the stream a branch, but in MindLLM, and before MiniCPM's first layer.
        alone = isinstance(model, MindLLMConfig) or (isinstance(model, MiniCPMConfig) and index == 0)
        return tokens * h * itemsize * (1 if alone else 2)
    per_h, per_f = _KEPT[type(model)][mode]
    elements = tokens * (per_h * h + per_f * model.ffn_size)
    statistics = 2 * tokens * _statistics_bytes(model, itemsize, reference_kernels)
    kv_heads = model.n_kv_heads if isinstance(model, MiniCPMConfig) else model.n_heads
    if reference_attention is None:
        elements += 2 * tokens * (h + kv_heads * model.head_dim)
        statistics += 4 * tokens * model.n_heads
    else:
        is_local = isinstance(model, GPTNeoConfig) and index % 2 == 1
        left = model.window_size - 1 if isinstance(model, GPTNeoConfig) and is_local else -1
        elements += kept_elements(reference_attention, model.n_heads, kv_heads, model.head_dim, left)
    return elements * itemsize + statistics


def _statistics_bytes(model: NetworkConfig, itemsize: int, reference_kernels: bool) -> int:
    """Of one norm's row: 1 / rms, or mean and 1 / deviation; in fp32, but of torch's LayerNorm in its own dtype."""
    if not isinstance(model, GPTNeoConfig):
        return 4
    return 2 * (itemsize if reference_kernels else 4)


def _end_bytes(
    model: NetworkConfig,
    tokens: int,
    itemsize: int,
    reference_kernels: bool,
) -> int:
    h = model.hidden_size
    row = h * itemsize
    kept = tokens * (row + _statistics_bytes(model, itemsize, reference_kernels))  # the loss's dhidden; a norm
    if not isinstance(model, MindLLMConfig):
        kept += tokens * row  # what the final norm normalises
    elif reference_kernels:
        kept += tokens * row  # the embedding's rows, which the norm after it takes
    if isinstance(model, MiniCPMConfig) and model.width_base is not None:
        kept += 4 * h  # the final norm's weight with the logits' factor
    if reference_kernels:
        kept += model.vocab_size * h * 4 + tokens * row  # the loss's dweight, and what it projected
    return kept


def _loss_working_bytes(model: NetworkConfig, tokens: int, itemsize: int, reference_kernels: bool) -> int:
    row = model.hidden_size * itemsize
    if reference_kernels:  # its backward's dweight and dhidden
        return model.vocab_size * row + tokens * row
    chunk, columns = scratch_shape(tokens, model.vocab_size)
    return chunk * columns * itemsize + tokens * row

"""How long a GPU computes: matrix products and attention by their FLOPs, everything else by the bytes it moves.

The elementwise bytes a token are those that the docstrings of `kernels/` count, in bf16: in a layer of width h and
feed-forward f, forward and backward together,

    MindLLM   64 h + 16 f   two residual norms 32 h, rotary 20 h, sums of gradients 12 h, GeGLU 16 f
    GPT-Neo   36 h + 10 f   two residual norms 32 h, gradients of biases 4 h, GELU 10 f
    MiniCPM   56 h + 16 f   two residual norms 36 h, rotary 20 h (less where heads share keys), SwiGLU 16 f

and outside of the layers 6 bytes a logit and some 16 h for embedding and loss. A micro-batch besides adds the gradients
of all matrices in the layers to the main gradient, 10 bytes an element.

Operations are given out over parameters, since a parameter's gradient is what communication waits for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from mindllm_engine.distributed.hardware import Hardware
from mindllm_engine.models import Network
from mindllm_engine.models.activation_memory import ActivationCheckpointing
from mindllm_engine.models.gpt_neo import GPTNeoConfig
from mindllm_engine.models.mindllm import MindLLMConfig
from mindllm_engine.models.minicpm import MiniCPMConfig

# Elementwise bytes a token in bf16, by h and by f; shares of forward and backward are about a third and two.
LAYER_BYTES: dict[type, tuple[int, int]] = {
    MindLLMConfig: (64, 16),
    GPTNeoConfig: (36, 10),
    MiniCPMConfig: (56, 16),
}
BYTES_A_LOGIT = 6
ENDS_BYTES = 16
FORWARD_SHARE = 1 / 3
# Reading a bf16 gradient and reading and writing the fp32 main gradient.
ACCUMULATE_BYTES = 10
# AdamW with fp32 master weights and moments, of an fp32 main gradient; with 16 extra bits in place of the master.
UPDATE_BYTES = {"fp32": 30, "bf16_and_bits": 28}


@dataclass(frozen=True)
class MicroBatchSeconds:
    """A micro-batch on one GPU.

    Attributes:
        forward: seconds before the loss by the module that holds the parameters, in order of execution; the last entry
            is the loss, which makes its gradients too.
        backward: seconds until backward has finished each parameter's gradient, one after the other, in this order.
        by_kind: the same seconds by what they are spent on.
    """

    forward: tuple[tuple[str, float], ...]
    backward: tuple[tuple[str, float], ...]
    by_kind: dict[str, float]

    @property
    def forward_total(self) -> float:
        return sum(seconds for _, seconds in self.forward)

    @property
    def backward_total(self) -> float:
        return sum(seconds for _, seconds in self.backward)


def module_of(parameter: str) -> str:
    """Name of the module that holds a parameter; the whole network's is empty."""
    return parameter.rpartition(".")[0]


def micro_batch_seconds(
    model: Network,
    forward_order: Sequence[str],
    gradient_order: Sequence[str],
    tokens: int,
    seq_len: int,
    hardware: Hardware,
    checkpointing: ActivationCheckpointing = "none",
) -> MicroBatchSeconds:
    """Times of a micro-batch of `tokens` tokens in samples of `seq_len`.

    Args:
        model: on any device; its shapes alone are read.
        forward_order, gradient_order: as in `execution_order.ExecutionOrder`.
        checkpointing: `full` runs the layers' forward again in backward, `selective` its elementwise part.
    """
    config = model.config
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    in_layers = {name: prod(shape) for name, shape in shapes.items() if len(shape) == 2 and module_of(name)}
    flops_per_second = hardware.peak_flops.value * hardware.gemm_efficiency.value
    bandwidth = hardware.memory_bandwidth.value * hardware.bandwidth_efficiency.value
    by_h, by_f = LAYER_BYTES[type(config)]

    gemm = {name: 6 * tokens * elements / flops_per_second for name, elements in in_layers.items()}
    # `flops_per_token` counts the whole square of scores, of which the causal mask hides half.
    attention = tokens * (model.flops_per_token(seq_len) - model.flops_per_token(0)) / 2
    attention /= hardware.peak_flops.value * hardware.attention_efficiency.value
    elementwise = tokens * config.n_layers * (by_h * config.hidden_size + by_f * config.ffn_size) / bandwidth
    accumulate = {name: ACCUMULATE_BYTES * elements / bandwidth for name, elements in in_layers.items()}
    loss_gemm = 6 * tokens * config.vocab_size * config.hidden_size / flops_per_second
    loss = loss_gemm + tokens * BYTES_A_LOGIT * config.vocab_size / bandwidth
    ends = tokens * ENDS_BYTES * config.hidden_size / bandwidth

    share = _shares(in_layers)
    spread = {name: (elementwise + attention) * share[name] for name in in_layers}
    # A forward is a third of the products; attention's is two sevenths (FlashAttention's backward has five products of
    # the forward's two), taken as a third too.
    forward_of = {name: (gemm[name] + spread[name]) * FORWARD_SHARE for name in in_layers}
    forward: dict[str, float] = {"": ends / 2}
    for name in forward_order:
        if name in in_layers:
            forward[module_of(name)] = forward.get(module_of(name), 0.0) + forward_of[name]
    again = {
        "none": dict.fromkeys(in_layers, 0.0),
        "selective": {name: elementwise * share[name] * FORWARD_SHARE for name in in_layers},
        "full": forward_of,
    }[checkpointing]
    backward: dict[str, float] = dict.fromkeys(gradient_order, 0.0)
    for name in in_layers:
        backward[name] += (gemm[name] + spread[name]) * (1 - FORWARD_SHARE) + again[name] + accumulate[name]
    backward[gradient_order[-1]] += ends / 2
    by_kind = {
        "matrix products": sum(gemm.values()) + loss_gemm,
        "attention": attention,
        "elementwise": elementwise + ends + loss - loss_gemm + sum(accumulate.values()),
        "recomputation": sum(again.values()),
    }
    return MicroBatchSeconds((*forward.items(), ("loss", loss)), tuple(backward.items()), by_kind)


def _shares(elements: Mapping[str, int]) -> dict[str, float]:
    total = sum(elements.values())
    return {name: count / total for name, count in elements.items()}


def update_seconds(elements: int, master: str, hardware: Hardware) -> float:
    """AdamW over a slice of `elements` elements."""
    return UPDATE_BYTES[master] * elements / (hardware.memory_bandwidth.value * hardware.bandwidth_efficiency.value)

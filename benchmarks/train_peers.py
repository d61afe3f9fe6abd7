"""A training step of the same sizes in Transformers: with Liger's kernels, torch.compile, both, or neither.

Parameters are bf16 and so are the moments of torch's fused AdamW, without master weights: less memory traffic than the
engine's fp32 state, and the fastest that users run. Layers are compiled one at a time, which compiles once for all of
them. The loss is Liger's fused projection and cross-entropy, or torch's on the whole logits.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindllm_engine.models.gpt_neo import GPTNeoConfig
from mindllm_engine.models.mindllm import MindLLMConfig

LEARNING_RATE = 1e-4
Config = MindLLMConfig | GPTNeoConfig


@dataclass(frozen=True)
class Absent:
    """A peer that cannot run here."""

    reason: str


@dataclass(frozen=True)
class PeerStep:
    """Makes the step of one peer; `note` says what it consists of."""

    config: Config
    device: torch.device
    liger: bool
    compiled: bool

    @property
    def note(self) -> str:
        return f"{attention_name(self.config)} attention, bf16 AdamW without master weights"

    def __call__(self) -> Callable[[Any], Tensor]:
        patch_llama(self.liger)
        model = build(self.config, self.device)
        if self.liger and isinstance(self.config, GPTNeoConfig):
            use_liger_layer_norm(model)
        return make_step(model, self.liger, self.compiled, self.device)


def peer_steps(config: Config, device: torch.device) -> Iterator[tuple[str, PeerStep | Absent]]:
    """(name, what makes its step or why it is absent), strongest first."""
    missing = [name for name in ("transformers", "liger_kernel") if find_spec(name) is None]
    for liger, compiled in ((True, True), (False, True), (True, False), (False, False)):
        parts = ["Transformers", *(["Liger"] if liger else []), *(["torch.compile"] if compiled else [])]
        needed = [name for name in missing if name == "transformers" or liger]
        if needed:
            yield " + ".join(parts), Absent(f"{', '.join(needed)} not installed")
        elif device.type != "cuda" and (liger or compiled):
            yield " + ".join(parts), Absent("needs a GPU")
        else:
            yield " + ".join(parts), PeerStep(config, device, liger, compiled)


def attention_name(config: Config) -> str:
    """The fastest attention that Transformers has for the network here; GPT-Neo's has no SDPA."""
    if find_spec("flash_attn") is not None and torch.cuda.is_available():
        return "flash_attention_2"
    return "sdpa" if isinstance(config, MindLLMConfig) else "eager"


def build(config: Config, device: torch.device) -> Any:
    """A bf16 network of the same sizes: Llama for MindLLM (RMSNorm, rotary positions, a gated feed-forward)."""
    import transformers

    shared = {"vocab_size": config.vocab_size, "hidden_size": config.hidden_size, "use_cache": False}
    if isinstance(config, MindLLMConfig):
        peer = transformers.LlamaConfig(
            **shared,
            intermediate_size=config.ffn_size,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            max_position_embeddings=config.max_seq_len,
            tie_word_embeddings=True,
        )
        kind = transformers.LlamaForCausalLM
    else:
        pairs = config.n_layers // 2
        peer = transformers.GPTNeoConfig(
            **shared,
            intermediate_size=config.ffn_size,
            num_layers=config.n_layers,
            num_heads=config.n_heads,
            max_position_embeddings=config.max_seq_len,
            window_size=config.window_size,
            attention_types=[[["global", "local"], pairs]],
            resid_dropout=0.0,
            embed_dropout=0.0,
            attention_dropout=0.0,
        )
        kind = transformers.GPTNeoForCausalLM
    peer._attn_implementation = attention_name(config)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return kind(peer).train()
    finally:
        torch.set_default_dtype(before)


@cache
def unpatched_llama() -> dict[str, Any]:
    """What Transformers' Llama module holds before anything patches it."""
    return dict(vars(importlib.import_module("transformers.models.llama.modeling_llama")))


def patch_llama(liger: bool) -> None:
    """Liger's norms, rotary positions and feed-forward in Transformers' Llama, or Transformers' own again."""
    vars(importlib.import_module("transformers.models.llama.modeling_llama")).update(unpatched_llama())
    if liger:
        patch = importlib.import_module("liger_kernel.transformers").apply_liger_kernel_to_llama
        patch(rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False)


def use_liger_layer_norm(model: nn.Module) -> None:
    """Liger has no patch for GPT-Neo: its LayerNorm takes the place of torch's."""
    liger_class = importlib.import_module("liger_kernel.transformers").LigerLayerNorm
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.LayerNorm):
                norm = liger_class(child.normalized_shape[0], eps=child.eps)
                setattr(parent, name, norm.to(child.weight.device, child.weight.dtype))


def make_step(model: Any, liger: bool, compiled: bool, device: torch.device) -> Callable[[Any], Tensor]:
    """Forward, backward, clipping and AdamW over a batch of whole documents."""
    base = model.model if hasattr(model, "model") else model.transformer
    if compiled:
        torch._dynamo.reset()
        for layer in base.layers if hasattr(base, "layers") else base.h:
            layer.compile(dynamic=False)
    loss_of = liger_loss() if liger else torch_loss
    if compiled and not liger:
        loss_of = torch.compile(torch_loss, dynamic=False)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.1, fused=True)

    def step(batch: Any) -> Tensor:
        samples = batch.cu_seqlens.shape[0] - 1  # whole documents: a sample each
        hidden = base(input_ids=batch.tokens.view(samples, -1), use_cache=False).last_hidden_state
        loss = loss_of(hidden.flatten(0, 1), model.lm_head.weight, batch.targets)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True if device.type == "cuda" else None)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return step


def torch_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits that lie in memory as a whole."""
    return F.cross_entropy(F.linear(hidden, weight).float(), targets)


def liger_loss() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Liger's fused projection and mean cross-entropy."""
    apply = importlib.import_module("liger_kernel.ops").LigerFusedLinearCrossEntropyFunction.apply

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        out = apply(hidden, weight, targets)
        return out[0] if isinstance(out, tuple) else out

    return loss

"""MindLLM checkpoints in the format of export/hf_code, which travels with them: config.json beside the weights."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mindllm_engine.errors import CheckpointError
from mindllm_engine.models.mindllm import MindLLM, MindLLMConfig

_HF_TIED = "lm_head.weight"


def config_to_hf(config: MindLLMConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The contents of config.json for transformers."""
    return {
        "architectures": ["MindLLMForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_mindllm.MindLLMConfig",
            "AutoModelForCausalLM": "modeling_mindllm.MindLLMForCausalLM",
        },
        "model_type": "mindllm",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "max_position_embeddings": config.max_seq_len,
        "rope_base": config.rope_base,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def config_from_hf(config: dict[str, Any], directory: Path) -> MindLLMConfig:
    """Our sizes from the contents of config.json. Raises CheckpointError for what is missing or of another type."""
    try:
        ours = MindLLMConfig(
            vocab_size=int(config["vocab_size"]),
            hidden_size=int(config["hidden_size"]),
            ffn_size=int(config["intermediate_size"]),
            n_layers=int(config["num_hidden_layers"]),
            n_heads=int(config["num_attention_heads"]),
            max_seq_len=int(config["max_position_embeddings"]),
            rope_base=float(config["rope_base"]),
            norm_eps=float(config["rms_norm_eps"]),
        )
    except KeyError as error:
        raise CheckpointError(f"{directory}/config.json lacks the key {error.args[0]!r}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{directory}/config.json has a value of the wrong type: {error}") from error
    ours.validate()
    return ours


def to_hf_state_dict(model: MindLLM) -> dict[str, Tensor]:
    """The parameters under the names of MindLLMForCausalLM; the tied projection is left out. Values are views."""
    return {f"model.{name}.weight": parameter.detach() for name, parameter in model.named_parameters()}


def from_hf_state_dict(model: MindLLM, state: dict[str, Tensor]) -> None:
    """Copy the parameters of a MindLLMForCausalLM into `model`, converting them to its dtype.

    Raises CheckpointError for a tensor that is missing, of another shape, or unknown.
    """
    targets = to_hf_state_dict(model)
    tied = state.get(_HF_TIED)
    if tied is not None and not torch.equal(tied, state.get("model.embedding.weight", tied)):
        raise CheckpointError(f"the MindLLM checkpoint has a {_HF_TIED} of its own; here it is tied to the embedding")
    unequal = sorted(targets.keys() ^ (state.keys() - {_HF_TIED}))
    if unequal:
        what = "lacks" if unequal[0] in targets else "has besides what the network has"
        raise CheckpointError(f"the MindLLM checkpoint {what} the tensor {unequal[0]}")
    for name, target in targets.items():
        if state[name].shape != target.shape:
            raise CheckpointError(
                f"tensor {name} of the MindLLM checkpoint is {tuple(state[name].shape)}, the network needs "
                f"{tuple(target.shape)}"
            )
        target.copy_(state[name])

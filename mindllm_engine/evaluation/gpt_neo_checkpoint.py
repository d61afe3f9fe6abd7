"""GPT-Neo checkpoints in the format of transformers' GPTNeoForCausalLM: config.json beside the weights."""

import json
from pathlib import Path
from typing import Any

import torch

from mindllm_engine.errors import CheckpointError
from mindllm_engine.evaluation.export.tensor_files import read_json, read_tensors, write_tensors
from mindllm_engine.models.gpt_neo import GPTNeo, GPTNeoConfig, from_hf_state_dict, to_hf_state_dict

# What the network assumes and a GPT-Neo configuration could say otherwise; the defaults are those of transformers.
_FIXED = {
    "activation_function": ("gelu_new", ("gelu_new", "gelu_pytorch_tanh")),
    "tie_word_embeddings": (True, (True,)),
}


def load_hf_checkpoint(directory: Path | str, device: torch.device | str | None = None) -> GPTNeo:
    """The network that lies in `directory`, in the dtype of its file, every parameter bit for bit.

    Reads safetensors, or pytorch_model.bin where there are none, whole or in shards. Raises CheckpointError for a
    missing or damaged file, another architecture, and tensors that are missing, unknown or of another shape.
    """
    directory = Path(directory)
    config = config_from_hf(read_json(directory / "config.json"), directory)
    state = read_tensors(directory)
    embedding = state.get("transformer.wte.weight")
    if embedding is None:
        raise CheckpointError(f"{directory} has no tensor transformer.wte.weight: it is no GPTNeoForCausalLM")
    model = GPTNeo(config, device=device, dtype=embedding.dtype)
    from_hf_state_dict(model, state)
    return model


def save_hf_checkpoint(model: GPTNeo, directory: Path | str) -> None:
    """Write `model` so that `GPTNeoForCausalLM.from_pretrained(directory)` reads it; makes the folder."""
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_tensors(directory, to_hf_state_dict(model), model.embedding.dtype, lambda _: None)
        config = config_to_hf(model.config, model.embedding.dtype)
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write the GPT-Neo checkpoint {directory}: {error.strerror or error}") from error


def config_from_hf(config: dict[str, Any], directory: Path) -> GPTNeoConfig:
    """Our sizes from the contents of config.json; CheckpointError for a network that is not GPT-Neo as we build it."""
    if config.get("model_type") != "gpt_neo":
        raise CheckpointError(f"{directory}/config.json is of model_type {config.get('model_type')!r}, not 'gpt_neo'")
    for key, (default, allowed) in _FIXED.items():
        if config.get(key, default) not in allowed:
            raise CheckpointError(f"{directory}/config.json has {key} {config[key]!r}; we support {allowed[0]!r} only")
    try:
        n_layers, hidden = int(config["num_layers"]), int(config["hidden_size"])
        # Either the list of layers, or its run lengths: [[["global", "local"], 12]].
        kinds = config.get("attention_layers")
        if kinds is None:
            kinds = [kind for names, times in config["attention_types"] for _ in range(times) for kind in names]
        ours = GPTNeoConfig(
            vocab_size=int(config["vocab_size"]),
            hidden_size=hidden,
            ffn_size=int(config.get("intermediate_size") or 4 * hidden),
            n_layers=n_layers,
            n_heads=int(config["num_heads"]),
            max_seq_len=int(config["max_position_embeddings"]),
            window_size=int(config.get("window_size", 256)),
            norm_eps=float(config.get("layer_norm_epsilon", 1e-5)),
        )
    except KeyError as error:
        raise CheckpointError(f"{directory}/config.json lacks the key {error.args[0]!r}") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{directory}/config.json has a value of the wrong type: {error}") from error
    if kinds != [("global", "local")[index % 2] for index in range(n_layers)]:
        raise CheckpointError(f"{directory}/config.json does not alternate global and local attention, from global on")
    ours.validate()
    return ours


def config_to_hf(config: GPTNeoConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The contents of config.json for transformers."""
    kinds = [("global", "local")[index % 2] for index in range(config.n_layers)]
    types: list[list[Any]] = [[["global", "local"], config.n_layers // 2]] if config.n_layers > 1 else []
    if config.n_layers % 2:
        types.append([["global"], 1])
    return {
        "architectures": ["GPTNeoForCausalLM"],
        "model_type": "gpt_neo",
        "activation_function": "gelu_new",
        "attention_dropout": 0.0,
        "attention_layers": kinds,
        "attention_types": types,
        "embed_dropout": 0.0,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "layer_norm_epsilon": config.norm_eps,
        "max_position_embeddings": config.max_seq_len,
        "num_heads": config.n_heads,
        "num_layers": config.n_layers,
        "resid_dropout": 0.0,
        "tie_word_embeddings": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vocab_size": config.vocab_size,
        "window_size": config.window_size,
    }

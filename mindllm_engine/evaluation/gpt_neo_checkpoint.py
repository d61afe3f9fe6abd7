"""GPT-Neo checkpoints in the format of transformers' GPTNeoForCausalLM: config.json beside model.safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mindllm_engine.errors import CheckpointError
from mindllm_engine.models.gpt_neo import GPTNeo, GPTNeoConfig, from_hf_state_dict, to_hf_state_dict

# What the network assumes and a GPT-Neo configuration could say otherwise; the defaults are those of transformers.
_FIXED = {
    "activation_function": ("gelu_new", ("gelu_new", "gelu_pytorch_tanh")),
    "tie_word_embeddings": (True, (True,)),
}


def load_hf_checkpoint(directory: Path | str, device: torch.device | str | None = None) -> GPTNeo:
    """The network that lies in `directory`, in the dtype of its file, every parameter bit for bit.

    Reads model.safetensors, or pytorch_model.bin where there is none. Raises CheckpointError for a missing or damaged file,
    another architecture, and tensors that are missing, unknown or of another shape.
    """
    directory = Path(directory)
    config = config_from_hf(_read_json(directory / "config.json"), directory)
    state = _read_tensors(directory)
    embedding = state.get("transformer.wte.weight")
    if embedding is None:
        raise CheckpointError(f"{directory} has no tensor transformer.wte.weight: it is no GPTNeoForCausalLM")
    model = GPTNeo(config, device=device, dtype=embedding.dtype)
    from_hf_state_dict(model, state)
    return model


def save_hf_checkpoint(model: GPTNeo, directory: Path | str) -> None:
    """Write `model` so that `GPTNeoForCausalLM.from_pretrained(directory)` reads it; makes the folder."""
    from safetensors.torch import save_file

    directory = Path(directory)
    state = {name: tensor.contiguous().cpu() for name, tensor in to_hf_state_dict(model).items()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
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
            raise CheckpointError(f"{directory}/config.json has {key} {config[key]!r}; only {allowed[0]!r} is supported")
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
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{directory}/config.json has a value of the wrong type: {error}") from error
    if kinds != [("global", "local")[index % 2] for index in range(n_layers)]:
        raise CheckpointError(f"{directory}/config.json does not alternate global and local attention, from global on")
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}: it is no checkpoint of transformers") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold an object")
    return content


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = directory / "model.safetensors"
    if not path.exists():
        path = directory / "pytorch_model.bin"
    if not path.exists():
        raise CheckpointError(f"{directory} has neither model.safetensors nor pytorch_model.bin")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # weights_only: a pickle could otherwise run any code.
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged or cannot be read: {' '.join(str(error).split())[:200]}") from error
    except Exception as error:  # pickle raises its own kinds for what weights_only refuses
        raise CheckpointError(f"{path} holds more than tensors, or is damaged") from error

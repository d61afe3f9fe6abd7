"""Floor 2: networks as plain nn.Modules; they know nothing of distribution, data or training."""

from dataclasses import dataclass, fields
from typing import Any

import torch

from mindllm_engine.errors import ConfigError
from mindllm_engine.models.gpt_neo import GPTNeo, GPTNeoConfig
from mindllm_engine.models.mindllm import MindLLM, MindLLMConfig
from mindllm_engine.models.minicpm import MiniCPM, MiniCPMConfig

Network = MindLLM | GPTNeo | MiniCPM
NetworkConfig = MindLLMConfig | GPTNeoConfig | MiniCPMConfig

# By the key of `ModelConfig` that holds it.
_CONFIG_TYPES: dict[str, type[NetworkConfig]] = {
    "mindllm": MindLLMConfig,
    "gpt_neo": GPTNeoConfig,
    "minicpm": MiniCPMConfig,
}


@dataclass
class ModelConfig:
    """Which network to train: exactly one of the keys is given."""

    mindllm: MindLLMConfig | None = None
    """A MindLLM network (section 3.1)."""
    gpt_neo: GPTNeoConfig | None = None
    """A GPT-Neo network, such as MindLLM-1.3B (section 3.2)."""
    minicpm: MiniCPMConfig | None = None
    """A MiniCPM network (arXiv 2404.06395), or a Llama with tied embeddings."""

    @classmethod
    def of(cls, config: NetworkConfig) -> "ModelConfig":
        """The choice of this network."""
        chosen: dict[str, Any] = {key: config for key, kind in _CONFIG_TYPES.items() if isinstance(config, kind)}
        return cls(**chosen)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "ModelConfig":
        """What `dataclasses.asdict` has made of one, of an earlier version with fewer keys as well."""
        chosen: dict[str, Any] = {key: kind(**saved[key]) for key, kind in _CONFIG_TYPES.items() if saved.get(key)}
        return cls(**chosen)

    @property
    def selected(self) -> NetworkConfig:
        """The one network that is given. Raises ConfigError where none or several are."""
        keys = [field.name for field in fields(self)]
        given = [key for key in keys if getattr(self, key) is not None]
        if not given:
            raise ConfigError(f"model names no network; give {' or '.join(f'model.{key}' for key in keys)}")
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(f'model.{key}' for key in given)} are all given; keep one")
        config: NetworkConfig = getattr(self, given[0])
        return config

    def validate(self) -> None:
        """Raise ConfigError, naming the key, for an impossible network."""
        self.selected.validate()

    def build(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None, seed: int | None = None
    ) -> Network:
        """The selected network with fresh parameters, as its own `build` gives it."""
        return self.selected.build(device=device, dtype=dtype, seed=seed)

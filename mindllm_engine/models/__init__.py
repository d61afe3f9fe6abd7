"""Floor 2: networks as plain nn.Modules; they know nothing of distribution, data or training."""

from dataclasses import dataclass

import torch

from mindllm_engine.errors import ConfigError
from mindllm_engine.models.gpt_neo import GPTNeo, GPTNeoConfig
from mindllm_engine.models.mindllm import MindLLM, MindLLMConfig


@dataclass
class ModelConfig:
    """Which network to train: exactly one of the keys is given."""

    mindllm: MindLLMConfig | None = None
    """A MindLLM network (section 3.1)."""
    gpt_neo: GPTNeoConfig | None = None
    """A GPT-Neo network, such as MindLLM-1.3B (section 3.2)."""

    @property
    def selected(self) -> MindLLMConfig | GPTNeoConfig:
        """The one network that is given. Raises ConfigError where none or both are."""
        if self.mindllm is not None and self.gpt_neo is not None:
            raise ConfigError("model.mindllm and model.gpt_neo are both given; keep one")
        config = self.mindllm or self.gpt_neo
        if config is None:
            raise ConfigError("model names no network; give model.mindllm or model.gpt_neo")
        return config

    def validate(self) -> None:
        """Raise ConfigError, naming the key, for an impossible network."""
        self.selected.validate()

    def build(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None, seed: int | None = None
    ) -> MindLLM | GPTNeo:
        """The selected network with fresh parameters, as its own `build` gives it."""
        return self.selected.build(device=device, dtype=dtype, seed=seed)

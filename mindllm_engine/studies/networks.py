"""The sizes of a ladder of networks, and the learning rate that goes with each."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from mindllm_engine.command_line import parse_mapping
from mindllm_engine.errors import ConfigError
from mindllm_engine.models import ModelConfig
from mindllm_engine.models.initialization import count_layer_parameters, count_parameters
from mindllm_engine.studies.trials import changed


@dataclass
class NetworkSize:
    """One rung: what it changes in the base config's network. The rest of that (vocabulary, window) stays."""

    hidden_size: int
    """Width of the residual stream."""
    ffn_size: int
    """Width inside the feed-forward."""
    n_layers: int
    """Layers."""
    n_heads: int
    """Attention heads."""

    @property
    def name(self) -> str:
        """Such as h128x4."""
        return f"h{self.hidden_size}x{self.n_layers}"

    def changes(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """Dotted key -> value; a network with heads of keys and values gets as many as its others. Raises ConfigError
        where `base` names no network or several."""
        given = [kind for kind, network in (base.get("model") or {}).items() if network is not None]
        if len(given) != 1:
            raise ConfigError(f"model: the base config names {len(given)} networks; a ladder changes the sizes of one")
        sizes = asdict(self)
        if "n_kv_heads" in base["model"][given[0]]:
            sizes["n_kv_heads"] = self.n_heads
        return {f"model.{given[0]}.{key}": value for key, value in sizes.items()}


@dataclass
class WidthRule:
    """The learning rate as a power of the width: smooth, so that no rung is better off than its neighbours. It is a
    rule and no optimum: a ladder whose rungs were each tuned may have another law. MiniCPM's network scales the rate by
    itself: power 0."""

    lr: float
    """Peak learning rate at `width`."""
    width: int
    """A hidden_size."""
    power: float
    """It falls as hidden_size^-power."""

    def at(self, size: NetworkSize) -> float:
        """Of a network of this size."""
        return float(self.lr * (size.hidden_size / self.width) ** -self.power)

    def changes(self, size: NetworkSize) -> dict[str, Any]:
        """Dotted key -> value: the peak, and a tenth of it for schedules that decay."""
        return {"optim.lr": self.at(size), "optim.schedule.min_lr": self.at(size) / 10}

    def validate(self, key: str) -> None:
        """Raises `ConfigError` naming the first impossible value."""
        if not (self.lr > 0 and self.width > 0):
            raise ConfigError(f"{key}: lr {self.lr:g} and width {self.width} must be above 0")


def check_sizes(sizes: Sequence[NetworkSize], least: int, key: str) -> None:
    """Raises `ConfigError` where there are too few, or two of one name."""
    if len(sizes) < least:
        raise ConfigError(f"{key}: {len(sizes)} networks are too few; give {least} at least")
    names = [size.name for size in sizes]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{key}: two networks are {name}; they must differ in width or depth")


def parameters_of(changes: Mapping[str, Any], base: Mapping[str, Any]) -> int:
    """Parameters of the base config's network after changes to its sizes. Raises ConfigError."""
    return count_parameters(_network(changes, base))


def layer_parameters_of(changes: Mapping[str, Any], base: Mapping[str, Any]) -> int:
    """Those without the embedding. Raises ConfigError."""
    return count_layer_parameters(_network(changes, base))


def _network(changes: Mapping[str, Any], base: Mapping[str, Any]) -> nn.Module:
    model = parse_mapping(ModelConfig, changed(base, changes)["model"], "the ladder's network")
    model.validate()
    return model.build(device="meta")


def steps_of(tokens: float, samples: int, base: Mapping[str, Any]) -> int:
    """Optimizer steps of `samples` a batch that read so many tokens, to the nearest, one at least."""
    return max(1, round(tokens / (samples * int(base["data"]["seq_len"]))))

"""LoRA (arXiv 2106.09685): beside a frozen matrix W (out, in), two narrow ones that train: W x + alpha / rank * B A x.

A is (rank, in), B (out, rank). Each part of a packed matrix (query, key and value; gate and up) has its own pair, as if
it stood alone: `<matrix>_lora_a` stacks their A, `<matrix>_lora_b` their B. Both are parameters of the layer itself, so
that whatever waits for a layer's parameters, compiles or recomputes it finds them where it looks.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindllm_engine.errors import ConfigError

LORA_A, LORA_B = "_lora_a", "_lora_b"


@dataclass
class LoraConfig:
    """Low-rank additions to all linear maps of the layers; all else, the embedding included, stays as it is."""

    rank: int = 16
    """Rows of A and columns of B."""
    alpha: float = 32.0
    """B A counts alpha / rank times."""

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def validate(self) -> None:
        """Raise ConfigError, naming the key, for what adds nothing."""
        if self.rank < 1:
            raise ConfigError(f"tuning.lora.rank: {self.rank} must be at least 1")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"tuning.lora.alpha: {self.alpha} must be above 0")


class AdaptableLayer(nn.Module):
    """A layer whose linear maps take low-rank additions.

    Attributes:
        linear_parts: its matrices by attribute, and how many parts each packs.
        lora_scale: what additions are multiplied by; None where there are none.
    """

    linear_parts: ClassVar[dict[str, int]]
    lora_scale: float | None = None

    def part_rows(self, name: str) -> list[int]:
        """Rows of each part of a matrix; of equal size unless a layer says otherwise."""
        parts = self.linear_parts[name]
        return [len(getattr(self, name)) // parts] * parts

    def linear(self, name: str, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(T, in) to (T, out) by the matrix of this name and what is added to it."""
        y = F.linear(x, getattr(self, name), bias)
        if self.lora_scale is None:
            return y
        a, b = getattr(self, name + LORA_A), getattr(self, name + LORA_B)
        narrow = F.linear(x, a)  # (T, parts * rank)
        parts, rows = self.linear_parts[name], self.part_rows(name)
        if parts == 1:
            return y.addmm_(narrow, b.t(), alpha=self.lora_scale)
        if len(set(rows)) > 1:
            pairs = zip(narrow.chunk(parts, dim=-1), b.split(rows), strict=True)
            return y.add(torch.cat([F.linear(*pair) for pair in pairs], dim=-1), alpha=self.lora_scale)
        by_part = narrow.view(len(x), parts, -1).transpose(0, 1)  # (parts, T, rank)
        added = torch.bmm(by_part, b.view(parts, -1, b.shape[1]).transpose(1, 2))  # (parts, T, out / parts)
        return y.view(len(x), parts, -1).add(added.transpose(0, 1), alpha=self.lora_scale).view_as(y)


def add_lora(model: nn.Module, config: LoraConfig, seed: int) -> None:
    """Freeze the parameters of `model` and give its layers additions, which are 0 at first.

    A is drawn from U(-1/sqrt(in), 1/sqrt(in)), Kaiming's with a = sqrt(5) as in the paper's code and peft, B is 0; the
    same `seed` gives the same numbers on every device.

    Raises:
        ConfigError: the rank is more than a matrix can have.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for layer in adaptable_layers(model):
        for name, parts in layer.linear_parts.items():
            weight = getattr(layer, name)
            rows, columns = weight.shape
            full = min(*layer.part_rows(name), columns)
            if config.rank > full:
                raise ConfigError(f"tuning.lora.rank: {config.rank} is more than the full rank of {name}, {full}")
            bound = 1 / math.sqrt(columns)
            a = torch.empty(parts * config.rank, columns).uniform_(-bound, bound, generator=generator)
            layer.register_parameter(name + LORA_A, nn.Parameter(a.to(weight)))
            layer.register_parameter(name + LORA_B, nn.Parameter(weight.new_zeros(rows, config.rank)))
        layer.lora_scale = config.scale


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Add the additions to the frozen matrices, in the dtype of these, and take them away. Nothing is frozen then."""
    for layer in adaptable_layers(model):
        for name, added in lora_products(layer).items():
            getattr(layer, name).add_(added)
            delattr(layer, name + LORA_A)
            delattr(layer, name + LORA_B)
        layer.lora_scale = None
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def lora_products(layer: AdaptableLayer) -> dict[str, Tensor]:
    """What the additions of a layer amount to, alpha / rank * B A, (out, in) for each of its matrices."""
    scale = layer.lora_scale
    if scale is None:
        return {}
    return {name: torch.cat([scale * (b @ a) for a, b in lora_parts(layer, name)]) for name in layer.linear_parts}


def lora_parts(layer: AdaptableLayer, name: str) -> list[tuple[Tensor, Tensor]]:
    """A (rank, in) and B (rows of the part, rank) of each part of a matrix."""
    a, b = getattr(layer, name + LORA_A).detach(), getattr(layer, name + LORA_B).detach()
    return list(zip(a.chunk(layer.linear_parts[name]), b.split(layer.part_rows(name)), strict=True))


def adaptable_layers(model: nn.Module) -> list[AdaptableLayer]:
    """The layers of a network, in order."""
    return [module for module in model.modules() if isinstance(module, AdaptableLayer)]

"""Networks of other widths than the runs' config has, by MiniCPM's rules of width (Table 7) or without them.

The two parametrisations share everything but the rules: at the base width they are the same network, so that a
difference elsewhere is of the rules alone. Without them initial deviation, learning rate and logits' factor stay what
they are at the base, as in GPT and Llama.
"""

from collections.abc import Mapping
from typing import Any, Literal

from mindllm_engine.errors import ConfigError

Parametrization = Literal["standard", "minicpm"]
PARAMETRIZATIONS: tuple[Parametrization, ...] = ("standard", "minicpm")
SHOWN = {"standard": "standard", "minicpm": "MiniCPM's"}


def base_network(base: Mapping[str, Any]) -> Mapping[str, Any]:
    """`model.minicpm` of the runs' config. Raises ConfigError where it lacks what the wind tunnel goes by."""
    network = (base.get("model") or {}).get("minicpm")
    if not network:
        raise ConfigError("model.minicpm: missing in the runs' config; the wind tunnel is of this network")
    for key in ("hidden_size", "ffn_size", "n_layers", "n_heads", "n_kv_heads", "width_base"):
        if not network.get(key):
            raise ConfigError(f"model.minicpm.{key}: missing in the runs' config; widths are set by it")
    return network


def network_at(
    base: Mapping[str, Any], width: int, n_layers: int | None, parametrization: Parametrization
) -> dict[str, Any]:
    """The changes that make the runs' network this wide; its feed-forward and number of heads grow in proportion.

    Args:
        base: the runs' config.
        n_layers: None leaves them as they are.

    Raises:
        ConfigError: the width does not divide into heads as wide as the base's.
    """
    network = base_network(base)
    changes: dict[str, Any] = {"model.minicpm.hidden_size": width}
    for key in ("ffn_size", "n_heads", "n_kv_heads"):
        size, rest = divmod(network[key] * width, network["hidden_size"])
        if rest or size < 1:
            raise ConfigError(
                f"width {width}: model.minicpm.{key} {network[key]} at width {network['hidden_size']} gives no whole "
                "number; choose a multiple"
            )
        changes[f"model.minicpm.{key}"] = size
    if n_layers is not None:
        changes["model.minicpm.n_layers"] = n_layers
    if parametrization == "standard":
        changes["model.minicpm.width_base"] = None
    return changes


def rate_changes(base: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """The changes that make `rate` the peak learning rate; the schedule's end keeps its share of it."""
    optim = base.get("optim") or {}
    end = (optim.get("schedule") or {}).get("min_lr", 0.0)
    share = end / optim["lr"] if end else 0.0
    return {"optim.lr": rate, "optim.schedule.min_lr": rate * share}

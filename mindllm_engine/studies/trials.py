"""A trial: one ordinary run of a study's grid, told by what it changes in the study's base config.

The folder of a trial is named after it and after a hash of everything that decides its result, so that a study whose
grid grew trains only what is new, and one whose settings changed trains in new folders.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import xxhash

from mindllm_engine.command_line import parse_mapping
from mindllm_engine.errors import ConfigError
from mindllm_engine.models.initialization import count_layer_parameters
from mindllm_engine.training.config import RunConfig

# What a run keeps, shows and watches, by section; the weights it ends with do not depend on it.
_NO_RESULT = {
    "run": ("dir", "resume"),
    "train": (
        *("time_limit_minutes", "log_every", "checkpoint_every", "keep_checkpoints", "keep_every"),
        *("gc_every", "tensorboard", "wandb_project"),
    ),
    "faults": ("check_replicas_every",),
    "data": ("verify", "cache", "cache_bytes"),
    "distributed": ("timeout_minutes",),
}


@dataclass(frozen=True)
class Trial:
    """One run of a grid.

    Attributes:
        name: fit for a folder, and the only one of this name in its study.
        changes: dotted key -> value, over the base config: {"optim.lr": 1e-3}. A value replaces what stood there.
        settings: what the analysis goes by, such as {"width": 128, "seed": 1}.
        continues: (name of another trial, step): go on from its checkpoint there, with its optimizer.
        starts_from: name of another trial, whose last weights are the initial ones here.
    """

    name: str
    changes: Mapping[str, Any]
    settings: Mapping[str, Any]
    continues: tuple[str, int] | None = None
    starts_from: str | None = None

    @property
    def needs(self) -> str | None:
        """The trial that must be finished before this one can begin."""
        return self.continues[0] if self.continues else self.starts_from


@dataclass(frozen=True)
class PlannedTrial:
    """A trial with its resolved configuration and its place.

    Attributes:
        identity: 16 hexadecimal digits that change with whatever decides the result.
        parameters: of the network; the embedding counts once.
        layer_parameters: those without the embedding.
        flops: of training from the trial's first step to its last, by the network's `flops_per_token`.
    """

    trial: Trial
    config: RunConfig
    folder: Path
    identity: str
    parameters: int
    layer_parameters: int
    flops: float
    parent: "PlannedTrial | None" = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.trial.name

    @property
    def last_step(self) -> int:
        """The step after which the trial is finished."""
        return min(self.config.train.steps, self.config.train.stop_after or self.config.train.steps)

    @property
    def first_step(self) -> int:
        """The step it goes on from; 0 for one that begins anew."""
        return self.trial.continues[1] if self.trial.continues else 0


def plan_trials(
    trials: list[Trial], base: Mapping[str, Any], folder: Path, known: Sequence[PlannedTrial] = ()
) -> list[PlannedTrial]:
    """Resolve trials over the mapping `base` of a run's config, in their order.

    Args:
        known: trials that were planned before, over the same base and folder; none of them is resolved again.

    Raises:
        ConfigError: two trials of one name, a trial that needs one which does not come before it, or an impossible
            configuration, with the trial's name.
    """
    planned: dict[str, PlannedTrial] = {}
    before = {trial.name: trial for trial in known}
    for trial in trials:
        if trial.name in planned:
            raise ConfigError(f"trial {trial.name}: two trials have this name; their settings differ in nothing")
        if trial.needs is not None and trial.needs not in planned:
            raise ConfigError(f"trial {trial.name}: it needs {trial.needs}, which does not come before it")
        parent = planned[trial.needs] if trial.needs is not None else None
        same = before.get(trial.name)
        if same is not None and same.trial == trial and same.parent is parent:
            planned[trial.name] = same
        else:
            planned[trial.name] = _plan(trial, base, folder, parent)
    return list(planned.values())


def _plan(trial: Trial, base: Mapping[str, Any], folder: Path, parent: PlannedTrial | None) -> PlannedTrial:
    mapping = changed(base, trial.changes)
    mapping.setdefault("run", {})["dir"] = "trial"  # its place is known once its identity is
    try:
        config = parse_mapping(RunConfig, mapping, f"trial {trial.name}")
        config.validate(world_size=1)
    except ConfigError as error:
        where = f"trial {trial.name}: "
        raise ConfigError(where + str(error).removeprefix(where)) from error
    identity = _identity(config, trial, parent)
    config.run.dir = str(folder / f"{trial.name}-{identity[:8]}")
    if trial.starts_from is not None and parent is not None:
        config.run.init_from = str(parent.folder)
    model = config.model.build(device="meta")
    last = min(config.train.steps, config.train.stop_after or config.train.steps)
    first = trial.continues[1] if trial.continues else 0
    tokens = (last - first) * config.train.global_batch_size * config.data.seq_len
    flops = float(tokens) * model.flops_per_token(config.data.seq_len)
    sizes = model.num_parameters(), count_layer_parameters(model)
    return PlannedTrial(trial, config, Path(config.run.dir), identity, *sizes, flops, parent)


def _identity(config: RunConfig, trial: Trial, parent: PlannedTrial | None) -> str:
    decides = asdict(config)
    del decides["profile"]
    for section, names in _NO_RESULT.items():
        for name in names:
            del decides[section][name]
    origin = [parent.identity if parent else None, trial.continues[1] if trial.continues else None]
    return xxhash.xxh3_64_hexdigest(orjson.dumps([decides, origin], option=orjson.OPT_SORT_KEYS))


def changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a nested mapping in which each dotted key has its new value."""
    result: dict[str, Any] = copy.deepcopy(dict(base))
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = result
        for section in sections:
            if place.get(section) is None:
                place[section] = {}
            place = place[section]
        place[last] = copy.deepcopy(value)
    return result


def named(**settings: Any) -> str:
    """A trial's name from its settings, in their order: width128_lr0.001_seed2."""
    return "_".join(f"{key}{_short(value)}" for key, value in settings.items())


def _short(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return str(value)

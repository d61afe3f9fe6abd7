"""A study from its config to its page: `tools/study.py --config configs/studies/scaling.yaml`."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindllm_engine.command_line import merge_mappings, read_yaml
from mindllm_engine.distributed.process_group import environment_world
from mindllm_engine.errors import ConfigError
from mindllm_engine.studies.batch_size.experiment import BatchSizeConfig
from mindllm_engine.studies.experiment import Experiment
from mindllm_engine.studies.findings import Cost
from mindllm_engine.studies.memory import machine_bytes, too_large
from mindllm_engine.studies.orders.experiment import OrdersConfig
from mindllm_engine.studies.report import write_findings
from mindllm_engine.studies.results import LeftOut, Results, read_results
from mindllm_engine.studies.runner import run_trials
from mindllm_engine.studies.scaling import ScalingConfig
from mindllm_engine.studies.sources.experiment import SourcesConfig
from mindllm_engine.studies.transfer import TransferConfig
from mindllm_engine.studies.trials import PlannedTrial, Trial, plan_trials
from mindllm_engine.studies.wind_tunnel.experiment import WindTunnelConfig
from mindllm_engine.studies.wsd.experiment import WsdConfig
from mindllm_engine.training.setup import open_data

TRIALS_FOLDER = "trials"


@dataclass
class StudySection:
    """The study as a whole."""

    dir: str
    """Folder of the study: trials/, findings.json, report.html and the plots."""
    base: list[str]
    """Config files of the runs, of which a later one completes or overrides the earlier ones; each trial changes some
    of their keys."""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """Of initial weights and the order of data, where settings are compared."""
    workers: int = 2
    """Processes that train trials at the same time on this machine. Under torchrun the ranks train each together."""
    memory_gib: float | None = None
    """What the trials may take of the device's memory, all workers together; empty for what it has. A trial that does
    not fit is left out."""

    def validate(self) -> None:
        """Raises `ConfigError` naming the first impossible value."""
        if not self.base:
            raise ConfigError("study.base: names no config; give the runs' config files")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"study.seeds: {self.seeds} must be different numbers, one at least")
        if self.workers < 1:
            raise ConfigError(f"study.workers: {self.workers} must be at least 1")
        if self.memory_gib is not None and not self.memory_gib > 0:
            raise ConfigError(f"study.memory_gib: {self.memory_gib} must be above 0")


@dataclass
class StudyConfig:
    """A study: how its runs are made, and exactly one experiment."""

    study: StudySection
    scaling: ScalingConfig | None = None
    """The law of the loss with compute, and the largest network predicted by it."""
    batch_size: BatchSizeConfig | None = None
    """The optimal batch size against loss, and L(N, D)."""
    sources: SourcesConfig | None = None
    """What each source teaches: learning curves, transfer between sources, and a mixture."""
    orders: OrdersConfig | None = None
    """Blocked, shuffled and chunked text: forgetting and in-context gain."""
    transfer: TransferConfig | None = None
    """Two languages from scratch against a transfer (MindLLM, sections 4.2 and 4.4)."""
    wsd: WsdConfig | None = None
    """Warm-up, stable, decay against cosine schedules (MiniCPM, section 4)."""
    wind_tunnel: WindTunnelConfig | None = None
    """MiniCPM's rules of width: coordinate check, best learning rates, hyperparameter search."""

    @property
    def experiment(self) -> Experiment:
        """The one experiment that is given. Raises ConfigError where none or several are."""
        given = {name: value for name, value in vars(self).items() if name != "study" and value is not None}
        if len(given) != 1:
            known = ", ".join(name for name in vars(self) if name != "study")
            raise ConfigError(f"a study has exactly one experiment, not {len(given)}; give one of {known}")
        return next(iter(given.values()))


def run_study(config: StudyConfig) -> Path | None:
    """Train what has not been trained, analyse, and write the page, whose path is returned (None on ranks but the
    first).

    Raises:
        MindLLMError: the config, a failed trial, too few points to analyse.
    """
    config.study.validate()
    experiment, folder = config.experiment, Path(config.study.dir)
    base: dict[str, Any] = {}
    for path in config.study.base:
        base = merge_mappings(base, read_yaml(path))
    world = environment_world()
    planned, results = _run_rounds(config, experiment, base)
    if not world.is_first:
        return None
    findings = experiment.analyse(results, config.study.seeds)
    findings.left_out = results.left_out
    findings.cost = _cost(planned, results)
    return write_findings(findings, folder)


def _run_rounds(
    config: StudyConfig, experiment: Experiment, base: Mapping[str, Any]
) -> tuple[list[PlannedTrial], Results]:
    """Ask for trials and train them until no new ones come."""
    results: Results | None = None
    planned: list[PlannedTrial] = []
    while True:
        trials: list[Trial] = experiment.trials(base, config.study.seeds, results)
        if {trial.name for trial in trials} <= {trial.name for trial in planned} and results is not None:
            return planned, results
        planned = plan_trials(trials, base, Path(config.study.dir) / TRIALS_FOLDER, planned)
        fitting, left_out = _fitting(planned, config.study)
        if fitting and environment_world().is_first:
            open_data(fitting[0].config)  # prepares the text once, and tells what is wrong with it
        run_trials(fitting, Path(config.study.dir), config.study.workers)
        results = read_results(fitting, left_out)


def _fitting(planned: list[PlannedTrial], study: StudySection) -> tuple[list[PlannedTrial], list[LeftOut]]:
    """The trials that fit in memory, and the others with the reason, or with the trial that they would need."""
    memory = machine_bytes() if study.memory_gib is None else study.memory_gib * 2**30
    workers = 1 if environment_world().world_size > 1 else study.workers
    reasons: dict[str, str] = {}
    for trial in planned:
        reason = too_large(trial, memory, workers)
        if reason is None and trial.parent is not None and trial.parent.name in reasons:
            reason = f"it needs {trial.parent.name}, which is left out"
        if reason is not None:
            reasons[trial.name] = reason
            if environment_world().is_first:
                print(f"left out: {trial.name}: {reason}", file=sys.stderr, flush=True)
    left_out = [LeftOut(name, reason) for name, reason in reasons.items()]
    return [trial for trial in planned if trial.name not in reasons], left_out


def _cost(planned: list[PlannedTrial], results: Results) -> Cost:
    steps = {trial.name: trial.last_step - trial.first_step for trial in planned}
    tokens = sum(
        steps[result.name] * result.config.train.global_batch_size * result.config.data.seq_len for result in results
    )
    return Cost(len(results), tokens, sum(result.seconds for result in results))

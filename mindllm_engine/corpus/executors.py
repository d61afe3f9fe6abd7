"""Runs the stages of the corpus pipeline by datatrove's executors: on this machine, on a Slurm cluster, or by Ray."""

import contextlib
import io
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from loguru import logger

from mindllm_engine.errors import ConfigError, MindLLMError


@dataclass
class SlurmConfig:
    """What a Slurm cluster wants to know; for the kind `slurm` alone."""

    partition: str = ""
    """Partition to submit to."""
    time: str = "24:00:00"
    """Time limit of a task."""
    memory_gib_per_cpu: int = 4
    """Memory of a task."""
    tasks_per_job: int = 1
    """Tasks that one job of the array runs one after the other."""
    options: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch, by name: {account: ...}."""
    setup: str = ""
    """Shell lines before each task: modules, the environment of Python."""


@dataclass
class ExecutorConfig:
    """Where the pipeline runs."""

    kind: Literal["local", "slurm", "ray"] = "local"
    """This machine's processes, a Slurm cluster (the folder must be on a disk that all nodes share), or a Ray cluster:
    the one at RAY_ADDRESS, else a local one."""
    workers: int = 2
    """Tasks at a time."""
    tasks: int | None = None
    """Parts into which a stage's files are divided; null stands for one a file. The output does not depend on it."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    """For the kind slurm."""

    def validate(self) -> None:
        """Raises ConfigError naming the first impossible value."""
        if self.workers < 1:
            raise ConfigError(f"executor.workers is {self.workers}; it must be positive")
        if self.tasks is not None and self.tasks < 1:
            raise ConfigError(f"executor.tasks is {self.tasks}; it must be positive, or null for one a file")
        if self.kind == "slurm" and not self.slurm.partition:
            raise ConfigError("executor.slurm.partition is empty; name the partition to submit to")


@dataclass(frozen=True)
class Stage:
    """A pipeline over some files; all of its tasks end before the next stage begins.

    Attributes:
        steps: datatrove's.
        parts: tasks at most.
        is_done: whether its outputs are there. Ray's executor ends in silence where a task has failed.
    """

    name: str
    steps: list[Any]
    parts: int
    is_done: Callable[[], bool]


def run_stages(stages: list[Stage], config: ExecutorConfig, logs: Path) -> None:
    """Run them one after the other. With Slurm: submit them, each to begin when the one before has ended.

    Raises MindLLMError naming the stage and where its log is, if a task failed; DataError and ConfigError of a step as
    they are.
    """
    logger.disable("datatrove")  # in this process; tasks write their logs to files
    before = None
    for stage in stages:
        before = make_executor(stage, config, logs / stage.name, before)
        if config.kind != "slurm":
            run_here(before, stage, logs / stage.name)
    if config.kind == "slurm" and before is not None:
        before.run()  # submits those before it first


def run_here(executor: Any, stage: Stage, logs: Path) -> None:
    """Run one stage to its end."""
    try:
        executor.run()
    except MindLLMError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise MindLLMError(f"corpus, stage {stage.name}: {what}; the logs are in {logs}") from error
    if not stage.is_done():
        raise MindLLMError(f"corpus, stage {stage.name}: a task failed; the logs are in {logs}")


class QuietLocalExecutor(LocalPipelineExecutor):
    """datatrove's, whose tasks write their logs to files alone."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        with contextlib.redirect_stderr(io.StringIO()):  # to which datatrove would add a handler
            return super()._run_for_rank(rank, local_rank, node_rank)


def make_executor(stage: Stage, config: ExecutorConfig, logs: Path, before: Any) -> Any:
    """datatrove's executor for a stage. What is done is judged by the outputs (`corpus_files.py`), not by datatrove's
    own marks of tasks, which say nothing of another number of tasks."""
    tasks = min(stage.parts, config.tasks or stage.parts)
    common = {"pipeline": stage.steps, "logging_dir": str(logs), "skip_completed": False, "tasks": tasks}
    if config.kind == "local":
        return QuietLocalExecutor(**common, workers=min(config.workers, tasks))
    if config.kind == "ray":
        start_ray(config.workers)
        return RayPipelineExecutor(**common, workers=min(config.workers, tasks))
    slurm = config.slurm
    return SlurmPipelineExecutor(
        **common,
        workers=config.workers,
        time=slurm.time,
        partition=slurm.partition,
        mem_per_cpu_gb=slurm.memory_gib_per_cpu,
        tasks_per_job=slurm.tasks_per_job,
        qos=slurm.options.get("qos", ""),
        sbatch_args=slurm.options,
        env_command=slurm.setup or None,
        job_name=f"corpus_{stage.name}",
        depends=before,
    )


def start_ray(workers: int) -> None:
    """Join the cluster at RAY_ADDRESS, or start one on this machine."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError("executor.kind ray needs the package ray: install mindllm-engine[ray]") from error
    if ray.is_initialized():
        return
    options: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "include_dashboard": False}
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)

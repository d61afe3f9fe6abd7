"""Runs the stages of the corpus pipeline by datatrove's executors: processes of this machine, a Slurm cluster, or Ray."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
    """

    name: str
    steps: list[Any]
    parts: int


def run_stages(stages: list[Stage], config: ExecutorConfig, logs: Path) -> None:
    """Run them one after the other. With Slurm: submit them, each to begin when the one before has ended.

    Raises MindLLMError naming the stage and where its log is, if a task failed; DataError and ConfigError of a step as
    they are.
    """
    executor = None
    for stage in stages:
        executor = make_executor(stage, config, logs / stage.name, executor)
        if config.kind == "slurm":
            continue
        try:
            executor.run()
        except MindLLMError:
            raise
        except Exception as error:
            raise MindLLMError(
                f"corpus, stage {stage.name}: {type(error).__name__}: {error}; the logs are in {logs / stage.name}"
            ) from error
    if config.kind == "slurm" and executor is not None:
        executor.run()  # submits those before it first


def make_executor(stage: Stage, config: ExecutorConfig, logs: Path, before: Any) -> Any:
    """datatrove's executor for a stage. What is done is judged by the outputs (`corpus_files.py`), not by datatrove's
    own marks of tasks, which say nothing of another number of tasks."""
    tasks = min(stage.parts, config.tasks or stage.parts)
    common = {"pipeline": stage.steps, "logging_dir": str(logs), "skip_completed": False, "tasks": tasks}
    if config.kind == "local":
        from datatrove.executor import LocalPipelineExecutor

        return LocalPipelineExecutor(**common, workers=min(config.workers, tasks))
    if config.kind == "ray":
        from datatrove.executor import RayPipelineExecutor

        return RayPipelineExecutor(**common, workers=min(config.workers, tasks))
    from datatrove.executor import SlurmPipelineExecutor

    slurm = config.slurm
    return SlurmPipelineExecutor(
        **common,
        workers=config.workers,
        time=slurm.time,
        partition=slurm.partition,
        mem_per_cpu_gb=slurm.memory_gib_per_cpu,
        tasks_per_job=slurm.tasks_per_job,
        sbatch_args=slurm.options,
        env_command=slurm.setup or None,
        job_name=f"corpus_{stage.name}",
        depends=before,
    )

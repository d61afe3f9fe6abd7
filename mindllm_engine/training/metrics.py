"""What a run reports: one JSON record a line in `<run>/metrics.jsonl`, which TensorBoard and Weights & Biases copy."""

import math
from pathlib import Path
from typing import Any

import orjson

from mindllm_engine.data.atomic_files import write_atomically
from mindllm_engine.errors import ConfigError, DataError

METRICS_FILE = "metrics.jsonl"


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run, in order. A last line cut short by a kill is left out."""
    path = run_dir / METRICS_FILE
    records = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records


def truncate_metrics(run_dir: Path, last_step: int) -> None:
    """Drop the records of steps after `last_step`, which a resumed run is about to repeat."""
    records = [record for record in read_metrics(run_dir) if record["step"] <= last_step]
    write_atomically(run_dir / METRICS_FILE, b"".join(orjson.dumps(record) + b"\n" for record in records))


class MetricsLog:
    """Appends records of the form {"step": int, name: number ...} to the run's files. Made on rank 0 only.

    Args:
        run_dir: the run folder.
        resumed_step: step the run goes on from.
        tensorboard: copy to `run_dir`/tensorboard.
        wandb_project: copy to this project; None for not at all.
        config: the resolved configuration, for the project's page.
    """

    def __init__(
        self, run_dir: Path, resumed_step: int, tensorboard: bool, wandb_project: str | None, config: dict[str, Any]
    ) -> None:
        truncate_metrics(run_dir, resumed_step if resumed_step > 0 else -1)
        self.path = run_dir / METRICS_FILE
        self.board = None
        self.wandb = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resumed_step + 1)
        if wandb_project:
            try:
                import wandb
            except ImportError as error:
                raise ConfigError(
                    "train.wandb_project: needs the package wandb; pip install 'mindllm-engine[wandb]'"
                ) from error
            self.wandb = wandb.init(
                project=wandb_project, dir=str(run_dir), id=run_dir.name, resume="allow", config=config
            )

    def write(self, record: dict[str, Any]) -> None:
        """Append a record everywhere. Values that are not finite stand as null in the file."""
        try:
            with self.path.open("ab") as file:
                file.write(orjson.dumps(record) + b"\n")
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error.strerror}); free space and start again") from error
        numbers = {
            name: value for name, value in record.items() if isinstance(value, int | float) and math.isfinite(value)
        }
        if self.board is not None:
            for name, value in numbers.items():
                if name != "step":
                    self.board.add_scalar(name, value, record["step"])
        if self.wandb is not None:
            self.wandb.log(numbers, step=record["step"])

    def close(self) -> None:
        """Flush and close."""
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()

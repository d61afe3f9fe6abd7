"""What a run ran on: one JSON line for every start in `<run>/environment.jsonl`, for the report."""

import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson
import torch

from mindllm_engine import __version__
from mindllm_engine.distributed.process_group import World

ENVIRONMENT_FILE = "environment.jsonl"


@dataclass(frozen=True)
class Environment:
    """The machine and the software of one start, as its first rank sees them.

    Attributes:
        started: ISO 8601, UTC.
        device: the GPU's name, or the processor's.
        cores: CPU cores of this node that the process may use.
        memory_gib: memory of this node.
    """

    started: str
    ranks: int
    device: str
    processor: str
    cores: int
    memory_gib: float
    engine: str
    torch: str
    cuda: str | None
    python: str


def environment_here(world: World) -> Environment:
    """That of this process."""
    processor = processor_name()
    on_gpu = world.device.type == "cuda"
    return Environment(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        ranks=world.world_size,
        device=torch.cuda.get_device_name(world.device) if on_gpu else processor,
        processor=processor,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        engine=__version__,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        python=platform.python_version(),
    )


def processor_name() -> str:
    """The processor's name as Linux gives it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def record_environment(folder: Path, world: World) -> None:
    """Append this start's. Raises OSError."""
    with (folder / ENVIRONMENT_FILE).open("ab") as file:
        file.write(orjson.dumps(asdict(environment_here(world))) + b"\n")


def read_environments(folder: Path) -> list[Environment]:
    """All starts of a run, oldest first; lines that a kill cut short, or of other releases, are left out."""
    path = folder / ENVIRONMENT_FILE
    found = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            found.append(Environment(**orjson.loads(line)))
        except (TypeError, ValueError):
            continue
    return found

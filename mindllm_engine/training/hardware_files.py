"""The machines that configs/hardware/ describes, by name."""

from pathlib import Path

from mindllm_engine.command_line import parse_arguments
from mindllm_engine.distributed.hardware import Hardware
from mindllm_engine.errors import ConfigError

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "hardware"


def read_hardware(name: str) -> Hardware:
    """A machine by its name in configs/hardware/, or by the path of a YAML file of one's own.

    Raises:
        ConfigError: no such machine, or an impossible constant.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name.lower()}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise ConfigError(f"gpu: {name} is not described; choose one of {known}, or give the path of a YAML file")
    hardware = parse_arguments(Hardware, "A machine.", ["--config", str(path)])
    hardware.validate()
    return hardware

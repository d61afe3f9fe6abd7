"""The fuzz targets by name. A new one is a file beside this and a line here (see the package's docstring)."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

Target = Callable[[bytes], None]


class TargetModule(Protocol):
    """What the file of a target has; each is described in the package's docstring."""

    def seeds(self) -> list[bytes]: ...
    def make(self, folder: Path) -> Target: ...


TARGETS = {
    "reader": "tests.fuzz.reader_target",
    "manifest": "tests.fuzz.manifest_target",
    "samples": "tests.fuzz.samples_target",
}

PLANTED = {"planted": "tests.fuzz.planted_target"}
"""The gate's own check: a target with a defect, which every run must find."""


def load_target(name: str) -> TargetModule:
    """Import the target's file."""
    return cast(TargetModule, import_module((TARGETS | PLANTED)[name]))

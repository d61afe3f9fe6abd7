"""Target `planted`: planted.cpp reads one byte after the end of a map, if the file begins with the right number."""

import ctypes
from pathlib import Path

from tests.fuzz.build import PLANTED
from tests.fuzz.targets import Target


def seeds() -> list[bytes]:
    """Nothing that comes near."""
    return [bytes(20)]


def make(folder: Path) -> Target:
    """The target, which writes the input to a file."""
    library = ctypes.CDLL(str(PLANTED))
    path = folder / "planted"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        library.sum_of(str(path).encode())

    return run

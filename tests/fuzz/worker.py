"""One fuzz target in one process, which `run.py` starts with the sanitizers' runtime preloaded.

    python -m tests.fuzz.worker TARGET FOLDER CORPUS [libFuzzer's arguments]

FOLDER is where the target writes its files, CORPUS where inputs that reached something new are kept, the seeds first;
or it is a file, which is run alone.
"""

import importlib.util
import sys
import time
from pathlib import Path

import atheris

from tests.fuzz.build import NATIVE
from tests.fuzz.targets import TARGETS, Target, load_target

CPU_SECONDS = 1.0
"""Of the process for one input; more is a hang. Processor time, since a busy machine may take the rest of it."""


def main() -> None:
    """Run the target until libFuzzer exits: with 0 at the end of its runs, else with a finding."""
    name, folder, corpus, *arguments = sys.argv[1:]
    if name in TARGETS:
        take_place_of_native()
    with atheris.instrument_imports(include=["mindllm_engine"]):
        target = load_target(name)
    if Path(corpus).is_dir():
        for number, seed in enumerate(target.seeds()):
            (Path(corpus) / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *arguments, corpus], within_time(target.make(Path(folder))))
    atheris.Fuzz()


def take_place_of_native() -> None:
    """Load the sanitized build under the name of the plain one, before anything imports that."""
    name = "mindllm_engine._native"
    spec = importlib.util.spec_from_file_location(name, NATIVE)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


def within_time(run: Target) -> Target:
    """The target, which fails if an input takes too long."""

    def run_within_time(data: bytes) -> None:
        start = time.process_time()
        run(data)
        seconds = time.process_time() - start
        assert seconds < CPU_SECONDS, f"an input took {seconds:.1f} s"

    return run_within_time


if __name__ == "__main__":
    main()

"""Compiles what the fuzzers run: csrc/ as a Python module, or a target's own C++, with sanitizers and coverage.

Into build/fuzz/, each file again only if it or a header is newer than its object. The runtime that the sanitizers and
the coverage call is atheris' `asan_with_fuzzer.so`; nothing is linked against g++'s own.
"""

import importlib.util
import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "fuzz"
NATIVE = BUILD / "_native.so"
PLANTED = BUILD / "planted.so"

FLAGS = [
    *("-std=c++17", "-O1", "-g", "-fPIC", "-fvisibility=hidden", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-sanitize=vptr"),  # vptr: not in atheris'
    *(f"-I{ROOT / 'csrc'}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"),
]
COVERAGE = "-fsanitize-coverage=trace-pc,trace-cmp"


def sanitizer_runtime() -> Path | None:
    """The library to preload: the sanitizers and libFuzzer in one. None where atheris is not installed."""
    spec = importlib.util.find_spec("atheris")
    runtime = Path(spec.origin).parents[1] / "asan_with_fuzzer.so" if spec and spec.origin else None
    return runtime if runtime and runtime.exists() else None


def build_native() -> None:
    """Compile csrc/ to `NATIVE`, in about half a minute on two cores if nothing is there yet."""
    build(NATIVE, sorted((ROOT / "csrc").glob("*.cpp")))


def build_planted() -> None:
    """Compile the defect of `planted_target.py` to `PLANTED`."""
    build(PLANTED, [Path(__file__).parent / "planted.cpp", ROOT / "csrc" / "files.cpp"])


def build(library: Path, sources: list[Path]) -> None:
    """Compile `sources` and link them with the instrumentation. Raises CalledProcessError; g++ has said why."""
    BUILD.mkdir(parents=True, exist_ok=True)
    sources = [Path(__file__).parent / "instrumentation.cpp", *sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_source, sources))
    if is_stale(library, objects):
        # The sanitizers' symbols stay open until the preloaded runtime gives them.
        link = ["g++", "-shared", "-Wl,--wrap=mmap,--wrap=munmap", *objects, "-o", library]
        subprocess.run([str(part) for part in link], check=True)


def compile_source(source: Path) -> Path:
    """Compile one file, unless its object is newer than all that it may include."""
    target = BUILD / f"{source.stem}.o"
    if is_stale(target, [source, Path(__file__), *(ROOT / "csrc").glob("*.hpp")]):
        # Coverage of the bindings would be pybind11's, and of the instrumentation without end.
        guided = source.stem not in ("instrumentation", "module") and not source.stem.endswith("binding")
        command = ["g++", *FLAGS, *([COVERAGE] if guided else []), "-c", str(source), "-o", str(target)]
        if source.stem == "instrumentation":
            command = [part for part in command if not part.startswith(("-fsanitize", "-fno-sanitize"))]
        subprocess.run(command, check=True)
    return target


def is_stale(target: Path, sources: list[Path]) -> bool:
    """Whether `target` is missing or older than one of `sources`."""
    return not target.exists() or target.stat().st_mtime < max(source.stat().st_mtime for source in sources)

"""Runs fuzz targets, two at a time, and prints what came of it; exits with 1 if there was a finding.

    python -m tests.fuzz.run [--targets NAME ...] [--inputs N] [--seed N] [--replay FILE]

The corpus of a target is kept in build/fuzz/corpus/, so that a later run goes on from there, and libFuzzer's words
in build/fuzz/<target>.log.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.build import BUILD, ROOT, build_native, build_planted, sanitizer_runtime
from tests.fuzz.targets import PLANTED, TARGETS

OPTIONS = {
    # Python's own leaks are not ours; a small quarantine stays in the cache.
    "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=16",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
INPUTS = {"samples": 100_000}
"""Of a target, where they are not half a million: what takes some minutes."""
LIMITS = ["-max_len=1024", "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]


@dataclass
class Outcome:
    """What one run of a target gave."""

    target: str
    inputs: int
    seconds: float
    blocks: int
    """Basic blocks of csrc/ and branches of Python that some input has reached."""
    finding: str
    """The sanitizer's or Python's own line, and where the input lies; empty if there was none."""


def fuzz(target: str, inputs: int, seed: int = 0, replay: Path | None = None) -> Outcome:
    """Run `target`, whose library must have been built.

    A `seed` other than 0 repeats a run: it starts from the target's seeds alone, not from what earlier runs found.
    """
    findings, corpus = BUILD / "findings" / target, BUILD / "corpus" / target
    for folder in (findings, corpus):
        folder.mkdir(parents=True, exist_ok=True)
    arguments = [f"-runs={inputs}", f"-seed={seed}", *LIMITS, f"-artifact_prefix={findings}/"]
    environment = os.environ | OPTIONS | {"LD_PRELOAD": str(sanitizer_runtime()), "PYTHONPATH": str(ROOT)}
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=memory) as scratch, (BUILD / f"{target}.log").open("w+") as log:
        files, fresh_corpus = Path(scratch, "files"), Path(scratch, "corpus")
        files.mkdir()
        fresh_corpus.mkdir()
        inputs_from = replay or (fresh_corpus if seed else corpus)
        command = [sys.executable, "-m", "tests.fuzz.worker", target, str(files), str(inputs_from), *arguments]
        code = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT).returncode
        log.seek(0)
        text = log.read()
    return outcome_of(target, text, code, time.monotonic() - start)


def outcome_of(target: str, log: str, code: int, seconds: float) -> Outcome:
    """Read libFuzzer's words. An exit code other than 0 without a reason that is known is a finding too."""
    counts = (r"stat::number_of_executed_units:\s*(\d+)", r" cov: (\d+)")
    inputs, blocks = (max(map(int, re.findall(pattern, log)), default=0) for pattern in counts)
    finding = ""
    if code != 0:
        reasons = re.findall(
            r"^(?:==\d+==\s*)?((?:ERROR: |[\w.]*Error\b|[\w.]*Exception\b).*|.*runtime error: .*)$", log, re.M
        )
        kept = re.findall(r"Test unit written to (\S+)", log)
        finding = " ".join([reasons[0] if reasons else f"exit code {code}", *kept])
    return Outcome(target, inputs, seconds, blocks, finding)


def main() -> None:
    """Build what the targets need, run them and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--targets", nargs="+", choices=[*TARGETS, *PLANTED], default=list(TARGETS))
    parser.add_argument("--inputs", type=int, help="for each target; 500,000 unless given, but 100,000 of `samples`")
    parser.add_argument("--seed", type=int, default=0, help="another each time unless given")
    parser.add_argument("--replay", type=Path, help="run the one target with this input alone")
    arguments = parser.parse_args()
    if sanitizer_runtime() is None:
        sys.exit("error: atheris is not installed, and has no wheel for every platform: pip install -e '.[dev]'")
    if set(arguments.targets) & PLANTED.keys():
        build_planted()
    if set(arguments.targets) & TARGETS.keys():
        build_native()
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(fuzz, target, arguments.inputs or INPUTS.get(target, 500_000), arguments.seed, arguments.replay)
            for target in arguments.targets
        ]
        outcomes = [run.result() for run in runs]
    print("| target | inputs | inputs/s | minutes | blocks and branches | finding |\n|---|---|---|---|---|---|")
    for row in outcomes:
        rate = row.inputs / row.seconds
        print(
            f"| {row.target} | {row.inputs:,} | {rate:,.0f} | {row.seconds / 60:.1f} | {row.blocks:,} "
            f"| {row.finding or 'none'} |"
        )
    sys.exit(any(row.finding for row in outcomes))


if __name__ == "__main__":
    main()

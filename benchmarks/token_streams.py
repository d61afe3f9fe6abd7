"""Is the data path faster than megatron-core's own, from text to token files to micro-batches?

    python benchmarks/token_streams.py [--json FILE] [--only ROW ...] [--scale 0.1] [--work DIR]

Sizes are those of a run over half a trillion tokens as far as two cores and 24 GiB of memory hold them; --scale makes
them smaller, and the names of the rows say what was measured. Needs 30 GB of disk at full scale. Rows and what they
time: benchmarks/token_stream_rows.py. Processes that tokenise import this file anew, so it imports little.
"""

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

ROW_NAMES = ("addressing", "random_reads", "delivery", "writing", "tokenizing", "packing", "largest")
PACKAGES = ("megatron-core", "torch", "numpy", "sentencepiece", "xxhash", "orjson", "trl", "datasets")


def machine() -> str:
    """Processor, cores, memory."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {memory / 2**30:.0f} GiB"


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def line(row: dict[str, Any]) -> str:
    """A row of the table."""

    def figure(key: str) -> str:
        return "-" if row[key] is None else f"{row[key]:.4g}"

    verdict = {True: "holds", False: "MISSED", None: ""}[row["holds"]]
    figures = f"ours {figure('ours')}  peer {figure('peer')} {row['unit']}  ratio {figure('ratio')}"
    notes = [f"peer: {row['peer_name']}", *([row["reason"]] if row["reason"] else [])]
    return f"{row['name']}\n    {figures}  bar {figure('bar')}  {verdict}\n    {'; '.join(notes)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--only", action="append", choices=ROW_NAMES, help="these rows; may be given several times")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply the sizes by this (default 1)")
    parser.add_argument("--repetitions", type=int, default=5, help="turns of each side; medians are shown (default 5)")
    parser.add_argument("--work", type=Path, help="folder for files, which are deleted (default: the system's own)")
    arguments = parser.parse_args()
    if not 0 < arguments.scale <= 1 or arguments.repetitions < 1:
        parser.error("--scale is above 0 and at most 1, --repetitions at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that files are deleted

    # Megatron warns of GPU packages that it can do without; the second line tells processes of their own.
    warnings.filterwarnings("ignore", "Transformer Engine")
    os.environ.setdefault("PYTHONWARNINGS", "ignore:Transformer Engine")

    import torch

    from benchmarks.token_stream_rows import ROWS, Bench

    torch.set_num_threads(1)
    document: dict[str, Any] = {"machine": machine(), "versions": versions(), "scale": arguments.scale, "rows": []}
    with tempfile.TemporaryDirectory(prefix="token_streams_", dir=arguments.work) as folder:
        bench = Bench(Path(folder), arguments.scale, arguments.repetitions)
        for name in arguments.only or ROW_NAMES:
            for row in ROWS[name](bench):
                print(line(row), flush=True)
                document["rows"].append(row)
                if arguments.json:  # after each row: a long run that fails leaves what it has
                    arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

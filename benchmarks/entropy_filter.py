"""Does the entropy filter give the same scores each time, on any number of ranks and in any packs? On whole files.

    python benchmarks/entropy_filter.py --run RUN --records alpaca_en.jsonl.gz alpaca_zh.jsonl.gz [--json FILE]

`tools/score_instructions.py` scores all records in bf16 on one rank and on two: `scores.parquet` must be the same to
the byte. Every tenth record is scored in fp32 in packs of two sizes, on other ranks: no entropy may differ by more than
1e-5 of it. Seconds by the clock stand beside these.
"""

import argparse
import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

if sys.path[0] == str(Path(__file__).parent):  # the project instead of this folder, whose names others may look for
    sys.path[0] = str(Path(__file__).parent.parent)

from benchmarks.results_files import write_json
from mindllm_engine.tuning.score_files import SCORES_FILE, read_table

ROOT = Path(__file__).resolve().parent.parent
ENTROPIES = ("response_entropy", "whole_entropy", "response_alone_entropy")
BAR = 1e-5
# Tokens in a forward: a record or two, and many.
PACKS = (1024, 8192)


def score(run: Path, records: Sequence[Path], out: Path, ranks: int, *options: str) -> float:
    """Score into a folder; seconds by the clock."""
    begin = time.perf_counter()
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--"),
            *(str(ROOT / "tools" / "score_instructions.py"), "--run", str(run), "--out", str(out)),
            *("--records", json.dumps([str(path.resolve()) for path in records]), *options),
        ],
        check=True,
        cwd=ROOT,
    )
    return time.perf_counter() - begin


def every_tenth(path: Path, folder: Path) -> Path:
    """The first line of each ten, as a file."""
    chosen = folder / path.name
    with gzip.open(path, "rb") as lines, gzip.open(chosen, "wb", compresslevel=1) as out:
        out.writelines(line for number, line in enumerate(lines) if number % 10 == 0)
    return chosen


def same_bytes(run: Path, records: Sequence[Path], folder: Path) -> dict[str, Any]:
    """All records, on one rank and on two."""
    seconds, hashes, count = [], [], 0
    for ranks in (1, 2):
        out = folder / f"{ranks}_ranks"
        seconds.append(score(run, records, out, ranks, "--precision", "bf16"))
        hashes.append(hashlib.sha256((out / SCORES_FILE).read_bytes()).hexdigest())
        count = read_table(out / SCORES_FILE).num_rows
    return {
        "name": "all records on one rank and on two, bf16: the same bytes",
        "records": count,
        "sha256": hashes,
        "seconds": [round(each, 1) for each in seconds],
        "holds": hashes[0] == hashes[1],
    }


def same_entropies(run: Path, records: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Every tenth record, in small packs on one rank and in large ones on two."""
    fewer = [every_tenth(path, folder) for path in records]
    tables, seconds = [], []
    for ranks, pack in enumerate(PACKS, start=1):
        out = folder / f"packs_of_{pack}"
        seconds.append(score(run, fewer, out, ranks, "--pack_tokens", str(pack)))
        tables.append(read_table(out / SCORES_FILE))
    apart = {}
    for name in ENTROPIES:
        a, b = (table[name].to_numpy(zero_copy_only=False).astype(np.float64) for table in tables)
        assert (np.isnan(a) == np.isnan(b)).all(), "the same records are scored"
        apart[name] = float(np.nanmax(np.abs(a / b - 1)))
    return {
        "name": f"every tenth record in packs of {PACKS[0]} tokens on one rank and of {PACKS[1]} on two, fp32",
        "records": tables[0].num_rows,
        "largest_relative_difference": apart,
        "seconds": [round(each, 1) for each in seconds],
        "bar": BAR,
        "holds": max(apart.values()) <= BAR,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder of a pre-trained network")
    parser.add_argument("--records", type=Path, nargs="+", required=True, help="files of instruction data, .jsonl.gz")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    arguments = parser.parse_args()
    rows = []
    for part in (same_entropies, same_bytes):
        with tempfile.TemporaryDirectory(prefix="entropy_") as folder:
            rows.append(part(arguments.run.resolve(), arguments.records, Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        write_json(arguments.json, torch.device("cpu"), rows)
    return 0 if all(row["holds"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

"""What does it cost that a source lies in object storage? Warm reads beside a local file's, and the first batch.

A source of random tokens is served over HTTP by a process on this machine, so the figures leave a network out: they
show what the cache itself costs. `require` is what a batch adds to a local one: it looks for its chunks in the folder.

    python benchmarks/remote_streams.py [--json FILE] [--chunks N]
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import mindllm_engine._native as _native
import numpy as np

from mindllm_engine.data.cache_folder import CacheFolder
from mindllm_engine.data.remote import RemoteTokenFile, open_whole
from mindllm_engine.data.token_file_builder import CHUNK_BYTES, TokenFileBuilder
from mindllm_engine.data.token_files import TokenFile

SAMPLE, MICRO_BATCH, BATCHES, REPETITIONS = 2049, 16, 200, 7
SERVER = """
    import sys, time
    from pathlib import Path
    from tests.data.remote_servers import range_server
    with range_server(Path(sys.argv[1])) as server:
        print(server.url, flush=True)
        time.sleep(3600)
"""


def make_source(prefix: Path, chunks: int) -> None:
    """`chunks` chunks of random tokens in documents of 600 tokens."""
    documents = CHUNK_BYTES // 4 // 600
    facts = {"name": "web", "lang": "en", "category": "web", "tokenizer_hash": "5eed", "vocab_size": 125_700}
    with TokenFileBuilder(prefix, "int32", **facts) as builder:
        tokens = np.random.default_rng(0).integers(0, 125_700, documents * 600, np.int32)
        for _ in range(chunks):
            builder.append_many(np.roll(tokens, 1), np.full(documents, 600), 0)


def batch_starts(tokens: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, tokens - SAMPLE, (BATCHES, MICRO_BATCH))


def interleaved(calls: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each call, all in turn, after one turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(REPETITIONS + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if repetition:
                seconds[name].append(time.perf_counter() - begin)
    return {name: median(values) for name, values in seconds.items()}


def row(name: str, unit: str, ours: float, peer: float, peer_name: str, ratio: float) -> dict[str, Any]:
    return {
        "name": name, "unit": unit, "ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ratio, "bar": None,
        "holds": None, "reason": "no bar was set",
    }  # fmt: skip


def warm_rows(local: TokenFile, remote: RemoteTokenFile) -> list[dict[str, Any]]:
    """Samples a second, everything in the cache folder and the page cache."""
    batches = batch_starts(local.tokens, 1)
    counts = np.full(MICRO_BATCH, SAMPLE)
    out = np.empty(MICRO_BATCH * SAMPLE, np.int64)
    local_bytes = _native.LocalBytes(f"{local.prefix}.bin")

    def gather(file: TokenFile | RemoteTokenFile) -> None:
        for starts in batches:
            file.gather(starts, counts, out)

    def read(source: Any) -> None:
        for start in batches.ravel().tolist():
            source.read(4 * start, 4 * SAMPLE)

    def require() -> None:
        for starts in batches:
            remote.require(starts, counts)

    seconds = interleaved(
        {
            "gather": lambda: gather(remote),
            "local gather": lambda: gather(local),
            "read": lambda: read(remote.bytes),
            "local read": lambda: read(local_bytes),
            "require": require,
        }
    )
    samples = batches.size
    rates = {name: samples / value for name, value in seconds.items()}
    local_batch, added = seconds["local read"] / BATCHES, seconds["require"] / BATCHES
    remote_batch = seconds["read"] / BATCHES + added
    return [
        row("random samples of 2049 tokens by pread, warm", "samples/s", rates["read"], rates["local read"],
            "local file by pread", rates["read"] / rates["local read"]),
        row("the same with `require` for each batch of 16", "us a batch", 1e6 * remote_batch, 1e6 * local_batch,
            "local file by pread", local_batch / remote_batch),
        row("RemoteTokenFile.gather (Python) of batches of 16, warm", "samples/s", rates["gather"],
            rates["local gather"], "TokenFile.gather through the map", rates["gather"] / rates["local gather"]),
    ]  # fmt: skip


def first_batch(url: str, folder: Path, starts: np.ndarray) -> tuple[float, int]:
    """Seconds from an empty cache to the first batch, and the bytes of chunks that it fetched."""
    begin = time.perf_counter()
    file = RemoteTokenFile(url, CacheFolder(folder))
    out = np.empty(len(starts) * SAMPLE, np.int64)
    file.gather(starts, np.full(len(starts), SAMPLE), out)
    return time.perf_counter() - begin, file.chunks.statistics.bytes


def cold_rows(url: str, folder: Path, tokens: int) -> list[dict[str, Any]]:
    """Seconds from an empty cache folder to the first batch."""
    scattered = batch_starts(tokens, 2)[0]
    batches = {"one run of its source": np.arange(MICRO_BATCH) * (SAMPLE - 1), "16 places of its source": scattered}
    first_batch(url, folder / "warm-up", scattered[:1])
    whole = []
    for repetition in range(3):
        begin = time.perf_counter()
        open_whole(url, CacheFolder(folder / f"whole {repetition}"))
        whole.append(time.perf_counter() - begin)
        shutil.rmtree(folder / f"whole {repetition}")
    rows = []
    for name, starts in batches.items():
        runs = [first_batch(url, folder / f"{name} {repetition}", starts) for repetition in range(3)]
        seconds, peer = median(seconds for seconds, _ in runs), median(whole)
        title = f"first batch of 16 x 2049 from {name}, {runs[0][1] / 1e6:.0f} MB fetched"
        rows.append(row(title, "s", seconds, peer, "fetching the source whole first", peer / seconds))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--chunks", type=int, default=64, help="the size of the source, in chunks of 8 MiB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        (folder / "store").mkdir()
        make_source(folder / "store" / "web", arguments.chunks)
        local = TokenFile(folder / "store" / "web")
        root = Path(__file__).parent.parent
        code = "\n".join(line[4:] for line in SERVER.splitlines())
        with subprocess.Popen(
            [sys.executable, "-c", code, folder / "store"], stdout=subprocess.PIPE, text=True, cwd=root
        ) as server:
            assert server.stdout is not None
            try:
                url = f"{server.stdout.readline().strip()}/web"
                rows = cold_rows(url, folder / "cold", local.tokens)
                remote = RemoteTokenFile(url, CacheFolder(folder / "cache"))
                remote.chunks.require(range(len(remote.manifest.chunks)))
                rows += warm_rows(local, remote)
            finally:
                server.kill()
    for entry in rows:
        print(
            f"{entry['name']}: {entry['ours']:,.3f} {entry['unit']}; {entry['peer_name']}: {entry['peer']:,.3f} "
            f"(ratio {entry['ratio']:.2f})"
        )
    if arguments.json:
        versions = {name: version(name) for name in ("numpy", "fsspec", "aiohttp")}
        versions["python"] = platform.python_version()
        machine = f"{os.cpu_count()} cores, {platform.machine()}"
        record = {"machine": machine, "versions": versions, "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Remote sources over fsspec's memory filesystem and a real HTTP server: what arrives, and what goes wrong."""

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import mindllm_engine._native as _native
import numpy as np
import pytest

from mindllm_engine.data import range_reads, token_file_builder
from mindllm_engine.data.cache_folder import CacheFolder
from mindllm_engine.data.remote import RemoteTokenFile, open_source, open_whole
from mindllm_engine.data.token_files import TokenFile
from mindllm_engine.errors import DataError
from tests.data.remote_servers import Fault, RangeServer, range_server
from tests.data.token_file_cases import build

pytest.importorskip("aiohttp", reason="needs the extra [remote]")

CHUNK = 4096
TOKENS = 20_000
CHUNKS = -(-4 * TOKENS // CHUNK)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_reads, "FIRST_DELAY_SECONDS", 0.001)


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The tokens of the source `<tmp_path>/store/web`, of 20 chunks."""
    monkeypatch.setattr(token_file_builder, "CHUNK_BYTES", CHUNK)
    (tmp_path / "store").mkdir()
    return make_source(tmp_path / "store" / "web", seed=0)


@pytest.fixture
def server(tmp_path: Path, stream: np.ndarray) -> Iterator[RangeServer]:
    with range_server(tmp_path / "store") as server:
        yield server


def make_source(prefix: Path, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    stream = generator.integers(0, 1000, TOKENS)
    borders = np.sort(generator.integers(0, TOKENS, 40))
    build(prefix, np.split(stream, borders))
    return stream


def assert_gathers(file: RemoteTokenFile, stream: np.ndarray, seed: int = 0, ranges: int = 30) -> None:
    generator = np.random.default_rng(seed)
    starts = generator.integers(0, TOKENS, ranges)
    counts = np.minimum(generator.integers(0, 3000, ranges), TOKENS - starts)
    out = np.empty(counts.sum(), np.int64)
    file.gather(starts, counts, out)
    expected = [stream[start : start + count] for start, count in zip(starts, counts, strict=True)]
    np.testing.assert_array_equal(out, np.concatenate(expected))


def read_all(file: RemoteTokenFile) -> np.ndarray:
    out = np.empty(file.tokens, np.int64)
    file.gather(np.array([0]), np.array([file.tokens]), out)
    return out


def chunk_files(cache: Path) -> list[Path]:
    return [path for path in cache.glob("*/*") if path.name.isdigit()]


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*") if path.name.endswith(".tmp") or ".open-" in path.name]


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What arrives


def test_memory_filesystem_cold_and_warm(tmp_path: Path, stream: np.ndarray) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "store"), "/corpus", recursive=True)
    try:
        cache = CacheFolder(tmp_path / "cache")
        cold = RemoteTokenFile("memory://corpus/web", cache)
        np.testing.assert_array_equal(read_all(cold), stream)
        assert (cold.chunks.statistics.hits, cold.chunks.statistics.fetches) == (0, CHUNKS)
        assert cold.chunks.statistics.bytes == 4 * TOKENS
        warm = RemoteTokenFile("memory://corpus/web", cache)
        assert_gathers(warm, stream)
        assert warm.chunks.statistics.fetches == 0
        assert 0 < warm.chunks.statistics.hits <= CHUNKS
    finally:
        memory.rm("/corpus", recursive=True)
    assert not leftovers(tmp_path / "cache")


def test_what_a_remote_source_says_of_itself_is_what_the_local_one_says(tmp_path: Path, server: RangeServer) -> None:
    local = TokenFile(tmp_path / "store" / "web")
    remote = open_source(f"{server.url}/web", CacheFolder(tmp_path / "cache"))
    assert isinstance(remote, RemoteTokenFile)
    assert (remote.documents, remote.tokens, remote.dtype) == (local.documents, local.tokens, local.dtype)
    assert remote.manifest == local.manifest
    np.testing.assert_array_equal(remote.lengths, local.lengths)
    assert (remote.bytes.bytes, remote.prefix) == (4 * TOKENS, f"{server.url}/web")
    remote.check("5eed", 1000)
    with pytest.raises(DataError, match="made with tokenizer 5eed, not other"):
        remote.check("other")
    assert isinstance(open_source(tmp_path / "store" / "web", None), TokenFile)


def test_only_the_chunks_that_are_needed_are_fetched(tmp_path: Path, server: RangeServer, stream: np.ndarray) -> None:
    file = RemoteTokenFile(f"{server.url}/web", CacheFolder(tmp_path / "cache"))
    assert not server.ranges(".bin")
    out = np.empty(1026, np.int32)
    file.gather(np.array([3 * 1024 - 1, 7]), np.array([1026, 0]), out)
    np.testing.assert_array_equal(out, stream[3 * 1024 - 1 :][:1026])
    assert sorted(server.ranges(".bin")) == [(2 * CHUNK, 3 * CHUNK), (3 * CHUNK, 4 * CHUNK), (4 * CHUNK, 5 * CHUNK)]
    data = (tmp_path / "store" / "web.bin").read_bytes()
    for path in chunk_files(tmp_path / "cache"):
        assert path.read_bytes() == data[int(path.name) * CHUNK :][:CHUNK]
    file.gather(np.array([3 * 1024]), np.array([10]), np.empty(10, np.int64))
    assert len(server.ranges(".bin")) == 3


def test_random_ranges(tmp_path: Path, server: RangeServer, stream: np.ndarray) -> None:
    file = RemoteTokenFile(f"{server.url}/web", CacheFolder(tmp_path / "cache"))
    for seed in range(20):
        assert_gathers(file, stream, seed)
    assert file.chunks.statistics.fetches == len(server.ranges(".bin")) <= CHUNKS


def test_an_empty_source(tmp_path: Path, server: RangeServer) -> None:
    build(tmp_path / "store" / "none", [])
    cache = CacheFolder(tmp_path / "cache")
    file = RemoteTokenFile(f"{server.url}/none", cache)
    assert (file.documents, file.tokens, len(read_all(file))) == (0, 0, 0)
    assert open_whole(f"{server.url}/none", cache).tokens == 0


def test_ranges_outside(tmp_path: Path, server: RangeServer) -> None:
    file = RemoteTokenFile(f"{server.url}/web", CacheFolder(tmp_path / "cache"))
    for start, count in [(-1, 2), (TOKENS, 1), (0, TOKENS + 1), (5, -1)]:
        with pytest.raises(IndexError, match="outside its 20000 tokens"):
            file.require(np.array([start]), np.array([count]))
    with pytest.raises(IndexError, match="do not make"):
        file.gather(np.array([0]), np.array([5]), np.empty(6, np.int64))
    for chunk in (-1, CHUNKS):
        with pytest.raises(IndexError, match="no such chunk"):
            file.chunks.require([chunk])


def test_a_whole_source_becomes_a_local_one(tmp_path: Path, server: RangeServer) -> None:
    cache = CacheFolder(tmp_path / "cache")
    file = open_whole(f"{server.url}/web", cache)
    assert isinstance(file, TokenFile)
    for suffix in (".bin", ".idx", ".json"):
        assert Path(f"{file.prefix}{suffix}").read_bytes() == (tmp_path / "store" / f"web{suffix}").read_bytes()
    fetched = len(server.ranges(".bin"))
    open_whole(f"{server.url}/web", cache)
    assert len(server.ranges(".bin")) == fetched == CHUNKS
    assert not leftovers(tmp_path / "cache")


# The cache


RACER = """
    import sys, numpy as np
    from mindllm_engine.data.cache_folder import CacheFolder
    from mindllm_engine.data.remote import RemoteTokenFile
    limit = int(sys.argv[3]) or None
    file = RemoteTokenFile(sys.argv[1], CacheFolder(sys.argv[2], limit))
    generator = np.random.default_rng(int(sys.argv[4]))
    for round in range(20):
        starts = generator.integers(0, file.tokens - 2000, 3)
        out = np.empty(6000, np.int64)
        file.gather(starts, np.full(3, 2000), out)
        print(*starts, out.tobytes().hex())
"""


@pytest.mark.parametrize("limit", [0, 14 * CHUNK], ids=["no limit", "evicting"])
def test_two_processes_race_on_one_cache(tmp_path: Path, server: RangeServer, stream: np.ndarray, limit: int) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RACER), f"{server.url}/web", tmp_path / "cache", str(limit), seed],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in "12"
    ]
    for racer in racers:
        output, _ = racer.communicate(timeout=100)
        assert racer.returncode == 0
        lines = output.splitlines()
        assert len(lines) == 20
        for line in lines:
            *starts, content = line.split()
            expected = np.concatenate([stream[int(start) :][:2000] for start in starts])
            np.testing.assert_array_equal(np.frombuffer(bytes.fromhex(content), np.int64), expected)
    assert len(server.ranges(".idx")) == 2  # its header and its content, once
    assert not leftovers(tmp_path / "cache")
    if limit:
        assert len(server.ranges(".bin")) > CHUNKS


def test_the_limit_holds_while_reading(tmp_path: Path, server: RangeServer, stream: np.ndarray) -> None:
    limit = 5 * CHUNK
    file = RemoteTokenFile(f"{server.url}/web", CacheFolder(tmp_path / "cache", limit))
    generator = random.Random(0)
    for _ in range(40):
        start = generator.randrange(TOKENS - 2000)
        out = np.empty(2000, np.int64)
        file.gather(np.array([start]), np.array([2000]), out)
        np.testing.assert_array_equal(out, stream[start : start + 2000])
        assert sum(path.stat().st_size for path in chunk_files(tmp_path / "cache")) <= limit
    assert file.chunks.statistics.fetches > CHUNKS


def test_threads_under_a_tight_limit(tmp_path: Path, server: RangeServer, stream: np.ndarray) -> None:
    file = RemoteTokenFile(f"{server.url}/web", CacheFolder(tmp_path / "cache", 10 * CHUNK))
    right: list[int] = []

    def read(seed: int) -> None:
        for number in range(20):
            start = random.Random(seed + number).randrange(TOKENS - 2000)
            out = np.empty(2000, np.int64)
            file.gather(np.array([start]), np.array([2000]), out)
            right.append(np.array_equal(out, stream[start : start + 2000]))

    threads = [threading.Thread(target=read, args=(100 * seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 60


def test_what_was_used_longest_ago_goes_first(tmp_path: Path, server: RangeServer) -> None:
    file = RemoteTokenFile(f"{server.url}/web", CacheFolder(tmp_path / "cache", 6 * CHUNK))
    for age, chunk in enumerate([4, 0, 3, 1, 2]):
        file.chunks.require([chunk])
        os.utime(file.chunks.folder / str(chunk), (1000 + age, 1000 + age))
    file.chunks.require([4])  # used again
    file.chunks.require([10, 11])
    assert {path.name for path in chunk_files(tmp_path / "cache")} == {"1", "2", "4", "10", "11"}  # not 0 and 3


def test_sources_share_the_limit(tmp_path: Path, server: RangeServer) -> None:
    other = make_source(tmp_path / "store" / "book", seed=1)
    cache = CacheFolder(tmp_path / "cache", 8 * CHUNK)
    web, book = (RemoteTokenFile(f"{server.url}/{name}", cache) for name in ("web", "book"))
    assert web.chunks.folder != book.chunks.folder
    for chunk in range(CHUNKS):
        web.chunks.require([chunk])
        book.chunks.require([chunk])
        assert len(chunk_files(tmp_path / "cache")) <= 8
    out = np.empty(100, np.int64)
    book.gather(np.array([0]), np.array([100]), out)
    np.testing.assert_array_equal(out, other[:100])


def test_a_limit_too_small_for_one_read(tmp_path: Path, server: RangeServer) -> None:
    file = RemoteTokenFile(f"{server.url}/web", CacheFolder(tmp_path / "cache", 3 * CHUNK))
    message = refusal(lambda: file.chunks.require(range(4)))
    assert "cache_bytes of 12288 cannot hold the 16384 bytes" in message
    assert message.endswith("raise it")


def test_a_chunk_that_vanishes_or_is_cut_short_is_fetched_again(tmp_path: Path, server: RangeServer) -> None:
    file = RemoteTokenFile(f"{server.url}/web", CacheFolder(tmp_path / "cache"))
    data = (tmp_path / "store" / "web.bin").read_bytes()
    file.chunks.require([2, 3])
    (file.chunks.folder / "2").unlink()
    os.truncate(file.chunks.folder / "3", 100)
    for chunk in (2, 3):
        with pytest.raises(_native.MissingChunkError) as caught:
            file.bytes.read(chunk * CHUNK, 10)
        assert (caught.value.folder, caught.value.chunk) == (str(file.chunks.folder), chunk)
        file.chunks.require([caught.value.chunk])
        assert file.bytes.read(chunk * CHUNK, CHUNK) == data[chunk * CHUNK :][:CHUNK]


def test_what_killed_processes_left_is_cleared(tmp_path: Path, server: RangeServer) -> None:
    file = RemoteTokenFile(f"{server.url}/web", CacheFolder(tmp_path / "cache", 2 * CHUNK))
    old, new = (file.chunks.folder / f".7.{pid}.1.tmp" for pid in (1, 2))
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    os.utime(old, (1000, 1000))
    file.chunks.require([0])
    assert (old.exists(), new.exists()) == (False, True)


def test_files_of_others_in_the_cache_folder_are_left_alone(tmp_path: Path, server: RangeServer) -> None:
    others = [tmp_path / "cache" / name for name in ("1", "data/7", "data/.7.1.1.tmp", f"{'a' * 15}g/3")]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(3 * CHUNK))
        os.utime(path, (1000, 1000))
    file = RemoteTokenFile(f"{server.url}/web", CacheFolder(tmp_path / "cache", 2 * CHUNK))
    for chunk in range(6):
        file.chunks.require([chunk])
    assert all(path.exists() for path in others)
    assert len(list(file.chunks.folder.glob("[0-9]*"))) <= 2


# What goes wrong


def chunk_3(fault: Fault, times: int) -> Callable[[str, int], Fault]:
    """The fault for the first `times` requests of the data; the tests ask for chunk 3 only."""
    return lambda name, earlier: fault if name == "web.bin" and earlier < times else None


@pytest.mark.parametrize(
    ("fault", "times"), [(503, 2), (500, 7), (429, 3), (408, 1), ("cut", 3), ("short", 2), ("flip", 1)]
)
def test_trouble_that_passes(tmp_path: Path, server: RangeServer, fault: Fault, times: int) -> None:
    file = RemoteTokenFile(f"{server.url}/web", CacheFolder(tmp_path / "cache"))
    server.fault = chunk_3(fault, times)
    file.chunks.require([3])
    assert file.bytes.read(3 * CHUNK, CHUNK) == (tmp_path / "store" / "web.bin").read_bytes()[3 * CHUNK :][:CHUNK]
    assert len(server.ranges(".bin")) == times + 1
    assert file.chunks.statistics.fetches == 1


@pytest.mark.parametrize(
    ("fault", "requests", "message"),
    [
        (503, 8, r"HTTP status 503 \(8 attempts in \d+ s\); check the network and the server, then start again"),
        ("cut", 8, r"\(8 attempts in \d+ s\); check the network"),
        ("short", 8, r"the answer was cut short, 2048 of 4096 bytes \(8 attempts"),
        ("flip", 2, r"damaged: chunk 3 .* has not the checksum .*, twice; upload the file again"),
        (403, 1, r"no permission \(HTTP status 403\); give credentials that may read it"),
        (401, 1, r"no permission \(HTTP status 401\)"),
        (404, 1, r"missing; check the URL"),
        (400, 1, r"HTTP status 400; check the URL and the server"),
        (416, 1, r"the file ends before them; .* upload all three files again"),
        ("whole", 1, r"the server sent 80000 bytes, not these 4096; it must serve ranges"),
    ],
)
def test_trouble_that_stays(tmp_path: Path, server: RangeServer, fault: Fault, requests: int, message: str) -> None:
    file = RemoteTokenFile(f"{server.url}/web", CacheFolder(tmp_path / "cache"))
    server.fault = chunk_3(fault, 1000)
    with pytest.raises(DataError, match=message) as caught:
        file.chunks.require([3])
    assert "\n" not in str(caught.value)
    assert f"{server.url}/web.bin: " in str(caught.value)
    assert "chunk 3 (bytes 12288 to 16383)" in str(caught.value)
    assert len(server.ranges(".bin")) == requests
    assert not chunk_files(tmp_path / "cache")
    assert not leftovers(tmp_path / "cache")
    server.fault = lambda name, earlier: None  # nothing is the worse for it
    file.chunks.require([3])


@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        ("web.json", 404, r"web\.json: the manifest \(bytes 0 to 0\): missing; check the URL"),
        ("web.json", 503, r"web\.json: the manifest .*HTTP status 503 \(8 attempts"),
        ("web.json", "whole", r"web\.json: .*it must serve ranges"),
        ("web.idx", 403, r"web\.idx: the index's header .*no permission"),
        ("web.idx", "flip", r"web\.idx: .*upload"),
        ("web.idx", "short", r"web\.idx: .*cut short"),
    ],
)
def test_a_manifest_or_an_index_out_of_reach(
    tmp_path: Path, server: RangeServer, name: str, fault: Fault, message: str
) -> None:
    server.fault = lambda requested, earlier: fault if requested == name else None
    with pytest.raises(DataError, match=message):
        RemoteTokenFile(f"{server.url}/web", CacheFolder(tmp_path / "cache"))
    assert not leftovers(tmp_path / "cache")


def test_an_index_damaged_on_its_way(tmp_path: Path, server: RangeServer, stream: np.ndarray) -> None:
    server.fault = lambda name, earlier: "flip" if name == "web.idx" and earlier == 1 else None
    file = RemoteTokenFile(f"{server.url}/web", CacheFolder(tmp_path / "cache"))
    assert len(server.ranges(".idx")) == 3
    assert_gathers(file, stream)


def test_files_of_different_sources(tmp_path: Path, server: RangeServer) -> None:
    build(tmp_path / "store" / "other", [np.arange(5)])
    (tmp_path / "store" / "other.idx").replace(tmp_path / "store" / "web.idx")
    message = refusal(lambda: RemoteTokenFile(f"{server.url}/web", CacheFolder(tmp_path / "cache")))
    assert "web.idx: it is not the index of the 41 documents of its manifest" in message


def test_a_malformed_manifest_is_named_by_its_url(tmp_path: Path, server: RangeServer) -> None:
    (tmp_path / "store" / "web.json").write_bytes(b"{}")
    message = refusal(lambda: RemoteTokenFile(f"{server.url}/web", CacheFolder(tmp_path / "cache")))
    assert message.startswith(f"{server.url}/web.json: malformed manifest: no ")


def test_a_damaged_index_in_the_cache(tmp_path: Path, server: RangeServer) -> None:
    cache = CacheFolder(tmp_path / "cache")
    index = RemoteTokenFile(f"{server.url}/web", cache).chunks.folder / "source.idx"
    os.truncate(index, 100)
    message = refusal(lambda: RemoteTokenFile(f"{server.url}/web", cache))
    assert message.startswith(f"{index}: the cached index is damaged: ")
    assert message.endswith("delete it and start again")
    index.unlink()
    assert RemoteTokenFile(f"{server.url}/web", cache).documents == 41


def test_a_source_replaced_while_it_is_read(tmp_path: Path, server: RangeServer, stream: np.ndarray) -> None:
    cache = CacheFolder(tmp_path / "cache")
    file = RemoteTokenFile(f"{server.url}/web", cache)
    file.chunks.require([0])
    replaced = make_source(tmp_path / "store" / "web", seed=5)
    message = refusal(lambda: file.chunks.require([3]))
    assert "chunk 3 (bytes 12288 to 16383) has changed since the manifest was read: the source was replaced" in message
    new = RemoteTokenFile(f"{server.url}/web", cache)
    np.testing.assert_array_equal(read_all(new), replaced)
    assert file.bytes.read(0, 4000) == stream.astype(np.int32).tobytes()[:4000]  # what it had is still its own


def test_no_server(tmp_path: Path, server: RangeServer) -> None:
    url = server.url
    server.server_close()
    message = refusal(lambda: RemoteTokenFile(f"{url}/web", CacheFolder(tmp_path / "cache")))
    assert message.startswith(f"{url}/web.json: the manifest (bytes 0 to 0): ")
    assert "8 attempts" in message


def test_a_server_that_stalls(tmp_path: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(range_reads, "ATTEMPT_SECONDS", 1.0)
    monkeypatch.setattr(range_reads, "ATTEMPTS", 2)
    file = RemoteTokenFile(f"{server.url}/web", CacheFolder(tmp_path / "cache"))
    server.fault = chunk_3("stall", 1)
    file.chunks.require([3])
    server.fault = chunk_3("stall", 1000)
    assert "no complete answer within 1 s (2 attempts" in refusal(lambda: file.chunks.require([4]))


@pytest.mark.parametrize(
    ("url", "message"), [("nosuch://bucket/web", "check the URL"), ("gs://bucket/web", r"pip install 'mindllm-engine")]
)
def test_protocols_that_are_not_there(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        RemoteTokenFile(url, CacheFolder(tmp_path / "cache"))


def test_a_remote_source_without_a_cache() -> None:
    for opened in (open_source, open_whole):
        assert "needs a folder to keep what is fetched" in refusal(
            lambda opened=opened: opened("s3://bucket/web", None)
        )


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal(lambda: CacheFolder(tmp_path / "file" / "cache"))
    assert "file/cache/probe: cannot be written: Not a directory; check its folder and its permissions" in message
    assert "cannot be written" in refusal(lambda: CacheFolder("/proc/cache"))


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes; Python ignores the signal, so writes fail with EFBIG."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk(tmp_path: Path, server: RangeServer) -> None:
    cache = CacheFolder(tmp_path / "cache")
    file = RemoteTokenFile(f"{server.url}/web", cache)
    with largest_file(CHUNK // 2):
        message = refusal(lambda: file.chunks.require([3]))
        assert f"{file.chunks.folder}/3: cannot be written: File too large; free some space" in message
        message = refusal(lambda: open_whole(f"{server.url}/web", cache))
        assert "source.bin: cannot be written: File too large; free some space" in message
        (file.chunks.folder / "source.idx").unlink()
    with largest_file(100):
        message = refusal(lambda: RemoteTokenFile(f"{server.url}/web", cache))
        assert "source.idx: cannot be written: File too large; free some space" in message
    assert not leftovers(tmp_path / "cache")
    assert len(read_all(RemoteTokenFile(f"{server.url}/web", cache))) == TOKENS


# A background job of a shell begins with SIGINT ignored, and so does what it starts; the scripts below heed it first.
INTERRUPTED = """
    import signal, sys
    from mindllm_engine.command_line import run_tool
    from mindllm_engine.data.cache_folder import CacheFolder
    from mindllm_engine.data.remote import RemoteTokenFile
    signal.signal(signal.SIGINT, signal.default_int_handler)
    def main():
        file = RemoteTokenFile(sys.argv[1], CacheFolder(sys.argv[2]))
        print("open", flush=True)
        file.chunks.require(range(20))
    run_tool(main)
"""


def test_control_c_ends_it_at_once(tmp_path: Path, server: RangeServer, stream: np.ndarray) -> None:
    server.fault = lambda name, earlier: "stall" if name == "web.bin" and earlier >= 2 else None
    command = [sys.executable, "-c", textwrap.dedent(INTERRUPTED), f"{server.url}/web", str(tmp_path / "cache")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        deadline = time.monotonic() + 30
        while len(chunk_files(tmp_path / "cache")) < 2 or len(server.ranges(".bin")) < 8:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert time.monotonic() - begin < 5
    assert process.returncode == 130
    assert "Traceback" not in errors
    server.fault = lambda name, earlier: None
    file = RemoteTokenFile(f"{server.url}/web", CacheFolder(tmp_path / "cache"))
    np.testing.assert_array_equal(read_all(file), stream)
    assert file.chunks.statistics.hits == 2  # what had been fetched is kept


UNHEARD = """
    import signal, threading
    from mindllm_engine.command_line import run_tool
    from mindllm_engine.data.range_reads import in_parallel

    signal.signal(signal.SIGINT, signal.default_int_handler)

    def work(item, stop):
        print("waiting", flush=True)
        threading.Event().wait(2)  # until the main thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # does not wake the main thread
        threading.Event().wait()

    run_tool(lambda: in_parallel(work, [0]))
"""


def test_control_c_that_another_thread_receives() -> None:
    command = [sys.executable, "-c", textwrap.dedent(UNHEARD)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_a_tool_ends_with_one_line(tmp_path: Path, server: RangeServer) -> None:
    server.fault = lambda name, earlier: 403
    command = [sys.executable, "-c", textwrap.dedent(INTERRUPTED), f"{server.url}/web", str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {server.url}/web.json: the manifest (bytes 0 to 0): no permission (HTTP status 403); give credentials "
        f"that may read it"
    ]

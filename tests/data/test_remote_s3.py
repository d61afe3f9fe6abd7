"""Remote sources over S3's own protocol: s3fs against moto's server on localhost, in a process of its own.

Skipped where s3fs or moto is not installed (both are in the extra `[dev]`).
"""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mindllm_engine.data import range_reads, token_file_builder
from mindllm_engine.data.cache_folder import CacheFolder
from mindllm_engine.data.remote import RemoteTokenFile, open_whole
from mindllm_engine.errors import DataError
from tests.data.token_file_cases import build

s3fs = pytest.importorskip("s3fs", reason="needs the extra [remote]")
pytest.importorskip("moto", reason="needs the extra [dev]")

SERVER = """
    import time
    from moto.server import ThreadedMotoServer
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    print("http://%s:%s" % server.get_host_and_port(), flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    code = "\n".join(line[4:] for line in SERVER.splitlines())
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture
def stream(tmp_path: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The tokens of `s3://bucket/corpus/web`, in chunks of 4096 bytes."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(range_reads, "FIRST_DELAY_SECONDS", 0.001)
    monkeypatch.setattr(token_file_builder, "CHUNK_BYTES", 4096)
    s3fs.S3FileSystem.clear_instance_cache()
    stream = np.random.default_rng(0).integers(0, 1000, 20_000)
    build(tmp_path / "web", np.array_split(stream, 30))
    request = urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")
    urllib.request.urlopen(request).close()
    system = s3fs.S3FileSystem()
    system.mkdir("bucket")
    for suffix in (".bin", ".idx", ".json"):
        system.put_file(str(tmp_path / f"web{suffix}"), f"bucket/corpus/web{suffix}")
    return stream


def test_a_source_in_a_bucket(tmp_path: Path, stream: np.ndarray) -> None:
    cache = CacheFolder(tmp_path / "cache", 6 * 4096)
    file = RemoteTokenFile("s3://bucket/corpus/web", cache)
    generator = np.random.default_rng(1)
    for start in generator.integers(0, len(stream) - 3000, 20).tolist():
        out = np.empty(3000, np.int64)
        file.gather(np.array([start]), np.array([3000]), out)
        np.testing.assert_array_equal(out, stream[start : start + 3000])
    whole = open_whole("s3://bucket/corpus/web", cache)
    np.testing.assert_array_equal(whole.read(0, whole.tokens), stream)


def test_an_object_replaced_while_it_is_read(tmp_path: Path, stream: np.ndarray) -> None:
    file = RemoteTokenFile("s3://bucket/corpus/web", CacheFolder(tmp_path / "cache"))
    build(tmp_path / "web", [stream[::-1]])
    for suffix in (".bin", ".idx", ".json"):
        s3fs.S3FileSystem().put_file(str(tmp_path / f"web{suffix}"), f"bucket/corpus/web{suffix}")
    with pytest.raises(DataError, match=r"s3://bucket/corpus/web\.bin: chunk 3 .* the source was replaced"):
        file.chunks.require([3])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/corpus/none", r"s3://bucket/corpus/none\.json: the manifest .*: missing; check the URL"),
        ("s3://no-such-bucket/web", r"s3://no-such-bucket/web\.json: the manifest .*: missing; check the URL"),
    ],
)
def test_what_is_not_there(tmp_path: Path, stream: np.ndarray, url: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        RemoteTokenFile(url, CacheFolder(tmp_path / "cache"))


def test_an_object_shorter_than_its_manifest_says(tmp_path: Path, stream: np.ndarray) -> None:
    file = RemoteTokenFile("s3://bucket/corpus/web", CacheFolder(tmp_path / "cache"))
    s3fs.S3FileSystem().pipe_file("bucket/corpus/web.bin", bytes(5000))
    with pytest.raises(DataError, match=r"web\.bin: chunk 3 .*: the file ends before them; .* upload all three"):
        file.chunks.require([3])


def allow_requests(endpoint: str, count: bytes) -> None:
    """How many more requests the server answers without a look at their keys, of which it knows none."""
    text = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{endpoint}/moto-api/reset-auth", data=count, headers=text, method="POST")
    urllib.request.urlopen(request).close()


def test_keys_that_are_wrong_or_absent(
    tmp_path: Path, stream: np.ndarray, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = CacheFolder(tmp_path / "cache")
    allow_requests(endpoint, b"0")
    try:
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(DataError, match=r"web\.json: .*: no permission \(.+\); give credentials that may read it"):
            RemoteTokenFile("s3://bucket/corpus/web", cache)
    finally:
        allow_requests(endpoint, b"inf")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    begin = time.monotonic()
    with pytest.raises(DataError, match=r"web\.json: .*: no credentials; set AWS_ACCESS_KEY_ID"):
        RemoteTokenFile("s3://bucket/corpus/web", cache)
    assert time.monotonic() - begin < 10

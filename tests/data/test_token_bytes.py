"""Reading a .bin's bytes by pread: from a file, or from a folder of its chunks, of which some are absent or vanish."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import mindllm_engine._native as _native
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def write_chunks(folder: Path, data: bytes, chunk_bytes: int) -> None:
    folder.mkdir(exist_ok=True)
    for number, start in enumerate(range(0, len(data), chunk_bytes)):
        (folder / str(number)).write_bytes(data[start : start + chunk_bytes])


def test_a_file(tmp_path: Path) -> None:
    data = random.Random(0).randbytes(1000)
    (tmp_path / "a.bin").write_bytes(data)
    source = _native.LocalBytes(tmp_path / "a.bin")
    assert (source.bytes, source.path) == (1000, tmp_path / "a.bin")
    assert source.read(0, 1000) == data
    assert source.read(17, 5) == data[17:22]
    assert source.read(1000, 0) == b""


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60), chunk_bytes=st.integers(1, 70), draw=st.data())
def test_a_folder_of_chunks_reads_as_the_whole(
    tmp_path: Path, data: bytes, chunk_bytes: int, draw: st.DataObject
) -> None:
    write_chunks(tmp_path / str(len(os.listdir(tmp_path))), data, chunk_bytes)
    folder = tmp_path / str(len(os.listdir(tmp_path)) - 1)
    source = _native.ChunkFolderBytes(folder, chunk_bytes, len(data))
    assert (source.bytes, source.path) == (len(data), folder)
    for _ in range(5):
        start = draw.draw(st.integers(0, len(data)))
        count = draw.draw(st.integers(0, len(data) - start))
        assert source.read(start, count) == data[start : start + count]


@pytest.mark.parametrize(
    ("start", "count"), [(-1, 1), (0, 11), (11, 0), (5, 6), (0, -1), (2**62, 2**62), (3, 2**63 - 1), (-(2**63), 1)]
)
def test_ranges_outside(tmp_path: Path, start: int, count: int) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(10))
    write_chunks(tmp_path / "chunks", bytes(10), 4)
    for source in (_native.LocalBytes(tmp_path / "a.bin"), _native.ChunkFolderBytes(tmp_path / "chunks", 4, 10)):
        with pytest.raises(IndexError, match="no"):
            source.read(start, count)


def test_a_file_cut_short_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(100))
    source = _native.LocalBytes(path)
    os.truncate(path, 40)
    with pytest.raises(ValueError, match=r"a\.bin: cut short while it was read: it ends at byte 40, 60 bytes before"):
        source.read(30, 20)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        _native.LocalBytes(tmp_path / "none")
    assert caught.value.filename == str(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="not a regular file"):
            _native.LocalBytes(path)
    for chunk_bytes, total in [(0, 10), (-4, 10), (4, -1)]:
        with pytest.raises(ValueError, match="in chunks of"):
            _native.ChunkFolderBytes(tmp_path, chunk_bytes, total)


def test_a_chunk_that_is_absent_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "chunks"
    write_chunks(folder, b"0123456789", 4)
    source = _native.ChunkFolderBytes(folder, 4, 10)
    (folder / "1").unlink()
    with pytest.raises(_native.MissingChunkError, match="chunk 1 is not there") as caught:
        source.read(2, 5)
    assert (caught.value.folder, caught.value.chunk) == (str(folder), 1)
    (folder / "1").write_bytes(b"4567")
    assert source.read(2, 5) == b"23456"
    with pytest.raises(_native.MissingChunkError, match="chunk 0"):
        _native.ChunkFolderBytes(tmp_path / "none", 4, 10).read(0, 1)


@pytest.mark.parametrize("content", [b"", b"456", b"45678"])
def test_a_chunk_of_the_wrong_size_is_absent(tmp_path: Path, content: bytes) -> None:
    write_chunks(tmp_path / "chunks", b"0123456789", 4)
    (tmp_path / "chunks" / "1").write_bytes(content)
    with pytest.raises(_native.MissingChunkError, match="chunk 1"):
        _native.ChunkFolderBytes(tmp_path / "chunks", 4, 10).read(4, 1)


def test_a_deleted_chunk_stays_readable_while_it_is_open(tmp_path: Path) -> None:
    write_chunks(tmp_path / "chunks", b"0123456789", 4)
    source = _native.ChunkFolderBytes(tmp_path / "chunks", 4, 10)
    assert source.read(0, 4) == b"0123"
    (tmp_path / "chunks" / "0").unlink()
    assert source.read(1, 2) == b"12"


def test_threads_share_a_folder_with_more_chunks_than_are_kept_open(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(100 * 64)
    write_chunks(tmp_path / "chunks", data, 64)
    source = _native.ChunkFolderBytes(tmp_path / "chunks", 64, len(data))
    wrong: list[int] = []

    def read(seed: int) -> None:
        generator = random.Random(seed)
        for _ in range(3000):
            start = generator.randrange(len(data))
            if source.read(start, min(70, len(data) - start)) != data[start : start + 70]:
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    opened = {os.path.realpath(entry.path) for entry in os.scandir("/proc/self/fd")}
    # The process may hold other files; of the 100 chunks, the 16 used last stay open.
    assert 1 <= len([name for name in opened if name.startswith(str(tmp_path / "chunks"))]) <= 16


def test_a_lost_page_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(1 << 20))
    source = _native.LocalBytes(path)
    os.truncate(path, 1 << 16)
    for offset in range(0, 1 << 20, 1 << 14):
        with pytest.raises(ValueError, match=r"a\.bin: cut short while it was read: it ends at byte 65536"):
            source.read(offset, 5000)
    path.write_bytes(b"x" * (1 << 20))
    assert source.read(1 << 19, 3) == b"xxx", "it can be read again once it is whole"


OTHER_FAULT = """
import faulthandler, mmap, os, sys
import mindllm_engine._native as _native
if sys.argv[2] == "before":
    faulthandler.enable()
source = _native.LocalBytes(sys.argv[1])
if sys.argv[2] == "after":
    faulthandler.enable()
    source = _native.LocalBytes(sys.argv[1])
with open(sys.argv[1], "rb") as file:
    view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
os.truncate(sys.argv[1], 4096)
try:
    source.read(1 << 19, 10)
except ValueError:
    print("an error", flush=True)
view[1 << 19]
"""


@pytest.mark.parametrize("faulthandler", ["never", "before", "after"])
def test_bus_errors_of_others_still_end_a_process(tmp_path: Path, faulthandler: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(1 << 20))
    command = [sys.executable, "-c", OTHER_FAULT, str(path), faulthandler]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "an error\n"
    assert done.returncode == -signal.SIGBUS
    assert ("Fatal Python error: Bus error" in done.stderr) == (faulthandler != "never")


HANDLER_IN_FRONT = """
#include <signal.h>
#include <stddef.h>
static struct sigaction next;
static void handle(int number, siginfo_t* info, void* context) { next.sa_sigaction(number, info, context); }
void stand_in_front(void) {
    struct sigaction ours = {0};
    ours.sa_sigaction = handle;
    ours.sa_flags = SA_SIGINFO;
    sigfillset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, &next);
}
"""

READ_BEHIND_IT = """
import ctypes, os, sys
import mindllm_engine._native as _native
source = _native.LocalBytes(sys.argv[1])
ctypes.CDLL(sys.argv[2]).stand_in_front()
os.truncate(sys.argv[1], 4096)
for _ in range(3):
    try:
        source.read(1 << 19, 10)
    except ValueError:
        print("an error", flush=True)
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_handler_that_blocks_the_signal_and_hands_it_on(tmp_path: Path) -> None:
    """As sanitizers do: the jump out of it leaves the signal blocked, and the next fault must not end the process."""
    (tmp_path / "front.c").write_text(HANDLER_IN_FRONT)
    library = tmp_path / "front.so"
    subprocess.run(["gcc", "-shared", "-fPIC", str(tmp_path / "front.c"), "-o", str(library)], check=True)
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(1 << 20))
    command = [sys.executable, "-c", READ_BEHIND_IT, str(path), str(library)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("an error\n" * 3, 0), done.stderr

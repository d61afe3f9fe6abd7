"""The native batch reader with what Python may hand it by mistake, and its threads: shared, too many, forked away."""

import gc
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mindllm_engine._native as _native
import numpy as np
import pytest

SEQ_LEN = 16
SAMPLES = 64


def source_parts(folder: Path) -> tuple[str, Any, Any, Any]:
    """A source of documents whose tokens count up, as `_native.BatchReader` takes it."""
    prefix = folder / "a"
    lengths = np.random.default_rng(0).integers(1, 40, 100)
    writer = _native.TokenFileWriter(prefix, "int32")
    writer.append_many(np.arange(lengths.sum(), dtype=np.int32), lengths)
    writer.finalize()
    reader = _native.TokenFileReader(prefix, thorough=False)
    samples = _native.ContiguousSource(f"{prefix}.idx", reader, 7)
    return str(prefix), reader, _native.LocalBytes(f"{prefix}.bin"), samples


def make_mixture() -> Any:
    block = _native.BlockSpec(
        first_sample=0,
        seq_len=SEQ_LEN,
        order=_native.Order.shuffled,
        samples_per_chunk=1,
        key=5,
        quotas=[SAMPLES],
        firsts=[0],
        categories=[[0]],
    )
    return _native.Mixture([block], 1, by_token=True)


def make_reader(folder: Path) -> Any:
    return _native.BatchReader(make_mixture(), [source_parts(folder)], 1 << 20)


def arrays_for(samples: int) -> list[np.ndarray]:
    tokens = samples * SEQ_LEN
    return [*(np.full(tokens, -1, np.int64) for _ in range(4)), np.full(tokens + 1, -1, np.int32)]


@pytest.mark.parametrize("absent", [0, 1, 2, 3])
def test_parts_that_are_none(tmp_path: Path, absent: int) -> None:
    parts: list[Any] = list(source_parts(tmp_path))
    parts[absent] = None
    if absent == 3:  # a source that no block reads has no samples, but this one is read
        reader = _native.BatchReader(make_mixture(), [tuple(parts)], 100)
        for call in (lambda: reader.find(0), lambda: reader.read(np.arange(1), *arrays_for(1))):
            with pytest.raises(IndexError, match="no samples of this source"):
                call()
        return
    with pytest.raises(TypeError):
        _native.BatchReader(make_mixture(), [tuple(parts)], 100)


def test_a_mixture_or_a_reader_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        _native.BatchReader(None, [source_parts(tmp_path)], 100)
    with pytest.raises(TypeError):
        _native.ReadAhead(None, 2)


@pytest.mark.parametrize("vocab_size", [0, -1, -(2**63)])
def test_a_vocabulary_of_none(tmp_path: Path, vocab_size: int) -> None:
    with pytest.raises(IndexError, match=f"a vocabulary of {vocab_size}"):
        _native.BatchReader(make_mixture(), [source_parts(tmp_path)], vocab_size)


def wrong_arrays(array: np.ndarray) -> list[Any]:
    read_only = array.copy()
    read_only.flags.writeable = False
    unaligned = np.frombuffer(bytearray(array.nbytes + 1), array.dtype, offset=1)
    assert not unaligned.flags.aligned
    return [array[:-1], array.astype(float), array.reshape(1, -1), np.repeat(array, 2)[::2], read_only, unaligned, None]


@pytest.mark.parametrize("which", range(5))
def test_arrays_that_cannot_be_written(tmp_path: Path, which: int) -> None:
    reader = make_reader(tmp_path)
    ahead = _native.ReadAhead(reader, 1)
    for wrong in wrong_arrays(arrays_for(3)[which]):
        arrays = arrays_for(3)
        arrays[which] = wrong
        with pytest.raises((TypeError, ValueError)):
            reader.read(np.arange(3), *arrays)
        with pytest.raises((TypeError, ValueError)):
            ahead.submit(np.arange(3), *arrays)


def test_samples_that_are_not_aligned(tmp_path: Path) -> None:
    reader = make_reader(tmp_path)
    unaligned = np.frombuffer(b"x" + np.arange(3).tobytes(), np.int64, offset=1)
    arrays, expected = arrays_for(3), arrays_for(3)
    assert reader.read(unaligned, *arrays) == reader.read(np.arange(3), *expected)
    assert np.array_equal(arrays[0], expected[0])


@pytest.mark.parametrize("threads", [0, -1, 1025, 2**31 - 1])
def test_numbers_of_threads_that_are_refused(tmp_path: Path, threads: int) -> None:
    with pytest.raises(IndexError, match=f"{threads} threads; give 1 to 1024"):
        _native.ReadAhead(make_reader(tmp_path), threads)


def test_threads_that_the_system_does_not_have(tmp_path: Path) -> None:
    """An error, and the process goes on: the threads that were started are stopped again."""
    make_reader(tmp_path)
    code = f"""
import resource, sys
from pathlib import Path
from tests.data.test_batch_reader import make_reader
reader = make_reader(Path({str(tmp_path)!r}))
import mindllm_engine._native as native
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), used + (256 << 20)))  # the stacks of some 30 threads
try:
    native.ReadAhead(reader, 1024)
except RuntimeError:
    print("refused")
native.ReadAhead(reader, 1)
"""
    assert resource.getrlimit(resource.RLIMIT_AS)[1] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("refused\n", 0), done.stderr


def test_a_batch_is_taken_once_by_whichever_thread_asks_first(tmp_path: Path) -> None:
    ahead = _native.ReadAhead(make_reader(tmp_path), 2)
    for _ in range(200):
        pending = ahead.submit(np.arange(SAMPLES), *arrays_for(SAMPLES))
        answers: list[Any] = []

        def ask(pending: Any = pending, answers: list[Any] = answers) -> None:
            try:
                answers.append(pending.wait())
            except RuntimeError as error:
                answers.append(str(error))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers.count("the batch has been taken before") == 3
        assert len([answer for answer in answers if isinstance(answer, int)]) == 1


def test_batches_may_outlive_their_threads(tmp_path: Path) -> None:
    reader = make_reader(tmp_path)
    expected = arrays_for(SAMPLES)
    borders = reader.read(np.arange(SAMPLES), *expected)
    for _ in range(50):
        ahead = _native.ReadAhead(reader, 2)
        batches = [arrays_for(SAMPLES) for _ in range(6)]
        pending = [ahead.submit(np.arange(SAMPLES), *arrays) for arrays in batches]
        del ahead
        for waiting, arrays in zip(pending, batches, strict=True):
            try:
                assert waiting.wait() == borders
                assert np.array_equal(arrays[1], expected[1])
            except RuntimeError:  # it was not begun
                assert arrays[4][0] in (-1, 0)


def test_a_forked_child_has_no_threads_and_does_not_wait_for_them(tmp_path: Path) -> None:
    ahead = _native.ReadAhead(make_reader(tmp_path), 2)
    pending = [ahead.submit(np.arange(SAMPLES), *arrays_for(SAMPLES)) for _ in range(20)]
    child = os.fork()
    if child == 0:
        refused = 0
        for call in (lambda: ahead.submit(np.arange(1), *arrays_for(1)), lambda: pending[-1].wait()):
            try:
                call()
            except RuntimeError as error:
                refused += "forked process" in str(error)
        del ahead, pending
        gc.collect()
        os._exit(refused)
    deadline = time.monotonic() + 20
    status = (0, 0)
    while status[0] == 0 and time.monotonic() < deadline:
        status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if status[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert status[0] == child, "the child hangs"
    assert os.waitstatus_to_exitcode(status[1]) == 2
    assert all(waiting.wait() > 0 for waiting in pending)

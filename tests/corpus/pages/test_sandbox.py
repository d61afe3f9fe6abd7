"""The child process: replaced when it dies, gone when its parent is, and at home in the workers of executors."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from mindllm_engine.corpus.pages.extract import ExtractConfig, Extractor
from mindllm_engine.corpus.pages.records import Record
from mindllm_engine.corpus.pages.sandbox import Failure, Sandbox
from mindllm_engine.errors import MindLLMError
from tests.corpus.pages.made_files import PAGE, PARAGRAPH

RECORD = Record(1, "html", PAGE)
BODY = PAGE.encode()
HEAD = {"kind": "html", "charset": None}
MEMORY = 1 << 30


def make_sandbox(**settings: object) -> Sandbox:
    return Sandbox({"extractor": "resiliparse", "book_bytes": 1 << 20} | settings, MEMORY, 1 << 20)


def good(found: object) -> bool:
    return isinstance(found, str) and PARAGRAPH.strip() in found


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_one_child_serves_many_documents_and_ends_when_closed() -> None:
    sandbox = make_sandbox()
    assert all(good(sandbox.call(HEAD, BODY, 5)) for _ in range(50))
    assert sandbox.started == 1
    assert sandbox.child is not None
    pid = sandbox.child.pid
    sandbox.close()
    assert gone(pid)
    assert good(sandbox.call(HEAD, BODY, 5))
    sandbox.close()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSEGV])
def test_a_child_that_was_killed_between_documents_costs_none(sign: signal.Signals) -> None:
    sandbox = make_sandbox()
    assert good(sandbox.call(HEAD, BODY, 5))
    assert sandbox.child is not None
    sandbox.child.send_signal(sign)
    sandbox.child.wait()
    assert good(sandbox.call(HEAD, BODY, 5))
    assert sandbox.started == 2
    sandbox.close()


def test_a_document_on_which_a_used_child_dies_is_tried_in_a_fresh_one() -> None:
    sandbox = make_sandbox()
    assert good(sandbox.call(HEAD, BODY, 5))
    assert sandbox.child is not None
    # Stopped, it lets the document wait in the socket; killed then, it dies "on" this document.
    sandbox.child.send_signal(signal.SIGSTOP)
    killer = subprocess.Popen(
        ["sh", "-c", f"sleep 0.3; kill -ABRT {sandbox.child.pid}; kill -CONT {sandbox.child.pid}"]
    )
    assert good(sandbox.call(HEAD, BODY, 5))
    assert sandbox.started == 2
    killer.wait()
    sandbox.close()


def test_a_child_that_hangs_without_working_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindllm_engine.corpus.pages.sandbox._PATIENCE", 1)
    sandbox = make_sandbox()
    assert good(sandbox.call(HEAD, BODY, 5))
    assert sandbox.child is not None
    sandbox.child.send_signal(signal.SIGSTOP)
    found = sandbox.call(HEAD, BODY, 1)
    assert isinstance(found, Failure)
    assert found.reason == "extraction ran out of time"
    assert good(sandbox.call(HEAD, BODY, 5))
    sandbox.close()


def test_a_text_that_is_too_long_is_refused() -> None:
    sandbox = make_sandbox()
    page = "<p>" + "some words " * 200_000
    assert sandbox.call(HEAD, page.encode(), 5) == Failure("text too long", f"{11 * 200_000 - 1} bytes")
    assert good(sandbox.call(HEAD, BODY, 5))
    sandbox.close()


def test_an_environment_that_cannot_start_it_is_an_error_and_no_drop(capfd: pytest.CaptureFixture[str]) -> None:
    sandbox = make_sandbox(unknown_setting=1)
    with pytest.raises(MindLLMError, match="does not start"):
        sandbox.call(HEAD, BODY, 5)
    assert "unknown_setting" in capfd.readouterr().err


def in_worker(queue: "multiprocessing.Queue[bool]") -> None:
    extractor = Extractor(ExtractConfig())
    queue.put(good(extractor.extract(RECORD)))
    extractor.close()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_it_works_in_daemonic_processes(method: str) -> None:
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=in_worker, args=(queue,), daemon=True)
    process.start()
    assert queue.get(timeout=60)
    process.join(20)
    assert process.exitcode == 0


def use_inherited(sandbox: Sandbox, queue: "multiprocessing.Queue[tuple[bool, bool]]") -> None:
    assert sandbox.child is not None
    before = sandbox.child.pid
    found = sandbox.call(HEAD, BODY, 5)
    queue.put((good(found), sandbox.child.pid != before))
    sandbox.close()


def test_a_forked_process_takes_a_child_of_its_own() -> None:
    sandbox = make_sandbox()
    assert good(sandbox.call(HEAD, BODY, 5))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=use_inherited, args=(sandbox, queue))
    process.start()
    assert queue.get(timeout=60) == (True, True)
    process.join(20)
    assert good(sandbox.call(HEAD, BODY, 5))
    assert sandbox.started == 1
    sandbox.close()


def test_a_thread_that_ends_takes_no_document_with_it() -> None:
    sandbox = make_sandbox()
    for _ in range(3):
        with ThreadPoolExecutor(1) as pool:
            assert good(pool.submit(sandbox.call, HEAD, BODY, 5).result())
    sandbox.close()


BUSY_PARENT = """
import sys
from mindllm_engine.corpus.pages.extract import ExtractConfig, Extractor
from mindllm_engine.corpus.pages.records import Record
extractor = Extractor(ExtractConfig(page_seconds=100))
extractor.extract(Record(1, "html", "<p>x"))
print(extractor.sandbox.child.pid, flush=True)
if sys.argv[1] == "busy":
    extractor.extract(Record(1, "html", "<div>" * 100_000))
sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["busy", "idle"])
def test_it_ends_with_its_parent(state: str) -> None:
    root = str(Path(__file__).parents[3])
    parent = subprocess.Popen(
        [sys.executable, "-c", BUSY_PARENT, state],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert not gone(pid)
    time.sleep(0.3)
    parent.kill()
    parent.communicate()
    assert until(lambda: gone(pid), 5)


def test_no_file_of_the_parent_is_held_open() -> None:
    sandbox = make_sandbox()
    with open(__file__) as file:
        os.set_inheritable(file.fileno(), True)
        assert good(sandbox.call(HEAD, BODY, 5))
    assert sandbox.child is not None
    assert __file__ not in [each.path for each in psutil.Process(sandbox.child.pid).open_files()]
    sandbox.close()

"""A child process in which extraction may blow up: it has a limit of memory and, for each document, of processor time.

One child is kept alive for all documents of a task, so that a page costs two messages over a socket and no start of a
process. A child that dies is replaced. It is started by `subprocess`, because the workers of datatrove are daemons of
multiprocessing, which may not have children of that kind. `worker.py` is the other side.

Limits are the kernel's (RLIMIT_AS, RLIMIT_CPU), so they hold in C and Rust as well. Processor time and not time on the
clock is limited: what is dropped must not depend on how busy the machine is. That a child has grown with the documents
before must not decide either: a document that fails in a used child, unless `worker.py` knows why, is tried again in a
fresh one, and a child that has grown large ends by itself.
"""

import os
import signal
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import orjson

from mindllm_engine.errors import MindLLMError

OUT_OF_TIME = "extraction ran out of time"
OUT_OF_MEMORY = "extraction ran out of memory"
CRASHED = "extraction crashed"

# Of the parent's messages: lengths of a JSON head and of the body. Of the child's: a verdict and a length.
REQUEST = struct.Struct("<IQ")
ANSWER = struct.Struct("<BQ")
# A verdict of UNREADABLE is final; FAILED may be the child's own fault.
READY, TEXT, UNREADABLE, FAILED = range(4)

# Time on the clock, as a multiple of the processor time allowed, after which a child that uses none is given up.
_PATIENCE = 10
_START_SECONDS = 120.0
_RECEIVE_BYTES = 1 << 20


@dataclass(frozen=True)
class Failure:
    """Why a document gave no text: the reason in a few fixed words, and what was found."""

    reason: str
    detail: str = ""


class _Died(Exception):
    """The child has ended without an answer."""


class Sandbox:
    """A child process, started at its first use, and its successors.

    Args:
        settings: plain data for `worker.py`.
        memory_bytes: address space of the child.
        answer_bytes: a longer text is not accepted.
    """

    def __init__(self, settings: dict[str, Any], memory_bytes: int, answer_bytes: int) -> None:
        self.settings, self.memory_bytes, self.answer_bytes = settings, memory_bytes, answer_bytes
        self.child: subprocess.Popen[bytes] | None = None
        self.channel: socket.socket | None = None
        self.owner = 0
        self.fresh = False
        """Whether the child has not worked yet."""
        self.started = 0
        """Children so far."""

    def call(self, head: dict[str, Any], body: bytes, seconds: int) -> str | Failure:
        """Text of a document, within so many seconds of processor time. Raises MindLLMError if no child starts."""
        while True:
            self.ensure_child()
            first_use, self.fresh = self.fresh, False
            try:
                verdict, answer = self.exchange({**head, "seconds": seconds}, body, _PATIENCE * seconds)
            except TimeoutError:
                self.close()
                return Failure(OUT_OF_TIME, f"no answer in {_PATIENCE * seconds} s")
            except _Died:
                verdict, answer = self.cause_of_death(seconds)
            if verdict == FAILED:
                self.close()
                if not first_use:
                    continue
            return answer

    def ensure_child(self) -> None:
        """Start one unless one is alive. One that belongs to the process this one was forked from is left to it."""
        if self.owner != os.getpid():
            self.child = self.channel = None
        if self.child is not None and self.child.poll() is None:
            return
        self.close()
        ours, theirs = socket.socketpair()
        with theirs:
            self.child = subprocess.Popen(
                [sys.executable, "-c", "from mindllm_engine.corpus.pages.worker import main; main()", self.arguments()],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
            )
        self.channel, self.owner = ours, os.getpid()
        self.started += 1
        self.fresh = True
        try:
            self.channel.settimeout(_START_SECONDS)
            self.receive(ANSWER.size)
        except (_Died, TimeoutError):
            self.close()
            raise MindLLMError(
                "the process that extracts text does not start (its message stands above); "
                "install the engine with its extra: pip install 'mindllm-engine[corpus]'"
            ) from None

    def arguments(self) -> str:
        data = {"settings": self.settings, "memory_bytes": self.memory_bytes, "parent": os.getpid()}
        return orjson.dumps(data).decode()

    def exchange(self, head: dict[str, Any], body: bytes, patience: float) -> tuple[int, str | Failure]:
        """One document: the verdict, and the text or why there is none. Raises _Died, TimeoutError."""
        assert self.channel is not None
        self.channel.settimeout(patience)
        packed = orjson.dumps(head)
        try:
            self.channel.sendall(REQUEST.pack(len(packed), len(body)) + packed)
            self.channel.sendall(body)
        except (BrokenPipeError, ConnectionResetError):
            raise _Died from None
        verdict, length = ANSWER.unpack(self.receive(ANSWER.size))
        if length > self.answer_bytes:
            self.close()
            return UNREADABLE, Failure("text too long", f"{length} bytes")
        answer = self.receive(length)
        return verdict, answer.decode() if verdict == TEXT else Failure(*orjson.loads(answer))

    def receive(self, length: int) -> bytearray:
        """So many bytes. Raises _Died, TimeoutError."""
        assert self.channel is not None
        data = bytearray(length)
        view, filled = memoryview(data), 0
        while filled < length:
            try:
                received = self.channel.recv_into(view[filled : filled + _RECEIVE_BYTES])
            except ConnectionResetError:
                received = 0
            if not received:
                raise _Died
            filled += received
        return data

    def cause_of_death(self, seconds: int) -> tuple[int, Failure]:
        """What the end of the child says of its document."""
        assert self.child is not None
        status = self.child.wait()
        if status == -signal.SIGXCPU:
            return UNREADABLE, Failure(OUT_OF_TIME, f"over {seconds} s")
        return FAILED, Failure(CRASHED, signal.Signals(-status).name if status < 0 else f"exit code {status}")

    def close(self) -> None:
        """End the child. The next call starts another."""
        if self.owner == os.getpid():
            if self.channel is not None:
                self.channel.close()
            if self.child is not None:
                self.child.kill()
                self.child.wait()
        self.child = self.channel = None

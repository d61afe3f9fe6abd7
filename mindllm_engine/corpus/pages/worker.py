"""The child process of `sandbox.py`: takes documents from a socket, one at a time, and answers with their texts.

It ends with its parent: the socket closes, and the kernel kills it where it is busy (PR_SET_PDEATHSIG).
"""

import ctypes
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import orjson

from mindllm_engine.corpus.pages.html import HtmlExtractor
from mindllm_engine.corpus.pages.sandbox import (
    ANSWER,
    FAILED,
    OUT_OF_MEMORY,
    READY,
    REQUEST,
    TEXT,
    UNREADABLE,
)
from mindllm_engine.corpus.pages.unreadable import Unreadable

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Work until the socket on standard input closes."""
    arguments = orjson.loads(sys.argv[1])
    end_with_parent(arguments["parent"])
    extractors = make_extractors(**arguments["settings"])
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (arguments["memory_bytes"],) * 2)
    with socket.socket(fileno=os.dup(0)) as channel, channel.makefile("rb") as requests:
        channel.sendall(ANSWER.pack(READY, 0))
        # Libraries that fail speak to stderr; what the parent should know is in the answers.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        while lengths := requests.read(REQUEST.size):
            head_length, body_length = REQUEST.unpack(lengths)
            head = orjson.loads(requests.read(head_length))
            limit_processor_time(head["seconds"])
            verdict, answer = answer_to(extractors, head, requests, body_length)
            channel.sendall(ANSWER.pack(verdict, len(answer)))
            channel.sendall(answer)
            if address_space() > arguments["memory_bytes"] // 2:
                break  # libraries leak, and memory gets scattered: the next document finds a fresh process


def make_extractors(extractor: str, book_bytes: int) -> dict[str, Callable[[bytes, str | None], str]]:
    """By the kind of record. The libraries for books are imported when the first book comes."""
    html = HtmlExtractor(extractor)

    def pdf(data: bytes, charset: str | None) -> str:
        from mindllm_engine.corpus.pages.pdf import pdf_text

        return pdf_text(data)

    def epub(data: bytes, charset: str | None) -> str:
        from mindllm_engine.corpus.pages.epub import epub_text

        return epub_text(data, book_bytes)

    def mobi(data: bytes, charset: str | None) -> str:
        from mindllm_engine.corpus.pages.mobi import mobi_text

        return mobi_text(data, book_bytes)

    return {"html": html.page_text, "pdf": pdf, "epub": epub, "mobi": mobi}


def answer_to(
    extractors: dict[str, Callable[[bytes, str | None], str]], head: dict[str, Any], requests: Any, body_length: int
) -> tuple[int, bytes]:
    """The verdict on one document, and its text, or reason and detail."""
    try:
        text = extractors[head["kind"]](requests.read(body_length), head["charset"])
        return TEXT, encoded(text)
    except Unreadable as error:
        return UNREADABLE, orjson.dumps([error.reason, encoded(error.detail).decode()])
    except MemoryError:
        return FAILED, orjson.dumps([OUT_OF_MEMORY, ""])
    except Exception as error:
        # A library that stumbles over a document, or has no memory and says so in words of its own.
        detail = encoded(f"{type(error).__name__}: {error}"[:300]).decode()
        return FAILED, orjson.dumps(["extraction failed", detail])


def encoded(text: str) -> bytes:
    """As UTF-8. Surrogates, which books have in pairs and singly, become what they mean, or U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def address_space() -> int:
    """Of this process, in bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def limit_processor_time(seconds: int) -> None:
    """The kernel ends this process by SIGXCPU after so many seconds of work from now (up to one more)."""
    limit = int(time.process_time()) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def end_with_parent(parent: int) -> None:
    """Be killed when the parent ends, and before others where memory runs out."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    if os.getppid() != parent:
        sys.exit(0)

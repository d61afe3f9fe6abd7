"""Asks an OpenAI-compatible server (a judge, a teacher, another model) many things at once, and remembers its answers.

`ChatEndpoint.complete_many` sends chats from a few threads, tries again what may pass (429, 5xx, timeouts, replies that
are no chat completion), and gives an answer or an `EndpointFailure` for each, in their order. Every answer goes at once
to a file of JSON lines, keyed by the request without its server, so that a run that was killed goes on where it was and
a second one sends nothing. Stands below every other floor: tuning/ distils from it, evaluation/ judges by it.
"""

import contextlib
import fcntl
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

import orjson
import xxhash

from mindllm_engine.errors import ConfigError, DataError

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 30.0
_RETRIED_STATUS = frozenset({408, 409, 425, 429, *range(500, 600)})
_REFUSED_STATUS = frozenset({401, 403, 404})  # wrong for every request, not for one
_LONGEST_REASON = 300  # characters
_LINE_START = b'{"key":"'
# Parameters that some models refuse, and what to send instead; "" is nothing.
_OTHER_NAMES = {"max_tokens": "max_completion_tokens", "temperature": ""}

logger = logging.getLogger(__name__)


class ChatMessage(Protocol):
    """A message of a chat, such as `corpus.chat_template.Message`: role system, user or assistant, and what it says."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str: ...


@dataclass
class EndpointConfig:
    """A server that speaks OpenAI's chat completions."""

    url: str
    """Where its API begins, such as http://localhost:8000/v1 or https://api.openai.com/v1."""
    model: str
    """The name of the model there."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key; a server without keys needs none. The key itself is written
    nowhere."""
    timeout_seconds: float = 120.0
    """The longest that one request may take."""
    retries: int = 4
    """How often a request is sent again after a 429, a 5xx, a timeout or a damaged reply, with growing pauses."""
    concurrency: int = 8
    """Requests under way at a time."""
    cache: str | None = None
    """File of JSON lines that keeps every answer; processes may share it. None keeps none."""

    def validate(self) -> None:
        """Raises `ConfigError` naming the first key that cannot be used."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("url must be a server's address such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ConfigError("url must hold no key or password; put it into the variable that api_key_env names")
        if not self.model:
            raise ConfigError("model must name a model of the server")
        if not self.timeout_seconds > 0:
            raise ConfigError(f"timeout_seconds must be above 0, not {self.timeout_seconds}")
        if self.retries < 0 or self.concurrency < 1:
            raise ConfigError("retries must be 0 or above and concurrency 1 or above")


@dataclass(frozen=True)
class EndpointFailure:
    """A request that got no answer, and the last reason why: `500: overloaded`, `no answer within 120 s`."""

    reason: str


class ChatEndpoint:
    """A server and the cache of its answers. Close it, or use it as a context manager, to let go of its connections.

    Raises:
        ConfigError: a key of the config that cannot be used.
        DataError: the cache cannot be read or written, or is a file of another kind.
    """

    def __init__(self, config: EndpointConfig) -> None:
        config.validate()
        self.config = config
        self.requests_sent = 0
        """Requests that went to the server so far, those sent again included."""
        self._cache = AnswerCache(Path(config.cache)) if config.cache else None
        self._client: Any = None
        self._lock = threading.Lock()
        self._answered = False
        self._fatal: str | None = None  # why no request can be answered
        self._stop: str | None = None  # why no more are sent
        self._silent_in_a_row = 0
        self._refused_parameters: set[str] = set()

    def complete_many(
        self,
        chats: Sequence[Sequence[ChatMessage]],
        temperature: float = 0.0,
        max_tokens: int = 1024,
        show: Callable[[int, int], None] | None = None,
    ) -> list[str | EndpointFailure]:
        """The answer to each chat, or why there is none; equal chats are sent once and get one answer.

        Args:
            max_tokens: longest answer, in the server's tokens; a longer one comes cut.
            show: called with (chats done, chats) as they come, from this thread.

        Raises:
            ConfigError: the server cannot be reached or refuses the key or the model, and has answered nothing so far;
                or the package `openai` is not installed. What it answered before is in the cache.
            DataError: the cache cannot be written.
        """
        requests = [_request(self.config.model, chat, temperature, max_tokens) for chat in chats]
        outcomes: dict[str, str | EndpointFailure] = {}
        if self._cache is not None:
            self._cache.refresh()
            outcomes = {key: self._cache.answers[key] for key, _ in requests if key in self._cache.answers}
        open_requests = {key: request for key, request in requests if key not in outcomes}
        done = sum(key in outcomes for key, _ in requests)
        if show is not None:
            show(done, len(requests))
        counts: dict[str, int] = {}
        for key, _ in requests:
            counts[key] = counts.get(key, 0) + 1
        for key, outcome in self._ask(open_requests):
            outcomes[key] = outcome
            done += counts[key]
            if show is not None:
                show(done, len(requests))
        if self._fatal is not None and not self._answered:
            raise ConfigError(self._fatal)
        return [outcomes[key] for key, _ in requests]

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def __enter__(self) -> "ChatEndpoint":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, requests: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str | EndpointFailure]]:
        if not requests:
            return
        self._client = self._client or _client(self.config)
        self._fatal, self._stop, self._silent_in_a_row = None, None, 0
        with ThreadPoolExecutor(min(self.config.concurrency, len(requests)), "endpoint") as threads:
            futures = {threads.submit(self._answer, key, request): key for key, request in requests.items()}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:  # an interrupt, or a full disk
                self._stop = "interrupted"
                threads.shutdown(cancel_futures=True)
                raise

    def _answer(self, key: str, request: dict[str, Any]) -> str | EndpointFailure:
        """One request with its repetitions; on a thread."""
        for attempt in range(self.config.retries + 1):
            if self._stop is not None:
                return EndpointFailure(f"not asked: {self._stop}")
            try:
                answer = self._send(request)
            except _FailedError as error:
                if error.may_pass and attempt < self.config.retries:
                    time.sleep(_pause(attempt, error.wait_seconds))
                    continue
                self._note_failure(error)
                return EndpointFailure(str(error))
            with self._lock:
                self._answered, self._silent_in_a_row = True, 0
            return self._cache.add(key, request, answer) if self._cache is not None else answer
        raise AssertionError("the last attempt returns")

    def _note_failure(self, error: "_FailedError") -> None:
        """Send nothing more where nothing can come back: refused from the start, or many in a row without a word."""
        with self._lock:
            if error.for_all and not self._answered:
                self._fatal = self._stop = str(error)
            self._silent_in_a_row = self._silent_in_a_row + 1 if error.silent else 0
            if self._silent_in_a_row >= max(8, 2 * self.config.concurrency) and self._stop is None:
                self._stop = f"{self._silent_in_a_row} requests in a row got no reply"

    def _send(self, request: dict[str, Any]) -> str:
        """One attempt; parameters that the model does not know are left out, or take the name that it knows."""
        while True:
            refused = frozenset(self._refused_parameters)
            sent = {_OTHER_NAMES[name] if name in refused else name: value for name, value in request.items()}
            sent.pop("", None)
            try:
                return self._send_once(sent)
            except _ParameterError as error:
                instead = _OTHER_NAMES[error.name] or "nothing"
                logger.warning("%s refuses %s; it gets %s instead", self.config.model, error.name, instead)
                self._refused_parameters.add(error.name)

    def _send_once(self, request: dict[str, Any]) -> str:
        import openai

        with self._lock:
            self.requests_sent += 1
        url, seconds = self.config.url, self.config.timeout_seconds
        deadline = time.monotonic() + seconds
        try:
            # As a stream, since the client limits each wait only, and a server may send a byte at a time.
            with self._client.chat.completions.with_streaming_response.create(**request) as response:
                body = bytearray()
                for piece in response.iter_bytes():
                    body += piece
                    if time.monotonic() > deadline:
                        raise _FailedError(f"no whole answer within {seconds:g} s", may_pass=True, silent=True)
            return _content(bytes(body))
        except _FailedError:
            raise
        except openai.APITimeoutError as error:
            raise _FailedError(f"no answer within {seconds:g} s", may_pass=True, silent=True) from error
        except openai.APIConnectionError as error:
            reason = self._clean(str(error.__cause__ or error))
            reason = f"{url}: no server answers ({reason}); start it, or set the endpoint's url"
            raise _FailedError(reason, may_pass=True, for_all=True, silent=True) from error
        except openai.APIStatusError as error:
            raise self._status_error(error.status_code, error.response, request) from error
        except Exception as error:  # of the client's transport, where a reply breaks off
            reason = self._clean(f"the reply broke off: {error or type(error).__name__}")
            raise _FailedError(reason, may_pass=True) from error

    def _status_error(self, status: int, response: Any, sent: dict[str, Any]) -> Exception:
        body = response.text
        with contextlib.suppress(orjson.JSONDecodeError, TypeError, KeyError):
            error = orjson.loads(body)["error"]
            body = str(error["message"])
            unknown = error.get("code") in ("unsupported_parameter", "unsupported_value")
            if unknown and error.get("param") in _OTHER_NAMES.keys() & sent.keys():
                return _ParameterError(error["param"])
        reason = self._clean(f"{status}: {body}")
        if status in _RETRIED_STATUS:
            return _FailedError(reason, may_pass=True, wait_seconds=_seconds(response.headers.get("retry-after")))
        if status not in _REFUSED_STATUS:
            return _FailedError(reason)
        name = self.config.api_key_env
        advice = f"check the model {self.config.model!r} and the path in the endpoint's url, which often ends in /v1"
        if status != 404:
            known = "the key in it is not accepted" if os.environ.get(name) else "it is empty"
            advice = f"set the environment variable {name} to the server's key: {known}"
        return _FailedError(f"{self.config.url}: {reason}; {advice}", for_all=True)

    def _clean(self, text: str) -> str:
        """A reason as one short line, without the key: servers repeat what they were sent."""
        key = os.environ.get(self.config.api_key_env)
        return " ".join((text.replace(key, "***") if key else text).split())[:_LONGEST_REASON]


class _FailedError(Exception):
    """An attempt without an answer.

    Args:
        may_pass: another attempt may succeed, after `wait_seconds` where the server says so.
        for_all: no other request would fare better.
        silent: not a word came back.
    """

    def __init__(
        self,
        reason: str,
        may_pass: bool = False,
        wait_seconds: float | None = None,
        for_all: bool = False,
        silent: bool = False,
    ) -> None:
        super().__init__(reason)
        self.may_pass = may_pass
        self.wait_seconds = wait_seconds
        self.for_all = for_all
        self.silent = silent


class _ParameterError(Exception):
    """The model does not take a parameter that may be left out or named otherwise."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class AnswerCache:
    """Request key -> answer, in a file that is only ever appended to: `{"key", "request", "answer"}` a line.

    Lines are appended under a lock between processes. The first answer to a request stays, so that all processes agree.
    A line that a kill has cut short is closed by the next one's newline and passed over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answers: dict[str, str] = {}
        self._read_to = 0
        self._threads = threading.Lock()
        self.refresh()

    def refresh(self) -> None:
        """Read what other processes have appended. Raises DataError."""
        with self._threads, self._open() as file:
            self._read_new_lines(file)

    def add(self, key: str, request: dict[str, Any], answer: str) -> str:
        """Keep an answer; gives the one that stays. Raises DataError."""
        line = orjson.dumps({"key": key, "request": request, "answer": answer}) + b"\n"
        with self._threads, self._open() as file:
            self._read_new_lines(file)
            if key not in self.answers:
                end = file.seek(0, os.SEEK_END)
                file.write(b"\n" + line if self._read_to < end else line)
                file.flush()
                self.answers[key] = answer
            return self.answers[key]

    @contextlib.contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file
        except OSError as error:
            raise DataError(
                f"{self.path}: the cache of answers cannot be read or written: {error.strerror}; check its folder, its "
                "permissions and the free space"
            ) from error

    def _read_new_lines(self, file: BinaryIO) -> None:
        """Whole lines from where the last reading ended; an unfinished last one is left."""
        file.seek(self._read_to)
        for line in file:
            if not line.startswith(_LINE_START) and not _LINE_START.startswith(line.rstrip(b"\n")):
                raise self._foreign()
            if not line.endswith(b"\n"):
                return
            self._read_to += len(line)
            with contextlib.suppress(orjson.JSONDecodeError):  # cut short by a kill
                content = orjson.loads(line)
                if not isinstance(content.get("answer"), str):
                    raise self._foreign()
                self.answers.setdefault(content["key"], content["answer"])

    def _foreign(self) -> DataError:
        return DataError(f"{self.path}: is no cache of answers; name another file, or a new one")


def _request(
    model: str, chat: Sequence[ChatMessage], temperature: float, max_tokens: int
) -> tuple[str, dict[str, Any]]:
    """(key, request) of a chat."""
    request = {
        "model": model,
        "messages": [{"role": message.role, "content": message.content} for message in chat],
        "temperature": float(temperature),
        "max_tokens": max_tokens,
    }
    return request_key(request), request


def request_key(request: dict[str, Any]) -> str:
    """What an answer is kept under: the xxh3_128 of the request, whichever server it goes to."""
    return xxhash.xxh3_128_hexdigest(orjson.dumps(request, option=orjson.OPT_SORT_KEYS))


def _content(body: bytes) -> str:
    """The text in a chat completion. Raises _FailedError where it is none."""
    try:
        content = orjson.loads(body)["choices"][0]["message"]["content"]
    except orjson.JSONDecodeError as error:
        reason = f"the reply is no JSON: {body[:80].decode(errors='replace')!r}"
        raise _FailedError(reason, may_pass=True) from error
    except (TypeError, KeyError, IndexError) as error:
        raise _FailedError("the reply holds no choices[0].message.content", may_pass=True) from error
    if not isinstance(content, str):
        raise _FailedError("the reply's content is no text", may_pass=True)
    return content


def _client(config: EndpointConfig) -> Any:
    try:
        import openai
    except ImportError as error:
        raise ConfigError("asking a server needs the package openai: pip install 'mindllm-engine[eval]'") from error
    key = os.environ.get(config.api_key_env) or "none"
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"the environment variable {config.api_key_env} holds characters that no key has")
    return openai.OpenAI(api_key=key, base_url=config.url, timeout=config.timeout_seconds, max_retries=0)


def _pause(attempt: int, asked_for: float | None) -> float:
    """Seconds until the next attempt: what the server asks for, or growing ones, scattered so that threads part."""
    if asked_for is not None:
        return min(asked_for, 2 * _LONGEST_WAIT_SECONDS)
    return min(_FIRST_WAIT_SECONDS * 2**attempt, _LONGEST_WAIT_SECONDS) * random.uniform(0.5, 1.0)


def _seconds(header: str | None) -> float | None:
    """A Retry-After header in seconds; None without one, or where it is a date."""
    try:
        seconds = float(header) if header is not None else None
    except ValueError:
        return None
    return seconds if seconds is not None and 0 <= seconds < float("inf") else None

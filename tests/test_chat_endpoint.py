"""The client of OpenAI-compatible servers against a real server that answers well, badly, slowly or not at all."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mindllm_engine.chat_endpoint import ChatEndpoint, EndpointConfig, EndpointFailure
from mindllm_engine.corpus.chat_template import Message
from mindllm_engine.errors import ConfigError, DataError
from tests.chat_server import ChatServer, Reply, completion

SECRET = "sk-very-secret-0123456789"


def ask(config: EndpointConfig, texts: list[str], **options: Any) -> list[str | EndpointFailure]:
    with ChatEndpoint(config) as endpoint:
        return endpoint.complete_many([[Message("user", text)] for text in texts], **options)


def echo(request: dict[str, Any]) -> str:
    return "回声 " + request["messages"][-1]["content"]


def config_of(server: ChatServer, **options: Any) -> EndpointConfig:
    return EndpointConfig(**{"url": server.url, "model": "m", "retries": 1, "timeout_seconds": 5.0, **options})


def test_answers_come_in_the_order_of_the_chats_from_many_threads() -> None:
    texts = [f"question {number}" for number in range(40)]
    four_together = threading.Barrier(4)  # the first four questions are answered when all of them have come

    def slow_for_some(request: dict[str, Any]) -> Reply:
        number = int(request["messages"][-1]["content"].split()[1])
        if number < 4:
            four_together.wait(timeout=4)
        reply = completion(echo(request))
        reply.seconds_before = 0.05 if number % 3 else 0.2
        return reply

    shown: list[tuple[int, int]] = []
    with ChatServer(slow_for_some) as server:
        answers = ask(config_of(server, concurrency=4), texts, show=lambda done, total: shown.append((done, total)))
    assert answers == ["回声 " + text for text in texts]
    assert server.most_at_once == 4
    assert shown == [(done, 40) for done in range(41)]


def test_the_request_says_what_was_asked_for() -> None:
    with ChatServer(echo) as server, ChatEndpoint(config_of(server)) as endpoint:
        chat = [Message("system", "be brief"), Message("user", "你好")]
        endpoint.complete_many([chat], temperature=0.7, max_tokens=33)
    assert server.requests == [
        {
            "model": "m",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "你好"}],
            "temperature": 0.7,
            "max_tokens": 33,
        }
    ]


@pytest.mark.parametrize("status", [429, 500, 503, 408])
def test_what_may_pass_is_tried_again(status: int) -> None:
    def second_time_right(request: dict[str, Any]) -> str | Reply:
        return Reply(status, b"busy") if len(server.requests) == 1 else echo(request)

    with ChatServer(second_time_right) as server, ChatEndpoint(config_of(server)) as endpoint:
        assert endpoint.complete_many([[Message("user", "a")]]) == ["回声 a"]
        assert endpoint.requests_sent == len(server.requests) == 2


def test_a_server_is_waited_for_as_long_as_it_asks() -> None:
    def later(request: dict[str, Any]) -> str | Reply:
        return Reply(429, b"busy", headers=(("Retry-After", "1.2"),)) if len(server.requests) == 1 else echo(request)

    with ChatServer(later) as server:
        start = time.monotonic()
        assert ask(config_of(server), ["a"]) == ["回声 a"]
    assert time.monotonic() - start >= 1.2


BAD_BODIES = {
    b"<html>gateway</html>": "no JSON",
    b"": "no JSON",
    b"\xff\xfe\x00": "no JSON",
    b"[]": "no choices",
    b'"text"': "no choices",
    b'{"choices": []}': "no choices",
    b'{"choices": null}': "no choices",
    b'{"choices": [{"message": null}]}': "no choices",
    b'{"choices": [{"message": {"content": null}}]}': "no text",
    b'{"choices": [{"message": {"content": ["a"]}}]}': "no text",
}


def test_replies_that_are_no_completion_fail_alone() -> None:
    """Each is tried again, and none takes the others' answers with it."""
    bodies = dict(enumerate(BAD_BODIES))

    def bad_or_good(request: dict[str, Any]) -> str | Reply:
        text = request["messages"][-1]["content"]
        return Reply(200, bodies[int(text)]) if text.isdigit() else echo(request)

    with ChatServer(bad_or_good) as server:
        answers = ask(config_of(server), ["good", *map(str, bodies), "fine"])
    assert (answers[0], answers[-1]) == ("回声 good", "回声 fine")
    for answer, reason in zip(answers[1:-1], BAD_BODIES.values(), strict=True):
        assert isinstance(answer, EndpointFailure)
        assert reason in answer.reason
    assert len(server.requests) == 2 + 2 * len(BAD_BODIES)


def test_a_reply_that_breaks_off_is_tried_again() -> None:
    def broken_once(request: dict[str, Any]) -> str | Reply:
        whole = completion(echo(request))
        return Reply(200, whole.body[:50], promised_bytes=500) if len(server.requests) == 1 else whole

    with ChatServer(broken_once) as server:
        assert ask(config_of(server), ["a"]) == ["回声 a"]


def test_an_empty_answer_is_an_answer() -> None:
    with ChatServer(lambda request: "") as server:
        assert ask(config_of(server), ["a"]) == [""]


def test_a_request_that_the_server_refuses_fails_at_once() -> None:
    def too_long(request: dict[str, Any]) -> str | Reply:
        body = json.dumps({"error": {"message": "context of 4096 exceeded"}}).encode()
        return Reply(400, body) if request["messages"][-1]["content"] == "long" else echo(request)

    with ChatServer(too_long) as server:
        answers = ask(config_of(server, concurrency=1), ["a", "long", "b"])
    assert answers[0] == "回声 a"
    assert answers[2] == "回声 b"
    assert isinstance(answers[1], EndpointFailure)
    assert "400" in answers[1].reason
    assert "4096" in answers[1].reason
    assert len(server.requests) == 3


def test_parameters_that_a_model_refuses_are_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    """As OpenAI's reasoning models refuse max_tokens, and every temperature but their own."""

    def choosy(request: dict[str, Any]) -> str | Reply:
        for name, code in (("max_tokens", "unsupported_parameter"), ("temperature", "unsupported_value")):
            if name in request:
                error = {"message": f"Unsupported: '{name}'", "param": name, "code": code}
                return Reply(400, json.dumps({"error": error}).encode())
        return f"{request['max_completion_tokens']}"

    with ChatServer(choosy) as server:
        assert ask(config_of(server, retries=0), [str(number) for number in range(20)], max_tokens=7) == ["7"] * 20
    assert "m refuses max_tokens; it gets max_completion_tokens instead" in caplog.text
    assert "m refuses temperature; it gets nothing instead" in caplog.text
    assert len(server.requests) <= 20 + 2 * 8


@pytest.mark.parametrize(
    "reply",
    [Reply(200, completion("a").body, seconds_before=5), Reply(200, completion("a").body, seconds_a_byte=0.1)],
    ids=["silent", "a byte at a time"],
)
def test_slow_replies_time_out_and_the_others_come(reply: Reply) -> None:
    def slow(request: dict[str, Any]) -> str | Reply:
        return reply if request["messages"][-1]["content"] == "slow" else echo(request)

    with ChatServer(slow) as server:
        start = time.monotonic()
        answers = ask(config_of(server, timeout_seconds=0.5), ["a", "slow", "b"])
        assert time.monotonic() - start < 4
    assert answers[0] == "回声 a"
    assert answers[2] == "回声 b"
    assert isinstance(answers[1], EndpointFailure)
    assert "within 0.5 s" in answers[1].reason


def test_a_server_that_never_replies_is_not_asked_for_ever() -> None:
    with ChatServer(lambda request: Reply(200, b"", seconds_before=3)) as server:
        answers = ask(config_of(server, timeout_seconds=0.2, retries=0, concurrency=4), [str(n) for n in range(100)])
    assert all(isinstance(answer, EndpointFailure) for answer in answers)
    assert len(server.requests) < 20
    assert isinstance(answers[-1], EndpointFailure)
    assert "in a row got no reply" in answers[-1].reason


@pytest.mark.parametrize(("status", "key"), [(401, None), (401, SECRET), (403, SECRET)])
def test_a_refused_key_says_what_to_set(status: int, key: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    body = json.dumps({"error": {"message": f"bad key {key}"}}).encode()
    refused = pytest.raises(ConfigError, match="set the environment variable OPENAI_API_KEY")
    with ChatServer(lambda request: Reply(status, body)) as server, refused as caught:
        ask(config_of(server, concurrency=2), [str(number) for number in range(50)])
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(server.requests) <= 2


def test_an_unknown_model_or_path_says_so() -> None:
    unknown = pytest.raises(ConfigError, match="check the model 'm' and the path")
    with ChatServer(lambda request: Reply(404, b"not found")) as server, unknown:
        ask(config_of(server), ["a"])


def test_no_server_says_where() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1.*no server answers"):
        ask(EndpointConfig(url, "m", retries=1), [str(number) for number in range(20)])


def test_a_key_that_is_refused_midway_loses_no_answers() -> None:
    def first_only(request: dict[str, Any]) -> str | Reply:
        return echo(request) if len(server.requests) == 1 else Reply(401, b"{}")

    with ChatServer(first_only) as server:
        answers = ask(config_of(server, concurrency=1), ["a", "b"])
    assert answers[0] == "回声 a"
    assert isinstance(answers[1], EndpointFailure)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"url": "localhost:8000"}, "url"),
        ({"url": "http://"}, "url"),
        ({"url": f"http://me:{SECRET}@host/v1"}, "no key or password"),
        ({"model": ""}, "model"),
        ({"timeout_seconds": 0.0}, "timeout_seconds"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds"),
        ({"retries": -1}, "retries"),
        ({"concurrency": 0}, "concurrency"),
    ],
)
def test_a_config_that_cannot_be_used(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        ChatEndpoint(EndpointConfig(**{"url": "http://localhost/v1", "model": "m", **options}))
    assert SECRET not in str(caught.value)


def test_the_key_is_sent_and_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    caplog.set_level("DEBUG")

    def some_fail(request: dict[str, Any]) -> str | Reply:
        if request["messages"][-1]["content"] == "bad":
            return Reply(400, f"you sent {server.keys[-1]}".encode())
        return echo(request)

    with ChatServer(some_fail) as server:
        config = config_of(server, api_key_env="JUDGE_KEY", cache=str(tmp_path / "cache.jsonl"), concurrency=1)
        with ChatEndpoint(config) as endpoint:
            answers = endpoint.complete_many([[Message("user", text)] for text in ("a", "bad")])
            shown = repr(endpoint) + repr(config) + repr(answers)
    assert server.keys == [f"Bearer {SECRET}"] * 2
    assert "***" in repr(answers[1])
    assert SECRET not in shown
    assert SECRET not in (tmp_path / "cache.jsonl").read_text()
    assert SECRET not in caplog.text


def test_a_key_with_a_newline_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET + "\n")
    with ChatServer(echo) as server, pytest.raises(ConfigError, match="OPENAI_API_KEY") as caught:
        ask(config_of(server), ["a"])
    assert SECRET not in str(caught.value)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with ChatServer(echo) as server, pytest.raises(ConfigError, match=r"pip install 'mindllm-engine\[eval\]'"):
        ask(config_of(server), ["a"])


def test_cached_answers_make_no_request_nor_need_a_server(tmp_path: Path) -> None:
    cache = str(tmp_path / "deep" / "cache.jsonl")
    with ChatServer(echo) as server:
        first = ask(config_of(server, cache=cache), ["a", "b\nc", "a"])
    assert len(server.requests) == 2  # equal chats are sent once
    gone = EndpointConfig("http://127.0.0.1:9/v1", "m", cache=cache)
    assert ask(gone, ["b\nc", "a"]) == [first[1], first[0]]
    with ChatServer(echo) as server:
        ask(config_of(server, cache=cache), ["a"])
        ask(config_of(server, cache=cache), ["a"], temperature=0.5)
        ask(config_of(server, cache=cache), ["a"], max_tokens=7)
        ask(config_of(server, cache=cache, model="other"), ["a"])
    assert len(server.requests) == 3  # each parameter is part of the key


def test_failures_are_not_cached(tmp_path: Path) -> None:
    cache = str(tmp_path / "cache.jsonl")
    with ChatServer(lambda request: Reply(400, b"no")) as server:
        assert isinstance(ask(config_of(server, cache=cache), ["a"])[0], EndpointFailure)
    with ChatServer(echo) as server:
        assert ask(config_of(server, cache=cache), ["a"]) == ["回声 a"]


@pytest.mark.parametrize("cut", [1, 7, 20, 60])
def test_a_line_that_a_kill_cut_short_costs_that_answer_alone(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cache.jsonl"
    with ChatServer(echo) as server:
        ask(config_of(server, cache=str(path), concurrency=1), ["a", "b"])
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(lines[0] + lines[1][:cut])
        for _ in range(2):
            assert ask(config_of(server, cache=str(path)), ["a", "b", "c"]) == ["回声 a", "回声 b", "回声 c"]
    assert len(server.requests) == 4  # a, b; b again, c; then nothing


def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    for content in (
        b'{"query": "a"}\n',
        b"\x00\x01binary",
        b'{"key": 1}\n',
        b'{"key":"law"}\n',
        b'{"key":"a","answer":1}\n',
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match="no cache of answers"):
            ChatEndpoint(EndpointConfig("http://localhost/v1", "m", cache=str(path)))
        assert path.read_bytes() == content


def test_a_folder_as_cache_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cache of answers cannot be read or written"):
        ChatEndpoint(EndpointConfig("http://localhost/v1", "m", cache=str(tmp_path)))


ASKER = """
import sys
from types import SimpleNamespace
from mindllm_engine.chat_endpoint import ChatEndpoint, EndpointConfig
url, cache, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with ChatEndpoint(EndpointConfig(url, "m", cache=cache, concurrency=4)) as endpoint:
    answers = endpoint.complete_many([[SimpleNamespace(role="user", content=f"q{n}")] for n in range(count)])
print("\\n".join(map(str, answers)))
"""


def start_asker(url: str, cache: Path, count: int) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", ASKER, url, str(cache), str(count)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    cache = tmp_path / "cache.jsonl"

    def a_little_slow(request: dict[str, Any]) -> Reply:
        return Reply(200, completion(echo(request)).body, seconds_before=0.05)

    with ChatServer(a_little_slow) as server:
        process = start_asker(server.url, cache, 60)
        while not cache.exists() or cache.read_bytes().count(b"\n") < 10:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.3)  # what it had sent has come
        kept = cache.read_bytes().count(b"\n")
        sent = len(server.requests)
        output, _ = start_asker(server.url, cache, 60).communicate(timeout=60)
        assert output.split("\n")[:-1] == [f"回声 q{number}" for number in range(60)]
        assert len(server.requests) - sent == 60 - kept


def test_two_processes_share_a_cache_and_agree(tmp_path: Path) -> None:
    """The server answers each time differently: what was kept first is what both give."""
    cache = tmp_path / "cache.jsonl"
    lock = threading.Lock()

    def another_each_time(request: dict[str, Any]) -> str:
        with lock:
            return f"{request['messages'][-1]['content']} 第{len(server.requests)}次 " + "长" * 20_000

    with ChatServer(another_each_time) as server:
        processes = [start_asker(server.url, cache, 40) for _ in range(2)]
        outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert outputs[0] == outputs[1]
    lines = [json.loads(line) for line in cache.read_text().splitlines()]
    assert len(lines) == len({line["key"] for line in lines}) == 40

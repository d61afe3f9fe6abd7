"""A real HTTP server that speaks OpenAI's chat completions, on a thread of the test, answering as the test says."""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What goes over the wire: a status, a body as it stands, and how slowly."""

    status: int = 200
    body: bytes = b""
    seconds_before: float = 0.0
    seconds_a_byte: float = 0.0
    headers: tuple[tuple[str, str], ...] = ()
    promised_bytes: int | None = None


def completion(text: str | None) -> Reply:
    """A chat completion that says `text`."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return Reply(body=json.dumps(whole, ensure_ascii=False).encode())


class ChatServer:
    """Calls `answer(request)` for each request, which gives a text or a `Reply`. A context manager.

    Attributes:
        requests: what came, in order; `keys` their Authorization headers.
        most_at_once: the largest number of requests that were under way together.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], str | Reply]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                with outer._lock:
                    outer._at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer._at_once)
                try:
                    request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                    with outer._lock:
                        outer.requests.append(request)
                        outer.keys.append(self.headers["Authorization"])
                    reply = answer(request)
                    reply = completion(reply) if isinstance(reply, str) else reply
                    time.sleep(reply.seconds_before)
                finally:  # before it is sent: the client may ask again as soon as it has it
                    with outer._lock:
                        outer._at_once -= 1
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client has given up
                    self.send(reply)

            def send(self, reply: Reply) -> None:
                self.send_response(reply.status)
                for name, value in reply.headers:
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(reply.promised_bytes or len(reply.body)))
                self.end_headers()
                if not reply.seconds_a_byte:
                    self.wfile.write(reply.body)
                    return
                for byte in reply.body:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(reply.seconds_a_byte)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "ChatServer":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

"""A real HTTP server with range support over a folder, which misbehaves as it is told: for the tests of data/remote."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Fault = int | str | None
"""An HTTP status; "cut" (closes half-way), "short" (half of it, as if that were all), "flip" (one bit), "whole"
(ignores the range), "stall" (never answers); None serves the file."""


class RangeServer(ThreadingHTTPServer):
    """Serves `folder`. `fault(name, earlier)` decides what happens to a request for the file `name`, of which `earlier`
    requests have been made; `requests` has the name and range of each."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.requests: list[tuple[str, tuple[int, int] | None]] = []
        self.fault: Callable[[str, int], Fault] = lambda name, earlier: None
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def ranges(self, suffix: str) -> list[tuple[int, int] | None]:
        return [wanted for name, wanted in self.requests if name.endswith(suffix)]

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: RangeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        wanted = (int(match[1]), int(match[2]) + 1) if match else None
        with self.server.lock:
            earlier = sum(known == name for known, _ in self.server.requests)
            self.server.requests.append((name, wanted))
        fault = self.server.fault(name, earlier)
        if fault == "stall":
            self.server.closing.wait()
            return
        path = self.server.folder / name
        if isinstance(fault, int) or not path.is_file():
            self.answer(fault if isinstance(fault, int) else 404, b"")
            return
        ranged = wanted is not None and fault != "whole"
        if wanted is not None and ranged and wanted[0] >= path.stat().st_size:
            self.answer(416, b"")
            return
        with path.open("rb") as file:
            if wanted is not None and ranged:
                file.seek(wanted[0])
                content = file.read(wanted[1] - wanted[0])
            else:
                content = file.read()
        if fault == "flip":
            content = content[:-1] + bytes([content[-1] ^ 4])
        if fault == "short":
            content = content[: len(content) // 2]
        self.answer(206 if ranged else 200, content, cut=fault == "cut")

    def answer(self, status: int, content: bytes, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True


@contextmanager
def range_server(folder: Path) -> Iterator[RangeServer]:
    with RangeServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()

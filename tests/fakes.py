"""Real implementations of a store that misbehave on request."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Fault = str
"""`corrupt` flips a byte of the body, `truncate` ends within it, `slow_down` answers 503, `hang` never answers."""


@contextmanager
def faulty_store(upstream_url: str, fault_of: Callable[[str, str], Fault | None]) -> Iterator[str]:
    """Run a reverse proxy in front of a real S3 server that breaks selected answers; signatures stay valid.

    Args:
        fault_of: takes the method and path of a request, returns the fault of its answer, or None.

    Yields:
        The proxy's endpoint URL.
    """
    upstream = urlsplit(upstream_url)
    closing = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            fault = fault_of(self.command, self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if fault == "hang":
                closing.wait()
                self.close_connection = True
                return
            if fault == "slow_down":
                self._answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
                return
            connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=30)
            try:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body)
                response = connection.getresponse()
                answer, headers = response.read(), dict(response.getheaders())
            finally:
                connection.close()
            if fault == "corrupt":
                answer = answer[:-1] + bytes([answer[-1] ^ 1])
            self._answer(response.status, headers, answer, broken_off=fault == "truncate")

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _forward

        def _answer(self, status: int, headers: dict[str, str], body: bytes, *, broken_off: bool = False) -> None:
            self.send_response(status)
            length = headers.get("Content-Length", str(len(body)))
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            if status not in (204, 304):
                self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if broken_off else body)
            self.close_connection = self.close_connection or broken_off

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing, so that the test's output stays clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
        thread.join()

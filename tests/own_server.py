"""Servers on 127.0.0.1 with one answer for everybody, which remember what they were sent."""

import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from chat_server import Served


class OneAnswer(Served):
    """A running server. `heads`: the path, headers (in lower case) and body of each request so far."""

    heads: list[dict[str, str]]


@contextmanager
def answering(status: int, body: bytes, headers: Mapping[str, str] | None = None, tls: ssl.SSLContext | None = None) -> Iterator[OneAnswer]:
    """A server, in a thread, that sends every request the same answer."""
    heads: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body_sent = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            heads.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}, "body": body_sent})
            with suppress(OSError):  # the client may hang up
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        running = OneAnswer(f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}/v1")
        object.__setattr__(running, "heads", heads)
        yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

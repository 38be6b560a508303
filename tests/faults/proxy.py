"""Two proxies that disturb connections: one carries bytes, the other understands bulk requests."""

import http.client
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close() sends a reset


class TcpProxy:
    """Carries bytes between clients and a server.

    Attributes:
        latency_s: the delay of each piece of data.
        open: whether new connections are carried; if not, they are reset at once.
        flowing: while it is cleared, connections stay open but carry nothing.
    """

    def __init__(self, target: tuple[str, int], port: int = 0) -> None:
        self.target = target
        self.latency_s = 0.0
        self.open = True
        self.flowing = threading.Event()
        self.flowing.set()
        self.connections: set[socket.socket] = set()
        self.listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> None:
        """Reset every connection."""
        for connection in list(self.connections):
            self._close(connection)

    def shut(self) -> None:
        """Reset every connection, and each new one, until `open` is set again."""
        self.open = False
        self.reset()

    def close(self) -> None:
        """Stop the proxy."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.flowing.set()
        self.reset()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if not self.open:
                self._close(client)
                continue
            try:
                server = socket.create_connection(self.target, timeout=10)
            except OSError:
                self._close(client)
                continue
            server.settimeout(None)
            self.connections |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                if self.latency_s:
                    time.sleep(self.latency_s)
                self.flowing.wait()
                sink.sendall(data)
        except OSError:
            pass
        self._close(source)
        self._close(sink)

    def _close(self, connection: socket.socket) -> None:
        self.connections.discard(connection)
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        connection.close()


class Answer(NamedTuple):
    """An HTTP answer; with cut_at, the connection breaks after this many bytes of the body."""

    status: int
    body: bytes
    cut_at: int | None = None
    content_type: str = "application/json"


Forward = Callable[[bytes], Answer]  # sends a body to the server, returns what it answers
Fault = Callable[[bytes, Forward], Answer]  # what to do with a bulk's body


class BulkProxy:
    """Stands in front of Elasticsearch and lets `fault`, if it is set, deal with each bulk request.

    Attributes:
        fault: what to do with a bulk request.
        hits: the number of bulk requests that a fault has dealt with.
    """

    def __init__(self, target: str) -> None:
        proxy = self
        self.fault: Fault | None = None
        self.hits = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                is_bulk = self.path.partition("?")[0].endswith("/_bulk")
                fault = proxy.fault if is_bulk else None
                proxy.hits += fault is not None
                try:
                    self._answer(fault(body, self._forward) if fault else self._forward(body))
                except OSError:  # the client or the server has closed its connection
                    self.close_connection = True

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

            def _forward(self, body: bytes) -> Answer:
                connection = http.client.HTTPConnection(target, timeout=90)
                names = ("Content-Type", "Accept", "Authorization")
                headers = {name: self.headers[name] for name in names if self.headers[name]}
                try:
                    connection.request(self.command, self.path, body or None, headers)
                    answer = connection.getresponse()
                    kind = answer.getheader("Content-Type") or "application/json"
                    return Answer(answer.status, answer.read(), content_type=kind)
                except http.client.HTTPException as exc:
                    raise ConnectionError from exc
                finally:
                    connection.close()

            def _answer(self, answer: Answer) -> None:
                self.send_response(answer.status)
                self.send_header("X-Elastic-Product", "Elasticsearch")
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body[: answer.cut_at])
                if answer.cut_at is not None:
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """Say nothing, because clients break connections on purpose here."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop the proxy."""
        self.server.shutdown()
        self.server.server_close()


# Faults of a bulk request.


def refuse(status: int) -> Fault:
    """Answer with a status; the server does not get the request."""
    error = {"error": {"type": "test_exception", "reason": "on purpose"}, "status": status}
    return lambda body, forward: Answer(status, json.dumps(error).encode())


def refuse_items(status: int, share: float, rng: random.Random) -> Fault:
    """Refuse a random share of the documents and index the others, as an overloaded shard does."""

    def fault(body: bytes, forward: Forward) -> Answer:
        lines = body.splitlines(keepends=True)
        pairs = list(zip(lines[::2], lines[1::2], strict=True))
        refused = [rng.random() < share for _ in pairs]
        kept = b"".join(
            a + b for (a, b), is_refused in zip(pairs, refused, strict=True) if not is_refused
        )
        given = iter(json.loads(forward(kept).body)["items"] if kept else [])
        error = {"status": status, "error": {"type": "es_rejected_execution_exception"}}
        items = [{"create": error} if is_refused else next(given) for is_refused in refused]
        return Answer(200, json.dumps({"items": items}).encode())

    return fault


def too_large(limit: int) -> Fault:
    """Refuse a body above a limit, in bytes, with 413."""
    refused = refuse(413)
    return lambda body, forward: refused(body, forward) if len(body) > limit else forward(body)


def cut_answer(rng: random.Random) -> Fault:
    """Forward the request, then cut the answer at a random place."""

    def fault(body: bytes, forward: Forward) -> Answer:
        answer = forward(body)
        return answer._replace(cut_at=rng.randrange(len(answer.body)))

    return fault


def forget_items(body: bytes, forward: Forward) -> Answer:
    """Forward the request, then leave the last document out of the answer."""
    answer = json.loads(forward(body).body)
    return Answer(200, json.dumps({"items": answer["items"][:-1]}).encode())


def answer_with_html(body: bytes, forward: Forward) -> Answer:
    """Forward the request, then answer with an HTML page, as some proxies do."""
    forward(body)
    return Answer(200, b"<html>welcome</html>", content_type="text/html")


def delay(seconds: float, before: bool = False) -> Fault:
    """Wait after the request is forwarded, or before."""

    def fault(body: bytes, forward: Forward) -> Answer:
        if before:
            time.sleep(seconds)
        answer = forward(body)
        if not before:
            time.sleep(seconds)
        return answer

    return fault


def break_connection(body: bytes, forward: Forward) -> Answer:
    """Forward the request, then close the connection without an answer."""
    forward(body)
    raise ConnectionError

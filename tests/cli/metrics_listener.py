"""An HTTP server in a thread that serves prepared metrics, one text per scrape."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer


@contextmanager
def metrics_listener(
    texts: Sequence[str], status: int = 200, on_last: Callable[[], None] | None = None
) -> Iterator[str]:
    """Serve the texts in turn, the last one again and again; return the address."""
    remaining = list(texts)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_last = len(remaining) == 1
            text = remaining[0] if is_last else remaining.pop(0)
            self.send_response(status if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(text.encode())
            if is_last and on_last:
                on_last()

        def log_message(self, *_: object) -> None:
            """Write nothing to standard error."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()

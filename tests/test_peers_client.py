"""The load client of the comparisons with peers checks what it receives."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.load.peers.client import Plan, drive


class Renewals(BaseHTTPRequestHandler):
    """Answers a token with the next one: a number, one higher."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        token = int(json.loads(self.rfile.read(length))["token"])
        body = json.dumps({"next": str(token + 1)}).encode()
        self.send_response(200 if token < 100 else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write no log."""


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Renewals) as server:
        Thread(target=server.serve_forever).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def plan(address: str, tokens: list[str]) -> Plan:
    body = '{"token": "$token"}'
    return Plan(address, "/refresh", body, r'"next": "(\d+)"', tokens, calls=10)


def test_client_sends_the_token_of_the_answer_before(address: str) -> None:
    """Each connection renews its own token: ten calls add ten in all."""
    result = drive(plan(address, ["10", "20"]))
    assert sum(map(int, result.tokens)) == 10 + 20 + 10
    assert result.smallest == result.largest == len('{"next": "11"}')


def test_client_refuses_another_status(address: str) -> None:
    """A load that the server refuses is no result."""
    with pytest.raises(RuntimeError, match="401"):
        drive(plan(address, ["95"]))

"""Request headers, forwarding metadata and CORS."""

import json
from typing import Any

import pytest

from edge.app import create_app
from edge.config import EdgeSettings
from edge.port import Reply
from tests.edge.service import (
    FakePort,
    compiled,
    raw,
)
from tests.edge.shop import SHOP, item, shop


def metadata(port: FakePort) -> dict[str, Any]:
    return dict(port.metadata)


async def test_only_a_trusted_proxy_names_the_client() -> None:
    """R7: nor does anybody else choose the request id, or metadata of the edge."""
    headers = [
        (b"x-forwarded-for", b"6.6.6.6"),
        (b"x-request-id", b"chosen-by-client"),
        (b"grpc-metadata-x-forwarded-for", b"7.7.7.7"),
        (b"grpc-metadata-authorization", b"Bearer evil"),
        (b"grpc-metadata-x-request-id", b"evil-request-id"),
        (b"grpc-metadata-grpc-timeout", b"1S"),
        (b"authorization", b"Bearer t"),
        (b"traceparent", b"00-1-2-01"),
        (b"user-agent", b"test/1"),
        (b"grpc-metadata-raw-bin", b"AAE"),
    ]
    port = FakePort(item(id=1))
    settings = EdgeSettings(trusted_proxies=("10.0.0.0/8",))
    app = create_app(compiled(SHOP), port, settings)
    _, response, _ = await raw(app, "GET", "/items/1", headers, peer="9.9.9.9")
    passed = metadata(port)
    assert passed["x-forwarded-for"] == "9.9.9.9"
    assert len(passed["x-request-id"]) == 32
    assert (b"x-request-id", passed["x-request-id"].encode()) in response
    assert passed["authorization"] == "Bearer t"
    assert passed["traceparent"] == "00-1-2-01"
    assert passed["grpcgateway-user-agent"] == "test/1"
    assert passed["raw-bin"] == b"\x00\x01"
    assert "grpc-timeout" not in passed
    assert len(passed) == len(port.metadata)
    twice = [(b"authorization", b"Bearer t"), (b"authorization", b"Bearer \xff")]
    await raw(app, "GET", "/items/1", twice)
    assert [v for k, v in port.metadata if k == "authorization"] == ["Bearer t", ""]
    await raw(app, "GET", "/items/1", headers, peer="10.1.2.3")
    assert metadata(port)["x-forwarded-for"] == "6.6.6.6, 10.1.2.3"
    assert metadata(port)["x-request-id"] == "chosen-by-client"


async def test_forwarded_lines_reach_the_service_in_order() -> None:
    """R7: a byte that is not text does not hide a hop that a proxy added."""
    port = FakePort(item(id=1))
    settings = EdgeSettings(trusted_proxies=("10.0.0.0/8",))
    app = create_app(compiled(SHOP), port, settings)
    lines = [(b"x-forwarded-for", b"\xff"), (b"x-forwarded-for", b"6.6.6.6:41000")]
    for peer in ("10.1.2.3", "::ffff:10.1.2.3"):
        await raw(app, "GET", "/items/1", lines, peer=peer)
        assert metadata(port)["x-forwarded-for"] == f"?, 6.6.6.6:41000, {peer}"
    long = [(b"x-forwarded-for", b"6.6.6.6," * 1_100)]
    refused, _, _ = await raw(app, "GET", "/items/1", long, peer="10.1.2.3")
    assert refused == 431


async def test_call_is_marked_as_forwarded_without_a_known_peer() -> None:
    """R41: the service must not take it for a call of the edge itself."""
    port = FakePort(item(id=1))
    await raw(create_app(compiled(SHOP), port), "GET", "/items/1", [], peer="")
    assert metadata(port)["x-forwarded-for"] == "unknown"


async def test_reply_metadata_is_sent_by_allow_list() -> None:
    """Other metadata, and values that are no header, are left out."""
    reply = Reply(b"", headers=(("x-cost", "3"), ("x-secret", "s"), ("x-cut", "a\nb")))
    settings = EdgeSettings(response_headers=frozenset(("x-cost", "x-cut")))
    answer = await shop(FakePort(reply), settings).get("/items/1")
    assert answer.headers["x-cost"] == "3"
    assert "x-secret" not in answer.headers
    assert "x-cut" not in answer.headers


async def test_only_listed_origins_may_read_responses() -> None:
    """R25: exact origins, never `*`."""
    settings = EdgeSettings(cors_origins=("https://app.example",))
    http = shop(FakePort(item(id=1)), settings)
    good, bad = {"origin": "https://app.example"}, {"origin": "https://evil.example"}
    answer = await http.get("/items/1", headers=good)
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert "Origin" in answer.headers["vary"]
    answer = await http.get("/items/1", headers=bad)
    assert "access-control-allow-origin" not in answer.headers
    ask = {
        "access-control-request-method": "PATCH",
        "access-control-request-headers": "authorization, if-match",
    }
    answer = await http.options("/items/1", headers={**good, **ask})
    assert answer.status_code == 204
    assert "PATCH" in answer.headers["access-control-allow-methods"]
    assert "if-match" in answer.headers["access-control-allow-headers"]
    answer = await http.options("/items/1", headers={**bad, **ask})
    assert "access-control-allow-methods" not in answer.headers


@pytest.mark.parametrize(
    "host",
    [
        b"a/?b#",
        b"x@y",
        b"[::1",
        b"a b",
        b"a\\b",
        b"[::g]",
        b"a:b",
        b"[1.2.3.4]",
        b"\xe9",
    ],
)
@pytest.mark.parametrize("path", ["/items/1", "/livez"])
async def test_invalid_host_is_400(host: bytes, path: str) -> None:
    """RFC 9110 7.2: other parties read such a request differently."""
    port = FakePort(item(id=1))
    app = create_app(compiled(SHOP), port)
    code, _, body = await raw(app, "GET", path, [(b"host", host)])
    assert (code, port.calls) == (400, [])
    assert json.loads(body)["errorCode"] == "MALFORMED_REQUEST"


@pytest.mark.parametrize(
    "host",
    [b"a", b"a.example:80", b"[::1]:8080", b"127.0.0.1:1", b"a_b", b"%C3%A9", b"a:"],
)
async def test_valid_host_is_accepted(host: bytes) -> None:
    """RFC 3986 3.2.2: a name or an address, with an optional port."""
    app = create_app(compiled(SHOP), FakePort(item(id=1)))
    code, _, _ = await raw(app, "GET", "/items/1", [(b"host", host)])
    assert code == 200


async def test_white_space_around_a_value_is_ignored() -> None:
    """RFC 9110 5.5: optional white space is no part of a field value."""
    port = FakePort(item(id=1))
    app = create_app(compiled(SHOP), port)
    headers = [
        (b"authorization", b" Bearer t \t"),
        (b"grpc-metadata-x", b" 1 "),
        (b"grpc-timeout", b" 5S "),
        (b"accept", b" application/json "),
        (b"if-none-match", b" * "),
        (b"host", b" x "),
    ]
    code, _, _ = await raw(app, "GET", "/items/1", headers)
    assert code == 304
    assert metadata(port)["authorization"] == "Bearer t"
    assert metadata(port)["x"] == "1"
    assert port.timeout == 5


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        (b"grpc-timeout", "\u0665S", 400),
        (b"grpc-timeout", "+5S", 400),
        (b"grpc-timeout", "5_0S", 400),
        (b"content-length", "٢", 400),
        (b"content-length", "²", 400),
        (b"content-length", "+2", 400),
        (b"content-length", "1_0", 400),
        (b"accept", "application/json;q=1_0", 406),
        (b"accept", "application/json;q=inf", 406),
        (b"accept", "application/json;q=1e-1", 406),
        (b"accept", "application/json;q=\u0660.5", 406),
        (b"accept", "application/json;q=0.5", 200),
        (b"accept", "application/json;q=.5", 200),
        (b"accept", "application/json; q=1.000", 200),
    ],
)
async def test_numbers_in_headers_are_ascii_digits(
    name: bytes, value: str, status: int
) -> None:
    """Python's own parsers take other digits, signs and underscores, too."""
    port = FakePort(item(id=1))
    app = create_app(compiled(SHOP), port)
    code, _, _ = await raw(app, "GET", "/items/1", [(name, value.encode())])
    assert code == status

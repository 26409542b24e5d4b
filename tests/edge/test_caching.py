"""What is built once and found again: URLs that were read, replies that were rendered.

Each request is sent twice: the second one must have the same response and message.
"""

from typing import Any

import httpx
import pytest

from edge import dispatcher
from edge.caching import BoundedCache
from edge.config import EdgeSettings
from edge.http.negotiation import PROTOBUF
from edge.port import Reply
from tests.edge.service import FakePort
from tests.edge.shop import item, shop

REQUESTS: list[dict[str, Any]] = [
    {"method": "GET", "url": "/items/1"},
    {"method": "HEAD", "url": "/items/1"},
    {"method": "GET", "url": "/items/1", "headers": {"accept": PROTOBUF}},
    {"method": "GET", "url": "/items/1", "headers": {"accept": "text/html"}},
    {"method": "GET", "url": "/items/1", "headers": {"grpc-timeout": "0m"}},
    {"method": "GET", "url": "/items/1", "content": b"{}"},
    {"method": "GET", "url": "/items/1?nothing=1"},
    {"method": "GET", "url": "/items/x"},
    {"method": "GET", "url": "/items?number=2"},
    {"method": "GET", "url": "/items?prefix=a"},
    {"method": "GET", "url": "/items/1", "headers": {"x-token-mode": "body"}},
    {"method": "OPTIONS", "url": "/items/1"},
    {"method": "DELETE", "url": "/items/1"},
    {"method": "GET", "url": "/nowhere"},
]


def seen(port: FakePort, response: httpx.Response) -> tuple[object, ...]:
    """Return what a caller and the port see, without what is new in each response."""
    headers = [h for h in response.headers.multi_items() if h[0] != "x-request-id"]
    body: Any = response.content
    if response.is_error and body:
        body = response.json() | {"requestId": "", "timestamp": ""}
    return response.status_code, headers, body, len(port.calls), port.request


async def test_repeated_request_means_the_same() -> None:
    """In any order of the requests before it, all of which fill the caches."""
    expected = {}
    for number, request in enumerate(REQUESTS):
        port = FakePort(item(id=1, etag="v1", name="spoon"))
        response = await shop(port).request(**request)
        expected[number] = seen(port, response)
    port = FakePort(item(id=1, etag="v1", name="spoon"))
    http = shop(port)
    for _ in range(3):
        for number, request in enumerate(REQUESTS):
            port.calls, port.request = [], b""
            assert seen(port, await http.request(**request)) == expected[number]


async def test_changed_reply_is_rendered_anew() -> None:
    """The same URL, another reply: nothing of the earlier one is sent."""
    port = FakePort(item(id=1, etag="v1", name="spoon"))
    http = shop(port)
    first = await http.get("/items/1")
    port.reply = item(id=1, etag="v2", name="fork")
    second = await http.get("/items/1")
    assert [r.json()["name"] for r in (first, second)] == ["spoon", "fork"]
    assert first.headers["etag"] != second.headers["etag"]


async def test_responses_do_not_share_their_headers() -> None:
    """Headers that one response adds do not appear in the next one."""
    port = FakePort(item(id=1, etag="v1", name="spoon"))
    settings = EdgeSettings(compress_from_bytes=1)
    http = shop(port, settings)
    sizes = [len((await http.get("/items/1")).headers) for _ in range(4)]
    assert len(set(sizes)) == 1


async def test_long_urls_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(BoundedCache, "add", lambda _, key, __: kept.append(key[2]))
    http = shop(FakePort(Reply(b"")))
    for length in (1, dispatcher._MAX_PLAN_BYTES):
        await http.get("/items", params={"prefix": "x" * length})
    assert [key for key in kept if isinstance(key, bytes)] == [b"prefix=x"]


def test_oldest_value_makes_room() -> None:
    cache = BoundedCache[int, str](2)
    for number in (1, 2, 1, 3):
        cache.add(number, str(number))
    assert [cache.get(number) for number in (1, 2, 3)] == [None, "2", "3"]

"""Server streams, disconnecting clients and deadlines."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from edge.app import create_app
from edge.config import EdgeSettings
from edge.port import CallError
from tests.edge.service import (
    FakePort,
    compiled,
)
from tests.edge.shop import SHOP, events, kind, shop


async def test_events_have_ids_to_resume_from() -> None:
    """`resume_token` is the event's id, and Last-Event-ID the request's token."""
    port = FakePort(stream=events("a", "b"))
    headers = {"accept": "text/event-stream", "last-event-id": "t-0"}
    answer = await shop(port).get("/items:watch", headers=headers)
    assert answer.text == (
        'id: t-a\ndata: {"name":"a","resumeToken":"t-a"}\n\n'
        'id: t-b\ndata: {"name":"b","resumeToken":"t-b"}\n\n'
    )
    assert kind("WatchItemsRequest").FromString(port.request).resume_token == "t-0"


async def test_idle_event_stream_sends_heartbeats() -> None:
    """Comment lines keep proxies from closing the connection."""
    port = FakePort(stream=events("a", pause=0.05))
    http = shop(port, EdgeSettings(heartbeat=0.01))
    answer = await http.get("/items:watch", headers={"accept": "text/event-stream"})
    assert answer.text.count(":\n\n") >= 1


async def test_late_stream_failure_is_an_error_frame() -> None:
    """In each format; an early failure has its real status."""
    late = FakePort(stream=events("a", fail=CallError(14, "gone")))
    last_frames: dict[str, Callable[[str], str]] = {
        "application/x-ndjson": lambda text: text.splitlines()[-1],
        "text/event-stream": lambda text: text.split("data: ")[-1],
        "application/json": lambda text: json.dumps(json.loads(text)[-1]),
    }
    for accept, last_frame in last_frames.items():
        answer = await shop(late).get("/items:watch", headers={"accept": accept})
        assert answer.status_code == 200
        assert json.loads(last_frame(answer.text))["error"] == "gone"
    early = FakePort(stream=events(fail=CallError(7, "no")))
    assert (await shop(early).get("/items:watch")).status_code == 403


async def disconnect_after(app: Any, path: str, after: int) -> None:
    """Call and disconnect after some parts of the answer."""
    sent: list[Any] = []
    enough = asyncio.Event()

    async def receive() -> Any:
        await enough.wait()
        return {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        sent.append(event)
        if len(sent) > after:
            enough.set()

    if not after:
        asyncio.get_running_loop().call_later(0.1, enough.set)
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "scheme": "http",
    }
    async with asyncio.timeout(1):
        await app(scope, receive, send)


async def test_disconnect_ends_the_call() -> None:
    """Unary and streaming; nothing is left running."""
    ended: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.append("unary")

    async def items() -> AsyncIterator[bytes]:
        try:
            yield b""
            await asyncio.sleep(30)
        finally:
            ended.append("stream")

    app = create_app(compiled(SHOP), FakePort(then=wait, stream=items))
    await disconnect_after(app, "/items/1", 0)
    await disconnect_after(app, "/items:watch", 1)
    assert ended == ["unary", "stream"]


async def test_deadline_holds_without_the_port() -> None:
    """The edge answers 504 itself where the port keeps no deadline."""

    async def wait() -> None:
        await asyncio.sleep(30)

    answer = await shop(FakePort(then=wait)).get(
        "/items/1", headers={"grpc-timeout": "10m"}
    )
    assert answer.status_code == 504


async def test_stream_deadline_holds_after_the_first_message() -> None:
    """The stream ends in an error frame, also where the port keeps no deadline."""
    port = FakePort(stream=events("a", pause=30))
    headers = {"accept": "application/x-ndjson", "grpc-timeout": "10m"}
    async with asyncio.timeout(2):
        answer = await shop(port).get("/items:watch", headers=headers)
    first, last = map(json.loads, answer.text.splitlines())
    assert (answer.status_code, first["name"]) == (200, "a")
    assert last["status"] == "DEADLINE_EXCEEDED"


async def test_head_of_a_stream_ends_after_the_first_message() -> None:
    """HEAD has the headers of GET, and does not wait for the whole stream."""
    answer = await shop(FakePort(stream=events("a", pause=30))).head("/items:watch")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_empty_stream_is_an_empty_array() -> None:
    """The body of a stream is valid JSON without a message, too."""
    answer = await shop(FakePort(stream=events())).get("/items:watch")
    assert (answer.status_code, answer.json()) == (200, [])

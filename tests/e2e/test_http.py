"""HTTP semantics of the whole service."""

import asyncio
import socket
from datetime import timedelta
from uuid import uuid4

import grpc
import httpx
import pytest

from edge.app import create_app
from edge.listener import DeadlinedProtocol
from edge.port import RemotePort
from edge.remote.batching import BatchingPort
from server.composition.listeners.serving import listening_http
from server.composition.listeners.sockets import bind_http
from server.config import Settings
from server.rpc import contract
from tests.running import RunningService, SignedInUser

POST = {"title": "Primes", "body": "An essay."}


async def new_post(service: RunningService, author: SignedInUser) -> str:
    """Return the path of a new post."""
    response = await service.http.post(
        "/api/v1/posts", json=POST, headers=author.headers
    )
    assert response.status_code == 201, response.text
    return f"/api/v1/posts/{response.json()['id']}"


async def test_etag_of_a_post_covers_its_author(shared: RunningService) -> None:
    """RFC 9110 8.8.1: the author is in the answer; If-Match compares the post alone."""
    ana = await shared.signed_in()
    path = await new_post(shared, ana)
    before = await shared.http.get(path, headers=ana.headers)
    known = ana.headers | {"if-none-match": before.headers["etag"]}
    assert (await shared.http.get(path, headers=known)).status_code == 304
    user_path = f"/api/v1/users/{ana.user.id}"
    name = f"u{uuid4().hex[:12]}"
    renamed = await shared.http.patch(
        user_path, json={"username": name}, headers=ana.headers
    )
    assert renamed.status_code == 200, renamed.text
    after = await shared.http.get(path, headers=known)
    assert (after.status_code, after.json()["author"]["username"]) == (200, name)
    match = ana.headers | {"if-match": before.headers["etag"]}
    changed = await shared.http.patch(path, json={"title": "a"}, headers=match)
    assert changed.status_code == 200, changed.text
    stale = await shared.http.patch(path, json={"title": "b"}, headers=match)
    assert stale.status_code == 412


async def test_resource_can_be_sent_back_as_it_was_read(shared: RunningService) -> None:
    """AIP-203: output-only fields are ignored, unless the caller's mask names them."""
    ana = await shared.signed_in()
    await shared.http.post(
        "/api/v1/user-profiles", json={"displayName": "Ana"}, headers=ana.headers
    )
    paths = {
        await new_post(shared, ana): "title",
        f"/api/v1/user-profiles/{ana.user.id}": "displayName",
    }
    for path, field in paths.items():
        read = await shared.http.get(path, headers=ana.headers)
        assert read.status_code == 200, read.text
        body = read.json() | {field: "New"}
        changed = await shared.http.patch(path, json=body, headers=ana.headers)
        assert changed.status_code == 200, changed.text
        assert changed.json()[field] == "New"
        assert changed.json()["createdAt"] == read.json()["createdAt"]
        body |= {"etag": ""}
        masked = f"{path}?updateMask={field},createdAt"
        refused = await shared.http.patch(masked, json=body, headers=ana.headers)
        assert refused.status_code == 400
        assert "createdAt" in refused.json()["error"]


@pytest.mark.parametrize("user_id", ["%D9%A5", "+5", "1_0", "%205", "%2e%2e", "%2E"])
async def test_user_id_in_a_path_is_ascii_digits(
    shared: RunningService, user_id: str
) -> None:
    """Neither another spelling of a number, nor a segment that proxies remove."""
    ana = await shared.signed_in()
    request = shared.http.build_request("GET", "/x", headers=ana.headers)
    request.url = request.url.copy_with(raw_path=f"/api/v1/users/{user_id}".encode())
    assert (await shared.http.send(request)).status_code == 400


@pytest.mark.parametrize("port_type", [RemotePort, BatchingPort])
async def test_unreachable_server_is_503_with_retry_after(
    port_type: type[RemotePort],
) -> None:
    """RFC 9110 15.6.4: an edge whose server is gone says when to try again."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        async with grpc.aio.insecure_channel(address) as channel:
            app = create_app(contract.descriptors(), port_type(channel))
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://edge.test"
            ) as http:
                response = await http.get("/api/v1/categories")
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0


async def test_idle_connection_is_closed_after_the_setting(
    shared: RunningService,
) -> None:
    """Longer than common proxies keep it, or they send a request into a closed one."""
    assert Settings(_env_file=None).http_keep_alive == timedelta(seconds=75)
    request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    listener = bind_http("127.0.0.1:0")
    port = listener.getsockname()[1]
    async with listening_http(
        create_app(contract.descriptors(), shared.port),
        listener,
        DeadlinedProtocol,
        timedelta(seconds=2),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        loop = asyncio.get_running_loop()
        for _ in range(2):
            writer.write(request)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(1)
        started = loop.time()
        assert await reader.read() == b""
        assert 0.5 < loop.time() - started < 5
        writer.close()

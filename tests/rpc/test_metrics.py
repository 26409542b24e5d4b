"""Metrics of calls: each call counts once, on every transport, however it ends."""

import asyncio
import random
import string
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import product
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio

from blatam.post.v1 import post_pb2
from blatam.user.v1 import user_pb2
from edge.port import CallError
from edge.remote.batching import BatchingPort
from server.composition.edge.app import remote_edge
from server.composition.edge.upstream import connected_upstream
from server.config import load
from server.domain.accounts.users import Role
from server.observability.metrics.calls import CODES
from server.observability.metrics.definitions import DEFINITIONS
from server.observability.metrics.process import EdgeMetrics
from tests.logs import captured_lines
from tests.metrics import Scrape
from tests.running import RunningService, SignedInUser, running

GET_USER = "/blatam.user.v1.UserService/GetUser"
OF_OTHER_SETTINGS = {
    "academy_database_replica_lag_seconds",
    "academy_workers",
    "academy_tls_handshakes_total",
    "academy_grpc_connections_with_calls_total",
    "academy_client_certificates_refused_total",
    "academy_tls_certificate_expiry_timestamp_seconds",
    "academy_tls_certificate_renewal_timestamp_seconds",
}
HANDLED = "grpc_server_handled_total"
STARTED = "grpc_server_started_total"
HTTP_COUNT = "http_server_request_duration_seconds_count"
CALLS = 10_000
CONCURRENT_CALLS = 50
Metadata = tuple[tuple[str, str], ...]
Outcome = tuple[str, str, str]  # transport, method, code


async def call_grpc(service: RunningService, request: bytes, metadata: Metadata) -> str:
    call: Any = service.channel.unary_unary(GET_USER)
    try:
        await call(request, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


class BatchCaller:
    """Calls GetUser over one batching stream."""

    def __init__(self, service: RunningService) -> None:
        self._port = BatchingPort(service.channel)

    async def __call__(
        self, _: RunningService, request: bytes, metadata: Metadata
    ) -> str:
        try:
            await self._port.unary(GET_USER, request, metadata=metadata, timeout=30)
        except CallError as error:
            return CODES[error.code]
        return "OK"


async def call_rest(service: RunningService, request: bytes, metadata: Metadata) -> str:
    user_id = user_pb2.GetUserRequest.FromString(request).id
    path = f"/api/v1/users/{user_id}"
    response = await service.http.get(path, headers=dict(metadata))
    codes = {200: "OK", 400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED"}
    return codes.get(response.status_code, "NOT_FOUND")


def mixed_calls(user: SignedInUser) -> list[tuple[bytes, Metadata]]:
    """Return requests: most succeed, the others fail with three different codes."""
    known, unknown, invalid = (
        user_pb2.GetUserRequest(id=number).SerializeToString()
        for number in (user.user.id, 2**40, 0)
    )
    return [
        *[(known, user.metadata)] * 17,
        (unknown, user.metadata),
        (invalid, user.metadata),
        (known, ()),
    ]


async def test_metrics_agree_with_calls_and_log_lines(
    database_url: str, redis_url: str
) -> None:
    """10,000 calls over three transports: all three counts are equal, to the call."""
    async with running(database_url, redis_url) as service:
        callers: dict[str, Callable[..., Awaitable[str]]] = {
            "grpc": call_grpc,
            "batch": BatchCaller(service),
            "rest": call_rest,
        }
        pairs = [*product(callers, mixed_calls(await service.signed_in()))]
        made: Counter[Outcome] = Counter()
        numbers = iter(range(CALLS))

        async def make_calls() -> None:
            for number in numbers:
                transport, (request, metadata) = pairs[number % len(pairs)]
                code = await callers[transport](service, request, metadata)
                made[transport, "GetUser", code] += 1

        with captured_lines(event="call", method=GET_USER) as lines:
            async with asyncio.TaskGroup() as group:
                for _ in range(CONCURRENT_CALLS):
                    group.create_task(make_calls())
        scrape = await service.scrape()
        counted = {
            (s.labels["transport"], "GetUser", s.labels["grpc_code"]): s.value
            for s in scrape.samples
            if s.name == HANDLED and s.labels["grpc_method"] == "GetUser" and s.value
        }
        assert counted == made
        assert len({code for _, _, code in made}) == 4
        codes = Counter(code for _, _, code in made.elements())
        assert Counter(line["code"] for line in lines) == codes
        sent = "grpc_server_msg_sent_total"
        for name in (STARTED, "grpc_server_msg_received_total", HANDLED):
            assert scrape.total(name, grpc_method="GetUser") == CALLS
        assert scrape.total(sent, grpc_method="GetUser") == codes["OK"]
        seconds = "grpc_server_handling_seconds_count"
        assert scrape.total(seconds, grpc_method="GetUser") == CALLS
        route = "/api/v1/users/{id}"
        rest = sum(count for (name, *_), count in made.items() if name == "rest")
        assert scrape.total(HTTP_COUNT, http_route=route) == rest


async def test_remote_edge_counts_requests_and_its_calls_are_batched(
    service: RunningService,
) -> None:
    """`academy edge` has metrics of its own; the server counts the call as `batch`."""
    user = await service.signed_in()
    before, metrics = await service.scrape(), EdgeMetrics()
    async with connected_upstream(service.address, None) as upstream:
        edge = remote_edge(upstream, load(), metrics.requests.observe)
        transport = httpx.ASGITransport(edge)
        async with httpx.AsyncClient(transport=transport, base_url="http://e") as http:
            path = f"/api/v1/users/{user.user.id}"
            assert (await http.get(path, headers=user.headers)).status_code == 200
            assert (await http.get("/livez")).status_code == 200
    labels = {"grpc_method": "GetUser", "transport": "batch", "grpc_code": "OK"}
    assert await difference(service, before, HANDLED, **labels) == 1
    requests = Scrape(await metrics.render())
    for route in ("/api/v1/users/{id}", "/livez"):
        expected = {"http_request_method": "GET", "http_response_status_code": "200"}
        assert requests.total(HTTP_COUNT, http_route=route, **expected) == 1
    assert requests.total("academy_build_info") == 1


@pytest_asyncio.fixture(scope="module")
async def service(shared: RunningService) -> RunningService:
    """Return a service that other tests use as well; counts are differences."""
    return shared


async def difference(
    service: RunningService, before: Scrape, name: str, **labels: str
) -> float:
    """Return by how much a count has increased."""
    after = await service.scrape()
    return after.total(name, **labels) - before.total(name, **labels)


async def until_equal(read: Callable[[], Awaitable[float]], expected: float) -> None:
    """Wait until a count has the value that it must have."""
    async with asyncio.timeout(10):
        while await read() != expected:  # noqa: ASYNC110 - seen from outside
            await asyncio.sleep(0.01)


def random_name(source: random.Random) -> str:
    return "".join(source.choices(string.ascii_letters, k=8))


async def test_labels_do_not_grow_with_unknown_methods_and_paths(
    database_url: str, redis_url: str
) -> None:
    """10,000 random names end in one series; R36: no input becomes a label.

    Each call has a log line, which has no input either.
    """
    with captured_lines(event="call", method="_OTHER") as lines:
        async with running(database_url, redis_url) as service:
            call = unknown_calls(service)
            await asyncio.gather(*map(call, range(8)))
            before = await service.scrape()
            for start in range(8, 10_000, 48):
                stop = min(start + 48, 10_000)
                await asyncio.gather(*map(call, range(start, stop)))
            after = await service.scrape()
    other = {"grpc_method": "_OTHER", "grpc_service": "_OTHER"}
    for transport in ("grpc", "batch"):
        labels = {**other, "transport": transport}
        assert after.total(STARTED, **labels) == 2_500
        unimplemented = {**labels, "grpc_code": "UNIMPLEMENTED"}
        assert after.total(HANDLED, **unimplemented) == 2_500
    assert [line["code"] for line in lines] == ["UNIMPLEMENTED"] * 5_000
    assert after.total(HTTP_COUNT, http_route="_OTHER") == 5_000
    assert after.total(HTTP_COUNT, http_request_method="_OTHER") == 2_500
    assert after.series - before.series <= late_series(after)


def unknown_calls(service: RunningService) -> Callable[[int], Awaitable[None]]:
    """Return what calls a random name, over a transport chosen by the number."""
    source, batching = random.Random(1), BatchingPort(service.channel)

    async def call_unknown(number: int) -> None:
        name = random_name(source)
        method = f"/{name}.{name}/{name}"
        if number % 4 == 0:
            call: Any = service.channel.unary_unary(method)
            with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
                await call(b"")
        elif number % 4 == 1:
            with pytest.raises(CallError):
                await batching.unary(method, b"", metadata=(), timeout=30)
        elif number % 4 == 2:
            assert (await service.http.get(f"/{name}")).status_code == 404
        else:
            response = await service.http.request(name, "/livez")
            assert response.status_code == 405

    return call_unknown


def late_series(scrape: Scrape) -> set[Any]:
    """Return the series that appear when Postgres has answered for the first time."""
    return {s for s in scrape.series if s[0].startswith("academy_outbox_")}


@pytest.mark.parametrize("transport", ["grpc", "rest", "batch"])
async def test_call_cancelled_by_the_client_counts_once(
    service: RunningService, transport: str
) -> None:
    """A log-in, which waits for a thread that hashes passwords."""
    await service.sign_up(name := f"cancelled{transport}")
    before = await service.scrape()
    labels = {"grpc_method": "Login", "transport": transport}
    body = {"identifier": name, "password": "Blue7horse"}
    request = b"\x0a" + bytes([len(name)]) + name.encode() + b"\x12\x0aBlue7horse"
    login = "/blatam.auth.v1.AuthService/Login"
    unary: Any = service.channel.unary_unary(login)
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "grpc": lambda: unary(request),
        "batch": lambda: BatchingPort(service.channel).unary(
            login, request, metadata=(), timeout=30
        ),
        "rest": lambda: service.http.post("/api/v1/auth/login", json=body),
    }
    task = asyncio.ensure_future(calls[transport]())
    await until_equal(lambda: difference(service, before, STARTED, **labels), 1)
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task
    await until_equal(lambda: difference(service, before, HANDLED, **labels), 1)
    cancelled = {**labels, "grpc_code": "CANCELLED"}
    assert await difference(service, before, HANDLED, **cancelled) == 1


@pytest.mark.parametrize("transport", ["grpc", "rest"])
async def test_stream_that_the_client_leaves_counts_once(
    service: RunningService, transport: str
) -> None:
    """Its messages count one by one, and it is a subscriber until it ends."""
    admin = (await service.signed_in(Role.ADMIN)).metadata
    before = await service.scrape()
    labels = {"grpc_method": "WatchRevocations", "transport": transport}
    open_streams = "academy_stream_subscribers"
    method = "/blatam.auth.v1.AuthService/WatchRevocations"
    port: Any = service.port
    watch: Any = service.channel.unary_stream(method)
    if transport == "grpc":
        stream = watch(b"", metadata=admin)
        messages = aiter(stream)
    else:
        stream = port.server_stream(method, b"", metadata=admin, timeout=None)
        messages = aiter(stream)
    await anext(messages)
    sent = "grpc_server_msg_sent_total"
    assert await difference(service, before, sent, **labels) >= 1
    method_label = {"grpc_method": "WatchRevocations"}
    assert await difference(service, before, open_streams, **method_label) == 1
    assert await difference(service, before, HANDLED, **labels) == 0
    await (messages.aclose() if transport == "rest" else asyncio.sleep(0))
    if transport == "grpc":
        stream.cancel()
    await until_equal(lambda: difference(service, before, HANDLED, **labels), 1)
    cancelled = {**labels, "grpc_code": "CANCELLED"}
    assert await difference(service, before, HANDLED, **cancelled) == 1
    assert await difference(service, before, open_streams, **method_label) == 0


async def test_stream_counts_each_message(service: RunningService) -> None:
    """A stream that ends by itself counts as OK."""
    user = await service.signed_in(Role.ADMIN)
    before = await service.scrape()
    request = post_pb2.ExportPostsRequest()
    received = [
        m async for m in service.posts.ExportPosts(request, metadata=user.metadata)
    ]
    labels = {"grpc_method": "ExportPosts", "grpc_type": "server_stream"}
    sent = "grpc_server_msg_sent_total"
    assert await difference(service, before, sent, **labels) == len(received)
    assert await difference(service, before, HANDLED, grpc_code="OK", **labels) == 1


async def test_refused_calls_count_by_method(limited: RunningService) -> None:
    """A call that a rate limit refuses is RESOURCE_EXHAUSTED, and counts apart."""
    for _ in range(40):
        with suppress(grpc.aio.AioRpcError):
            await limited.log_in("no-such-user")
    scrape = await limited.scrape()
    refused = scrape.total(HANDLED, grpc_code="RESOURCE_EXHAUSTED")
    assert refused > 0
    assert scrape.total("academy_rate_limited_total", grpc_method="Login") == refused


async def test_scrape_has_every_metric(service: RunningService) -> None:
    """The names and labels are those of the definitions."""
    admin = await service.signed_in(Role.ADMIN)
    request = user_pb2.ExportUsersRequest()
    await service.users.ExportUsers(request, metadata=admin.metadata).read()

    async def missing() -> float:
        scrape = await service.scrape()
        names = {family_name(sample.name) for sample in scrape.samples}
        return len(set(DEFINITIONS) - OF_OTHER_SETTINGS - names)

    await until_equal(missing, 0)
    scrape = await service.scrape()
    for sample in scrape.samples:
        definition = DEFINITIONS[family_name(sample.name)]
        assert set(sample.labels) - {"le"} == set(definition.labels)


def family_name(sample: str) -> str:
    """Return the name of the metric that a sample belongs to."""
    for suffix in ("_bucket", "_sum", "_count"):
        if sample.removesuffix(suffix) in DEFINITIONS:
            return sample.removesuffix(suffix)
    return sample

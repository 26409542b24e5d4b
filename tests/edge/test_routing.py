"""Paths, methods, and annotations that are refused at start."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2

from edge.app import create_app
from edge.config import EdgeSettings, TokenCookie
from edge.port import CallError
from edge.routing.bindings import BindingError
from tests.edge.service import (
    FakePort,
    as_json,
    client,
    compiled,
    edge,
    raw,
    routes,
)
from tests.edge.shop import SHOP, item, shop, violations


async def test_head_options_and_unknown_methods() -> None:
    """RFC 9110 9.3: HEAD is GET without a body, OPTIONS lists, others are 405."""
    http = shop(FakePort(item(id=1)))
    head, get = await http.head("/items/1"), await http.get("/items/1")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]
    assert head.headers["etag"] == get.headers["etag"]
    options = await http.options("/items/1")
    assert options.status_code == 204
    assert options.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, PATCH"
    wrong = await http.put("/items/1")
    assert wrong.status_code == 405
    assert wrong.json()["errorCode"] == "METHOD_NOT_ALLOWED"
    nowhere = await http.get("/nowhere")
    assert nowhere.status_code == 404
    assert nowhere.json()["errorCode"] == "PATH_NOT_FOUND"
    served = shop(FakePort(CallError(12, "not yet")))
    assert (await served.get("/items/1")).status_code == 501


async def test_trailing_slash_is_served_without_redirect_if_enabled() -> None:
    """Without `serve_trailing_slash` it is another path, and not found."""
    settings = EdgeSettings(serve_trailing_slash=True)
    answer = await shop(FakePort(item(id=1)), settings).get("/items/1/")
    assert answer.status_code == 200
    assert (await shop(FakePort(item(id=1))).get("/items/1/")).status_code == 404


INVALID_RULES: dict[str, dict[str, Any]] = {
    "unknown path field": {"get": "/x/{nope}"},
    "list in the path": {"get": "/x/{string_list}"},
    "message in the path": {"get": "/x/{nested_message_field}"},
    "through a list": {"get": "/x/{recursive_list.string_field}"},
    "one field twice": {"get": "/x/{string_field}/{string_field}"},
    "two of a oneof": {"get": "/x/{oneof_string}/{oneof_bool}"},
    "unknown body": {"post": "/x", "body": "nope"},
    "nested body": {"post": "/x", "body": "recursive_field.string_field"},
    "unknown response body": {"get": "/x", "response_body": "nope"},
    "path and body": {"post": "/x/{string_field}", "body": "string_field"},
    "no path": {"body": "*"},
    "nested bindings": {
        "get": "/x",
        "additional_bindings": [{"get": "/y", "additional_bindings": [{"get": "/z"}]}],
    },
}


@pytest.mark.parametrize("case", INVALID_RULES)
def test_invalid_annotation_is_refused_at_start(case: str) -> None:
    """The error names the method."""
    with pytest.raises(BindingError, match=r"t\.S\.M0"):
        create_app(routes([INVALID_RULES[case]]), FakePort())


def test_duplicate_route_is_refused_at_start() -> None:
    """The error names both methods."""
    rules = [{"get": "/x/{string_field}"}, {"get": "/x/{bytes_field=*}"}]
    with pytest.raises(BindingError, match=r"t\.S\.M1.*M0"):
        create_app(routes(rules), FakePort())


async def test_custom_method_and_any_method() -> None:
    """A custom kind is its own method; `*` serves those without a binding."""
    port, http = edge(
        [
            {"custom": {"kind": "FETCH", "path": "/x"}},
            {"custom": {"kind": "*", "path": "/x"}},
        ]
    )
    await http.request("FETCH", "/x")
    await http.request("PUT", "/x")
    assert port.calls == ["/t.S/M0", "/t.S/M1"]


UNKNOWN_METHOD = "/shop.v1.Shop/Unknown"


@pytest.mark.parametrize(
    "settings",
    [
        EdgeSettings(public_max_age={UNKNOWN_METHOD: 1}),
        EdgeSettings(rate_limits={UNKNOWN_METHOD: ("1 a minute",)}),
        EdgeSettings(public_methods=frozenset((UNKNOWN_METHOD,))),
        EdgeSettings(extra_bindings={UNKNOWN_METHOD: "GET /x"}),
        EdgeSettings(
            cookies=(TokenCookie(name="c", cleared_by=frozenset((UNKNOWN_METHOD,))),)
        ),
        EdgeSettings(
            cookies=(TokenCookie(name="c", reply_fields={UNKNOWN_METHOD: "x"}),)
        ),
    ],
)
def test_setting_for_an_unknown_method_is_refused(
    settings: EdgeSettings,
) -> None:
    """The error names the method: a typing error must not disable a rule."""
    with pytest.raises(BindingError, match=UNKNOWN_METHOD):
        create_app(compiled(SHOP), FakePort(), settings)


async def test_extra_binding_serves_a_method_without_annotation() -> None:
    """grpc.health.v1.Health/Watch has no annotation, and is a stream."""
    files = descriptor_pb2.FileDescriptorSet()
    health_pb2.DESCRIPTOR.CopyToProto(files.file.add())
    serving = health_pb2.HealthCheckResponse(status=1).SerializeToString()

    async def items() -> AsyncIterator[bytes]:
        yield serving

    extra = {"/grpc.health.v1.Health/Watch": "GET /health:watch"}
    settings = EdgeSettings(extra_bindings=extra)
    port = FakePort(stream=items)
    http = client(create_app(files.SerializeToString(), port, settings))
    accept = {"accept": "application/x-ndjson"}
    answer = await http.get("/health:watch?service=x", headers=accept)
    assert answer.text == '{"status":"SERVING"}\n'
    sent = health_pb2.HealthCheckRequest.FromString(port.request)
    assert sent.service == "x"


@pytest.mark.parametrize(
    "path",
    [
        *("/items/.", "/items/..", "/items/%2e", "/items/%2E%2e", "/items/.%2E"),
        *("/items/../items/1", "/./items/1", "/..", "/items/1/.", "/%2e%2e/items/1"),
    ],
)
async def test_dot_segment_is_400(path: str) -> None:
    """RFC 3986 5.2.4: proxies and clients remove them and read another path."""
    port = FakePort(item(id=1))
    settings = EdgeSettings(serve_trailing_slash=True)
    app = create_app(compiled(SHOP), port, settings)
    code, _, body = await raw(app, "GET", path)
    assert (code, port.calls) == (400, [])
    assert json.loads(body)["errorCode"] == "MALFORMED_REQUEST"


async def test_dots_within_a_segment_are_a_value() -> None:
    """Only a segment that is one or two dots has a meaning of its own."""
    port, http = edge([{"get": "/x/{string_field}"}])
    for value in ("...", ".a", "a..", "a.b"):
        assert (await http.get(f"/x/{value}")).status_code == 200
        assert as_json(port.message) == {"stringField": value}


@pytest.mark.parametrize(
    "text",
    [
        *("\u0665", "%D9%A5", "+5", "%2B5", "1_0", "%205", "5%20", "5.0", "0x5"),
        *("05", "005", "00", "-0", "-05", "5e0"),
    ],
)
async def test_integers_in_paths_and_queries_have_one_spelling(text: str) -> None:
    """Decimal digits without leading zeros, so that a resource has one URL."""
    port = FakePort(item(id=1))
    http = shop(port)
    answer = await http.get(f"/items/{text}")
    assert (answer.status_code, violations(answer)) == (400, ["id"])
    answer = await http.get(f"/items?number={text}")
    assert (answer.status_code, violations(answer)) == (400, ["number"])
    assert port.calls == []

"""HTTP manners, streams and errors of the edge, on a small fixture service."""

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import brotli  # type: ignore[import-untyped]  # ships no types
import pytest
import zstandard
from google.protobuf import descriptor_pb2, duration_pb2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2

from edge.app import create_app
from edge.bindings import BindingError
from edge.config import EdgeSettings, TokenCookie
from edge.port import CallError, Reply
from tests.edge.service import (
    Port,
    client,
    compiled,
    edge,
    message_class,
    raw,
    routes,
    status,
)

SHOP = """
syntax = "proto3";
package shop.v1;
import "google/api/annotations.proto";
import "google/protobuf/empty.proto";
import "google/protobuf/field_mask.proto";

message Item {
  int64 id = 1;
  string name = 2;
  string etag = 3;
  Size size = 4;
}
message Size { int32 wide = 1; float tall = 2; }
message GetItemRequest { int64 id = 1; }
message GetItemResponse { Item item = 1; }
message CreateItemRequest { string name = 1; string request_id = 2; }
message CreateItemResponse { Item item = 1; }
message UpdateItemRequest {
  Item item = 1;
  google.protobuf.FieldMask update_mask = 2;
}
message UpdateItemResponse { Item item = 1; }
message DeleteItemRequest { int64 id = 1; string etag = 2; }
message DeleteItemResponse {}
message ListItemsRequest {
  string prefix = 1;
  oneof page { int32 number = 2; string token = 3; }
}
message ListItemsResponse { repeated Item items = 1; string token = 2; }
message WatchItemsRequest { string resume_token = 1; }
message WatchItemsResponse { string name = 1; string resume_token = 2; }
message LoginRequest { string name = 1; string password = 2; }
message Tokens { string access = 1; string refresh = 2; int32 lives = 3; }
message LoginResponse { Tokens tokens = 1; }
message RefreshRequest { string refresh = 1; }
message RefreshResponse { Tokens tokens = 1; }
message LogoutRequest {}
message LogoutResponse {}

// Sells things.
service Shop {
  // Reads an item.
  rpc GetItem(GetItemRequest) returns (GetItemResponse) {
    option (google.api.http) = {get: "/items/{id}" response_body: "item"};
  }
  rpc CreateItem(CreateItemRequest) returns (CreateItemResponse) {
    option (google.api.http) = {post: "/items" body: "*" response_body: "item"};
  }
  rpc UpdateItem(UpdateItemRequest) returns (UpdateItemResponse) {
    option (google.api.http) = {
      patch: "/items/{item.id}" body: "item" response_body: "item"
    };
  }
  rpc DeleteItem(DeleteItemRequest) returns (DeleteItemResponse) {
    option (google.api.http) = {delete: "/items/{id}"};
  }
  rpc ListItems(ListItemsRequest) returns (ListItemsResponse) {
    option (google.api.http) = {
      get: "/items" additional_bindings: {get: "/pages/{number}/items"}
    };
  }
  rpc WatchItems(WatchItemsRequest) returns (stream WatchItemsResponse) {
    option (google.api.http) = {get: "/items:watch"};
  }
  rpc Login(LoginRequest) returns (LoginResponse) {
    option (google.api.http) = {post: "/login" body: "*" response_body: "tokens"};
  }
  rpc Refresh(RefreshRequest) returns (RefreshResponse) {
    option (google.api.http) = {post: "/refresh" body: "*" response_body: "tokens"};
  }
  rpc Logout(LogoutRequest) returns (LogoutResponse) {
    option (google.api.http) = {post: "/logout" body: "*"};
  }
}
"""


def kind(name: str) -> Any:
    return message_class(compiled(SHOP), f"shop.v1.{name}")


def shop(port: Port, settings: EdgeSettings | None = None) -> Any:
    return client(create_app(compiled(SHOP), port, settings or EdgeSettings()))


def item(**fields: Any) -> Any:
    return kind("GetItemResponse")(item=kind("Item")(**fields))


async def test_answers_have_their_status_and_caching() -> None:
    """201 for Create, 204 for an answer without fields, private and revalidated."""
    port = Port(kind("CreateItemResponse")(item=kind("Item")(id=1)))
    answer = await shop(port).post("/items", json={"name": "a"})
    assert answer.status_code == 201
    assert answer.json()["id"] == "1"
    assert answer.headers["cache-control"] == "private, no-cache"
    assert {"Authorization", "Cookie"} <= set(answer.headers["vary"].split(", "))
    answer = await shop(Port(Reply(b""))).delete("/items/1")
    assert (answer.status_code, answer.content) == (204, b"")
    assert "content-length" not in answer.headers


async def test_public_answers_may_be_kept_by_anybody() -> None:
    """`public_max_age` names the methods whose answers are not about a caller."""
    settings = EdgeSettings(public_max_age={"/shop.v1.Shop/GetItem": 300})
    answer = await shop(Port(item(id=1)), settings).get("/items/1")
    assert answer.headers["cache-control"] == "public, max-age=300"
    assert "Authorization" not in answer.headers["vary"]


async def test_a_version_is_a_strong_etag_and_else_the_body_a_weak_one() -> None:
    """RFC 9110 8.8.3 and 13.1.2: 304 on a tag that still holds."""
    http = shop(Port(item(id=1, etag="v1")))
    assert (await http.get("/items/1")).headers["etag"] == '"v1"'
    held = {"if-none-match": 'W/"x", "v1"'}
    answer = await http.get("/items/1", headers=held)
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == '"v1"'
    http = shop(Port(Reply(b"")))
    weak = (await http.get("/items")).headers["etag"]
    assert weak.startswith('W/"')
    answer = await http.get("/items", headers={"if-none-match": weak})
    assert answer.status_code == 304
    answer = await http.get("/items", headers={"if-none-match": '"other"'})
    assert answer.status_code == 200
    answer = await http.delete("/items/1", headers={"if-none-match": "*"})
    assert answer.status_code == 400  # run all the same, it would break a promise


async def test_if_match_becomes_the_requests_etag() -> None:
    """The request's own field, else the body's; a conflict or a weak tag is refused."""
    port = Port(Reply(b""))
    http = shop(port)
    await http.delete("/items/1", headers={"if-match": '"v1"'})
    assert kind("DeleteItemRequest").FromString(port.request).etag == "v1"
    await http.patch("/items/1", json={"name": "b"}, headers={"if-match": '"v2"'})
    sent = kind("UpdateItemRequest").FromString(port.request)
    assert sent.item.etag == "v2"
    assert list(sent.update_mask.paths) == ["name"]
    body = {"name": "b", "etag": "v3"}
    answer = await http.patch("/items/1", json=body, headers={"if-match": '"v2"'})
    assert answer.status_code == 400
    assert violations(answer) == ["item.etag"]
    answer = await http.delete("/items/1", headers={"if-match": 'W/"v1"'})
    assert answer.status_code == 412
    calls = len(port.calls)
    answer = await http.post("/logout", headers={"if-match": '"v1"'})
    assert (answer.status_code, len(port.calls)) == (412, calls)
    answer = await http.post("/logout", headers={"if-match": "*"})
    assert answer.is_success
    await http.delete("/items/1", headers={"if-match": "*"})
    assert kind("DeleteItemRequest").FromString(port.request).etag == ""


async def test_aborted_is_412_where_the_request_had_if_match() -> None:
    """contract.md: 412 in place of 409."""
    http = shop(Port(CallError(10, "stale")))
    assert (await http.delete("/items/1")).status_code == 409
    answer = await http.delete("/items/1", headers={"if-match": '"v1"'})
    assert answer.status_code == 412


async def test_an_idempotency_key_is_the_request_id() -> None:
    """draft-ietf-httpapi-idempotency-key-header, for requests with `request_id`."""
    port = Port(Reply(b""))
    http = shop(port)
    await http.post("/items", json={"name": "a"}, headers={"idempotency-key": '"k1"'})
    assert kind("CreateItemRequest").FromString(port.request).request_id == "k1"
    body = {"name": "a", "requestId": "k2"}
    answer = await http.post("/items", json=body, headers={"idempotency-key": "k1"})
    assert answer.status_code == 400
    assert violations(answer) == ["requestId"]


def violations(answer: Any) -> list[str]:
    details = answer.json()["details"]
    assert details[0]["@type"] == "type.googleapis.com/google.rpc.BadRequest"
    return [fault["field"] for fault in details[0]["fieldViolations"]]


AMBIGUOUS = {
    "unknown": ('{"nope": 1}', ["item.nope"]),
    "twice": ('{"name": "a", "name": "a"}', ["item.name"]),
    "twice within": ('{"size": {"wide": 1, "wide": 1}}', ["item.size.wide"]),
    "path says otherwise": ('{"id": 2}', ["item.id"]),
    "path says otherwise, by zero": ('{"id": 0}', ["item.id"]),
    "wrong type within": ('{"size": {"wide": "x"}}', ["item.size.wide"]),
    "not an object": ("[]", ["item"]),
    "null": ("null", ["item"]),
    "breaks out of its field": ('{},"updateMask":"name"', []),
    "not JSON": ('{"name"', []),
    "not UTF-8": (b'{"name":"\xff"}', []),
    "half a surrogate": ('{"name":"\\ud800"}', ["item.name"]),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
async def test_what_is_ambiguous_or_wrong_is_400_with_its_field(case: str) -> None:
    """No value is guessed; the path in JSON names leads from the request's root."""
    body, fields = AMBIGUOUS[case]
    port = Port()
    answer = await shop(port).patch("/items/1", content=body)
    assert answer.status_code == 400, answer.text
    assert not port.calls
    if fields:
        assert violations(answer) == fields
        assert answer.json()["errorCode"] == "INVALID_FIELDS"
    else:
        assert answer.json()["errorCode"] == "MALFORMED_REQUEST"


async def test_the_oneof_of_a_path_field_has_no_second_member() -> None:
    """A sibling in the query is 400 that names it."""
    answer = await shop(Port()).get("/pages/1/items?token=x")
    assert answer.status_code == 400
    assert violations(answer) == ["token"]


async def test_the_same_value_may_stand_in_path_and_body() -> None:
    """Only different values conflict."""
    port = Port(Reply(b""))
    answer = await shop(port).patch("/items/7", json={"id": "7", "name": "x"})
    assert answer.status_code == 200
    sent = kind("UpdateItemRequest").FromString(port.request)
    assert (sent.item.id, list(sent.update_mask.paths)) == (7, ["name"])


async def test_a_given_mask_stays_as_it_is() -> None:
    """Both spellings are taken in the query, proto names and ProtoJSON's."""
    port = Port(Reply(b""))
    for spelling in ("update_mask=size.wide,name", "updateMask=size.wide,name"):
        await shop(port).patch(f"/items/7?{spelling}", json={"name": "x"})
        sent = kind("UpdateItemRequest").FromString(port.request)
        assert list(sent.update_mask.paths) == ["size.wide", "name"]


async def test_protobuf_is_spoken_both_ways() -> None:
    """application/protobuf in and out, with the same refusals."""
    port = Port(item(id=1, name="a"))
    http = shop(port)
    sent = kind("Item")(name="x", id=5)
    headers = {
        "content-type": "application/x-protobuf",
        "accept": "application/protobuf",
    }
    answer = await http.patch(
        "/items/5", content=sent.SerializeToString(), headers=headers
    )
    assert answer.headers["content-type"] == "application/protobuf"
    assert kind("Item").FromString(answer.content).name == "a"
    got = kind("UpdateItemRequest").FromString(port.request)
    assert (got.item, list(got.update_mask.paths)) == (sent, ["name"])
    wrong = {**headers, "accept": "*/*"}
    answer = await http.patch(
        "/items/6", content=sent.SerializeToString(), headers=wrong
    )
    assert (answer.status_code, violations(answer)) == (400, ["item.id"])
    answer = await http.patch("/items/6", content=b"\xff\xff", headers=wrong)
    assert answer.status_code == 400


async def test_head_options_and_wrong_methods() -> None:
    """RFC 9110 9.3: HEAD is GET without a body, OPTIONS tells, others are 405."""
    http = shop(Port(item(id=1)))
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
    served = shop(Port(CallError(12, "not yet")))
    assert (await served.get("/items/1")).status_code == 501


async def test_what_nobody_can_read_is_406_or_415() -> None:
    """HttpError before the call, so nothing has happened."""
    port = Port(item(id=1))
    http = shop(port)
    answer = await http.get("/items/1", headers={"accept": "text/html"})
    assert answer.status_code == 406
    answer = await http.get(
        "/items/1", headers={"accept": "application/json;q=0, text/*"}
    )
    assert answer.status_code == 406
    for media in ("text/plain", "application/x-www-form-urlencoded"):
        answer = await http.post(
            "/items", content=b"{}", headers={"content-type": media}
        )
        assert answer.status_code == 415
    answer = await http.post(
        "/items",
        content=b"{}",
        headers={"content-type": "application/json; charset=latin1"},
    )
    assert answer.status_code == 415
    assert not port.calls


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
async def test_bodies_are_packed_both_ways(coding: str) -> None:
    """A long answer is packed as asked for; a request unpacked up to its cap."""
    packers: dict[str, Any] = {
        "gzip": gzip.compress,
        "br": brotli.compress,
        "zstd": zstandard.ZstdCompressor().compress,
    }
    port = Port(item(id=1, name="x" * 5000))
    http = shop(port, EdgeSettings(max_decompressed_bytes=100_000))
    headers = {"content-encoding": coding, "accept-encoding": f"{coding};q=1, x;q=0"}
    body = packers[coding](json.dumps({"name": "y" * 2000}).encode())
    answer = await http.post("/items", content=body, headers=headers)
    assert answer.status_code == 201
    assert kind("CreateItemRequest").FromString(port.request).name == "y" * 2000
    assert answer.headers["content-encoding"] == coding
    assert "Accept-Encoding" in answer.headers["vary"]
    if coding != "zstd":  # httpx unpacks it where it knows how
        assert answer.json()["name"] == "x" * 5000
    bomb = packers[coding](b" " * 50_000_000)
    answer = await http.post("/items", content=bomb, headers=headers)
    assert answer.status_code == 413
    answer = await http.post("/items", content=b"nonsense", headers=headers)
    assert answer.status_code == 400
    cut = await http.post("/items", content=body[:-4], headers=headers)
    assert cut.status_code == 400
    twice = headers | {"content-encoding": f"{coding}, {coding}"}
    assert (await http.post("/items", content=body, headers=twice)).status_code == 415
    odd = {"content-encoding": "lzma"}
    assert (await http.post("/items", content=b"x", headers=odd)).status_code == 415


async def test_sizes_are_capped() -> None:
    """413 for bodies, told or not; 431 for headers; 414 for addresses."""
    port = Port()
    http = shop(port)
    answer = await http.post("/items", content=b" " * 2_000_000)
    assert answer.status_code == 413

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b" " * 100_000

    assert (await http.post("/items", content=parts())).status_code == 413
    answer = await http.get("/items", headers={"x-long": "x" * 20_000})
    assert answer.status_code == 431
    assert (await http.get("/items?prefix=" + "x" * 20_000)).status_code == 414
    assert not port.calls


async def test_a_body_that_does_not_come_is_408() -> None:
    """R35: receipt of a body has a deadline."""
    app = create_app(compiled(SHOP), Port(), EdgeSettings(body_timeout=0.01))
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(5)

    async def send(event: Any) -> None:
        sent.append(event)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/items",
        "query_string": b"",
        "headers": [(b"content-length", b"5")],
        "client": ("127.0.0.1", 1),
        "scheme": "http",
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == 408


def metadata(port: Port) -> dict[str, Any]:
    return dict(port.metadata)


async def test_the_client_address_is_the_peer_behind_what_a_proxy_said() -> None:
    """R7: no client but a trusted proxy speaks of addresses or request ids."""
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
    port = Port(item(id=1))
    settings = EdgeSettings(trusted_proxies=("10.0.0.0/8",))
    app = create_app(compiled(SHOP), port, settings)
    _, answered, _ = await raw(app, "GET", "/items/1", headers, peer="9.9.9.9")
    held = metadata(port)
    assert held["x-forwarded-for"] == "9.9.9.9"
    assert len(held["x-request-id"]) == 32
    assert (b"x-request-id", held["x-request-id"].encode()) in answered
    assert held["authorization"] == "Bearer t"
    assert held["traceparent"] == "00-1-2-01"
    assert held["grpcgateway-user-agent"] == "test/1"
    assert held["raw-bin"] == b"\x00\x01"
    assert "grpc-timeout" not in held
    assert len(held) == len(port.metadata)
    twice = [(b"authorization", b"Bearer t"), (b"authorization", b"Bearer \xff")]
    await raw(app, "GET", "/items/1", twice)
    assert [v for k, v in port.metadata if k == "authorization"] == ["Bearer t", ""]
    await raw(app, "GET", "/items/1", headers, peer="10.1.2.3")
    assert metadata(port)["x-forwarded-for"] == "6.6.6.6, 10.1.2.3"
    assert metadata(port)["x-request-id"] == "chosen-by-client"


async def test_forwarded_lines_reach_the_service_in_order() -> None:
    """R7: a byte that is no text hides no hop that a proxy added."""
    port = Port(item(id=1))
    settings = EdgeSettings(trusted_proxies=("10.0.0.0/8",))
    app = create_app(compiled(SHOP), port, settings)
    lines = [(b"x-forwarded-for", b"\xff"), (b"x-forwarded-for", b"6.6.6.6:41000")]
    for peer in ("10.1.2.3", "::ffff:10.1.2.3"):
        await raw(app, "GET", "/items/1", lines, peer=peer)
        assert metadata(port)["x-forwarded-for"] == f"?, 6.6.6.6:41000, {peer}"
    long = [(b"x-forwarded-for", b"6.6.6.6," * 1_100)]
    refused, _, _ = await raw(app, "GET", "/items/1", long, peer="10.1.2.3")
    assert refused == 431


async def test_reply_metadata_becomes_headers_by_allow_list() -> None:
    """What is not listed stays inside."""
    reply = Reply(b"", headers=(("x-cost", "3"), ("x-secret", "s"), ("x-cut", "a\nb")))
    settings = EdgeSettings(response_headers=frozenset(("x-cost", "x-cut")))
    answer = await shop(Port(reply), settings).get("/items/1")
    assert answer.headers["x-cost"] == "3"
    assert "x-secret" not in answer.headers
    assert "x-cut" not in answer.headers


async def test_only_listed_origins_may_read_answers() -> None:
    """R25: exact origins, never `*`."""
    settings = EdgeSettings(cors_origins=("https://app.example",))
    http = shop(Port(item(id=1)), settings)
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


async def test_a_trailing_slash_is_served_without_a_redirect_where_asked_for() -> None:
    """`serve_trailing_slash`; without it the path is another one, and not found."""
    settings = EdgeSettings(serve_trailing_slash=True)
    answer = await shop(Port(item(id=1)), settings).get("/items/1/")
    assert answer.status_code == 200
    assert (await shop(Port(item(id=1))).get("/items/1/")).status_code == 404


async def test_errors_carry_what_the_status_says() -> None:
    """ErrorInfo's reason, RetryInfo as Retry-After, unknown details in base64."""
    held = error_details_pb2
    info = held.ErrorInfo(reason="TOO_MANY", domain="shop", metadata={"n": "5"})
    retry = held.RetryInfo(retry_delay=duration_pb2.Duration(seconds=2, nanos=5))
    made = status(8, "slow down", info, retry, item(id=1), held.QuotaFailure())
    broken = made.replace(b"shop.v1.GetItemResponse", b"shop.v1.NoItemResponse2")
    answer = await shop(Port(CallError(8, "slow down", broken))).get("/items/1")
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"
    body = answer.json()
    assert (body["error"], body["errorCode"]) == ("slow down", "TOO_MANY")
    assert (body["status"], body["code"]) == ("RESOURCE_EXHAUSTED", 8)
    assert body["requestId"] == answer.headers["x-request-id"]
    kinds = [detail["@type"].rpartition(".")[2] for detail in body["details"]]
    assert kinds == ["ErrorInfo", "RetryInfo", "NoItemResponse2", "QuotaFailure"]
    assert isinstance(body["details"][2]["value"], str)
    answer = await shop(Port(CallError(16, "who?"))).get("/items/1")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.json()["errorCode"] == "UNAUTHENTICATED"
    answer = await shop(Port(CallError(5, "no", b"\xff"))).get("/items/1")
    assert (answer.status_code, answer.json()["details"]) == (404, [])


async def test_what_nobody_foresaw_is_500_and_tells_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """R38: the cause is in the log, under the request's id."""

    async def fail() -> None:
        raise RuntimeError("postgresql://user:SECRET@db")

    with caplog.at_level(logging.ERROR, logger="edge"):
        answer = await shop(Port(then=fail)).get("/items/1")
    assert answer.status_code == 500
    assert answer.json()["error"] == "internal error"
    assert "SECRET" not in answer.text
    record = caplog.records[0]
    assert record.__dict__["request_id"] == answer.json()["requestId"]
    assert "SECRET" in caplog.text


REFUSED_AT_START: dict[str, dict[str, Any]] = {
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


@pytest.mark.parametrize("case", REFUSED_AT_START)
def test_what_cannot_be_served_is_refused_at_start(case: str) -> None:
    """The error names the method."""
    with pytest.raises(BindingError, match=r"t\.S\.M0"):
        create_app(routes([REFUSED_AT_START[case]]), Port())


def test_two_bindings_of_one_route_are_refused_at_start() -> None:
    """Both are named."""
    rules = [{"get": "/x/{string_field}"}, {"get": "/x/{bytes_field=*}"}]
    with pytest.raises(BindingError, match=r"t\.S\.M1.*M0"):
        create_app(routes(rules), Port())


async def test_custom_kinds_and_any_method() -> None:
    """A custom kind is its own method; `*` takes what no other binding does."""
    port, http = edge(
        [
            {"custom": {"kind": "FETCH", "path": "/x"}},
            {"custom": {"kind": "*", "path": "/x"}},
        ]
    )
    await http.request("FETCH", "/x")
    await http.request("PUT", "/x")
    assert port.calls == ["/t.S/M0", "/t.S/M1"]


def events(*names: str, fail: CallError | None = None, pause: float = 0) -> Any:
    async def items() -> AsyncIterator[bytes]:
        for name in names:
            made = kind("WatchItemsResponse")(name=name, resume_token=f"t-{name}")
            yield made.SerializeToString()
            await asyncio.sleep(pause)
        if fail:
            raise fail

    return items


async def test_events_have_ids_to_resume_from() -> None:
    """`resume_token` is the event's id, and Last-Event-ID the request's token."""
    port = Port(stream=events("a", "b"))
    headers = {"accept": "text/event-stream", "last-event-id": "t-0"}
    answer = await shop(port).get("/items:watch", headers=headers)
    assert answer.text == (
        'id: t-a\ndata: {"name":"a","resumeToken":"t-a"}\n\n'
        'id: t-b\ndata: {"name":"b","resumeToken":"t-b"}\n\n'
    )
    assert kind("WatchItemsRequest").FromString(port.request).resume_token == "t-0"


async def test_idle_event_streams_beat() -> None:
    """Comment lines keep proxies from closing the connection."""
    port = Port(stream=events("a", pause=0.05))
    http = shop(port, EdgeSettings(heartbeat=0.01))
    answer = await http.get("/items:watch", headers={"accept": "text/event-stream"})
    assert answer.text.count(":\n\n") >= 1


async def test_a_stream_that_fails_late_ends_in_an_error_frame() -> None:
    """In each format; an early failure has its real status."""
    late = Port(stream=events("a", fail=CallError(14, "gone")))
    ends: dict[str, Callable[[str], str]] = {
        "application/x-ndjson": lambda text: text.splitlines()[-1],
        "text/event-stream": lambda text: text.split("data: ")[-1],
        "application/json": lambda text: json.dumps(json.loads(text)[-1]),
    }
    for accept, last in ends.items():
        answer = await shop(late).get("/items:watch", headers={"accept": accept})
        assert answer.status_code == 200
        assert json.loads(last(answer.text))["error"] == "gone"
    early = Port(stream=events(fail=CallError(7, "no")))
    assert (await shop(early).get("/items:watch")).status_code == 403


async def _cut(app: Any, path: str, after: int) -> None:
    """Call and go away after some parts of the answer."""
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


async def test_a_client_that_goes_away_ends_its_call() -> None:
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

    app = create_app(compiled(SHOP), Port(then=wait, stream=items))
    await _cut(app, "/items/1", 0)
    await _cut(app, "/items:watch", 1)
    assert ended == ["unary", "stream"]


async def test_a_port_that_keeps_no_deadline_is_cut_off() -> None:
    """504 comes from the edge itself then."""

    async def wait() -> None:
        await asyncio.sleep(30)

    answer = await shop(Port(then=wait)).get(
        "/items/1", headers={"grpc-timeout": "10m"}
    )
    assert answer.status_code == 504


async def test_a_streams_deadline_holds_after_its_first_message() -> None:
    """Also where the port keeps none: the stream ends in an error frame."""
    port = Port(stream=events("a", pause=30))
    headers = {"accept": "application/x-ndjson", "grpc-timeout": "10m"}
    async with asyncio.timeout(2):
        answer = await shop(port).get("/items:watch", headers=headers)
    first, last = map(json.loads, answer.text.splitlines())
    assert (answer.status_code, first["name"]) == (200, "a")
    assert last["status"] == "DEADLINE_EXCEEDED"


async def test_head_of_a_stream_ends_with_its_first_message() -> None:
    """HEAD asks for what GET would say first, not for the whole stream."""
    answer = await shop(Port(stream=events("a", pause=30))).head("/items:watch")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_a_stream_without_messages_is_an_empty_array() -> None:
    """The body of a stream is JSON, whatever came."""
    answer = await shop(Port(stream=events())).get("/items:watch")
    assert (answer.status_code, answer.json()) == (200, [])


NOBODY = "/shop.v1.Shop/Nobody"


@pytest.mark.parametrize(
    "settings",
    [
        EdgeSettings(public_max_age={NOBODY: 1}),
        EdgeSettings(rate_limits={NOBODY: ("1 a minute",)}),
        EdgeSettings(public_methods=frozenset((NOBODY,))),
        EdgeSettings(extra_bindings={NOBODY: "GET /x"}),
        EdgeSettings(cookies=(TokenCookie(name="c", cleared_by=frozenset((NOBODY,))),)),
        EdgeSettings(cookies=(TokenCookie(name="c", reply_fields={NOBODY: "x"}),)),
    ],
)
def test_settings_for_a_method_that_is_not_there_are_refused(
    settings: EdgeSettings,
) -> None:
    """The error names the method: a typing error must not switch a rule off."""
    with pytest.raises(BindingError, match=NOBODY):
        create_app(compiled(SHOP), Port(), settings)


COOKIES = EdgeSettings(
    public_url="https://shop.example",
    cookies=(
        TokenCookie(
            name="refresh",
            reply_fields={
                "/shop.v1.Shop/Login": "tokens.refresh",
                "/shop.v1.Shop/Refresh": "tokens.refresh",
            },
            request_fields={"/shop.v1.Shop/Refresh": "refresh"},
            max_age_fields={"/shop.v1.Shop/Login": "tokens.lives"},
            cleared_by=frozenset(("/shop.v1.Shop/Logout",)),
        ),
    ),
)
MODE = {"x-token-mode": "cookie", "origin": "https://shop.example"}


def tokens() -> Any:
    made = kind("Tokens")(access="a" * 2000, refresh="r-1", lives=60)
    return kind("LoginResponse")(tokens=made)


async def test_a_browsers_token_is_a_cookie_and_not_in_the_body() -> None:
    """R23: `__Host-`, HttpOnly, Secure, SameSite=Strict; neither stored nor packed."""
    http = shop(Port(tokens()), COOKIES)
    answer = await http.post("/login", json={"name": "a"}, headers=MODE)
    assert answer.headers["set-cookie"] == (
        "__Host-refresh=r-1; Path=/; HttpOnly; Secure; SameSite=Strict; Max-Age=60"
    )
    assert "refresh" not in answer.json()
    assert answer.json()["access"] == "a" * 2000
    assert answer.headers["cache-control"] == "no-store"
    assert "content-encoding" not in answer.headers
    plain = await http.post("/login", json={"name": "a"})
    assert "set-cookie" not in plain.headers
    assert plain.json()["refresh"] == "r-1"


async def test_a_cookie_fills_its_request_field() -> None:
    """Together with a value in the body it is 400, even the same one."""
    port = Port(tokens())
    http = shop(port, COOKIES)
    held = {**MODE, "cookie": "x; other=1; __Host-refresh=r-0"}
    answer = await http.post("/refresh", headers=held)
    assert answer.status_code == 200, answer.text
    assert kind("RefreshRequest").FromString(port.request).refresh == "r-0"
    answer = await http.post("/refresh", json={"refresh": "r-0"}, headers=held)
    assert (answer.status_code, violations(answer)) == (400, ["refresh"])
    assert answer.json()["error"] == "refresh: it is given twice"
    bare = {"cookie": "__Host-refresh=r-0"}
    await http.post("/refresh", json={}, headers=bare)
    assert kind("RefreshRequest").FromString(port.request).refresh == ""


async def test_a_logout_clears_the_cookie() -> None:
    """Max-Age=0 on the replies that the table names."""
    answer = await shop(Port(Reply(b"")), COOKIES).post("/logout", headers=MODE)
    assert answer.status_code == 204
    assert answer.headers["set-cookie"].startswith("__Host-refresh=; ")
    assert "Max-Age=0" in answer.headers["set-cookie"]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "https://b.shop.example"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": ""}, 415),
        ({}, 200),
    ],
)
async def test_cookie_calls_come_from_our_own_pages(
    headers: dict[str, str], code: int
) -> None:
    """R24: Origin and Sec-Fetch-Site are checked, and the body is application/json."""
    sent = {"x-token-mode": "cookie", "content-type": "application/json", **headers}
    http = shop(Port(tokens()), COOKIES)
    answer = await http.post("/login", content=b"{}", headers=sent)
    assert answer.status_code == code


async def test_on_a_plain_loopback_in_debug_the_cookie_is_a_plain_one() -> None:
    """A browser keeps no Secure cookie of a plain-http page."""
    settings = EdgeSettings(cookies=COOKIES.cookies, debug=True)
    port = Port(tokens())
    http = shop(port, settings)
    mode = {"x-token-mode": "cookie"}
    answer = await http.post("/login", json={}, headers=mode)
    assert answer.headers["set-cookie"].startswith("refresh=r-1; Path=/; HttpOnly; Sa")
    await http.post("/refresh", headers={**mode, "cookie": "refresh=r-1"})
    assert kind("RefreshRequest").FromString(port.request).refresh == "r-1"


async def test_health_says_whether_it_lives_and_is_ready() -> None:
    """/livez always, /readyz as the composition root says."""
    ready = [True]

    async def is_ready() -> bool:
        return ready[0]

    http = shop(Port(), EdgeSettings(ready=is_ready))
    assert (await http.get("/livez")).status_code == 200
    assert (await http.get("/readyz")).status_code == 200
    ready[0] = False
    assert (await http.get("/readyz")).status_code == 503
    assert (await shop(Port()).get("/docs")).status_code == 404


async def test_a_method_of_others_is_bound_by_a_setting() -> None:
    """grpc.health.v1.Health/Watch has no annotation of its own, and is streamed."""
    made = descriptor_pb2.FileDescriptorSet()
    health_pb2.DESCRIPTOR.CopyToProto(made.file.add())
    serving = health_pb2.HealthCheckResponse(status=1).SerializeToString()

    async def items() -> AsyncIterator[bytes]:
        yield serving

    extra = {"/grpc.health.v1.Health/Watch": "GET /health:watch"}
    settings = EdgeSettings(extra_bindings=extra)
    port = Port(stream=items)
    http = client(create_app(made.SerializeToString(), port, settings))
    accept = {"accept": "application/x-ndjson"}
    answer = await http.get("/health:watch?service=x", headers=accept)
    assert answer.text == '{"status":"SERVING"}\n'
    sent = health_pb2.HealthCheckRequest.FromString(port.request)
    assert sent.service == "x"

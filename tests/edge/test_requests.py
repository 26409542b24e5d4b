"""Request messages from path, query and body: conflicts, masks and limits."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from edge.app import create_app
from edge.config import EdgeSettings
from edge.port import Reply
from tests.edge.service import (
    FakePort,
    client,
    compiled,
    edge,
    message_class,
)
from tests.edge.shop import SHOP, item, kind, shop, violations

AMBIGUOUS = {
    "unknown": ('{"nope": 1}', ["item.nope"]),
    "twice": ('{"name": "a", "name": "a"}', ["item.name"]),
    "twice in a nested message": (
        '{"size": {"wide": 1, "wide": 1}}',
        ["item.size.wide"],
    ),
    "conflict with the path": ('{"id": 2}', ["item.id"]),
    "conflict of zero with the path": ('{"id": 0}', ["item.id"]),
    "wrong type in a nested message": ('{"size": {"wide": "x"}}', ["item.size.wide"]),
    "not an object": ("[]", ["item"]),
    "null": ("null", ["item"]),
    "closes the object around it": ('{},"updateMask":"name"', []),
    "not JSON": ('{"name"', []),
    "not UTF-8": (b'{"name":"\xff"}', []),
    "lone surrogate": ('{"name":"\\ud800"}', ["item.name"]),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
async def test_ambiguous_or_invalid_body_is_400_with_its_field(case: str) -> None:
    """No value is guessed; the path of the field begins at the request."""
    body, fields = AMBIGUOUS[case]
    port = FakePort()
    answer = await shop(port).patch("/items/1", content=body)
    assert answer.status_code == 400, answer.text
    assert not port.calls
    if fields:
        assert violations(answer) == fields
        assert answer.json()["errorCode"] == "INVALID_FIELDS"
    else:
        assert answer.json()["errorCode"] == "MALFORMED_REQUEST"


async def test_oneof_member_beside_a_path_field_is_refused() -> None:
    """The error names the other member, which is in the query."""
    answer = await shop(FakePort()).get("/pages/1/items?token=x")
    assert answer.status_code == 400
    assert violations(answer) == ["token"]


async def test_equal_value_in_path_and_body_is_accepted() -> None:
    """Only different values conflict."""
    port = FakePort(Reply(b""))
    answer = await shop(port).patch("/items/7", json={"id": "7", "name": "x"})
    assert answer.status_code == 200
    sent = kind("UpdateItemRequest").FromString(port.request)
    assert (sent.item.id, list(sent.update_mask.paths)) == (7, ["name"])


async def test_explicit_mask_is_kept() -> None:
    """In the query, with proto names and with ProtoJSON's names."""
    port = FakePort(Reply(b""))
    for spelling in ("update_mask=size.wide,name", "updateMask=size.wide,name"):
        await shop(port).patch(f"/items/7?{spelling}", json={"name": "x"})
        sent = kind("UpdateItemRequest").FromString(port.request)
        assert list(sent.update_mask.paths) == ["size.wide", "name"]


async def test_protobuf_bodies_are_read_and_sent() -> None:
    """application/protobuf in and out, with the same conflicts refused."""
    port = FakePort(item(id=1, name="a"))
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
    received = kind("UpdateItemRequest").FromString(port.request)
    assert (received.item, list(received.update_mask.paths)) == (sent, ["name"])
    wrong = {**headers, "accept": "*/*"}
    answer = await http.patch(
        "/items/6", content=sent.SerializeToString(), headers=wrong
    )
    assert (answer.status_code, violations(answer)) == (400, ["item.id"])
    answer = await http.patch("/items/6", content=b"\xff\xff", headers=wrong)
    assert answer.status_code == 400


async def test_sizes_are_limited() -> None:
    """413 for bodies, with a length or not; 431 for headers; 414 for addresses."""
    port = FakePort()
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


async def test_slow_body_is_408() -> None:
    """R35: a body must arrive within a time limit."""
    app = create_app(compiled(SHOP), FakePort(), EdgeSettings(body_timeout=0.01))
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


ARTICLES = """
syntax = "proto3";
package articles.v1;
import "google/api/annotations.proto";
import "google/api/field_behavior.proto";
import "google/protobuf/field_mask.proto";
message Author { string name = 1; string nick = 2; }
message Article {
  int64 id = 1;
  string title = 2;
  string created_at = 3 [(google.api.field_behavior) = OUTPUT_ONLY];
  Author author = 4 [(google.api.field_behavior) = OUTPUT_ONLY];
  string etag = 5;
}
message UpdateArticleRequest {
  Article article = 1;
  google.protobuf.FieldMask update_mask = 2;
}
service Articles {
  rpc UpdateArticle(UpdateArticleRequest) returns (UpdateArticleRequest) {
    option (google.api.http) = {patch: "/articles/{article.id}" body: "article"};
  }
}
"""


async def test_output_only_fields_are_left_out_of_a_derived_mask() -> None:
    """AIP-203: a client may send back what it read; a mask of its own is kept."""
    port = FakePort(Reply(b""))
    http = client(create_app(compiled(ARTICLES), port))
    author = {"name": "Ana", "nick": ""}
    read = {"id": "1", "title": "b", "createdAt": "x", "author": author, "etag": "v"}
    answer = await http.patch("/articles/1", json=read)
    assert answer.status_code == 200
    request_type: Any = message_class(
        compiled(ARTICLES), "articles.v1.UpdateArticleRequest"
    )
    sent = request_type.FromString(port.request)
    assert list(sent.update_mask.paths) == ["title"]
    assert sent.article.etag == "v"
    await http.patch("/articles/1?updateMask=title,createdAt", json=read)
    sent = request_type.FromString(port.request)
    assert list(sent.update_mask.paths) == ["title", "created_at"]


@pytest.mark.parametrize(
    "text", ["\u0665", "1_0", "+5", " 5", "5 ", "", "0x5", "5.", "05"]
)
@pytest.mark.parametrize(
    "body",
    [
        '{"int32Field":"%s"}',
        '{"int64Field":"%s"}',
        '{"fixed64Field":"%s"}',
        '{"int32List":[1,"%s"]}',
        '{"int32WrapperField":"%s"}',
        '{"int64WrapperList":["%s"]}',
        '{"mapInt64Int64":{"1":"%s"}}',
        '{"mapInt64Int64":{"%s":1}}',
        '{"recursiveField":{"recursiveList":[{"uint32Field":"%s"}]}}',
    ],
)
async def test_integers_in_json_strings_are_ascii_digits(body: str, text: str) -> None:
    """Python's int() takes other digits, signs, spaces and underscores, too."""
    port, http = edge([{"post": "/x", "body": "*"}])
    headers = {"content-type": "application/json"}
    answer = await http.post("/x", content=body % text, headers=headers)
    assert (answer.status_code, port.calls) == (400, [])
    for valid in ("5", "-0"):
        answer = await http.post("/x", content=body % valid, headers=headers)
        assert answer.status_code == 200, answer.text

"""Input of hostile clients: costly, ambiguous or malformed requests."""

import gzip
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import zstandard
from google.api import httpbody_pb2

from edge.app import create_app
from edge.routing.bindings import BindingError
from tests.edge.service import FakePort, compiled, kept, raw, vector

JSON = [(b"content-type", b"application/json")]
POST = {"post": "/x", "body": "*"}


async def sent(
    rules: list[dict[str, Any]],
    method: str,
    path: str,
    body: bytes = b"",
    headers: list[tuple[bytes, bytes]] | None = None,
    port: FakePort | None = None,
    **options: Any,
) -> tuple[int, Any, bytes, FakePort]:
    """Send one request; return its status, headers and body, and the port."""
    app, switch = kept(json.dumps(rules), json.dumps(options))
    switch.port = port = port or FakePort()
    status, response, answer = await raw(app, method, path, headers or JSON, body)
    return status, response, answer, port


async def test_duplicate_key_costs_no_more_than_its_body() -> None:
    """R34: a long key and a long list do not multiply."""
    n = 40_000
    body = b'{"' + b"a" * n + b'":[' + b"1," * n + b'1],"b":1,"b":1}'
    status, _, answer, _ = await sent([POST], "POST", "/x", body)
    assert status == 400
    assert json.loads(answer)["details"][0]["fieldViolations"][0]["field"] == "b"
    assert len(answer) < 2_000


@pytest.mark.parametrize(
    "body",
    [
        b'{"\\ud800":1}',
        b'{"a":{"\\ud800":1,"\\ud800":2}}',
        b'{"nestedEnumField":2147483648}',
        b'{"nestedEnumList":[-2147483649]}',
        b'{"valueField":1e400}',
        b'{"structField":{"a":[1e400]}}',
        b'{"fieldMaskField":"a,,b"}',
    ],
)
async def test_values_without_bytes_or_json_are_400(body: bytes) -> None:
    """R32: the answer is 400 with a JSON body, and no call is made."""
    status, _, answer, port = await sent([POST], "POST", "/x", body)
    assert (status, port.calls) == (400, [])
    assert json.loads(answer)["status"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("accept", [b"text/csv", b"text/*", b"application/json"])
async def test_raw_reply_has_its_own_media_type(accept: bytes) -> None:
    """It is known only after the call, so that nothing is negotiated before."""
    port = FakePort(httpbody_pb2.HttpBody(content_type="text/csv", data=b"a,b"))
    status, headers, answer, _ = await sent(
        [{"get": "/x"}], "GET", "/x", headers=[(b"accept", accept)], port=port,
        response="google.api.HttpBody",
    )  # fmt: skip
    assert (status, answer) == (200, b"a,b")
    assert dict(headers)[b"content-type"] == b"text/csv"


async def test_raw_reply_cannot_split_a_header() -> None:
    """A stored type with a line break is not a media type."""
    injected = "text/csv\r\nSet-Cookie: a=b"
    port = FakePort(httpbody_pb2.HttpBody(content_type=injected, data=b"a"))
    _, headers, _, _ = await sent(
        [{"get": "/x"}], "GET", "/x", headers=[(b"accept", b"*/*")], port=port,
        response="google.api.HttpBody",
    )  # fmt: skip
    assert dict(headers)[b"content-type"] == b"application/octet-stream"


@pytest.mark.parametrize("path", ["/v/abc%3Ado", "/v/a:b%3Ado"])
async def test_escaped_colon_does_not_begin_a_verb(path: str) -> None:
    """http.proto: the verb follows a colon that is not escaped."""
    rules = [{"post": "/v/{string_field}:do", "body": "*"}]
    status, _, _, port = await sent(rules, "POST", path, b"{}")
    assert (status, port.calls) == (404, [])


async def test_mask_keeps_body_field_named_like_a_path_field() -> None:
    """A field of the body differs from the request's field of the same name."""
    rules = [{"patch": "/x/{string_field}", "body": "recursive_field"}]
    body = b'{"stringField":"new","int32Field":1}'
    status, _, _, port = await sent(rules, "PATCH", "/x/1", body)
    assert status == 200
    message: Any = port.message
    assert set(message.field_mask_field.paths) == {"string_field", "int32_field"}


async def test_any_method_serves_neither_head_nor_preflight() -> None:
    """HEAD belongs to the closest GET; a preflight makes no call."""
    anything = {"custom": {"kind": "*", "path": "/**"}}
    status, _, _, port = await sent([{"get": "/a/b"}, anything], "HEAD", "/a/b")
    assert status == 200
    assert port.calls[0].endswith("M0")
    preflight = [(b"origin", b"https://x"), (b"access-control-request-method", b"PUT")]
    status, _, _, port = await sent([anything], "OPTIONS", "/a", headers=preflight)
    assert (status, port.calls) == (204, [])


@pytest.mark.parametrize("field", ["value_field", "timestamp_field", "duration_field"])
async def test_absent_response_body_is_null(field: str) -> None:
    """An absent Timestamp is no moment in 1970."""
    rules = [{"get": "/x", "response_body": field}]
    status, _, answer, _ = await sent(rules, "GET", "/x", port=FakePort(vector()))
    assert (status, answer) == (200, b"null")


async def test_content_length_of_many_digits_is_413() -> None:
    headers = [*JSON, (b"content-length", b"9" * 5000)]
    status, _, _, _ = await sent([POST], "POST", "/x", b"{}", headers)
    assert status == 413


@pytest.mark.parametrize(
    "body",
    [
        b'{"recursiveList":[' + b"{}," * 6_000 + b"{}]}",
        b'{"valueField":[' + b"[]," * 6_000 + b"[]]}",
        b'{"int32WrapperList":[' + b"1," * 200_000 + b"1]}",
    ],
)
async def test_body_that_is_costly_to_parse_is_413(body: bytes) -> None:
    """R34: compressed or not; the content of strings does not count."""
    for sent_body, coding in ((body, b"identity"), (gzip.compress(body), b"gzip")):
        headers = [*JSON, (b"content-encoding", coding)]
        status, _, _, port = await sent([POST], "POST", "/x", sent_body, headers)
        assert (status, port.calls) == (413, [])
    text = json.dumps({"stringField": "{[,]}" * 100_000}).encode()
    status, _, _, _ = await sent([POST], "POST", "/x", text)
    assert status == 200


async def test_search_for_the_invalid_field_is_bounded() -> None:
    """R34: parsing the rest again at every level took 88 seconds."""
    list_ = b'{"recursiveList":[' + b"{}," * 4_900 + b'{"int32Field":"x"}]}'
    body = b'{"recursiveField":' * 20 + list_ + b"}" * 20
    before = time.thread_time()
    status, _, answer, _ = await sent([POST], "POST", "/x", body)
    assert time.thread_time() - before < 5
    assert status == 400
    assert b"recursiveField" in answer


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"doubleField":NaN,"stringField":"38"}', "doubleField"),
        (b'{"doubleField":1e400,"int32Field":38}', "doubleField"),
        (b'{"stringField":NaN,"int32Field":38}', "stringField"),
        (b'{"floatField":3.4028235e38,"nope":5}', "nope"),
        (b'{"floatField":3.4028235e38,"stringField":5}', "stringField"),
        (b'{"mapInt64Int64":{"0e99999999999999999999":1}}', "mapInt64Int64"),
    ],
)
async def test_invalid_number_is_refused_by_its_field(body: bytes, field: str) -> None:
    """R32: whatever else is in the body."""
    status, _, answer, port = await sent([POST], "POST", "/x", body)
    assert (status, port.calls) == (400, [])
    violation = json.loads(answer)["details"][0]["fieldViolations"][0]
    assert violation["field"].startswith(field)


async def test_greatest_float_is_read_in_a_query() -> None:
    port = FakePort()
    app, switch = kept(json.dumps([{"get": "/x"}]), "{}")
    switch.port = port
    query = b"float_field=3.4028235e38&float_wrapper_field=-3.4028235e%2B38"
    status, _, _ = await raw(app, "GET", "/x", query=query)
    assert status == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"int32Field":1,"int32_field":null}', "int32Field"),
        (b'{"mapInt32Int32":{"1":1,"01":2}}', "mapInt32Int32"),
    ],
)
async def test_field_in_two_spellings_is_refused(body: bytes, field: str) -> None:
    """Null means absence, and 01 means 1: the intended value is unknown."""
    status, _, answer, port = await sent([POST], "POST", "/x", body)
    assert (status, port.calls) == (400, [])
    violation = json.loads(answer)["details"][0]["fieldViolations"][0]
    assert (violation["field"], violation["reason"]) == (field, "DUPLICATE_FIELD")


async def test_rules_apply_within_an_any() -> None:
    """Its type is known, and so are its oneofs and floats."""
    kind = '"@type":"type.googleapis.com/vectors.v1.Vector"'
    two = f'{{"anyField":{{{kind},"oneofString":"a","oneofUint32":1}}}}'
    status, _, answer, _ = await sent([POST], "POST", "/x", two.encode())
    assert status == 400
    assert b"anyField.oneof" in answer
    with_float = f'{{"anyField":{{{kind},"floatField":0.1}}}}'
    status, _, _, port = await sent([POST], "POST", "/x", with_float.encode())
    assert status == 200
    echo = FakePort(port.message)
    status, _, answer, _ = await sent([POST], "POST", "/x", b"{}", port=echo)
    assert json.loads(answer)["anyField"]["floatField"] == 0.1


@pytest.mark.parametrize("text", ["3.4028235e+38", "-3.4028235e38", '"3.4028235e38"'])
async def test_greatest_float_is_read_as_other_languages_print_it(text: str) -> None:
    """C++, Java and Go print one more digit, which rounds to it."""
    body = f'{{"floatField":{text}}}'.encode()
    status, _, _, port = await sent([POST], "POST", "/x", body)
    assert status == 200
    message: Any = port.message
    assert abs(message.float_field) == (2 - 2**-23) * 2.0**127


async def test_protobuf_body_with_an_unknown_any_is_accepted() -> None:
    """Only JSON needs the type; bytes are passed on unchanged."""
    sent_message: Any = vector(int32_field=7)
    packed = sent_message.any_field
    packed.type_url, packed.value = "x/not.known", b"\x08\x01"
    kind = b"application/protobuf"
    headers = [(b"content-type", kind), (b"accept", kind)]
    body = sent_message.SerializeToString()
    status, _, _, port = await sent([POST], "POST", "/x", body, headers)
    assert (status, port.message) == (200, sent_message)


async def test_protobuf_body_conflicts_like_json() -> None:
    """Neither kind of body may contradict the path."""
    rules = [{"post": "/x/{recursive_field.int32_field}", "body": "*"}]
    message: Any = vector(int32_field=7)
    message.recursive_field.int32_field = 2
    headers = [(b"content-type", b"application/protobuf")]
    body = message.SerializeToString()
    status, _, answer, _ = await sent(rules, "POST", "/x/1", body, headers)
    assert status == 400
    assert b"recursiveField.int32Field" in answer
    status, _, _, _ = await sent(rules, "POST", "/x/2", body, headers)
    assert status == 200


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        (b"gzip", gzip.compress),
        (b"zstd", zstandard.ZstdCompressor().compress),
    ],
)
async def test_second_compressed_part_is_refused(
    coding: bytes, pack: Callable[[bytes], bytes]
) -> None:
    """A second gzip member or zstd frame, or other bytes after the first."""
    headers = [*JSON, (b"content-encoding", coding)]
    for rest in (pack(b'{"int32Field":1}'), b"x"):
        body = pack(b"{}") + rest
        status, _, _, port = await sent([POST], "POST", "/x", body, headers)
        assert (status, port.calls) == (400, [])


async def test_metadata_is_limited_to_what_grpc_accepts() -> None:
    """R34: gRPC refuses some calls above 8 KiB; the edge refuses all with 431."""
    many = [(b"grpc-metadata-a%d" % n, b"x" * 40) for n in range(120)]
    status, _, _, port = await sent([POST], "POST", "/x", b"{}", [*JSON, *many])
    assert (status, port.calls) == (431, [])


@pytest.mark.parametrize(
    "rules",
    [
        [{"custom": {"kind": "", "path": "/x"}}],
        [{"custom": {"kind": "A B", "path": "/x"}}],
        [{"get": "/{int32_field}/{int32Field}"}],
    ],
)
def test_invalid_route_is_refused_at_start(rules: list[Any]) -> None:
    with pytest.raises(BindingError, match=r"vectors\.v1\.S|t\.S"):
        kept(json.dumps(rules), "{}")


async def test_pages_of_the_edge_are_not_routes() -> None:
    """A route that is never reached is refused; other methods are 405 as usual."""
    with pytest.raises(BindingError, match="/livez"):
        kept(json.dumps([{"get": "/livez"}]), "{}")
    status, headers, answer, _ = await sent([POST], "POST", "/livez", b"{}")
    assert (status, dict(headers)[b"allow"]) == (405, b"GET")
    assert json.loads(answer)["errorCode"] == "METHOD_NOT_ALLOWED"


async def test_equal_values_in_two_spellings_are_accepted() -> None:
    rules = [{"get": "/x/{int32_field}"}, {"get": "/y/{timestamp_field}"}]
    app, switch = kept(json.dumps(rules), "{}")
    switch.port = FakePort()
    status, _, _ = await raw(app, "GET", "/x/1", query=b"int32_field=01")
    assert status == 200
    moment = "/y/1970-01-01T00:00:00Z"
    same = b"timestamp_field=1970-01-01T00:00:00.0Z"
    assert (await raw(app, "GET", moment, query=same))[0] == 200
    other = b"timestamp_field=1970-01-01T00:00:01Z"
    assert (await raw(app, "GET", moment, query=other))[0] == 400


async def test_null_value_is_a_oneof_member() -> None:
    rules = [{"post": "/x/{oneof_uint32}", "body": "*"}]
    for body in (b'{"oneofNullValue":null}', b'{"oneofNullValue":"NULL_VALUE"}'):
        status, _, _, port = await sent(rules, "POST", "/x/1", body)
        assert (status, port.calls) == (400, [])


VERSIONED = """
syntax = "proto3";
package v.v1;
import "google/api/annotations.proto";
import "google/protobuf/field_mask.proto";
message Res { string name = 1; int32 n = 2; string etag = 3; }
message Update { Res res = 1; google.protobuf.FieldMask mask = 2; bool force = 3; }
service S {
  rpc M(Update) returns (Update) {
    option (google.api.http) = {patch: "/r/{res.name}" body: "*"};
  }
}
"""


async def test_nested_etag_is_left_out_of_the_mask() -> None:
    """It is a precondition, wherever the resource is in the request (AIP-154)."""
    app = create_app(compiled(VERSIONED), FakePort())
    body = b'{"res":{"n":1,"etag":"q"},"force":true}'
    _, _, answer = await raw(app, "PATCH", "/r/a", JSON, body)
    assert json.loads(answer)["mask"] == "res.n,force"


async def test_shortest_timeout_makes_no_call() -> None:
    headers = [*JSON, (b"grpc-timeout", b"1n")]
    status, _, _, port = await sent([POST], "POST", "/x", b"{}", headers)
    assert (status, port.calls) == (504, [])

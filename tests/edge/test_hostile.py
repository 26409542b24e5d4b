"""What a hostile review once found, so that it stays mended."""

import gzip
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import zstandard
from google.api import httpbody_pb2

from edge.app import create_app
from edge.bindings import BindingError
from tests.edge.service import Port, compiled, kept, raw, vector

JSON = [(b"content-type", b"application/json")]
POST = {"post": "/x", "body": "*"}


async def sent(
    rules: list[dict[str, Any]],
    method: str,
    path: str,
    body: bytes = b"",
    headers: list[tuple[bytes, bytes]] | None = None,
    port: Port | None = None,
    **options: Any,
) -> tuple[int, Any, bytes, Port]:
    """Send one request; give its status, headers and body, and the port."""
    app, switch = kept(json.dumps(rules), json.dumps(options))
    switch.port = port = port or Port()
    status, told, answer = await raw(app, method, path, headers or JSON, body)
    return status, told, answer, port


async def test_a_double_key_costs_no_more_than_its_body() -> None:
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
async def test_what_has_no_bytes_or_no_json_is_bad_input(body: bytes) -> None:
    """R32: 400 with a body that can be read, and no call."""
    status, _, answer, port = await sent([POST], "POST", "/x", body)
    assert (status, port.calls) == (400, [])
    assert json.loads(answer)["status"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("accept", [b"text/csv", b"text/*", b"application/json"])
async def test_a_raw_reply_says_its_own_type(accept: bytes) -> None:
    """It is known only when the reply is there: nothing is negotiated before."""
    port = Port(httpbody_pb2.HttpBody(content_type="text/csv", data=b"a,b"))
    status, headers, answer, _ = await sent(
        [{"get": "/x"}], "GET", "/x", headers=[(b"accept", accept)], port=port,
        response="google.api.HttpBody",
    )  # fmt: skip
    assert (status, answer) == (200, b"a,b")
    assert dict(headers)[b"content-type"] == b"text/csv"


async def test_a_raw_reply_splits_no_header() -> None:
    """A stored type with a line break in it is no media type."""
    told = "text/csv\r\nSet-Cookie: a=b"
    port = Port(httpbody_pb2.HttpBody(content_type=told, data=b"a"))
    _, headers, _, _ = await sent(
        [{"get": "/x"}], "GET", "/x", headers=[(b"accept", b"*/*")], port=port,
        response="google.api.HttpBody",
    )  # fmt: skip
    assert dict(headers)[b"content-type"] == b"application/octet-stream"


@pytest.mark.parametrize("path", ["/v/abc%3Ado", "/v/a:b%3Ado"])
async def test_an_escaped_colon_begins_no_verb(path: str) -> None:
    """http.proto: the verb stands behind a colon as sent."""
    rules = [{"post": "/v/{string_field}:do", "body": "*"}]
    status, _, _, port = await sent(rules, "POST", path, b"{}")
    assert (status, port.calls) == (404, [])


async def test_the_mask_keeps_what_only_sounds_like_a_path_field() -> None:
    """A field of the body is another one than the request's of the same name."""
    rules = [{"patch": "/x/{string_field}", "body": "recursive_field"}]
    body = b'{"stringField":"new","int32Field":1}'
    status, _, _, port = await sent(rules, "PATCH", "/x/1", body)
    assert status == 200
    made: Any = port.message
    assert set(made.field_mask_field.paths) == {"string_field", "int32_field"}


async def test_any_method_takes_neither_head_nor_a_preflight() -> None:
    """HEAD belongs to the closest GET; a preflight runs nothing."""
    anything = {"custom": {"kind": "*", "path": "/**"}}
    status, _, _, port = await sent([{"get": "/a/b"}, anything], "HEAD", "/a/b")
    assert status == 200
    assert port.calls[0].endswith("M0")
    asks = [(b"origin", b"https://x"), (b"access-control-request-method", b"PUT")]
    status, _, _, port = await sent([anything], "OPTIONS", "/a", headers=asks)
    assert (status, port.calls) == (204, [])


@pytest.mark.parametrize("field", ["value_field", "timestamp_field", "duration_field"])
async def test_an_absent_part_is_null(field: str) -> None:
    """An absent Timestamp is no moment in 1970."""
    rules = [{"get": "/x", "response_body": field}]
    status, _, answer, _ = await sent(rules, "GET", "/x", port=Port(vector()))
    assert (status, answer) == (200, b"null")


async def test_a_length_of_many_digits_is_too_large() -> None:
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
async def test_what_costs_far_more_than_its_bytes_is_not_read(body: bytes) -> None:
    """R34: packed or not; text may hold what it likes."""
    for sent_body, coding in ((body, b"identity"), (gzip.compress(body), b"gzip")):
        headers = [*JSON, (b"content-encoding", coding)]
        status, _, _, port = await sent([POST], "POST", "/x", sent_body, headers)
        assert (status, port.calls) == (413, [])
    text = json.dumps({"stringField": "{[,]}" * 100_000}).encode()
    status, _, _, _ = await sent([POST], "POST", "/x", text)
    assert status == 200


async def test_a_search_for_a_fault_ends() -> None:
    """R34: one that reads the rest again at every level took 88 seconds."""
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
async def test_no_number_becomes_another(body: bytes, field: str) -> None:
    """R32: what is no number is refused by its field, whatever else is in the body."""
    status, _, answer, port = await sent([POST], "POST", "/x", body)
    assert (status, port.calls) == (400, [])
    told = json.loads(answer)["details"][0]["fieldViolations"][0]["field"]
    assert told.startswith(field)


async def test_the_greatest_float_is_read_in_a_query_too() -> None:
    port = Port()
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
async def test_one_field_in_two_spellings_is_refused(body: bytes, field: str) -> None:
    """Null is a spelling of absence, and 01 one of 1: which was meant is unknown."""
    status, _, answer, port = await sent([POST], "POST", "/x", body)
    assert (status, port.calls) == (400, [])
    told = json.loads(answer)["details"][0]["fieldViolations"][0]
    assert (told["field"], told["reason"]) == (field, "DUPLICATE_FIELD")


async def test_within_an_any_the_same_holds() -> None:
    """Its type is known, so its oneofs and its floats are."""
    kind = '"@type":"type.googleapis.com/vectors.v1.Vector"'
    two = f'{{"anyField":{{{kind},"oneofString":"a","oneofUint32":1}}}}'
    status, _, answer, _ = await sent([POST], "POST", "/x", two.encode())
    assert status == 400
    assert b"anyField.oneof" in answer
    one = f'{{"anyField":{{{kind},"floatField":0.1}}}}'
    status, _, _, port = await sent([POST], "POST", "/x", one.encode())
    assert status == 200
    echo = Port(port.message)
    status, _, answer, _ = await sent([POST], "POST", "/x", b"{}", port=echo)
    assert json.loads(answer)["anyField"]["floatField"] == 0.1


@pytest.mark.parametrize("text", ["3.4028235e+38", "-3.4028235e38", '"3.4028235e38"'])
async def test_the_greatest_float_is_read_as_others_print_it(text: str) -> None:
    """C++, Java and Go print it with a digit more than it has; it rounds to it."""
    body = f'{{"floatField":{text}}}'.encode()
    status, _, _, port = await sent([POST], "POST", "/x", body)
    assert status == 200
    made: Any = port.message
    assert abs(made.float_field) == (2 - 2**-23) * 2.0**127


async def test_a_packed_body_of_an_unknown_any_is_taken() -> None:
    """Only JSON needs the type; bytes pass through as they are."""
    held: Any = vector(int32_field=7)
    held.any_field.type_url, held.any_field.value = "x/not.known", b"\x08\x01"
    kind = b"application/protobuf"
    headers = [(b"content-type", kind), (b"accept", kind)]
    body = held.SerializeToString()
    status, _, _, port = await sent([POST], "POST", "/x", body, headers)
    assert (status, port.message) == (200, held)


async def test_a_protobuf_body_conflicts_as_json_does() -> None:
    """What the path binds may not stand otherwise in either kind of body."""
    rules = [{"post": "/x/{recursive_field.int32_field}", "body": "*"}]
    held: Any = vector(int32_field=7)
    held.recursive_field.int32_field = 2
    headers = [(b"content-type", b"application/protobuf")]
    body = held.SerializeToString()
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
async def test_a_second_part_is_not_dropped_unseen(
    coding: bytes, pack: Callable[[bytes], bytes]
) -> None:
    """A gzip member, a zstd frame, or anything behind the first one."""
    headers = [*JSON, (b"content-encoding", coding)]
    for rest in (pack(b'{"int32Field":1}'), b"x"):
        body = pack(b"{}") + rest
        status, _, _, port = await sent([POST], "POST", "/x", body, headers)
        assert (status, port.calls) == (400, [])


async def test_metadata_stays_where_grpc_takes_all_of_it() -> None:
    """R34: gRPC refuses some calls from 8 KiB on; here it is each, and 431."""
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
def test_what_cannot_be_a_route_is_refused_at_start(rules: list[Any]) -> None:
    with pytest.raises(BindingError, match=r"vectors\.v1\.S|t\.S"):
        kept(json.dumps(rules), "{}")


async def test_the_edges_own_pages_are_no_routes() -> None:
    """What would never be reached is refused; other methods are told as everywhere."""
    with pytest.raises(BindingError, match="/livez"):
        kept(json.dumps([{"get": "/livez"}]), "{}")
    status, headers, answer, _ = await sent([POST], "POST", "/livez", b"{}")
    assert (status, dict(headers)[b"allow"]) == (405, b"GET")
    assert json.loads(answer)["errorCode"] == "METHOD_NOT_ALLOWED"


async def test_equal_values_may_be_spelt_in_two_ways() -> None:
    rules = [{"get": "/x/{int32_field}"}, {"get": "/y/{timestamp_field}"}]
    app, switch = kept(json.dumps(rules), "{}")
    switch.port = Port()
    status, _, _ = await raw(app, "GET", "/x/1", query=b"int32_field=01")
    assert status == 200
    moment = "/y/1970-01-01T00:00:00Z"
    same = b"timestamp_field=1970-01-01T00:00:00.0Z"
    assert (await raw(app, "GET", moment, query=same))[0] == 200
    other = b"timestamp_field=1970-01-01T00:00:01Z"
    assert (await raw(app, "GET", moment, query=other))[0] == 400


async def test_a_null_value_is_a_oneofs_member() -> None:
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


async def test_an_etag_beside_what_the_path_names_is_no_change() -> None:
    """It is the precondition, whatever the body's place (AIP-154)."""
    app = create_app(compiled(VERSIONED), Port())
    body = b'{"res":{"n":1,"etag":"q"},"force":true}'
    _, _, answer = await raw(app, "PATCH", "/r/a", JSON, body)
    assert json.loads(answer)["mask"] == "res.n,force"


async def test_an_instant_is_over_before_any_call() -> None:
    headers = [*JSON, (b"grpc-timeout", b"1n")]
    status, _, _, port = await sent([POST], "POST", "/x", b"{}", headers)
    assert (status, port.calls) == (504, [])

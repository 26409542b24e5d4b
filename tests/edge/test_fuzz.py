"""Properties: no input causes a 5xx, and accepted JSON is returned unchanged."""

import base64
import json
import string
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.app import create_app
from tests.edge.service import FakePort, Vector, as_json, client, raw, routes

RULES = [
    {"get": "/a/{string_field}"},
    {"get": "/b/{nested_message_field.a}/{bytes_field=x/**}"},
    {"post": "/c", "body": "*"},
    {"post": "/d/{int64_field}:go", "body": "recursive_field"},
    {"patch": "/e/{recursive_field.int32_field}", "body": "recursive_field"},
    {"put": "/f", "body": "double_list", "response_body": "map_string_string"},
    {"get": "/{timestamp_field=**}"},
]
PORT = FakePort()
APP = create_app(routes(RULES), PORT)
BOUNDED = settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck)
)
FIELDS = [field.name for field in Vector.DESCRIPTOR.fields]
words = st.one_of(
    st.sampled_from([*FIELDS, "a", "nope", "recursive_field.int32_field", ""]),
    st.text(max_size=8),
)
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=12),
        st.sampled_from(["1", "1s", "NaN", "AA==", "2024-01-01T00:00:00Z", "FOO"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=4)
    ),
    max_leaves=12,
)
paths = st.one_of(
    st.sampled_from(["/a/x", "/b/1/x/y", "/c", "/d/5:go", "/e/1", "/f", "/a/%zz"]),
    st.text("/:%{}*.?#" + string.ascii_letters + "é\x00", max_size=20).map("/".__add__),
)
queries = st.one_of(
    st.binary(max_size=20),
    st.lists(st.tuples(words, st.text(max_size=6)), max_size=3).map(
        lambda pairs: "&".join(f"{k}={v}" for k, v in pairs).encode()
    ),
)
bodies = st.one_of(
    st.just(b""),
    st.binary(max_size=40),
    values.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=3).map(
        lambda value: json.dumps(value).encode()
    ),
)
NAMES = [
    "accept",
    "content-type",
    "content-encoding",
    "grpc-timeout",
    "if-match",
    "if-none-match",
    "idempotency-key",
    "x-token-mode",
    "cookie",
    "origin",
    "accept-encoding",
    "grpc-metadata-x-bin",
    "content-length",
]
headers = st.lists(
    st.tuples(
        st.sampled_from([name.encode() for name in NAMES]),
        st.one_of(
            st.binary(max_size=12),
            st.sampled_from(
                [b"application/protobuf", b"*/*;q=x", b"gzip, br", b"application/json"]
            ),
        ),
    ),
    max_size=3,
)


@BOUNDED
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "PATCH", "HEAD", "OPTIONS", "X"]),
    path=paths,
    query=queries,
    sent=headers,
    body=bodies,
)
async def test_no_input_causes_a_5xx(
    method: str,
    path: str,
    query: bytes,
    sent: list[tuple[bytes, bytes]],
    body: bytes,
) -> None:
    """R32: every request has a 2xx, a 3xx or a 4xx with its reason."""
    text = path.encode().decode("latin-1")
    length = (b"content-length", b"%d" % len(body))
    all_headers = [*sent, length] if body else sent
    code, _, answer = await raw(APP, method, text, all_headers, body, query)
    assert code < 500, answer
    if code >= 400 and method != "HEAD":
        assert json.loads(answer)["code"]


TEXT = st.text(st.characters(codec="utf-8"))
SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "int32Field": st.integers(-(2**31), 2**31 - 1),
    "int64Field": st.integers(-(2**63), 2**63 - 1).map(str),
    "uint64Field": st.integers(1, 2**64 - 1).map(str),
    "doubleField": st.floats(allow_nan=False, allow_infinity=False),
    "floatField": st.sampled_from([0.1, -1.5, 3.4028234e38, 1e-45, 16777216.0, 1e-5]),
    "boolField": st.booleans(),
    "stringField": TEXT,
    "bytesField": st.binary().map(lambda raw_: base64.b64encode(raw_).decode()),
    "stringList": st.lists(TEXT),
    "floatList": st.lists(st.integers(-999, 999).map(lambda count: count / 8)),
    "nestedEnumField": st.sampled_from(["FOO", "BAR", "BAZ", "NEG"]),
    "aliasedEnumField": st.sampled_from(["ALIAS_FOO", "ALIAS_BAR", "ALIAS_BAZ"]),
    "mapInt32Int32": st.dictionaries(
        st.integers(-9, 9).map(str), st.integers(-9, 9), max_size=3
    ),
    "durationField": st.integers(-999, 999).map(lambda seconds: f"{seconds}s"),
    "valueField": st.recursive(
        st.one_of(st.booleans(), st.text(string.printable)), st.lists, max_leaves=5
    ),
    "optStringField": st.text(string.printable),
}
messages = st.fixed_dictionaries({}, optional=SCALARS)


@BOUNDED
@given(body=messages, inner=messages)
async def test_accepted_json_is_returned_unchanged(
    body: dict[str, Any], inner: dict[str, Any]
) -> None:
    """Numbers included; only defaults are added."""
    sent = {**body, "recursiveField": inner} if inner else body
    answer = await client(APP).post("/c", json=sent)
    assert answer.status_code == 200, answer.text
    got = answer.json()
    assert _part_of(got, sent) == sent
    again = await client(APP).post("/c", json=got)
    assert again.json() == got
    assert as_json(PORT.message) is not None


def _part_of(got: Any, like: Any) -> Any:
    """Return the part of an answer that was in the request, without defaults."""
    if isinstance(got, dict) and isinstance(like, dict):
        return {name: _part_of(got.get(name), value) for name, value in like.items()}
    return got

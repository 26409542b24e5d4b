"""Properties of random contracts: any service, any request, every port."""

import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.app import create_app
from edge.config import EdgeSettings
from edge.port import CallError, Metadata, RemotePort, Reply
from edge.routing.bindings import BindingError
from tests.edge.service import FakePort, bind, raw, routes, rule, status
from tests.edge.test_fuzz import headers, values
from tests.edge.test_ports import KINDS, Remote

SETTINGS = EdgeSettings(
    response_headers=frozenset(("x-cost",)),
    trusted_proxies=("127.0.0.1",),
    error_domain="fuzz.test",
    serve_trailing_slash=True,
)
BOUNDED = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck)
)
Type = descriptor_pb2.FieldDescriptorProto.Type
SINGLE = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
MANY = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
SCALARS = [n for n, t in Type.items() if n not in ("TYPE_GROUP", "TYPE_MESSAGE")]
KNOWN = [
    f".google.protobuf.{name}"
    for name in (
        *("Timestamp", "Duration", "FieldMask", "Struct", "Value", "ListValue", "Any"),
        *("Int64Value", "StringValue", "BoolValue", "BytesValue", "FloatValue"),
    )
]
NAMES = ["id", "name", "etag", "request_id", "update_mask", "page_size", "a", "b_c"]
LITERALS = st.sampled_from(["x", "things", "a-b", "%41", "me"])
TEXTS = st.one_of(
    st.sampled_from(["1", "-1", "true", "me", "x", "A", "1s", "a,b", "x:go", "%2F"]),
    st.text(max_size=4).map(lambda text: text.encode("utf-8", "replace").decode()),
)


class Contract(NamedTuple):
    """A service with its path templates and field names."""

    files: bytes
    templates: list[tuple[str, str]]  # HTTP method, path
    fields: list[str]


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    """Generate a file with an enum, a recursive message, and methods."""
    files = descriptor_pb2.FileDescriptorSet.FromString(routes([]))
    file = files.file[-1]
    assert file.name == "t.proto"
    enum = file.enum_type.add(name="E")
    for number, name in enumerate(("ZERO", "ONE", "TWO")):
        enum.value.add(name=name, number=number)
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=6, unique=True))
    message = file.message_type.add(name="M")
    if draw(st.booleans()):
        message.oneof_decl.add(name="one")
    for number, name in enumerate(names, 1):
        field = message.field.add(name=name, number=number, json_name="")
        kind = draw(st.sampled_from([*SCALARS, *KNOWN, ".t.M"]))
        field.label = draw(st.sampled_from([SINGLE, SINGLE, SINGLE, MANY]))
        if kind.startswith("."):
            field.type, field.type_name = Type.Value("TYPE_MESSAGE"), kind
        else:
            field.type = Type.Value(kind)
            field.type_name = ".t.E" if kind == "TYPE_ENUM" else ""
        if message.oneof_decl and field.label == SINGLE and draw(st.booleans()):
            field.oneof_index = 0
    if not any(field.HasField("oneof_index") for field in message.field):
        del message.oneof_decl[:]
    made = [draw(methods(names)) for _ in range(draw(st.integers(1, 3)))]
    for number, options in enumerate(made):
        method = file.service[0].method.add(
            name=f"M{number}", input_type=".t.M", output_type=".t.M"
        )
        bind(method.options, rule(**options))
    templates = [
        (verb.upper(), path)
        for options in made
        for verb, path in [*options.items()][:1]
    ]
    return Contract(files.SerializeToString(), templates, names)


@st.composite
def methods(draw: st.DrawFn, names: list[str]) -> dict[str, Any]:
    """Generate the http rule of one method; not all of them are valid."""
    field = st.sampled_from(names)
    shapes = st.sampled_from(["{%s}", "{%s=*}", "{%s=x/*}", "{%s=*/y}", "{%s.id}"])
    variable = st.builds(str.__mod__, shapes, field)
    parts = draw(st.lists(st.one_of(LITERALS, variable), min_size=1, max_size=3))
    if draw(st.integers(0, 4)) == 0:
        parts.append(draw(st.sampled_from(["**", f"{{{names[0]}=**}}"])))
    path = "/" + "/".join(parts) + draw(st.sampled_from(["", "", ":go"]))
    verb = draw(st.sampled_from(["get", "post", "put", "patch", "delete"]))
    made = {verb: path}
    if verb not in ("get", "delete"):
        made["body"] = draw(st.sampled_from(["*", "*", "", names[-1]]))
    if draw(st.integers(0, 4)) == 0:
        made["response_body"] = draw(field)
    return made


@st.composite
def requests(draw: st.DrawFn, contract: Contract) -> dict[str, Any]:
    """Generate a request that probably matches a route."""
    method, template = draw(st.sampled_from(contract.templates))
    method = draw(st.sampled_from([method] * 6 + ["HEAD", "OPTIONS", "GET", "POST"]))
    path = "".join(
        draw(TEXTS) if index % 2 else part.replace("**", "u/v").replace("*", "w")
        for index, part in enumerate(template.replace("}", "{").split("{"))
    )
    fields = st.sampled_from([*contract.fields, "bC", "a.id", "updateMask", "nope"])
    pairs = draw(st.lists(st.tuples(fields, TEXTS), max_size=2))
    document = draw(st.dictionaries(fields, values, max_size=3))
    body = json.dumps(document).encode() if draw(st.booleans()) else b""
    length = [(b"content-length", b"%d" % len(body))] if body else []
    return {
        "method": method,
        "path": path.encode().decode("latin-1"),
        "query": "&".join(f"{k}={v}" for k, v in pairs).encode(),
        "headers": [*draw(headers), *length],
        "body": body,
    }


class EchoPort(FakePort):
    """Replies with the request, or fails with details."""

    async def unary(
        self,
        method: str,
        request: bytes,
        *,
        metadata: Metadata,
        timeout: float | None,  # noqa: ASYNC109  # the port's parameter
    ) -> Reply:
        added = ("user-agent", "x-request-id")
        self.metadata = sorted((k, v) for k, v in metadata if k not in added)
        self.request = request
        if len(request) % 5 == 4:
            detail = error_details_pb2.ErrorInfo(reason="NO", domain="fuzz.test")
            packed = status(9, "no", detail)
            raise CallError(grpc.StatusCode.FAILED_PRECONDITION.value[0], "no", packed)
        return Reply(request, headers=(("x-cost", str(len(request))),))


@pytest_asyncio.fixture(scope="session", params=KINDS)
async def remote(
    request: pytest.FixtureRequest,
) -> AsyncIterator[tuple[RemotePort, EchoPort]]:
    echo = EchoPort()
    async with Remote(echo, request.param) as port:
        yield port, echo


@BOUNDED
@given(data=st.data())
async def test_both_ports_have_equal_answers(
    remote: tuple[RemotePort, EchoPort], data: st.DataObject
) -> None:
    """R32: no 5xx, and the same status, headers, bytes and call over a channel."""
    contract = data.draw(contracts())
    here, (channel, there) = EchoPort(), remote
    try:
        apps = [create_app(contract.files, p, SETTINGS) for p in (here, channel)]
    except BindingError:
        return  # invalid rules are refused at start
    for _ in range(4):
        request = data.draw(requests(contract))
        here.request, there.request = b"none", b"none"
        answers = [comparable(*await raw(app, **request)) for app in apps]
        assert answers[0] == answers[1]
        assert answers[0][0] < 500, answers[0]
        assert here.request == there.request
        if here.request != b"none":
            assert here.metadata == there.metadata


def comparable(
    code: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> tuple[int, list[tuple[bytes, bytes]], Any]:
    """Return an answer without its time and request id."""
    rest = [pair for pair in headers if pair[0] != b"x-request-id"]
    if code < 400 or not body:
        return code, rest, body
    error = json.loads(body)
    assert error.pop("requestId")
    assert error.pop("timestamp")
    return code, rest, error

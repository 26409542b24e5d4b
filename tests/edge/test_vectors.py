"""Test vectors of transcoding, through the edge's public interface."""

import base64
import json
import re
from typing import Any

import pytest
from google.api import httpbody_pb2
from google.protobuf import descriptor_pb2, json_format

from edge.app import create_app
from edge.config import EdgeSettings
from edge.port import CallError, Reply
from edge.routing.bindings import BindingError
from tests.edge.service import (
    VECTORS,
    FakePort,
    Vector,
    as_json,
    bind,
    client,
    edge,
    message_class,
    raw,
    routes,
    rule,
    status,
)


def _facts(name: str, part: str) -> list[Any]:
    facts = json.loads((VECTORS / name).read_text())[part]
    return [
        pytest.param(fact, id=str(fact.get("id") or fact.get("template")))
        for fact in facts
    ]


def _fields(names: dict[str, str], types: dict[str, int]) -> bytes:
    """Return a descriptor set with a message `q.Q` that has these field paths."""
    made = descriptor_pb2.FileDescriptorSet()
    file = made.file.add(name="q.proto", package="q", syntax="proto3")
    messages = {"": file.message_type.add(name="Q")}

    def holder(prefix: str) -> Any:
        if prefix not in messages:
            parent, _, name = prefix.rpartition(".")
            type_name = "M" + prefix.replace(".", "_")
            above = holder(parent)
            above.field.add(
                name=name,
                number=len(above.field) + 1,
                label=1,
                type=11,
                type_name=f".q.{type_name}",
            )
            messages[prefix] = file.message_type.add(name=type_name)
        return messages[prefix]

    for path in sorted(names):
        prefix, _, name = path.rpartition(".")
        at = holder(prefix)
        kind = types.get(path, 9)
        at.field.add(name=name, number=len(at.field) + 1, label=1, type=kind)
    return made.SerializeToString()


def _app(template_routes: list[dict[str, Any]], port: FakePort, **types: int) -> Any:
    """Return an application in which every route has its own request message."""
    made = descriptor_pb2.FileDescriptorSet.FromString(routes([]))
    made.file.pop()
    for index, route in enumerate(template_routes):
        names = {
            part.strip("{}").partition("=")[0]: ""
            for part in _variables(route["template"])
        }
        file = descriptor_pb2.FileDescriptorSet.FromString(_fields(names, types)).file[
            0
        ]
        text = file.SerializeToString()
        file = descriptor_pb2.FileDescriptorProto.FromString(text)
        file.name, file.package = f"q{index}.proto", f"q{index}"
        for message in file.message_type:
            for field in message.field:
                if field.type_name:
                    field.type_name = field.type_name.replace(".q.", f".q{index}.")
        made.file.append(file)
    file = made.file.add(name="t.proto", package="t", syntax="proto3")
    file.dependency.extend(f.name for f in made.file if f.name != "t.proto")
    service = file.service.add(name="S")
    for index, route in enumerate(template_routes):
        method = service.method.add(
            name=route.get("id") or f"M{index}",
            input_type=f".q{index}.Q",
            output_type=f".q{index}.Q",
        )
        bind(method.options, rule(**{route["method"].lower(): route["template"]}))
    return create_app(made.SerializeToString(), port), made.SerializeToString()


def _variables(template: str) -> list[str]:
    return re.findall(r"\{[^{}]*\}", template)


FOLLOWS_HTTP_PROTO = {
    "/a/{b=c/**}/d/e": "** must be the last segment",
    "/a/{b=c/**/d}/e:verb": "** must be the last segment",
    "/{x.y.z=a/**/b}/c/d": "** must be the last segment",
    "/v1/{name}:": "a verb is a colon and a literal",
}


@pytest.mark.parametrize("fact", _facts("path_templates.json", "template_parse"))
def test_template_is_served_if_the_grammar_allows_it(
    fact: Any,
) -> None:
    """Others are refused at start (http.proto)."""
    template = fact["template"]
    valid = fact["valid"] and template not in FOLLOWS_HTTP_PROTO
    route = {"method": "GET", "template": template}
    if valid:
        _app([route], FakePort())
    else:
        with pytest.raises(BindingError, match=r"t\.S"):
            _app([route], FakePort())


@pytest.mark.parametrize("fact", _facts("path_templates.json", "route_sets"))
async def test_path_finds_its_route_and_fills_the_variables(fact: Any) -> None:
    """A literal before `*` before `**`; variables are decoded as in http.proto."""
    port = FakePort()
    app, files = _app(fact["routes"], port)
    ids = [route["id"] for route in fact["routes"]]
    for look in fact["lookups"]:
        port.calls.clear()
        code, _, body = await raw(app, look["method"], look["path"])
        if look["match"] is None:
            assert code in (400, 404), look
            assert not port.calls
            continue
        assert port.calls == [f"/t.S/{look['match']}"], (look, body)
        request = message_class(files, f"q{ids.index(look['match'])}.Q")
        sent = as_json(request.FromString(port.request))
        for path, value in look["bindings"].items():
            at: Any = sent
            for name in path.split("."):
                at = at.get(name, "") if at else ""
            assert at == value, look


@pytest.mark.parametrize("fact", _facts("path_templates.json", "http_outcomes"))
async def test_request_without_route_has_its_status(fact: Any) -> None:
    """405 with Allow, 204 for OPTIONS, 400 for bad escapes, 404 for unknown paths."""
    uint64 = 4 if fact["id"] == "bad_scalar_in_path" else 9
    app, _ = _app(fact["routes"], FakePort(), id=uint64)
    request = fact["request"]
    code, headers, _ = await raw(app, request["method"], request["path"])
    assert code == fact["status"]
    for name, value in fact.get("response_headers", {}).items():
        assert (name.encode(), value.encode()) in headers
    if fact["id"] == "options":
        assert (b"allow", b"GET, HEAD, OPTIONS, PUT") in headers


@pytest.mark.parametrize("fact", _facts("query.json", "vectors"))
async def test_query_parameter_fills_a_field_or_is_400(fact: Any) -> None:
    """Values are read as in ProtoJSON; the error names the field."""
    options: dict[str, Any] = {"get": "/x"}
    if "bound_body" in fact:
        options = {"post": "/x", "body": fact["bound_body"]}
    path = "/x"
    for name, value in fact.get("bound_path", {}).items():
        options = {"get": f"/x/{{{name}}}"}
        path = f"/x/{value}"
    port, http = edge([options])
    method = next(iter(options)).upper()
    transport: Any = http._transport
    query = fact["query"].encode()
    code, _, body = await raw(transport.app, method, path, query=query)
    if fact["expect"] == "reject":
        assert code == 400, body
        error = json.loads(body)
        assert error["code"] == 3
        assert error["details"][0]["fieldViolations"]
    else:
        assert code == 200, body
        assert as_json(port.message) == fact["message"]


REFUSED_BY_THE_EDGE = {
    "FieldNameDuplicateDifferentCasing1",
    "FieldNameDuplicateDifferentCasing2",
}


@pytest.mark.parametrize("fact", _facts("json_mapping.json", "vectors"))
async def test_json_is_protojson(fact: Any) -> None:
    """The ProtoJSON conformance vectors, in requests and responses."""
    kind = fact["kind"]
    port, http = edge([{"post": "/x", "body": "*"}, {"get": "/x"}])
    if kind == "serialize_reject":
        port.reply = Reply(base64.b64decode(fact["message_wire_base64"]))
        answer = await http.get("/x")
        assert (answer.status_code, answer.json()["code"]) == (500, 13)
        return
    answer = await http.post(
        "/x", content=fact["input"].encode("utf-8", "surrogatepass")
    )
    refused = (
        kind in ("reject", "accept_ignore_unknown") or fact["id"] in REFUSED_BY_THE_EDGE
    )
    if refused:
        assert answer.status_code == 400
        assert answer.json()["code"] == 3
        return
    assert answer.status_code == 200, answer.text
    wanted = [fact["canonical"], *fact.get("canonical_alternatives", [])]
    got = answer.json()
    assert any(_matches(got, one) for one in wanted), (got, wanted)


DEFAULTS: tuple[Any, ...] = (
    None,
    0,
    "0",
    "",
    False,
    [],
    {},
    "FOO",
    "ALIAS_FOO",
    "FOREIGN_FOO",
)


def _matches(actual: Any, expected: Any) -> bool:
    """Compare an answer that includes defaults with one that does not."""
    if isinstance(actual, dict) and isinstance(expected, dict):
        rest = [value for name, value in actual.items() if name not in expected]
        return all(value in DEFAULTS for value in rest) and all(
            name in actual and _matches(actual[name], value)
            for name, value in expected.items()
        )
    if isinstance(actual, list) and isinstance(expected, list):
        return len(actual) == len(expected) and all(map(_matches, actual, expected))
    return bool(actual == expected)


@pytest.mark.parametrize("fact", _facts("body.json", "bodies"))
async def test_body_and_response_body_follow_the_rule(fact: Any) -> None:
    """They select parts of messages; conflicts are refused."""
    request, expect = fact["request"], fact["expect"]
    reply: Any = None
    files = routes([fact["rule"]])
    if "response" in request:
        reply = json_format.ParseDict(request["response"], Vector())
    if "response_httpbody" in request:
        http_body = request["response_httpbody"]
        reply = httpbody_pb2.HttpBody(
            content_type=http_body["content_type"], data=http_body["data"].encode()
        )
        files = _with_page()
    port = FakePort(reply)
    http = client(create_app(files, port))
    method = next(
        name for name in ("get", "put", "post", "patch") if name in fact["rule"]
    )
    answer = await http.request(
        method.upper(), request["path"], content=request.get("body")
    )
    assert answer.status_code == expect.get("http", 200), answer.text
    if "message" in expect:
        assert as_json(port.message) == expect["message"]
    if "json" in expect:
        assert answer.json() == expect["json"]
    if "raw" in expect:
        assert answer.text == expect["raw"]
        assert answer.headers["content-type"] == expect["content_type"]


def _with_page() -> bytes:
    made = descriptor_pb2.FileDescriptorSet.FromString(
        routes(
            [{"get": "/{page=**}"}],
            request="q.Q",
            response="google.api.HttpBody",
            files=_page_files(),
        )
    )
    return made.SerializeToString()


def _page_files() -> bytes:
    made = descriptor_pb2.FileDescriptorSet.FromString(_fields({"page": ""}, {}))
    return made.SerializeToString()


@pytest.mark.parametrize("fact", _facts("body.json", "patch_field_masks"))
@pytest.mark.parametrize("body", ["*", "recursive_field"])
async def test_mask_is_derived_from_a_patch_body(fact: Any, body: str) -> None:
    """It names the leaves of the body (AIP-134)."""
    if fact["id"] == "two_masks_in_request":
        return
    port, http = edge([{"patch": "/x", "body": body}])
    answer = await http.patch("/x", content=fact["body"])
    if fact.get("expect") == "reject":
        assert answer.status_code == 400
        return
    assert answer.status_code == 200, answer.text
    message: Any = port.message
    assert sorted(message.field_mask_field.paths) == fact["paths_sorted"]


STATUS = json.loads((VECTORS / "status_codes.json").read_text())


@pytest.mark.parametrize("fact", STATUS["grpc_to_http"], ids=lambda f: f["grpc"])
async def test_code_has_its_http_status(fact: Any) -> None:
    """google/rpc/code.proto names the HTTP status of each code."""
    if fact["code"] == 0:
        _, http = edge([{"get": "/x"}])
    else:
        _, http = edge([{"get": "/x"}], FakePort(CallError(fact["code"], "no")))
    assert (await http.get("/x")).status_code == fact["http"]


@pytest.mark.parametrize("fact", STATUS["error_cases"], ids=lambda f: f["id"])
async def test_error_has_the_message_and_details_of_the_service(fact: Any) -> None:
    """The code of the call takes precedence over the one of the status."""
    given, expect = fact["grpc_status"], fact["expect"]
    if given["code"] == 0:
        message: Any = Vector()
        message.value_field.number_value = float("nan")
        port = FakePort(message)
    else:
        inner = given.get("details_status_code", given["code"])
        from google.rpc import error_details_pb2

        details = (
            [error_details_pb2.PreconditionFailure()] if "details" in given else []
        )
        port = FakePort(
            CallError(given["code"], given["message"], status(inner, "inner", *details))
        )
    _, http = edge([{"get": "/x"}], port)
    answer = await http.get("/x")
    assert answer.status_code == expect["http"]
    assert answer.headers["content-type"] == "application/json"
    assert expect.get("body_has", {}).items() <= answer.json().items()
    if "details" in expect:
        assert answer.json()["details"] == expect["details"]


def _semantics(*prefixes: str) -> list[Any]:
    return [
        one
        for one in _facts("http_semantics.json", "vectors")
        if str(one.id).startswith(prefixes)
    ]


@pytest.mark.parametrize("fact", _semantics("timeout_"))
async def test_grpc_timeout_sets_the_deadline(fact: Any) -> None:
    """GRPC over HTTP/2: at most eight digits and a unit."""
    port, http = edge([{"get": "/x"}])
    answer = await http.get("/x", headers=fact["input"])
    if "http" in fact["expect"]:
        assert answer.status_code == fact["expect"]["http"]
        assert not port.calls
    else:
        assert port.timeout == fact["expect"]["deadline_s"]


@pytest.mark.parametrize(
    "fact", _semantics("md_", "invalid_md", "non_ascii", "client_cannot")
)
async def test_headers_become_metadata_by_name(fact: Any) -> None:
    """Only `Grpc-Metadata-*` headers with valid names and ASCII values pass."""
    port, http = edge([{"get": "/x"}])
    headers = [(k.encode(), v.encode()) for k, v in fact["input"].items()]
    assert (await http.get("/x", headers=headers)).status_code == 200
    metadata: dict[str, list[str | bytes]] = {}
    for key, value in port.metadata:
        metadata.setdefault(key, []).append(value)
    for key, values in fact["expect"].get("metadata", {}).items():
        assert metadata[key] == values
    assert not set(fact["expect"].get("metadata_absent", ())) & set(metadata)


async def test_method_override_header_is_ignored() -> None:
    """Vector method_override_default_off."""
    port, http = edge([{"post": "/x", "body": "*"}, {"delete": "/x"}])
    await http.post("/x", headers={"x-http-method-override": "DELETE"}, json={})
    assert port.calls == ["/t.S/M0"]


@pytest.mark.parametrize("fact", _semantics("stream_"))
async def test_stream_framing_follows_accept(fact: Any) -> None:
    """NDJSON, events or an array; an early error has its status, a late one a frame."""
    given, expect = fact["input"], fact["expect"]
    names = {"name": "stringField", "a": "int32Field"}

    async def items() -> Any:
        for text in given["messages"]:
            value = {names[k]: v for k, v in json.loads(text).items()}
            yield json_format.ParseDict(value, Vector()).SerializeToString()
        if "error" in given:
            raise CallError(given["error"]["code"], given["error"].get("message", ""))

    accept = given.get("accept", "application/json")
    if "ndjson" in fact["id"]:
        accept = "application/x-ndjson"
    _, http = edge([{"get": "/x"}], FakePort(stream=items), streams=True)
    answer = await http.get("/x", headers={"accept": accept})
    assert answer.status_code == expect.get("http", 200)
    assert expect.get("content_type") in (None, answer.headers["content-type"])
    if "raw_json" in expect:
        got = [{"name": one["stringField"]} for one in answer.json()]
        assert got == expect["raw_json"]
    if "raw" in expect:
        assert answer.text.count("data: {") == expect["raw"].count("data: {")
        assert answer.text.count("\n\n") == expect["raw"].count("\n\n")
    if "last_line_has" in expect:
        assert expect["last_line_has"] in json.loads(answer.text.splitlines()[-1])
    if fact["id"] == "stream_error_after_first_array":
        assert "error" in answer.json()[-1]


async def test_accept_weights_are_applied() -> None:
    """Vectors accept_q_values and accept_protobuf."""
    port, http = edge([{"get": "/x"}])
    answer = await http.get(
        "/x", headers={"accept": "text/html;q=0.5, application/json"}
    )
    assert answer.headers["content-type"] == "application/json"
    answer = await http.get(
        "/x?int32_field=7", headers={"accept": "application/protobuf"}
    )
    assert answer.headers["content-type"] == "application/protobuf"
    assert Vector.FromString(answer.content) == port.message


def test_settings_are_frozen() -> None:
    """Settings are checked at start and do not change afterwards."""
    with pytest.raises(AttributeError):
        EdgeSettings().docs = True  # type: ignore[misc]  # it is frozen

"""The OpenAPI document: bindings, field rules, comments and error responses."""

import json
import re
from typing import Any

import pytest

from edge.app import create_app
from edge.config import EdgeSettings
from edge.openapi import document
from tests.edge.service import FakePort, client, compiled, routes
from tests.edge.shop import SHOP

RULED = """
syntax = "proto3";
package ruled.v1;
import "buf/validate/validate.proto";
import "google/api/annotations.proto";

// The size of a thing.
enum Size {
  // Not set.
  SIZE_UNSPECIFIED = 0;
  // Two metres.
  SIZE_LARGE = 1;
}
// Reasons of errors.
enum Reason {
  // Not used.
  REASON_UNSPECIFIED = 0;
  // NOT_FOUND: there is no thing with this id.
  REASON_NO_THING = 1;
}
// A thing.
message Thing {
  // Its name, which may be
  // long.
  string name = 1 [(buf.validate.field).string = {min_len: 2, max_len: 5}];
  string code = 2 [(buf.validate.field).cel = {
    id: "code" message: "hex" expression: "this.matches('^[0-9a-f\\\\\\\\.]+$')"
  }];
  optional int32 count = 3 [(buf.validate.field).int32 = {gt: 0, lt: 9}];
  repeated string tags = 4 [(buf.validate.field).repeated = {
    min_items: 1, max_items: 3, items: {string: {max_len: 4}}
  }];
  string kind = 5 [(buf.validate.field).string = {in: ["a", "b"]},
    (buf.validate.field).ignore = IGNORE_IF_ZERO_VALUE];
  int64 big = 6 [(buf.validate.field).int64.gt = 0];
  Thing inner = 7 [(buf.validate.field).required = true];
  oneof one { string left = 8; string right = 9; }
  map<string, int64> sizes = 10;
  string slug = 11 [(buf.validate.field).string.pattern = "^[a-z]+$",
    (buf.validate.field).ignore = IGNORE_IF_ZERO_VALUE];
  repeated uint64 ids = 12 [(buf.validate.field).repeated.items.uint64.gte = 7];
  double share = 13 [(buf.validate.field).double = {gt: 0, lte: 1}];
  Size size = 14;
  string mail = 15 [
    (buf.validate.field).cel = {
      id: "mail" message: "m" expression: "this.matches('^[a-z]+@[a-z]+$')"
    },
    (buf.validate.field).cel = {
      id: "local" message: "l" expression: "this.matches('^[^@]{0,4}@')"
    }
  ];
}
// A choice.
message Choice {
  oneof must { option (buf.validate.oneof).required = true;
    string up = 1; string far_down = 2; }
}
// A request about a thing.
message ThingRequest {
  Thing thing = 1;
  string etag = 2;
}
// Keeps things.
service ThingService {
  // Stores a thing, which may take a while, as
  // v2.0 does. It replaces another one.
  //
  // Returns NOT_FOUND if there is none. Returns ABORTED (ETAG) or
  // UNAVAILABLE if it changed.
  rpc PutThing(Thing) returns (Thing) {
    option (google.api.http) = {
      put: "/things/{big}" body: "*"
      additional_bindings: {get: "/old/{name=things/*}:read"}
    };
  }
  rpc ChangeThing(ThingRequest) returns (Thing) {
    option (google.api.http) = {patch: "/things/{thing.big}" body: "thing"};
  }
  // Chooses.
  rpc Choose(Choice) returns (Thing) {
    option (google.api.http) = {post: "/choices" body: "*"};
  }
}
// Other things.
service OtherService {
  // Deletes a thing.
  rpc PutThing(ThingRequest) returns (ThingRequest) {
    option (google.api.http) = {delete: "/others/{thing.name}"};
  }
}
"""
NAME = "/ruled.v1.ThingService/PutThing"
LIMITED = EdgeSettings(
    public_methods=frozenset((NAME,)),
    rate_limits={NAME: ("5 a minute by address",)},
    error_reasons="ruled.v1.Reason",
    service_order=("ruled.v1.OtherService", "ruled.v1.ThingService"),
)


def make_document(settings: EdgeSettings | None = None) -> dict[str, Any]:
    return document(_files(), settings or EdgeSettings())


def _files() -> bytes:
    return compiled(RULED)


def _put_schema(made: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the body of PUT /things/{big}."""
    body = made["paths"]["/things/{big}"]["put"]["requestBody"]
    reference = body["content"]["application/json"]["schema"]["$ref"]
    schema: dict[str, Any] = made["components"]["schemas"][reference.split("/")[-1]]
    return schema


def test_rules_apply_to_parameters_and_bodies_alike() -> None:
    """One mapper: what a body must be, a parameter must be too."""
    made = make_document()
    schema = _put_schema(made)
    assert set(schema["required"]) == {"name", "code", "tags", "inner", "share", "mail"}
    fields = schema["properties"]
    assert fields["name"]["maxLength"] == 5
    assert fields["name"]["description"] == "Its name, which may be long."
    assert fields["code"]["pattern"] == r"^[0-9a-f\.]+$"
    assert fields["tags"]["items"]["maxLength"] == 4
    assert (fields["tags"]["minItems"], fields["tags"]["maxItems"]) == (1, 3)
    assert "big" not in fields
    assert schema["not"]["anyOf"] == [{"required": ["left", "right"]}]
    assert schema["additionalProperties"] is False
    get = made["paths"]["/old/things/{name}:read"]["get"]
    parameters = {parameter["name"]: parameter for parameter in get["parameters"]}
    assert fields["count"] == parameters["count"]["schema"]
    assert parameters["big"]["schema"]["pattern"] == "^[1-9][0-9]*$"
    assert parameters["name"]["in"] == "path"
    assert parameters["inner.name"]["in"] == "query"


def test_one_member_of_a_required_oneof_is_required() -> None:
    """And not more than one; so that a body is required, too."""
    made = make_document()
    schema = made["components"]["schemas"]["ChoiceInput"]
    one_of_them = [{"required": ["up"]}, {"required": ["farDown"]}]
    assert schema["not"]["anyOf"] == [
        {"required": ["up", "farDown"]},
        {"not": {"anyOf": one_of_them}},
    ]
    assert made["paths"]["/choices"]["post"]["requestBody"]["required"]


def test_response_lists_the_other_members_of_its_oneof() -> None:
    made = document(compiled(SHOP), EdgeSettings())
    answer = made["paths"]["/login"]["post"]["responses"]["200"]
    tokens, question = answer["content"]["application/json"]["schema"]["oneOf"]
    assert tokens == {"$ref": "#/components/schemas/Tokens"}
    assert question["required"] == ["question"]
    assert question["properties"] == {
        "question": {"$ref": "#/components/schemas/Question"}
    }


def test_bounds_are_written_once() -> None:
    """Integers have inclusive bounds; numbers have no second, weaker one."""
    fields = _put_schema(make_document())["properties"]
    assert fields["count"] == {
        "type": "integer", "format": "int32", "minimum": 1, "maximum": 8
    }  # fmt: skip
    assert fields["share"] == {
        "type": "number", "format": "double", "exclusiveMinimum": 0, "maximum": 1
    }  # fmt: skip


def test_64_bit_integers_are_strings_in_both_directions() -> None:
    """One type for an id: what a response holds can be sent back as it is."""
    made = make_document()
    schemas = made["components"]["schemas"]
    sent, received = schemas["ThingInput"], schemas["Thing"]
    types = {schema["properties"]["big"]["type"] for schema in (sent, received)}
    assert types == {"string"}
    assert received["properties"]["big"]["format"] == "int64"
    (parameter,) = made["paths"]["/things/{big}"]["put"]["parameters"]
    assert parameter["schema"]["type"] == "string"
    assert sent["properties"]["ids"]["items"] == {
        "type": "string",
        "format": "uint64",
        "pattern": "^(0|[1-9][0-9]*)$",
        "description": "At least 7.",
    }


def test_optional_texts_have_one_type() -> None:
    """No alternatives, which generators turn into wrapper types."""
    fields = _put_schema(make_document())["properties"]
    assert fields["kind"] == {"type": "string", "enum": ["a", "b"]}
    assert fields["slug"] == {"type": "string", "pattern": "^$|^[a-z]+$"}


def test_several_patterns_are_one() -> None:
    """All have to match, without `allOf`."""
    pattern = _put_schema(make_document())["properties"]["mail"]["pattern"]
    assert re.search(pattern, "ana@example")
    assert not re.search(pattern, "maria@example")
    assert not re.search(pattern, "ana@")


def test_enums_are_components_of_names() -> None:
    """One named type for requests and responses, described value by value."""
    made = make_document()
    assert made["components"]["schemas"]["Size"] == {
        "type": "string",
        "enum": ["SIZE_UNSPECIFIED", "SIZE_LARGE"],
        "description": "The size of a thing.\n\n"
        "- `SIZE_UNSPECIFIED`: Not set.\n- `SIZE_LARGE`: Two metres.",
    }
    reference = {"$ref": "#/components/schemas/Size"}
    assert _put_schema(made)["properties"]["size"] == reference


def test_responses_list_the_fields_that_are_always_present() -> None:
    """Responses are described as ProtoJSON writes them, default values included."""
    thing = make_document()["components"]["schemas"]["Thing"]
    assert {"name", "tags", "sizes"} <= set(thing["required"])
    assert "count" not in thing["required"]
    assert thing["description"] == "A thing."


def test_operations_have_text_security_and_limits() -> None:
    """The first sentence is the summary, whole; the rest is the description."""
    put = make_document(LIMITED)["paths"]["/things/{big}"]["put"]
    assert put["summary"] == "Stores a thing, which may take a while, as v2.0 does."
    assert put["description"].startswith(
        "It replaces another one.\n\nReturns NOT_FOUND"
    )
    assert "5 a minute by address" in put["description"]
    assert put["security"] == []
    assert put["x-rate-limits"] == ["5 a minute by address"]
    unlimited = make_document()["paths"]["/things/{big}"]["put"]
    assert unlimited["security"] == [{"bearer": []}]


def test_operation_ids_are_names_of_functions() -> None:
    """Unique, without the service where the method's name suffices."""
    paths = make_document()["paths"]
    ids = {
        path: {verb: operation["operationId"] for verb, operation in methods.items()}
        for path, methods in paths.items()
    }
    assert ids == {
        "/things/{big}": {"put": "putThing", "patch": "changeThing"},
        "/old/things/{name}:read": {"get": "putThingByName"},
        "/others/{name}": {"delete": "otherPutThing"},
        "/choices": {"post": "choose"},
    }


def test_errors_are_documented_for_every_operation() -> None:
    """By the comment, the access, the limits and the body; the rest is `default`."""
    made = make_document(
        EdgeSettings(
            public_methods=LIMITED.public_methods,
            rate_limits=LIMITED.rate_limits,
            access={"/ruled.v1.ThingService/ChangeThing": "Only Ana may call this."},
        )
    )
    put = made["paths"]["/things/{big}"]["put"]["responses"]
    assert list(put) == [
        *("200", "400", "404", "409", "413", "415", "429"),
        *("500", "503", "504", "default"),
    ]
    text = "Returns NOT_FOUND if there is none."
    assert put["404"]["description"] == f"The resource does not exist. {text}"
    assert "UNAVAILABLE if it changed." in put["503"]["description"]
    patch = made["paths"]["/things/{big}"]["patch"]["responses"]
    assert {"401", "403"} <= set(patch)
    assert "Only Ana may call this." in patch["403"]["description"]
    shared = made["components"]["responses"]
    references = set(re.findall(r'"#/components/responses/(\w+)"', json.dumps(made)))
    assert references == set(shared)
    schema = {"$ref": "#/components/schemas/ErrorResponse"}
    assert all(
        response["content"]["application/json"]["schema"] == schema
        for response in shared.values()
    )


def test_document_lists_precondition_headers() -> None:
    """ABORTED is 409, or 412 with If-Match."""
    paths = document(compiled(SHOP.replace("rpc DeleteItem", """
      // Deletes. Returns ABORTED if it has changed.
      rpc DeleteItem""", 1)), EdgeSettings())["paths"]  # fmt: skip
    assert {"409", "412"} <= set(paths["/items/{id}"]["delete"]["responses"])


def test_error_reasons_are_listed() -> None:
    """Clients find every reason, and are not broken by a new one."""
    code = make_document(LIMITED)["components"]["schemas"]["ErrorResponse"][
        "properties"
    ]["errorCode"]
    assert code["x-extensible-enum"] == ["NO_THING"]
    assert "`NO_THING`: NOT_FOUND: there is no thing" in code["description"]
    assert "enum" not in code
    with pytest.raises(ValueError, match="there is no enum ruled"):
        make_document(EdgeSettings(error_reasons="ruled.v1.No"))


def test_document_has_info_servers_and_ordered_tags() -> None:
    made = make_document(LIMITED)
    assert made["openapi"] == "3.1.0"
    assert made["servers"] == [{"url": "/"}]
    assert made["tags"] == [
        {"name": "Other", "description": "Other things."},
        {"name": "Thing", "description": "Keeps things."},
    ]
    settings = EdgeSettings(
        title="T", version="2", description="D", public_url="https://a.example",
        info={"contact": {"name": "C"}},
    )  # fmt: skip
    made = make_document(settings)
    assert made["info"] == {
        "title": "T", "version": "2", "description": "D", "contact": {"name": "C"}
    }  # fmt: skip
    assert made["servers"] == [{"url": "https://a.example"}]


def test_types_of_the_same_short_name_have_components_of_their_own() -> None:
    """The second one has its full name."""
    proto = """
    syntax = "proto3"; package a.v1; import "google/api/annotations.proto";
    message X { message Y { string a = 1; } Y y = 1; }
    message XY { string b = 1; X x = 2; }
    message ErrorResponse { string c = 1; XY xy = 2; }
    service S { rpc Get(X) returns (ErrorResponse) {
      option (google.api.http).get = "/x"; } }
    """
    schemas = document(compiled(proto), EdgeSettings())["components"]["schemas"]
    assert set(schemas) == {
        "XY",
        "X",
        "a.v1.X.Y",
        "a.v1.ErrorResponse",
        "ErrorResponse",
    }


def test_every_field_type_has_a_schema() -> None:
    """A message with a field of every type, sent and received: no broken reference."""
    rules = [{"post": "/x", "body": "*"}, {"get": "/x"}]
    text = json.dumps(document(routes(rules), EdgeSettings()))
    known = json.loads(text)["components"]["schemas"]
    for reference in text.split('"$ref": "#/components/schemas/')[1:]:
        assert reference.partition('"')[0] in known


def test_path_templates_keep_their_literals() -> None:
    """A client that fills in the parameters reaches the right route."""
    rules: list[dict[str, Any]] = [
        {"get": "/{string_field=a/*}"},
        {"get": "/{string_field=b/*/c/*}:do"},
        {"get": "/d/*/{string_field=**}"},
        {"custom": {"kind": "PURGE", "path": "/e/{int32_field}"}},
    ]
    paths = document(routes(rules), EdgeSettings())["paths"]
    assert {path: list(methods) for path, methods in paths.items()} == {
        "/a/{string_field}": ["get"],
        "/b/{string_field_1}/c/{string_field_2}:do": ["get"],
        "/d/{segment}/{string_field}": ["get"],
        "/e/{int32_field}": ["x-purge"],
    }
    for path, methods in paths.items():
        for operation in methods.values():
            parameters = operation["parameters"]
            names = [p["name"] for p in parameters if p["in"] == "path"]
            assert re.findall(r"{(.*?)}", path) == names


def test_streams_and_empty_responses_are_documented() -> None:
    """Streams offer three formats; 204 has no content."""
    paths = document(compiled(SHOP), EdgeSettings())["paths"]
    content = paths["/items:watch"]["get"]["responses"]["200"]["content"]
    assert set(content) == {
        "application/json",
        "application/x-ndjson",
        "text/event-stream",
    }
    assert "content" not in paths["/items/{id}"]["delete"]["responses"]["204"]
    delete = paths["/items/{id}"]["delete"]
    assert [p["name"] for p in delete["parameters"]] == ["id", "etag"]
    assert "The header `If-Match` can also set `etag`." in delete["description"]


async def test_docs_page_loads_own_assets_only() -> None:
    """R36: a strict policy, no external script or style; off by default."""
    app = create_app(_files(), FakePort(), EdgeSettings(docs=True))
    http = client(app)
    page = await http.get("/docs")
    assert "http" not in page.text.replace("http-equiv", "")
    assert "script-src 'self';" in page.headers["content-security-policy"]
    for part in page.text.split('src="')[1:]:
        asset = await http.get("/" + part.partition('"')[0])
        assert asset.status_code == 200
    served = (await http.get("/openapi.json")).json()
    assert served == app.openapi()
    off = client(create_app(_files(), FakePort()))
    assert (await off.get("/openapi.json")).status_code == 404

"""The OpenAPI document: out of the tables that route, with rules and comments."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from buf.validate import validate_pb2
from edge.app import create_app
from edge.config import EdgeSettings
from edge.openapi import document
from tests.edge.service import Port, client, compiled, routes
from tests.edge.shop import SHOP

RULED = """
syntax = "proto3";
package ruled.v1;
import "buf/validate/validate.proto";
import "google/api/annotations.proto";

// A thing.
message Thing {
  // Its name.
  string name = 1 [(buf.validate.field).string = {min_len: 2, max_len: 5}];
  string code = 2 [(buf.validate.field).cel = {
    id: "code" message: "hex" expression: "this.matches('^[0-9a-f\\\\\\\\.]+$')"
  }];
  optional int32 count = 3 [(buf.validate.field).int32 = {gte: 1, lt: 9}];
  repeated string tags = 4 [(buf.validate.field).repeated = {
    min_items: 1, max_items: 3, items: {string: {max_len: 4}}
  }];
  string kind = 5 [(buf.validate.field).string = {in: ["a", "b"]},
    (buf.validate.field).ignore = IGNORE_IF_ZERO_VALUE];
  int64 big = 6 [(buf.validate.field).int64.gt = 0];
  Thing inner = 7 [(buf.validate.field).required = true];
  oneof one { string left = 8; string right = 9; }
  map<string, int64> sizes = 10;
}
// Keeps things.
service Things {
  // Puts a thing.
  //
  // Returns NOT_FOUND if there is none.
  rpc PutThing(Thing) returns (Thing) {
    option (google.api.http) = {
      put: "/things/{big}" body: "*"
      additional_bindings: {get: "/old/{name=things/*}:read"}
    };
  }
}
"""
NAME = "/ruled.v1.Things/PutThing"


def made(settings: EdgeSettings | None = None) -> dict[str, Any]:
    return document(_files(), settings or EdgeSettings())


def _files() -> bytes:
    return compiled(RULED)


def test_rules_are_constraints_of_parameters_and_bodies_alike() -> None:
    """One mapper: what refuses a body refuses a parameter."""
    paths = made()["paths"]
    body = paths["/things/{big}"]["put"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert set(schema["required"]) == {"name", "code", "tags", "inner"}
    fields = schema["properties"]
    assert fields["name"]["maxLength"] == 5
    assert fields["name"]["description"] == "Its name."
    assert fields["code"]["pattern"] == r"^[0-9a-f\.]+$"
    assert (fields["count"]["minimum"], fields["count"]["exclusiveMaximum"]) == (1, 9)
    assert fields["tags"]["items"]["maxLength"] == 4
    assert (fields["tags"]["minItems"], fields["tags"]["maxItems"]) == (1, 3)
    assert {"const": ""} in fields["kind"]["anyOf"]
    assert "big" not in fields
    assert schema["not"]["anyOf"] == [{"required": ["left", "right"]}]
    assert schema["additionalProperties"] is False
    told = {p["name"]: p for p in paths["/old/things/{name}:read"]["get"]["parameters"]}
    left = {k: v for k, v in fields["count"].items() if k != "description"}
    assert left == told["count"]["schema"] | {"type": ["integer", "null"]}
    assert told["big"]["schema"]["exclusiveMinimum"] == 0
    assert told["name"]["in"] == "path"
    assert told["inner.name"]["in"] == "query"


def test_answers_write_64_bits_as_text_and_defaults_out() -> None:
    """Answers are described as ProtoJSON writes them."""
    thing = made()["components"]["schemas"]["ruled.v1.Thing"]
    assert thing["properties"]["big"]["type"] == "string"
    assert {"name", "tags", "sizes"} <= set(thing["required"])
    assert "count" not in thing["required"]
    assert thing["description"] == "A thing."


def test_methods_tell_text_security_limits_and_errors() -> None:
    """Comments, who may call, how often, and what an error looks like."""
    settings = EdgeSettings(
        public_methods=frozenset((NAME,)),
        rate_limits={NAME: ("5 a minute by address",)},
        title="T",
    )
    put = made(settings)["paths"]["/things/{big}"]["put"]
    assert put["summary"] == "Puts a thing."
    assert "NOT_FOUND" in put["description"]
    assert "5 a minute by address" in put["description"]
    assert put["security"] == []
    assert "Error" in json.dumps(put["responses"]["default"])
    assert made()["paths"]["/things/{big}"]["put"]["security"] == [{"bearer": []}]
    assert made()["openapi"] == "3.1.0"
    ids = [
        one["operationId"] for path in made()["paths"].values() for one in path.values()
    ]
    assert len(set(ids)) == len(ids) == 2


def test_every_type_has_a_schema() -> None:
    """A message of one field of every type, in and out, without a loose end."""
    rules = [{"post": "/x", "body": "*"}, {"get": "/x"}]
    text = json.dumps(document(routes(rules), EdgeSettings()))
    known = json.loads(text)["components"]["schemas"]
    for reference in text.split('"$ref": "#/components/schemas/')[1:]:
        assert reference.partition('"')[0] in known


def test_a_templates_literals_stand_in_the_path() -> None:
    """A client that fills in the parameters reaches the route that is meant."""
    rules: list[dict[str, Any]] = [
        {"get": "/{string_field=a/*}"},
        {"get": "/{string_field=b/*/c/*}:do"},
        {"get": "/d/*/{string_field=**}"},
        {"custom": {"kind": "PURGE", "path": "/e/{int32_field}"}},
    ]
    paths = document(routes(rules), EdgeSettings())["paths"]
    assert {path: list(at) for path, at in paths.items()} == {
        "/a/{string_field}": ["get"],
        "/b/{string_field_1}/c/{string_field_2}:do": ["get"],
        "/d/{segment}/{string_field}": ["get"],
        "/e/{int32_field}": ["x-purge"],
    }
    for path, at in paths.items():
        for told in at.values():
            named = [p["name"] for p in told["parameters"] if p["in"] == "path"]
            assert re.findall(r"{(.*?)}", path) == named


def test_streams_and_empty_answers_are_told() -> None:
    """Streams offer their three formats; 204 has no content."""
    paths = document(compiled(SHOP), EdgeSettings())["paths"]
    content = paths["/items:watch"]["get"]["responses"]["200"]["content"]
    assert set(content) == {
        "application/json",
        "application/x-ndjson",
        "text/event-stream",
    }
    assert "content" not in paths["/items/{id}"]["delete"]["responses"]["204"]
    told = paths["/items/{id}"]["delete"]
    assert [p["name"] for p in told["parameters"]] == ["id", "etag"]
    assert "The header `If-Match` may say `etag`." in told["description"]


async def test_the_docs_page_is_served_from_here_only() -> None:
    """R36 and a strict policy: no script or style from elsewhere; off by default."""
    app = create_app(_files(), Port(), EdgeSettings(docs=True))
    http = client(app)
    page = await http.get("/docs")
    assert "http" not in page.text.replace("http-equiv", "")
    assert "script-src 'self';" in page.headers["content-security-policy"]
    for part in page.text.split('src="')[1:]:
        asset = await http.get("/" + part.partition('"')[0])
        assert asset.status_code == 200
    served = (await http.get("/openapi.json")).json()
    assert served == app.openapi()
    off = client(create_app(_files(), Port()))
    assert (await off.get("/openapi.json")).status_code == 404


@pytest.mark.parametrize("name", ["contract.binpb"])
def test_the_projects_own_contract_can_be_told(name: str) -> None:
    """The document of the repository's contract has every one of its routes."""
    held = Path(__file__).parents[2] / "generated" / name
    told = document(held.read_bytes(), EdgeSettings())
    assert "/api/v1/users/{id}" in told["paths"]
    assert validate_pb2.DESCRIPTOR.name == "buf/validate/validate.proto"

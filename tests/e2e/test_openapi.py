"""The served OpenAPI document is exact: it allows what the service accepts.

It also satisfies the rules of the linters and of the client generators.
"""

import asyncio
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edge.config import EdgeSettings
from edge.openapi import document
from server.domain.accounts.users import Role
from server.rpc import contract
from tests.authenticator_app import enrol
from tests.e2e.schema_values import (
    INT64_MAX,
    Schema,
    boundaries,
    broken,
    is_int64,
    valid,
)
from tests.running import RunningService

ATTEMPTS = 5  # of a call that the service refuses with 503
FORM_REASONS = ("INVALID_FIELDS", "MALFORMED_REQUEST")  # others depend on state
UNUSED_ID = 10**9  # no greater id is in use

# Rules that no schema expresses: common passwords, permissions, combined fields.
UNEXPRESSED = re.compile(
    r"password\..*|page\.reach|page_token\.foreign|filter\.admin_only"
    r"|page_size\..*|update_mask\..*|timestamp\.gt_now|session\.id|weights\..*"
    r"|[a-z_]+\.known"
)
EXCLUDED = {"logout", "logoutAll"}  # they end the session of the other calls
GOOD_PASSWORD = "Blue7horse"  # random ones rarely satisfy the password policy
# Few examples: refreshing is limited to 60 a minute by address, and all tests share
# the address. Shrinking would take minutes and reach the limits.
BOUNDED = settings(
    max_examples=6,
    phases=[Phase.generate],
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def operations_of(made: Schema) -> Iterator[tuple[str, str, Schema]]:
    """Yield every operation with its HTTP method and its path."""
    for path, methods in made["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


NAMES = sorted(
    operation["operationId"]
    for _, _, operation in operations_of(
        document(contract.descriptors(), EdgeSettings())
    )
    if set(operation["responses"]) & {"201", "204"}
    or set(operation["responses"]["200"]["content"]) == {"application/json"}
)
operations = pytest.mark.parametrize("name", [n for n in NAMES if n not in EXCLUDED])


@dataclass(frozen=True, slots=True)
class RequestPart:
    """A parameter, or a property of the body."""

    location: str  # path, query or body
    name: str
    required: bool
    schema: Schema = field(hash=False, compare=False)
    is_choice: bool = False  # of a oneof that is required: the others are left out

    @property
    def field(self) -> str:
        """The name that errors have for it."""
        return re.sub("_(.)", lambda match: match[1].upper(), self.name)


PartValues = dict[RequestPart, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of the document."""

    method: str
    path: str
    parts: tuple[RequestPart, ...]
    takes_body: bool

    async def send(
        self, http: httpx.AsyncClient, bearer: dict[str, str], values: PartValues
    ) -> httpx.Response:
        parameters: dict[str, dict[str, Any]] = {"path": {}, "query": {}}
        body: dict[str, Any] | None = {} if self.takes_body else None
        for part, value in values.items():
            if part.location != "body":
                parameters[part.location][part.name] = as_text(value)
            elif body is not None:
                body[part.name] = value
        quoted = {name: quote(t, safe="") for name, t in parameters["path"].items()}
        for _ in range(ATTEMPTS):
            response = await http.request(
                self.method,
                self.path.format(**quoted),
                params=parameters["query"],
                headers=bearer,
                json=body,
            )
            if response.status_code != 503:  # a busy machine may refuse calls
                break
            await asyncio.sleep(float(response.headers["retry-after"]))
        return response


def as_text(value: Any) -> Any:
    """Return a value as parameters have it; a list is repeated."""
    if isinstance(value, list):
        return [as_text(item) for item in value]
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest_asyncio.fixture(scope="session")
async def served(shared: RunningService) -> Schema:
    response = await shared.http.get("/openapi.json")
    made: Schema = response.raise_for_status().json()
    return made


@pytest_asyncio.fixture(scope="session")
async def bearer(shared: RunningService) -> dict[str, str]:
    """Return the headers of an admin with two factors, who may make every call."""
    admin = await enrol(shared, await shared.signed_in(Role.ADMIN))
    return admin.signed_in.headers


def read_operation(served: Schema, name: str) -> Operation:
    """Return one operation. A body that is not JSON is raw bytes and has no parts."""
    ((method, path, operation),) = (
        found for found in operations_of(served) if found[2]["operationId"] == name
    )
    parts = [
        RequestPart(p["in"], p["name"], p["required"], inlined(p["schema"], served))
        for p in operation.get("parameters", ())
    ]
    content = operation.get("requestBody", {}).get("content", {})
    if json_content := content.get("application/json"):
        body = inlined(json_content["schema"], served)
        assert body["additionalProperties"] is False
        members = [
            name
            for excluded in body.get("not", {}).get("anyOf", ())
            for one in excluded.get("not", {}).get("anyOf", ())
            for name in one["required"]
        ]
        required = {*body["required"], *members[:1]}
        parts += [
            RequestPart("body", name, name in required, schema, name in members)
            for name, schema in body["properties"].items()
            if name not in members[1:]
        ]
    return Operation(method, path, tuple(parts), "application/json" in content)


def inlined(schema: Schema, served: Schema) -> Schema:
    """Return a schema with components in place of references."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        schema = served["components"]["schemas"][name]
    made = dict(schema)
    if "items" in made:
        made["items"] = inlined(made["items"], served)
    if "properties" in made:
        properties = made["properties"].items()
        made["properties"] = {
            name: inlined(inner, served) for name, inner in properties
        }
        made.setdefault("required", [])
    return made


def suitable(part: RequestPart) -> st.SearchStrategy[Any]:
    """Return values for a part: ids in a path are of no resource of other tests.

    No mask: one that names a field which cannot be written is an error as well.
    """
    if part.name == "update_mask":
        return st.just("")
    if part.location == "path" and is_int64(part.schema):
        return st.integers(UNUSED_ID, INT64_MAX).map(str)
    if part.location == "path":  # httpx removes a dot segment
        return valid(part.schema).filter(lambda text: text not in (".", ".."))
    return valid(part.schema)


def drawn(data: st.DataObject, called: Operation, *, complete: bool) -> PartValues:
    """Draw a request that the document allows, with all optional parts or some."""
    values = {
        part: data.draw(suitable(part), label=part.name)
        for part in called.parts
        if part.required or complete or data.draw(st.booleans())
    }
    parts = {part.field: part for part in values}  # the body's come last and win
    return {part: values[part] for part in parts.values()}


def without(values: PartValues, part: RequestPart) -> PartValues:
    """Return a request without a field, wherever it is set."""
    return {p: value for p, value in values.items() if p.field != part.field}


def violations(response: httpx.Response) -> list[tuple[str, str]]:
    """Return the field and the rule of each violation, or else the reason."""
    if response.is_success:
        return [("", "")]
    error = response.json()
    return [
        (violation["field"], violation.get("reason", ""))
        for detail in error["details"]
        for violation in detail.get("fieldViolations", ())
    ] or [("", error["errorCode"])]


def names_part(part: RequestPart, field: str) -> bool:
    """Return whether a violation is of a part, which may be inside its resource.

    Paths that differ in nothing but the names of their parameters share the names, so
    that every name is accepted for those.
    """
    name = re.sub(r"\[.*", "", field)
    return part.location == "path" or f".{name}".endswith(f".{part.field}")


@operations
@BOUNDED
@given(data=st.data())
async def test_allowed_requests_are_accepted(
    shared: RunningService,
    served: Schema,
    bearer: dict[str, str],
    name: str,
    data: st.DataObject,
) -> None:
    """An error has a reason that no schema can express, never a field's form."""
    called = read_operation(served, name)
    values = drawn(data, called, complete=False)
    for part in values:
        if part.name == "password" and data.draw(st.booleans()):
            values[part] = GOOD_PASSWORD

    # All are drawn before the first is sent: drawing must not depend on responses.
    requests = [values]
    for part in called.parts:
        requests += [
            without(values, part) | {part: data.draw(boundary, label=part.name)}
            for boundary in (boundaries(part.schema) if part.location != "path" else ())
        ]
    for request in requests:
        response = await called.send(shared.http, bearer, request)
        detail = (request, response.text)
        assert response.status_code < 500, detail
        if response.status_code == 400 and response.json()["errorCode"] in FORM_REASONS:
            rules = [rule for _, rule in violations(response)]
            assert all(UNEXPRESSED.fullmatch(rule) for rule in rules), detail


@operations
@BOUNDED
@given(data=st.data())
async def test_each_constraint_is_enforced(
    shared: RunningService,
    served: Schema,
    bearer: dict[str, str],
    name: str,
    data: st.DataObject,
) -> None:
    """One constraint broken in a valid request: 400, with the field's name."""
    called = read_operation(served, name)
    values = drawn(data, called, complete=True)

    requests: list[tuple[RequestPart, str, PartValues]] = []
    for part in called.parts:
        others = without(values, part)
        for constraint, wrong in broken(part.schema, as_text=part.location != "body"):
            if part.location == "path" and constraint == "minLength":
                continue  # without the segment it is another path
            value = data.draw(wrong, label=f"{part.name}: {constraint}")
            if part.location == "path" and value == "":
                continue  # another path
            requests.append((part, constraint, others | {part: value}))
        if part.required and part.location != "path":
            requests.append((part, "required", others))
    unknown = RequestPart(
        "body" if called.takes_body else "query", "nothing", False, {}
    )
    requests.append((unknown, "additionalProperties", values | {unknown: "a"}))
    for part, constraint, request in requests:
        response = await called.send(shared.http, bearer, request)
        if response.status_code == 429:  # the rate limits of the contract
            return
        detail = (part.name, constraint, response.text)
        assert response.status_code == 400, detail
        if part.is_choice and constraint == "required":  # the oneof is named
            assert [rule for _, rule in violations(response)] == ["required"], detail
            continue
        fields = [field for field, _ in violations(response)]
        assert all(names_part(part, field) for field in fields), detail


@settings(max_examples=2, database=None, deadline=None)
@given(value=st.booleans().map(lambda value: (random.random(), value)[1]))
def test_random_numbers_of_other_threads_disturb_no_draw(value: bool) -> None:
    """The exporter of spans takes one before it retries; here it is amid a draw."""
    assert value in (True, False)


async def test_numbers_are_accepted_for_64_bit_integers(shared: RunningService) -> None:
    """The document has text only; ProtoJSON accepts both, and so does the service."""
    headers = (await shared.signed_in(Role.ADMIN)).headers
    for category in (0, "0"):
        body = {"title": "a", "body": "b", "categoryId": category}
        path = "/api/v1/posts"
        response = await shared.http.post(path, json=body, headers=headers)
        assert response.status_code == 201
        assert response.json()["categoryId"] == "0"


async def test_ids_have_one_type_everywhere(served: Schema) -> None:
    """Text of format int64: in parameters, bodies and responses."""
    ids = [
        (name, schema.get("items", schema))
        for name, schema in named_schemas(served)
        if name == "ids" or re.fullmatch("id|.*(_id|Id)", name)
    ]
    names = {name for name, _ in ids}
    assert {"id", "userId", "user_id", "author_id", "categoryId", "ids"} <= names
    # identifiers, but no numbers
    texts = {"sessionId", "request_id", "requestId", "providerId"}
    wrong = [
        (name, schema)
        for name, schema in ids
        if schema.get("type") != "string"
        or ("format" not in schema and name not in texts and name != "id")
    ]
    assert not wrong
    kinds = {schema.get("format") for name, schema in ids if name == "categoryId"}
    assert kinds == {"int64"}


def named_schemas(made: Schema) -> Iterator[tuple[str, Schema]]:
    """Yield every parameter's and every property's schema with its name."""
    for _, _, operation in operations_of(made):
        for parameter in operation.get("parameters", ()):
            yield parameter["name"], parameter["schema"]
    for schema in made["components"]["schemas"].values():
        yield from schema.get("properties", {}).items()


async def test_path_parameters_of_a_resource_are_called_id(served: Schema) -> None:
    paths = {path for path in served["paths"] if "{" in path}
    named = {path for path in paths if "{id}" not in path}
    assert named == {
        "/api/v1/user-profiles/{user_id}",
        "/api/v1/users/{author_id}/posts",
        "/api/v1/unsubscribe/{token}",
    }
    assert {"/api/v1/categories/{id}", "/api/v1/auth/sessions/{id}"} <= paths


async def test_document_has_what_linters_require(served: Schema) -> None:
    """The rules of Spectral and Redocly that concern a generated document."""
    info = served["info"]
    assert all(info[name] for name in ("title", "version", "description", "contact"))
    assert info["license"]["identifier"]
    assert served["servers"]
    assert [tag["name"] for tag in served["tags"]] == ["User", "Auth", "Post"]
    assert all(tag["description"] for tag in served["tags"])
    tags = {tag["name"] for tag in served["tags"]}
    for _, path, operation in operations_of(served):
        assert set(operation["tags"]) <= tags
        assert re.fullmatch("[a-z][A-Za-z0-9]*", operation["operationId"]), path
        assert operation["summary"].endswith("."), path
        assert operation["description"], path
        statuses = set(operation["responses"])
        assert {"400", "500", "503", "default"} <= statuses, path
        assert bool(operation["security"]) <= ("401" in statuses), path
    text = json.dumps(served)
    used = set(re.findall(r'"#/components/(\w+/[\w.]+)"', text))
    parts = served["components"]
    defined = {f"{k}/{name}" for k in ("schemas", "responses") for name in parts[k]}
    assert used == defined


async def test_schemas_have_one_plain_type(served: Schema) -> None:
    """No alternatives and no doubled bounds, which client generators get wrong."""
    for schema in subschemas(served["components"]):
        bounds = [name.lower().removeprefix("exclusive") for name in schema]
        assert bounds.count("minimum") < 2
        assert bounds.count("maximum") < 2
        assert not {"anyOf", "const"} & set(schema)
        assert not isinstance(schema.get("type"), list)
        assert schema.get("type") != "null"


def subschemas(node: Any) -> Iterator[Schema]:
    """Yield every object in a part of the document, but not inside `not`."""
    if isinstance(node, dict):
        yield node
        node = [value for name, value in node.items() if name != "not"]
    if isinstance(node, list):
        for value in node:
            yield from subschemas(value)


async def test_errors_list_every_reason_of_the_contract(served: Schema) -> None:
    code = served["components"]["schemas"]["ErrorResponse"]["properties"]["errorCode"]
    assert {"EMAIL_TAKEN", "RATE_LIMITED"} <= set(code["x-extensible-enum"])
    assert "UNSPECIFIED" not in code["x-extensible-enum"]
    assert "`EMAIL_TAKEN`: ALREADY_EXISTS" in code["description"]

"""The served OpenAPI document at its word: allowed is accepted, forbidden refused."""

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from server.domain.users import Role
from tests.running import Running

Schema = dict[str, Any]
Drawn = st.SearchStrategy[Any]

# What no schema says: who may, what there is, how one value allows another.
ANSWERS = {
    "UserService_CreateUser": {
        (201, ""),
        (409, "EMAIL_TAKEN"),
        (409, "USERNAME_TAKEN"),
        (409, "REQUEST_ID_REUSED"),
        (400, "password.upper"),
        (400, "password.lower"),
        (400, "password.digit"),
        (400, "password.common"),
        (400, "password.username"),
    },
    "UserService_GetUser": {(200, ""), (404, "USER_NOT_FOUND")},
    "UserService_ListUsers": {
        (200, ""),
        (400, "page.reach"),
        (400, "page_token.foreign"),
    },
    "AuthService_Login": {(401, "INVALID_CREDENTIALS")},
    "AuthService_RefreshToken": {(401, "REFRESH_TOKEN_INVALID")},
}
GOOD_PASSWORD = "Blue7horse"  # else hardly an account would be made
# The service takes NUL in no text, of which the document says nothing.
TEXT = st.characters(codec="utf-8", exclude_characters="\0")
# Few, for refreshing is limited to 60 a minute by address, which all tests share;
# not shrunk, for that would take minutes and limits.
BOUNDED = settings(
    max_examples=6,
    phases=[Phase.generate],
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
operations = pytest.mark.parametrize("name", ANSWERS)


@dataclass(frozen=True, slots=True)
class Part:
    """A parameter, or a property of the body."""

    place: str  # path, query, header or body
    name: str
    required: bool
    schema: Schema = field(hash=False, compare=False)

    @property
    def field(self) -> str:
        """The name that a refusal has for it."""
        if self.name == "Idempotency-Key":
            return "requestId"
        first, *rest = self.name.split("_")
        return first + "".join(word.capitalize() for word in rest)


Values = dict[Part, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """What the document says of one call."""

    method: str
    path: str
    parts: tuple[Part, ...]

    async def send(
        self, http: httpx.AsyncClient, bearer: dict[str, str], values: Values
    ) -> httpx.Response:
        given: dict[str, dict[str, Any]] = {"path": {}, "query": {}, "header": {}}
        body: dict[str, Any] | None = None if self.method == "get" else {}
        for part, value in values.items():
            if part.place != "body":
                given[part.place][part.name] = written(value)
            elif body is not None:
                body[part.name] = value
        path = self.path.format(**{k: quote(v) for k, v in given["path"].items()})
        headers = bearer | given["header"]
        return await http.request(
            self.method, path, params=given["query"], headers=headers, json=body
        )


def written(value: Any) -> str:
    """Write a value as parameters do."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest_asyncio.fixture(scope="session")
async def document(shared: Running) -> dict[str, Any]:
    served = await shared.http.get("/openapi.json")
    told: dict[str, Any] = served.raise_for_status().json()
    return told


@pytest_asyncio.fixture(scope="session")
async def bearer(shared: Running) -> dict[str, str]:
    """Somebody to whom every filter is open."""
    return (await shared.signed_in(Role.ADMIN)).headers


def operation(document: dict[str, Any], name: str) -> Operation:
    """Read one operation; its body, if any, is an object of JSON."""
    ((method, path, told),) = (
        (method, path, told)
        for path, methods in document["paths"].items()
        for method, told in methods.items()
        if told["operationId"] == name
    )
    parts = [
        Part(one["in"], one["name"], one["required"], one["schema"])
        for one in told["parameters"]
    ]
    if "requestBody" in told:
        body = told["requestBody"]["content"]["application/json"]["schema"]
        if "$ref" in body:
            body = document["components"]["schemas"][body["$ref"].rpartition("/")[2]]
        assert body["additionalProperties"] is False
        parts += [
            Part("body", name, name in body.get("required", ()), schema)
            for name, schema in body["properties"].items()
        ]
    return Operation(method, path, tuple(parts))


def valid(schema: Schema) -> Drawn:
    """Give values that a schema allows."""
    if "anyOf" in schema:
        return st.one_of([valid(option) for option in schema["anyOf"]])
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema["type"] == "boolean":
        return st.booleans()
    if schema["type"] == "integer":
        return st.integers(*bounds(schema))
    return valid_text(schema)


def valid_text(schema: Schema) -> Drawn:
    least, most = schema.get("minLength", 0), schema.get("maxLength", 100)
    if schema.get("format") == "uuid":
        return st.uuids().map(str)
    if "pattern" not in schema:
        return st.text(TEXT, min_size=least, max_size=most)
    # The pattern itself says the length: a filter would throw nearly all away.
    pattern = re.sub(r"\*\$$", f"{{{least},{most}}}$", schema["pattern"])
    matching = st.from_regex(pattern, fullmatch=True)
    return matching.filter(lambda text: least <= len(text) <= most)


def bounds(schema: Schema) -> tuple[int, int]:
    least = max(schema["minimum"], schema.get("exclusiveMinimum", -(2**64)) + 1)
    most = min(schema["maximum"], schema.get("exclusiveMaximum", 2**64) - 1)
    return least, most


def edges(schema: Schema) -> Iterator[Drawn]:
    """Give the values that a schema only just allows, and all where they are few."""
    for option in schema.get("anyOf", ()):
        yield from edges(option)
    for value in (
        *schema.get("enum", ()),
        *([schema["const"]] if "const" in schema else ()),
    ):
        yield st.just(value)
    if schema.get("type") == "boolean":
        yield from (st.just(False), st.just(True))
    if schema.get("type") == "integer" and "enum" not in schema:
        yield from map(st.just, bounds(schema))
    if least := schema.get("minLength"):
        yield valid(schema).map(lambda text: text[:least])
    if most := schema.get("maxLength"):
        yield valid(schema).map(lambda text: text.rjust(most, "a"))


def main_option(schema: Schema) -> Schema:
    """Give what is broken: not the empty text, and of an enum its words."""
    options = schema.get("anyOf", [schema])
    words = [o for o in options if "enum" in o and o["type"] == "string"]
    found: Schema = words[0] if words else options[-1]
    return found


def broken(part: Part) -> Iterator[tuple[str, Drawn]]:
    """Give, for each constraint of a part, its name and values that break it alone.

    `null` is none of them: in ProtoJSON it is the same as leaving a field out.
    """
    schema = main_option(part.schema)
    if part.place == "body":
        wrong = [7, 0.5, True, ["a"], {"a": "a"}]
        yield "type", st.sampled_from(wrong)
    elif schema["type"] != "string":
        yield "type", st.sampled_from(["x", "1x", "0.5", "truee", "[]"])
    if schema["type"] == "integer":
        least, most = bounds(schema)
        yield "minimum", st.integers(max_value=least - 1)
        yield "maximum", st.integers(min_value=most + 1)
    if "enum" in schema:
        words = st.text(string.ascii_letters, min_size=1, max_size=20)
        yield "enum", words.filter(lambda word: word not in schema["enum"])
    yield from broken_text(schema)


def broken_text(schema: Schema) -> Iterator[tuple[str, Drawn]]:
    fitting = valid(schema)
    if least := schema.get("minLength"):
        yield "minLength", fitting.map(lambda text: text[: least - 1])
    if most := schema.get("maxLength"):
        yield "maxLength", fitting.map(lambda text: text.rjust(most + 1, "a"))
    if pattern := schema.get("pattern"):
        strange = [char for char in "\0\n !é" if not re.search(pattern, f"a{char}a")]
        ends = st.sampled_from([f"{char}a" for char in strange])
        cut = (most or 100) - 2
        yield "pattern", st.builds(lambda text, end: text[:cut] + end, fitting, ends)
    if schema.get("format") == "uuid":
        letters = string.ascii_letters + string.digits + "-"
        yield "format", st.text(letters, min_size=1, max_size=35)


def drawn(data: st.DataObject, called: Operation, *, whole: bool) -> Values:
    """Draw a request that the document allows, with each optional part or a choice."""
    values = {
        part: data.draw(valid(part.schema), label=part.name)
        for part in called.parts
        if part.required or whole or data.draw(st.booleans())
    }
    names = {part.field: part for part in values}  # the body's comes last, and wins
    return {part: values[part] for part in names.values()}


def reasons(answer: httpx.Response) -> list[tuple[str, str]]:
    """Give the field and the rule of each violation; without any, the reason."""
    told = answer.json()
    if answer.is_success:
        return [("", "")]
    return [
        (one["field"], one.get("reason", ""))
        for detail in told["details"]
        for one in detail.get("fieldViolations", ())
    ] or [("", told["errorCode"])]


@operations
@BOUNDED
@given(data=st.data())
async def test_what_it_allows_is_accepted(
    shared: Running,
    document: dict[str, Any],
    bearer: dict[str, str],
    name: str,
    data: st.DataObject,
) -> None:
    """A refusal has a reason that no schema can say, never a field's form."""
    called = operation(document, name)
    values = drawn(data, called, whole=False)
    for part in values:
        if part.name == "password" and data.draw(st.booleans()):
            values[part] = GOOD_PASSWORD

    # All is drawn before the first is sent: answers are no part of what is drawn.
    requests = [values]
    for part in called.parts:
        others = {one: v for one, v in values.items() if one.field != part.field}
        requests += [
            others | {part: data.draw(edge, label=part.name)}
            for edge in edges(part.schema)
        ]
    for request in requests:
        answer = await called.send(shared.http, bearer, request)
        seen = {(answer.status_code, reason) for _, reason in reasons(answer)}
        assert seen <= ANSWERS[name], (request, answer.text)


@operations
@BOUNDED
@given(data=st.data())
async def test_each_constraint_is_kept(
    shared: Running,
    document: dict[str, Any],
    bearer: dict[str, str],
    name: str,
    data: st.DataObject,
) -> None:
    """One constraint broken, all else as it should be: 400, by the field's name."""
    called = operation(document, name)
    values = drawn(data, called, whole=True)

    requests: list[tuple[Part, str, Values]] = []
    for part in called.parts:
        others = {one: v for one, v in values.items() if one.field != part.field}
        for what, wrong in broken(part):
            value = data.draw(wrong, label=f"{part.name}: {what}")
            requests.append((part, what, others | {part: value}))
        if part.required and part.place != "path":
            requests.append((part, "required", others))
    # A body says so itself; parameters that are not told are none.
    unknown = Part("query" if called.method == "get" else "body", "nothing", False, {})
    requests.append((unknown, "additionalProperties", values | {unknown: "a"}))
    for part, what, request in requests:
        answer = await called.send(shared.http, bearer, request)
        told = (part.name, what, answer.text)
        assert answer.status_code == 400, told
        assert {where for where, _ in reasons(answer)} == {part.field}, told

"""The served OpenAPI document at its word: allowed is accepted, forbidden refused."""

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
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
from tests.running import Running

Schema = dict[str, Any]
Drawn = st.SearchStrategy[Any]
NULL = {"type": "null"}
FORM = ("INVALID_FIELDS", "MALFORMED_REQUEST")  # other errors are of a state
NOBODY = 10**9  # from this id on there are none

# Rules that no schema says: what is common, who may, how one value allows another.
UNSAID = re.compile(
    r"password\..*|page\.reach|page_token\.foreign|filter\.admin_only"
    r"|page_size\..*|update_mask\..*|timestamp\.gt_now|session\.id|weights\..*"
    r"|email\.local_part"
    r"|[a-z_]+\.known"
)
UNCALLED = {
    "AuthService_Logout",  # they end what all the other calls stand on
    "AuthService_LogoutAll",
}
GOOD_PASSWORD = "Blue7horse"  # else hardly an account would be made
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
NAMES = sorted(
    told["operationId"]
    for methods in document(contract.descriptors(), EdgeSettings())["paths"].values()
    for told in methods.values()
    if set(told["responses"]) & {"201", "204"}
    or set(told["responses"]["200"]["content"]) == {"application/json"}
)
operations = pytest.mark.parametrize("name", [n for n in NAMES if n not in UNCALLED])


@dataclass(frozen=True, slots=True)
class Part:
    """A parameter, or a property of the body."""

    place: str  # path, query, header or body
    name: str
    required: bool
    schema: Schema = field(hash=False, compare=False)  # without null
    takes_null: bool = False

    @property
    def field(self) -> str:
        """The name that a refusal has for it."""
        return re.sub("_(.)", lambda hump: hump[1].upper(), self.name)


Values = dict[Part, Any]


@dataclass(frozen=True, slots=True)
class Operation:
    """What the document says of one call."""

    method: str
    path: str
    parts: tuple[Part, ...]
    takes_body: bool

    async def send(
        self, http: httpx.AsyncClient, bearer: dict[str, str], values: Values
    ) -> httpx.Response:
        given: dict[str, dict[str, Any]] = {"path": {}, "query": {}, "header": {}}
        body: dict[str, Any] | None = {} if self.takes_body else None
        for part, value in values.items():
            if part.place != "body":
                given[part.place][part.name] = written(value)
            elif body is not None:
                body[part.name] = value
        path = self.path.format(**{k: quote(v, "") for k, v in given["path"].items()})
        headers = bearer | given["header"]
        return await http.request(
            self.method, path, params=given["query"], headers=headers, json=body
        )


def written(value: Any) -> Any:
    """Write a value as parameters do; a list is repeated."""
    if isinstance(value, list):
        return [written(one) for one in value]
    return str(value).lower() if isinstance(value, bool) else str(value)


@pytest_asyncio.fixture(scope="session")
async def served(shared: Running) -> dict[str, Any]:
    answer = await shared.http.get("/openapi.json")
    told: dict[str, Any] = answer.raise_for_status().json()
    return told


@pytest_asyncio.fixture(scope="session")
async def bearer(shared: Running) -> dict[str, str]:
    """Somebody to whom every filter is open."""
    return (await shared.signed_in(Role.ADMIN)).headers


def operation(served: dict[str, Any], name: str) -> Operation:
    """Read one operation; its body, if any, is an object of JSON."""
    ((method, path, told),) = (
        (method, path, told)
        for path, methods in served["paths"].items()
        for method, told in methods.items()
        if told["operationId"] == name
    )
    parts = [
        Part(one["in"], one["name"], one["required"], plain(one["schema"], served))
        for one in told["parameters"]
    ]
    content = told.get("requestBody", {}).get("content", {})
    if "application/json" in content:
        body = plain(content["application/json"]["schema"], served)
        assert body["additionalProperties"] is False
        parts += [
            Part("body", name, name in body["required"], *without_null(schema))
            for name, schema in body["properties"].items()
        ]
    return Operation(method, path, tuple(parts), "application/json" in content)


def plain(schema: Schema, served: dict[str, Any]) -> Schema:
    """Give a schema with what it refers to in the place of references."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        schema = served["components"]["schemas"][name]
    made = dict(schema)
    if "anyOf" in made:
        made["anyOf"] = [plain(option, served) for option in made["anyOf"]]
    if "items" in made:
        made["items"] = plain(made["items"], served)
    if "properties" in made:
        fields = made["properties"].items()
        made["properties"] = {n: plain(told, served) for n, told in fields}
        made.setdefault("required", [])
    return made


def without_null(schema: Schema) -> tuple[Schema, bool]:
    """Give the schema of what is there, and whether null may stand for absence."""
    options = schema.get("anyOf", ())
    if NULL in options:
        left = [option for option in options if option != NULL]
        return (left[0] if len(left) == 1 else schema | {"anyOf": left}), True
    if isinstance(schema.get("type"), list):
        made = schema | {"type": schema["type"][0]}
        if "enum" in made:
            made["enum"] = [value for value in made["enum"] if value is not None]
        return made, True
    return schema, False


def valid(schema: Schema) -> Drawn:
    """Give values that a schema allows."""
    schema, _ = without_null(schema)
    if "anyOf" in schema:
        return st.one_of([valid(option) for option in schema["anyOf"]])
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    return {
        "boolean": lambda _: st.booleans(),
        "integer": lambda told: st.integers(*bounds(told)),
        "number": lambda told: st.floats(
            told.get("minimum", 0), told.get("maximum", 1)
        ),
        "array": valid_list,
        "object": valid_object,
        "string": valid_text,
    }[schema["type"]](schema)


def fitting(part: Part) -> Drawn:
    """Give values for a part; a path names nobody on whom other tests stand.

    No mask: one that names what cannot be written is at fault as well.
    """
    if part.name == "update_mask":
        return st.just("")
    if part.place == "path" and part.schema["type"] == "integer":
        return st.integers(NOBODY, part.schema["maximum"])
    return valid(part.schema)


def valid_list(schema: Schema) -> Drawn:
    least, most = schema.get("minItems", 0), min(schema.get("maxItems", 3), 3)
    return st.lists(valid(schema["items"]), min_size=least, max_size=max(least, most))


def valid_object(schema: Schema) -> Drawn:
    needed = {n: valid(schema["properties"][n]) for n in schema["required"]}
    rest = {n: valid(told) for n, told in schema["properties"].items()}
    return st.fixed_dictionaries(
        needed, optional={n: drawn for n, drawn in rest.items() if n not in needed}
    )


def valid_text(schema: Schema) -> Drawn:
    least, most = schema.get("minLength", 0), schema.get("maxLength", 100)
    if schema.get("format") == "uuid":
        return st.uuids().map(str)
    if schema.get("format") == "date-time":
        return st.integers(4_000_000_000, 9_000_000_000).map(moment)
    if "pattern" not in schema:
        return st.text(TEXT, min_size=least, max_size=most)
    # The pattern itself says the length: a filter would throw nearly all away.
    pattern = re.sub(r"\*\$$", f"{{{least},{most}}}$", schema["pattern"])
    matching = st.from_regex(pattern, fullmatch=True)
    return matching.filter(lambda text: least <= len(text) <= most)


def moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


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
    if schema.get("type") != "string":
        return
    if least := schema.get("minLength"):
        yield valid(schema).map(lambda text: text[:least])
    if most := schema.get("maxLength"):
        yield valid(schema).map(lambda text: longer(text, most, schema))


def longer(text: str, most: int, schema: Schema) -> str:
    """Give a text of the greatest length, if its pattern allows that."""
    made = text.rjust(most, "a")
    return made if re.search(schema.get("pattern", ""), made) else text


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
        wrong: list[object] = [
            ["a"],
            *([] if schema["type"] == "object" else [{"a": "a"}]),
        ]
        wrong += [] if schema["type"] == "number" else [7.25]
        wrong += [] if schema["type"] == "boolean" else [True]
        yield "type", st.sampled_from(wrong)
    elif schema["type"] in ("integer", "number", "boolean"):
        fraction = [] if schema["type"] == "number" else ["0.5"]
        yield "type", st.sampled_from(["x", "1x", "truee", "[]", *fraction])
    if schema["type"] == "integer":
        least, most = bounds(schema)
        yield "minimum", st.integers(max_value=least - 1)
        yield "maximum", st.integers(min_value=most + 1)
    if "enum" in schema:
        words = st.text(string.ascii_letters, min_size=1, max_size=20)
        yield "enum", words.filter(lambda word: word not in schema["enum"])
    for name, drawn in broken_text(schema):
        if part.place != "path" or name != "minLength":  # empty, it is another path
            yield name, drawn


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
        bad = st.builds(lambda text, end: text[:cut] + end, fitting, ends)
        yield "pattern", bad.filter(lambda text: not re.search(pattern, text))
    if schema.get("format") == "uuid":
        letters = string.ascii_letters + string.digits + "-"
        yield "format", st.text(letters, min_size=1, max_size=35)


def drawn(data: st.DataObject, called: Operation, *, whole: bool) -> Values:
    """Draw a request that the document allows, with each optional part or a choice."""
    values = {
        part: data.draw(fitting(part), label=part.name)
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


def blames(part: Part, field: str) -> bool:
    """Tell whether a refusal names a part; a body's may stand below its resource.

    Paths that look alike share their parameters' names, so of those any will do.
    """
    name = re.sub(r"\[.*", "", field)
    return part.place == "path" or f".{name}".endswith(f".{part.field}")


@operations
@BOUNDED
@given(data=st.data())
async def test_what_it_allows_is_accepted(
    shared: Running,
    served: dict[str, Any],
    bearer: dict[str, str],
    name: str,
    data: st.DataObject,
) -> None:
    """A refusal has a reason that no schema can say, never a field's form."""
    called = operation(served, name)
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
            for edge in (edges(part.schema) if part.place != "path" else ())
        ]
        if part.takes_null:
            requests.append(others | {part: None})
    for request in requests:
        answer = await called.send(shared.http, bearer, request)
        told = (request, answer.text)
        assert answer.status_code < 500, told
        if answer.status_code == 400 and answer.json()["errorCode"] in FORM:
            assert all(UNSAID.fullmatch(rule) for _, rule in reasons(answer)), told


@operations
@BOUNDED
@given(data=st.data())
async def test_each_constraint_is_kept(
    shared: Running,
    served: dict[str, Any],
    bearer: dict[str, str],
    name: str,
    data: st.DataObject,
) -> None:
    """One constraint broken, all else as it should be: 400, by the field's name."""
    called = operation(served, name)
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
    unknown = Part("body" if called.takes_body else "query", "nothing", False, {})
    requests.append((unknown, "additionalProperties", values | {unknown: "a"}))
    for part, what, request in requests:
        answer = await called.send(shared.http, bearer, request)
        told = (part.name, what, answer.text)
        if answer.status_code == 429:  # by the contract's rates
            return
        assert answer.status_code == 400, told
        faults = [f for f in reasons(answer) if f[1] != "email.local_part"]
        assert all(blames(part, where) for where, _ in faults), told

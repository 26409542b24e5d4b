"""Work of the edge in this process: JSON of a list, and routing (P8, P11)."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from google.protobuf import json_format

from blatam.user.v1 import user_pb2
from edge.config import EdgeSettings
from edge.routing.bindings import read_bindings
from edge.routing.router import Router, pick
from edge.schema.codec import Codec
from tests.edge.service import routes
from tests.load.row import ResultRow
from tests.load.stopwatch import Work, race

CONTRACT = Path(__file__).parents[2] / "generated" / "contract.binpb"
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
LOOKUPS = 500
# The routes of one collection.
RULES = (
    {"get": "/api/v1/{name}"},
    {"post": "/api/v1/{name}", "body": "*"},
    {"get": "/api/v1/{name}/{{int64_field}}"},
    {"patch": "/api/v1/{name}/{{int64_field}}", "body": "*"},
    {"post": "/api/v1/{name}/{{int64_field}}:close", "body": "*"},
)


def rows() -> list[ResultRow]:
    """Return P8 (JSON of 100 users) and P11 (growth and time of a route look-up)."""
    return [_list(), *_lookup()]


def _list() -> ResultRow:
    wire = _hundred_users()
    codec = Codec(CONTRACT.read_bytes())
    (method,) = [m for m in codec.methods() if m.name == "ListUsers"]
    shape = codec.shape(method.output)

    def json_format_bytes() -> bytes:
        message = user_pb2.ListUsersResponse.FromString(wire)
        return json_format.MessageToJson(
            message, always_print_fields_with_no_presence=True, indent=None
        ).encode()

    def codec_bytes() -> bytes:
        return codec.to_json(shape.type.from_binary(wire), shape)

    if json.loads(json_format_bytes()) != json.loads(codec_bytes()):
        raise RuntimeError("json_format and the codec differ")
    result = race(json_format_bytes, codec_bytes)
    notes = (
        f"message bytes to JSON bytes: {result.bare_us:.0f} / {result.ours_us:.0f} us"
    )
    return ResultRow("P8 list of 100 users / json_format", result.ratio, 6, notes=notes)


def _hundred_users() -> bytes:
    """Return the page of 100 users that an admin gets."""
    page = user_pb2.ListUsersResponse(total=1000, page=1, size=100, pages=10)
    for number in range(1, 101):
        user = page.items.add(
            id=number,
            email=f"student.number{number}@example.com",
            username=f"student_number{number}",
            is_active=True,
            role=user_pb2.ROLE_STUDENT,
            email_verified=bool(number % 3),
            etag=f"{number:x}",
        )
        user.created_at.FromDatetime(NOW + timedelta(minutes=number))
        user.updated_at.FromDatetime(NOW + timedelta(days=number))
    return page.SerializeToString()


def _lookup() -> list[ResultRow]:
    result = race(_lookups(10), _lookups(500))
    few, many = result.bare_us / LOOKUPS, result.ours_us / LOOKUPS
    notes = f"10 bindings {few:.2f} us, 500 bindings {many:.2f} us"
    growth, time = (
        "P11 route look-up, 500 / 10 bindings",
        "P11 route look-up, 500 bindings",
    )
    return [
        ResultRow(growth, 1 / result.ratio, 1.3, better="lower", notes=notes),
        ResultRow(time, many, 2, better="lower", unit="us"),
    ]


def _lookups(bindings: int) -> Work:
    """Return a function that looks up LOOKUPS paths, of each route equally often."""
    names = [f"things{number}" for number in range(bindings // len(RULES))]
    rules = [
        {kind: text.format(name=name) for kind, text in rule.items()}
        for name in names
        for rule in RULES
    ]
    codec = Codec(routes(rules))
    router = Router([*read_bindings(codec, EdgeSettings())])
    requests = [_request(rule) for rule in rules] * (LOOKUPS // bindings)
    find = router.find
    if not all(pick(find(path, verb)[0], method) for path, verb, method in requests):
        raise RuntimeError("a route is not found")

    def look_up_all() -> None:
        for path, verb, method in requests:
            pick(find(path, verb)[0], method)

    return look_up_all


def _request(rule: dict[str, str]) -> tuple[list[str], str, str]:
    """Return the path segments, verb and method of a request for a rule."""
    method, text = next(iter(rule.items()))
    path, _, verb = text.replace("{int64_field}", "123456").partition(":")
    return path[1:].split("/"), verb, method.upper()

"""Responses of operations: the successful one, and errors by HTTP status."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from edge.config import EdgeSettings
from edge.errors import HTTP_STATUS_BY_CODE, Code
from edge.http.negotiation import EVENTS, JSON, NDJSON
from edge.responses.reply import status_of
from edge.routing.bindings import Binding
from edge.schema.components import Schemas, comment
from edge.schema.kinds import Schema

_TEXT: Schema = {"type": "string"}
BINARY: Schema = {"type": "string", "format": "binary"}
_SUCCESS = {200: "Success.", 201: "The resource was created.", 204: "Success."}
# By HTTP status: the name of the shared response, and its description.
_ERRORS = {
    400: ("BadRequest", "The request is malformed, or a field is invalid."),
    401: ("Unauthorized", "The credentials are missing or invalid."),
    403: ("Forbidden", "The caller has no permission for this call."),
    404: ("NotFound", "The resource does not exist."),
    409: ("Conflict", "The request conflicts with the current state."),
    412: ("PreconditionFailed", "The resource does not match `If-Match`."),
    413: ("ContentTooLarge", "The request body is too large."),
    415: ("UnsupportedMediaType", "The body's media type or coding is not supported."),
    429: ("TooManyRequests", "A rate limit is exceeded, or the service is overloaded."),
    499: ("ClientClosedRequest", "The client closed the request."),
    500: (
        "InternalServerError",
        "An unexpected error. The logs contain the request id.",
    ),
    501: ("NotImplemented", "The method is not implemented."),
    503: ("ServiceUnavailable", "The service is unavailable; retry later."),
    504: ("GatewayTimeout", "The call did not complete before its deadline."),
}
_DEFAULT = ("Default", "Any other error.")
_HEADERS: dict[int, Schema] = {
    401: {
        "WWW-Authenticate": {
            "description": "The authentication scheme, and which log-in is needed.",
            "schema": _TEXT,
        }
    },
    429: {
        "Retry-After": {
            "description": "The time to wait before a retry, in seconds.",
            "schema": {"type": "integer"},
        }
    },
}
_HEADERS[503] = _HEADERS[429]


class Responses:
    """Writes the responses of each operation; errors alike are shared components."""

    def __init__(self, schemas: Schemas, settings: EdgeSettings) -> None:
        self._schemas = schemas
        self._settings = settings
        self.shared: dict[str, Any] = {}

    def of(self, binding: Binding, errors: Mapping[int, str]) -> dict[str, Any]:
        """Return the responses by status; `errors` are those that the comment names."""
        responses = {str(status_of(binding, self._settings)): self._success(binding)}
        for status, text in sorted(self._errors(binding, errors).items()):
            responses[str(status)] = self._error(status, text)
        responses["default"] = self._reference(_DEFAULT[0], _response(_DEFAULT[1]))
        return responses

    def _errors(
        self, binding: Binding, errors: Mapping[int, str]
    ) -> dict[int, list[str]]:
        """Return the errors of a binding with what is known of each, by HTTP status."""
        found: defaultdict[int, list[str]] = defaultdict(list)
        for code, text in errors.items():
            found[HTTP_STATUS_BY_CODE[code]].append(text)
            if code == Code.ABORTED and "If-Match" in binding.headers:
                found[412].append("With `If-Match`, in place of 409.")
        statuses = [400, 500, 503, 504]
        if binding.method not in self._settings.public_methods:
            statuses.append(401)
        if text := self._settings.access.get(binding.method, ""):
            found[403].append(text)
        if text := self._settings.step_up.get(binding.method, ""):
            found[401].append(text)
        if "Idempotency-Key" in binding.headers:
            found[409].append("The idempotency key was used for a different request.")
        if binding.takes_body:
            statuses += [413, 415]
        if binding.method in self._settings.rate_limits:
            statuses += [429] if self._settings.rate_limits[binding.method] else []
        for status in statuses:
            found[status]  # the description of the status is enough
        return found

    def _error(self, status: int, texts: list[str]) -> dict[str, Any]:
        name, description = _ERRORS[status]
        texts = list(dict.fromkeys(texts))
        if not texts:
            return self._reference(name, _response(description, status))
        return _response(" ".join([description, *texts]), status)

    def _reference(self, name: str, response: dict[str, Any]) -> dict[str, Any]:
        self.shared[name] = response
        return {"$ref": f"#/components/responses/{name}"}

    def _success(self, binding: Binding) -> dict[str, Any]:
        status = status_of(binding, self._settings)
        field = binding.reply_field
        text = comment(field.desc) if field and not binding.raw_reply else ""
        response: dict[str, Any] = {"description": text or _SUCCESS[status]}
        if status != 204:
            response["content"] = self._content(binding)
        if binding.etag:
            description = "The version of the resource, for `If-Match`."
            tag = {"description": description, "schema": _TEXT}
            response["headers"] = {"ETag": tag}
        return response

    def _content(self, binding: Binding) -> dict[str, Any]:
        if binding.raw_reply:
            return {"*/*": {"schema": BINARY}}
        schema: Schema = {}
        if binding.resource is not None:
            schema = self._schemas.message(binding.resource, request=False)
        elif binding.reply_field is not None:
            schema = self._schemas.field(binding.reply_field, request=False)
        if alternatives := [*self._alternatives(binding)]:
            schema = {"oneOf": [schema, *alternatives]}
        if not binding.streams:
            return {JSON: {"schema": schema}}
        lines = "One JSON value of the array on each line."
        events = "One event with one JSON value of the array as its data."
        return {
            JSON: {"schema": {"type": "array", "items": schema}},
            NDJSON: {"schema": _TEXT | {"description": lines}},
            EVENTS: {"schema": _TEXT | {"description": events}},
        }

    def _alternatives(self, binding: Binding) -> Iterator[Schema]:
        """Yield what is sent if another member of the reply's oneof is set."""
        field = binding.reply_field
        if field is None or field.oneof is None:
            return
        for member in binding.reply.fields:
            if member.oneof == field.oneof and member is not field:
                name = member.json_name
                yield {
                    "type": "object",
                    "title": f"{binding.desc.name}{name[:1].upper()}{name[1:]}",
                    "required": [name],
                    "properties": {name: self._schemas.field(member, request=False)},
                }


def _response(description: str, status: int = 0) -> dict[str, Any]:
    """Return an error response."""
    content = {JSON: {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}
    response: dict[str, Any] = {"description": description}
    if status in _HEADERS:
        response["headers"] = _HEADERS[status]
    return response | {"content": content}


def error_schema(reasons: Mapping[str, str]) -> Schema:
    """Return the schema of every error body; `reasons` are values of `errorCode`."""
    sentence = "The machine-readable reason; new reasons may be added."
    code = _TEXT | {"description": sentence}
    if reasons:
        listed = "\n".join(f"- `{name}`: {text}" for name, text in reasons.items())
        code["description"] += f" The reasons are:\n\n{listed}"
        code["examples"] = list(reasons)[:1]
        code["x-extensible-enum"] = list(reasons)
    detail = {"type": "object", "required": ["@type"], "properties": {"@type": _TEXT}}
    properties: Schema = {
        "error": _TEXT | {"description": "The error message, for human readers."},
        "errorCode": code,
        "timestamp": _TEXT | {"format": "date-time", "description": "The time (UTC)."},
        "code": {
            "type": "integer",
            "format": "int32",
            "description": "The number of the google.rpc.Code.",
        },
        "status": _TEXT | {"description": "The name of the google.rpc.Code."},
        "requestId": _TEXT | {"description": "The id of the request in the logs."},
        "details": {
            "type": "array",
            "items": detail | {"additionalProperties": True},
            "description": "google.rpc error details, such as BadRequest.",
        },
    }
    return {
        "type": "object",
        "description": "The body of every error.",
        "required": list(properties),
        "properties": properties,
    }

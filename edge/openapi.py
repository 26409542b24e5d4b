"""OpenAPI 3.1 out of the very bindings that route."""

from collections.abc import Iterator, Sequence
from typing import Any

from protobuf import DescField, DescMessage

from edge.bindings import Binding, read_bindings
from edge.codec import Codec
from edge.config import EdgeSettings
from edge.manners.negotiation import EVENTS, JSON, NDJSON
from edge.reply import plan
from edge.request import is_raw_body
from edge.schema.comments import read_comments
from edge.schema.parameters import FieldPathError, converter
from edge.schema.rules import Rules
from edge.schema.shapes import element_of, is_map, message_of
from edge.schema.types import Schema, TypeMapper

_NESTING = 3  # levels of messages whose fields are told as query parameters
_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_ERROR: Schema = {
    "type": "object",
    "description": "What went wrong; the same for every error.",
    "required": [
        "error",
        "errorCode",
        "timestamp",
        "code",
        "status",
        "requestId",
        "details",
    ],
    "properties": {
        "error": {"type": "string", "description": "A sentence for people."},
        "errorCode": {"type": "string", "description": "The reason, for programs."},
        "timestamp": {"type": "string", "format": "date-time"},
        "code": {"type": "integer", "description": "A google.rpc.Code."},
        "status": {"type": "string", "description": "The code's name."},
        "requestId": {"type": "string", "description": "Names the request in logs."},
        "details": {
            "type": "array",
            "items": {"type": "object", "properties": {"@type": {"type": "string"}}},
        },
    },
}
_BEARER = {"bearer": {"type": "http", "scheme": "bearer"}}


def document(descriptors: bytes, settings: EdgeSettings) -> dict[str, Any]:
    """Give the OpenAPI document of a descriptor set; raises what create_app raises."""
    codec = Codec(descriptors)
    bindings = tuple(read_bindings(codec, settings.extra_bindings))
    return describe(codec, bindings, settings)


def describe(
    codec: Codec, bindings: Sequence[Binding], settings: EdgeSettings
) -> dict[str, Any]:
    """Give the OpenAPI document of bindings."""
    return _Document(codec, settings).of(bindings)


class _Document:
    def __init__(self, codec: Codec, settings: EdgeSettings) -> None:
        self._settings = settings
        self._comments = read_comments(codec.files.file)
        self._types = TypeMapper(Rules(codec.registry), self._comments)
        self._names: set[str] = set()

    def of(self, bindings: Sequence[Binding]) -> dict[str, Any]:
        paths: dict[str, dict[str, Any]] = {}
        for binding in bindings:
            verb = "post" if binding.verb == "*" else binding.verb.lower()
            if verb in _METHODS:
                paths.setdefault(_path(binding), {})[verb] = self._operation(binding)
        info = {"title": self._settings.title, "version": self._settings.version}
        if self._settings.description:
            info["description"] = self._settings.description
        made: dict[str, Any] = {"openapi": "3.1.0", "info": info, "paths": paths}
        if self._settings.public_url:
            made["servers"] = [{"url": self._settings.public_url}]
        made["tags"] = self._tags(bindings)
        schemas = {**self._types.components, "Error": _ERROR}
        made["components"] = {"schemas": schemas, "securitySchemes": _BEARER}
        return made

    def _tags(self, bindings: Sequence[Binding]) -> list[dict[str, str]]:
        services = {binding.desc.parent.type_name: binding for binding in bindings}
        return [
            {"name": binding.desc.parent.name, "description": self._told(name)}
            for name, binding in services.items()
        ]

    def _told(self, name: str) -> str:
        return self._comments.get(name, "")

    def _operation(self, binding: Binding) -> dict[str, Any]:
        method = binding.desc
        told = self._told(f"{method.parent.type_name}.{method.name}")
        limits = self._settings.rate_limits.get(binding.method, ())
        if limits:
            told += "\n\nLimits: " + "; ".join(limits) + "."
        made: dict[str, Any] = {
            "operationId": self._unique(f"{method.parent.name}_{method.name}"),
            "tags": [method.parent.name],
            "summary": told.partition("\n")[0],
            "description": told.strip(),
            "parameters": [*self._parameters(binding), *self._headers(binding)],
            "responses": self._responses(binding),
        }
        public = binding.method in self._settings.public_methods
        made["security"] = [] if public else [{"bearer": []}]
        if limits:
            made["x-rate-limits"] = list(limits)
        if method.deprecated:
            made["deprecated"] = True
        if binding.takes_body:
            made["requestBody"] = self._body(binding)
        return made

    def _unique(self, name: str) -> str:
        """Give an operation id, numbered from the second binding of a method on."""
        made, count = name, 1
        while made in self._names:
            count += 1
            made = f"{name}_{count}"
        self._names.add(made)
        return made

    def _parameters(self, binding: Binding) -> Iterator[dict[str, Any]]:
        taken: set[tuple[DescField, ...]] = set()
        for variable in binding.variables:
            fields = variable.parameter.fields
            taken.add(fields)
            name = ".".join(field.name for field in fields)
            yield self._parameter(name, "path", fields[-1], required=True)
        if not binding.body_all:
            rest = [f for f in binding.request.desc.fields if f != binding.body_field]
            yield from self._queries(rest, (), taken)

    def _queries(
        self,
        fields: Sequence[DescField],
        above: tuple[DescField, ...],
        taken: set[tuple[DescField, ...]],
    ) -> Iterator[dict[str, Any]]:
        for field in fields:
            path = (*above, field)
            if path in taken or is_map(field):
                continue
            if _is_text(field):
                name = ".".join(part.name for part in path)
                needed = not above and self._types.is_needed(field, request=True)
                yield self._parameter(name, "query", field, required=needed)
            elif (message := _plain_message(field)) and len(path) < _NESTING:
                yield from self._queries(message.fields, path, taken)

    def _parameter(
        self, name: str, place: str, field: DescField, *, required: bool
    ) -> dict[str, Any]:
        schema = self._types.field(field, request=True)
        told = schema.pop("description", "")
        made = {"name": name, "in": place, "required": required, "schema": schema}
        return {**made, "description": told} if told else made

    def _headers(self, binding: Binding) -> Iterator[dict[str, Any]]:
        """Give the headers that fill request fields."""
        told = {
            "Idempotency-Key": (binding.request_id, "The same as `request_id`."),
            "If-Match": (binding.etag, "The entity tag that must still hold."),
            "Last-Event-ID": (binding.resume, "The same as `resume_token`."),
        }
        for name, (parameter, text) in told.items():
            if parameter is not None:
                field = parameter.fields[-1]
                made = self._parameter(name, "header", field, required=False)
                yield {**made, "description": text}

    def _body(self, binding: Binding) -> dict[str, Any]:
        if is_raw_body(binding):
            return {"content": {"*/*": {}}}
        if binding.body_field is not None:
            schema = self._types.field(binding.body_field, request=True)
        else:
            schema = self._whole_body(binding)
        needed = self._types.resolved(schema).get("required")
        return {
            "required": bool(binding.body_field or needed),
            "content": {JSON: {"schema": schema}},
        }

    def _whole_body(self, binding: Binding) -> Schema:
        """Give the request's own schema, without what its path says."""
        reference = self._types.element(binding.request.desc, request=True)
        whole = self._types.resolved(reference)
        bound = {".".join(v.parameter.names) for v in binding.variables}
        if not bound:
            return reference
        made = dict(whole)
        made["properties"] = {
            name: schema
            for name, schema in whole["properties"].items()
            if name not in bound
        }
        made["required"] = [n for n in whole.get("required", ()) if n not in bound]
        return made

    def _responses(self, binding: Binding) -> dict[str, Any]:
        status = plan(binding, self._settings).status
        error = {
            "description": "An error.",
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        good: dict[str, Any] = {"description": "It went well."}
        if status != 204:
            good["content"] = self._answers(binding)
        return {str(status): good, "default": error}

    def _answers(self, binding: Binding) -> dict[str, Any]:
        if binding.raw_reply:
            return {"*/*": {}}
        if binding.reply_field is not None and binding.resource is None:
            schema = self._types.field(binding.reply_field, request=False)
        else:
            sent = binding.resource or binding.reply
            schema = self._types.element(sent.desc, request=False)
        if not binding.streams:
            return {JSON: {"schema": schema}}
        array = {"type": "array", "items": schema}
        lines = {"type": "string", "description": "One such JSON text a line or event."}
        return {JSON: {"schema": array}, NDJSON: {"schema": lines}, EVENTS: {}}


def _is_text(field: DescField) -> bool:
    try:
        converter(element_of(field))
    except FieldPathError:
        return False
    return True


def _plain_message(field: DescField) -> DescMessage | None:
    message = message_of(field)
    return message if message and not message.type_name.startswith("google.") else None


def _path(binding: Binding) -> str:
    """Give a template as OpenAPI writes it: a variable's own pattern is left out."""
    template = binding.template
    parts: list[str] = [segment or "{*}" for segment in template.segments]
    for variable in reversed(template.variables):
        end = len(parts) if variable.end is None else variable.end
        parts[variable.start : end] = [f"{{{variable.field}}}"]
    return "/" + "/".join(parts) + (f":{template.verb}" if template.verb else "")

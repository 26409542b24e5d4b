"""OpenAPI 3.1 out of the very bindings that route."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from edge.bindings import Binding, read_bindings
from edge.codec import Codec
from edge.config import EdgeSettings
from edge.http.negotiation import EVENTS, JSON, NDJSON
from edge.reply import status_of
from edge.schema.constraints import Schemas, comment
from edge.schema.fields import Field, Parameter, Schema, find_string
from edge.template import Variable

_log = logging.getLogger("edge")
_NESTING = 3  # levels of messages whose fields are told as query parameters
_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_ERROR_FIELDS: Schema = {
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
}
_ERROR: Schema = {
    "type": "object",
    "description": "What went wrong; the same for every error.",
    "required": list(_ERROR_FIELDS),
    "properties": _ERROR_FIELDS,
}


def document(descriptors: bytes, settings: EdgeSettings) -> dict[str, Any]:
    """Give the OpenAPI document of a descriptor set; raises what create_app raises."""
    codec = Codec(descriptors)
    return describe(codec, tuple(read_bindings(codec, settings)), settings)


def describe(
    codec: Codec, bindings: Sequence[Binding], settings: EdgeSettings
) -> dict[str, Any]:
    """Give the OpenAPI document of bindings."""
    writer = _Writer(codec, settings)
    info = {"title": settings.title, "version": settings.version}
    if settings.description:
        info["description"] = settings.description
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": info,
        "paths": writer.paths(bindings),
    }
    if settings.public_url:
        made["servers"] = [{"url": settings.public_url}]
    services = {binding.desc.parent.name: binding.desc.parent for binding in bindings}
    made["tags"] = [
        {"name": name, "description": comment(service)}
        for name, service in services.items()
    ]
    made["components"] = {
        "schemas": {**writer.schemas.components, "Error": _ERROR},
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
    }
    return made


class _Writer:
    def __init__(self, codec: Codec, settings: EdgeSettings) -> None:
        self._settings = settings
        self._ids: set[str] = set()
        self._shapes: dict[str, Sequence[str]] = {}  # paths by what they look like
        self.schemas = Schemas(codec.registry, settings.text_pattern)

    def paths(self, bindings: Sequence[Binding]) -> dict[str, Any]:
        """Give every path's operations; of two that look alike the first one is told.

        A binding of any method is told as POST, where no other one is.
        """
        paths: dict[str, dict[str, Any]] = {}
        for binding in sorted(bindings, key=lambda one: one.verb == "*"):
            verb = "post" if binding.verb == "*" else binding.verb.lower()
            path = self._path(binding)
            if verb in paths.get(path, ()):
                told = "the OpenAPI document leaves out %s %s: %s is another method's"
                _log.warning(told, binding.verb, binding.template.text, path)
            else:
                key = verb if verb in _METHODS else f"x-{verb}"  # OpenAPI knows no more
                paths.setdefault(path, {})[key] = self._operation(binding)
        return paths

    def _names(self, binding: Binding) -> Sequence[str]:
        """Give the names of a path's wildcards, without dots.

        Paths that differ in nothing but these names are one path to OpenAPI (3.1,
        Paths Object), so the first one's names serve for all.
        """
        told = [
            v.field.replace(".", "_") if v else "segment" for v, _ in _wild(binding)
        ]
        names = [
            f"{name}_{told[: index + 1].count(name)}" if told.count(name) > 1 else name
            for index, name in enumerate(told)
        ]
        return self._shapes.setdefault(_shape(binding, ["" for _ in names]), names)

    def _path(self, binding: Binding) -> str:
        return _shape(binding, self._names(binding))

    def _operation(self, binding: Binding) -> dict[str, Any]:
        method = binding.desc
        told = comment(method)
        limits = self._settings.rate_limits.get(binding.method, ())
        if limits:
            told += "\n\nLimits: " + "; ".join(limits) + "."
        for header, parameter in binding.headers.items():
            told += f"\n\nThe header `{header}` may say `{parameter.path}`."
        for cookie in self._settings.cookies:
            if field := {**cookie.reply_fields, **cookie.request_fields}.get(
                binding.method
            ):
                told += (
                    f"\n\nWith the header `X-Token-Mode: cookie`, `{field}` is not in "
                )
                told += f"the body but in the cookie `__Host-{cookie.name}`."
        public = binding.method in self._settings.public_methods
        made: dict[str, Any] = {
            "operationId": self._unique(f"{method.parent.name}_{method.name}"),
            "tags": [method.parent.name],
            "summary": told.partition("\n")[0],
            "description": told.strip(),
            "parameters": [*self._parameters(binding)],
            "responses": self._responses(binding),
            "security": [] if public else [{"bearer": []}],
        }
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
        while made in self._ids:
            count += 1
            made = f"{name}_{count}"
        self._ids.add(made)
        return made

    def _parameters(self, binding: Binding) -> Iterator[dict[str, Any]]:
        """Give what stands in the path and the query.

        Headers that say the same as a field are text, else a client would send both.
        """
        taken = {parameter.fields for _, parameter in binding.variables}
        named = zip(self._names(binding), _wild(binding), strict=True)
        for name, (variable, parameter) in named:
            made = {"in": "path", "required": True, "schema": {"type": "string"}}
            if parameter and variable and variable.single:
                made = self._parameter(parameter.fields, "path", required=True)
            elif parameter:
                made["description"] = f"A part of `{parameter.path}`."
            yield made | {"name": name}
        if not binding.whole_body:
            rest = [f for f in binding.request.fields if f is not binding.body_field]
            yield from self._queries(rest, (), taken)

    def _queries(
        self,
        fields: Sequence[Field],
        above: tuple[Field, ...],
        taken: set[tuple[Field, ...]],
    ) -> Iterator[dict[str, Any]]:
        for field in fields:
            path = (*above, field)
            if path in taken or field.many is dict:
                continue
            if field.kind.read is not None:
                needed = not above and self.schemas.is_needed(field, request=True)
                yield self._parameter(path, "query", required=needed)
            elif field.nested and not field.many and len(path) < _NESTING:
                of_google = field.nested.name.startswith("google.")
                inner = () if of_google else field.nested.fields
                yield from self._queries(inner, path, taken)

    def _parameter(
        self, path: Sequence[Field], place: str, *, required: bool
    ) -> dict[str, Any]:
        name = ".".join(field.name for field in path)
        schema = self.schemas.field(path[-1], request=True)
        told = schema.pop("description", "")
        made = {"name": name, "in": place, "required": required, "schema": schema}
        return {**made, "description": told} if told else made

    def _body(self, binding: Binding) -> dict[str, Any]:
        if binding.raw_body:
            return {"content": {"*/*": {}}}
        if binding.body_field is not None:
            schema = self.schemas.field(binding.body_field, request=True)
        else:
            schema = self.schemas.message(binding.request, request=True)
        schema = self._unbound(schema, binding)
        needed = self.schemas.resolved(schema).get("required")
        return {
            "required": bool(binding.body_field or needed),
            "content": {JSON: {"schema": schema}},
        }

    def _unbound(self, schema: Schema, binding: Binding) -> Schema:
        """Give the schema of a body without what its path says."""
        prefix = f"{binding.body_field.json_name}." if binding.body_field else ""
        bound = {parameter.path for _, parameter in binding.variables}
        whole = self.schemas.resolved(schema)
        fields = whole.get("properties", {})
        left = {n: s for n, s in fields.items() if prefix + n not in bound}
        if len(left) == len(fields):
            return schema
        needed = [name for name in whole.get("required", ()) if name in left]
        return {**whole, "properties": left, "required": needed}

    def _responses(self, binding: Binding) -> dict[str, Any]:
        error = {"schema": {"$ref": "#/components/schemas/Error"}}
        good: dict[str, Any] = {"description": "It went well."}
        status = status_of(binding, self._settings)
        if status != 204:
            good["content"] = self._answers(binding)
        if find_string(binding.resource, "etag"):
            good["headers"] = {"ETag": {"schema": {"type": "string"}}}
        failed = {"description": "An error.", "content": {JSON: error}}
        return {str(status): good, "default": failed}

    def _answers(self, binding: Binding) -> dict[str, Any]:
        if binding.raw_reply:
            return {"*/*": {}}
        if binding.resource is not None:
            schema = self.schemas.message(binding.resource, request=False)
        elif binding.reply_field is not None:
            schema = self.schemas.field(binding.reply_field, request=False)
        if not binding.streams:
            return {JSON: {"schema": schema}}
        array = {"type": "array", "items": schema}
        lines = {"type": "string", "description": "One such JSON text a line or event."}
        return {JSON: {"schema": array}, NDJSON: {"schema": lines}, EVENTS: {}}


Wild = tuple[Variable, Parameter] | tuple[None, None]  # whom a wildcard fills


def _wild(binding: Binding) -> Sequence[Wild]:
    """Give a template's wildcards in order: each `*`, and the `**` at its end."""
    template = binding.template
    at = [index for index, segment in enumerate(template.segments) if segment is None]
    at += [len(template.segments)] if template.deep else []
    nobody: Wild = (None, None)
    return [
        next((pair for pair in binding.variables if pair[0].covers(index)), nobody)
        for index in at
    ]


def _shape(binding: Binding, names: Sequence[str]) -> str:
    """Give a template as OpenAPI writes it: each wildcard is a parameter."""
    template, left = binding.template, iter(names)
    parts = [*template.segments, *([None] if template.deep else [])]
    path = "/".join(f"{{{next(left)}}}" if part is None else part for part in parts)
    return f"/{path}:{template.verb}" if template.verb else f"/{path}"

"""Operations: ids, texts, parameters and request bodies."""

from collections.abc import Iterator, Sequence
from itertools import chain, count
from typing import Any

from edge.config import EdgeSettings
from edge.http.negotiation import JSON
from edge.openapi.paths import Wildcard
from edge.openapi.responses import BINARY, Responses
from edge.openapi.text import OperationText, read_text, tag_name
from edge.routing.bindings import Binding
from edge.schema.components import Schemas
from edge.schema.fields import Field

MAX_QUERY_DEPTH = 3  # names in a query parameter such as `weights.posts`
PathParameters = Sequence[tuple[str, Wildcard]]


class Operations:
    """Writes one operation for each binding."""

    def __init__(self, schemas: Schemas, settings: EdgeSettings) -> None:
        self._schemas = schemas
        self._settings = settings
        self._ids: set[str] = set()
        self.responses = Responses(schemas, settings)

    def operation(self, binding: Binding, path: PathParameters) -> dict[str, Any]:
        """Return the operation of a binding with these path parameters."""
        method, settings = binding.desc, self._settings
        text = read_text(method)
        public = binding.method in settings.public_methods
        operation: dict[str, Any] = {
            "operationId": self._operation_id(binding, path),
            "tags": [tag_name(method.parent)],
            "summary": text.summary or method.name,
            "description": self._description(binding, text),
            "security": [] if public else [{"bearer": []}],
        }
        if parameters := [*self._parameters(binding, path)]:
            operation["parameters"] = parameters
        if binding.takes_body:
            operation["requestBody"] = self._body(binding, operation["operationId"])
        operation["responses"] = self.responses.of(binding, text.errors)
        if limits := settings.rate_limits.get(binding.method):
            operation["x-rate-limits"] = list(limits)
        if method.deprecated:
            operation["deprecated"] = True
        return operation

    def _operation_id(self, binding: Binding, path: PathParameters) -> str:
        """Return an id that is unique and good as the name of a client's function.

        The first binding of method GetUser is `getUser`, another one with `{name}` in
        its path is `getUserByName`. Of methods with the same name, later ones have the
        name of their service as well.
        """
        name = binding.desc.name[:1].lower() + binding.desc.name[1:]
        service = tag_name(binding.desc.parent)
        if self._is_new(binding):
            first = [name, f"{service[:1].lower()}{service[1:]}{binding.desc.name}"]
        else:
            by = "".join(_camel(parameter) for parameter, _ in path)
            first = [f"{name}By{by}"] if by else []
        numbered = (f"{name}{number}" for number in count(2))
        operation_id = next(
            candidate
            for candidate in chain(first, numbered)
            if candidate not in self._ids
        )
        self._ids.add(operation_id)
        return operation_id

    def _description(self, binding: Binding, text: OperationText) -> str:
        settings = self._settings
        tables = settings.access, settings.step_up
        paragraphs = [text.details, *(t.get(binding.method, "") for t in tables)]
        if limits := settings.rate_limits.get(binding.method):
            paragraphs.append(f"Rate limits: {'; '.join(limits)}.")
        paragraphs += [
            f"The header `{header}` can also set `{parameter.path}`."
            for header, parameter in binding.headers.items()
        ]
        for cookie in settings.cookies:
            fields = {**cookie.reply_fields, **cookie.request_fields}
            if field := fields.get(binding.method):
                paragraphs.append(
                    f"With the header `X-Token-Mode: cookie`, `{field}` is not in the "
                    f"body but in the cookie `__Host-{cookie.name}`."
                )
        return "\n\n".join(filter(None, paragraphs)) or text.summary

    def _parameters(
        self, binding: Binding, path: PathParameters
    ) -> Iterator[dict[str, Any]]:
        """Yield the parameters in the path and the query.

        Headers that set a field are in the description only: as parameters, a client
        would have two ways to set the field.
        """
        bound = {parameter.fields for _, parameter in binding.variables}
        for name, (variable, parameter) in path:
            described = {"in": "path", "required": True, "schema": {"type": "string"}}
            if parameter and variable and variable.single:
                described = self._parameter(parameter.fields, "path", required=True)
            elif parameter:
                described["description"] = f"A part of the value of `{parameter.path}`."
            yield described | {"name": name}
        if not binding.whole_body:
            fields = [f for f in binding.request.fields if f is not binding.body_field]
            yield from self._queries(fields, (), bound)

    def _queries(
        self,
        fields: Sequence[Field],
        parents: tuple[Field, ...],
        bound: set[tuple[Field, ...]],
    ) -> Iterator[dict[str, Any]]:
        """Yield the fields that the query can set and the path does not."""
        for field in fields:
            path = (*parents, field)
            if path in bound or field.many is dict:
                continue
            if field.kind.read is not None:
                required = not parents and self._schemas.is_required(
                    field, request=True
                )
                yield self._parameter(path, "query", required=required)
            elif field.nested and not field.many and len(path) < MAX_QUERY_DEPTH:
                is_google = field.nested.name.startswith("google.")
                inner = () if is_google else field.nested.fields
                yield from self._queries(inner, path, bound)

    def _parameter(
        self, path: Sequence[Field], location: str, *, required: bool
    ) -> dict[str, Any]:
        schema = self._schemas.field(path[-1], request=True)
        description = schema.pop("description", "")
        parameter: dict[str, Any] = {
            "name": ".".join(field.name for field in path),
            "in": location,
            "required": required,
            "schema": schema,
        }
        if description:
            parameter["description"] = description
        return parameter

    def _body(self, binding: Binding, operation_id: str) -> dict[str, Any]:
        if binding.raw_body:
            return {"content": {"*/*": {"schema": BINARY}}}
        body = binding.body
        omitted = _bound_names(binding)
        if body is not None and omitted:
            name = f"{operation_id[:1].upper()}{operation_id[1:]}Body"
            schema = self._schemas.body_without(body, omitted, name)
        elif binding.body_field is not None:
            schema = self._schemas.field(binding.body_field, request=True)
        else:
            schema = self._schemas.message(binding.request, request=True)
        resolved = self._schemas.resolved(schema)
        excluded = resolved.get("not", {}).get("anyOf", ())
        required = resolved.get("required") or any("not" in one for one in excluded)
        return {
            "required": bool(binding.body_field or required),
            "content": {JSON: {"schema": schema}},
        }

    def _is_new(self, binding: Binding) -> bool:
        """Return whether this is the first binding of its method."""
        key = f"/{binding.method}"  # no operation id has a slash
        new = key not in self._ids
        self._ids.add(key)
        return new


def _bound_names(binding: Binding) -> set[str]:
    """Return the JSON names of the body's fields that the path sets."""
    if binding.body_field is None:
        paths = [parameter.names for _, parameter in binding.variables]
    else:
        paths = [
            parameter.names[1:]
            for _, parameter in binding.variables
            if parameter.fields[0] is binding.body_field
        ]
    return {names[0] for names in paths if len(names) == 1}


def _camel(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))

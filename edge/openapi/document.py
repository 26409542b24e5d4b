"""The document as a whole: info, servers, tags, paths and components."""

import logging
from collections.abc import Sequence
from typing import Any

from protobuf import DescService, Registry

from edge.config import EdgeSettings
from edge.openapi.operations import Operations
from edge.openapi.paths import PathNames
from edge.openapi.responses import error_schema
from edge.openapi.text import tag_name
from edge.routing.bindings import Binding, read_bindings
from edge.schema.codec import Codec
from edge.schema.components import Schemas, comment

_log = logging.getLogger("edge")
_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "An access token in the header `Authorization: Bearer <token>`.",
}


def document(descriptors: bytes, settings: EdgeSettings) -> dict[str, Any]:
    """Return the OpenAPI document of a serialised FileDescriptorSet.

    Raises what `create_app` raises.
    """
    codec = Codec(descriptors)
    return describe(codec, tuple(read_bindings(codec, settings)), settings)


def describe(
    codec: Codec, bindings: Sequence[Binding], settings: EdgeSettings
) -> dict[str, Any]:
    """Return the OpenAPI document of bindings.

    Raises ValueError if the descriptors lack the enum of `settings.error_reasons`.
    """
    bindings = sorted(bindings, key=lambda binding: _order(binding, settings))
    schemas = Schemas(codec.registry, settings.text_pattern)
    operations = Operations(schemas, settings)
    paths = _paths(bindings, operations)
    services = {
        binding.desc.parent.type_name: binding.desc.parent for binding in bindings
    }
    reasons = _reasons(codec.registry, settings)
    components = {**schemas.components, "ErrorResponse": error_schema(reasons)}
    return {
        "openapi": "3.1.0",
        "info": _info(settings),
        "servers": [{"url": settings.public_url or "/"}],
        "tags": [_tag(service) for service in services.values()],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "responses": dict(sorted(operations.responses.shared.items())),
            "securitySchemes": {"bearer": _BEARER},
        },
    }


def _order(binding: Binding, settings: EdgeSettings) -> tuple[int, bool]:
    """Sort by service; a binding of any HTTP method comes last."""
    service, order = binding.desc.parent.type_name, settings.service_order
    position = order.index(service) if service in order else len(order)
    return position, binding.verb == "*"


def _info(settings: EdgeSettings) -> dict[str, Any]:
    info: dict[str, Any] = {"title": settings.title, "version": settings.version}
    if settings.description:
        info["description"] = settings.description
    return {**info, **settings.info}


def _tag(service: DescService) -> dict[str, str]:
    tag = {"name": tag_name(service), "description": comment(service)}
    return {name: text for name, text in tag.items() if text}


def _reasons(registry: Registry, settings: EdgeSettings) -> dict[str, str]:
    """Return the error reasons with their descriptions, by name on the wire."""
    if not settings.error_reasons:
        return {}
    enum = registry.enum(settings.error_reasons)
    if enum is None:
        raise ValueError(f"error_reasons: there is no enum {settings.error_reasons}")
    # Style guides prefix each value with the enum's name; the wire omits it.
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    return {
        value.name.removeprefix(prefix): comment(value)
        for value in enum.values
        if value.number
    }


def _paths(
    bindings: Sequence[Binding], operations: Operations
) -> dict[str, dict[str, Any]]:
    """Return the operations of every path.

    Paths that differ in nothing but their parameters' names are one path to OpenAPI:
    of two operations with the same method, the first one is in the document. A binding
    of any HTTP method is described as POST, unless there is another POST.
    """
    names = PathNames()
    paths: dict[str, dict[str, Any]] = {}
    for binding in bindings:
        verb = "post" if binding.verb == "*" else binding.verb.lower()
        key = verb if verb in _METHODS else f"x-{verb}"  # unknown to OpenAPI
        path = names.path(binding)
        methods = paths.setdefault(path, {})
        if key in methods:
            message = "the OpenAPI document omits %s %s: another method has %s"
            _log.warning(message, binding.verb, binding.template.text, path)
        else:
            methods[key] = operations.operation(binding, names.parameters(binding))
    return paths

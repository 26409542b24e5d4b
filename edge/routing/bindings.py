"""Reads google.api.http annotations into bindings.

An annotation that cannot be served is refused here, at start, with the method's name.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from protobuf import DescMethod, Oneof

from edge.config import EdgeSettings
from edge.routing.template import PathTemplate, Variable, parse
from edge.schema.codec import Codec
from edge.schema.fields import (
    Field,
    FieldPathError,
    Parameter,
    Shape,
    find_string,
    resolve,
)

HTTP_BODY = "google.api.HttpBody"
_METHOD = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)  # RFC 9110 9.1


class BindingError(ValueError):
    """An annotation or a setting that cannot be served; names the method."""


@dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """One way to call one method over HTTP; all look-ups are done beforehand."""

    method: str  # "/pkg.Service/Method"
    desc: DescMethod
    verb: str  # GET, ... or "*"
    template: PathTemplate
    variables: tuple[tuple[Variable, Parameter], ...]
    request: Shape
    takes_body: bool
    body_field: Field | None  # None: the body is the request itself
    body: Shape | None  # the body's message type; None: it is not a message
    reply: Shape
    reply_field: Field | None
    resource: Shape | None  # the type that is sent; None: a scalar or a list
    headers: Mapping[str, Parameter]  # request fields that HTTP's own headers fill
    mask: Field | None  # FieldMask derived from a PATCH body
    mask_skips: frozenset[str]  # paths that are left out of a derived mask
    etag: Parameter | None  # the resource's version
    reply_token: Parameter | None  # where a stream can be resumed
    raw_reply: bool  # the response is a google.api.HttpBody, sent unchanged
    streams: bool
    queries: dict[str, Parameter] = field(default_factory=dict)  # resolved so far

    @property
    def whole_body(self) -> bool:
        """Whether the body is the request itself."""
        return self.takes_body and self.body_field is None

    @property
    def raw_body(self) -> bool:
        """Whether the body is a google.api.HttpBody, passed on unread."""
        return self.body is not None and self.body.name == HTTP_BODY


def read_bindings(codec: Codec, settings: EdgeSettings) -> Iterator[Binding]:
    """Yield the bindings of every annotated method; raises BindingError."""
    methods = {_full_name(method): method for method in codec.methods()}
    _check_tables(settings, methods)
    for name, method in methods.items():
        for rule in _rules(codec, method, settings.extra_bindings.get(name, "")):
            try:
                yield _bind(codec, method, rule, settings)
            except ValueError as error:
                raise _refused(method, str(error)) from None


def _check_tables(settings: EdgeSettings, known: Mapping[str, DescMethod]) -> None:
    """Raise BindingError for a setting about an unknown method."""
    tables: dict[str, set[str]] = {
        "access": set(settings.access),
        "extra_bindings": set(settings.extra_bindings),
        "public_max_age": set(settings.public_max_age),
        "public_methods": set(settings.public_methods),
        "rate_limits": set(settings.rate_limits),
        "step_up": set(settings.step_up),
    }
    for cookie in settings.cookies:
        fields = (cookie.request_fields, cookie.reply_fields, cookie.max_age_fields)
        tables[f"cookie {cookie.name}"] = set(cookie.cleared_by).union(*fields)
    for table, names in tables.items():
        if unknown := sorted(names - set(known)):
            raise BindingError(f"{table}: there is no method {', '.join(unknown)}")


def _full_name(method: DescMethod) -> str:
    return f"/{method.parent.type_name}/{method.name}"


def _refused(method: DescMethod, why: str) -> BindingError:
    return BindingError(f"{method.parent.type_name}.{method.name}: {why}")


def _rules(codec: Codec, method: DescMethod, extra: str) -> Iterator[Any]:
    """Yield a method's google.api.http rules, after its extra "GET /path"."""
    if extra:
        verb, _, path = extra.partition(" ")
        pattern = Oneof("custom", SimpleNamespace(kind=verb, path=path))
        yield SimpleNamespace(pattern=pattern, body="", response_body="")
    http = codec.registry.extension("google.api.http")
    options = method.proto.options
    if http is None or options is None or http.type not in options:
        return
    rule: Any = options[http.type]
    yield rule
    for more in rule.additional_bindings:
        if more.additional_bindings:
            raise _refused(method, "additional_bindings must not nest")
        yield more


def _pattern(rule: Any) -> tuple[str, str]:
    """Return a rule's HTTP method and path template."""
    match rule.pattern:
        case Oneof(field="custom", value=custom):
            return custom.kind, custom.path
        case Oneof(field=kind, value=path):
            return str(kind).upper(), str(path)
    raise ValueError("the http rule has no path")


def _bind(
    codec: Codec, method: DescMethod, rule: Any, settings: EdgeSettings
) -> Binding:
    if method.method_kind not in ("unary", "server_streaming"):
        raise ValueError("client streaming is not supported over REST")
    verb, path = _pattern(rule)
    if not _METHOD.fullmatch(verb):
        raise ValueError(f"{verb!r} is not an HTTP method")
    template = parse(path)
    request, reply = codec.shape(method.input), codec.shape(method.output)
    variables = tuple(_variables(request, template))
    whole = rule.body == "*"
    body_field = None if whole else _top_field(request, rule.body, "body")
    if any(parameter.fields == (body_field,) for _, parameter in variables):
        raise ValueError(f"{rule.body!r} is bound to the path and the body")
    reply_field = _top_field(reply, rule.response_body, "response_body")
    resource = reply_field.message if reply_field else reply
    return Binding(
        method=_full_name(method),
        desc=method,
        verb=verb,
        template=template,
        variables=variables,
        request=request,
        takes_body=bool(rule.body),
        body_field=body_field,
        body=request if whole else body_field.message if body_field else None,
        reply=reply,
        reply_field=reply_field,
        resource=resource,
        headers=_headers(request, body_field, settings),
        mask=_mask(request) if verb == "PATCH" and rule.body else None,
        mask_skips=_mask_skips(variables, body_field, settings),
        etag=find_string(resource, settings.etag_field),
        reply_token=find_string(reply, settings.resume_token_field),
        raw_reply=resource is not None and resource.name == HTTP_BODY,
        streams=method.method_kind == "server_streaming",
    )


def _variables(
    request: Shape, template: PathTemplate
) -> Iterator[tuple[Variable, Parameter]]:
    """Yield a template's variables with their fields, one value each (http.proto)."""
    oneofs: dict[object, str] = {}
    bound: set[tuple[Field, ...]] = set()
    for variable in template.variables:
        try:
            parameter = resolve(request, variable.field)
        except FieldPathError as error:
            where = f"path template {template.text!r}: {variable.field}"
            raise ValueError(f"{where}: {error}") from None
        if parameter.last.many:
            raise ValueError(f"{variable.field}: a list cannot be bound to a path")
        if parameter.fields in bound:
            raise ValueError(f"{variable.field}: the field is bound twice")
        bound.add(parameter.fields)
        for level, oneof in parameter.oneofs:
            name = parameter.names[level]
            if oneofs.setdefault((parameter.names[:level], oneof), name) != name:
                raise ValueError(
                    f"{variable.field}: another field of the same oneof is already "
                    "bound; bind only one"
                )
        yield variable, parameter


def _top_field(shape: Shape, name: str, option: str) -> Field | None:
    top_field = shape.named.get(name)
    if name and (top_field is None or top_field.name != name):
        raise ValueError(f"{option}: {shape.name} has no field {name!r}")
    return top_field


def _headers(
    request: Shape, body_field: Field | None, settings: EdgeSettings
) -> dict[str, Parameter]:
    """Return the fields that headers fill; the etag is the request's or the body's."""
    etag = settings.etag_field
    within = f"{body_field.name}.{etag}" if body_field and etag else ""
    fields = {
        "Idempotency-Key": find_string(request, settings.request_id_field),
        "If-Match": find_string(request, etag) or find_string(request, within),
        "Last-Event-ID": find_string(request, settings.resume_token_field),
    }
    return {name: parameter for name, parameter in fields.items() if parameter}


def _mask(request: Shape) -> Field | None:
    """Return the FieldMask of a request that has exactly one."""
    masks = [
        mask
        for mask in request.fields
        if mask.message and mask.message.name == "google.protobuf.FieldMask"
    ]
    return masks[0] if len(masks) == 1 else None


def _mask_skips(
    variables: Sequence[tuple[Variable, Parameter]],
    body_field: Field | None,
    settings: EdgeSettings,
) -> frozenset[str]:
    """Return the mask paths, within the body, of preconditions and path variables."""
    etag = settings.etag_field
    skips = {etag} if body_field else {etag, settings.request_id_field}
    for _, parameter in variables:
        names = [part.name for part in parameter.fields]
        if body_field is None:
            skips |= {".".join(names), ".".join([*names[:-1], etag])}
        elif parameter.fields[0] is body_field:
            skips.add(".".join(names[1:]))
    return frozenset(skips)

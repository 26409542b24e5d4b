"""google.api.http annotations -> bindings, and the trie that finds them.

Whatever cannot be served is refused here, at start, with the method's name.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from protobuf import DescMethod, Oneof

from edge.codec import Codec
from edge.config import EdgeSettings
from edge.schema.fields import (
    Field,
    FieldPathError,
    Parameter,
    Shape,
    find_string,
    resolve,
)
from edge.template import Template, Variable, parse

HTTP_BODY = "google.api.HttpBody"
RESUME = "resume_token"  # where a stream's message says that it can be taken up again
_METHOD = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)  # RFC 9110 9.1


class BindingError(ValueError):
    """An annotation or a table that cannot be served; names the method."""


@dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """One way to call one method over HTTP; everything is looked up beforehand."""

    method: str  # "/pkg.Service/Method"
    desc: DescMethod
    verb: str  # GET, ... or "*"
    template: Template
    variables: tuple[tuple[Variable, Parameter], ...]
    request: Shape
    takes_body: bool
    body_field: Field | None  # None: the body is the request itself
    body: Shape | None  # of the message that the body is, if it is one
    reply: Shape
    reply_field: Field | None
    resource: Shape | None  # of what is sent; None for a scalar or a list
    headers: Mapping[str, Parameter]  # request fields that HTTP's own headers fill
    mask: Field | None  # FieldMask derived from a PATCH body
    mask_skips: frozenset[str]  # paths that a derived mask leaves out
    streams: bool
    queries: dict[str, Parameter] = field(default_factory=dict)  # seen so far

    @property
    def whole_body(self) -> bool:
        """Whether the body is the request itself."""
        return self.takes_body and self.body_field is None

    @property
    def raw_body(self) -> bool:
        """Whether the body is a google.api.HttpBody, taken as it is."""
        return self.body is not None and self.body.name == HTTP_BODY

    @property
    def raw_reply(self) -> bool:
        """Whether the answer is a google.api.HttpBody, sent as it is."""
        return self.resource is not None and self.resource.name == HTTP_BODY


def read_bindings(codec: Codec, settings: EdgeSettings) -> Iterator[Binding]:
    """Give the bindings of every annotated method; raises BindingError."""
    methods = {_full_name(method): method for method in codec.methods()}
    _check_tables(settings, methods)
    for name, method in methods.items():
        for rule in _rules(codec, method, settings.extra_bindings.get(name, "")):
            try:
                yield _bind(codec, method, rule)
            except ValueError as error:
                raise _refused(method, str(error)) from None


def _check_tables(settings: EdgeSettings, known: Mapping[str, DescMethod]) -> None:
    """Refuse settings for methods that nobody has."""
    tables: dict[str, set[str]] = {
        "access": set(settings.access),
        "extra_bindings": set(settings.extra_bindings),
        "public_max_age": set(settings.public_max_age),
        "public_methods": set(settings.public_methods),
        "rate_limits": set(settings.rate_limits),
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
    """Give a method's google.api.http rules, and the "GET /path" added to them."""
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
    """Give a rule's HTTP method and path template."""
    match rule.pattern:
        case Oneof(field="custom", value=custom):
            return custom.kind, custom.path
        case Oneof(field=kind, value=path):
            return str(kind).upper(), str(path)
    raise ValueError("the http rule has no path")


def _bind(codec: Codec, method: DescMethod, rule: Any) -> Binding:
    if method.method_kind not in ("unary", "server_streaming"):
        raise ValueError("REST has no streams of requests")
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
        resource=reply_field.message if reply_field else reply,
        headers=_headers(request, body_field),
        mask=_mask(request) if verb == "PATCH" and rule.body else None,
        mask_skips=_mask_skips(variables, body_field),
        streams=method.method_kind == "server_streaming",
    )


def _variables(
    request: Shape, template: Template
) -> Iterator[tuple[Variable, Parameter]]:
    """Bind a template's variables to fields that are one value each (http.proto)."""
    oneofs: dict[object, str] = {}
    bound: set[tuple[Field, ...]] = set()
    for variable in template.variables:
        try:
            parameter = resolve(request, variable.field)
        except FieldPathError as error:
            where = f"path template {template.text!r}: {variable.field}"
            raise ValueError(f"{where}: {error}") from None
        if parameter.last.many:
            raise ValueError(f"{variable.field}: a list cannot stand in a path")
        if parameter.fields in bound:
            raise ValueError(f"{variable.field}: it is bound twice")
        bound.add(parameter.fields)
        for level, oneof in parameter.oneofs:
            name = parameter.names[level]
            if oneofs.setdefault((parameter.names[:level], oneof), name) != name:
                raise ValueError(f"{variable.field}: another of its oneof is bound")
        yield variable, parameter


def _top_field(shape: Shape, name: str, option: str) -> Field | None:
    found = shape.named.get(name)
    if name and (found is None or found.name != name):
        raise ValueError(f"{option}: {shape.name} has no field {name!r}")
    return found


def _headers(request: Shape, body_field: Field | None) -> dict[str, Parameter]:
    """Find what headers fill; the etag is the request's own, else the body's."""
    within = f"{body_field.name}.etag" if body_field else "etag"
    found = {
        "Idempotency-Key": find_string(request, "request_id"),
        "If-Match": find_string(request, "etag") or find_string(request, within),
        "Last-Event-ID": find_string(request, RESUME),
    }
    return {name: parameter for name, parameter in found.items() if parameter}


def _mask(request: Shape) -> Field | None:
    """Find the one FieldMask of a request; of several, none can be told apart."""
    masks = [
        found
        for found in request.fields
        if found.message and found.message.name == "google.protobuf.FieldMask"
    ]
    return masks[0] if len(masks) == 1 else None


def _mask_skips(
    variables: Sequence[tuple[Variable, Parameter]], body_field: Field | None
) -> frozenset[str]:
    """Give the mask paths, within the body, of `etag` and of path-bound fields."""
    skips = {"etag"} if body_field else {"etag", "request_id"}
    for _, parameter in variables:
        names = [found.name for found in parameter.fields]
        if body_field is None:
            skips |= {".".join(names), ".".join([*names[:-1], "etag"])}
        elif parameter.fields[0] is body_field:
            skips.add(".".join(names[1:]))
    return frozenset(skips)


Methods = dict[str, Binding]


@dataclass(slots=True)
class _Node:
    literals: "dict[str, _Node]" = field(default_factory=dict)
    star: "_Node | None" = None
    leaves: dict[str, Methods] = field(default_factory=dict)  # by verb: the path ends
    deep: dict[str, Methods] = field(default_factory=dict)  # by verb: `**` takes all


class Router:
    """Finds the binding of a path: a literal before `*` before `**`."""

    def __init__(self, bindings: Sequence[Binding]) -> None:
        """Build the trie; raises BindingError where two bindings are one route."""
        self.bindings = tuple(bindings)
        self._root = _Node()
        for binding in bindings:
            self._add(binding)

    def _add(self, binding: Binding) -> None:
        node = self._root
        for segment in binding.template.segments:
            if segment is None:
                node.star = node.star or _Node()
                node = node.star
            else:
                node = node.literals.setdefault(segment, _Node())
        leaves = node.deep if binding.template.deep else node.leaves
        methods = leaves.setdefault(binding.template.verb, {})
        other = methods.setdefault(binding.verb, binding)
        if other is not binding:
            what = f"{binding.verb} {binding.template.text!r}"
            raise _refused(binding.desc, f"{what} is also a route of {other.method}")

    def find(self, path: list[str], verb: str) -> list[Methods]:
        """Give the bindings of every leaf that a path reaches, the closest first.

        The path is split at its slashes.
        """
        return _leaves(self._root, path, 0, verb)


def pick(methods: Methods, method: str) -> Binding | None:
    """Give a leaf's binding for an HTTP method; HEAD may be GET."""
    found = methods.get(method)
    if found is None and method == "HEAD":
        found = methods.get("GET")
    return found or methods.get("*")


def _leaves(node: _Node, path: list[str], at: int, verb: str) -> list[Methods]:
    found: list[Methods] = []
    if at < len(path):
        segment = path[at]
        if segment in node.literals:
            found = _leaves(node.literals[segment], path, at + 1, verb)
        if node.star and segment:
            found += _leaves(node.star, path, at + 1, verb)
    elif verb in node.leaves:
        found.append(node.leaves[verb])
    if verb in node.deep:
        found.append(node.deep[verb])
    return found

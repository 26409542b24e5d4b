"""google.api.http annotations -> bindings, and the trie that finds them.

Whatever cannot be served is refused here, at start, with the method's name.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from protobuf import DescField, DescMethod, Oneof

from edge.codec import Codec
from edge.schema.parameters import FieldPathError, Parameter, find_string, resolve
from edge.schema.shapes import WELL_KNOWN, Shape, message_of
from edge.template import Template, TemplateError, parse

HTTP_BODY = "google.api.HttpBody"


class BindingError(ValueError):
    """An annotation that cannot be served; names the method and the fault."""


@dataclass(frozen=True, slots=True)
class PathVariable:
    """A parameter and the path segments it is filled from."""

    parameter: Parameter
    start: int
    end: int | None
    single: bool


@dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """One way to call one method over HTTP; everything is looked up beforehand."""

    method: str  # "/pkg.Service/Method"
    desc: DescMethod
    verb: str  # GET, ... or "*"
    template: Template
    request: Shape
    variables: tuple[PathVariable, ...]
    body_all: bool
    body_field: DescField | None
    body_shape: Shape | None  # of the message that the body is, if it is one
    reply: Shape
    reply_field: DescField | None
    resource: Shape | None  # of what is sent; None for a scalar or a list
    etag: Parameter | None  # request field that If-Match fills
    request_id: Parameter | None  # request field that Idempotency-Key fills
    resume: Parameter | None  # request field that Last-Event-ID fills
    mask: DescField | None  # FieldMask derived from a PATCH body
    mask_skips: frozenset[str]  # paths that a derived mask leaves out
    has_etag: bool  # whether what is sent has a string field `etag`
    has_resume: bool  # whether what is sent has a string field `resume_token`
    queries: dict[str, Parameter] = field(default_factory=dict)  # seen so far

    @property
    def takes_body(self) -> bool:
        """Whether a request has a body."""
        return self.body_all or self.body_field is not None

    @property
    def streams(self) -> bool:
        """Whether there is any number of answers."""
        return self.desc.method_kind == "server_streaming"

    @property
    def raw_reply(self) -> bool:
        """Whether the answer is a google.api.HttpBody, sent as it is."""
        return self.resource is not None and self.resource.desc.type_name == HTTP_BODY


def read_bindings(codec: Codec, extra: Mapping[str, str]) -> Iterator[Binding]:
    """Give the bindings of every annotated method; raises BindingError.

    `extra` gives "GET /path" for methods whose files nobody can annotate.
    """
    unknown = set(extra) - {_full_name(method) for method in codec.methods()}
    if unknown:
        raise BindingError(f"there is no method {', '.join(sorted(unknown))}")
    for method in codec.methods():
        added = extra.get(_full_name(method))
        if added:
            yield _bind(codec, method, _extra_rule(added))
        rule = _rule(codec, method)
        if rule is None:
            continue
        yield _bind(codec, method, rule)
        for more in rule.additional_bindings:
            if more.additional_bindings:
                raise _refused(method, "additional_bindings must not nest")
            yield _bind(codec, method, more)


def _full_name(method: DescMethod) -> str:
    return f"/{method.parent.type_name}/{method.name}"


def _rule(codec: Codec, method: DescMethod) -> Any:
    """Give a method's google.api.http annotation, None where it has none."""
    http = codec.registry.extension("google.api.http")
    options = method.proto.options
    if http is None or options is None or http.type not in options:
        return None
    return options[http.type]


def _extra_rule(text: str) -> Any:
    verb, _, path = text.partition(" ")
    pattern = Oneof("custom", SimpleNamespace(kind=verb, path=path))
    return SimpleNamespace(pattern=pattern, body="", response_body="")


def _refused(method: DescMethod, why: str) -> BindingError:
    return BindingError(f"{method.parent.type_name}.{method.name}: {why}")


def _bind(codec: Codec, method: DescMethod, rule: Any) -> Binding:
    if method.method_kind not in ("unary", "server_streaming"):
        raise _refused(method, "REST has no streams of requests")
    try:
        return _made(codec, method, rule)
    except (TemplateError, FieldPathError) as error:
        raise _refused(method, str(error)) from None


def _pattern(rule: Any) -> tuple[str, str]:
    """Give a rule's HTTP method and path template."""
    match rule.pattern:
        case Oneof(field="custom", value=custom):
            return custom.kind, custom.path
        case Oneof(field=kind, value=path):
            return str(kind).upper(), str(path)
    raise FieldPathError("the http rule has no path")


def _made(codec: Codec, method: DescMethod, rule: Any) -> Binding:
    verb, path = _pattern(rule)
    template = parse(path)
    request, reply = codec.shape(method.input), codec.shape(method.output)
    variables = tuple(_variables(codec, request, template))
    body_field = _top_field(request, rule.body, "body") if rule.body != "*" else None
    for variable in variables:
        if (
            variable.parameter.fields[0] is body_field
            and len(variable.parameter.fields) == 1
        ):
            raise FieldPathError(f"{rule.body!r} is bound to the path and the body")
    body_shape = request if rule.body == "*" else _message_shape(codec, body_field)
    reply_field = _top_field(reply, rule.response_body, "response_body")
    resource = _message_shape(codec, reply_field) if reply_field else reply
    return Binding(
        method=_full_name(method),
        desc=method,
        verb=verb,
        template=template,
        request=request,
        variables=variables,
        body_all=rule.body == "*",
        body_field=body_field,
        body_shape=body_shape,
        reply=reply,
        reply_field=reply_field,
        resource=resource,
        etag=_etag(codec, request, body_field),
        request_id=find_string(codec, request, "request_id"),
        resume=find_string(codec, request, "resume_token"),
        mask=_mask(request) if verb == "PATCH" and rule.body else None,
        mask_skips=_mask_skips(variables, body_field),
        has_etag=resource is not None and _has_string(codec, resource, "etag"),
        has_resume=_has_string(codec, reply, "resume_token"),
    )


def _variables(
    codec: Codec, request: Shape, template: Template
) -> Iterator[PathVariable]:
    """Bind a template's variables to fields that are one value each (http.proto)."""
    oneofs: dict[object, str] = {}
    for variable in template.variables:
        try:
            parameter = resolve(codec, request, variable.field)
        except FieldPathError as error:
            where = f"path template {template.text!r}: {variable.field}"
            raise FieldPathError(f"{where}: {error}") from None
        if parameter.many:
            raise FieldPathError(f"{variable.field}: a list cannot stand in a path")
        for level, oneof in parameter.oneofs:
            name = parameter.names[level]
            if oneofs.setdefault((parameter.names[:level], oneof), name) != name:
                raise FieldPathError(f"{variable.field}: another of its oneof is bound")
        yield PathVariable(parameter, variable.start, variable.end, variable.single)


def _top_field(shape: Shape, name: str, option: str) -> DescField | None:
    if not name:
        return None
    found = shape.field(name)
    if found is None or found.name != name:
        raise FieldPathError(f"{option}: {shape.desc.type_name} has no field {name!r}")
    return found


def _message_shape(codec: Codec, found: DescField | None) -> Shape | None:
    message = message_of(found) if found else None
    return codec.shape(message) if message else None


def _etag(
    codec: Codec, request: Shape, body_field: DescField | None
) -> Parameter | None:
    """Find the etag that If-Match fills: the request's own, else the body's."""
    own = find_string(codec, request, "etag")
    if own or body_field is None:
        return own
    return find_string(codec, request, f"{body_field.name}.etag")


def _mask(request: Shape) -> DescField | None:
    """Find the one FieldMask of a request; of several, none can be told apart."""
    masks = [
        found
        for found in request.desc.fields
        if (message := message_of(found))
        and message.type_name == f"{WELL_KNOWN}FieldMask"
    ]
    return masks[0] if len(masks) == 1 else None


def _mask_skips(
    variables: Sequence[PathVariable], body_field: DescField | None
) -> frozenset[str]:
    """Give the mask paths, within the body, of `etag` and of path-bound fields."""
    skips = {"etag", "request_id"} if body_field is None else {"etag"}
    for variable in variables:
        names = [found.name for found in variable.parameter.fields]
        if body_field is not None and names[0] == body_field.name:
            names = names[1:]
        skips.add(".".join(names))
    return frozenset(skips)


def _has_string(codec: Codec, shape: Shape, name: str) -> bool:
    return find_string(codec, shape, name) is not None


Methods = dict[str, Binding]


class _Node:
    __slots__ = ("deep", "leaves", "literals", "star")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.star: _Node | None = None
        self.leaves: dict[str, Methods] = {}  # by verb: the path ends here
        self.deep: dict[str, Methods] = {}  # by verb: `**` takes the rest


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

    def find(self, method: str, segments: list[str], verb: str) -> Binding | None:
        """Give the binding of a method and a path split at its slashes."""
        return _find(self._root, segments, 0, len(segments), verb, method)

    def allowed(self, segments: list[str], verb: str) -> set[str]:
        """Give the methods that some binding has for a path; none: no such path."""
        return {m for found in _all(self._root, segments, 0, verb) for m in found}


def _find(
    node: _Node, segments: list[str], at: int, end: int, verb: str, method: str
) -> Binding | None:
    found: Binding | None = None
    if at == end:
        found = _of(node.leaves.get(verb), method)
    else:
        child = node.literals.get(segments[at])
        if child is not None:
            found = _find(child, segments, at + 1, end, verb, method)
        if found is None and node.star is not None and segments[at]:
            found = _find(node.star, segments, at + 1, end, verb, method)
    return found or _of(node.deep.get(verb), method)


def _of(methods: Methods | None, method: str) -> Binding | None:
    return (methods.get(method) or methods.get("*")) if methods else None


def _all(node: _Node, segments: list[str], at: int, verb: str) -> Iterator[Methods]:
    """Give the methods of every leaf that a path reaches."""
    if verb in node.deep:
        yield node.deep[verb]
    if at == len(segments):
        if verb in node.leaves:
            yield node.leaves[verb]
        return
    if segments[at] in node.literals:
        yield from _all(node.literals[segments[at]], segments, at + 1, verb)
    if node.star and segments[at]:
        yield from _all(node.star, segments, at + 1, verb)

"""Path templates as OpenAPI writes them: each wildcard is a named parameter."""

from collections.abc import Sequence

from edge.routing.bindings import Binding
from edge.routing.template import Variable
from edge.schema.fields import Parameter

Wildcard = tuple[Variable, Parameter] | tuple[None, None]  # the variable it is part of


class PathNames:
    """The names of path parameters.

    A parameter has the name of its field, without the message that the field is in:
    `{user.id}` is `{id}`. Paths that differ in nothing but these names are the same
    path (OpenAPI 3.1, Paths Object), so the names of the first one apply to all.
    """

    def __init__(self) -> None:
        self._names: dict[str, Sequence[str]] = {}  # by path without names

    def parameters(self, binding: Binding) -> Sequence[tuple[str, Wildcard]]:
        """Return the wildcards of a path in order, each with its name."""
        wildcards = _wildcards(binding)
        fields = [
            variable.field.rpartition(".")[2] if variable else "segment"
            for variable, _ in wildcards
        ]
        names = [
            f"{name}_{fields[: index + 1].count(name)}"
            if fields.count(name) > 1
            else name
            for index, name in enumerate(fields)
        ]
        shape = _path(binding, [""] * len(names))
        return list(zip(self._names.setdefault(shape, names), wildcards, strict=True))

    def path(self, binding: Binding) -> str:
        """Return the path of a binding in the document."""
        return _path(binding, [name for name, _ in self.parameters(binding)])


def _wildcards(binding: Binding) -> Sequence[Wildcard]:
    """Return a template's wildcards in order: each `*`, and a `**` at the end."""
    template = binding.template
    positions = [
        index for index, segment in enumerate(template.segments) if segment is None
    ]
    positions += [len(template.segments)] if template.deep else []
    unbound: Wildcard = (None, None)
    return [
        next((pair for pair in binding.variables if pair[0].covers(position)), unbound)
        for position in positions
    ]


def _path(binding: Binding, names: Sequence[str]) -> str:
    template, remaining = binding.template, iter(names)
    segments = [*template.segments, *([None] if template.deep else [])]
    path = "/".join(
        f"{{{next(remaining)}}}" if segment is None else segment for segment in segments
    )
    return f"/{path}:{template.verb}" if template.verb else f"/{path}"

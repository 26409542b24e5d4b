"""Derives the field mask of an update from its body (AIP-134)."""

from collections.abc import Iterator
from typing import Any

from protobuf import Message, Registry

from edge.requests.merging import value_in_tree
from edge.routing.bindings import Binding
from edge.schema.fields import Field, Shape

_OUTPUT_ONLY = 3  # google.api.FieldBehavior


class MaskDeriver:
    """Names the fields of a PATCH body where the caller sent no mask."""

    def __init__(self, registry: Registry) -> None:
        self._behavior = registry.extension("google.api.field_behavior")

    def derive(self, binding: Binding, tree: Any, bound: Message) -> None:
        """Set the mask in `bound`; `tree` is the JSON values of the request."""
        mask, body_field = binding.mask, binding.body_field
        if mask is None or mask.message is None or binding.body is None:
            return
        if mask.desc in bound or value_in_tree(tree, (mask,)) is not None:
            return
        body = value_in_tree(tree, (body_field,) if body_field else ())
        paths = [
            path
            for path in self._paths(body, binding.body, "")
            if path not in binding.mask_skips
        ]
        if paths:
            bound[mask.desc] = mask.message.type(paths=paths)

    def _paths(self, tree: Any, shape: Shape, prefix: str) -> Iterator[str]:
        """Yield a path for every leaf; lists, maps and well-known types are leaves.

        Output-only fields are left out: a client may send back what it read
        (AIP-203).
        """
        for name, value in tree.items() if isinstance(tree, dict) else ():
            field = shape.named.get(name)
            if field is None or self._is_output_only(field):
                continue
            path = prefix + field.name
            if field.nested and not field.many and isinstance(value, dict) and value:
                yield from self._paths(value, field.nested, path + ".")
            else:
                yield path

    def _is_output_only(self, field: Field) -> bool:
        options, extension = field.desc.proto.options, self._behavior
        if extension is None or options is None or extension.type not in options:
            return False
        return _OUTPUT_ONLY in options[extension.type]

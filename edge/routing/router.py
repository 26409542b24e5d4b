"""The trie that finds the bindings of a path."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from edge.routing.bindings import Binding, BindingError

Methods = dict[str, Binding]  # by HTTP method


@dataclass(slots=True)
class _Node:
    literals: "dict[str, _Node]" = field(default_factory=dict)
    star: "_Node | None" = None
    leaves: dict[str, Methods] = field(default_factory=dict)  # by verb: the path ends
    deep: dict[str, Methods] = field(default_factory=dict)  # by verb: `**` takes all


class Router:
    """Finds the bindings of a path: a literal before `*` before `**`."""

    def __init__(self, bindings: Sequence[Binding]) -> None:
        """Build the trie; raises BindingError where two bindings share a route."""
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
            route = f"{binding.verb} {binding.template.text!r}"
            raise BindingError(
                f"{binding.desc.parent.type_name}.{binding.desc.name}: "
                f"{route} is also a route of {other.method}"
            )

    def find(self, path: list[str], verb: str) -> list[Methods]:
        """Return the bindings of every leaf that a path reaches, the closest first.

        `path` is the segments of the path, decoded.
        """
        return _leaves(self._root, path, 0, verb)


def pick(methods: Methods, method: str) -> Binding | None:
    """Return a leaf's binding for an HTTP method; HEAD may be GET."""
    binding = methods.get(method)
    if binding is None and method == "HEAD":
        binding = methods.get("GET")
    return binding or methods.get("*")


def _leaves(node: _Node, path: list[str], at: int, verb: str) -> list[Methods]:
    leaves: list[Methods] = []
    if at < len(path):
        segment = path[at]
        if segment in node.literals:
            leaves = _leaves(node.literals[segment], path, at + 1, verb)
        if node.star and segment:
            leaves += _leaves(node.star, path, at + 1, verb)
    elif verb in node.leaves:
        leaves.append(node.leaves[verb])
    if verb in node.deep:
        leaves.append(node.deep[verb])
    return leaves

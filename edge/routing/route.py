"""The first stage: the binding of a request's path and method."""

from collections.abc import Container
from urllib.parse import unquote

from edge.errors import Code, HttpError
from edge.requests.parameters import fits, split_path
from edge.routing.bindings import Binding
from edge.routing.router import Router, pick

Candidate = tuple[list[str], list[str], str]  # segments, literals, verb


class Routing:
    """Finds the binding of a request among those of one application."""

    def __init__(
        self, router: Router, pages: Container[str], *, trailing_slash: bool
    ) -> None:
        """`pages` are paths that another application serves to GET.

        With `trailing_slash`, a path means the same with a slash at its end.
        """
        self._router = router
        self._pages = pages
        self._trailing_slash = trailing_slash

    def candidates(self, raw_path: bytes) -> list[Candidate]:
        """Return the splits of a path, the likeliest first; raises HttpError."""
        segments, literals = split_path(raw_path)
        candidates = _verb_candidates(segments, literals)
        if self._trailing_slash and literals[1:][-1:] == [""]:
            candidates += _verb_candidates(segments[:-1], literals[:-1])
        return candidates

    def match(
        self, candidates: list[Candidate], method: str
    ) -> tuple[Binding, list[str]] | None:
        """Return the binding of a path and method, with the path's segments.

        A binding beyond the closest leaf must fit the path's values: `me` is no user
        id, so a method that `/users/me` lacks is not looked up in `/users/{id}`.
        """
        closest = True
        for segments, path, verb in candidates:
            for methods in self._router.find(path, verb):
                binding = pick(methods, method)
                if binding and (closest or fits(binding, segments)):
                    return binding, segments
                closest = False
        return None

    def allowed(self, candidates: list[Candidate], path: str) -> set[str]:
        """Return the HTTP methods of a path; raises HttpError (404) if it has none."""
        methods: set[str] = set()
        closest = True
        for segments, literals, verb in candidates:
            for leaf in self._router.find(literals, verb):
                for binding in leaf.values():
                    if closest or fits(binding, segments):
                        methods.add(binding.verb)
                closest = False
        if not methods and path in self._pages:
            methods = {"GET"}
        if not methods:
            message = "there is no resource at this path"
            raise HttpError(message, "PATH_NOT_FOUND", http=404, code=Code.NOT_FOUND)
        return methods


def method_not_allowed(method: str, methods: set[str]) -> HttpError:
    """Return the error for a known path with another method: 405."""
    return HttpError(
        f"the method {method} is not allowed for this path",
        "METHOD_NOT_ALLOWED",
        http=405,
        code=Code.UNIMPLEMENTED,
        headers=[(b"allow", ", ".join(sorted(methods)).encode())],
    )


def _verb_candidates(segments: list[str], literals: list[str]) -> list[Candidate]:
    """Return the splits of a path whose last colon may begin a verb."""
    whole = (segments, literals, "")
    # An escaped colon belongs to a value, so this looks at the path as sent.
    rest, colon, verb = segments[-1].rpartition(":") if segments else ("", "", "")
    if not colon or not verb:
        return [whole]
    cut, literal = [*segments[:-1], rest], unquote(rest, errors="surrogateescape")
    return [(cut, [*literals[:-1], literal], unquote(verb)), whole]

"""The grammar of path templates: text -> segments, verb and variables.

From the comment on HttpRule in google/api/http.proto:

    Template  = "/" Segments [ Verb ] ;
    Segments  = Segment { "/" Segment } ;
    Segment   = "*" | "**" | LITERAL | Variable ;
    Variable  = "{" FieldPath [ "=" Segments ] "}" ;
    FieldPath = IDENT { "." IDENT } ;
    Verb      = ":" LITERAL ;

`**` must be the last segment. "/" alone is the root. A literal is a path segment of
RFC 3986. The grammar does not say whether it may contain a colon: here it may within
a variable, where the colon cannot begin a verb.
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote

_PCHAR = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=@]|%[0-9A-Fa-f]{2})"
_LITERAL = re.compile(f"{_PCHAR}+")
_INNER_LITERAL = re.compile(f"(?:{_PCHAR}|:)+")
_IDENT = r"[A-Za-z_][A-Za-z0-9_]*"
_VARIABLE = re.compile(rf"\{{({_IDENT}(?:\.{_IDENT})*)(?:=([^{{}}]*))?\}}")
_OUTER_SLASH = re.compile(r"/(?![^{}]*\})")


@dataclass(frozen=True, slots=True)
class Variable:
    """A field that has the segments from `start` to `end` (None: to the last)."""

    field: str
    start: int
    end: int | None

    @property
    def single(self) -> bool:
        """Whether it is exactly one segment, in which "%2F" is a slash."""
        return self.end == self.start + 1

    def covers(self, index: int) -> bool:
        """Return whether a segment belongs to the variable."""
        return self.start <= index and (self.end is None or index < self.end)


@dataclass(slots=True)
class PathTemplate:
    """A parsed template; its literals are percent-decoded."""

    text: str
    segments: list[str | None]  # None is `*`
    variables: list[Variable]
    deep: bool = False  # whether `**` follows the segments
    verb: str = ""

    def _add(self, segment: str, literal: re.Pattern[str]) -> None:
        if self.deep:
            raise ValueError("'**' must be the last segment")
        if segment == "**":
            self.deep = True
        elif segment == "*":
            self.segments.append(None)
        elif literal.fullmatch(segment) and not segment.startswith("**"):
            self.segments.append(unquote(segment, errors="surrogateescape"))
        else:
            raise ValueError(
                f"{segment!r} is not a valid path segment: "
                "use a literal, '*', '**' or '{field}'"
            )

    def _add_variable(self, field: str, pattern: str) -> None:
        start = len(self.segments)
        for segment in pattern.split("/"):
            self._add(segment, _INNER_LITERAL)
        end = None if self.deep else len(self.segments)
        self.variables.append(Variable(field, start, end))

    def read(self) -> None:
        """Parse the text; raises ValueError naming the fault."""
        if not self.text.startswith("/"):
            raise ValueError("must start with '/'")
        rest = self.text[1:]
        colon = rest.find(":", max(rest.rfind("/"), rest.rfind("}")) + 1)
        path = rest if colon < 0 else rest[:colon]
        for part in _OUTER_SLASH.split(path) if rest else ():
            if match := _VARIABLE.fullmatch(part):
                self._add_variable(match[1], "*" if match[2] is None else match[2])
            else:
                self._add(part, _LITERAL)
        if colon >= 0:
            self.verb = unquote(rest[colon + 1 :], errors="surrogateescape")
            if not _LITERAL.fullmatch(rest[colon + 1 :]):
                raise ValueError("the verb after ':' must be a literal")


def parse(text: str) -> PathTemplate:
    """Return the parsed template; raises ValueError naming the fault."""
    template = PathTemplate(text, [], [])
    try:
        template.read()
    except ValueError as error:
        raise ValueError(f"path template {text!r}: {error}") from None
    return template
